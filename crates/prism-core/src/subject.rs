//! Whom a binding names: a user, a group, or the identity of a certificate (contract §7, `Binding.subject`).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Longest name of a subject, in bytes.
pub const MAX_SUBJECT_BYTES: usize = 512;

/// `user:…`, `group:…` or `certificate:…`, compared whole, byte for byte.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Subject(String);

impl Subject {
    /// A user; `None` when the name breaks the bounds.
    pub fn user(name: &str) -> Option<Self> {
        Self::of("user", name)
    }

    /// A group; `None` when the name breaks the bounds.
    pub fn group(name: &str) -> Option<Self> {
        Self::of("group", name)
    }

    /// What a certificate's subject alternative name says; `None` when it breaks the bounds.
    pub fn certificate(identity: &str) -> Option<Self> {
        Self::of("certificate", identity)
    }

    /// Parses `field` of a request.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        text.split_once(':')
            .filter(|(kind, _)| matches!(*kind, "user" | "group" | "certificate"))
            .and_then(|(kind, name)| Self::of(kind, name))
            .ok_or_else(|| {
                Error::invalid(
                    field,
                    format!(
                        "must be user:NAME, group:NAME or certificate:NAME, with a name of 1 to {MAX_SUBJECT_BYTES} bytes \
                         without control characters or spaces at its ends"
                    ),
                )
            })
    }

    fn of(kind: &str, name: &str) -> Option<Self> {
        let fits =
            (1..=MAX_SUBJECT_BYTES).contains(&name.len()) && name.trim() == name && !name.chars().any(char::is_control);
        fits.then(|| Self(format!("{kind}:{name}")))
    }

    /// The subject as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows the kind.
    pub fn name(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, name)| name)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subject({:?})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_part_of_the_subject_and_the_name_may_hold_colons() {
        let uri = Subject::parse("s", "certificate:spiffe://prism/user/alice").unwrap();
        assert_eq!(uri.name(), "spiffe://prism/user/alice");
        assert_ne!(Subject::user("a"), Subject::group("a"));
        assert_eq!(Subject::parse("s", "user:a").unwrap(), Subject::user("a").unwrap());
    }

    #[test]
    fn what_people_could_confuse_is_refused() {
        for bad in ["", "alice", "user:", "key:a", "User:a", "user: a", "user:a ", "user:a\0b", "group:a\nb"] {
            let error = Subject::parse("binding.subject", bad).unwrap_err();
            assert!(error.message().contains("binding.subject"), "{bad:?}");
        }
        assert!(Subject::parse("s", &format!("user:{}", "x".repeat(MAX_SUBJECT_BYTES + 1))).is_err());
    }
}
