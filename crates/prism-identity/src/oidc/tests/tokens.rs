//! Good tokens, and every way in which one can be bad that we know of.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::oidc::settings::tests::settings;

fn issuers_of(settings: IssuerSettings) -> Issuers {
    Issuers::with_keys(vec![(settings, all_keys())], Clock::manual(NOW)).unwrap()
}

fn issuers() -> Issuers {
    issuers_of(settings(ISSUER))
}

/// Nothing is ever fetched here, so it is done at once.
fn verify(issuers: &Issuers, plane: Plane, token: &str) -> Result<ProvenToken, TokenRefused> {
    let mut verifying = std::pin::pin!(issuers.verify(plane, token));
    match verifying.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(outcome) => outcome,
        std::task::Poll::Pending => panic!("it waits for something"),
    }
}

fn admin(token: &str) -> Result<ProvenToken, TokenRefused> {
    verify(&issuers(), Plane::Admin, token)
}

fn why(refused: Result<ProvenToken, TokenRefused>) -> String {
    match refused {
        Err(TokenRefused::Invalid(why)) => why,
        other => panic!("not refused as invalid: {other:?}"),
    }
}

/// A token with one claim changed, or removed.
fn token_with(claim: &str, value: Option<Value>) -> String {
    let signer = &signers().p256;
    let mut claims = claims(ISSUER);
    match value {
        Some(value) => claims[claim] = value,
        None => drop(claims.as_object_mut().unwrap().remove(claim)),
    }
    signer.token(&signer.header(), &claims)
}

fn subjects(proven: &ProvenToken) -> Vec<&str> {
    proven.subjects.iter().map(Subject::as_str).collect()
}

#[test]
fn a_good_token_of_each_algorithm_proves_who_presents_it() {
    let signers = signers();
    for signer in [&signers.rsa, &signers.p256, &signers.ed25519] {
        let proven = admin(&signer.token(&signer.header(), &claims(ISSUER))).unwrap();
        assert_eq!(proven.actor, "alice");
        assert_eq!(subjects(&proven), ["user:alice", "group:ops", "group:platform"]);
        assert_eq!(proven.credential_id, "https://id.example.org#alice");
        assert_eq!(proven.expires_at, UnixMillis((NOW_SECONDS + 330) * 1000));
        assert!(proven.roles.is_empty());
    }
}

#[test]
fn good_tokens_may_look_different() {
    let signer = &signers().p256;
    for typ in [
        None,
        Some("JWT"),
        Some("jwt"),
        Some("at+jwt"),
        Some("AT+JWT"),
        Some("application/at+jwt"),
        Some("application/JWT"),
    ] {
        let mut header = signer.header();
        match typ {
            Some(typ) => header["typ"] = typ.into(),
            None => drop(header.as_object_mut().unwrap().remove("typ")),
        }
        header["x5t"] = "unknown but harmless".into();
        assert!(admin(&signer.token(&header, &claims(ISSUER))).is_ok(), "{typ:?}");
    }
    for (claim, value) in [
        ("aud", Some(json!(["other", "prism-admin"]))),
        ("scope", Some(json!("prism.admin"))),
        ("exp", Some(json!(NOW_SECONDS - 29))),
        ("exp", Some(json!(NOW_SECONDS as f64 + 0.5))),
        ("nbf", Some(json!(NOW_SECONDS + 30))),
        ("nbf", None),
        ("iat", None),
        ("groups", None),
        ("groups", Some(json!("platform"))),
        ("jti", Some(json!("x"))),
        ("sub", Some(json!("зоя@пример"))),
    ] {
        assert!(admin(&token_with(claim, value.clone())).is_ok(), "{claim} {value:?}");
    }
    for scp in [json!("prism.admin openid"), json!(["openid", "prism.admin"])] {
        let mut claims = claims(ISSUER);
        claims.as_object_mut().unwrap().remove("scope");
        claims["scp"] = scp;
        assert!(admin(&signer.token(&signer.header(), &claims)).is_ok());
    }
    let mut without_kid = signer.header();
    without_kid.as_object_mut().unwrap().remove("kid");
    assert!(admin(&signer.token(&without_kid, &claims(ISSUER))).is_ok());
}

