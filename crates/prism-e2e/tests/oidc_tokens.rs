//! Access tokens that prove nothing: each is refused, all in the same words, and none of them is worth more work than it has
//! to be.

use std::collections::BTreeSet;
use std::time::Instant;

use prism_e2e::issuer::{Issuer, Keys, encode, hs256, message, now};
use prism_e2e::oidc::{ADMIN, DATA, OTHER, Provider};
use prism_e2e::{Admin, Failure, Headers, Options, Prism};
use serde_json::{Value, json};
use tonic::Code;

/// A server that trusts two issuers, both of which make `platform` admins.
struct World {
    issuer: Issuer,
    other: Issuer,
    server: Prism,
    admin: Admin,
}

impl World {
    async fn new() -> Self {
        let (issuer, other) = (Issuer::start("one"), Issuer::start("two"));
        let server = Prism::start(Options::new().config(&settings(&[&issuer.url, &other.url]))).await;
        let admin = server.admin();
        Self { issuer, other, server, admin }
    }

    fn claims(&self) -> Value {
        self.issuer.claims(ADMIN, "alice", &["platform"])
    }

    /// The claims of a good token, with some of them different; null takes one away.
    fn with(&self, changes: &Value) -> Value {
        let mut claims = self.claims();
        let object = claims.as_object_mut().unwrap();
        for (name, value) in changes.as_object().unwrap() {
            object.insert(name.clone(), value.clone());
            object.retain(|_, value| !value.is_null());
        }
        claims
    }

    /// Signed by the issuer as it should be.
    fn signed(&self, changes: &Value) -> String {
        self.issuer.keys.sign("ES256", &self.with(changes))
    }

    async fn refusal(&self, token: &str) -> Option<Failure> {
        self.admin.with_key(token).who_am_i().await.err()
    }
}

fn settings(issuers: &[&str]) -> String {
    let of = |(number, issuer): (usize, &&str)| {
        // Two must not name the same person.
        let prefix = if issuers.len() > 1 { format!("i{number}:") } else { String::new() };
        format!(
            "[[oidc]]\nissuer = {issuer:?}\nprefix = {prefix:?}\naudience = {ADMIN:?}\ndata_audience = {DATA:?}\n\
             role_map = {{ platform = \"admin\" }}\n"
        )
    };
    let issuers: Vec<String> = issuers.iter().enumerate().map(of).collect();
    format!("[limits]\nauth_failures = 10000\n{}", issuers.concat())
}

/// Name and token of each case.
type Cases = Vec<(String, String)>;

fn claims_that_do_not_fit(world: &World) -> Cases {
    let changes = [
        json!({"aud": OTHER}),
        json!({"aud": DATA}),
        json!({"aud": [ADMIN, DATA]}),
        json!({"aud": [DATA, ADMIN, OTHER]}),
        json!({"aud": []}),
        json!({"aud": null}),
        json!({"aud": 7}),
        json!({"aud": [ADMIN, 7]}),
        json!({"aud": "urn:prism:admi"}),
        json!({"aud": "urn:prism:admin2"}),
        json!({"aud": "URN:prism:admin"}),
        json!({"aud": {"urn:prism:admin": true}}),
        json!({"scope": null}),
        json!({"scope": ""}),
        json!({"scope": "prism.admin2 xprism.admin"}),
        json!({"scope": "prism,admin"}),
        json!({"scope": ["prism.admin"]}),
        json!({"scope": null, "scp": {"prism.admin": 1}}),
        json!({"iss": null}),
        json!({"iss": 5}),
        json!({"iss": format!("{}/", world.issuer.url)}),
        json!({"iss": world.issuer.url.to_uppercase()}),
        json!({"iss": format!("{}#", world.issuer.url)}),
        json!({"exp": now() - 31}),
        json!({"exp": 0}),
        json!({"exp": -1}),
        json!({"exp": null}),
        json!({"exp": "4102444800"}),
        json!({"exp": 1e300}),
        json!({"exp": [now() + 60]}),
        json!({"nbf": now() + 120}),
        json!({"nbf": "0"}),
        json!({"nbf": -5}),
        json!({"iat": now() + 120}),
        json!({"iat": true}),
        json!({"sub": null}),
        json!({"sub": ""}),
        json!({"sub": 5}),
        json!({"sub": ["alice"]}),
        json!({"sub": "a\u{0}b"}),
        json!({"sub": "a\nb"}),
        json!({"sub": "x".repeat(300)}),
        // Names that Prism gives itself in the audit log.
        // What only ID tokens say.
        json!({"nonce": "n"}),
        json!({"at_hash": "h"}),
    ];
    changes.iter().map(|change| (format!("claims {change}"), world.signed(change))).collect()
}

