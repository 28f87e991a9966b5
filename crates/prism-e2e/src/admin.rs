//! The admin plane as an operator's program sees it.

use prism_proto::admin::v1::access_service_client::AccessServiceClient;
use prism_proto::admin::v1::admin_service_client::AdminServiceClient;
use prism_proto::admin::v1::{
    AuditLogEntry, CreateApiKeyRequest, CreateApiKeyResponse, CreateClientKeyRequest, CreateConfigRequest,
    CreateNamespaceRequest, GetAuditLogRequest, GetSessionRequest, NamespaceInfo, NamespaceQuota, NamespaceStatus,
    SessionInfo, TerminateSessionRequest, TerminateSessionResponse, UpdateNamespaceRequest,
};
use prism_proto::config::v1::ClientConfig;
use tokio_stream::StreamExt as _;
use tonic::metadata::{AsciiMetadataKey, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::wait::within;

/// Headers of every call.
#[derive(Clone, Debug, Default)]
pub struct Headers(Vec<(AsciiMetadataKey, String)>);

impl Headers {
    /// None.
    pub fn none() -> Self {
        Self::default()
    }

    /// `authorization: Bearer …`.
    pub fn bearer(token: &str) -> Self {
        Self::none().with("authorization", &format!("Bearer {token}"))
    }

    /// `x-admin-token`.
    pub fn admin_token(token: &str) -> Self {
        Self::none().with("x-admin-token", token)
    }

    /// Adds `x-admin-user`.
    #[must_use]
    pub fn user(self, name: &str) -> Self {
        self.with("x-admin-user", name)
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.0.push((name.parse().expect("a header name"), value.to_owned()));
        self
    }

    /// Puts them on a request.
    pub fn apply<T>(&self, request: &mut Request<T>) {
        for (name, value) in &self.0 {
            request.metadata_mut().append(name.clone(), MetadataValue::try_from(value).expect("a header value"));
        }
    }
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        self.apply(&mut request);
        Ok(request)
    }
}

/// A channel with headers.
pub type Credentialed = InterceptedService<Channel, Headers>;

/// A caller of the admin plane.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The connection.
    pub channel: Channel,
    /// The credential and whatever else goes with every call.
    pub headers: Headers,
}

impl Admin {
    /// `prism.admin.v1.AdminService`.
    pub fn service(&self) -> AdminServiceClient<Credentialed> {
        AdminServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(usize::MAX)
    }

    /// `prism.admin.v1.AccessService`.
    pub fn access(&self) -> AccessServiceClient<Credentialed> {
        AccessServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(usize::MAX)
    }

    /// The same connection with other headers.
    #[must_use]
    pub fn with_headers(&self, headers: Headers) -> Self {
        Self { channel: self.channel.clone(), headers }
    }

    /// The same connection with another key.
    #[must_use]
    pub fn with_key(&self, token: &str) -> Self {
        self.with_headers(Headers::bearer(token))
    }

    /// The same caller with one more header.
    #[must_use]
    pub fn and(&self, name: &str, value: &str) -> Self {
        self.with_headers(self.headers.clone().with(name, value))
    }

    /// Makes a namespace without quotas.
    pub async fn create_namespace(&self, name: &str) -> NamespaceInfo {
        let request = CreateNamespaceRequest { name: name.to_owned(), ..CreateNamespaceRequest::default() };
        self.service()
            .create_namespace(request)
            .await
            .expect("a namespace")
            .into_inner()
            .namespace
            .expect("a namespace")
    }

    /// Makes a config.
    pub async fn create_config(&self, config: ClientConfig) -> ClientConfig {
        let request = CreateConfigRequest { config: Some(config), ..CreateConfigRequest::default() };
        self.service().create_config(request).await.expect("a config").into_inner().config.expect("a config")
    }

    /// Makes a client key for a namespace; gives its token.
    pub async fn create_client_key(&self, namespace: &str, permissions: &[&str]) -> String {
        let request = CreateClientKeyRequest {
            name: "test".to_owned(),
            namespace: namespace.to_owned(),
            permissions: permissions.iter().map(|word| (*word).to_owned()).collect(),
            ttl: None,
        };
        self.access().create_client_key(request).await.expect("a client key").into_inner().token
    }

    /// Makes an admin key with one role.
    pub async fn create_api_key(
        &self,
        role: &str,
        namespace: Option<&str>,
        user: Option<&str>,
    ) -> CreateApiKeyResponse {
        let request = CreateApiKeyRequest {
            name: format!("{role} key"),
            roles: vec![role.to_owned()],
            namespace: namespace.map(ToOwned::to_owned),
            user: user.map(ToOwned::to_owned),
            ttl: None,
        };
        self.access().create_api_key(request).await.expect("an admin key").into_inner()
    }

    /// A caller with a new key of one role.
    pub async fn with_role(&self, role: &str, namespace: Option<&str>) -> Self {
        self.with_key(&self.create_api_key(role, namespace, None).await.token)
    }

    /// Sets the quotas of a namespace.
    pub async fn set_quota(&self, namespace: &str, quota: NamespaceQuota) {
        let request = UpdateNamespaceRequest {
            name: namespace.to_owned(),
            quota: Some(quota),
            ..UpdateNamespaceRequest::default()
        };
        self.service().update_namespace(request).await.expect("a quota");
    }

    /// Sets the status of a namespace.
    pub async fn set_status(&self, namespace: &str, status: NamespaceStatus) {
        let request = UpdateNamespaceRequest {
            name: namespace.to_owned(),
            status: Some(status.into()),
            ..UpdateNamespaceRequest::default()
        };
        self.service().update_namespace(request).await.expect("a status");
    }

    /// What the operators see of a session.
    pub async fn session(&self, id: &str) -> SessionInfo {
        let request = GetSessionRequest { session_id: id.to_owned() };
        self.service().get_session(request).await.expect("a session").into_inner().session.expect("a session")
    }

    /// Terminates a session.
    pub async fn terminate(&self, id: &str, force: bool, reason: &str) -> TerminateSessionResponse {
        let request = TerminateSessionRequest { session_id: id.to_owned(), force, reason: reason.to_owned() };
        self.service().terminate_session(request).await.expect("a termination").into_inner()
    }

    /// Entries of the audit log, in the order in which they come.
    pub async fn audit(&self, request: GetAuditLogRequest) -> Vec<AuditLogEntry> {
        let stream = self.service().get_audit_log(request).await.expect("the audit log").into_inner();
        let entries: Vec<_> = within("the audit log", stream.collect()).await;
        entries.into_iter().map(|entry| entry.expect("an entry")).collect()
    }

    /// The whole audit log, oldest first.
    pub async fn whole_log(&self) -> Vec<AuditLogEntry> {
        let newest = self.audit(GetAuditLogRequest { limit: 10_000, ..GetAuditLogRequest::default() }).await;
        newest.into_iter().rev().collect()
    }
}
