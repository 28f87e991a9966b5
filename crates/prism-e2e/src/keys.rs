//! The form of Prism's keys: `<prefix>_<id><secret><checksum>`. With it anybody can write a word that a server has to look up.

use crate::books::random;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const ID: std::ops::Range<usize> = 4..20;
const CHECKSUM: usize = 6;
const SECRET: std::ops::Range<usize> = 20..52;

/// A well-formed key of a prefix such as `prx_` with this id and secret, whether anybody has such a key or not.
pub fn forged(prefix: &str, id: &str, secret: &str) -> String {
    let body = format!("{prefix}{id}{secret}");
    assert_eq!(body.len(), SECRET.end, "an id has 16 characters, a secret 32: {body}");
    checked(body)
}

/// With its checksum.
fn checked(body: String) -> String {
    let mut rest = crc32fast::hash(body.as_bytes());
    let mut checksum = [b'0'; CHECKSUM];
    for digit in checksum.iter_mut().rev() {
        *digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
    body + &String::from_utf8_lossy(&checksum)
}

/// A join token with the id and the CA of this one and another secret.
pub fn forged_join(token: &str, secret: &str) -> String {
    let end = token.len() - CHECKSUM;
    checked(format!("{}{secret}{}", &token[..SECRET.start], &token[SECRET.end..end]))
}

/// A well-formed key that nobody has.
pub fn unknown(prefix: &str) -> String {
    forged(prefix, &word(16), &word(32))
}

/// A key with the id of this one and another secret.
pub fn wrong_secret(token: &str) -> String {
    forged(&token[..ID.start], id(token), &word(32))
}

/// The public id of a key.
pub fn id(token: &str) -> &str {
    &token[ID]
}

/// The part of a key that nobody but its owner may have.
pub fn secret(token: &str) -> &str {
    &token[SECRET]
}

/// This many characters that nobody foresees.
pub fn word(length: usize) -> String {
    (0..length).map(|_| char::from(ALPHABET[(random() % 62) as usize])).collect()
}
