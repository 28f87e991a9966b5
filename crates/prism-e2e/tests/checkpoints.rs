//! Signed checkpoints of the audit log: in the trailers of every answer, at their interval, on demand, as a list, and the key
//! that signs them.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use prism_e2e::checkpoints::{self, HEAD, HEAD_ANSWER, Signer, WITNESS, WITNESS_ANSWER};
use prism_e2e::matrix::reflected_rules;
use prism_e2e::site::unique;
use prism_e2e::wait::{next, until, within};
use prism_e2e::{Admin, Cli, Headers, Options, Pattern, Prism, Refused as _, Shared, Site, audit, raw};
use prism_proto::admin::v1 as wire;
use prism_proto::admin::v1::{AuditCheckpoint, GetAuditLogRequest, ListAuditCheckpointsRequest};
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic::metadata::MetadataMap;

static SERVER: Shared = Shared::new();

async fn site() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

/// The checkpoint that must have come.
#[track_caller]
fn signed(what: &str, metadata: &MetadataMap) -> AuditCheckpoint {
    checkpoints::of(metadata).unwrap_or_else(|| panic!("{what}: no checkpoint in {metadata:?}"))
}

async fn read(admin: &Admin) -> MetadataMap {
    admin.service().list_configs(wire::ListConfigsRequest::default()).await.unwrap().metadata().clone()
}

async fn newest(admin: &Admin) -> AuditCheckpoint {
    signed("a read", &read(admin).await)
}

/// What comes at the end of an answer to these bytes.
async fn end_of(admin: &Admin, path: &str, message: &'static [u8]) -> (Code, MetadataMap) {
    let (outcome, metadata) = raw::call_to_the_end(&admin.channel, &admin.headers, path, message).await;
    (outcome.err().map_or(Code::Ok, |status| status.code()), metadata)
}

#[tokio::test]
async fn every_answer_of_every_rpc_carries_the_newest_checkpoint() {
    // A server of its own: one of the calls drains it.
    let server = Prism::start(Options::new()).await;
    let admin = server.admin();
    let key = Signer::of_server(&server.data_dir());
    let mut answered = Vec::new();
    for rule in reflected_rules(&admin.channel).await {
        // Empty requests: some RPCs take them, others say what is missing.
        let (code, metadata) = within(&rule.path, end_of(&admin, &rule.path, b"")).await;
        answered.push(code);
        assert_eq!(signed(&rule.path, &metadata).public_key, key.public_key(), "{}", rule.path);
        let (code, metadata) = within(&rule.path, end_of(&admin, &rule.path, b"\xff\xff\xff")).await;
        assert_ne!(code, Code::Ok, "{} takes what is no message", rule.path);
        signed(&rule.path, &metadata);
    }
    assert!(answered.contains(&Code::Ok) && answered.contains(&Code::InvalidArgument), "{answered:?}");
    for path in ["/prism.admin.v1.AdminService/Nonsense", "/nonsense.Service/Nonsense"] {
        let (code, metadata) = end_of(&admin, path, b"").await;
        assert_eq!(code, Code::Unimplemented);
        signed(path, &metadata);
    }
    let log = admin.whole_log().await;
    audit::verify(&log);
    checkpoints::agrees(&newest(&admin).await, &log);
}

#[tokio::test]
async fn refusals_carry_it_too() {
    let site = site().await;
    let viewer = site.admin.with_role("viewer", None).await;
    let create = wire::CreateNamespaceRequest { name: unique("no"), ..Default::default() };
    let denied = viewer.service().create_namespace(create.clone()).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    signed("a denial", denied.metadata());

    let get = wire::GetConfigRequest { name: "absent".to_owned(), ..Default::default() };
    let absent = site.admin.service().get_config(get).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);
    signed("something that is not there", absent.metadata());

    let dry = wire::DrainConnectionsRequest {
        namespace: Some(site.namespace.clone()),
        validate_only: true,
        ..Default::default()
    };
    let drained = site.admin.service().drain_connections(dry).await.unwrap();
    signed("a drain", drained.metadata());

    let keyed = site.admin.and("x-idempotency-key", &unique("key"));
    for _ in 0..2 {
        signed("a replay", keyed.service().create_namespace(create.clone()).await.unwrap().metadata());
    }
    let twin = wire::CreateNamespaceRequest { name: unique("another"), ..Default::default() };
    let refused = keyed.service().create_namespace(twin).await.unwrap_err();
    signed("a key that was used for something else", refused.metadata());

    for request in [
        GetAuditLogRequest { limit: -1, ..Default::default() },
        GetAuditLogRequest { resume_after: Some("unknown".to_owned()), ..Default::default() },
    ] {
        let refused = site.admin.service().get_audit_log(request).await.unwrap_err();
        signed("a stream that does not begin", refused.metadata());
    }
}

