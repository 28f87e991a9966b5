//! Names in certificates: which are taken, and what they are the names of. Nothing is normalised or matched in part.

use prism_core::subject::MAX_SUBJECT_BYTES;

use super::{CertificateKind, CertificateRefused, refused};

/// Longest name of an own certificate's holder, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// The identity that Prism's own CA gives to the `name` of a `kind`: `spiffe://<cluster>/<kind>/<name>`.
///
/// `None` for external kinds, and for names that are not 1 to 255 ASCII letters, digits and `.`, `_`, `-`, `+`, `@`, `=`, `~`,
/// `:`, are only dots, or make it longer than a subject may be. What this makes, [`super::ClientTrust::identify`] takes, and nothing else of the own CA.
pub fn own_identity(cluster: &str, kind: CertificateKind, name: &str) -> Option<String> {
    let kind = match kind {
        CertificateKind::Controller => "controller",
        CertificateKind::User => "user",
        CertificateKind::Client => "client",
        CertificateKind::Node => "node",
        CertificateKind::External => return None,
    };
    let identity = format!("spiffe://{cluster}/{kind}/{name}");
    (is_trust_domain(cluster) && is_name(name) && identity.len() <= MAX_SUBJECT_BYTES).then_some(identity)
}

/// Kind and name of an own identity.
pub fn own_parts<'a>(cluster: &str, uri: &'a str) -> Option<(CertificateKind, &'a str)> {
    let path = uri.strip_prefix("spiffe://")?.strip_prefix(cluster)?.strip_prefix('/')?;
    let (kind, name) = path.split_once('/')?;
    let kind = match kind {
        "controller" => CertificateKind::Controller,
        "user" => CertificateKind::User,
        "client" => CertificateKind::Client,
        "node" => CertificateKind::Node,
        _ => return None,
    };
    is_name(name).then_some((kind, name))
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+@=~:".contains(&byte))
        && name.bytes().any(|byte| byte != b'.')
}

/// A trust domain of SPIFFE.
pub fn is_trust_domain(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte))
}

/// The subject alternative names of a certificate that could be an identity.
#[derive(Default)]
pub struct Names {
    /// Uniform resource identifiers.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// Email addresses.
    pub emails: Vec<String>,
}

impl Names {
    /// The only URI, if there is one.
    pub fn single_uri(&self) -> Result<Option<&str>, CertificateRefused> {
        match self.uris.as_slice() {
            [] => Ok(None),
            [uri] => Ok(Some(uri)),
            _ => Err(refused("it has more than one URI")),
        }
    }

    /// The only URI, else the only one of DNS names and email addresses; nothing that could be taken for an identity of
    /// `cluster`.
    pub fn external_identity(&self, cluster: &str) -> Result<&str, CertificateRefused> {
        let (identity, is_sound) = match (self.single_uri()?, self.dns.as_slice(), self.emails.as_slice()) {
            (Some(uri), _, _) => (uri, is_uri(uri)),
            (None, [dns], []) => (dns.as_str(), is_dns_name(dns)),
            (None, [], [email]) => (email.as_str(), is_email(email)),
            (None, [], []) => return Err(refused("it has no URI, DNS name or email address that says whose it is")),
            _ => return Err(refused("it has several names, and none says whose it is")),
        };
        let shown = || crate::quoted(identity, 128);
        if !is_sound || identity.len() > MAX_SUBJECT_BYTES {
            return Err(refused(format!("its name {} is not one that is taken", shown())));
        }
        if claims_trust_domain(identity, cluster) {
            return Err(refused(format!("its name {} is for Prism's own CA to give", shown())));
        }
        Ok(identity)
    }
}

/// Whether a URI stands in the trust domain, however it is written: host and scheme know no case, and a user, a port or a
/// query may stand beside them. A URI of SPIFFE that is not in its one canonical form counts too.
fn claims_trust_domain(identity: &str, cluster: &str) -> bool {
    let lower = identity.to_ascii_lowercase();
    if !lower.starts_with("spiffe:") {
        return false;
    }
    let canonical = identity
        .strip_prefix("spiffe://")
        .map(|rest| rest.split_once('/').map_or(rest, |(domain, _)| domain))
        .filter(|domain| is_trust_domain(domain));
    canonical.is_none_or(|domain| domain == cluster)
}

/// `scheme:rest` of printable ASCII without what is reserved for lists, patterns, escapes and quotes.
fn is_uri(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once(':') else { return false };
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    is_scheme
        && !rest.is_empty()
        && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:/?#@!$&'()+;=".contains(&byte))
}

/// Labels of letters, digits, `-` and `_`; no wildcard.
fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

fn is_email(email: &str) -> bool {
    let Some((local, domain)) = email.split_once('@') else { return false };
    let is_local = !local.is_empty()
        && local.len() <= 64
        && local.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+='".contains(&byte));
    is_local && is_dns_name(domain)
}
