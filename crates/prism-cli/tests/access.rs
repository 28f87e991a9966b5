//! Roles, bindings, keys and certificates against a fake admin plane.

mod fake;

use std::{fs, os::unix::fs::PermissionsExt as _};

use fake::{Fake, one, stderr, stdout};
use prism_proto::admin::v1 as admin;
use tonic::Status;

#[test]
fn roles_and_bindings_are_sent_as_given() {
    let fake = Fake::start(|call| match call.method.as_str() {
        "CreateRole" => one(&admin::CreateRoleResponse { role: call.message::<admin::CreateRoleRequest>().role }),
        "UpdateRole" => one(&admin::UpdateRoleResponse { role: call.message::<admin::UpdateRoleRequest>().role }),
        "CreateBinding" => {
            let mut binding = call.message::<admin::CreateBindingRequest>().binding.unwrap();
            binding.binding_id = "b-1".to_owned();
            one(&admin::CreateBindingResponse { binding: Some(binding) })
        }
        "CreateClientBinding" => {
            let binding = call.message::<admin::CreateClientBindingRequest>().client_binding;
            one(&admin::CreateClientBindingResponse { client_binding: binding })
        }
        "WhoCan" => one(&admin::WhoCanResponse {
            subjects: vec!["user:alice".to_owned(), "group:ops".to_owned()],
            installation_wide: 3,
        }),
        "ListBindings" => one(&admin::ListBindingsResponse::default()),
        _ => one(&admin::DeleteRoleResponse {}),
    });
    let run = |line: &str| {
        let output = fake.run(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(0), "{line}: {}", stderr(&output));
        stdout(&output)
    };
    let text = run("role create auditor --permission audit:read --permission config:read,session:read");
    assert!(text.contains("audit:read config:read session:read"), "{text}");
    run("role update auditor --permission audit:read");
    let update: admin::UpdateRoleRequest = fake.calls().pop().unwrap().message();
    assert_eq!(update.role.unwrap().permissions, ["audit:read"]);
    assert!(run("binding create --subject user:alice --role auditor -n shop").contains("b-1"));
    let client = "client-binding create --subject user:app -n shop --permission read --permission write -o json";
    let json: serde_json::Value = serde_json::from_str(&run(client)).unwrap();
    assert_eq!(json["clientBinding"]["permissions"], serde_json::json!(["read", "write"]));
    assert!(run("who-can config:create -n shop").contains("group:ops"));
    let output = fake.run(&["who-can", "config:create", "-n", "shop"]);
    assert!(stderr(&output).contains("role_map") && !stdout(&output).contains("role_map"), "{}", stderr(&output));
    assert!(stderr(&output).contains("3 more hold it"), "{}", stderr(&output));
    let asked: admin::WhoCanRequest = fake.calls().pop().unwrap().message();
    assert_eq!((asked.permission.as_str(), asked.namespace.as_deref()), ("config:create", Some("shop")));
    run("binding list --subject user:alice");
    let asked: admin::ListBindingsRequest = fake.calls().pop().unwrap().message();
    assert_eq!(asked.subject.as_deref(), Some("user:alice"));
    for line in ["role delete auditor", "binding delete b-1", "client-binding delete c-1"] {
        assert_eq!(run(line), "");
        assert!(fake.calls().pop().unwrap().header("x-idempotency-key").is_some(), "{line}");
    }
}

#[test]
fn a_key_is_rotated_with_an_overlap() {
    let fake = Fake::start(|call| {
        let request: admin::RotateApiKeyRequest = call.message();
        let end = request.overlap.map(|_| prost_types::Timestamp { seconds: 0, nanos: 0 });
        let key = admin::ApiKey { key_id: request.key_id, overlap_ends_at: end, ..Default::default() };
        one(&admin::RotateApiKeyResponse { api_key: Some(key), token: "prx_new".to_owned() })
    });
    let output = fake.run(&["key", "rotate", "k1", "--overlap", "1h"]);
    assert!(stdout(&output).contains("prx_new") && stdout(&output).contains("1970-01-01"), "{}", stdout(&output));
    let request: admin::RotateApiKeyRequest = fake.calls().pop().unwrap().message();
    assert_eq!(request.overlap.unwrap().seconds, 3600);
    let output = fake.run(&["key", "rotate", "k1", "-o", "token"]);
    assert_eq!(stdout(&output), "prx_new\n");
    assert!(!stderr(&output).contains("prx_new"));
}