#[test]
fn tokens_of_the_wrong_shape_are_refused() {
    let signer = &signers().p256;
    let good = signer.token(&signer.header(), &claims(ISSUER));
    let parts: Vec<&str> = good.split('.').collect();
    let (header, body, signature) = (parts[0], parts[1], parts[2]);
    let huge = format!("{header}.{}.{signature}", "A".repeat(20_000));
    for bad in [
        "",
        ".",
        "..",
        "...",
        header,
        &format!("{header}.{body}"),
        &format!("{header}.{body}."),
        &format!("{header}..{signature}"),
        &format!(".{body}.{signature}"),
        &format!("{good}.{signature}"),
        &format!("{header}.{body}.x.y.{signature}"),
        &format!(" {good}"),
        &format!("{good} "),
        &format!("{good}\n"),
        &format!("Bearer {good}"),
        &format!("{good}="),
        &format!("{header}=.{body}.{signature}"),
        &format!("{header}.{body}.{signature}%"),
        &format!("{header}\0.{body}.{signature}"),
        &format!("{header}.{body}\u{200b}.{signature}"),
        &huge,
        &"a".repeat(1 << 20),
        &".".repeat(1 << 20),
    ] {
        why(admin(bad));
    }
    assert!(admin(&good).is_ok());
}

#[test]
fn the_token_does_not_choose_how_it_is_checked() {
    let signers = signers();
    let (rsa, p256, ed25519) = (&signers.rsa, &signers.p256, &signers.ed25519);
    let claims = claims(ISSUER);
    let unsigned = |alg: &str| {
        format!(
            "{}.{}.",
            base64url(json!({"alg": alg}).to_string().as_bytes()),
            base64url(claims.to_string().as_bytes())
        )
    };
    for alg in ["none", "None", "NONE", ""] {
        why(admin(&unsigned(alg)));
        why(admin(&format!("{}AA", unsigned(alg))));
    }
    // The public key, in any form an issuer publishes it, as the secret of an HMAC.
    let public = [rsa.jwk().to_string(), rsa.jwk()["n"].as_str().unwrap().to_owned(), provider::jwks(&[rsa])];
    for secret in &public {
        let header = json!({"alg": "HS256", "typ": "JWT", "kid": "rsa"}).to_string();
        let message = format!("{}.{}", base64url(header.as_bytes()), base64url(claims.to_string().as_bytes()));
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
        let tag = aws_lc_rs::hmac::sign(&key, message.as_bytes());
        why(admin(&format!("{message}.{}", base64url(tag.as_ref()))));
    }
    for (signer, alg, kid) in [
        (&signers.stranger, "RS256", "rsa"),
        (&Signer::p256("x"), "ES256", "p256"),
        (&Signer::ed25519("x"), "EdDSA", "ed25519"),
        (&Signer::p384("x"), "ES256", "p256"),
        (&Signer::p384("x"), "ES384", "p256"),
        (rsa, "ES256", "rsa"),
        (rsa, "RS384", "rsa"),
        (rsa, "RS512", "rsa"),
        (rsa, "PS256", "rsa"),
        (rsa, "rs256", "rsa"),
        (rsa, "RS256", "p256"),
        (rsa, "RS256", "unknown"),
        (p256, "RS256", "p256"),
        (p256, "EdDSA", "p256"),
        (p256, "EdDSA", "ed25519"),
        (ed25519, "ES256", "ed25519"),
        (ed25519, "Ed25519", "ed25519"),
    ] {
        why(admin(&signer.token(&json!({"alg": alg, "kid": kid}), &claims)));
    }
}

#[test]
fn keys_and_instructions_in_the_header_are_refused() {
    let stranger = Signer::p256("stranger");
    let signer = &signers().p256;
    for (name, value) in [
        ("jwk", stranger.jwk()),
        ("jku", json!("https://id.example.org/keys")),
        ("x5u", json!("https://id.example.org/cert")),
        ("x5c", json!(["MIIB"])),
        ("crit", json!(["exp"])),
        ("crit", json!([])),
        ("b64", json!(false)),
        ("zip", json!("DEF")),
        ("enc", json!("A128GCM")),
        ("typ", json!("JWS")),
        ("typ", json!("dpop+jwt")),
        ("typ", json!("logout+jwt")),
        ("typ", json!("id+jwt")),
        ("typ", json!("")),
        ("typ", json!(null)),
        ("typ", json!(["JWT"])),
        ("kid", json!(7)),
        ("kid", json!(null)),
        ("kid", json!("")),
        ("kid", json!("x".repeat(600))),
        ("kid", json!("../../p256")),
        ("alg", json!(null)),
        ("alg", json!(["ES256"])),
    ] {
        let mut header = signer.header();
        header[name] = value.clone();
        why(admin(&signer.token(&header, &claims(ISSUER))));
        // Signed by whoever the header brings along.
        why(admin(&stranger.token(&header, &claims(ISSUER))));
    }
    why(admin(&signer.token(&json!({"kid": "p256"}), &claims(ISSUER))));
}

