//! Named contexts: which server, which CA, which credential; kept in a file of the operator's own.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::error::{Failure, Result};

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
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    pub token: Option<String>,
    /// Person on whose behalf calls are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

// Not derived: the token must not reach a log or a panic message.
impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("endpoint", &self.endpoint)
            .field("ca", &self.ca)
            .field("token_file", &self.token_file)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("user", &self.user)
            .finish()
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
        let failed = |error: io::Error| Failure::usage(format!("cannot write {}: {error}", path.display()));
        let text = toml::to_string_pretty(self)
            .map_err(|error| Failure::usage(format!("cannot write {}: {error}", path.display())))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist(path).map(drop).map_err(|error| failed(error.error))
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
    use super::*;

    fn contexts() -> Contexts {
        let context = Context {
            endpoint: "prism.example:8981".to_owned(),
            ca: PathBuf::from("/etc/prism/ca.pem"),
            token: Some("prx_id_secret".to_owned()),
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
