//! Who may do what: callers ask for it, operators give it and take it away, and live streams feel it.

use std::time::{Duration, Instant};

use prism_proto::admin::v1 as wire;
use prism_proto::rules::{AuditClass, MethodRule, rules};
use serde_json::Value;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Status, Streaming};

use crate::admin::Admin;
use crate::failure::Failure;
use crate::raw;
use crate::wait::within;

/// The promise is one second; a machine that is busy with other tests may take one more to notice.
const PROMPTLY: Duration = Duration::from_secs(2);

impl Admin {
    /// Who the server says that this caller is.
    pub async fn who_am_i(&self) -> Result<wire::WhoAmIResponse, Failure> {
        let answer = self.access().who_am_i(wire::WhoAmIRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| Failure::from(&status))
    }

    /// Calls an RPC of the admin port by its name, with a request in proto3 JSON.
    pub async fn ask(&self, method: &str, request: &Value) -> Result<(), Failure> {
        let rule = rule(method);
        let bytes = prism_proto::from_json(&rule.input, request).unwrap_or_else(|error| panic!("{method}: {error}"));
        let answer = raw::call(&self.channel, &self.headers, &rule.path, bytes).await;
        answer.map(drop).map_err(|status| Failure::from(&status))
    }

    /// Gives a role to a subject; gives the id of the binding.
    pub async fn bind(&self, subject: &str, role: &str, namespace: Option<&str>) -> String {
        let binding = wire::Binding {
            subject: subject.to_owned(),
            role: role.to_owned(),
            namespace: namespace.map(ToOwned::to_owned),
            ..wire::Binding::default()
        };
        let request = wire::CreateBindingRequest { binding: Some(binding) };
        let made = self.access().create_binding(request).await.expect("a binding").into_inner();
        made.binding.expect("a binding").binding_id
    }

    /// Takes a binding away.
    pub async fn unbind(&self, binding_id: &str) {
        let request = wire::DeleteBindingRequest { binding_id: binding_id.to_owned() };
        self.access().delete_binding(request).await.expect("a binding less");
    }

    /// Lets a subject use a namespace on the data plane; gives the id of the binding.
    pub async fn bind_client(&self, subject: &str, namespace: &str, permissions: &[&str]) -> String {
        let binding = wire::ClientBinding {
            subject: subject.to_owned(),
            namespace: namespace.to_owned(),
            permissions: permissions.iter().map(|word| (*word).to_owned()).collect(),
            ..wire::ClientBinding::default()
        };
        let request = wire::CreateClientBindingRequest { client_binding: Some(binding) };
        let made = self.access().create_client_binding(request).await.expect("a client binding").into_inner();
        made.client_binding.expect("a client binding").binding_id
    }

    /// Takes a client binding away.
    pub async fn unbind_client(&self, binding_id: &str) {
        let request = wire::DeleteClientBindingRequest { binding_id: binding_id.to_owned() };
        self.access().delete_client_binding(request).await.expect("a client binding less");
    }

    /// Makes a role.
    pub async fn create_role(&self, name: &str, permissions: &[&str]) {
        let request = wire::CreateRoleRequest { role: Some(role(name, permissions)) };
        self.access().create_role(request).await.expect("a role");
    }

    /// Replaces the permissions of a role.
    pub async fn update_role(&self, name: &str, permissions: &[&str]) {
        let request = wire::UpdateRoleRequest { role: Some(role(name, permissions)) };
        self.access().update_role(request).await.expect("another role");
    }

    /// Follows the audit log.
    pub async fn follow(&self) -> Result<Streaming<wire::AuditLogEntry>, Status> {
        let request = wire::GetAuditLogRequest { follow: true, ..wire::GetAuditLogRequest::default() };
        Ok(self.service().get_audit_log(request).await?.into_inner())
    }

    /// Issues a certificate of Prism's own CA for the key of a signing request.
    pub async fn issue_certificate(
        &self,
        kind: wire::CertificateKind,
        name: &str,
        csr_pem: &str,
    ) -> wire::IssueCertificateResponse {
        let request = wire::IssueCertificateRequest {
            kind: kind.into(),
            name: name.to_owned(),
            csr_pem: csr_pem.as_bytes().to_vec().into(),
            ttl: None,
        };
        self.access().issue_certificate(request).await.expect("a certificate").into_inner()
    }

    /// Revokes a certificate by its serial number.
    pub async fn revoke_serial(&self, serial_number: &str) {
        let request = wire::RevokeCertificateRequest {
            serial_number: serial_number.to_owned(),
            ..wire::RevokeCertificateRequest::default()
        };
        self.access().revoke_certificate(request).await.expect("a certificate less");
    }

    /// Revokes a certificate by its fingerprint.
    pub async fn revoke_fingerprint(&self, fingerprint: &str) {
        let request = wire::RevokeCertificateRequest {
            fingerprint: fingerprint.to_owned(),
            ..wire::RevokeCertificateRequest::default()
        };
        self.access().revoke_certificate(request).await.expect("a certificate less");
    }

    /// The newest entry of an actor and operation.
    pub async fn entry_of(&self, actor: &str, operation: &str) -> wire::AuditLogEntry {
        let request = wire::GetAuditLogRequest {
            actor: Some(actor.to_owned()),
            operation: Some(operation.to_owned()),
            limit: 1,
            ..wire::GetAuditLogRequest::default()
        };
        let found = self.audit(request).await.into_iter().next();
        found.unwrap_or_else(|| panic!("{actor} left no entry of {operation}"))
    }
}

fn role(name: &str, permissions: &[&str]) -> wire::Role {
    let permissions = permissions.iter().map(|word| (*word).to_owned()).collect();
    wire::Role { name: name.to_owned(), permissions, built_in: false }
}

/// What the descriptors say of a method of the admin port.
pub fn rule(method: &str) -> MethodRule {
    let of = |rule: &MethodRule| rule.audit != AuditClass::None && rule.method == method;
    rules().expect("the rules of the descriptors").into_iter().find(of).unwrap_or_else(|| panic!("no RPC {method}"))
}

/// How a stream ends, of which something stood on was taken away at `since`: with a refusal, within the second that is
/// promised. Items that were under way are passed over.
#[track_caller]
pub fn cut<'a, S, T>(what: &'a str, stream: &'a mut S, since: Instant) -> impl Future<Output = Failure> + use<'a, S, T>
where
    S: Stream<Item = Result<T, Status>> + Unpin,
{
    let caller = std::panic::Location::caller();
    async move {
        let refusal = loop {
            match within(what, stream.next()).await {
                Some(Ok(_)) => {}
                Some(Err(status)) => break Failure::from(&status),
                None => panic!("{caller}: {what}: the stream ended as if all were well"),
            }
        };
        let took = since.elapsed();
        eprintln!("{what}: the stream ended after {took:?}");
        assert!(took < PROMPTLY, "{caller}: {what}: the stream ended after {took:?}");
        refusal
    }
}
