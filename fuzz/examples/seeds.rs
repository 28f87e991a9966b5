//! Writes `fixtures/` and `seeds/` anew: keys and tokens of RS256 and ES256 whose private keys are forgotten at the end, and
//! for each target a few inputs that go far.

use std::fs;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prism_core::secret::{Random, SecretKind};
use prism_fuzz::jwt::{ISSUER, NOW};
use prism_fuzz::{certificate, jwt};
use serde_json::{Value, json};

fn main() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    if std::env::args().nth(1).as_deref() == Some("fixtures") {
        fixtures(&here.join("fixtures"));
        println!("fixtures are written; run this again without an argument, so that the seeds are made of them");
        return;
    }
    for (target, inputs) in [("token", tokens()), ("jwt", jwts(here)), ("certificate", certificates())] {
        let folder = here.join("seeds").join(target);
        fs::create_dir_all(&folder).expect("the folder can be made");
        for (number, input) in inputs.iter().enumerate() {
            let file: PathBuf = folder.join(format!("{number:02}"));
            fs::write(&file, input).expect("the file can be written");
            match target {
                "token" => prism_fuzz::token::run(input),
                "jwt" => jwt::run(input),
                _ => certificate::run(input),
            }
        }
        println!("{target}: {} inputs", inputs.len());
    }
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "prism-admin", "sub": "alice", "exp": NOW + 300, "nbf": NOW, "iat": NOW,
        "scope": "openid prism.admin", "groups": ["ops", "platform"], "department": "it",
    })
}

fn fixtures(folder: &Path) {
    let random = SystemRandom::new();
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
    let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
    let base64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    // PKCS#1: 30 82 xx xx, 02 82 01 01, the modulus of 257 bytes with its zero, 02 03, the exponent of 3 bytes.
    let public = rsa.public_key().as_ref();
    let (n, e) = (&public[9..265], &public[public.len() - 3..]);
    let point = ec.public_key().as_ref();
    let jwks = json!({"keys": [
        {"kty": "RSA", "kid": "rsa", "use": "sig", "alg": "RS256", "n": base64(n), "e": base64(e)},
        {"kty": "EC", "crv": "P-256", "kid": "p256", "use": "sig", "alg": "ES256", "x": base64(&point[1..33]), "y": base64(&point[33..])},
    ]});
    let mut data = claims();
    data["aud"] = json!(["prism-data", "other"]);
    let mut tokens = String::new();
    for claims in [claims(), data] {
        for (alg, kid) in [("RS256", "rsa"), ("ES256", "p256")] {
            let header = json!({"alg": alg, "typ": "at+jwt", "kid": kid}).to_string();
            let message = format!("{}.{}", base64(header.as_bytes()), base64(claims.to_string().as_bytes()));
            let signature = if alg == "RS256" {
                let mut signature = vec![0; 256];
                rsa.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).expect("a signature");
                signature
            } else {
                ec.sign(&random, message.as_bytes()).expect("a signature").as_ref().to_vec()
            };
            tokens.push_str(&format!("{message}.{}\n", base64(&signature)));
        }
    }
    fs::create_dir_all(folder).expect("the folder can be made");
    fs::write(folder.join("jwks.json"), format!("{jwks:#}\n")).expect("the file can be written");
    fs::write(folder.join("tokens.txt"), tokens).expect("the file can be written");
}

fn tokens() -> Vec<Vec<u8>> {
    let random = Random::system();
    let mut inputs = Vec::new();
    for kind in [SecretKind::AdminKey, SecretKind::ClientKey, SecretKind::Session] {
        let secret = random.secret(kind).token.into_exposed();
        // As the body of one, never as one: nothing here should look like a secret to a scanner.
        inputs.push([b"\0", &secret.as_bytes()[4..]].concat());
    }
    inputs.extend([&b"\0prx_ prc_x, prj_y; prs_"[..], b"\0prprx_a", b"\0"].map(<[u8]>::to_vec));
    inputs.extend([1, 3, 5].map(|way| [&[way][..], &[b'k'; 48], b"use it"].concat()));
    inputs
}

fn jwts(here: &Path) -> Vec<Vec<u8>> {
    let signed = fs::read_to_string(here.join("fixtures/tokens.txt")).expect("the fixtures are there");
    let mut inputs: Vec<Vec<u8>> = signed.lines().map(|token| [b"\0", token.as_bytes()].concat()).collect();
    let claims = claims().to_string();
    inputs.push([b"\x01", claims.as_bytes()].concat());
    inputs.push([&b"\x01"[..], claims.replace("prism-admin", "prism-data").as_bytes()].concat());
    let header = br#"{"alg":"EdDSA","kid":"ed25519","typ":"at+jwt"}"#;
    inputs.push([b"\x02", &header[..], b"\n", claims.as_bytes()].concat());
    inputs.push([b"\0", jwt::sign(br#"{"alg":"none"}"#, claims.as_bytes()).as_bytes()].concat());
    inputs.push([b"\x03", jwt::jwks().as_bytes()].concat());
    inputs
}

fn certificates() -> Vec<Vec<u8>> {
    let world = certificate::World::new();
    let mut inputs = Vec::new();
    for chain in world.chains() {
        let Some(leaf) = chain.first() else { continue };
        inputs.push([b"\0", &leaf[..]].concat());
        let lengths = chain.iter().flat_map(|certificate| {
            let length = u16::try_from(certificate.len()).expect("a small certificate");
            [&length.to_be_bytes()[..], &certificate[..]].concat()
        });
        inputs.push([1].into_iter().chain(lengths).collect());
    }
    inputs.push([b"\x02", world.own.pem.as_bytes(), b"\n# other\n", world.partner.pem.as_bytes()].concat());
    for (by, tag, name) in [
        (0, 0x86, "spiffe://fuzz/user/alice"),
        (0, 0x86, "spiffe://fuzz/node/n-1"),
        (1, 0x86, "spiffe://partner.example/shop"),
        (1, 0x86, "SPIFFE://fuzz/user/alice"),
        (1, 0x82, "shop.partner.example"),
        (1, 0x81, "ops@partner.example"),
    ] {
        inputs.push([&[3, by][..], &certificate::name(tag, name)].concat());
    }
    inputs
}