fn headers_that_are_odd(world: &World) -> Cases {
    let keys = &world.issuer.keys;
    let kid = keys.kid("ES256");
    let jwk = keys.jwks()["keys"][1].clone();
    let headers = [
        json!({"alg": "es256", "kid": kid}),
        json!({"alg": "ES256K", "kid": kid}),
        json!({"alg": "ES384", "kid": kid}),
        json!({"alg": ["ES256"], "kid": kid}),
        json!({"alg": null, "kid": kid}),
        json!({"kid": kid}),
        json!({"alg": "ES256", "kid": 5}),
        json!({"alg": "ES256", "kid": ""}),
        json!({"alg": "ES256", "kid": "k".repeat(600)}),
        json!({"alg": "ES256", "kid": "../../etc/passwd"}),
        json!({"alg": "ES256", "kid": "x' OR '1'='1"}),
        json!({"alg": "ES256", "kid": keys.kid("RS256")}),
        json!({"alg": "RS256", "kid": kid}),
        json!({"alg": "EdDSA", "kid": keys.kid("EdDSA")}),
        json!({"alg": "ES256", "kid": kid, "typ": "id_token+jwt"}),
        json!({"alg": "ES256", "kid": kid, "typ": "logout+jwt"}),
        json!({"alg": "ES256", "kid": kid, "typ": 1}),
        json!({"alg": "ES256", "kid": kid, "crit": ["exp"]}),
        json!({"alg": "ES256", "kid": kid, "b64": false}),
        json!({"alg": "ES256", "kid": kid, "zip": "DEF"}),
        json!({"alg": "ES256", "kid": kid, "enc": "A128GCM"}),
        json!({"alg": "ES256", "jwk": jwk}),
        json!({"alg": "ES256", "kid": kid, "jwk": jwk}),
        json!({"alg": "ES256", "kid": kid, "jku": format!("{}/jwks", world.other.url)}),
        json!({"alg": "ES256", "kid": kid, "x5u": "http://127.0.0.1:1/x"}),
        json!([]),
        json!("ES256"),
    ];
    let claims = world.claims();
    headers.iter().map(|header| (format!("header {header}"), keys.sign_with("ES256", header, &claims))).collect()
}

