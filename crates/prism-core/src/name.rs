//! Names with their rules proven (contract §9 "names").

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Error;

fn is_edge(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn matches(value: &str, max: usize, inner: fn(u8) -> bool) -> bool {
    let bytes = value.as_bytes();
    (1..=max).contains(&bytes.len())
        && is_edge(bytes[0])
        && is_edge(bytes[bytes.len() - 1])
        && bytes.iter().all(|byte| inner(*byte))
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $max:expr, $inner:expr, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// What a valid name looks like, for messages to people.
            pub const RULE: &'static str = $rule;

            /// Parses `value`; INVALID_ARGUMENT naming `field` when it breaks the rule.
            pub fn parse(field: &str, value: &str) -> Result<Self, Error> {
                Self::try_from(value.to_owned()).map_err(|rule| {
                    Error::invalid(field, if value.is_empty() { format!("must be set ({rule})") } else { rule })
                })
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = String;
            fn try_from(value: String) -> Result<Self, String> {
                if matches(&value, $max, $inner) { Ok(Self(value.into())) } else { Err(Self::RULE.to_owned()) }
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// Name of a namespace.
    NamespaceName,
    63,
    |byte| is_edge(byte) || byte == b'-',
    "1 to 63 of a-z, 0-9 and '-', first and last a letter or digit"
);
name!(
    /// Name of a node.
    NodeId,
    63,
    |byte| is_edge(byte) || byte == b'-',
    "1 to 63 of a-z, 0-9 and '-', first and last a letter or digit"
);
name!(
    /// Name of a config, unique in the whole installation.
    ConfigName,
    128,
    |byte| is_edge(byte) || matches!(byte, b'.' | b'_' | b'-'),
    "1 to 128 of a-z, 0-9, '.', '_' and '-', first and last a letter or digit"
);
name!(
    /// Name of a configured backend instance.
    InstanceName,
    63,
    |byte| is_edge(byte) || byte == b'-',
    "1 to 63 of a-z, 0-9 and '-', first and last a letter or digit"
);
name!(
    /// Name of a role.
    RoleName,
    64,
    |byte| is_edge(byte) || matches!(byte, b'.' | b'_' | b'-'),
    "1 to 64 of a-z, 0-9, '.', '_' and '-', first and last a letter or digit"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_follow_their_rule() {
        for good in ["a", "0", "a-b", "orders-2", &"x".repeat(63)] {
            assert!(NamespaceName::parse("n", good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "ä", "a b", "a\n", &"x".repeat(64)] {
            assert!(NamespaceName::parse("n", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn configs_may_have_dots_and_underscores_inside() {
        assert!(ConfigName::parse("n", "orders.v1_x-2").is_ok());
        for bad in [".a", "a.", "_a", &"x".repeat(129)] {
            assert!(ConfigName::parse("n", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn roles_are_named_like_configs_but_shorter() {
        for good in ["a", "db-admin", "team_1.viewer", &"x".repeat(64)] {
            assert!(RoleName::parse("role.name", good).is_ok(), "{good}");
        }
        for bad in ["", "Admin", "a b", "a/b", "-a", "a.", &"x".repeat(65)] {
            assert!(RoleName::parse("role.name", bad).is_err(), "{bad:?}");
        }
    }
}
