//! The server as a process: what it writes, refuses and answers, and how it ends (contract §1).

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;

const PATIENCE: Duration = Duration::from_secs(30);

fn prism(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prism"));
    command.arg("serve").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for variable in ["PRISM_DATA_DIR", "PRISM_DATA_PORT", "PRISM_ADMIN_PORT", "PRISM_METRICS_PORT", "PRISM_LOG"] {
        command.env_remove(variable);
    }
    command
}

/// A running server on free ports; killed when dropped.
struct Server {
    child: Child,
    folder: PathBuf,
}

impl Server {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        let free =
            ["--bind", "127.0.0.1", "--data-port", "0", "--admin-port", "0", "--metrics-port", "0", "--data-dir"];
        let mut command = prism(&free);
        let child = command.arg(folder).args(arguments).spawn().unwrap();
        let mut server = Self { child, folder: folder.to_owned() };
        let begun = Instant::now();
        loop {
            if let Some(status) = server.child.try_wait().unwrap() {
                let mut text = String::new();
                server.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
                panic!("the server ended with {status}: {text}");
            }
            if server.endpoints().is_some_and(|endpoints| endpoints.get("ready").1) {
                return server;
            }
            assert!(begun.elapsed() < PATIENCE, "the server was not ready in time");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn endpoints(&self) -> Option<Endpoints> {
        let text = std::fs::read_to_string(self.folder.join("endpoints.json")).ok()?;
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let field = |name: &str| value[name].as_str().unwrap().to_owned();
        Some(Endpoints { data: field("data"), admin: field("admin"), metrics: field("metrics") })
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the server did not end");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Endpoints {
    data: String,
    admin: String,
    metrics: String,
}

impl Endpoints {
    /// The body at `path` of the metrics port, and whether the status is 200.
    fn get(&self, path: &str) -> (String, bool) {
        let Ok(mut stream) = TcpStream::connect(&self.metrics) else { return (String::new(), false) };
        let request = format!("GET /{path} HTTP/1.1\r\nhost: prism\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        (body.to_owned(), head.starts_with("HTTP/1.1 200"))
    }
}

/// Runs a server that is expected not to start.
fn refused(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_developer_gets_everything_and_a_restart_keeps_it() {
    let folder = folder();
    let mut server = Server::start(folder.path(), &["--dev"]);
    let endpoints = server.endpoints().unwrap();
    assert!(TcpStream::connect(&endpoints.data).is_ok() && TcpStream::connect(&endpoints.admin).is_ok());
    assert!(endpoints.get("live").1);
    let (metrics, _) = endpoints.get("metrics");
    assert!(metrics.contains("prism_build_info{"), "{metrics}");
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let (client, admin) = (read("client.token"), read("admin.token"));
    assert!(client.starts_with("prc_") && admin.starts_with("prx_"));
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(0));
    assert!(server.endpoints().is_none(), "a clean exit removes endpoints.json");
    let mut said = String::new();
    server.child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("prism-admin whoami") && said.contains(&endpoints.data), "{said}");

    let mut server = Server::start(folder.path(), &["--dev"]);
    assert_eq!((read("client.token"), read("admin.token")), (client.clone(), admin.clone()));
    server.signal("KILL");
    server.ended();
    assert!(server.endpoints().is_some(), "after a crash the old file is still there");
    let mut server = Server::start(folder.path(), &["--dev"]);
    assert_eq!((read("client.token"), read("admin.token")), (client, admin));
    server.signal("INT");
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn a_data_directory_serves_one_process() {
    let folder = folder();
    let _server = Server::start(folder.path(), &[]);
    let (code, said) = refused(prism(&["--data-port", "0", "--data-dir"]).arg(folder.path()));
    assert_eq!(code, Some(1));
    assert!(said.contains("in use") && said.contains(folder.path().to_str().unwrap()), "{said}");
}

#[test]
fn a_taken_port_is_named_with_its_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (flag, others) in [
        ("--data-port", ["--admin-port", "--metrics-port"]),
        ("--admin-port", ["--data-port", "--metrics-port"]),
        ("--metrics-port", ["--data-port", "--admin-port"]),
    ] {
        let folder = folder();
        let arguments = ["--bind", "127.0.0.1", flag, &port, others[0], "0", others[1], "0", "--data-dir"];
        let (code, said) = refused(prism(&arguments).arg(folder.path()));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(flag) && said.contains(&port), "{said}");
        assert!(!folder.path().join("endpoints.json").exists());
    }
}

#[test]
fn what_is_wrong_with_the_configuration_is_said_before_anything_is_made() {
    let folder = folder();
    let file = folder.path().join("prism.toml");
    let data = folder.path().join("data");
    let run = |change: &dyn Fn(&mut Command) -> &mut Command| {
        let mut command = prism(&["--data-dir"]);
        let (code, said) = refused(change(command.arg(&data)));
        assert_eq!(code, Some(2), "{said}");
        assert!(!data.exists());
        said
    };
    std::fs::write(&file, "[listen]\nport = 1\n").unwrap();
    let said = run(&|command| command.arg("--config").arg(&file));
    assert!(said.contains("prism.toml") && said.contains("line 2") && said.contains("unknown field `port`"), "{said}");
    std::fs::write(&file, "[[oidc]]\nissuer = \"http://id.example.org\"\naudience = \"prism\"\n").unwrap();
    let said = run(&|command| command.arg("--config").arg(&file));
    assert!(said.contains("http://id.example.org") && said.contains("https"), "{said}");
    let said = run(&|command| command.env("PRISM_DATA_PORT", "many"));
    assert!(said.contains("PRISM_DATA_PORT"), "{said}");
    let said = run(&|command| command.env("PRISM_LOG", "a=b=c"));
    assert!(said.contains("PRISM_LOG"), "{said}");
    let said = run(&|command| command.args(["--role", "data"]));
    assert!(said.contains("holds no identity of a node") && said.contains("prism join"), "{said}");
    let said = run(&|command| command.args(["--dev", "--bind", "0.0.0.0"]));
    assert!(said.contains("--bind"), "{said}");
}

#[test]
fn a_broken_authority_stops_the_start() {
    let folder = folder();
    drop(Server::start(folder.path(), &[]));
    std::fs::remove_file(folder.path().join("ca.key")).unwrap();
    let (code, said) = refused(prism(&["--data-dir"]).arg(folder.path()));
    assert_eq!(code, Some(1));
    assert!(said.contains("ca.key"), "{said}");
}

/// Writes a self-signed certificate and its key.
fn write_pair(folder: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["prism.example".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

/// A CA that can be put into a bundle.
fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Trusts nobody and looks at everybody.
#[derive(Debug)]
struct Curious(Arc<CryptoProvider>);

impl ServerCertVerifier for Curious {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

type TlsStream = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

/// A TLS connection, with a client certificate that leads to no CA the server knows if `certified`.
async fn connect(address: &str, certified: bool) -> std::io::Result<TlsStream> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Curious(provider)));
    let mut config = if certified {
        let made = rcgen::generate_simple_self_signed(["anyone.example".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        builder.with_client_auth_cert(vec![made.cert.der().clone()], key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await
}

/// The certificate that the server shows.
async fn shown(address: &str) -> CertificateDer<'static> {
    let stream = connect(address, false).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test]
async fn certificates_may_come_from_files_and_change_while_connections_stay() {
    let folder = folder();
    let first = write_pair(folder.path());
    let section = "mode = \"files\"\ncert = \"cert.pem\"\nkey = \"key.pem\"\n";
    let file = folder.path().join("prism.toml");
    std::fs::write(&file, format!("[tls.data]\n{section}[tls.admin]\n{section}")).unwrap();
    let mut server = Server::start(&folder.path().join("data"), &["--config", file.to_str().unwrap()]);
    let endpoints = server.endpoints().unwrap();
    let mut health = health(&endpoints.data).await;
    assert!(ask(&mut health).await.is_ok());
    for address in [&endpoints.data, &endpoints.admin] {
        assert_eq!(shown(address).await, first);
    }

    let second = write_pair(folder.path());
    for address in [&endpoints.data, &endpoints.admin] {
        let begun = Instant::now();
        while shown(address).await != second {
            assert!(begun.elapsed() < PATIENCE, "the new certificate was not taken over");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert!(ask(&mut health).await.is_ok(), "the old connection is still good");
    std::fs::write(folder.path().join("key.pem"), "nonsense").unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(shown(&endpoints.admin).await, second);
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(0));
}

type Health = tonic_health::pb::health_client::HealthClient<tonic::transport::Channel>;

/// A client of the health service that shows a certificate nobody knows.
async fn health(address: &str) -> Health {
    let address = address.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let address = address.clone();
        async move { connect(&address, true).await.map(hyper_util::rt::TokioIo::new) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
    Health::new(endpoint.connect_with_connector(connector).await.unwrap())
}

async fn ask(health: &mut Health) -> Result<(), tonic::Status> {
    health.check(tonic_health::pb::HealthCheckRequest::default()).await.map(drop)
}

#[tokio::test]
async fn a_certificate_of_any_ca_gets_through_the_handshake_and_its_end_is_a_figure() {
    let folder = folder();
    std::fs::write(folder.path().join("cas.pem"), authority().pem()).unwrap();
    let file = folder.path().join("prism.toml");
    std::fs::write(&file, "[tls.admin]\nclient_ca = \"cas.pem\"\n").unwrap();
    let server = Server::start(&folder.path().join("data"), &["--config", file.to_str().unwrap()]);
    let endpoints = server.endpoints().unwrap();
    for address in [&endpoints.data, &endpoints.admin] {
        ask(&mut health(address).await).await.expect("health is open to everybody");
    }
    let (metrics, _) = endpoints.get("metrics");
    for (name, there) in
        [("ca", true), ("admin", true), ("data", true), ("admin_client_ca", true), ("data_client_ca", false)]
    {
        let sample = format!("prism_certificate_expiry_timestamp_seconds{{certificate=\"{name}\"}} ");
        assert_eq!(metrics.contains(&sample), there, "{name}: {metrics}");
    }
}

#[test]
fn a_ca_for_both_planes_stops_the_start() {
    let folder = folder();
    std::fs::write(folder.path().join("cas.pem"), authority().pem()).unwrap();
    let file = folder.path().join("prism.toml");
    let data = folder.path().join("data");
    let refusal = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let ports = ["--data-port", "0", "--admin-port", "0", "--metrics-port", "0", "--config"];
        let (code, said) = refused(prism(&ports).arg(&file).arg("--data-dir").arg(&data));
        assert_eq!(code, Some(2), "{said}");
        said
    };
    let said = refusal("[tls.admin]\nclient_ca = \"cas.pem\"\n[tls.data]\nclient_ca = \"cas.pem\"\n");
    assert!(said.contains("cas.pem") && said.contains("one plane only"), "{said}");
    let said = refusal("[tls.data]\nclient_ca = \"data/ca.pem\"\n");
    assert!(said.contains("ca.pem") && said.contains("Prism's own CA"), "{said}");
    let said = refusal("[tls.admin]\nclient_ca = \"missing.pem\"\n");
    assert!(said.contains("tls.admin.client_ca") && said.contains("missing.pem"), "{said}");
    std::fs::write(folder.path().join("broken.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    let said = refusal("[tls.data]\nclient_ca = \"broken.pem\"\n");
    assert!(said.contains("tls.data.client_ca") && said.contains("broken.pem"), "{said}");
}

/// Keeps a health watch open, which no server-side grace ever ends.
async fn watch(address: &str) -> tonic::Streaming<tonic_health::pb::HealthCheckResponse> {
    let channel =
        tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = tonic_health::pb::health_client::HealthClient::new(channel);
    let mut stream = client.watch(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner();
    stream.message().await.unwrap();
    stream
}

#[tokio::test]
async fn an_open_watch_does_not_hold_the_end_up_and_a_second_signal_ends_at_once() {
    for twice in [false, true] {
        let folder = folder();
        let mut server = Server::start(folder.path(), &["--dev"]);
        let _stream = watch(&server.endpoints().unwrap().data).await;
        let begun = Instant::now();
        server.signal("TERM");
        if twice {
            std::thread::sleep(Duration::from_millis(300));
            server.signal("TERM");
        }
        let status = server.ended();
        assert_eq!(status.code(), Some(if twice { 143 } else { 0 }));
        assert!(begun.elapsed() < Duration::from_secs(if twice { 2 } else { 10 }), "{:?}", begun.elapsed());
    }
}
