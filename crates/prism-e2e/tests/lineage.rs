//! Who may see which part of a lineage, and what a mistaken id leaves behind.

use prism_e2e::enrol::Machine;
use prism_e2e::rest::{Rest, TOKENS};
use prism_e2e::site::unique;
use prism_e2e::{Admin, Failure, Options, Prism, keys};
use prism_proto::admin::v1::{RevokeApiKeyRequest, RevokeCertificateRequest, RevokeClientKeyRequest};
use prism_proto::cluster::v1::get_lineage_request::Link;
use prism_proto::cluster::v1::{GetLineageRequest, GetLineageResponse, RevokeJoinTokenRequest};
use tonic::Code;

async fn server() -> Prism {
    Prism::start(Options::new()).await
}

async fn asks(admin: &Admin, link: Link) -> Result<GetLineageResponse, Failure> {
    let request = GetLineageRequest { link: Some(link) };
    let answer = admin.nodes().get_lineage(request).await;
    answer.map(tonic::Response::into_inner).map_err(|status| Failure::from(&status))
}

fn left_out(answer: &GetLineageResponse) -> Vec<&str> {
    answer.left_out.iter().map(|part| part.field.as_str()).collect()
}

#[tokio::test]
async fn a_lineage_shows_what_its_reader_may_see_and_says_what_it_lacks() {
    let server = server().await;
    let admin = server.admin();
    let (used, unused) = (admin.create_join_token("").await, admin.create_join_token("").await);
    Machine::new().exchange(&admin.channel, &used.join_token, "n1").await.unwrap();
    admin.create_role("nodes-only", &["nodes:read"]).await;
    admin.create_role("nodes-and-more", &["nodes:read", "audit:read", "session:read"]).await;
    let (reader, more) = (admin.with_role("nodes-only", None).await, admin.with_role("nodes-and-more", None).await);
    let of_node = || Link::NodeId("n1".to_owned());

    let whole = asks(&admin, of_node()).await.unwrap();
    assert_eq!((whole.tokens.len(), whole.certificates.len(), whole.audit_entry_ids.len()), (1, 1, 2));
    assert_eq!(left_out(&whole), [""; 0]);
    let seen = asks(&reader, of_node()).await.unwrap();
    assert_eq!((&seen.node, &seen.certificates), (&whole.node, &whole.certificates));
    assert_eq!((seen.tokens.len(), seen.session_ids.len(), seen.audit_entry_ids.len()), (0, 0, 0));
    assert_eq!(left_out(&seen), ["tokens", "session_ids", "audit_entry_ids"]);
    for (part, permission) in seen.left_out.iter().zip(["tokens:manage", "session:read", "audit:read"]) {
        assert!(part.description.contains(permission), "{part:?}");
    }
    let seen = asks(&more, of_node()).await.unwrap();
    assert_eq!((left_out(&seen), &seen.audit_entry_ids), (vec!["tokens"], &whole.audit_entry_ids));

    // By the id of a token that became a node, and of one that nobody has used, or that is not there.
    let used = Link::TokenId(used.token_id);
    assert_eq!(asks(&reader, used.clone()).await.unwrap().node, whole.node);
    assert_eq!(asks(&admin, used).await.unwrap(), whole);
    assert_eq!(asks(&admin, Link::TokenId(unused.token_id.clone())).await.unwrap().tokens[0].status, "ACTIVE");
    let session = Link::SessionId("0190a5f0-0000-7000-8000-000000000000".to_owned());
    for (link, permission) in [
        (Link::TokenId(unused.token_id), "tokens:manage"),
        (Link::TokenId("0123456789abcdef".to_owned()), "tokens:manage"),
        (session.clone(), "session:read"),
    ] {
        let refused = asks(&reader, link).await.unwrap_err();
        assert_eq!(refused.is(Code::PermissionDenied, "PERMISSION_DENIED").metadata["permission"], permission);
    }
    asks(&admin, Link::TokenId("0123456789abcdef".to_owned())).await.unwrap_err().is(Code::NotFound, "NOT_FOUND");
    asks(&admin, session).await.unwrap_err().is(Code::NotFound, "NOT_FOUND");
}

#[tokio::test]
async fn a_secret_given_for_an_id_is_not_in_the_log() {
    let server = server().await;
    let admin = server.admin();
    let token = admin.create_join_token("").await.join_token;
    let key = admin.create_api_key("viewer", None, None).await.token;
    let mut said = Vec::new();
    for word in [&token, &key] {
        let (bare, other_case) = (&word[4..], format!("{}{}", word[..4].to_uppercase(), &word[4..]));
        said.extend([word.clone(), word.to_uppercase(), bare.to_owned(), bare.to_uppercase(), other_case]);
    }
    for id in &said {
        let request = RevokeJoinTokenRequest { token_id: id.clone() };
        let refused = admin.tokens().revoke_join_token(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
        let refused = asks(&admin, Link::TokenId(id.clone())).await.unwrap_err();
        refused.is(Code::NotFound, "NOT_FOUND");
        admin.access().revoke_api_key(RevokeApiKeyRequest { key_id: id.clone() }).await.unwrap_err();
        admin.access().revoke_client_key(RevokeClientKeyRequest { key_id: id.clone() }).await.unwrap_err();
        Rest::of(&server).bearer(&server.admin_token()).ask("DELETE", &format!("{TOKENS}/{id}")).await;
        // As the id of a request it is masked.
        let named = admin.and("x-request-id", id);
        named.tokens().revoke_join_token(RevokeJoinTokenRequest { token_id: id.clone() }).await.unwrap_err();
    }
    let log = admin.whole_log().await;
    let secrets = [&token, &key].map(|word| keys::secret(word).to_uppercase());
    for entry in &log {
        let text = format!("{entry:?}").to_uppercase();
        assert!(secrets.iter().all(|secret| !text.contains(secret)), "{entry:?}");
    }
    let revocations: Vec<_> = log.iter().filter(|entry| entry.operation == "RevokeJoinToken").collect();
    assert_eq!(revocations.len(), 3 * said.len());
    assert!(revocations.iter().all(|entry| entry.resource == "token"), "{revocations:?}");
}

#[tokio::test]
async fn a_revocation_says_when_nobody_knows_the_certificate() {
    let server = server().await;
    let (admin, machine) = (server.admin(), Machine::new());
    let token = admin.create_join_token("").await.join_token;
    let answer = machine.exchange(&admin.channel, &token, &unique("n")).await.unwrap();
    let first = machine.holding(&answer.certificate_pem);
    machine.renew(&server, &first).await.unwrap();
    let revoke = async |fingerprint: String| {
        let request = RevokeCertificateRequest { fingerprint, ..RevokeCertificateRequest::default() };
        let answer = admin.access().revoke_certificate(request).await.unwrap().into_inner();
        (answer.unknown, answer.renewals_revoked)
    };
    assert_eq!(revoke(first.fingerprint()).await, (false, 1));
    for _ in 0..2 {
        assert_eq!(revoke("ab".repeat(32)).await, (true, 0));
    }
}
