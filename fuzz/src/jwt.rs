//! Access tokens: from the bytes a caller sends to what a token proves, against keys that do not change.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prism_core::{Clock, UnixMillis};
use prism_identity::{Algorithm, IssuerSettings, Issuers, KeySet, Plane, ProvenToken, RoleMapping, TokenRefused};
use serde_json::{Value, json};

/// The issuer of the tokens.
pub const ISSUER: &str = "https://id.example.org";
/// 1 January 2026, in seconds.
pub const NOW: i64 = 1_767_225_600;
/// The keys of RS256 and ES256. Nobody has the private ones: the example `seeds` forgot them when it had signed its tokens.
const PUBLISHED: &str = include_str!("../fixtures/jwks.json");
/// What it signed, a token per line.
const SIGNED: &str = include_str!("../fixtures/tokens.txt");

static ISSUERS: LazyLock<Issuers> = LazyLock::new(|| issuers(&jwks()));
static KNOWN: LazyLock<HashSet<&str>> = LazyLock::new(|| SIGNED.lines().filter_map(message).collect());

/// First byte modulo 4: 0 a token as text; 1 the claims, 2 the header and the claims, separated by a line feed, that a good
/// signature is put behind; 3 a JWKS.
pub fn run(input: &[u8]) {
    let Some((way, rest)) = input.split_first() else { return };
    match way % 4 {
        0 => presented(&String::from_utf8_lossy(rest)),
        1 => signed(br#"{"alg":"EdDSA","kid":"ed25519"}"#, rest),
        2 => {
            let at = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            signed(&rest[..at], rest.get(at + 1..).unwrap_or_default());
        }
        _ => published(rest),
    }
}

/// Only what was signed is believed, and by one plane only.
fn presented(token: &str) {
    for plane in [Plane::Admin, Plane::Data] {
        if verify(&ISSUERS, plane, token).is_ok() {
            assert!(message(token).is_some_and(|message| KNOWN.contains(message)), "a forged token: {token}");
        }
    }
}

fn signed(header: &[u8], claims: &[u8]) {
    let token = sign(header, claims);
    let outcomes = [Plane::Admin, Plane::Data].map(|plane| verify(&ISSUERS, plane, &token));
    assert!(outcomes.iter().any(Result::is_err), "a token of both planes");
    let Some(proven) = outcomes.into_iter().find_map(Result::ok) else { return };
    let claims: Value = serde_json::from_slice(claims).expect("claims are JSON");
    assert_eq!(claims["iss"], ISSUER);
    assert!(claims["exp"].as_f64().expect("exp is a number") > 1_767_225_569.0);
    assert!(claims.get("nonce").is_none() && claims.get("at_hash").is_none());
    assert_eq!(proven.actor, claims["sub"].as_str().expect("sub is a string"));
    let header: Value = serde_json::from_slice(header).expect("the header is JSON");
    assert_eq!(header["alg"], "EdDSA");
    assert!(["jwk", "jku", "x5u", "crit"].iter().all(|name| header.get(*name).is_none()));
}

/// Keys are read, and used, without a crash, whatever they are.
fn published(document: &[u8]) {
    if let Ok(keys) = KeySet::parse(document) {
        assert!(keys.len() <= 64);
        let issuers = Issuers::with_keys(vec![(settings(), keys)], clock()).expect("the settings are good");
        for token in SIGNED.lines() {
            let _ = verify(&issuers, Plane::Admin, token);
        }
    }
}

fn verify(issuers: &Issuers, plane: Plane, token: &str) -> Result<ProvenToken, TokenRefused> {
    let mut verifying = pin!(issuers.verify(plane, token));
    let Poll::Ready(outcome) = verifying.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("keys that are given are fetched");
    };
    match &outcome {
        Ok(proven) => {
            assert!(proven.expires_at > clock().now());
            assert!(!proven.actor.is_empty() && proven.credential_id.len() <= 768);
            assert!((1..=257).contains(&proven.subjects.len()));
            assert!(proven.subjects.iter().all(|subject| !subject.as_str().contains(char::is_control)));
            assert!(plane == Plane::Admin || proven.roles.is_empty());
        }
        Err(TokenRefused::Invalid(why)) => assert!(why.len() < 4096 && !why.contains(char::is_control)),
        Err(TokenRefused::Unavailable(_)) => panic!("keys that are given are not there"),
    }
    outcome
}

/// The part that is signed.
fn message(token: &str) -> Option<&str> {
    token.rsplit_once('.').map(|(message, _)| message)
}

/// A token with this header and these claims, under the key `ed25519`, which everybody can make.
pub fn sign(header: &[u8], claims: &[u8]) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(key().sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn key() -> &'static Ed25519KeyPair {
    static KEY: LazyLock<Ed25519KeyPair> =
        LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed of 32 bytes"));
    &KEY
}

/// The published keys and the one that everybody can make.
pub fn jwks() -> String {
    let mut jwks: Value = serde_json::from_str(PUBLISHED).expect("the fixture is JSON");
    let x = URL_SAFE_NO_PAD.encode(key().public_key().as_ref());
    if let Some(keys) = jwks["keys"].as_array_mut() {
        keys.push(json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed25519", "x": x}));
    }
    jwks.to_string()
}

fn issuers(jwks: &str) -> Issuers {
    let keys = KeySet::parse(jwks.as_bytes()).expect("the fixture is a JWKS");
    Issuers::with_keys(vec![(settings(), keys)], clock()).expect("the settings are good")
}

fn clock() -> Clock {
    Clock::manual(UnixMillis(NOW * 1000))
}

fn settings() -> IssuerSettings {
    let mapping = |claim: &str, value: &str| RoleMapping {
        claim: claim.to_owned(),
        value: value.to_owned(),
        role: "viewer".to_owned(),
        namespace: None,
    };
    IssuerSettings {
        issuer: ISSUER.to_owned(),
        admin_audience: Some("prism-admin".to_owned()),
        admin_scope: "prism.admin".to_owned(),
        data_audience: Some("prism-data".to_owned()),
        user_claim: "sub".to_owned(),
        groups_claim: "groups".to_owned(),
        prefix: String::new(),
        role_map: vec![mapping("groups", "ops"), mapping("department", "it")],
        ca_pem: None,
        algorithms: Algorithm::ALL.to_vec(),
    }
}
