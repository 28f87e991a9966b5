//! The binary against a fake admin plane: what it sends, prints and ends with.

mod fake;
mod signed;

use std::{fs, io::Read as _, process::Stdio};

use fake::{Fake, one, stderr, stdout};
use prism_proto::{
    admin::v1 as admin,
    config::v1::{AccessPattern, BackendConfig, BackendType, ClientConfig},
};
use signed::{Log, chain};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

fn orders() -> ClientConfig {
    ClientConfig {
        name: "orders".to_owned(),
        version: "1".to_owned(),
        pattern: AccessPattern::Queue.into(),
        backend: Some(BackendConfig {
            r#type: BackendType::Sqlite.into(),
            options: [("partitions".to_owned(), "4".to_owned())].into(),
            pool: None,
        }),
        namespace: "shop".to_owned(),
        ..ClientConfig::default()
    }
}

#[test]
fn listings_fetch_every_page() {
    let names: Vec<String> = (0..25).map(|n| format!("ns-{n:02}")).collect();
    let fake = Fake::start(move |call| {
        let request: admin::ListNamespacesRequest = call.message();
        let from = request.page_token.map_or(0, |token| token.parse().unwrap());
        let to = (from + request.page_size as usize).min(names.len());
        one(&admin::ListNamespacesResponse {
            namespaces: names[from..to]
                .iter()
                .map(|name| admin::NamespaceInfo { name: name.clone(), ..Default::default() })
                .collect(),
            next_page_token: Some(if to == names.len() { String::new() } else { to.to_string() }),
            total_count: 25,
            unreachable_nodes: vec![if from == 0 { "n2".to_owned() } else { "n1".to_owned() }],
        })
    });
    let output = fake.run(&["namespace", "list", "--page-size", "7", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["unreachableNodes"], serde_json::json!(["n1", "n2"]), "who was away for one page is named");
    assert!(stderr(&output).contains("n1, n2"), "{}", stderr(&output));
    assert_eq!(json["namespaces"].as_array().unwrap().len(), 25);
    assert_eq!(fake.calls().len(), 4);
    assert!(fake.calls().iter().all(|call| call.header("authorization") == Some("Bearer prx_test")));

    let output = fake.run(&["ns", "list", "--limit", "3"]);
    assert_eq!(stdout(&output).lines().count(), 4, "{}", stdout(&output));
    assert!(stderr(&output).contains("3 of 25"));
}

#[test]
fn every_code_has_its_exit() {
    let codes = [
        (Code::Internal, 1),
        (Code::Unauthenticated, 3),
        (Code::PermissionDenied, 3),
        (Code::NotFound, 4),
        (Code::Unavailable, 5),
        (Code::Aborted, 6),
        (Code::AlreadyExists, 6),
        (Code::FailedPrecondition, 6),
        (Code::InvalidArgument, 7),
        (Code::ResourceExhausted, 8),
        (Code::DeadlineExceeded, 9),
    ];
    let fake = Fake::start(|call| {
        let request: admin::GetConfigRequest = call.message();
        let code = Code::from(request.revision.unwrap() as i32);
        let details = ErrorDetails::with_error_info("SOME_REASON", "prism.admin.v1", []);
        Err(Status::with_error_details(code, "said the server", details))
    });
    for (code, exit) in codes {
        let output = fake.run(&["config", "get", "x", "--revision", &(code as i32).to_string()]);
        assert_eq!(output.status.code(), Some(exit), "{code:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
        assert!(stderr(&output).contains("SOME_REASON") && stderr(&output).contains("said the server"));
    }
    // An answer is an answer: no call was made twice.
    assert_eq!(fake.calls().len(), codes.len());
}

#[test]
fn a_config_goes_out_to_a_file_and_back() {
    let fake = Fake::start(|call| match call.method.as_str() {
        "GetConfig" => one(&admin::GetConfigResponse {
            config: Some(orders()),
            etag: "t1".to_owned(),
            revision: 3,
            created_at: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
            ..Default::default()
        }),
        _ => one(&admin::UpdateConfigResponse { config: Some(orders()), updated_at: None }),
    });
    for format in ["yaml", "json"] {
        let output = fake.run(&["config", "get", "orders", "-o", format]);
        fs::write(fake.folder().join("f"), output.stdout).unwrap();
        let output = fake.run(&["config", "update", "-f", "f"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let call = fake.calls().pop().unwrap();
        let request: admin::UpdateConfigRequest = call.message();
        assert_eq!(
            (request.name.as_str(), request.config, request.etag.as_deref()),
            ("orders", Some(orders()), Some("t1"))
        );
        assert!(call.header("x-idempotency-key").is_some_and(|key| key.len() == 36));
    }
}

#[test]
fn strangers_are_not_trusted_and_absence_is_told() {
    let fake = Fake::start(|_| one(&admin::WhoAmIResponse::default()));
    let other = Fake::start(|_| one(&admin::WhoAmIResponse::default()));
    let ca = other.folder().join("prism-data/ca.pem");
    let output =
        fake.command(&["whoami", "--ca", ca.to_str().unwrap()]).env("PRISM_ADMIN_TOKEN", "prx_a").output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(stderr(&output).contains("certificate"), "{}", stderr(&output));
    assert!(fake.calls().is_empty());

    let output = fake.run(&["whoami", "--endpoint", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(stderr(&output).contains("is the server running"), "{}", stderr(&output));
}

#[test]
fn a_chain_is_verified_exported_and_verified_again() {
    let log = Log::new(chain(45), &[]);
    let fake = Fake::start(move |call| log.answer(call));
    let output = fake.run(&["audit", "verify", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["entries"], 45);
    let witness = json["witness"].as_str().unwrap().to_owned();

    let output = fake.run(&["audit", "export"]);
    assert_eq!(stdout(&output).lines().count(), 45);
    fs::write(fake.folder().join("log"), &output.stdout).unwrap();
    assert_eq!(fake.run(&["audit", "verify", "--file", "log", "--witness", &witness]).status.code(), Some(0));

    let shorter: Vec<u8> = stdout(&output).lines().take(44).flat_map(|line| format!("{line}\n").into_bytes()).collect();
    fs::write(fake.folder().join("log"), shorter).unwrap();
    assert_eq!(fake.run(&["audit", "verify", "--file", "log"]).status.code(), Some(0));
    let output = fake.run(&["audit", "verify", "--file", "log", "--witness", &witness]);
    assert_eq!(output.status.code(), Some(11));
    assert!(stderr(&output).contains("sequence 45"), "{}", stderr(&output));
}

#[test]
fn a_long_log_is_read_from_its_first_entry() {
    let log = Log::new(chain(20_050), &[]);
    let fake = Fake::start(move |call| log.answer(call));
    let output = fake.run(&["audit", "verify"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("20050"), "{}", stdout(&output));
    // The checkpoints, the newest entry, and all of them in one stream.
    assert_eq!(fake.calls().len(), 3);
}

#[test]
fn a_break_is_named() {
    let mut entries = chain(30);
    entries[16].actor = "mallory".to_owned();
    let log = Log::new(entries, &[]);
    let fake = Fake::start(move |call| log.answer(call));
    let output = fake.run(&["audit", "verify"]);
    assert_eq!(output.status.code(), Some(11));
    assert!(stderr(&output).contains("sequence 17"), "{}", stderr(&output));
}

#[test]
fn a_new_token_can_be_printed_alone() {
    let fake = Fake::start(|_| {
        one(&admin::CreateApiKeyResponse { api_key: Some(admin::ApiKey::default()), token: "prx_new".to_owned() })
    });
    let output = fake.run(&["key", "create", "ci", "--role", "viewer", "-o", "token"]);
    assert_eq!(stdout(&output), "prx_new\n");
    assert!(stderr(&output).contains("once"));
    assert!(!stderr(&output).contains("prx_new"));
}

#[test]
fn verdicts_are_exit_codes() {
    let fake = Fake::start(|call| match call.method.as_str() {
        "DrainConnections" => {
            let request: admin::DrainConnectionsRequest = call.message();
            assert_eq!(request.timeout.map(|timeout| timeout.seconds), Some(2));
            one(&admin::DrainConnectionsResponse { drained_count: 1, remaining_count: 2, ..Default::default() })
        }
        "CanI" => one(&admin::CanIResponse { permission: "config:create".to_owned(), ..Default::default() }),
        other => Err(Status::unimplemented(other)),
    });
    let output = fake.run(&["drain", "--timeout", "2s", "-o", "json"]);
    assert_eq!(output.status.code(), Some(9), "{}", stderr(&output));
    assert!(stdout(&output).contains("\"remainingCount\": 2"));
    assert_eq!(fake.run(&["drain", "--timeout", "2s", "--dry-run"]).status.code(), Some(0));
    assert_eq!(fake.run(&["can-i", "CreateConfig"]).status.code(), Some(10));
}

#[test]
fn no_answer_is_a_deadline_and_tells_how_to_repeat() {
    let fake = Fake::start(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1500));
        one(&admin::RevokeApiKeyResponse {})
    });
    let output = fake.run(&["key", "revoke", "k", "--timeout", "200ms"]);
    assert_eq!(output.status.code(), Some(9), "{}", stderr(&output));
    assert!(stderr(&output).contains("--idempotency-key"), "{}", stderr(&output));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let entries = chain(5_000);
    let log = Log::new(entries, &[]);
    let fake = Fake::start(move |call| log.answer(call));
    let mut child = fake.command(&["audit", "export"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 10];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut first).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn quotas_are_changed_one_at_a_time() {
    let present = admin::NamespaceInfo {
        name: "shop".to_owned(),
        etag: "e1".to_owned(),
        quota: Some(admin::NamespaceQuota { max_sessions: 5, max_storage_bytes: 6, max_rps: 7 }),
        ..Default::default()
    };
    let fake = Fake::start(move |call| match call.method.as_str() {
        "GetNamespace" => one(&admin::GetNamespaceResponse { namespace: Some(present.clone()), ..Default::default() }),
        _ => one(&admin::UpdateNamespaceResponse { namespace: Some(present.clone()), ..Default::default() }),
    });
    let output = fake.run(&["namespace", "update", "shop", "--max-rps", "10"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let request: admin::UpdateNamespaceRequest = fake.calls().pop().unwrap().message();
    assert_eq!(request.quota, Some(admin::NamespaceQuota { max_sessions: 5, max_storage_bytes: 6, max_rps: 10 }));
    assert_eq!((request.etag.as_deref(), request.status, request.description), (Some("e1"), None, None));
}