#[test]
fn signatures_that_are_cut_stretched_or_in_another_form_are_refused() {
    let signers = signers();
    for signer in [&signers.rsa, &signers.p256, &signers.ed25519] {
        let good = signer.token(&signer.header(), &claims(ISSUER));
        let (message, signature) = good.rsplit_once('.').unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 1;
        let half = bytes.len() / 2;
        let swapped = [&bytes[half..], &bytes[..half]].concat();
        for bad in [
            &bytes[..bytes.len() - 1],
            &bytes[..half],
            &bytes[..1],
            &[&bytes[..], &[0]].concat(),
            &flipped,
            &swapped,
            &vec![0; bytes.len()],
        ] {
            why(admin(&format!("{message}.{}", base64url(bad))));
        }
        let other = signer.token(&signer.header(), &json!({"iss": ISSUER}));
        why(admin(&format!("{message}.{}", other.rsplit_once('.').unwrap().1)));
    }
    // ECDSA in DER, as X.509 has it.
    let p256 = &signers.p256;
    let good = p256.token(&p256.header(), &claims(ISSUER));
    let (message, signature) = good.rsplit_once('.').unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let integer = |half: &[u8]| [&[2, 33, 0][..], half].concat();
    let der = [&[0x30, 70][..], &integer(&bytes[..32]), &integer(&bytes[32..])].concat();
    why(admin(&format!("{message}.{}", base64url(&der))));
}

#[test]
fn claims_that_are_missing_or_wrong_are_refused() {
    let far = 1_000_000_000_000_000_i64;
    for (claim, value) in [
        ("iss", None),
        ("iss", Some(json!("https://id.example.org/"))),
        ("iss", Some(json!("https://ID.example.org"))),
        ("iss", Some(json!("https://id.example.org\0"))),
        ("iss", Some(json!("https://id.ехample.org"))),
        ("iss", Some(json!(["https://id.example.org"]))),
        ("iss", Some(json!(null))),
        ("aud", None),
        ("aud", Some(json!(null))),
        ("aud", Some(json!(""))),
        ("aud", Some(json!([]))),
        ("aud", Some(json!("other"))),
        ("aud", Some(json!("Prism-Admin"))),
        ("aud", Some(json!("prism-admin "))),
        ("aud", Some(json!("prism-admin,other"))),
        ("aud", Some(json!("prism-admin other"))),
        ("aud", Some(json!("prism-аdmin"))),
        ("aud", Some(json!({"prism-admin": true}))),
        ("aud", Some(json!(["prism-admin", 7]))),
        ("aud", Some(json!([["prism-admin"]]))),
        ("aud", Some(json!("prism-data"))),
        ("aud", Some(json!(["prism-admin", "prism-data"]))),
        ("aud", Some(json!(["prism-data", "x", "prism-admin"]))),
        ("sub", None),
        ("sub", Some(json!(""))),
        ("sub", Some(json!(7))),
        ("sub", Some(json!(["alice"]))),
        ("sub", Some(json!("al\nice"))),
        ("sub", Some(json!("al\0ice"))),
        ("sub", Some(json!(" alice"))),
        ("sub", Some(json!("x".repeat(256)))),
        ("exp", None),
        ("exp", Some(json!(null))),
        ("exp", Some(json!(NOW_SECONDS - 30))),
        ("exp", Some(json!(0))),
        ("exp", Some(json!(-1))),
        ("exp", Some(json!((NOW_SECONDS + 300).to_string()))),
        ("exp", Some(json!(far))),
        ("exp", Some(json!(1e300))),
        ("exp", Some(json!(true))),
        ("nbf", Some(json!(NOW_SECONDS + 31))),
        ("nbf", Some(json!("0"))),
        ("nbf", Some(json!(null))),
        ("nbf", Some(json!(far))),
        ("iat", Some(json!(NOW_SECONDS + 31))),
        ("iat", Some(json!("0"))),
        ("scope", None),
        ("scope", Some(json!(""))),
        ("scope", Some(json!("prism.administrator"))),
        ("scope", Some(json!("xprism.admin"))),
        ("scope", Some(json!("prism.admin,openid"))),
        ("scope", Some(json!("prism.admin\topenid"))),
        ("scope", Some(json!("PRISM.ADMIN"))),
        ("scope", Some(json!(["prism.admin"]))),
        ("scp", Some(json!(7))),
        ("scp", Some(json!(["prism.admin", 7]))),
        ("nonce", Some(json!("n"))),
        ("nonce", Some(json!(null))),
        ("at_hash", Some(json!("h"))),
        ("c_hash", Some(json!("h"))),
        ("s_hash", Some(json!("h"))),
    ] {
        let refused = why(admin(&token_with(claim, value.clone())));
        assert!(!refused.contains('\0') && !refused.contains('\n'), "{claim} {value:?}: {refused:?}");
    }
}

