//! SessionService: contract §4, §8 "session states", §9 "sessions", "session token", "dead or unknown session token".

use std::sync::Arc;
use std::time::Duration;

use prism_e2e::site::config;
use prism_e2e::wait::{next, until};
use prism_e2e::{Headers, Options, Pattern, Prism, Refused as _, Shared, Site, data};
use prism_proto::pubsub::v1 as pubsub;
use prism_proto::session::v1::{
    CloseSessionRequest, CreateSessionRequest, GetSessionRequest, HeartbeatRequest, RefreshSessionRequest,
    SessionStatus,
};
use tonic::Code;

static SERVER: Shared = Shared::new();

async fn site() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

#[tokio::test]
async fn a_session_carries_its_config_and_lives_for_its_maximum_age() {
    let site = site().await;
    let name = site.config(Pattern::KeyValue).await;
    let session = site.session_of(&name).await;
    let answer = &session.answer;
    assert!(answer.session_token.starts_with("prs_") && !answer.session_id.is_empty());
    assert_eq!(answer.config.as_ref().unwrap(), &config(&name, &site.namespace, Pattern::KeyValue));
    let age = answer.expires_at.unwrap().seconds - answer.created_at.unwrap().seconds;
    assert_eq!(age, 24 * 3600);
    let told = session.describe().await.unwrap();
    assert_eq!(
        (told.session_id, told.status, told.created_at, told.expires_at, told.config),
        (session.id.clone(), SessionStatus::Active.into(), answer.created_at, answer.expires_at, answer.config.clone())
    );
    let beat = session.heartbeat().await.unwrap();
    assert!(
        (1..=300).contains(&beat.ttl_seconds) && beat.status() == SessionStatus::Active && beat.server_time.is_some(),
        "{beat:?}"
    );
    assert_eq!(session.describe().await.unwrap().metrics.unwrap().requests_total, 3);
}

#[tokio::test]
async fn inline_configs_are_validated_like_named_ones() {
    let site = site().await;
    let good = config("", &site.namespace, Pattern::KeyValue);
    let mut named = good.clone();
    named.name = "inline".to_owned();
    let session = site.open(data::inline(&site.key, named.clone())).await.unwrap();
    session.put("a", b"1").await.unwrap();
    let mut bad = named.clone();
    bad.backend.as_mut().unwrap().options.insert("colour".to_owned(), "red".to_owned());
    bad.version.clear();
    let refused = site.open(data::inline(&site.key, bad)).await.refused();
    assert_eq!(refused.code, Code::InvalidArgument);
    assert_eq!(refused.fields, ["inline_config.version", "inline_config.backend.options.colour"]);
    for (request, field) in [
        (CreateSessionRequest { config: None, ..data::named(&site.key, "x") }, "config"),
        (CreateSessionRequest { client_id: "x".repeat(1025), ..data::inline(&site.key, named.clone()) }, "client_id"),
        (
            CreateSessionRequest { client_version: "x".repeat(1025), ..data::inline(&site.key, named.clone()) },
            "client_version",
        ),
    ] {
        let refused = site.open(request).await.refused();
        assert_eq!(refused.code, Code::InvalidArgument, "{refused:?}");
        assert!(refused.fields.iter().any(|found| found.starts_with(field)), "{field}: {refused:?}");
    }
    let unknown = site.open(data::named(&site.key, "no-such-config")).await.refused();
    assert_eq!(unknown.code, Code::NotFound);
    let nobody = CreateSessionRequest { auth: None, ..data::inline(&site.key, named) };
    assert_eq!(site.open(nobody).await.refused().code, Code::Unauthenticated);
}

#[tokio::test]
async fn refresh_is_clamped_to_the_maximum_age() {
    let site = site().await;
    let session = site.session(Pattern::KeyValue).await;
    let refresh = async |seconds| {
        let extension = Some(prost_types::Duration { seconds, nanos: 0 });
        session.life().refresh_session(RefreshSessionRequest { extension, ..Default::default() }).await
    };
    for seconds in [60, 7 * 24 * 3600, i64::from(i32::MAX)] {
        let new = refresh(seconds).await.unwrap().into_inner().new_expires_at.unwrap();
        assert_eq!(Some(new), session.answer.expires_at, "never past the 24 h maximum, never earlier");
    }
    for bad in [0, -1] {
        refresh(bad).await.refused().names(&["extension"]);
    }
    session.life().refresh_session(RefreshSessionRequest::default()).await.refused().names(&["extension"]);
}

