//! Named contexts: which server, which CA, which credential; kept in a file of the operator's own.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Failure, Result},
    private_file,
    secret::Secret,
};

/// The file: contexts by name, and which of them is used without `--context`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// Name of the context in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// The contexts.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// How to reach one server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Address of the admin plane, `host:port`.
    pub endpoint: String,
    /// File with the CA certificates to trust.
    pub ca: PathBuf,
    /// File with the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The token itself; only with `--inline-token`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// File with the client certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// File with the key of the client certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Person on whose behalf calls are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where `login` gets its tokens; they are kept in a file of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<Oidc>,
}

/// How to log in at an OIDC issuer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oidc {
    /// The issuer, as its own configuration writes it.
    pub issuer: String,
    /// Id of this client at the issuer.
    pub client_id: String,
    /// Scopes to ask for.
    pub scopes: Vec<String>,
    /// Audience to ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// CA certificates to trust for the issuer, instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer_ca: Option<PathBuf>,
    /// File with the client's secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_file: Option<PathBuf>,
    /// The client logs in for itself, not for a person.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub client_credentials: bool,
}

impl Context {
    /// Takes its credentials away, so that another one can be given; a context has one.
    pub fn without_credentials(self) -> Self {
        Self { endpoint: self.endpoint, ca: self.ca, user: self.user, ..Self::default() }
    }

    /// The credentials it has, by name.
    pub fn credentials(&self) -> Vec<&'static str> {
        [
            ("a token", self.token.is_some() || self.token_file.is_some()),
            ("a certificate", self.cert.is_some() || self.key.is_some()),
            ("a login", self.oidc.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, present)| present.then_some(name))
        .collect()
    }
}

impl Contexts {
    /// Reads the file; a missing one is empty.
    pub fn load(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(Failure::usage(format!("cannot read {}: {error}", path.display()))),
        };
        toml::from_str(&text).map_err(|error| {
            // Only position and reason: the text around them may hold a token.
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            Failure::usage(format!("{}, line {line}: {}", path.display(), error.message()))
                .hint("correct the file, or remove it and make the contexts again with `prism-admin context set`")
        })
    }

    /// Replaces the file in one step; only its owner may read it.
    pub fn save(&self, path: &Path) -> Result<()> {
        let failed =
            |error: &dyn std::fmt::Display| Failure::usage(format!("cannot write {}: {error}", path.display()));
        let text = toml::to_string_pretty(self).map_err(|error| failed(&error))?;
        private_file::replace(path, text.as_bytes()).map_err(|error| failed(&error))
    }

    /// The context of that name.
    pub fn get(&self, name: &str) -> Result<&Context> {
        self.contexts.get(name).ok_or_else(|| self.unknown(name))
    }

    /// The failure for a name that is not there.
    pub fn unknown(&self, name: &str) -> Failure {
        let names: Vec<&str> = self.contexts.keys().map(String::as_str).collect();
        let failure = Failure::usage(format!("there is no context {name:?}"));
        if names.is_empty() {
            failure
                .hint("make one with `prism-admin context set NAME --endpoint HOST:PORT --ca FILE --token-file FILE`")
        } else {
            failure.hint(format!("there are: {}", names.join(", ")))
        }
    }
}

/// Checks the name of a context: letters, digits, dot, underscore and hyphen, at most 64.
pub fn parse_name(name: &str) -> std::result::Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
        return Err("use 1 to 64 letters, digits, dots, underscores and hyphens".to_owned());
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn contexts() -> Contexts {
        let context = Context {
            endpoint: "prism.example:8981".to_owned(),
            ca: PathBuf::from("/etc/prism/ca.pem"),
            token: Some(Secret::parse("prx_id_secret", "test").unwrap()),
            oidc: Some(Oidc {
                issuer: "https://id.example".to_owned(),
                client_id: "prism".to_owned(),
                scopes: vec!["openid".to_owned()],
                ..Oidc::default()
            }),
            ..Context::default()
        };
        Contexts { current: Some("prod".to_owned()), contexts: [("prod".to_owned(), context)].into() }
    }

    #[test]
    fn file_round_trips_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prism/admin.toml");
        assert_eq!(Contexts::load(&path).unwrap(), Contexts::default());
        contexts().save(&path).unwrap();
        contexts().save(&path).unwrap();
        assert_eq!(Contexts::load(&path).unwrap(), contexts());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn unknown_keys_are_named_with_their_line_and_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.toml");
        fs::write(&path, "current = \"a\"\n[contexts.a]\nendpoint = \"e\"\nca = \"c\"\ntokn = \"prx_secret\"\n")
            .unwrap();
        let text = Contexts::load(&path).unwrap_err().to_string();
        assert!(text.contains("line 5") && text.contains("tokn"), "{text}");
        assert!(!text.contains("prx_secret"), "{text}");
    }

    #[test]
    fn debug_hides_the_token() {
        assert!(!format!("{:?}", contexts()).contains("prx_id_secret"));
    }

    #[test]
    fn names_are_checked() {
        assert!(parse_name("prod-1.eu_west").is_ok());
        for bad in ["", "a b", "a/b", "\u{1b}", &"x".repeat(65)] {
            assert!(parse_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_unknown_name_tells_the_known_ones() {
        assert!(contexts().get("staging").unwrap_err().to_string().contains("there are: prod"));
    }
}
