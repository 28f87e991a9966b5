//! Prism's own secrets: `<prefix>_<id><secret><checksum>`, one printable word that scanners can recognise.
//!
//! The id (16 characters, public) finds the record, the secret (32 characters, over 190 bits) proves possession and is
//! stored as a SHA-256 hash only, the checksum (6 characters) tells a typing error from a wrong secret.

mod join;

use std::borrow::Cow;
use std::fmt;

use aws_lc_rs::digest;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use subtle::ConstantTimeEq;

pub use join::{AuthorityFingerprint, JOIN_TOKEN_LENGTH, PresentedJoinToken, parse_join_token};

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const ID_LENGTH: usize = 16;
const SECRET_LENGTH: usize = 32;
const CHECKSUM_LENGTH: usize = 6;
const BODY_LENGTH: usize = ID_LENGTH + SECRET_LENGTH + CHECKSUM_LENGTH;

/// What a secret is for; each kind has its own prefix and is never valid as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SecretKind {
    /// Admin API key, `prx_`.
    AdminKey,
    /// Data-plane client key, `prc_`.
    ClientKey,
    /// Session token, `prs_`.
    Session,
    /// Join token, `prj_`; its word holds more than the others, see [`parse_join_token`].
    Join,
}

impl SecretKind {
    /// The prefix with its underscore.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::AdminKey => "prx_",
            Self::ClientKey => "prc_",
            Self::Session => "prs_",
            Self::Join => "prj_",
        }
    }
}

/// Public id of a secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretId([u8; ID_LENGTH]);

impl SecretId {
    /// Parses the 16 characters of an id.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; ID_LENGTH] = text.as_bytes().try_into().ok()?;
        bytes.iter().all(u8::is_ascii_alphanumeric).then_some(Self(bytes))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        // Only ASCII alphanumerics get in, so this is always valid UTF-8.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretId({})", self.as_str())
    }
}

/// SHA-256 of a secret's text; the only form in which a secret is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// Reads a stored hash.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes to store.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether the two are of one secret, compared in constant time.
    pub fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// Compares in constant time.
    pub fn matches(&self, presented: &PresentedSecret<'_>) -> bool {
        self.is_of(&presented.proof())
    }

    /// Compares in constant time.
    pub fn is_of(&self, proof: &SecretProof) -> bool {
        self.is(&proof.hash)
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

fn hash(secret: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, secret).as_ref());
    out
}

/// A secret at the moment it is made: shown once, never stored.
pub struct NewSecret {
    /// Public id.
    pub id: SecretId,
    /// What to store.
    pub hash: SecretHash,
    /// The whole word, for its owner only.
    pub token: Token,
}

/// A secret word; `Debug` never shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The word itself, to hand to its owner.
    pub fn expose(&self) -> &str {
        &self.0
    }
    /// A word that another process of this installation made; `None` when it has not exactly the form of `kind`.
    pub fn received(kind: SecretKind, word: String) -> Option<Self> {
        parse(kind, &word).is_some().then_some(Self(word))
    }
    /// Takes the word, to hand to its owner.
    pub fn into_exposed(self) -> String {
        self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Where randomness comes from.
#[derive(Clone, Debug, Default)]
pub struct Random(SystemRandom);

impl Random {
    /// The operating system's generator.
    pub fn system() -> Self {
        Self::default()
    }

    /// Fills `buffer`; a failing generator of the operating system ends the process, as nothing can be trusted then.
    pub fn fill(&self, buffer: &mut [u8]) {
        self.0.fill(buffer).expect("the operating system's random generator works");
    }

    /// `N` characters of the base-62 alphabet, uniform.
    fn word<const N: usize>(&self) -> [u8; N] {
        let mut out = [0; N];
        let mut filled = 0;
        let mut pool = [0; 64];
        while filled < N {
            self.fill(&mut pool);
            // 248 = 4 × 62: rejecting the rest keeps the choice uniform.
            for byte in pool.iter().filter(|byte| **byte < 248).take(N - filled) {
                out[filled] = ALPHABET[usize::from(byte % 62)];
                filled += 1;
            }
        }
        out
    }

    /// A public id for something without a secret.
    pub fn id(&self) -> SecretId {
        SecretId(self.word())
    }

    /// A new secret of `kind`.
    pub fn secret(&self, kind: SecretKind) -> NewSecret {
        self.secret_for(kind, self.id())
    }

    /// Another secret of `kind` under an id that there is already.
    pub fn secret_for(&self, kind: SecretKind, id: SecretId) -> NewSecret {
        self.secret_with(kind, id, "")
    }

    /// A secret whose word says `more` between the secret and the checksum.
    fn secret_with(&self, kind: SecretKind, id: SecretId, more: &str) -> NewSecret {
        let secret: [u8; SECRET_LENGTH] = self.word();
        let mut token = String::with_capacity(4 + BODY_LENGTH + more.len());
        token.push_str(kind.prefix());
        token.push_str(id.as_str());
        token.extend(secret.iter().map(|byte| char::from(*byte)));
        token.push_str(more);
        let checksum = checksum(token.as_bytes());
        token.extend(checksum.iter().map(|byte| char::from(*byte)));
        NewSecret { id, hash: SecretHash(hash(&secret)), token: Token(token) }
    }
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_LENGTH] {
    let mut rest = crc32fast::hash(body);
    let mut out = [b'0'; CHECKSUM_LENGTH];
    for digit in out.iter_mut().rev() {
        *digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
    out
}

/// A well-formed secret as a caller presented it; proves nothing until its hash matches.
#[derive(Clone, Copy)]
pub struct PresentedSecret<'a> {
    /// Public id.
    pub id: SecretId,
    secret: &'a [u8],
}

impl PresentedSecret<'_> {
    /// The hash of its secret, as it would be stored.
    pub fn hash(&self) -> SecretHash {
        SecretHash(hash(self.secret))
    }

    /// What of it may be handed on.
    pub fn proof(&self) -> SecretProof {
        SecretProof { id: self.id, hash: self.hash() }
    }
}

