//! The tokens of a login: `tokens/<context>.json` beside the contexts' file, for its owner only.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{RENEW_WITHIN, issuer::Granted};
use crate::{
    context::Oidc,
    error::{Failure, Result},
    private_file::{self, Lock},
    secret::Secret,
};

/// Longest wait for another command that renews the same login.
const PATIENCE: Duration = Duration::from_mins(1);

/// Tokens, and from whom they came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tokens {
    issuer: String,
    client_id: String,
    /// What is shown to Prism.
    #[serde(rename = "accessToken")]
    pub access: Secret,
    /// What is shown to the issuer for new ones.
    #[serde(rename = "refreshToken", skip_serializing_if = "Option::is_none")]
    pub refresh: Option<Secret>,
    /// When the access token ends, in seconds since 1970; none if the issuer does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
}

impl Tokens {
    /// Those that were granted now.
    pub fn of(settings: &Oidc, granted: Granted) -> Self {
        let lifetime = granted.expires_in.and_then(|seconds| i64::try_from(seconds).ok());
        Self {
            issuer: settings.issuer.clone(),
            client_id: settings.client_id.clone(),
            access: granted.access,
            refresh: granted.refresh,
            expires_at: lifetime.map(|lifetime| Timestamp::now().as_second().saturating_add(lifetime)),
        }
    }

    /// Whether this issuer gave them to this client.
    pub fn is_of(&self, settings: &Oidc) -> bool {
        (&self.issuer, &self.client_id) == (&settings.issuer, &settings.client_id)
    }

    /// Whether the access token lasts a while, and is not the one that was refused.
    pub fn lasts(&self, refused: Option<&Secret>) -> bool {
        self.lasts_longer_than(RENEW_WITHIN, refused)
    }

    /// Whether the access token has not ended yet, and is not the one that was refused.
    pub fn is_alive(&self, refused: Option<&Secret>) -> bool {
        self.lasts_longer_than(Duration::ZERO, refused)
    }

    fn lasts_longer_than(&self, span: Duration, refused: Option<&Secret>) -> bool {
        let left = |end: i64| end.saturating_sub(Timestamp::now().as_second());
        self.expires_at.is_none_or(|end| left(end) > span.as_secs() as i64) && refused != Some(&self.access)
    }
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store(PathBuf);

impl Store {
    /// The one of a context. Its name was checked to be no more than a name.
    pub fn of(contexts: &Path, context: &str) -> Self {
        Self(contexts.with_file_name("tokens").join(format!("{context}.json")))
    }

    /// What it holds, if it is there.
    pub fn load(&self) -> Result<Option<Tokens>> {
        let text = match fs::read(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failure("read", &error)),
        };
        // Only where: the text itself is secret.
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            let place = format!("line {}, column {}", error.line(), error.column());
            Failure::usage(format!("{} is not a file of tokens ({place})", self.0.display()))
                .hint("remove it, and log in again")
        })
    }

    /// Replaces the tokens in one step.
    pub fn save(&self, tokens: &Tokens) -> Result<()> {
        let text = serde_json::to_vec_pretty(tokens).map_err(|error| self.failure("write", &error))?;
        private_file::replace(&self.0, &text).map_err(|error| self.failure("write", &error))
    }

    /// Removes the tokens, if there are any.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failure("remove", &error)),
            _ => Ok(()),
        }
    }

    /// Waits until no other command changes the tokens.
    pub async fn lock(&self) -> Result<Lock> {
        private_file::lock(&self.0.with_added_extension("lock"), PATIENCE)
            .await
            .map_err(|error| self.failure("lock", &error))
    }

    fn failure(&self, verb: &str, error: &dyn std::fmt::Display) -> Failure {
        Failure::usage(format!("cannot {verb} {}: {error}", self.0.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn tokens(expires_in: Option<u64>) -> Tokens {
        let secret = |text| Secret::parse(text, "test").unwrap();
        let granted = Granted { access: secret("access-secret"), refresh: Some(secret("refresh-secret")), expires_in };
        let settings =
            Oidc { issuer: "https://id.example".to_owned(), client_id: "prism".to_owned(), ..Oidc::default() };
        Tokens::of(&settings, granted)
    }

    #[test]
    fn tokens_are_private_and_hidden() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::of(&folder.path().join("prism/admin.toml"), "prod");
        assert_eq!(store.load().unwrap(), None);
        let tokens = tokens(Some(60));
        store.save(&tokens).unwrap();
        assert_eq!(store.load().unwrap().unwrap(), tokens);
        let path = folder.path().join("prism/tokens/prod.json");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!format!("{tokens:?}").contains("secret"), "{tokens:?}");
        fs::write(&path, "{\"accessToken\": refresh-secret").unwrap();
        assert!(!store.load().unwrap_err().to_string().contains("secret"));
        store.remove().unwrap();
        store.remove().unwrap();
        assert_eq!(store.load().unwrap(), None);
    }

    #[test]
    fn tokens_are_used_while_they_last_and_are_not_refused() {
        let lasting = tokens(Some(60));
        assert!(lasting.lasts(None) && lasting.is_alive(None));
        assert!(!lasting.lasts(Some(&lasting.access)) && !lasting.is_alive(Some(&lasting.access)));
        assert!(lasting.lasts(lasting.refresh.as_ref()));
        let ending = tokens(Some(20));
        assert!(!ending.lasts(None) && ending.is_alive(None));
        assert!(!tokens(Some(0)).is_alive(None));
        assert!(tokens(None).lasts(None));
    }
}
