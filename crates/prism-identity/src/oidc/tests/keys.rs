//! What a JWKS may hold, and what of it is used.

use proptest::prelude::*;

use super::*;

fn count(keys: &[Value]) -> usize {
    key_set(keys).len()
}

fn with(mut jwk: Value, name: &str, value: Value) -> Value {
    jwk[name] = value;
    jwk
}

#[test]
fn keys_of_the_three_algorithms_are_used() {
    assert_eq!(all_keys().len(), 3);
    let set = format!("{:?}", all_keys());
    assert!(set.contains("RS256") && set.contains("p256"), "{set}");
}

#[test]
fn keys_for_something_else_are_left_out() {
    let signers = signers();
    let (rsa, ec, ed) = (signers.rsa.jwk(), signers.p256.jwk(), signers.ed25519.jwk());
    assert_eq!(count(&[with(rsa.clone(), "use", Value::Null)]), 0);
    for bare in [&rsa, &ec, &ed] {
        let mut bare = bare.clone();
        for name in ["use", "alg", "kid"] {
            bare.as_object_mut().unwrap().remove(name);
        }
        assert_eq!(count(std::slice::from_ref(&bare)), 1);
        assert_eq!(count(&[with(bare.clone(), "key_ops", json!(["verify"]))]), 1);
        for (name, value) in [
            ("use", json!("enc")),
            ("alg", json!("none")),
            ("alg", json!("HS256")),
            ("alg", json!("PS256")),
            ("alg", json!("ES384")),
            ("alg", json!("RSA-OAEP")),
            ("key_ops", json!(["sign"])),
            ("key_ops", json!("verify")),
            ("kid", json!(7)),
            ("kid", json!("x".repeat(600))),
            ("kty", json!("oct")),
            ("kty", json!("rsa")),
            ("kty", json!(null)),
            ("crv", json!("P-384")),
            ("crv", json!("P-521")),
            ("crv", json!("secp256k1")),
            ("crv", json!("Ed448")),
            ("crv", json!("X25519")),
            ("d", json!("AA")),
        ] {
            assert_eq!(count(&[with(bare.clone(), name, value.clone())]), 0, "{name} {value}");
        }
    }
    assert_eq!(
        count(&[json!({"kty": "oct", "k": "AAAA"}), json!({}), json!(7), json!("RSA"), Signer::p384("a").jwk()]),
        0
    );
}

#[test]
fn key_material_must_be_sound() {
    let signers = signers();
    let (rsa, ec, ed) = (signers.rsa.jwk(), signers.p256.jwk(), signers.ed25519.jwk());
    let modulus = URL_SAFE_NO_PAD.decode(rsa["n"].as_str().unwrap()).unwrap();
    assert_eq!(count(&[with(rsa.clone(), "n", base64url(&[&[0], &modulus[..]].concat()).into())]), 1);
    for (name, value) in [
        ("n", base64url(&modulus[..255])),
        ("n", base64url(&[0; 256])),
        ("n", base64url(&[0xff; 1025])),
        ("n", base64url(&[&modulus[..255], &[2]].concat())),
        ("n", String::new()),
        ("n", "=".to_owned()),
        ("e", base64url(&[1])),
        ("e", base64url(&[0])),
        ("e", base64url(&[4])),
        ("e", base64url(&[1, 0, 0, 0, 1])),
        ("e", String::new()),
    ] {
        assert_eq!(count(&[with(rsa.clone(), name, value.clone().into())]), 0, "{name} {value}");
    }
    for value in [base64url(&[1; 32]), base64url(&[1; 31]), base64url(&[1; 33]), String::new(), "*".to_owned()] {
        assert_eq!(count(&[with(ec.clone(), "x", value.clone().into())]), 0, "{value}");
    }
    for value in [base64url(&[1; 31]), base64url(&[1; 33]), String::new()] {
        assert_eq!(count(&[with(ed.clone(), "x", value.clone().into())]), 0, "{value}");
    }
    for jwk in [&rsa, &ec, &ed] {
        for name in ["n", "e", "x", "y"] {
            if jwk.get(name).is_some() {
                let mut without = jwk.clone();
                without.as_object_mut().unwrap().remove(name);
                assert_eq!(count(&[without]), 0, "{name}");
            }
        }
    }
}

#[test]
fn documents_are_bounded_and_strict() {
    let key = signers().p256.jwk();
    assert_eq!(count(&[]), 0);
    assert_eq!(count(&vec![key.clone(); 64]), 64);
    let refused = |document: &str| KeySet::parse(document.as_bytes()).unwrap_err().message().to_owned();
    assert!(refused(&json!({"keys": vec![key; 65]}).to_string()).contains("64"));
    assert!(refused(&format!("{{\"keys\":[]{}}}", " ".repeat(256 * 1024))).contains("bytes"));
    for bad in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[]} x"#, r#"{"keys":[],"keys":[]}"#, "<html>"] {
        assert!(refused(bad).contains("JWKS"), "{bad}");
    }
}

#[test]
fn which_key_is_asked_depends_on_algorithm_and_kid() {
    let signers = signers();
    let message = "a.b";
    let signature = signers.rsa.signature(message.as_bytes());
    let ask = |keys: &KeySet, kid| keys.verify(Algorithm::RS256, kid, message, &signature);
    let all = all_keys();
    assert_eq!(ask(&all, Some("rsa")), Verdict::Signed);
    // One key only is for RSA.
    assert_eq!(ask(&all, None), Verdict::Signed);
    assert_eq!(ask(&all, Some("p256")), Verdict::NoKey);
    assert_eq!(ask(&all, Some("")), Verdict::NoKey);
    let two = key_set(&[signers.rsa.jwk(), with(signers.stranger.jwk(), "kid", json!("other"))]);
    assert_eq!(ask(&two, None), Verdict::Ambiguous);
    assert_eq!(ask(&two, Some("rsa")), Verdict::Signed);
    assert_eq!(ask(&two, Some("other")), Verdict::NotSigned);
    let nameless = key_set(&[{
        let mut jwk = signers.rsa.jwk();
        jwk.as_object_mut().unwrap().remove("kid");
        jwk
    }]);
    assert_eq!(ask(&nameless, None), Verdict::Signed);
    assert_eq!(ask(&nameless, Some("rsa")), Verdict::NoKey);
    assert_eq!(all.verify(Algorithm::ES256, Some("p256"), message, &signature), Verdict::NotSigned);
}

proptest! {
    #[test]
    fn arbitrary_documents_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,80}") {
        prop_assert!(KeySet::parse(&bytes).is_err());
        prop_assert!(KeySet::parse(text.as_bytes()).is_err());
    }

    #[test]
    fn arbitrary_keys_are_left_out_or_fit_to_verify_with(
        kty in "(RSA|EC|OKP|oct|.{0,3})",
        crv in proptest::option::of("(P-256|Ed25519|.{0,3})"),
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 4),
    ) {
        let mut jwk = json!({"kty": kty});
        if let Some(crv) = crv {
            jwk["crv"] = crv.into();
        }
        for (name, bytes) in ["n", "e", "x", "y"].into_iter().zip(&parts) {
            jwk[name] = base64url(bytes).into();
        }
        let keys = key_set(&[jwk]);
        for algorithm in Algorithm::ALL {
            prop_assert_ne!(keys.verify(algorithm, None, "a.b", &[1; 64]), Verdict::Signed);
        }
    }
}
