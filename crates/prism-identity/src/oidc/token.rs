//! A token in JWS compact form (RFC 7515), taken apart before anything in it is believed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::claims::Claims;
use super::json;
use super::keys::MAX_KID_BYTES;
use super::settings::Algorithm;

/// Longest token, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Header parameters that would let a token choose how, or with which key, it is read.
const NOT_UNDERSTOOD: [&str; 8] = ["b64", "crit", "enc", "jku", "jwk", "x5c", "x5u", "zip"];

/// A well-formed token; proves nothing until its signature is checked.
pub struct Unproven<'a> {
    /// What its header says it is signed with.
    pub algorithm: Algorithm,
    /// Which key its header says signed it.
    pub kid: Option<String>,
    /// What the signature is over.
    pub message: &'a str,
    /// The signature.
    pub signature: Vec<u8>,
    /// What it says.
    pub claims: Claims,
}

impl<'a> Unproven<'a> {
    /// Takes a token apart, or says why it is none.
    pub fn parse(token: &'a str) -> Result<Self, &'static str> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err("the token is too long");
        }
        let (message, signature) = token.rsplit_once('.').ok_or("the token has no segments")?;
        let (header, claims) = message.split_once('.').ok_or("the token has two segments")?;
        if claims.contains('.') {
            return Err("the token has more than three segments");
        }
        if signature.is_empty() {
            return Err("the token has no signature");
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| "the signature is not in base64url")?;
        let header = part(header).ok_or("the header is not an object with unique names")?;
        let (algorithm, kid) = read_header(&header)?;
        let claims = part(claims).ok_or("the claims are not an object with unique names")?;
        Ok(Self { algorithm, kid, message, signature, claims: Claims::new(claims) })
    }
}

fn part(segment: &str) -> Option<Map<String, Value>> {
    json::object(&URL_SAFE_NO_PAD.decode(segment).ok()?)
}

fn read_header(header: &Map<String, Value>) -> Result<(Algorithm, Option<String>), &'static str> {
    if NOT_UNDERSTOOD.iter().any(|name| header.contains_key(*name)) {
        return Err("the header brings a key, or asks for what is not understood");
    }
    let algorithm = header
        .get("alg")
        .and_then(Value::as_str)
        .and_then(Algorithm::named)
        .ok_or("the header names no algorithm that is known here")?;
    if header.get("typ").is_some_and(|kind| !kind.as_str().is_some_and(is_access_token_type)) {
        return Err("the header says that it is something else than an access token");
    }
    let kid = match header.get("kid") {
        None => None,
        Some(Value::String(kid)) if (1..=MAX_KID_BYTES).contains(&kid.len()) => Some(kid.clone()),
        Some(_) => return Err("the header has an unusable kid"),
    };
    Ok((algorithm, kid))
}

/// `JWT` or `at+jwt` (RFC 9068), in any case, with or without `application/`.
fn is_access_token_type(kind: &str) -> bool {
    let kind = kind.to_ascii_lowercase();
    matches!(kind.strip_prefix("application/").unwrap_or(&kind), "jwt" | "at+jwt")
}