/// A presented secret without the secret: who holds the stored hash can tell whether it was the right one, and who reads it on
/// its way can do nothing with it.
#[derive(Clone, Copy, Debug)]
pub struct SecretProof {
    /// Public id.
    pub id: SecretId,
    /// Hash of what was presented.
    pub hash: SecretHash,
}

impl fmt::Debug for PresentedSecret<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PresentedSecret({})", self.id)
    }
}

/// Takes a presented word apart; `None` when it has not exactly the form of `kind`.
pub fn parse(kind: SecretKind, word: &str) -> Option<PresentedSecret<'_>> {
    if kind == SecretKind::Join {
        return parse_join_token(word).map(|token| token.secret);
    }
    parse_with(kind, word, 0).map(|(secret, _)| secret)
}

/// Takes a word apart that says `more` bytes beside the secret, and gives these too.
fn parse_with(kind: SecretKind, word: &str, more: usize) -> Option<(PresentedSecret<'_>, &[u8])> {
    let body = word.strip_prefix(kind.prefix())?.as_bytes();
    if body.len() != BODY_LENGTH + more || !body.iter().all(u8::is_ascii_alphanumeric) {
        return None;
    }
    let (signed, given) = word.as_bytes().split_at(word.len() - CHECKSUM_LENGTH);
    if checksum(signed) != given {
        return None;
    }
    let id = SecretId(body[..ID_LENGTH].try_into().ok()?);
    let (secret, rest) = body[ID_LENGTH..].split_at(SECRET_LENGTH);
    Some((PresentedSecret { id, secret }, &rest[..more]))
}

/// The masked form under which a live secret may be listed: prefix and half of the public id.
pub fn masked(kind: SecretKind, id: SecretId) -> String {
    format!("{}{}…", kind.prefix(), &id.as_str()[..8])
}

/// Masks everything in `text` that has the form of one of Prism's secrets (contract §9 "audit, secrets"): what follows one of
/// the prefixes, in whichever case, and what is a secret without its prefix. Whoever has one in capitals can work out the rest
/// from the checksum.
pub fn redact(text: &str) -> Cow<'_, str> {
    match mask_prefixed(text) {
        Cow::Borrowed(text) => mask_bare(text),
        Cow::Owned(text) => match mask_bare(&text) {
            Cow::Borrowed(_) => text.into(),
            Cow::Owned(masked) => masked.into(),
        },
    }
}

const MASK: &str = "***";

/// Masks what follows a prefix.
fn mask_prefixed(text: &str) -> Cow<'_, str> {
    let is_body = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '~' | '+' | '/' | '=');
    let mut out = String::new();
    let (mut copied, mut from) = (0, 0);
    while let Some(found) = text[from..].find('_') {
        let body = from + found + 1;
        if !ends_in_prefix(&text.as_bytes()[copied..body]) || !text[body..].starts_with(is_body) {
            from = body;
            continue;
        }
        out.push_str(&text[copied..body]);
        out.push_str(MASK);
        copied = text[body..].find(|c| !is_body(c)).map_or(text.len(), |length| body + length);
        from = copied;
    }
    if copied == 0 {
        return text.into();
    }
    out.push_str(&text[copied..]);
    out.into()
}

fn ends_in_prefix(text: &[u8]) -> bool {
    let [.., p, r, kind, b'_'] = text else { return false };
    let kinds = [b'x', b'c', b's', b'j'];
    p.eq_ignore_ascii_case(&b'p') && r.eq_ignore_ascii_case(&b'r') && kinds.contains(&kind.to_ascii_lowercase())
}

/// Masks words that are a secret but for the prefix.
fn mask_bare(text: &str) -> Cow<'_, str> {
    if text.len() < BODY_LENGTH {
        return text.into();
    }
    let mut out = String::new();
    let mut copied = 0;
    for word in text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| is_bare(word)) {
        let at = word.as_ptr().addr() - text.as_ptr().addr();
        out.push_str(&text[copied..at]);
        out.push_str(MASK);
        copied = at + word.len();
    }
    if copied == 0 {
        return text.into();
    }
    out.push_str(&text[copied..]);
    out.into()
}