#[tokio::test]
async fn without_a_sign_of_life_a_session_expires_and_its_streams_end() {
    let settings = "[session]\nidle_after = \"1s\"\nidle_timeout = \"2s\"\n";
    let site = Site::new(Arc::new(Prism::start(Options::new().config(settings)).await)).await;
    let session = site.session(Pattern::PubSub).await;
    let request = pubsub::SubscribeRequest { topic_pattern: ">".to_owned(), ..Default::default() };
    let mut events = session.pub_sub().subscribe(request).await.unwrap().into_inner();
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        session.heartbeat().await.unwrap();
    }
    next("the end", &mut events).await.refused().is(Code::Aborted, "SESSION_EXPIRED");
    session.heartbeat().await.refused().is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
}

#[tokio::test]
async fn a_restart_keeps_sessions_and_their_tokens() {
    let site = Site::new(Arc::new(Prism::start(Options::new()).await)).await;
    let (session, closed) = (site.session(Pattern::KeyValue).await, site.session(Pattern::KeyValue).await);
    session.put("a", b"1").await.unwrap();
    closed.life().close_session(CloseSessionRequest::default()).await.unwrap();
    site.server.crash_and_restart().await;
    let channel = site.server.data_channel();
    assert_eq!(session.on(&channel).get("a").await.unwrap().value, "1");
    closed.on(&channel).heartbeat().await.refused().is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    site.server.signal("TERM");
    assert!(site.server.exit().await.success());
    site.server.spawn();
    site.server.ready().await;
    let session = session.on(&site.server.data_channel());
    assert_eq!(session.get("a").await.unwrap().value, "1", "a shutdown leaves sessions alive for the next start");
    assert_eq!(session.describe().await.unwrap().expires_at, session.answer.expires_at);
}

#[tokio::test]
async fn a_session_of_another_pattern_is_a_wrong_pattern() {
    let site = site().await;
    let kv = site.session(Pattern::KeyValue).await;
    let queue = site.session(Pattern::Queue).await;
    kv.publish("t", b"x").await.refused().is(Code::FailedPrecondition, "WRONG_PATTERN");
    kv.subscribe("t", "g").await.refused().is(Code::FailedPrecondition, "WRONG_PATTERN");
    let request = prism_proto::reader::v1::CountRequest { collection: "items".to_owned(), ..Default::default() };
    kv.reader().count(request).await.refused().is(Code::FailedPrecondition, "WRONG_PATTERN");
    queue.put("a", b"x").await.refused().is(Code::FailedPrecondition, "WRONG_PATTERN");
    queue
        .transact()
        .write(prism_e2e::rows::write(1.try_into().unwrap(), prism_e2e::rows::item("a", "b", 0.0, 0.0)))
        .await
        .refused()
        .is(Code::FailedPrecondition, "WRONG_PATTERN");
    let request = pubsub::PublishRequest { topic: "t".to_owned(), ..Default::default() };
    queue.pub_sub().publish(request).await.refused().is(Code::FailedPrecondition, "WRONG_PATTERN");
}

#[tokio::test]
async fn dead_unknown_malformed_and_foreign_tokens_get_one_answer() {
    let site = site().await;
    let live = site.session(Pattern::KeyValue).await;
    let dead = site.session(Pattern::KeyValue).await;
    dead.life().close_session(CloseSessionRequest::default()).await.unwrap();
    let mut typo = live.token.clone().into_bytes();
    typo[30] = if typo[30] == b'a' { b'b' } else { b'a' };
    let typo = String::from_utf8(typo).unwrap();
    let admin = site.server.admin_token();
    let mut answers = Vec::new();
    for token in [&dead.token, &typo, &admin, &site.key, &"nonsense".to_owned(), &"x".repeat(4000)] {
        let session = live.with_headers(Headers::none().with("x-session-token", token));
        answers.push(session.get("a").await.refused());
        answers.push(session.heartbeat().await.refused());
        answers.push(session.subscribe("t", "g").await.refused());
    }
    answers.push(live.with_headers(Headers::none()).get("a").await.refused());
    for answer in &answers {
        answer.is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
        assert_eq!(answer.message, answers[0].message);
    }
}

