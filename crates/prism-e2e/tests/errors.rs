//! Contract §8 "errors": every refusal carries an ErrorInfo with a reason in UPPER_SNAKE and the proto package as its domain.

use std::sync::Arc;

use prism_e2e::{Failure, Headers, Options, Prism, Refused as _, Site, raw};
use prism_proto::admin::v1 as wire;
use prism_proto::rules::{AuditClass, rules};
use tonic::Code;

fn is_upper_snake(reason: &str) -> bool {
    !reason.is_empty() && reason.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

#[tokio::test]
async fn a_stranger_is_unauthenticated_by_every_rpc_with_its_package_as_domain() {
    let server = Prism::start(Options::new()).await;
    let mut count = 0;
    for rule in rules().unwrap().iter().filter(|rule| !rule.service.starts_with("prism.cluster.v1.")) {
        let channel = if rule.audit == AuditClass::None { server.data_channel() } else { server.admin_channel() };
        let message: &[u8] = match rule.method.as_str() {
            // A Transaction begins with an empty `begin`.
            "Transaction" => &[10, 0],
            _ => &[],
        };
        let status = raw::call(&channel, &Headers::none(), &rule.path, message).await.unwrap_err();
        let failure = Failure::from(&status);
        assert_eq!(failure.code, Code::Unauthenticated, "{}: {failure:?}", rule.path);
        assert!(is_upper_snake(&failure.reason), "{}: {failure:?}", rule.path);
        let package = rule.service.rsplit_once('.').unwrap().0;
        assert_eq!(failure.domain, package, "{}", rule.path);
        assert!(!failure.message.is_empty());
        count += 1;
    }
    assert_eq!(count, 75);
}

#[tokio::test]
async fn each_code_has_its_reason() {
    let site = Site::new(Arc::new(Prism::start(Options::new()).await)).await;
    let name = || wire::GetNamespaceRequest { name: "nowhere".to_owned() };
    site.admin.service().get_namespace(name()).await.refused().is(Code::NotFound, "NOT_FOUND");
    let again = wire::CreateNamespaceRequest { name: site.namespace.clone(), ..Default::default() };
    site.admin.service().create_namespace(again).await.refused().is(Code::AlreadyExists, "ALREADY_EXISTS");
    let bad = wire::GetNamespaceRequest::default();
    site.admin.service().get_namespace(bad).await.refused().is(Code::InvalidArgument, "INVALID_ARGUMENT");
    let stale = wire::UpdateNamespaceRequest {
        name: site.namespace.clone(),
        etag: Some("stale".to_owned()),
        ..Default::default()
    };
    let aborted = site.admin.service().update_namespace(stale).await.refused();
    assert!(aborted.code == Code::Aborted && is_upper_snake(&aborted.reason), "{aborted:?}");
}
