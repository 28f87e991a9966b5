//! Keys come from the issuer: when, how often, and what happens when they do not.

use std::sync::Mutex;
use std::time::Duration;

use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::provider::{Answer, Provider, discovery, jwks};
use super::*;
use crate::oidc::issuer::Pace;
use crate::oidc::settings::tests::settings;

const HOUR: Duration = Duration::from_hours(1);

/// Unknown keys cause one fetch and no more within a test.
fn calm() -> Pace {
    Pace { unknown_key: HOUR, timeout: HOUR, ..Pace::default() }
}

fn issuers(provider: &Provider, pace: Pace) -> Issuers {
    Issuers::at_pace(vec![settings(&provider.issuer)], Clock::manual(NOW), pace).unwrap()
}

fn token(provider: &Provider, signer: &Signer) -> String {
    signer.token(&signer.header(), &claims(&provider.issuer))
}

async fn verify(issuers: &Issuers, token: &str) -> Result<ProvenToken, TokenRefused> {
    issuers.verify(Plane::Admin, token).await
}

fn invalid(outcome: &Result<ProvenToken, TokenRefused>) -> bool {
    matches!(outcome, Err(TokenRefused::Invalid(_)))
}

fn unavailable(outcome: &Result<ProvenToken, TokenRefused>, provider: &Provider) -> bool {
    *outcome == Err(TokenRefused::Unavailable(provider.issuer.clone()))
}

/// Tries until it holds; a test that waits for ever has failed.
async fn eventually<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(2), waiting).await.expect("it never held");
}

#[tokio::test]
async fn the_first_token_fetches_the_keys_and_the_next_do_not() {
    let (one, other) = (Signer::p256("one"), Signer::ed25519("other"));
    let provider = Provider::start(&[&one, &other]).await;
    let issuers = issuers(&provider, calm());
    for _ in 0..20 {
        for signer in [&one, &other] {
            assert_eq!(verify(&issuers, &token(&provider, signer)).await.unwrap().actor, "alice");
        }
    }
    assert_eq!((provider.asked_for_keys(), provider.asked()), (1, 2));
}

