//! Access tokens of OIDC issuers: JWTs, checked against the keys that their issuer publishes.
//!
//! Which issuers there are, which algorithms they may use and whom they may speak for is the operator's word; nothing in a
//! token chooses it. Keys are fetched in the background and kept while an issuer is down.

mod claims;
mod discovery;
mod issuer;
mod json;
mod keys;
mod settings;
#[cfg(test)]
mod tests;
mod token;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use prism_core::subject::Subject;
use prism_core::{Clock, NamespaceName, Result, UnixMillis};
use tokio::task::JoinSet;

pub use keys::KeySet;
pub use settings::{Algorithm, IssuerSettings, RoleMapping};
pub use token::MAX_TOKEN_BYTES;

use issuer::{Issuer, Pace};
use keys::Verdict;
use token::Unproven;

/// What a credential is for; one of one plane is never valid on the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plane {
    /// Operators.
    Admin,
    /// Clients.
    Data,
}

/// What a valid token proves at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenToken {
    /// The user, with the issuer's prefix.
    pub actor: String,
    /// The user and its groups, whom bindings may name.
    pub subjects: Vec<Subject>,
    /// Roles that the operator's map gives its claims; none on the data plane.
    pub roles: Vec<(String, Option<NamespaceName>)>,
    /// `<issuer>#<sub>`, at most 768 bytes.
    pub credential_id: String,
    /// From this moment on the token is refused: its `exp` and the leeway of 30 s.
    pub expires_at: UnixMillis,
}

/// Why a token proves nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenRefused {
    /// It is not valid. The text is for the server's log only; what the caller wrote stands in it quoted, if at all.
    Invalid(String),
    /// The keys of this issuer, named, were never fetched, and cannot be now.
    Unavailable(String),
}

impl fmt::Display for TokenRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(why) => f.write_str(why),
            Self::Unavailable(issuer) => write!(f, "the keys of {issuer} cannot be fetched"),
        }
    }
}

impl std::error::Error for TokenRefused {}

/// The issuers whose tokens are accepted; a clone is the same ones.
#[derive(Clone)]
pub struct Issuers {
    all: Arc<[Arc<Issuer>]>,
    clock: Clock,
}

impl Issuers {
    /// No issuer: every token is refused.
    pub fn none() -> Self {
        Self { all: Arc::from([]), clock: Clock::system() }
    }

    /// Issuers whose keys [`Issuers::keep_fresh`] fetches, and [`Issuers::verify`] when a token asks for an unknown one.
    ///
    /// FAILED_PRECONDITION, naming the issuer, for settings that cannot work or would be unsafe.
    pub fn new(settings: Vec<IssuerSettings>, clock: Clock) -> Result<Self> {
        Self::at_pace(settings, clock, Pace::default())
    }

    fn at_pace(settings: Vec<IssuerSettings>, clock: Clock, pace: Pace) -> Result<Self> {
        settings::prove(&settings)?;
        let all = settings.into_iter().map(|settings| Issuer::discovered(settings, pace).map(Arc::new));
        Ok(Self { all: all.collect::<Result<_>>()?, clock })
    }

    /// Issuers whose keys are given and stay as they are; nothing is ever fetched.
    ///
    /// FAILED_PRECONDITION as for [`Issuers::new`].
    pub fn with_keys(issuers: Vec<(IssuerSettings, KeySet)>, clock: Clock) -> Result<Self> {
        let (settings, keys): (Vec<_>, Vec<_>) = issuers.into_iter().unzip();
        settings::prove(&settings)?;
        let all = settings.into_iter().zip(keys).map(|(settings, keys)| Arc::new(Issuer::fixed(settings, keys)));
        Ok(Self { all: all.collect(), clock })
    }

    /// Groups that a `role_map` gives roles of the admin plane to, as bindings would name them, with role and namespace. What it
    /// gives to other claims has no such name.
    pub fn mapped_groups(&self) -> Vec<(Subject, String, Option<NamespaceName>)> {
        let issuers = self.all.iter().map(|issuer| &issuer.settings);
        let mappings = issuers.flat_map(|settings| settings.role_map.iter().map(move |mapping| (settings, mapping)));
        mappings
            .filter(|(settings, mapping)| mapping.claim == settings.groups_claim)
            .filter_map(|(settings, mapping)| {
                let group = Subject::group(&format!("{}{}", settings.prefix, mapping.value))?;
                Some((group, mapping.role.clone(), mapping.namespace.clone()))
            })
            .collect()
    }

    /// How long ago the keys of each issuer were fetched, or since the start while they never were.
    pub fn key_ages(&self) -> Vec<(String, Duration)> {
        let issuers = self.all.iter();
        issuers.filter_map(|issuer| Some((issuer.settings.issuer.clone(), issuer.age()?))).collect()
    }

    /// Whether there is no issuer.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Fetches the keys of every issuer now, then every 10 minutes or sooner if its cache headers say so, until `stop`.
    /// While an issuer is down it is tried again after 1 s, then after longer, up to a minute; what was fetched stays.
    pub async fn keep_fresh(self, stop: impl Future<Output = ()> + Send) {
        let mut loops = JoinSet::new();
        for issuer in self.all.iter().cloned() {
            loops.spawn(issuer.keep_fresh());
        }
        stop.await;
    }

    /// Checks a token of a caller of `plane` at this moment. Takes up to 5 s when keys must be fetched first, which unknown
    /// keys cause at most every 10 s per issuer.
    pub async fn verify(&self, plane: Plane, token: &str) -> Result<ProvenToken, TokenRefused> {
        let invalid = |why: &str| TokenRefused::Invalid(why.to_owned());
        let token = Unproven::parse(token).map_err(invalid)?;
        let named = token.claims.issuer().ok_or_else(|| invalid("the token names no issuer"))?;
        let issuer =
            self.all.iter().find(|issuer| issuer.settings.issuer == named).ok_or_else(|| {
                TokenRefused::Invalid(format!("the issuer {} is not known", crate::quoted(named, 128)))
            })?;
        let of_issuer = |why: &str| TokenRefused::Invalid(format!("a token of {}: {why}", issuer.settings.issuer));
        // Before the signature, so that this plane's callers cannot make an issuer of the other plane fetch its keys.
        if issuer.settings.audience(plane).is_none() {
            return Err(of_issuer("the issuer is not for this plane"));
        }
        if !issuer.settings.algorithms.contains(&token.algorithm) {
            return Err(of_issuer("its algorithm is not among those of the issuer"));
        }
        match issuer.check(&token).await {
            Some(Verdict::Signed) => {}
            Some(Verdict::NotSigned) => return Err(of_issuer("its signature is wrong")),
            Some(Verdict::Ambiguous) => return Err(of_issuer("it has no kid, and several keys fit")),
            Some(Verdict::NoKey) => {
                let kid = crate::quoted(token.kid.as_deref().unwrap_or("(none)"), 64);
                return Err(of_issuer(&format!("the issuer has no key {kid} for its algorithm")));
            }
            None => return Err(TokenRefused::Unavailable(issuer.settings.issuer.clone())),
        }
        token.claims.prove(&issuer.settings, plane, self.clock.now()).map_err(of_issuer)
    }
}

impl fmt::Debug for Issuers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all.iter().map(|issuer| &issuer.settings.issuer)).finish()
    }
}