#[tokio::test]
async fn a_stream_ends_with_it() {
    let site = site().await;
    let read = GetAuditLogRequest { limit: 5, ..Default::default() };
    let mut stream = site.admin.service().get_audit_log(read).await.unwrap().into_inner();
    while stream.next().await.transpose().unwrap().is_some() {}
    let trailers = stream.trailers().await.unwrap().unwrap();
    signed("a stream that was read to its end", &trailers);

    // One that is cut tells it as well, and what is newest then.
    let made = site.admin.create_api_key("viewer", None, None).await;
    let viewer = site.admin.with_key(&made.token);
    let before = site.admin.checkpoint().await;
    let mut followed = viewer.follow().await.unwrap();
    site.admin.create_namespace(&unique("seen")).await;
    next("an entry", &mut followed).await.unwrap().unwrap();
    let after = site.admin.checkpoint().await;
    assert!(after.sequence > before.sequence);
    let revoke = wire::RevokeApiKeyRequest { key_id: made.api_key.unwrap().key_id };
    site.admin.access().revoke_api_key(revoke).await.unwrap();
    let status = loop {
        match next("the end", &mut followed).await.expect("a refusal") {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert!(signed("a stream that was cut", status.metadata()).sequence >= after.sequence);
}

#[tokio::test]
async fn strangers_learn_nothing_of_the_log() {
    let site = site().await;
    let session = site.session(Pattern::KeyValue).await;
    let made = site.admin.create_api_key("admin", None, None).await;
    let revoke = wire::RevokeApiKeyRequest { key_id: made.api_key.unwrap().key_id };
    site.admin.access().revoke_api_key(revoke).await.unwrap();
    for (what, headers) in [
        ("nothing", Headers::none()),
        ("nonsense", Headers::bearer("prx_nonsense")),
        ("no bearer", Headers::none().with("authorization", "Basic eDp5")),
        ("a client key", Headers::bearer(&site.key)),
        ("a session token", Headers::bearer(&session.token)),
        ("a revoked key", Headers::bearer(&made.token)),
        ("an unsigned token", Headers::bearer("eyJhbGciOiJub25lIn0.e30.")),
        ("two keys", site.admin.headers.clone().with("x-admin-token", &made.token)),
    ] {
        let stranger = site.admin.with_headers(headers.with(WITNESS, "1").with(HEAD, "signed"));
        for path in ["AdminService/ListConfigs", "AdminService/GetAuditLog", "AdminService/Nonsense"] {
            let (code, metadata) = end_of(&stranger, &format!("/prism.admin.v1.{path}"), b"").await;
            assert_eq!(code, Code::Unauthenticated, "{what}");
            assert!(checkpoints::of(&metadata).is_none(), "{what} at {path}: {metadata:?}");
            assert!(metadata.get_bin(WITNESS_ANSWER).is_none(), "{what} at {path}: {metadata:?}");
            assert!(metadata.get_bin(HEAD_ANSWER).is_none(), "{what} at {path}: {metadata:?}");
        }
    }
}

#[tokio::test]
async fn the_log_is_signed_at_its_interval_as_far_as_it_has_grown() {
    let server = Prism::start(Options::new().config("[audit]\ncheckpoint_interval = \"1s\"\n")).await;
    let admin = server.admin();
    let mut seen = vec![newest(&admin).await];
    for _ in 0..3 {
        let last = seen.last().map_or(0, |checkpoint| checkpoint.sequence);
        let newer = until("a newer checkpoint", async || {
            Some(newest(&admin).await).filter(|checkpoint| checkpoint.sequence > last)
        });
        seen.push(newer.await);
    }
    let log = admin.whole_log().await;
    audit::verify(&log);
    let listed = admin.checkpoints().await;
    for checkpoint in &seen {
        checkpoints::agrees(checkpoint, &log);
        let same = |found: &&AuditCheckpoint| found.sequence == checkpoint.sequence && found.hash == checkpoint.hash;
        assert!(listed.iter().any(|found| same(&found)), "{checkpoint:?} is not in the list");
    }
    let time = |checkpoint: &AuditCheckpoint| checkpoint.time.map(|at| (at.seconds, at.nanos));
    assert!(listed.is_sorted_by_key(time), "{listed:?}");
}

#[tokio::test]
async fn whoever_may_read_the_log_has_it_signed_on_demand() {
    let site = site().await;
    let callers = [
        site.admin.clone(),
        site.admin.with_role("viewer", None).await,
        site.admin.with_role("viewer", Some(&site.namespace)).await,
    ];
    for admin in &callers {
        let before = read(admin).await;
        let id = unique("signed");
        let made = admin.and("x-request-id", &id).checkpoint().await;
        assert!(made.sequence > signed("before", &before).sequence);
        assert!(newest(admin).await.sequence >= made.sequence);
        let log = site.admin.whole_log().await;
        checkpoints::agrees(&made, &log);
        let entry = log.iter().find(|entry| entry.request_id == id).expect("its own entry");
        assert!(entry.sequence > made.sequence, "a checkpoint covers what was there before");
        assert_eq!((entry.operation.as_str(), entry.resource.as_str()), ("CreateAuditCheckpoint", "audit"));
        assert_eq!(entry.metadata["sequence"], made.sequence.to_string());
    }
    // Many at a time, while others write.
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..32 {
        let admin = site.admin.clone();
        calls.spawn(async move { if number % 2 == 0 { admin.checkpoint().await } else { newest(&admin).await } });
    }
    let made = within("checkpoints", calls.join_all()).await;
    let log = site.admin.whole_log().await;
    audit::verify(&log);
    for checkpoint in &made {
        checkpoints::agrees(checkpoint, &log);
    }
}

#[tokio::test]
async fn checkpoints_are_listed_oldest_first_in_pages() {
    let server = Prism::start(Options::new()).await;
    let admin = server.admin();
    for _ in 0..7 {
        admin.checkpoint().await;
    }
    let all = admin.checkpoints().await;
    assert!(all.len() >= 7 && all.is_sorted_by(|older, newer| older.sequence < newer.sequence), "{all:?}");
    let log = admin.whole_log().await;
    for checkpoint in &all {
        checkpoints::agrees(checkpoint, &log);
    }
    let ask = async |page_size, page_token: Option<&str>| {
        let page_token = page_token.map(ToOwned::to_owned);
        admin.service().list_audit_checkpoints(ListAuditCheckpointsRequest { page_size, page_token }).await
    };
    let (mut paged, mut token) = (Vec::new(), None);
    loop {
        let page = ask(3, token.as_deref()).await.unwrap().into_inner();
        assert_eq!(page.total_count, all.len() as i32, "reads make no checkpoints");
        let more = !page.next_page_token.is_empty();
        assert!(if more { page.checkpoints.len() == 3 } else { (1..=3).contains(&page.checkpoints.len()) });
        paged.extend(page.checkpoints);
        if !more {
            break;
        }
        token = Some(page.next_page_token);
    }
    assert_eq!(paged, all);
    ask(-1, None).await.refused().names(&["page_size"]);
    ask(0, Some("nonsense")).await.refused().names(&["page_token"]);
    assert_eq!(ask(5000, None).await.unwrap().into_inner().checkpoints, all);
}

#[tokio::test]
async fn a_caller_who_remembers_an_entry_is_told_the_hash_that_the_log_holds_for_it() {
    let site = site().await;
    for _ in 0..3 {
        read(&site.admin).await;
    }
    let log = site.admin.whole_log().await;
    for entry in [&log[0], &log[2], log.last().unwrap()] {
        let asking = site.admin.and(WITNESS, &entry.sequence.to_string());
        let answer = read(&asking).await;
        assert_eq!(checkpoints::witness_of(&answer).as_deref(), Some(entry.hash.as_ref()));
        signed("with a witness", &answer);
        // A refusal and a stream answer as well.
        let get = wire::GetConfigRequest { name: "absent".to_owned(), ..Default::default() };
        let refused = asking.service().get_config(get).await.unwrap_err();
        assert_eq!(checkpoints::witness_of(refused.metadata()).as_deref(), Some(entry.hash.as_ref()));
        for path in ["AdminService/GetAuditLog", "AdminService/Nonsense"] {
            let (_, trailers) = end_of(&asking, &format!("/prism.admin.v1.{path}"), b"").await;
            assert_eq!(checkpoints::witness_of(&trailers).as_deref(), Some(entry.hash.as_ref()), "{path}");
        }
    }
    let future = (log.len() as u64 + 1_000_000).to_string();
    for nothing in [
        "0",
        &future,
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "-1",
        "1.0",
        "1e3",
        "0x1",
        "one",
        "",
        "1,2",
        "1; DROP TABLE audit",
        &"9".repeat(5000),
    ] {
        let answer = read(&site.admin.and(WITNESS, nothing)).await;
        assert_eq!(checkpoints::witness_of(&answer).as_deref(), Some(&[][..]), "the log holds no {nothing:?}");
        signed(nothing, &answer);
    }
    assert_eq!(checkpoints::witness_of(&read(&site.admin).await), None, "nobody asked");
}

/// Who asks has the log signed as far as it goes: the entry of that very call is covered, whatever kind of answer it gets.
#[tokio::test]
async fn a_caller_who_asks_for_the_head_has_his_own_entry_signed() {
    let site = site().await;
    let key = Signer::of_server(&SERVER.get(Options::new()).await.data_dir());
    let listed = site.admin.checkpoints().await;
    let head = |what: &str, metadata: &MetadataMap| {
        let head = checkpoints::head_of(metadata).unwrap_or_else(|| panic!("{what}: no head in {metadata:?}"));
        assert!(signed(what, metadata).sequence <= head.sequence, "{what}: {metadata:?}");
        head
    };
    let mut heads = Vec::new();
    for (path, message) in [
        ("AdminService/ListConfigs", b"".as_slice()),
        ("AdminService/ListConfigs", b"\xff\xff\xff"),
        ("AdminService/GetConfig", b""),
        ("AdminService/GetAuditLog", b""),
        ("AdminService/GetAuditLog", b"\x40\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        ("AdminService/Nonsense", b""),
        ("AccessService/WhoAmI", b""),
    ] {
        let id = unique("head");
        let asking = site.admin.and(HEAD, "signed").and("x-request-id", &id);
        let (_, metadata) = end_of(&asking, &format!("/prism.admin.v1.{path}"), message).await;
        heads.push((path, id, head(path, &metadata)));
    }
    let log = site.admin.whole_log().await;
    for (path, id, head) in &heads {
        let own = log.iter().find(|entry| entry.request_id == *id).unwrap_or_else(|| panic!("no entry of {path}"));
        assert!(head.sequence >= own.sequence && !head.cut, "{path}: {head:?} does not cover {own:?}");
        assert_eq!(head.public_key, key.public_key());
        checkpoints::agrees(head, &log);
    }
    // A stream says it before its first entry.
    let id = unique("follow");
    let asking = site.admin.and(HEAD, "signed").and("x-request-id", &id);
    let follow = GetAuditLogRequest { follow: true, ..Default::default() };
    let begun = asking.service().get_audit_log(follow).await.unwrap();
    let head = head("a stream that begins", begun.metadata());
    let log = site.admin.whole_log().await;
    assert!(log.iter().any(|entry| entry.request_id == id && entry.sequence <= head.sequence));
    checkpoints::agrees(&head, &log);
    // Nothing of it is stored, and who does not ask is told what is.
    let stored = site.admin.checkpoints().await;
    assert!(heads.iter().all(|(_, _, head)| !stored.contains(head)));
    assert!(stored.len() >= listed.len());
    assert_eq!(checkpoints::head_of(&read(&site.admin).await), None, "nobody asked");
}

#[tokio::test]
async fn checkpoints_survive_a_crash_and_what_follows_them_does_too() {
    let server = Arc::new(Prism::start(Options::new()).await);
    let mut known: Vec<AuditCheckpoint> = Vec::new();
    for _ in 0..3 {
        let admin = server.admin();
        for _ in 0..4 {
            read(&admin).await;
            known.push(admin.checkpoint().await);
        }
        server.crash_and_restart().await;
        let listed = server.admin().checkpoints().await;
        for checkpoint in &known {
            assert!(listed.contains(checkpoint), "{checkpoint:?} was answered, and is gone: {listed:?}");
        }
        let log = server.admin().whole_log().await;
        audit::verify(&log);
        for checkpoint in &listed {
            checkpoints::agrees(checkpoint, &log);
        }
        let now = newest(&server.admin()).await;
        assert!(now.sequence >= known.last().map_or(0, |checkpoint| checkpoint.sequence));
        assert_eq!(now.public_key, known[0].public_key, "one key for ever");
    }
}

/// A server that ended in order has signed its log to the end: what is cut off then is missed.
#[tokio::test]
async fn the_log_is_signed_to_its_end_when_the_server_stops() {
    let server = Prism::start(Options::new()).await;
    let cli = Cli::of(&server);
    server.admin().create_namespace("last").await;
    server.signal("TERM");
    assert!(server.exit().await.success());
    let line = format!("audit verify --data-dir {} -o json", server.data_dir().display());
    let verified = cli.run(&line).ok().json();
    let last = verified["entries"].as_u64().expect("a number of entries");
    server.spawn();
    server.ready().await;
    let signed: Vec<u64> = server.admin().checkpoints().await.iter().map(|checkpoint| checkpoint.sequence).collect();
    assert!(signed.contains(&last), "sequence {last} was the last, and was not signed: {signed:?}");
}

#[tokio::test]
async fn the_key_is_private_and_the_same_for_ever() {
    let server = Prism::start(Options::new()).await;
    let file = server.data_dir().join("audit.key");
    let before = std::fs::read(&file).unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let signed = server.admin().checkpoint().await;
    assert_eq!(signed.public_key, Signer::of_server(&server.data_dir()).public_key());
    server.crash_and_restart().await;
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert_eq!(newest(&server.admin()).await.public_key, signed.public_key);
}

/// The server does not start, and says why in its last line.
async fn refuses_to_start(server: &Prism, words: &[&str]) {
    server.spawn();
    let status = server.exit().await;
    // The end of what it says may be read after the end of itself.
    let log = until("a reason", async || Some(server.log()).filter(|log| log.contains("prism: "))).await;
    assert_eq!(status.code(), Some(1), "{log}");
    let last = log.lines().last().unwrap_or_default();
    for word in words {
        assert!(last.contains(word), "{word:?} is not in {last:?}");
    }
    assert!(!log.contains("PRIVATE KEY"), "{log}");
}

#[tokio::test]
async fn a_start_without_its_key_says_what_is_wrong_and_what_to_do() {
    let server = Prism::start(Options::new()).await;
    server.admin().checkpoint().await;
    server.signal("TERM");
    assert!(server.exit().await.success());
    let file = server.data_dir().join("audit.key");
    let key = std::fs::read(&file).unwrap();

    for mode in [0o640, 0o604, 0o644, 0o666] {
        std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        refuses_to_start(&server, &["audit.key", "read by others", "chmod 600"]).await;
    }
    std::fs::remove_file(&file).unwrap();
    refuses_to_start(&server, &["audit.key", "missing", "restore it from a backup"]).await;
    assert!(!file.exists(), "a new key in the place of a lost one looks like a forgery");
    for nonsense in ["", "nonsense", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
        std::fs::write(&file, nonsense).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        refuses_to_start(&server, &["audit.key"]).await;
    }
    std::fs::write(&file, &key).unwrap();
    server.spawn();
    server.ready().await;
    server.admin().checkpoint().await;
}
