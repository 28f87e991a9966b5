//! Join tokens: `prj_<id><secret><CA><checksum>`, where `<CA>` is the SHA-256 of the cluster CA's certificate in 64 lower-case
//! hexadecimal digits. So a machine that knows nothing but the token can tell whom it is about to send the secret to.

use super::{BODY_LENGTH, NewSecret, PresentedSecret, Random, SecretKind, hash, parse_with};

/// Digits of the CA's fingerprint.
const FINGERPRINT_LENGTH: usize = 64;
/// Characters of a join token.
pub const JOIN_TOKEN_LENGTH: usize = 4 + BODY_LENGTH + FINGERPRINT_LENGTH;

/// SHA-256 of a CA certificate in DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthorityFingerprint([u8; 32]);

impl AuthorityFingerprint {
    /// That of a certificate in DER.
    pub fn of_certificate(der: &[u8]) -> Self {
        Self(hash(der))
    }

    /// In lower-case hexadecimal, as `openssl x509 -fingerprint -sha256` prints it but for case and colons.
    pub fn to_hex(self) -> String {
        self.0
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .map(|nibble| char::from(DIGITS[usize::from(nibble)]))
            .collect()
    }

    /// Reads 64 lower-case digits, so that a fingerprint has one form.
    fn parse(digits: &[u8]) -> Option<Self> {
        let mut out = [0; 32];
        if digits.len() != FINGERPRINT_LENGTH {
            return None;
        }
        let value = |digit: u8| DIGITS.iter().position(|known| *known == digit).map(|at| at as u8);
        for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Some(Self(out))
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// A well-formed join token as somebody presented it; proves nothing until its secret's hash matches.
#[derive(Clone, Copy, Debug)]
pub struct PresentedJoinToken<'a> {
    /// Id and secret.
    pub secret: PresentedSecret<'a>,
    /// The CA of the cluster it is for.
    pub authority: AuthorityFingerprint,
}

/// Takes a join token apart; `None` when it has not exactly the form of one.
pub fn parse_join_token(word: &str) -> Option<PresentedJoinToken<'_>> {
    let (secret, digits) = parse_with(SecretKind::Join, word, FINGERPRINT_LENGTH)?;
    Some(PresentedJoinToken { secret, authority: AuthorityFingerprint::parse(digits)? })
}

impl Random {
    /// A new join token for the cluster of `authority`.
    pub fn join_token(&self, authority: AuthorityFingerprint) -> NewSecret {
        self.secret_with(SecretKind::Join, self.id(), &authority.to_hex())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{parse, redact};
    use super::*;

    fn token(authority: [u8; 32]) -> (NewSecret, String) {
        let new = Random::system().join_token(AuthorityFingerprint(authority));
        let word = new.token.expose().to_owned();
        (new, word)
    }

    #[test]
    fn a_token_says_whose_it_is() {
        let (new, word) = token([0xab; 32]);
        assert_eq!(word.len(), JOIN_TOKEN_LENGTH);
        assert!(word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'));
        let presented = parse_join_token(&word).unwrap();
        assert_eq!(presented.secret.id, new.id);
        assert!(new.hash.matches(&presented.secret));
        assert_eq!(presented.authority.to_hex(), "ab".repeat(32));
        assert_eq!(parse(SecretKind::Join, &word).unwrap().id, new.id);
        assert!(parse(SecretKind::AdminKey, &word).is_none());
        let other = Random::system().secret(SecretKind::AdminKey).token.into_exposed();
        assert!(parse_join_token(&other.replacen("prx_", "prj_", 1)).is_none());
    }

    proptest! {
        #[test]
        fn what_is_cut_doubled_or_in_capitals_is_no_token(authority: [u8; 32], cut in 0..JOIN_TOKEN_LENGTH) {
            let (_, word) = token(authority);
            prop_assert!(parse_join_token(&word).is_some());
            for changed in [
                word[..cut].to_owned(),
                word[cut..].to_owned() + " ",
                format!("{word}{word}"),
                word.to_ascii_uppercase(),
                word.to_ascii_lowercase(),
                format!(" {word}"),
                format!("{word}\n"),
            ] {
                prop_assert!(changed == word || parse_join_token(&changed).is_none(), "{}", changed);
            }
        }

        #[test]
        fn every_changed_character_is_noticed(authority: [u8; 32], at in 4..JOIN_TOKEN_LENGTH, to in "[0-9A-Za-z]") {
            let (_, word) = token(authority);
            let mut changed = word.clone();
            changed.replace_range(at..=at, &to);
            prop_assert!(changed == word || parse_join_token(&changed).is_none());
        }

        #[test]
        fn no_join_token_survives_redaction(authority: [u8; 32], before in "[a-z ]{0,8}", after in "[ ,a-z]{0,8}") {
            let (_, word) = token(authority);
            let redacted = redact(&format!("{before}{word}{after}")).into_owned();
            prop_assert!(!redacted.contains(&word[8..40]) && !redacted.contains(&word[60..]));
        }

        #[test]
        fn parsing_never_panics(word in ".*") {
            let _ = parse_join_token(&word);
            let _ = parse_join_token(&format!("prj_{word}"));
        }
    }
}