#[test]
fn what_the_caller_wrote_stands_quoted_in_the_reason_and_no_secret_at_all() {
    let signer = &signers().p256;
    let mut header = signer.header();
    header["kid"] = "a\n\u{202e}\u{1b}[31m".into();
    let refused = why(admin(&signer.token(&header, &claims(ISSUER))));
    assert!(!refused.chars().any(|c| c.is_control() || c == '\u{202e}'), "{refused:?}");
    header["kid"] = "prx_0123456789abcdef0123456789abcdef".into();
    let refused = why(admin(&signer.token(&header, &claims(ISSUER))));
    assert!(!refused.contains("0123456789abcdef"), "{refused}");
    let token = token_with("sub", None);
    assert!(!why(admin(&token)).contains(token.split('.').nth(2).unwrap()));
}

#[test]
fn reasons_and_issuers_are_shown() {
    let refused = admin(&token_with("sub", None)).unwrap_err();
    assert_eq!(refused.to_string(), "a token of https://id.example.org: it has no sub");
    let unavailable = TokenRefused::Unavailable(ISSUER.to_owned());
    assert_eq!(unavailable.to_string(), "the keys of https://id.example.org cannot be fetched");
    assert_eq!(format!("{:?}", issuers()), "[\"https://id.example.org\"]");
    let long = why(admin(&token_with("iss", Some(json!("x".repeat(1000))))));
    assert!(long.len() < 200 && long.contains('…'), "{long}");
    let short = why(admin(&token_with("iss", Some(json!("x")))));
    assert_eq!(short, "the issuer \"x\" is not known");
}