fn signatures_that_are_none(world: &World) -> Cases {
    let (keys, claims) = (&world.issuer.keys, world.claims());
    let mut cases = Cases::new();
    let mut case = |name: &str, token: String| cases.push((name.to_owned(), token));
    for none in ["none", "None", "NONE", "nOnE", ""] {
        let header = json!({"alg": none, "typ": "at+jwt"});
        case(&format!("alg {none:?}, no signature"), format!("{}.", message(&header, &claims)));
        case(&format!("alg {none:?}, a signature"), keys.sign_with("ES256", &header, &claims));
    }
    // The public key as the secret of an HMAC, in the forms in which it is lying about.
    let der = keys.rsa_public_der();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", base64(&der));
    let n = keys.jwks()["keys"][0]["n"].as_str().unwrap().to_owned();
    for algorithm in ["HS256", "RS256"] {
        let header = json!({"alg": algorithm, "kid": keys.kid("RS256"), "typ": "at+jwt"});
        for (form, secret) in [("DER", der.as_slice()), ("PEM", pem.as_bytes()), ("modulus", n.as_bytes()), ("no", b"")]
        {
            case(&format!("{algorithm} by HMAC with the {form} of the key"), hs256(&header, &claims, secret));
        }
    }
    // Another issuer's key, under its own name and under this one's.
    for algorithm in ["RS256", "ES256", "EdDSA"] {
        case("another issuer's key, its id", world.other.keys.sign(algorithm, &claims));
        let header = json!({"alg": algorithm, "kid": keys.kid(algorithm), "typ": "at+jwt"});
        case("another issuer's key, this one's id", world.other.keys.sign_with(algorithm, &header, &claims));
        case("nobody's key", Keys::generate("one").sign(algorithm, &claims));
        case("nobody's key without id", Keys::generate("x").sign_with(algorithm, &json!({"alg": algorithm}), &claims));
    }
    // Each signature is another; one in fifteen has nothing that the two forms of base64 write differently.
    let different = |token: &String| token.rsplit('.').next().is_some_and(|signature| signature.contains(['-', '_']));
    let good = std::iter::repeat_with(|| keys.sign("ES256", &claims)).find(different).unwrap();
    let (body, signature) = good.rsplit_once('.').unwrap();
    case("a signature less", format!("{body}."));
    case("two segments", body.to_owned());
    case("a cut signature", good[..good.len() - 4].to_owned());
    case("a signature of zeros", format!("{body}.{}", encode(&[0; 64])));
    case("an empty segment more", format!("{good}."));
    case("a padded signature", format!("{good}=="));
    case("a signature of standard base64", format!("{body}.{}", signature.replace(['-', '_'], "+")));
    let header = body.split('.').next().unwrap();
    let altered = world.with(&json!({"sub": "mallory"}));
    case("other claims", format!("{header}.{}.{signature}", encode(altered.to_string().as_bytes())));
    cases
}

