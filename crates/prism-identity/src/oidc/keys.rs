//! The public keys of an issuer (RFC 7517), each fit for exactly one algorithm.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::crypto::aws_lc;
use prism_core::{Error, Result};
use serde_json::{Map, Value};

use super::json;
use super::settings::Algorithm;

/// Largest JWKS document, in bytes.
pub const MAX_JWKS_BYTES: usize = 256 * 1024;
/// Most keys of a JWKS document.
pub const MAX_KEYS: usize = 64;
/// Longest `kid`, in bytes.
pub const MAX_KID_BYTES: usize = 512;

/// The keys of an issuer that signatures can be checked with.
#[derive(Clone)]
pub struct KeySet(Vec<Key>);

/// What a key set says to a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A key that fits made it.
    Signed,
    /// There are keys that fit, and none made it.
    NotSigned,
    /// No key fits. A newer set may have one.
    NoKey,
    /// Several keys fit, and the token does not say which.
    Ambiguous,
}

impl KeySet {
    /// Parses a JWKS document. Keys that are for something else are left out: other types and curves, encryption, RSA
    /// outside 2048 to 8192 bits, keys whose private part is published.
    ///
    /// FAILED_PRECONDITION when it is none, is larger than 256 KiB, or has more than 64 keys.
    pub fn parse(document: &[u8]) -> Result<Self> {
        let fault = |why: String| Err(Error::precondition("OIDC_KEYS", why));
        if document.len() > MAX_JWKS_BYTES {
            return fault(format!("a JWKS has at most {MAX_JWKS_BYTES} bytes"));
        }
        let Some(Value::Array(keys)) = json::object(document).and_then(|mut object| object.remove("keys")) else {
            return fault("not a JWKS: an object with a list \"keys\"".to_owned());
        };
        if keys.len() > MAX_KEYS {
            return fault(format!("a JWKS has at most {MAX_KEYS} keys"));
        }
        Ok(Self(keys.iter().filter_map(Value::as_object).filter_map(Key::parse).collect()))
    }

    /// How many keys can be used.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no key can be used.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks `signature` over `message`. Without a `kid` there must be one key only that fits the algorithm.
    pub(super) fn verify(&self, algorithm: Algorithm, kid: Option<&str>, message: &str, signature: &[u8]) -> Verdict {
        let fitting = || {
            let of_kid = move |key: &&Key| kid.is_none_or(|kid| key.kid.as_deref() == Some(kid));
            self.0.iter().filter(move |key| key.algorithm == algorithm).filter(of_kid)
        };
        match fitting().count() {
            0 => Verdict::NoKey,
            2.. if kid.is_none() => Verdict::Ambiguous,
            _ if fitting().any(|key| key.has_signed(message, signature)) => Verdict::Signed,
            _ => Verdict::NotSigned,
        }
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| (key.algorithm.name(), &key.kid))).finish()
    }
}

#[derive(Clone)]
struct Key {
    kid: Option<String>,
    algorithm: Algorithm,
    public: DecodingKey,
}

impl Key {
    fn parse(jwk: &Map<String, Value>) -> Option<Self> {
        let text = |name| jwk.get(name).and_then(Value::as_str);
        let (algorithm, public) = match (text("kty")?, text("crv")) {
            ("RSA", None) => (Algorithm::RS256, rsa(bytes(jwk, "n")?, bytes(jwk, "e")?)?),
            ("EC", Some("P-256")) => (Algorithm::ES256, p256(&bytes(jwk, "x")?, &bytes(jwk, "y")?)?),
            ("OKP", Some("Ed25519")) => (Algorithm::EdDSA, ed25519(&bytes(jwk, "x")?)?),
            _ => return None,
        };
        let kid = match jwk.get("kid") {
            None => None,
            Some(Value::String(kid)) if kid.len() <= MAX_KID_BYTES => Some(kid.clone()),
            Some(_) => return None,
        };
        let for_signatures = jwk.get("use").is_none_or(|used| used == "sig")
            && jwk.get("alg").is_none_or(|named| named == algorithm.name())
            && jwk
                .get("key_ops")
                .is_none_or(|ops| ops.as_array().is_some_and(|ops| ops.iter().any(|operation| operation == "verify")));
        // Whose private part is published can be used by anyone.
        let is_public = !jwk.contains_key("d");
        (for_signatures && is_public).then_some(Self { kid, algorithm, public })
    }

    fn has_signed(&self, message: &str, signature: &[u8]) -> bool {
        let algorithm = match self.algorithm {
            Algorithm::RS256 => jsonwebtoken::Algorithm::RS256,
            Algorithm::ES256 => jsonwebtoken::Algorithm::ES256,
            Algorithm::EdDSA => jsonwebtoken::Algorithm::EdDSA,
        };
        // The provider by its name: the library's default one is a global that any crate of the program could change.
        (aws_lc::DEFAULT_PROVIDER.verifier_factory)(&algorithm, &self.public)
            .is_ok_and(|verifier| verifier.verify(message.as_bytes(), &signature.to_vec()).is_ok())
    }
}

fn bytes(jwk: &Map<String, Value>, name: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(jwk.get(name)?.as_str()?).ok()
}

/// Some issuers write a zero before a number; the number is the same.
fn number(mut bytes: Vec<u8>) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    bytes
}

fn rsa(modulus: Vec<u8>, exponent: Vec<u8>) -> Option<DecodingKey> {
    let (n, e) = (number(modulus), number(exponent));
    let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
    let odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
    // An exponent of 1 would make every message its own signature.
    let sound = (2048..=8192).contains(&bits) && odd(&n) && odd(&e) && e.len() <= 4 && e != [1];
    sound.then(|| DecodingKey::from_rsa_raw_components(&n, &e))
}

fn p256(x: &[u8], y: &[u8]) -> Option<DecodingKey> {
    if x.len() != 32 || y.len() != 32 {
        return None;
    }
    let point = [&[4], x, y].concat();
    // A point off the curve is no key.
    aws_lc_rs::signature::ParsedPublicKey::new(&aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED, &point).ok()?;
    Some(DecodingKey::from_ec_der(&point))
}

fn ed25519(x: &[u8]) -> Option<DecodingKey> {
    aws_lc_rs::signature::ParsedPublicKey::new(&aws_lc_rs::signature::ED25519, x).ok()?;
    Some(DecodingKey::from_ed_der(x))
}
