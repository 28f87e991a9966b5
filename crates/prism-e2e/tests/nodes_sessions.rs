//! Tokens that are brought to a node that has not their session.

use prism_e2e::machines::{Node, bring_back, controller, provision, refused};
use prism_e2e::{Failure, Headers, Options, Prism, Session, data, keys, wait};
use tonic::Code;

/// The same client with another token.
fn with_token(session: &Session, token: &str) -> Session {
    session.with_headers(Headers::none().with("x-session-token", token))
}

/// What a unary call, a heartbeat and a stream with this session's token are told; always the same.
async fn told(session: &Session) -> Failure {
    let unary = refused(session.get("a").await);
    for other in [refused(session.heartbeat().await), refused(session.subscribe("jobs", "g").await)] {
        assert_eq!((other.code, &other.reason, &other.message), (unary.code, &unary.reason, &unary.message));
    }
    unary
}

/// Waits until it is told that.
async fn is_told(session: &Session, code: Code, reason: &str) -> Failure {
    wait::until(reason, || async {
        let failure = session.get("a").await.err().map(|status| Failure::from(&status));
        failure.filter(|failure| failure.reason == reason && failure.code == code)
    })
    .await;
    told(session).await
}

#[tokio::test]
async fn a_token_on_another_node_is_told_where_its_session_is() {
    let mut server = Prism::start(controller()).await;
    let endpoint = server.endpoints().admin;
    let admin = server.admin();
    let key = provision(&admin).await;
    let (one, two) = (Node::start(&server, "one").await, Node::start(&server, "two").await);
    let session = one.open(&key, "kv").await.unwrap();
    let native = two.open(&key, "kv").await.unwrap();
    session.put("a", b"1").await.unwrap();
    let brought = session.on(&two.channel());

    let elsewhere = told(&brought).await;
    elsewhere.is(Code::FailedPrecondition, "SESSION_ELSEWHERE");
    assert_eq!(elsewhere.metadata["node"], "one", "{elsewhere:?}");
    // A token that is wrong learns nothing, whatever is wrong with it.
    let malformed = told(&with_token(&brought, "prs_")).await;
    malformed.is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    for token in [keys::unknown("prs_"), keys::wrong_secret(&session.token)] {
        let wrong = told(&with_token(&brought, &token)).await;
        assert_eq!(
            (wrong.code, &wrong.reason, &wrong.message),
            (malformed.code, &malformed.reason, &malformed.message)
        );
        assert!(wrong.metadata.is_empty(), "{wrong:?}");
    }
    told(&brought).await.is(Code::FailedPrecondition, "SESSION_ELSEWHERE");

    // The embedded backend of a node that is gone is nobody else's.
    one.keeps(&session).await;
    one.prism.kill();
    let lost = is_told(&brought, Code::FailedPrecondition, "BACKEND_ELSEWHERE").await;
    assert!(lost.message.contains("it goes on on one only"), "{lost:?}");
    assert_eq!((lost.metadata["node"].as_str(), lost.domain.as_str()), ("one", "prism.keyvalue.v1"), "{lost:?}");
    one.prism.spawn();
    one.prism.ready().await;
    let session = session.on(&one.channel());
    assert_eq!(session.get("a").await.unwrap().value, b"1".as_slice());
    is_told(&brought, Code::FailedPrecondition, "SESSION_ELSEWHERE").await;

    // One that was terminated is dead on both.
    wait::until("the node is reached", || async {
        let ended = admin.terminate(&session.id, true, "enough").await;
        ended.unreachable_nodes.is_empty().then_some(())
    })
    .await;
    told(&session).await.is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    is_told(&brought, Code::Unauthenticated, "SESSION_TOKEN_INVALID").await;

    // Without a controller nobody knows of a token that is not here, and what is known to be dead stays so.
    let later = one.open(&key, "kv").await.unwrap();
    server.kill();
    let later = later.on(&two.channel());
    let alone = is_told(&later, Code::Unavailable, "NO_CONTROLLER").await;
    assert!(alone.retry.is_some(), "{alone:?}");
    let guessed = told(&with_token(&later, &keys::unknown("prs_"))).await;
    assert_eq!((guessed.code, &guessed.reason, &guessed.message), (alone.code, &alone.reason, &alone.message));
    for dead in [&session, &brought, &with_token(&brought, "prs_")] {
        told(dead).await.is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    }
    native.put("b", b"2").await.unwrap();

    bring_back(&mut server, &endpoint).await;
    is_told(&later, Code::FailedPrecondition, "SESSION_ELSEWHERE").await;
}

#[tokio::test]
async fn a_token_of_a_node_on_the_controller_s_own_data_port() {
    let server = Prism::start(Options::new()).await;
    let key = provision(&server.admin()).await;
    let node = Node::start(&server, "one").await;
    let session = node.open(&key, "kv").await.unwrap();
    let brought = session.on(&server.data_channel());
    let elsewhere = told(&brought).await;
    elsewhere.is(Code::FailedPrecondition, "SESSION_ELSEWHERE");
    assert_eq!(elsewhere.metadata["node"], "one", "{elsewhere:?}");
    let own = data::create(&server.data_channel(), data::named(&key, "kv")).await.unwrap();
    own.put("a", b"1").await.unwrap();
    let brought = own.on(&node.channel());
    told(&brought).await.is(Code::FailedPrecondition, "SESSION_ELSEWHERE");
    for wrong in [keys::unknown("prs_"), keys::wrong_secret(&session.token)] {
        told(&with_token(&own, &wrong)).await.is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    }
    server.admin().terminate(&session.id, true, "enough").await;
    is_told(&session.on(&server.data_channel()), Code::Unauthenticated, "SESSION_TOKEN_INVALID").await;
}

#[tokio::test]
async fn guesses_do_not_reach_the_controller_for_ever_and_hurt_no_session() {
    let server = Prism::start(controller()).await;
    let key = provision(&server.admin()).await;
    let node = Node::start(&server, "one").await;
    let session = node.open(&key, "kv").await.unwrap();
    let mut refusals = 0;
    for _ in 0..1000 {
        let guess = refused(with_token(&session, &keys::unknown("prs_")).get("a").await);
        if guess.reason == "TOO_MANY_FAILURES" {
            assert!(guess.code == Code::ResourceExhausted && guess.retry.is_some(), "{guess:?}");
            refusals += 1;
        } else {
            guess.is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
        }
    }
    assert!(refusals > 0, "every guess was asked about");
    session.put("a", b"1").await.unwrap();
    node.open(&key, "kv").await.unwrap().put("b", b"2").await.unwrap();
    // The same wrong token again and again is known.
    let wrong = with_token(&session, &keys::wrong_secret(&session.token));
    is_told(&wrong, Code::Unauthenticated, "SESSION_TOKEN_INVALID").await;
    for _ in 0..200 {
        told(&wrong).await.is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    }
}