fn issuing() -> Fake {
    Fake::start_with_ca(|ca, call| match call.method.as_str() {
        "IssueCertificate" => {
            let request: admin::IssueCertificateRequest = call.message();
            let uri = format!("spiffe://test/user/{}", request.name);
            one(&admin::IssueCertificateResponse {
                certificate_pem: ca.issue(&request.csr_pem, &uri).into_bytes().into(),
                ca_certificate_pem: ca.pem.clone().into_bytes().into(),
                certificate: Some(admin::Certificate {
                    serial_number: "0a".to_owned(),
                    kind: request.kind,
                    name: request.name,
                    uri,
                    ..Default::default()
                }),
            })
        }
        "WhoAmI" if call.peer.is_none() && call.header("authorization").is_none() => {
            Err(Status::unauthenticated("no credential"))
        }
        _ => one(&admin::WhoAmIResponse { actor: "alice".to_owned(), ..Default::default() }),
    })
}

#[test]
fn a_certificate_is_issued_and_used() {
    let fake = issuing();
    let output = fake.run(&["cert", "issue", "alice", "--ttl", "30d", "--out", "keys"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let request = fake.calls().pop().unwrap();
    assert!(!request.body.windows(7).any(|part| part == b"PRIVATE"), "the key stays here");
    let request: admin::IssueCertificateRequest = request.message();
    assert_eq!((request.kind, request.ttl.unwrap().seconds), (1, 30 * 86_400));
    let keys = fake.folder().join("keys");
    let mode = |name: &str| fs::metadata(keys.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("alice.key"), fs::read_dir(&keys).unwrap().count()), (0o600, 3));
    assert_eq!(fs::read_to_string(keys.join("ca.pem")).unwrap(), fake.ca().pem);

    let calls = fake.calls().len();
    let output = fake.run(&["cert", "issue", "alice", "--out", "keys"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    // Nothing was issued that could not be kept.
    assert_eq!(fake.calls().len(), calls);
    assert_eq!(fake.run(&["cert", "issue", "alice", "--out", "keys", "--force"]).status.code(), Some(0));

    let certificate = ["--cert", "keys/alice.pem", "--key", "keys/alice.key"];
    let output = fake.run(&[&["whoami"][..], &certificate].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let call = fake.calls().pop().unwrap();
    assert!(call.peer.is_some() && call.header("authorization").is_none());

    fs::set_permissions(keys.join("alice.key"), fs::Permissions::from_mode(0o640)).unwrap();
    let output = fake.run(&[&["whoami"][..], &certificate].concat());
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("chmod 600"), "{}", stderr(&output));
}

#[test]
fn a_context_may_have_a_certificate() {
    let fake = issuing();
    fake.run(&["cert", "issue", "alice"]);
    let endpoint = fake.endpoint();
    let set = ["context", "set", "prod", "--endpoint", &endpoint, "--ca", "ca.pem"];
    let output = fake.run(&[&set[..], &["--cert", "alice.pem", "--key", "alice.key"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = fake.command(&["whoami", "--context", "prod"]).current_dir("/").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(fake.calls().pop().unwrap().peer.is_some());
    assert!(stdout(&fake.run(&["context", "list"])).contains("certificate /"));
}

#[test]
fn a_stranger_s_certificate_is_refused() {
    let (fake, other) = (issuing(), issuing());
    other.run(&["cert", "issue", "alice"]);
    let keys = other.folder();
    let (cert, key) = (keys.join("alice.pem"), keys.join("alice.key"));
    let output = fake.run(&["whoami", "--cert", cert.to_str().unwrap(), "--key", key.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(stderr(&output).contains("client certificate"), "{}", stderr(&output));
}

#[test]
fn a_certificate_is_revoked_by_serial_or_fingerprint() {
    let fake = Fake::start(|_| one(&admin::RevokeCertificateResponse::default()));
    let sent = |arguments: &[&str]| {
        let output = fake.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let request: admin::RevokeCertificateRequest = fake.calls().pop().unwrap().message();
        (request.serial_number, request.fingerprint)
    };
    assert_eq!(sent(&["cert", "revoke", "0A:1b"]), ("0a1b".to_owned(), String::new()));
    assert_eq!(sent(&["cert", "revoke", "--fingerprint", "AA:bb"]), (String::new(), "aabb".to_owned()));
}
