//! What clients prove themselves with: tokens of an issuer, certificates of a CA, connections that show them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper_util::rt::TokioIo;
use prism_core::{Clock, UnixMillis};
use prism_identity::{Algorithm, ClientTrust, IssuerSettings, Issuers, KeySet};
use prism_rpc::{CertificateAuthority, ServerTls};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

pub const ISSUER: &str = "https://id.example.org";
pub const CLUSTER: &str = "prism-0123456789abcdef";

/// An issuer of JWTs.
pub struct Signer(Ed25519KeyPair);

impl Signer {
    pub fn new() -> Self {
        Self(Ed25519KeyPair::generate().unwrap())
    }

    /// The issuer as a server knows it.
    pub fn issuers(&self, clock: &Clock) -> Issuers {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key().as_ref());
        let keys = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "k", "x": x }] });
        let keys = KeySet::parse(keys.to_string().as_bytes()).unwrap();
        Issuers::with_keys(vec![(settings(ISSUER), keys)], clock.clone()).unwrap()
    }

    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({ "alg": "EdDSA", "kid": "k", "typ": "JWT" });
        let message = [&header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    /// A valid token of a user in these groups.
    pub fn token(&self, user: &str, groups: &[&str], now: UnixMillis) -> String {
        self.sign(&claims(user, groups, now))
    }
}

pub fn settings(issuer: &str) -> IssuerSettings {
    IssuerSettings {
        issuer: issuer.to_owned(),
        admin_audience: Some("prism-admin".to_owned()),
        admin_scope: "prism.admin".to_owned(),
        data_audience: Some("prism-data".to_owned()),
        user_claim: "sub".to_owned(),
        groups_claim: "groups".to_owned(),
        prefix: String::new(),
        role_map: Vec::new(),
        ca_pem: None,
        algorithms: Algorithm::ALL.to_vec(),
    }
}

/// What a valid token of a user says; it lives for five minutes.
pub fn claims(user: &str, groups: &[&str], now: UnixMillis) -> Value {
    let seconds = now.0 / 1000;
    json!({ "iss": ISSUER, "sub": user, "aud": "prism-data", "groups": groups, "iat": seconds, "exp": seconds + 300 })
}

/// A CA.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    clock: Clock,
}

/// A client certificate, with its key.
pub struct Holder {
    pub certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Authority {
    pub fn new(name: &str, clock: &Clock) -> Self {
        let mut params = params(name, clock, Duration::from_hours(24 * 3650));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate, clock: clock.clone() }
    }

    /// A certificate with one URI.
    pub fn issue(&self, uri: &str, life: Duration) -> Holder {
        let mut params = params("client", &self.clock, life);
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Holder { certificate, key }
    }
}

fn params(name: &str, clock: &Clock, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(clock.now().0 as u64);
    params.not_before = now - Duration::from_mins(1);
    params.not_after = now + life;
    params
}

impl Holder {
    pub fn fingerprint(&self) -> String {
        prism_rpc::tls::fingerprint(&self.certificate)
    }

    pub fn pem(&self) -> String {
        let body = base64::engine::general_purpose::STANDARD.encode(&self.certificate);
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    }
}

/// `spiffe://<cluster>/<kind>/<name>`.
pub fn spiffe(kind: &str, name: &str) -> String {
    format!("spiffe://{CLUSTER}/{kind}/{name}")
}

/// Trusts one CA as Prism's own, others as configured ones.
pub fn trust(own: &Authority, external: &[&Authority]) -> Arc<ArcSwap<ClientTrust>> {
    let external = external.iter().map(|authority| authority.certificate.clone()).collect();
    let trust = ClientTrust::new(CLUSTER, vec![own.certificate.clone()], external).unwrap();
    Arc::new(ArcSwap::from_pointee(trust))
}

/// TLS of a server, and the CA that its clients trust.
pub struct Tls {
    pub server: ServerTls,
    ca: CertificateDer<'static>,
}

impl Tls {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::load_or_create(folder.path()).unwrap();
        let server = authority.server_tls(&[]).unwrap().http2_only();
        Self { server, ca: authority.certificate_der() }
    }

    /// A connection that shows the certificate of `holder`.
    pub async fn connect(&self, address: SocketAddr, holder: Option<&Holder>) -> Channel {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_root_certificates(roots);
        let mut config = match holder {
            None => config.with_no_client_auth(),
            Some(holder) => {
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(holder.key.serialize_der()));
                config.with_client_auth_cert(vec![holder.certificate.clone()], key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let connect = move |_| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let stream = connector.connect("localhost".try_into().unwrap(), stream).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        };
        Endpoint::from_static("http://localhost").connect_with_connector(tower::service_fn(connect)).await.unwrap()
    }
}