#[test]
fn repeated_names_and_deep_nesting_are_refused() {
    let signer = &signers().p256;
    let (header, body) = (signer.header().to_string(), claims(ISSUER).to_string());
    let twice = |text: &str, pair: &str| format!("{{{pair},{}", &text[1..]);
    assert!(admin(&signer.signed(&header, &body)).is_ok());
    for (header, body) in [
        (header.clone(), twice(&body, r#""aud":"prism-admin""#)),
        (header.clone(), twice(&body, r#""sub":"mallory""#)),
        (header.clone(), twice(&body, r#""s\u0075b":"mallory""#)),
        (header.clone(), twice(&body, r#""x":{"a":1,"a":2}"#)),
        (twice(&header, r#""alg":"none""#), body.clone()),
        (header.clone(), twice(&body, &format!(r#""x":{}{}"#, "[".repeat(200), "]".repeat(200)))),
        (header.clone(), twice(&body, &format!(r#""x":{}1{}"#, r#"{"a":"#.repeat(200), "}".repeat(200)))),
        (header.clone(), "[".repeat(5000)),
        (header.clone(), format!("[{body}]")),
        (header.clone(), format!("{body}{body}")),
        (header.clone(), "null".to_owned()),
        (header.clone(), String::new()),
        (format!("[{header}]"), body.clone()),
        // A token in a token.
        (header.clone(), signer.signed(&header, &body)),
    ] {
        why(admin(&signer.signed(&header, &body)));
    }
}

#[test]
fn one_plane_is_not_the_other() {
    let data = token_with("aud", Some(json!("prism-data")));
    why(verify(&issuers(), Plane::Admin, &data));
    assert_eq!(verify(&issuers(), Plane::Data, &data).unwrap().actor, "alice");
    let admin = token_with("aud", Some(json!("prism-admin")));
    why(verify(&issuers(), Plane::Data, &admin));
    let both = token_with("aud", Some(json!(["prism-admin", "prism-data"])));
    why(verify(&issuers(), Plane::Data, &both));
    why(verify(&issuers(), Plane::Admin, &both));

    let admin_only = issuers_of(IssuerSettings { data_audience: None, ..settings(ISSUER) });
    why(verify(&admin_only, Plane::Data, &data));
    assert!(verify(&admin_only, Plane::Admin, &admin).is_ok());
    let data_only = issuers_of(IssuerSettings { admin_audience: None, ..settings(ISSUER) });
    why(verify(&data_only, Plane::Admin, &admin));
    // The data plane asks for no scope.
    let mut claims = claims(ISSUER);
    claims["aud"] = "prism-data".into();
    claims.as_object_mut().unwrap().remove("scope");
    let signer = &signers().p256;
    assert!(verify(&data_only, Plane::Data, &signer.token(&signer.header(), &claims)).is_ok());
}

#[test]
fn the_operator_says_which_algorithms_and_issuers() {
    let signers = signers();
    let only_es256 = issuers_of(IssuerSettings { algorithms: vec![Algorithm::ES256], ..settings(ISSUER) });
    for (signer, good) in [(&signers.rsa, false), (&signers.p256, true), (&signers.ed25519, false)] {
        let token = signer.token(&signer.header(), &claims(ISSUER));
        assert_eq!(verify(&only_es256, Plane::Admin, &token).is_ok(), good, "{}", signer.kid);
    }
    assert!(Issuers::none().is_empty() && !only_es256.is_empty());
    why(verify(&Issuers::none(), Plane::Admin, &token_with("x", None)));
    // The keys of one issuer are not those of another.
    let other = "https://other.example.org";
    let under = |issuer, prefix: &str| IssuerSettings { prefix: prefix.to_owned(), ..settings(issuer) };
    let two = Issuers::with_keys(
        vec![
            (under(ISSUER, "a:"), key_set(&[signers.rsa.jwk()])),
            (under(other, "b:"), key_set(&[signers.p256.jwk()])),
        ],
        Clock::manual(NOW),
    )
    .unwrap();
    for (signer, issuer, good) in [
        (&signers.rsa, ISSUER, true),
        (&signers.p256, other, true),
        (&signers.rsa, other, false),
        (&signers.p256, ISSUER, false),
    ] {
        let token = signer.token(&signer.header(), &claims(issuer));
        assert_eq!(verify(&two, Plane::Admin, &token).is_ok(), good, "{} {issuer}", signer.kid);
    }
}

#[test]
fn users_and_groups_have_the_issuer_s_prefix_and_claims() {
    let issuers = issuers_of(IssuerSettings {
        prefix: "corp:".to_owned(),
        user_claim: "email".to_owned(),
        groups_claim: "roles".to_owned(),
        ..settings(ISSUER)
    });
    let signer = &signers().p256;
    let verify = |changes: Value| {
        let mut claims = claims(ISSUER);
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        verify(&issuers, Plane::Admin, &signer.token(&signer.header(), &claims))
    };
    let proven =
        verify(json!({"email": "a@b.org", "email_verified": true, "roles": ["x", "x", "", " y", "z\n", 7, "ä b"]}))
            .unwrap();
    assert_eq!(proven.actor, "corp:a@b.org");
    // Empty names, and those with spaces at their ends, are none behind a prefix either.
    assert_eq!(subjects(&proven), ["user:corp:a@b.org", "group:corp:x", "group:corp:ä b"]);
    assert_eq!(proven.credential_id, "https://id.example.org#alice");
    for (changes, good) in [
        (json!({"email": "a@b.org", "email_verified": true}), true),
        (json!({"email": "a@b.org", "email_verified": "true"}), true),
        (json!({"email": "a@b.org"}), false),
        (json!({"email": "a@b.org", "email_verified": null}), false),
        (json!({"email": "a@b.org", "email_verified": false}), false),
        (json!({"email": "a@b.org", "email_verified": "false"}), false),
        (json!({"email": "a@b.org", "email_verified": 0}), false),
        (json!({}), false),
        (json!({"email": "", "email_verified": true}), false),
        (json!({"email": " a@b.org", "email_verified": true}), false),
        (json!({"email": ["a@b.org"], "email_verified": true}), false),
        (json!({"email": "x".repeat(600), "email_verified": true}), false),
    ] {
        assert_eq!(verify(changes.clone()).is_ok(), good, "{changes}");
    }
}

#[test]
fn groups_are_bounded_in_number_and_size() {
    let many: Vec<String> = (0..1000).map(|number| format!("g{number:04}")).collect();
    let proven = admin(&token_with("groups", Some(json!(many)))).unwrap();
    assert_eq!(proven.subjects.len(), 1 + 256);
    let proven = admin(&token_with("groups", Some(json!(["x".repeat(513), "y".repeat(512)])))).unwrap();
    assert_eq!(proven.subjects.len(), 2);
    for none in [json!(null), json!(7), json!({"platform": true}), json!([["platform"]]), json!("")] {
        assert_eq!(admin(&token_with("groups", Some(none.clone()))).unwrap().subjects.len(), 1, "{none}");
    }
}

#[test]
fn claims_stand_for_roles_by_the_operator_s_map() {
    let map = |claim: &str, value: &str, role: &str, namespace: Option<&str>| RoleMapping {
        claim: claim.to_owned(),
        value: value.to_owned(),
        role: role.to_owned(),
        namespace: namespace.map(|name| NamespaceName::parse("namespace", name).unwrap()),
    };
    let issuers = issuers_of(IssuerSettings {
        prefix: "corp:".to_owned(),
        role_map: vec![
            map("groups", "platform", "admin", None),
            map("groups", "ops", "operator", Some("payments")),
            map("groups", "ops", "viewer", None),
            map("groups", "platform", "viewer", None),
            map("groups", "corp:ops", "wrong", None),
            map("groups", "plat", "wrong", None),
            map("department", "it", "viewer", Some("it")),
            map("missing", "x", "wrong", None),
        ],
        ..settings(ISSUER)
    });
    let token = token_with("department", Some(json!("it")));
    let proven = verify(&issuers, Plane::Admin, &token).unwrap();
    let roles: Vec<(&str, Option<&str>)> = proven
        .roles
        .iter()
        .map(|(role, namespace)| (role.as_str(), namespace.as_ref().map(NamespaceName::as_str)))
        .collect();
    assert_eq!(roles, [("admin", None), ("operator", Some("payments")), ("viewer", None), ("viewer", Some("it"))]);
    // Roles are the admin plane's.
    let token = token_with("aud", Some(json!("prism-data")));
    assert!(verify(&issuers, Plane::Data, &token).unwrap().roles.is_empty());
}

#[test]
fn the_clock_decides_at_each_call() {
    let clock = Clock::manual(NOW);
    let issuers = Issuers::with_keys(vec![(settings(ISSUER), all_keys())], clock.clone()).unwrap();
    let token = token_with("x", None);
    assert!(verify(&issuers, Plane::Admin, &token).is_ok());
    clock.advance(Duration::from_millis(329_999));
    assert!(verify(&issuers, Plane::Admin, &token).is_ok());
    clock.advance(Duration::from_millis(1));
    why(verify(&issuers, Plane::Admin, &token));
    clock.advance(Duration::from_hours(1_000_000));
    why(verify(&issuers, Plane::Admin, &token));
}

proptest! {
    #[test]
    fn arbitrary_text_is_refused(
        text in ".{0,200}|[A-Za-z0-9_.-]{0,200}|eyJ[A-Za-z0-9_-]{0,40}[.][A-Za-z0-9_-]{0,40}[.][A-Za-z0-9_-]{0,40}",
    ) {
        prop_assert!(matches!(admin(&text), Err(TokenRefused::Invalid(_))));
    }

    #[test]
    fn arbitrary_claims_under_a_good_signature_never_panic(
        claim in "(iss|aud|sub|exp|nbf|iat|scope|scp|groups|email)",
        number in any::<f64>(),
        text in ".{0,20}",
        shape in 0..5,
    ) {
        let value = match shape {
            0 => json!(number),
            1 => json!(text),
            2 => json!([text, number]),
            3 => json!({text: number}),
            _ => Value::Null,
        };
        if let Ok(proven) = admin(&token_with(&claim, Some(value))) {
            prop_assert!(proven.expires_at > NOW);
            prop_assert!(proven.subjects.len() <= 257);
        }
    }

    #[test]
    fn every_changed_character_is_refused(at in any::<prop::sample::Index>(), with in "[A-Za-z0-9_.=-]") {
        let good = token_with("x", None);
        let at = at.index(good.len());
        let mut changed = good.clone();
        changed.replace_range(at..=at, &with);
        prop_assert_eq!(admin(&changed).is_ok(), changed == good);
    }
}
