//! Contract §1: processes, ports, files.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prism_e2e::server::Endpoints;
use prism_e2e::wait::{next, until, within};
use prism_e2e::{Options, Pattern, Prism, Refused as _, Site, dial, http1};
use prism_proto::admin::v1::WhoAmIRequest;
use prism_proto::admin::v1::access_service_client::AccessServiceClient;
use rustls::pki_types::ServerName;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode() & 0o777
}

#[tokio::test]
async fn the_data_directory_is_for_its_owner_and_holds_the_files_of_the_contract() {
    let server = Prism::start(Options::new()).await;
    let dir = server.data_dir();
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("admin.token")), 0o600);
    assert_eq!(mode(&dir.join("ca.key")), 0o600);
    assert!(dir.join("prism.db").is_file() && dir.join("ca.pem").is_file());
    assert!(server.admin_token().starts_with("prx_"));
    let text = std::fs::read_to_string(dir.join("endpoints.json")).unwrap();
    let json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(json.keys().collect::<Vec<_>>(), ["admin", "data", "metrics"]);
    assert!(json.values().all(|address| address.as_str().unwrap().starts_with("127.0.0.1:")), "{json:?}");
    assert!(!dir.join("client.token").exists(), "client.token is for --dev");
}

#[tokio::test]
async fn when_endpoints_appear_both_planes_and_readiness_answer() {
    let server = Prism::prepared(Options::new());
    server.spawn();
    server.ready().await;
    let admin = server.admin().access().who_am_i(WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!(admin.auth_method, "api_key");
    let mut health = HealthClient::new(server.data_channel());
    assert_eq!(health.check(HealthCheckRequest::default()).await.unwrap().into_inner().status, 1);
    assert_eq!(http1::get(&server.endpoints().metrics, "/ready").await.0, 200);
}

#[tokio::test]
async fn a_wildcard_bind_is_written_as_loopback() {
    let all = ["--bind=0.0.0.0", "--data-port=0", "--admin-port=0", "--metrics-port=0"];
    let options = all.iter().fold(Options::new().own_ports(), |options, flag| options.arg(flag));
    let server = Prism::start(options).await;
    assert!(server.endpoints().admin.starts_with("127.0.0.1:"), "{:?}", server.endpoints());
    server.admin().access().who_am_i(WhoAmIRequest {}).await.unwrap();
}

/// Free at the moment; the test tries again when another process was faster.
fn free_ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

#[tokio::test]
async fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    for attempt in 0.. {
        let [flag, env_data, env_admin, file] = free_ports();
        let listen =
            format!("[listen]\nbind = \"127.0.0.1\"\ndata_port = {file}\nadmin_port = {file}\nmetrics_port = {file}\n");
        let options = Options::new()
            .own_ports()
            .config(&listen)
            .env("PRISM_DATA_PORT", &env_data.to_string())
            .env("PRISM_ADMIN_PORT", &env_admin.to_string())
            .env("PRISM_DATA_DIR", "/nonexistent/the/flag/wins")
            .arg(&format!("--data-port={flag}"));
        let server = Prism::prepared(options);
        server.spawn();
        let outcome = until("a start", || async {
            Endpoints::read(&server.data_dir()).map(Some).or_else(|| server.try_exit().map(|_| None))
        })
        .await;
        match outcome {
            Some(endpoints) => {
                let port = |address: &str| address.rsplit(':').next().unwrap().parse::<u16>().unwrap();
                let found = [port(&endpoints.data), port(&endpoints.admin), port(&endpoints.metrics)];
                assert_eq!(found, [flag, env_admin, file]);
                return;
            }
            None => assert!(attempt < 5 && server.log().to_lowercase().contains("address"), "{}", server.log()),
        }
    }
}

#[tokio::test]
async fn an_unknown_key_is_an_error_that_names_the_key_and_the_line() {
    for (text, key, line) in [
        ("[listen]\nbind = \"127.0.0.1\"\nprot = 1\n", "prot", "line 3"),
        ("[session]\n\nidle_aftr = \"60s\"\n", "idle_aftr", "line 3"),
        ("[lisen]\n", "lisen", "line 1"),
        ("[[backend]]\nname = \"a\"\ntype = \"sqlite\"\nfolder = \"x\"\n", "folder", "line 4"),
        ("[session]\nidle_after = 60\n", "idle_after", "line 2"),
        ("[limits]\nmax_key_bytes = -1\n", "max_key_bytes", "line 2"),
    ] {
        let server = Prism::prepared(Options::new().config(text));
        server.spawn();
        let status = server.exit().await;
        let log = until("an error", || async { Some(server.log()).filter(|log| !log.is_empty()) }).await;
        assert!(!status.success(), "{text}");
        assert!(log.contains(key) && log.contains(line) && log.contains("prism.toml"), "{text:?}: {log}");
        assert!(!server.data_dir().join("prism.db").exists(), "a refused start leaves no state");
    }
}

#[tokio::test]
async fn a_data_directory_in_use_is_refused_and_its_holder_undisturbed() {
    let first = Prism::start(Options::new()).await;
    let second = Prism::prepared(Options::new().data_dir(&first.data_dir()));
    second.spawn();
    assert!(!second.exit().await.success());
    let dir = first.data_dir().display().to_string();
    until("a refusal", || async {
        Some(()).filter(|()| second.log().contains("in use") && second.log().contains(&dir))
    })
    .await;
    assert!(first.data_dir().join("endpoints.json").exists());
    first.admin().access().who_am_i(WhoAmIRequest {}).await.unwrap();
}