#[tokio::test]
async fn tokens_of_others_and_broken_ones_fetch_nothing() {
    let signer = Signer::p256("one");
    let provider = Provider::start(&[&signer]).await;
    let data_only = IssuerSettings { admin_audience: None, ..settings(&provider.issuer) };
    let issuers = Issuers::at_pace(vec![data_only], Clock::manual(NOW), calm()).unwrap();
    let elsewhere = signer.token(&signer.header(), &claims("https://elsewhere.example.org"));
    for bad in ["", "a.b.c", &elsewhere, &token(&provider, &signer)] {
        assert!(invalid(&verify(&issuers, bad).await));
    }
    assert_eq!(provider.asked(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_unknown_keys_causes_one_fetch() {
    let (known, unknown) = (Signer::p256("known"), Signer::p256("unknown"));
    let provider = Provider::start(&[&known]).await;
    let issuers = issuers(&provider, calm());
    let (stop, stopped) = oneshot::channel::<()>();
    let fresh = tokio::spawn(issuers.clone().keep_fresh(async { drop(stopped.await) }));
    eventually(|| async { provider.asked_for_keys() == 1 }).await;
    let mut storm = JoinSet::new();
    for number in 0..500 {
        let mut header = unknown.header();
        header["kid"] = format!("unknown {number}").into();
        let token = unknown.token(&header, &claims(&provider.issuer));
        let issuers = issuers.clone();
        storm.spawn(async move { verify(&issuers, &token).await });
    }
    while let Some(outcome) = storm.join_next().await {
        assert!(invalid(&outcome.unwrap()));
    }
    for _ in 0..20 {
        assert!(invalid(&verify(&issuers, &token(&provider, &unknown)).await));
        assert!(verify(&issuers, &token(&provider, &known)).await.is_ok());
    }
    // One at the start, and at most one for the storm.
    assert!(provider.asked_for_keys() <= 2, "{}", provider.asked_for_keys());
    stop.send(()).unwrap();
    fresh.await.unwrap();
}

#[tokio::test]
async fn an_unknown_key_is_asked_for_again_after_the_interval() {
    let (known, unknown) = (Signer::p256("known"), Signer::p256("unknown"));
    let provider = Provider::start(&[&known]).await;
    let issuers = issuers(&provider, Pace { unknown_key: Duration::ZERO, ..calm() });
    for fetches in 1..5 {
        assert!(invalid(&verify(&issuers, &token(&provider, &unknown)).await));
        assert_eq!(provider.asked_for_keys(), fetches);
    }
}

#[tokio::test]
async fn keys_rotate_and_the_old_one_dies_with_the_next_fetch() {
    let (old, new) = (Signer::rsa("old"), Signer::p256("new"));
    let provider = Provider::start(&[&old]).await;
    let issuers = issuers(&provider, Pace { unknown_key: Duration::ZERO, ..calm() });
    assert!(verify(&issuers, &token(&provider, &old)).await.is_ok());
    provider.publishes(&[&old, &new]);
    assert!(verify(&issuers, &token(&provider, &new)).await.is_ok());
    assert!(verify(&issuers, &token(&provider, &old)).await.is_ok());
    // Gone, and another key has its name.
    let namesake = Signer::rsa("old");
    provider.publishes(&[&new, &namesake]);
    assert!(invalid(&verify(&issuers, &token(&provider, &Signer::p256("unknown"))).await));
    assert!(invalid(&verify(&issuers, &token(&provider, &old)).await));
    assert!(verify(&issuers, &token(&provider, &namesake)).await.is_ok());
    provider.publishes(&[]);
    assert!(invalid(&verify(&issuers, &token(&provider, &Signer::p256("unknown"))).await));
    assert!(invalid(&verify(&issuers, &token(&provider, &new)).await));
}

#[tokio::test]
async fn the_background_fetches_at_the_start_and_again_as_the_issuer_asks() {
    let (old, new) = (Signer::p256("old"), Signer::p256("new"));
    let provider = Provider::start(&[&old]).await;
    // Ten minutes are an hour here; the issuer asks for no keeping at all, which is the soonest there is.
    let pace = Pace { refresh: HOUR, soonest: Duration::from_millis(5), ..calm() };
    let issuers = issuers(&provider, pace);
    provider.answers_keys(Answer::Cached(jwks(&[&old]), "no-store"));
    let (stop, stopped) = oneshot::channel::<()>();
    let fresh = tokio::spawn(issuers.clone().keep_fresh(async { drop(stopped.await) }));
    eventually(|| async { provider.asked_for_keys() >= 3 }).await;
    provider.answers_keys(Answer::Cached(jwks(&[&new]), "no-store"));
    eventually(|| async { invalid(&verify(&issuers, &token(&provider, &old)).await) }).await;
    assert!(verify(&issuers, &token(&provider, &new)).await.is_ok());
    stop.send(()).unwrap();
    fresh.await.unwrap();
    // The server sees a request that was under way; after it there is none.
    let asked = provider.asked();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(provider.asked() <= asked + 2);
}

#[tokio::test]
async fn nothing_to_keep_fresh_waits_for_the_stop_all_the_same() {
    let keys = Issuers::with_keys(vec![(settings(ISSUER), all_keys())], Clock::manual(NOW)).unwrap();
    for issuers in [Issuers::none(), keys] {
        let (stop, stopped) = oneshot::channel::<()>();
        let fresh = tokio::spawn(issuers.keep_fresh(async { drop(stopped.await) }));
        tokio::task::yield_now().await;
        assert!(!fresh.is_finished());
        stop.send(()).unwrap();
        fresh.await.unwrap();
    }
}

#[tokio::test]
async fn an_issuer_that_is_down_keeps_its_keys() {
    let (known, unknown) = (Signer::p256("known"), Signer::p256("unknown"));
    let provider = Provider::start(&[&known]).await;
    let issuers = issuers(&provider, Pace { unknown_key: Duration::ZERO, ..calm() });
    assert!(verify(&issuers, &token(&provider, &known)).await.is_ok());
    provider.goes_down();
    for _ in 0..3 {
        assert!(invalid(&verify(&issuers, &token(&provider, &unknown)).await));
        assert!(verify(&issuers, &token(&provider, &known)).await.is_ok());
    }
    provider.comes_back(&[&unknown]);
    assert!(verify(&issuers, &token(&provider, &unknown)).await.is_ok());
    assert!(invalid(&verify(&issuers, &token(&provider, &known)).await));
}

#[tokio::test]
async fn the_log_says_once_that_an_issuer_is_down_and_once_that_it_is_back() {
    let (known, unknown) = (Signer::p256("known"), Signer::p256("unknown"));
    let provider = Provider::start(&[&known]).await;
    let issuers = issuers(&provider, Pace { unknown_key: Duration::ZERO, ..calm() });
    let log = Log::default();
    // Tasks of this test run on this thread.
    let _capturing = tracing::subscriber::set_default(log.clone());
    let ask = || async { drop(verify(&issuers, &token(&provider, &unknown)).await) };
    ask().await;
    assert_eq!(log.lines(), [] as [tracing::Level; 0]);
    provider.goes_down();
    for _ in 0..5 {
        ask().await;
    }
    assert_eq!(log.lines(), [tracing::Level::WARN]);
    // Something else is wrong now.
    provider.answers_discovery(Answer::Status("500 Internal Server Error", String::new()));
    for _ in 0..5 {
        ask().await;
    }
    assert_eq!(log.lines(), [tracing::Level::WARN; 2]);
    provider.comes_back(&[&known]);
    for _ in 0..5 {
        ask().await;
    }
    assert_eq!(log.lines(), [tracing::Level::WARN, tracing::Level::WARN, tracing::Level::INFO]);
    provider.publishes(&[]);
    for _ in 0..5 {
        ask().await;
    }
    assert_eq!(log.lines().last(), Some(&tracing::Level::WARN));
    assert_eq!(log.lines().len(), 4);
}

/// The levels of this crate's lines.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<tracing::Level>>>);

impl Log {
    fn lines(&self) -> Vec<tracing::Level> {
        self.0.lock().unwrap().clone()
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("prism_identity")
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        self.0.lock().unwrap().push(*event.metadata().level());
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn keys_that_were_never_fetched_make_the_issuer_unavailable_until_it_is_back() {
    let signer = Signer::p256("one");
    let provider = Provider::start(&[&signer]).await;
    provider.goes_down();
    let issuers = issuers(&provider, Pace { retry: Duration::from_millis(1), ..calm() });
    assert!(unavailable(&verify(&issuers, &token(&provider, &signer)).await, &provider));
    let asked = provider.asked();
    // Only the background goes on trying.
    assert!(unavailable(&verify(&issuers, &token(&provider, &signer)).await, &provider));
    assert_eq!(provider.asked(), asked);
    let (_stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(issuers.clone().keep_fresh(async { drop(stopped.await) }));
    eventually(|| async { provider.asked() >= asked + 3 }).await;
    assert!(unavailable(&verify(&issuers, &token(&provider, &signer)).await, &provider));
    provider.comes_back(&[&signer]);
    eventually(|| async { verify(&issuers, &token(&provider, &signer)).await.is_ok() }).await;
}

#[tokio::test]
async fn what_is_no_answer_of_the_issuer_is_not_taken() {
    let signer = Signer::p256("one");
    let provider = Provider::start(&[&signer]).await;
    let other = Provider::start(&[&signer]).await;
    let issuer = provider.issuer.as_str();
    let keys = format!("{issuer}/keys");
    let padding = " ".repeat(256 * 1024);
    let bodies = [
        discovery("https://id.example.org", &keys),
        discovery(&format!("{issuer}/"), &keys),
        discovery(issuer, "http://192.0.2.1/keys"),
        discovery(issuer, "/keys"),
        discovery(issuer, &format!("{issuer}/nothing")),
        json!({"issuer": issuer}).to_string(),
        json!({"jwks_uri": keys}).to_string(),
        json!({"issuer": [issuer], "jwks_uri": keys}).to_string(),
        format!("{{\"issuer\":{:?},{}", "https://id.example.org", &discovery(issuer, &keys)[1..]),
        format!("{}{padding}", discovery(issuer, &keys)),
        "<html></html>".to_owned(),
        String::new(),
    ];
    let mut answers: Vec<(Answer, bool)> = bodies.into_iter().map(|body| (Answer::Body(body), true)).collect();
    let elsewhere = format!("location: {}/.well-known/openid-configuration\r\n", other.issuer);
    answers.push((Answer::Status("302 Found", elsewhere), true));
    answers.push((Answer::Status("500 Internal Server Error", String::new()), true));
    answers.push((Answer::Endless, true));
    for body in [
        String::new(),
        "{}".to_owned(),
        format!("{}{padding}", jwks(&[&signer])),
        jwks(&[&signer; 65]),
        format!("{{\"keys\":[],{}", &jwks(&[&signer])[1..]),
    ] {
        answers.push((Answer::Body(body), false));
    }
    answers.push((Answer::Status("302 Found", format!("location: {}/keys\r\n", other.issuer)), false));
    answers.push((Answer::Status("204 No Content", String::new()), false));
    answers.push((Answer::Endless, false));
    for (number, (answer, of_discovery)) in answers.into_iter().enumerate() {
        provider.comes_back(&[&signer]);
        if of_discovery {
            provider.answers_discovery(answer);
        } else {
            provider.answers_keys(answer);
        }
        let issuers = issuers(&provider, calm());
        assert!(unavailable(&verify(&issuers, &token(&provider, &signer)).await, &provider), "answer {number}");
    }
    assert_eq!(other.asked(), 0);
}

#[tokio::test]
async fn answers_may_be_as_large_as_their_bound() {
    let signer = Signer::p256("one");
    let provider = Provider::start(&[&signer]).await;
    let padded = |text: String| Answer::Body(text.clone() + &" ".repeat(256 * 1024 - text.len()));
    provider.answers_keys(padded(jwks(&[&signer])));
    provider.answers_discovery(padded(discovery(&provider.issuer, &format!("{}/keys", provider.issuer))));
    assert!(verify(&issuers(&provider, calm()), &token(&provider, &signer)).await.is_ok());
}

#[tokio::test]
async fn an_issuer_that_does_not_answer_is_given_up_and_its_keys_stay() {
    let (known, unknown) = (Signer::p256("known"), Signer::p256("unknown"));
    let provider = Provider::start(&[&known]).await;
    let issuers = issuers(&provider, Pace { unknown_key: Duration::ZERO, timeout: Duration::from_secs(2), ..calm() });
    eventually(|| async { verify(&issuers, &token(&provider, &known)).await.is_ok() }).await;
    provider.answers_keys(Answer::Silence);
    assert!(invalid(&verify(&issuers, &token(&provider, &unknown)).await));
    assert!(verify(&issuers, &token(&provider, &known)).await.is_ok());
}

#[tokio::test]
async fn known_keys_do_not_wait_for_unknown_ones() {
    let (known, unknown) = (Signer::p256("known"), Signer::p256("unknown"));
    let provider = Provider::start(&[&known]).await;
    let issuers = issuers(&provider, calm());
    let (_stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(issuers.clone().keep_fresh(async { drop(stopped.await) }));
    eventually(|| async { provider.asked_for_keys() == 1 }).await;
    eventually(|| async { verify(&issuers, &token(&provider, &known)).await.is_ok() }).await;
    provider.holds_back();
    let waiting = token(&provider, &unknown);
    let storm = tokio::spawn({
        let issuers = issuers.clone();
        async move { verify(&issuers, &waiting).await }
    });
    let asked = provider.asked();
    eventually(|| async { provider.asked() > asked || storm.is_finished() }).await;
    assert!(verify(&issuers, &token(&provider, &known)).await.is_ok());
    assert!(!storm.is_finished());
    provider.goes_on();
    assert!(invalid(&storm.await.unwrap()));
}

#[tokio::test]
async fn a_caller_who_hangs_up_does_not_keep_the_keys_from_others() {
    let signer = Signer::p256("one");
    let provider = Provider::start(&[&signer]).await;
    let issuers = issuers(&provider, calm());
    let token = token(&provider, &signer);
    provider.holds_back();
    let first = tokio::spawn({
        let (issuers, token) = (issuers.clone(), token.clone());
        async move { verify(&issuers, &token).await }
    });
    eventually(|| async { provider.asked() == 1 }).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    provider.goes_on();
    // No other fetch is due within the hour: this is what the first one brought.
    assert!(verify(&issuers, &token).await.is_ok());
    assert_eq!(provider.asked_for_keys(), 1);
}

#[tokio::test]
async fn a_jump_of_the_clock_fetches_nothing_and_forgets_nothing() {
    let (known, unknown) = (Signer::p256("known"), Signer::p256("unknown"));
    let provider = Provider::start(&[&known]).await;
    let clock = Clock::manual(NOW);
    let issuers = Issuers::at_pace(vec![settings(&provider.issuer)], clock.clone(), calm()).unwrap();
    assert!(verify(&issuers, &token(&provider, &known)).await.is_ok());
    clock.advance(HOUR * 24 * 365 * 10);
    assert!(invalid(&verify(&issuers, &token(&provider, &known)).await));
    assert!(invalid(&verify(&issuers, &token(&provider, &unknown)).await));
    let mut later = claims(&provider.issuer);
    later["exp"] = (clock.now().0 / 1000 + 60).into();
    assert!(verify(&issuers, &known.token(&known.header(), &later)).await.is_ok());
    assert_eq!(provider.asked_for_keys(), 1);
}

#[tokio::test]
async fn an_issuer_over_tls_is_trusted_by_the_ca_that_is_set_and_no_other() {
    let signer = Signer::p256("one");
    let (authority, acceptor) = server_tls();
    let provider = Provider::start_over(&[&signer], Some(acceptor)).await;
    let with_ca = |pem: Option<String>| {
        let settings = IssuerSettings { ca_pem: pem.map(String::into_bytes), ..settings(&provider.issuer) };
        Issuers::at_pace(vec![settings], Clock::manual(NOW), calm())
    };
    let token = token(&provider, &signer);
    assert!(verify(&with_ca(Some(authority)).unwrap(), &token).await.is_ok());
    assert!(unavailable(&verify(&with_ca(Some(server_tls().0)).unwrap(), &token).await, &provider));
    // A machine may have no CA certificates at all: then this cannot even be set up.
    if let Ok(issuers) = with_ca(None) {
        assert!(unavailable(&verify(&issuers, &token).await, &provider));
    }
    let error = with_ca(Some("nothing".to_owned())).unwrap_err();
    assert!(error.message().contains("ca:") && error.message().contains(&provider.issuer), "{error}");
}

/// A CA in PEM, and TLS for `localhost` with a certificate of it.
fn server_tls() -> (String, TlsAcceptor) {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = params.signed_by(&key, &authority).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
        .unwrap();
    (authority.pem(), TlsAcceptor::from(Arc::new(config)))
}