#[tokio::test]
async fn header_and_field_that_differ_are_invalid_even_when_both_live() {
    let site = site().await;
    let (one, two) = (site.session(Pattern::KeyValue).await, site.session(Pattern::KeyValue).await);
    let request = HeartbeatRequest { session_token: two.token.clone() };
    one.life().heartbeat(request).await.refused().names(&["session_token"]);
    let request = GetSessionRequest { session_token: "prs_other".to_owned() };
    one.life().get_session(request).await.refused().names(&["session_token"]);
    let request = GetSessionRequest { session_token: one.token.clone() };
    one.life().get_session(request).await.unwrap();
}

#[tokio::test]
async fn close_lets_what_runs_finish_and_force_does_not() {
    let site = site().await;
    let session = site.session(Pattern::Queue).await;
    session.publish("t", b"1").await.unwrap();
    let mut stream = session.subscribe("t", "g").await.unwrap();
    let message = next("a message", &mut stream).await.unwrap().unwrap();
    let close = async |force| session.life().close_session(CloseSessionRequest { force, ..Default::default() }).await;
    let answer = close(false).await.unwrap().into_inner();
    assert!(answer.success && answer.pending_operations == 1, "{answer:?}");
    assert_eq!(session.publish("t", b"2").await.refused().code, Code::FailedPrecondition);
    assert!(session.acknowledge(&message.message_id).await.unwrap());
    assert!(next("the end", &mut stream).await.refused().code == Code::Aborted);
    until("its end", async || session.heartbeat().await.is_err().then_some(())).await;

    let session = site.session(Pattern::Queue).await;
    session.publish("another", b"1").await.unwrap();
    let mut stream = session.subscribe("another", "g").await.unwrap();
    next("a message", &mut stream).await.unwrap().unwrap();
    let request = CloseSessionRequest { force: true, ..Default::default() };
    assert!(session.life().close_session(request).await.unwrap().into_inner().success);
    assert_eq!(next("the end", &mut stream).await.refused().code, Code::Aborted);
    session.heartbeat().await.refused().is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
}

#[tokio::test]
async fn the_request_id_is_taken_over_or_made_and_answered() {
    let site = site().await;
    let session = site.session(Pattern::KeyValue).await;
    let answered = async |id: Option<&str>| {
        let headers = Headers::none().with("x-session-token", &session.token);
        let session = session.with_headers(id.map_or(headers.clone(), |id| headers.with("x-request-id", id)));
        let answer = session.life().heartbeat(HeartbeatRequest::default()).await.unwrap();
        answer.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned()
    };
    assert_eq!(answered(Some("my-id 7/~")).await, "my-id 7/~");
    let made = answered(None).await;
    assert!(!made.is_empty() && made != answered(None).await);
    let long = "x".repeat(129);
    assert_ne!(answered(Some(&long)).await, long);
    assert_eq!(answered(Some(&"x".repeat(128))).await.len(), 128);
    // Errors carry it too.
    let stranger = session.with_headers(Headers::none().with("x-request-id", "of-an-error"));
    let status = stranger.heartbeat().await.unwrap_err();
    assert_eq!(status.metadata().get("x-request-id").unwrap(), "of-an-error");
}

#[tokio::test]
async fn streams_of_one_session_are_bounded() {
    let site =
        Site::new(Arc::new(Prism::start(Options::new().config("[limits]\nmax_streams_per_session = 2\n")).await)).await;
    let session = site.session(Pattern::Queue).await;
    let one = session.subscribe("t", "a").await.unwrap();
    let _two = session.subscribe("t", "b").await.unwrap();
    assert_eq!(session.subscribe("t", "c").await.refused().code, Code::ResourceExhausted);
    drop(one);
    until("room", async || session.subscribe("t", "c").await.ok()).await;
}