#[tokio::test]
async fn sigterm_drains_and_exits_with_0_and_without_endpoints() {
    let server = Arc::new(Prism::start(Options::new()).await);
    let site = Site::new(Arc::clone(&server)).await;
    let session = site.session(Pattern::Queue).await;
    let mut idle = session.subscribe("topic", "group").await.unwrap();
    let mut health = HealthClient::new(site.channel.clone());
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 1);
    server.signal("TERM");
    next("the end of the stream", &mut idle).await.refused().is(Code::Unavailable, "DRAINING");
    let status = server.exit().await;
    assert_eq!(status.code(), Some(0), "{}", server.log());
    assert!(!server.data_dir().join("endpoints.json").exists());
}

#[tokio::test]
async fn sigterm_waits_for_what_is_running() {
    let server = Arc::new(Prism::start(Options::new()).await);
    let site = Site::new(Arc::clone(&server)).await;
    let session = site.session(Pattern::Queue).await;
    session.publish("topic", b"1").await.unwrap();
    let mut stream = session.subscribe("topic", "group").await.unwrap();
    let message = next("a message", &mut stream).await.unwrap().unwrap();
    server.signal("TERM");
    let metrics = server.endpoints().metrics;
    until("the drain", || async { (http1::get(&metrics, "/ready").await.0 == 503).then_some(()) }).await;
    assert!(server.try_exit().is_none());
    assert!(session.acknowledge(&message.message_id).await.unwrap());
    assert_eq!(server.exit().await.code(), Some(0), "{}", server.log());
}

#[tokio::test]
async fn a_second_sigterm_exits_at_once_even_with_an_open_stream() {
    let server = Arc::new(Prism::start(Options::new()).await);
    let site = Site::new(Arc::clone(&server)).await;
    let session = site.session(Pattern::Queue).await;
    session.publish("topic", b"1").await.unwrap();
    let mut stream = session.subscribe("topic", "group").await.unwrap();
    next("a message", &mut stream).await.unwrap().unwrap();
    let mut follow = site.admin.service().get_audit_log(follow()).await.unwrap().into_inner();
    server.signal("TERM");
    let metrics = server.endpoints().metrics;
    until("the drain", || async { (http1::get(&metrics, "/ready").await.0 == 503).then_some(()) }).await;
    let start = Instant::now();
    server.signal("TERM");
    assert!(!server.exit().await.success());
    // The drain alone would wait for the message for 30 s.
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    while let Ok(Some(_)) = follow.message().await {}
}

fn follow() -> prism_proto::admin::v1::GetAuditLogRequest {
    prism_proto::admin::v1::GetAuditLogRequest { follow: true, ..Default::default() }
}

#[tokio::test]
async fn the_first_admin_key_and_the_ca_survive_a_restart() {
    let server = Prism::start(Options::new()).await;
    let before = (server.admin_token(), server.secret("ca.pem"));
    server.signal("TERM");
    assert_eq!(server.exit().await.code(), Some(0));
    server.spawn();
    server.ready().await;
    assert_eq!((server.admin_token(), server.secret("ca.pem")), before);
    server.admin().access().who_am_i(WhoAmIRequest {}).await.unwrap();
}

#[tokio::test]
async fn clear_text_is_refused_by_the_admin_plane_always_and_by_the_data_plane_unless_dev() {
    for options in [Options::new(), Options::dev()] {
        let server = Prism::start(options).await;
        let mut clear = AccessServiceClient::new(dial::clear(&server.endpoints().admin));
        let refused = within("a refusal", clear.who_am_i(WhoAmIRequest {})).await;
        assert!(refused.is_err(), "{refused:?}");
    }
    let server = Prism::start(Options::new()).await;
    let mut clear = HealthClient::new(dial::clear(&server.endpoints().data));
    assert!(within("a refusal", clear.check(HealthCheckRequest::default())).await.is_err());
}

#[tokio::test]
async fn certificates_hold_the_names_of_the_contract_and_of_the_settings() {
    let server =
        Prism::start(Options::new().config("[listen]\nnames = [\"prism.example.com\", \"192.0.2.7\"]\n")).await;
    let config = Arc::new(dial::tls_config(&server.data_dir().join("ca.pem")));
    for address in [server.endpoints().admin, server.endpoints().data] {
        for (name, good) in [
            ("localhost", true),
            ("127.0.0.1", true),
            ("::1", true),
            ("prism.example.com", true),
            ("192.0.2.7", true),
            ("other.example.com", false),
        ] {
            let tcp = tokio::net::TcpStream::connect(&address).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(Arc::clone(&config));
            let name = ServerName::try_from(name).unwrap();
            let handshake = within("a handshake", connector.connect(name.clone(), tcp)).await;
            assert_eq!(handshake.is_ok(), good, "{name:?} at {address}");
        }
    }
}

#[tokio::test]
async fn tls_of_the_data_plane_can_be_switched_off() {
    let server = Prism::start(Options::new().config("[tls.data]\nmode = \"off\"\n")).await;
    let mut clear = HealthClient::new(dial::clear(&server.endpoints().data));
    assert_eq!(clear.check(HealthCheckRequest::default()).await.unwrap().into_inner().status, 1);
}