fn texts_that_are_no_tokens(world: &World) -> Cases {
    let header = encode(json!({"alg": "ES256", "kid": world.issuer.keys.kid("ES256")}).to_string().as_bytes());
    let nested = format!("{}{}", "[".repeat(2000), "]".repeat(2000));
    let twice = format!("{{\"sub\":\"alice\",\"sub\":\"mallory\",\"iss\":{:?}}}", world.issuer.url);
    let texts = [
        ".".to_owned(),
        "..".to_owned(),
        "a.b.c".to_owned(),
        "eyJ".to_owned(),
        "eyJ.eyJ.eyJ".to_owned(),
        ".".repeat(3000),
        format!("{header}..x"),
        format!("{header}.{}.x", encode(b"null")),
        format!("{header}.{}.x", encode(b"[]")),
        format!("{header}.{}.x", encode(b"{}{}")),
        format!("{header}.{}.x", encode(twice.as_bytes())),
        format!("{header}.{}.x", encode(nested.as_bytes())),
        format!("{header}.{}.x", encode(b"{\"sub\":\"\xff\"}")),
        format!("{}.{header}.x", encode(nested.as_bytes())),
        format!("{header}.{header}.{header}.{header}.{header}"),
    ];
    texts.into_iter().map(|text| (format!("text {}", text.chars().take(60).collect::<String>()), text)).collect()
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[tokio::test]
async fn what_is_not_proven_is_refused_and_always_in_the_same_words() {
    let world = World::new().await;
    for algorithm in ["RS256", "ES256", "EdDSA"] {
        let good = world.issuer.keys.sign(algorithm, &world.claims());
        assert_eq!(world.admin.with_key(&good).who_am_i().await.unwrap().grants[0].role, "admin", "{algorithm}");
    }
    let cases = [
        claims_that_do_not_fit(&world),
        headers_that_are_odd(&world),
        signatures_that_are_none(&world),
        texts_that_are_no_tokens(&world),
    ]
    .concat();
    let (mut faults, mut answers) = (Vec::new(), BTreeSet::new());
    for (name, token) in &cases {
        match world.refusal(token).await {
            None => faults.push(format!("{name}: taken")),
            Some(refused) => {
                answers.insert((refused.message.clone(), format!("{:?}", refused.metadata)));
                if (refused.code, refused.reason.as_str()) != (Code::Unauthenticated, "CREDENTIAL_INVALID") {
                    faults.push(format!("{name}: {refused:?}"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), cases.len(), faults.join("\n"));
    assert_eq!(answers.len(), 1, "the answers tell them apart: {answers:?}");
    eprintln!("{} tokens refused", cases.len());

    // Nothing of a token is in the log of the server or in the audit log.
    let kept = format!("{}\n{:?}", world.server.log(), world.admin.whole_log().await);
    for (name, token) in cases.iter().filter(|(_, token)| token.len() > 100) {
        let signature = token.rsplit('.').find(|part| part.len() > 20).unwrap_or(token);
        assert!(!kept.contains(signature), "{name} was kept");
    }
}

/// Without a prefix a token could name an actor that Prism gives itself.
#[tokio::test]
async fn names_of_prism_itself_are_refused() {
    let issuer = Issuer::start("one");
    let server = Prism::start(Options::new().config(&settings(&[&issuer.url]))).await;
    let admin = server.admin();
    let mut answers = BTreeSet::new();
    for name in ["anonymous", "prism", "prism-dev", "operator on the box", "key:0123456789abcdef"] {
        let refused = admin.with_key(&issuer.token(ADMIN, name, &["platform"])).who_am_i().await.unwrap_err();
        refused.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
        answers.insert(refused.message);
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    admin.with_key(&issuer.token(ADMIN, "alice", &["platform"])).who_am_i().await.unwrap();
}

#[tokio::test]
async fn what_is_unusual_but_proven_is_taken() {
    let world = World::new().await;
    let keys = &world.issuer.keys;
    let good = [
        world.signed(&json!({"aud": ["else", ADMIN]})),
        world.signed(&json!({"scope": "openid prism.admin profile"})),
        world.signed(&json!({"scope": null, "scp": ["prism.admin"]})),
        // Clocks may be 30 seconds apart.
        world.signed(&json!({"exp": now() - 10})),
        world.signed(&json!({"nbf": now() + 10, "iat": now() + 10})),
        world.signed(&json!({"exp": (now() + 60) as f64 + 0.5, "nbf": 0})),
        keys.sign_with("ES256", &json!({"alg": "ES256", "kid": keys.kid("ES256"), "typ": "JWT"}), &world.claims()),
        keys.sign_with("ES256", &json!({"alg": "ES256"}), &world.claims()),
    ];
    for token in &good {
        assert_eq!(world.admin.with_key(token).who_am_i().await.unwrap().actor, "i0:alice");
    }
    // The same token in the other header.
    let caller = world.admin.with_headers(Headers::admin_token(&good[0]));
    assert_eq!(caller.who_am_i().await.unwrap().actor, "i0:alice");
    // A token with many groups is bounded, not refused.
    let many: Vec<String> = (0..1000).map(|number| format!("g{number}")).collect();
    let token = world.signed(&json!({"groups": many}));
    let who = world.admin.with_key(&token).who_am_i().await.unwrap();
    assert_eq!(who.subjects.len(), 257);
    // Up to 16 KiB; what is longer is refused with that bound, and what HTTP does not carry is not looked at.
    let of_length = |length: usize| world.signed(&json!({"padding": "x".repeat(length)}));
    let longest = (11_000..13_000).map(of_length).take_while(|token| token.len() <= 16 * 1024).last().unwrap();
    assert!(longest.len() > 16 * 1024 - 8, "{}", longest.len());
    assert!(world.refusal(&longest).await.is_none());
    let beyond = of_length(12_500);
    assert!(beyond.len() > 16 * 1024 && beyond.len() < 20_000, "{}", beyond.len());
    for caller in [world.admin.with_key(&beyond), world.admin.with_headers(Headers::admin_token(&beyond))] {
        let refused = caller.who_am_i().await.unwrap_err();
        refused.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
        assert!(refused.message.contains("16384 bytes"), "{refused:?}");
    }
    assert_ne!(world.refusal(&of_length(30_000)).await.unwrap().code, Code::Ok);
}

#[tokio::test]
async fn unknown_keys_cause_few_fetches() {
    let world = World::new().await;
    world.admin.with_key(&world.signed(&json!({}))).who_am_i().await.unwrap();
    let (before, since) = (world.issuer.fetches(), Instant::now());
    for round in 0..40 {
        let header = json!({"alg": "ES256", "kid": format!("unknown-{round}")});
        let token = world.issuer.keys.sign_with("ES256", &header, &world.claims());
        world.refusal(&token).await.unwrap().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    }
    let callers = (0..40).map(|round| {
        let header = json!({"alg": "RS256", "kid": format!("unknown-{round}")});
        let caller = world.admin.with_key(&world.issuer.keys.sign_with("RS256", &header, &world.claims()));
        tokio::spawn(async move { caller.who_am_i().await.map(drop) })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap().unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    }
    let (fetches, allowed) = (world.issuer.fetches() - before, 1 + since.elapsed().as_secs() / 10);
    assert!((1..=allowed).contains(&u64::from(fetches)), "{fetches} fetches in {:?}", since.elapsed());
    // Tokens of unknown issuers cause none at all, wherever they point.
    let nobody = Issuer::start("nobody");
    world.refusal(&nobody.token(ADMIN, "alice", &["platform"])).await.unwrap();
    assert_eq!(nobody.fetches(), 0);
}

#[tokio::test]
async fn keys_that_are_withdrawn_or_published_in_full_are_of_no_use() {
    let world = World::new().await;
    let good = world.signed(&json!({}));
    assert_eq!(world.refusal(&good).await.map(|refused| refused.reason), None);
    // The next set has the same id for another key, and a key whose private part everybody can read.
    let stranger = Keys::generate("one");
    let mut jwks = stranger.jwks();
    jwks["keys"][2]["d"] = encode(&[7; 32]).into();
    world.issuer.publish(jwks);
    let header = json!({"alg": "ES256", "kid": "makes it look"});
    world.refusal(&world.issuer.keys.sign_with("ES256", &header, &world.claims())).await.unwrap();
    world.refusal(&good).await.unwrap().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    assert!(world.refusal(&stranger.sign("ES256", &world.claims())).await.is_none());
    world.refusal(&stranger.sign("EdDSA", &world.claims())).await.unwrap();
}

#[tokio::test]
async fn tokens_of_the_provider_that_are_for_something_else_are_refused() {
    let provider = Provider::start();
    let server = Prism::start(Options::new().config(&settings(&[provider.issuer()]))).await;
    let admin = server.admin();
    let good = provider.login("alice").await;
    assert_eq!(admin.with_key(&good.access).who_am_i().await.unwrap().actor, "alice");
    assert!(!good.id.is_empty() && !good.refresh.is_empty());
    let elsewhere = provider.login_for("alice", OTHER, "openid prism.admin").await.access;
    let data = provider.login_for("alice", DATA, "openid prism.data").await.access;
    let unscoped = provider.login_for("alice", ADMIN, "openid").await.access;
    for (name, token) in [
        ("the ID token", &good.id),
        ("the refresh token", &good.refresh),
        ("a token for another service", &elsewhere),
        ("a token for the data plane", &data),
        ("a token without the scope", &unscoped),
    ] {
        let refused = admin.with_key(token).who_am_i().await.expect_err(name);
        refused.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    }
}