/// Whether an alphanumeric word has the length of a secret without its prefix, and either its checksum or nothing but capitals.
/// Hashes, which have other lengths, and names, which have other checksums and lower case, are none.
fn is_bare(word: &str) -> bool {
    let kinds: &[SecretKind] = match word.len() {
        BODY_LENGTH => &[SecretKind::AdminKey, SecretKind::ClientKey, SecretKind::Session],
        length if length == JOIN_TOKEN_LENGTH - SecretKind::Join.prefix().len() => &[SecretKind::Join],
        _ => return false,
    };
    if word.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase()) {
        return !word.bytes().all(|byte| byte.is_ascii_hexdigit());
    }
    let (said, given) = word.as_bytes().split_at(word.len() - CHECKSUM_LENGTH);
    kinds.iter().any(|kind| checksum(&[kind.prefix().as_bytes(), said].concat()) == given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_new_secret_is_recognised_and_only_as_its_own_kind() {
        let new = Random::system().secret(SecretKind::AdminKey);
        let presented = parse(SecretKind::AdminKey, new.token.expose()).expect("well formed");
        assert_eq!(presented.id, new.id);
        assert!(new.hash.matches(&presented));
        assert!(parse(SecretKind::ClientKey, new.token.expose()).is_none());
        let other = Random::system().secret(SecretKind::AdminKey);
        assert!(!other.hash.matches(&presented));
    }

    #[test]
    fn a_replaced_secret_keeps_its_id_and_nothing_else() {
        let random = Random::system();
        let old = random.secret(SecretKind::AdminKey);
        let new = random.secret_for(SecretKind::AdminKey, old.id);
        assert_eq!(new.id, old.id);
        let presented = parse(SecretKind::AdminKey, new.token.expose()).expect("well formed");
        assert_eq!(presented.id, old.id);
        assert!(new.hash.matches(&presented) && !old.hash.matches(&presented));
        assert_ne!(random.id(), random.id());
    }

    #[test]
    fn every_single_change_breaks_the_checksum() {
        let token = Random::system().secret(SecretKind::Session).token.into_exposed();
        for at in 4..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'a' { b'b' } else { b'a' };
            assert!(parse(SecretKind::Session, std::str::from_utf8(&changed).unwrap()).is_none());
        }
        assert!(parse(SecretKind::Session, &token[..token.len() - 1]).is_none());
    }

    #[test]
    fn secrets_are_masked_wherever_they_stand() {
        let token = Random::system().secret(SecretKind::ClientKey).token.into_exposed();
        assert_eq!(redact(&format!("use {token}, please")), "use prc_***, please");
        assert_eq!(redact("prx_a prj_b"), "prx_*** prj_***");
        assert_eq!(redact("nothing here, prx_ neither"), "nothing here, prx_ neither");
        assert_eq!(redact("PRX_A, Prj_b and xpRs_c"), "PRX_***, Prj_*** and xpRs_***");
    }

    #[test]
    fn a_secret_without_its_prefix_is_masked_as_it_is_and_in_capitals() {
        let random = Random::system();
        let kinds = [SecretKind::AdminKey, SecretKind::ClientKey, SecretKind::Session];
        let authority = AuthorityFingerprint::of_certificate(b"a certificate");
        let made = kinds.map(|kind| random.secret(kind)).into_iter().chain([random.join_token(authority)]);
        for token in made.map(|new| new.token.into_exposed()) {
            let (prefix, bare) = token.split_at(4);
            for shown in [bare.to_owned(), bare.to_uppercase()] {
                assert_eq!(redact(&format!("token:{shown}")), "token:***");
                assert_eq!(redact(&format!("{shown}, {shown}")), "***, ***");
            }
            assert_eq!(redact(&token.to_uppercase()), format!("{}***", prefix.to_uppercase()));
            assert_eq!(redact(&format!("{token} {bare}")), format!("{prefix}*** ***"));
        }
    }

    #[test]
    fn names_and_hashes_of_the_length_of_a_secret_stay() {
        let name = "abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqr";
        let (mixed, digits) = (name.replace('m', "M"), "0123456789ABCDEF".repeat(4));
        for known in [name, &mixed, &digits, &digits[..BODY_LENGTH], &digits.to_lowercase()] {
            assert_eq!(redact(known), known);
        }
        assert_eq!(name.len(), BODY_LENGTH);
    }

    #[test]
    fn megabytes_of_near_secrets_are_masked_without_going_back() {
        // Quadratic work on this would take hours, not the test's seconds.
        let near = "prx_a ".repeat(700_000);
        assert_eq!(redact(&near).len(), 700_000 * "prx_*** ".len());
        let none = "prx_ pr".repeat(600_000);
        assert_eq!(redact(&none).len(), none.len());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(word in ".*") {
            let _ = parse(SecretKind::Session, &word);
            let _ = redact(&word);
        }

        #[test]
        fn no_secret_survives_redaction(before in "[a-z ]{0,8}", after in "[ ,a-z]{0,8}") {
            let token = Random::system().secret(SecretKind::AdminKey).token.into_exposed();
            let redacted = redact(&format!("{before}{token}{after}")).into_owned();
            prop_assert!(!redacted.contains(&token[8..40]));
        }
    }
}
