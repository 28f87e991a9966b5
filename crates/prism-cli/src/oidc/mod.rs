//! Logins at an OIDC issuer: by device code for people, by client credentials for machines. The tokens are kept in a
//! private file per context and renewed before they end.

pub mod device;
pub mod issuer;
pub mod tokens;

use std::time::Duration;

use crate::{
    context::{Oidc, parse_name},
    error::{Failure, Result},
    exit::Exit,
    oidc::{
        issuer::{Answer, Issuer},
        tokens::{Store, Tokens},
    },
    output::note,
    secret::Secret,
    target::Surroundings,
};

/// A token with less life than this is renewed first.
const RENEW_WITHIN: Duration = Duration::from_secs(30);

/// The login of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    context: String,
    settings: Oidc,
    store: Store,
    secret: Option<Secret>,
}

impl Login {
    /// The login of the context of that name. Nothing is read yet.
    pub fn new(context: &str, settings: Oidc, around: &Surroundings) -> Result<Self> {
        parse_name(context).map_err(|why| Failure::usage(format!("context {context:?} cannot have a login: {why}")))?;
        let store = Store::of(around.contexts_path()?, context);
        let (context, secret) = (context.to_owned(), around.client_secret.clone());
        Ok(Self { context, settings, store, secret })
    }

    /// Where its tokens are kept.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The issuer, with what this client proves itself to it.
    pub async fn issuer(&self) -> Result<Issuer> {
        let secret = match (&self.secret, &self.settings.client_secret_file) {
            (Some(secret), _) => Some(secret.clone()),
            (None, Some(file)) => Some(Secret::read_client(file)?),
            (None, None) if self.settings.client_credentials => {
                return Err(Failure::usage("the client's secret is not known")
                    .hint("name its file with --client-secret-file at login, or put it in PRISM_ADMIN_CLIENT_SECRET"));
            }
            (None, None) => None,
        };
        Issuer::discover(self.settings.clone(), secret).await
    }

    /// An access token with some life left, other than the one the server has refused. The one that this command has
    /// `used` before is used to its end, however near that is. Of two commands at once, one renews and the other waits
    /// for it.
    pub async fn bearer(&self, refused: Option<&Secret>, used: Option<&Secret>) -> Result<Secret> {
        let good = |tokens: &Tokens| {
            let in_use = used == Some(&tokens.access) && tokens.is_alive(refused);
            in_use || tokens.lasts(refused)
        };
        let tokens = self.load()?;
        if good(&tokens) {
            return Ok(tokens.access);
        }
        let _lock = self.store.lock().await?;
        let tokens = self.load()?;
        if good(&tokens) {
            return Ok(tokens.access);
        }
        match self.renew(&tokens).await {
            Ok(renewed) => {
                // Stored before it is used: the issuer may have made the old refresh token worthless.
                self.store.save(&renewed)?;
                Ok(renewed.access)
            }
            Err(failure) if failure.exit() == Exit::Unreachable && tokens.is_alive(refused) => {
                note(&format!("note: {}'s token ends soon, and its issuer cannot be reached", self.context));
                Ok(tokens.access)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Removes the tokens and has the refresh token revoked. The tokens are gone in any case; whether the issuer could
    /// be told is what may fail. False if there were none.
    pub async fn end(&self) -> Result<bool> {
        let _lock = self.store.lock().await?;
        let tokens = self.store.load()?;
        self.store.remove()?;
        let Some(tokens) = tokens else { return Ok(false) };
        if let (Some(refresh), true) = (&tokens.refresh, tokens.is_of(&self.settings)) {
            let revoked = async { self.issuer().await?.revoke(refresh).await };
            if !revoked.await.map_err(|failure| {
                failure
                    .detail("the tokens were removed here, but the issuer was not told that the refresh token is void")
                    .hint("end the session at the issuer itself")
            })? {
                note("note: the issuer has no way to revoke a token; the session there ends by itself");
            }
        }
        Ok(true)
    }

    /// What to do when it has ended.
    pub fn again(&self) -> String {
        format!("run: prism-admin login --context {}", self.context)
    }

    fn load(&self) -> Result<Tokens> {
        let tokens = self.store.load()?.ok_or_else(|| self.expired("nobody is logged in"))?;
        if tokens.is_of(&self.settings) {
            Ok(tokens)
        } else {
            // A token goes to the issuer and client it came from, and to nobody else.
            Err(self.expired("the tokens are of another issuer or client than the context names now"))
        }
    }

    async fn renew(&self, tokens: &Tokens) -> Result<Tokens> {
        let refresh = match (&tokens.refresh, self.settings.client_credentials) {
            (_, true) => None,
            (Some(refresh), false) => Some(refresh),
            (None, false) => {
                return Err(self
                    .expired("the login has expired")
                    .detail("the issuer gave no refresh token, so it cannot be renewed by itself"));
            }
        };
        let issuer = self.issuer().await?;
        let answer = match refresh {
            None => issuer.client_credentials().await?,
            Some(refresh) => issuer.refresh(refresh).await?,
        };
        match answer {
            Answer::Granted(granted) => {
                // An issuer that does not rotate leaves the old one valid.
                let mut renewed = Tokens::of(&self.settings, granted);
                renewed.refresh = renewed.refresh.or_else(|| refresh.cloned());
                Ok(renewed)
            }
            Answer::Refused(refused) if refused.error == "invalid_grant" => {
                Err(self.expired("the login has expired").detail(refused.to_string()))
            }
            Answer::Refused(refused) => Err(refused.failure("the login could not be renewed")),
        }
    }

    fn expired(&self, why: &str) -> Failure {
        Failure::new(Exit::Refused, format!("context {}: {why}", self.context)).hint(self.again())
    }
}
