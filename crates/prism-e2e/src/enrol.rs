//! Join tokens and nodes, as operators and new machines see them.

use prism_proto::cluster::v1::admin_service_client::AdminServiceClient;
use prism_proto::cluster::v1::bootstrap_service_client::BootstrapServiceClient;
use prism_proto::cluster::v1::ca_service_client::CaServiceClient;
use prism_proto::cluster::v1::node_service_client::NodeServiceClient;
use prism_proto::cluster::v1::{
    CreateJoinTokenRequest, CreateJoinTokenResponse, ExchangeJoinTokenRequest, ExchangeJoinTokenResponse,
    GetLineageRequest, GetLineageResponse, JoinTokenInfo, ListJoinTokensRequest, RenewCertificateRequest,
    RenewCertificateResponse, RevokeJoinTokenRequest, get_lineage_request::Link,
};
use rcgen::{CertificateParams, KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use tonic::Status;
use tonic::transport::Channel;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::admin::{Admin, Credentialed};
use crate::certificates::Holder;
use crate::failure::Failure;
use crate::server::Prism;

/// Both package paths under which the services of seed B answer.
pub const PACKAGES: [&str; 2] = ["prism.cluster.v1", "me.prexorjustin.prexorcloud.protocol"];

impl Admin {
    /// `prism.cluster.v1.AdminService`.
    pub fn tokens(&self) -> AdminServiceClient<Credentialed> {
        AdminServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    /// `prism.cluster.v1.NodeService`.
    pub fn nodes(&self) -> NodeServiceClient<Credentialed> {
        NodeServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    /// `prism.cluster.v1.CaService`.
    pub fn authority(&self) -> CaServiceClient<Credentialed> {
        CaServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    /// A join token for a node, or for any when `node_id` is empty, for an hour.
    pub async fn create_join_token(&self, node_id: &str) -> CreateJoinTokenResponse {
        let request = CreateJoinTokenRequest { node_id: node_id.to_owned(), ttl_seconds: 0 };
        self.tokens().create_join_token(request).await.expect("a join token").into_inner()
    }

    /// What the operators see of a join token.
    pub async fn join_token(&self, token_id: &str) -> JoinTokenInfo {
        let listed = self.tokens().list_join_tokens(ListJoinTokensRequest {}).await.expect("a listing").into_inner();
        listed.tokens.into_iter().find(|token| token.token_id == token_id).expect("the token is listed")
    }

    /// Revokes a join token.
    pub async fn revoke_join_token(&self, token_id: &str) {
        let request = RevokeJoinTokenRequest { token_id: token_id.to_owned() };
        self.tokens().revoke_join_token(request).await.expect("a revocation");
    }

    /// What hangs together with a link.
    pub async fn lineage(&self, link: Link) -> GetLineageResponse {
        let request = GetLineageRequest { link: Some(link) };
        self.nodes().get_lineage(request).await.expect("a lineage").into_inner()
    }
}

/// A machine that is about to join: its key never leaves it.
pub struct Machine {
    key: KeyPair,
}

impl Machine {
    /// With a new key.
    pub fn new() -> Self {
        Self { key: KeyPair::generate().expect("a key") }
    }

    /// With this key, in PEM.
    pub fn with_key(pem: &str) -> Self {
        Self { key: KeyPair::from_pem(pem).expect("a key") }
    }

    /// A signing request for its key, in PEM; each one differs.
    pub fn signing_request(&self) -> Vec<u8> {
        let request = CertificateParams::default().serialize_request(&self.key).expect("a signing request");
        request.pem().expect("PEM").into_bytes()
    }

    /// What it sends to exchange a token.
    pub fn request(&self, token: &str, node_id: &str) -> ExchangeJoinTokenRequest {
        ExchangeJoinTokenRequest {
            join_token: token.to_owned(),
            node_id: node_id.to_owned(),
            csr_pem: self.signing_request().into(),
        }
    }

    /// Exchanges a token, on a connection without any credential.
    pub async fn exchange(
        &self,
        channel: &Channel,
        token: &str,
        node_id: &str,
    ) -> Result<ExchangeJoinTokenResponse, Failure> {
        exchange(channel, self.request(token, node_id)).await
    }

    /// Itself with the certificate it got.
    pub fn holding(&self, certificate_pem: &[u8]) -> Holder {
        let chain_pem = String::from_utf8(certificate_pem.to_vec()).expect("PEM");
        Holder { chain_pem, key_pem: self.key.serialize_pem() }
    }

    /// Asks for the next certificate of `holder`, for its own key.
    pub async fn renew(&self, server: &Prism, holder: &Holder) -> Result<RenewCertificateResponse, Failure> {
        let mut client = BootstrapServiceClient::new(server.admin_channel_as(holder));
        let request = RenewCertificateRequest { csr_pem: self.signing_request().into() };
        client.renew_certificate(request).await.map(tonic::Response::into_inner).map_err(failure)
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

/// A signing request that OpenSSL makes for a new key of this kind, as `openssl genpkey` names it.
pub fn signing_request_of(kind: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let (key, request) = (folder.path().join("key.pem"), folder.path().join("csr.pem"));
    let openssl = |words: &[&str]| {
        let done = std::process::Command::new("openssl").args(words).output().expect("openssl");
        assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let (key, shown) = (key.to_str().expect("text"), request.to_str().expect("text"));
    openssl(&[&["genpkey", "-out", key][..], kind].concat());
    openssl(&["req", "-new", "-key", key, "-subj", "/CN=n1", "-out", shown]);
    std::fs::read(&request).expect("a signing request")
}

/// The public key of the first, and a signature of the second: what a thief of a public key can make.
struct Forged(KeyPair, KeyPair);

impl PublicKeyData for Forged {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl SigningKey for Forged {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.1.sign(message)
    }
}

/// A whole signing request for the key of one that another one has signed.
pub fn forged_signing_request() -> Vec<u8> {
    let forged = Forged(KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
    let request = CertificateParams::default().serialize_request(&forged).expect("a signing request");
    request.pem().expect("PEM").into_bytes()
}

/// The URI in a certificate, which is its identity.
pub fn uri_of(holder: &Holder) -> String {
    let chain = holder.chain();
    let (_, certificate) = X509Certificate::from_der(&chain[0]).expect("a certificate");
    let names = certificate.subject_alternative_name().expect("it can be read").expect("it has names");
    let uri = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    uri.expect("a URI")
}

/// What somebody sends who makes no key: the answer is a keystore.
pub fn without_key(token: &str, node_id: &str) -> ExchangeJoinTokenRequest {
    ExchangeJoinTokenRequest {
        join_token: token.to_owned(),
        node_id: node_id.to_owned(),
        ..ExchangeJoinTokenRequest::default()
    }
}

/// Exchanges a token, on a connection without any credential.
pub async fn exchange(
    channel: &Channel,
    request: ExchangeJoinTokenRequest,
) -> Result<ExchangeJoinTokenResponse, Failure> {
    let mut client = BootstrapServiceClient::new(channel.clone());
    client.exchange_join_token(request).await.map(tonic::Response::into_inner).map_err(failure)
}

#[expect(clippy::needless_pass_by_value, reason = "map_err gives it away")]
fn failure(status: Status) -> Failure {
    Failure::from(&status)
}
