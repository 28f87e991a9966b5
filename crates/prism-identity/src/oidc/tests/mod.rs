//! Tokens as issuers, and people who would like to be somebody else, make them.

mod fetching;
mod keys;
mod provider;
mod tokens;

use std::sync::OnceLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::*;

pub const ISSUER: &str = "https://id.example.org";
/// 1 January 2026.
pub const NOW: UnixMillis = UnixMillis(1_767_225_600_000);
/// The same in seconds, as tokens have it.
pub const NOW_SECONDS: i64 = NOW.0 / 1000;

/// A private key and the `kid` of its public one.
pub struct Signer {
    pub kid: &'static str,
    key: Private,
}

enum Private {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    pub fn rsa(kid: &'static str) -> Self {
        Self { kid, key: Private::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()) }
    }

    pub fn p256(kid: &'static str) -> Self {
        Self { kid, key: Private::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()) }
    }

    pub fn p384(kid: &'static str) -> Self {
        Self { kid, key: Private::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap()) }
    }

    pub fn ed25519(kid: &'static str) -> Self {
        Self { kid, key: Private::Ed25519(Ed25519KeyPair::generate().unwrap()) }
    }

    pub fn algorithm(&self) -> &'static str {
        match &self.key {
            Private::Rsa(_) => "RS256",
            Private::P256(_) => "ES256",
            Private::P384(_) => "ES384",
            Private::Ed25519(_) => "EdDSA",
        }
    }

    /// Its public key, as an issuer publishes it.
    pub fn jwk(&self) -> Value {
        let mut jwk = match &self.key {
            Private::Rsa(key) => {
                let (n, e) = (key.public_key().modulus(), key.public_key().exponent());
                let (n, e) = (n.big_endian_without_leading_zero(), e.big_endian_without_leading_zero());
                json!({"kty": "RSA", "n": base64url(n), "e": base64url(e)})
            }
            Private::P256(key) => elliptic("P-256", key.public_key().as_ref()),
            Private::P384(key) => elliptic("P-384", key.public_key().as_ref()),
            Private::Ed25519(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": base64url(key.public_key().as_ref())})
            }
        };
        jwk["kid"] = self.kid.into();
        jwk["use"] = "sig".into();
        jwk["alg"] = self.algorithm().into();
        jwk
    }

    pub fn header(&self) -> Value {
        json!({"alg": self.algorithm(), "typ": "at+jwt", "kid": self.kid})
    }

    /// A token of this header and these claims.
    pub fn token(&self, header: &Value, claims: &Value) -> String {
        self.signed(&header.to_string(), &claims.to_string())
    }

    /// A token of this text, be it JSON or not.
    pub fn signed(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", base64url(header.as_bytes()), base64url(claims.as_bytes()));
        let signature = self.signature(message.as_bytes());
        format!("{message}.{}", base64url(&signature))
    }

    pub fn signature(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            Private::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Private::P256(key) | Private::P384(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Private::Ed25519(key) => key.sign(message).as_ref().to_vec(),
        }
    }
}

fn elliptic(curve: &str, point: &[u8]) -> Value {
    let (x, y) = point[1..].split_at((point.len() - 1) / 2);
    json!({"kty": "EC", "crv": curve, "x": base64url(x), "y": base64url(y)})
}

pub fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// One key of each kind, made once: RSA keys take their time.
pub struct Signers {
    pub rsa: Signer,
    pub p256: Signer,
    pub ed25519: Signer,
    /// Not among the issuer's keys.
    pub stranger: Signer,
}

pub fn signers() -> &'static Signers {
    static SIGNERS: OnceLock<Signers> = OnceLock::new();
    SIGNERS.get_or_init(|| Signers {
        rsa: Signer::rsa("rsa"),
        p256: Signer::p256("p256"),
        ed25519: Signer::ed25519("ed25519"),
        stranger: Signer::rsa("rsa"),
    })
}

pub fn key_set(keys: &[Value]) -> KeySet {
    KeySet::parse(json!({"keys": keys}).to_string().as_bytes()).unwrap()
}

/// The keys of [`signers`], but that of the stranger.
pub fn all_keys() -> KeySet {
    let signers = signers();
    key_set(&[signers.rsa.jwk(), signers.p256.jwk(), signers.ed25519.jwk()])
}

/// What a good token of the admin plane says.
pub fn claims(issuer: &str) -> Value {
    json!({
        "iss": issuer,
        "aud": "prism-admin",
        "sub": "alice",
        "exp": NOW_SECONDS + 300,
        "nbf": NOW_SECONDS - 5,
        "iat": NOW_SECONDS - 5,
        "scope": "openid prism.admin",
        "groups": ["platform", "ops"],
    })
}
