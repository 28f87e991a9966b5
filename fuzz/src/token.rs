//! Prism's own secrets: parsing one as every kind, and masking all of them.

use prism_core::secret::{SecretId, SecretKind, masked, parse, redact};

const KINDS: [SecretKind; 3] = [SecretKind::AdminKey, SecretKind::ClientKey, SecretKind::Session];
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Even first byte: the rest is text. Odd: the rest is made into a secret with a right checksum.
pub fn run(input: &[u8]) {
    let Some((way, rest)) = input.split_first() else { return };
    if way % 2 == 0 {
        presented(&String::from_utf8_lossy(rest));
    } else {
        well_formed(KINDS[usize::from(way / 2) % KINDS.len()], rest);
    }
}

fn presented(text: &str) {
    let known: Vec<_> = KINDS.iter().filter_map(|kind| Some((*kind, parse(*kind, text)?))).collect();
    assert!(known.len() <= 1, "a secret is of one kind");
    for (kind, secret) in known {
        assert!(text.is_ascii() && text.len() == 58);
        assert_eq!(SecretId::parse(secret.id.as_str()), Some(secret.id));
        assert_eq!(&text[4..20], secret.id.as_str());
        assert!(!masked(kind, secret.id).contains(&text[12..]));
    }
    hidden(text);
}

/// No secret is left, and masking what is masked changes nothing.
fn hidden(text: &str) {
    let safe = redact(text);
    let is_body = |c: char| c.is_ascii_alphanumeric() || "_-.~+/=".contains(c);
    for prefix in ["prx_", "prc_", "prj_", "prs_"] {
        for (at, _) in safe.match_indices(prefix) {
            assert!(!safe[at + prefix.len()..].starts_with(is_body), "{safe:?}");
        }
    }
    assert_eq!(redact(&safe), safe);
    if !text.contains("pr") {
        assert_eq!(safe, text);
    }
}

fn well_formed(kind: SecretKind, bytes: &[u8]) {
    let Some(body) = bytes.get(..48) else { return };
    let body: String = body.iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % 62])).collect();
    let mut secret = format!("{}{body}", kind.prefix());
    let mut sum = crc32fast::hash(secret.as_bytes());
    let mut digits = [b'0'; 6];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(sum % 62) as usize];
        sum /= 62;
    }
    secret.extend(digits.map(char::from));
    let parsed = parse(kind, &secret).expect("a secret with a right checksum is well-formed");
    assert_eq!(parsed.id.as_str(), &secret[4..20]);
    presented(&secret);
    let around = String::from_utf8_lossy(&bytes[48..]);
    let text = format!("{around}{secret} {around}");
    // Without its prefix nobody can tell it from other text.
    assert!(around.contains(&secret[4..]) || !redact(&text).contains(&secret[4..]));
    hidden(&text);
}
