//! A server that believes every kind of credential: keys, access tokens of an issuer, certificates of its own CA and of
//! configured ones.

use std::sync::Arc;

use prism_proto::admin::v1::CertificateKind;
use serde_json::Value;
use tempfile::TempDir;

use crate::admin::{Admin, Headers};
use crate::certificates::{Authority, Holder, signing_request};
use crate::issuer::Issuer;
use crate::oidc::{ADMIN, DATA};
use crate::server::{Options, Prism};

/// The server, and whoever vouches for its callers.
pub struct World {
    /// The server.
    pub server: Arc<Prism>,
    /// Its trust domain.
    pub cluster: String,
    /// Signs access tokens for both planes; its groups `admin`, `operator` and `viewer` are the built-in roles.
    pub issuer: Issuer,
    /// The server's own CA.
    pub own_ca: Authority,
    /// Trusted by the admin plane.
    pub admin_ca: Authority,
    /// Trusted by the data plane.
    pub data_ca: Authority,
    _folder: TempDir,
}

impl World {
    /// Starts the server. Failed credentials cost no time there: what they cost is for other tests.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (issuer, admin_ca, data_ca) = (Issuer::start("matrix"), Authority::new("admins"), Authority::new("apps"));
        let config = format!(
            "[limits]\nauth_failures = 10000\n[tls.admin]\nclient_ca = '{}'\n[tls.data]\nclient_ca = '{}'\n\
             [[oidc]]\nissuer = {:?}\naudience = {ADMIN:?}\ndata_audience = {DATA:?}\n\
             role_map = {{ admin = \"admin\", operator = \"operator\", viewer = \"viewer\" }}\n",
            admin_ca.write(folder.path(), "admins").display(),
            data_ca.write(folder.path(), "apps").display(),
            issuer.url
        );
        let server = Arc::new(Prism::start(Options::new().config(&config)).await);
        let own_ca = Authority::of_server(&server.data_dir());
        let (request, _) = signing_request();
        let made = server.admin().issue_certificate(CertificateKind::User, "cluster", &request).await;
        let uri = made.certificate.expect("a certificate").uri;
        let cluster = uri.trim_start_matches("spiffe://").split('/').next().expect("a trust domain").to_owned();
        Self { server, cluster, issuer, own_ca, admin_ca, data_ca, _folder: folder }
    }

    /// A certificate that the server issues; its serial number and its URI.
    pub async fn issue(&self, kind: CertificateKind, name: &str) -> (Holder, String, String) {
        let (request, key_pem) = signing_request();
        let answer = self.server.admin().issue_certificate(kind, name, &request).await;
        let chain_pem = String::from_utf8(answer.certificate_pem.to_vec()).expect("PEM");
        let certificate = answer.certificate.expect("a certificate");
        (Holder { chain_pem, key_pem }, certificate.serial_number, certificate.uri)
    }

    /// The URI of an identity that only the server's own CA may give.
    pub fn own_uri(&self, kind: &str, name: &str) -> String {
        format!("spiffe://{}/{kind}/{name}", self.cluster)
    }

    /// A caller with nothing but a certificate, on a connection of its own.
    pub fn with_certificate(&self, holder: &Holder) -> Admin {
        Admin { channel: self.server.admin_channel_as(holder), headers: Headers::none() }
    }

    /// The claims of a good token for the admin plane, with some of them different; null takes one away.
    pub fn claims(&self, sub: &str, groups: &[&str], changes: &Value) -> Value {
        let mut claims = self.issuer.claims(ADMIN, sub, groups);
        let object = claims.as_object_mut().expect("an object");
        for (name, value) in changes.as_object().expect("an object") {
            object.insert(name.clone(), value.clone());
        }
        object.retain(|_, value| !value.is_null());
        claims
    }
}
