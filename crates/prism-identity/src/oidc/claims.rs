//! What a token says, checked against what its issuer may say.

use std::collections::BTreeSet;
use std::time::Duration;

use prism_core::subject::Subject;
use prism_core::{NamespaceName, UnixMillis};
use serde_json::{Map, Value};

use super::settings::{IssuerSettings, RoleMapping};
use super::{Plane, ProvenToken};

/// How far the clocks of issuer and server may be apart.
pub const LEEWAY: Duration = Duration::from_secs(30);
/// Most groups of one token, and most values of a claim that stand for roles; what follows is left out.
pub const MAX_GROUPS: usize = 256;
/// Longest `sub`, in bytes (OpenID Connect Core 1.0, §2).
pub const MAX_SUB_BYTES: usize = 255;

/// Claims that only ID tokens have: they say who logged in, not what a client may ask for.
const OF_ID_TOKENS: [&str; 4] = ["at_hash", "c_hash", "nonce", "s_hash"];
/// The last second of the year 9999; what is later is no date.
const LAST_SECOND: f64 = 253_402_300_799.0;

type Refusal = &'static str;

/// The claims of a token.
pub struct Claims(Map<String, Value>);

impl Claims {
    /// Takes over what the token holds.
    pub fn new(claims: Map<String, Value>) -> Self {
        Self(claims)
    }

    /// Who issued it, or nothing when that is not a string.
    pub fn issuer(&self) -> Option<&str> {
        self.text("iss")
    }

    /// Checks everything but the signature, and says whom the token names.
    pub fn prove(&self, settings: &IssuerSettings, plane: Plane, now: UnixMillis) -> Result<ProvenToken, Refusal> {
        self.is_for(settings, plane)?;
        let expires_at = self.is_current(now)?;
        if OF_ID_TOKENS.iter().any(|name| self.0.contains_key(*name)) {
            return Err("it is an ID token");
        }
        let sub = self.text("sub").ok_or("it has no sub")?;
        if !(1..=MAX_SUB_BYTES).contains(&sub.len()) || sub.chars().any(char::is_control) {
            return Err("its sub is empty, too long, or has control characters");
        }
        let name = self.text(&settings.user_claim).ok_or("it does not name a user")?;
        if settings.user_claim == "email" && !self.email_is_verified() {
            return Err("its email is not verified");
        }
        let actor = format!("{}{name}", settings.prefix);
        // A name must be usable by itself: behind a prefix, an empty one would be.
        let user = Subject::user(name).and_then(|_| Subject::user(&actor)).ok_or("its user has an unusable name")?;
        let mut subjects = vec![user];
        let groups: BTreeSet<&str> = self.texts(&settings.groups_claim).into_iter().collect();
        subjects.extend(groups.iter().filter_map(|group| {
            Subject::group(group).and_then(|_| Subject::group(&format!("{}{group}", settings.prefix)))
        }));
        let roles = match plane {
            Plane::Admin => self.roles(&settings.role_map),
            Plane::Data => Vec::new(),
        };
        Ok(ProvenToken { actor, subjects, roles, credential_id: format!("{}#{sub}", settings.issuer), expires_at })
    }

    /// The audience of the plane, not that of the other, and the scope where one is due.
    fn is_for(&self, settings: &IssuerSettings, plane: Plane) -> Result<(), Refusal> {
        let audiences = self.audiences().ok_or("its aud is missing, or neither a string nor a list of strings")?;
        let (admin, data) = (settings.admin_audience.as_deref(), settings.data_audience.as_deref());
        let names = |audience: Option<&str>| audience.is_some_and(|audience| audiences.contains(&audience));
        if names(admin) && names(data) {
            return Err("it is for both planes");
        }
        match plane {
            Plane::Admin if !names(admin) => Err("it is not for the admin plane"),
            Plane::Admin if !self.scopes()?.contains(&settings.admin_scope.as_str()) => Err("it lacks the admin scope"),
            Plane::Data if !names(data) => Err("it is not for the data plane"),
            _ => Ok(()),
        }
    }

    /// Whether `exp`, `nbf` and `iat` allow it now; then the moment from which it is refused.
    fn is_current(&self, now: UnixMillis) -> Result<UnixMillis, Refusal> {
        let end = self.date("exp")?.ok_or("it has no exp")? + LEEWAY;
        if now >= end {
            return Err("it has expired");
        }
        for (claim, refusal) in [("nbf", "it is not valid yet"), ("iat", "it was issued in the future")] {
            if self.date(claim)?.is_some_and(|begin| begin > now + LEEWAY) {
                return Err(refusal);
            }
        }
        Ok(end)
    }

    /// A NumericDate (RFC 7519, §2), which may have a fraction.
    fn date(&self, claim: &str) -> Result<Option<UnixMillis>, Refusal> {
        let Some(value) = self.0.get(claim) else { return Ok(None) };
        let seconds = value.as_f64().ok_or("one of its dates is not a number")?;
        if !(0.0..=LAST_SECOND).contains(&seconds) {
            return Err("one of its dates is out of range");
        }
        Ok(Some(UnixMillis((seconds * 1000.0) as i64)))
    }

    fn audiences(&self) -> Option<Vec<&str>> {
        match self.0.get("aud")? {
            Value::String(audience) => Some(vec![audience]),
            Value::Array(audiences) => audiences.iter().map(Value::as_str).collect(),
            _ => None,
        }
    }

    /// `scope` (RFC 8693, §4.2), or `scp` as some issuers name it; both count.
    fn scopes(&self) -> Result<Vec<&str>, Refusal> {
        let unusable = "its scope is neither a string nor a list of strings";
        let mut scopes = Vec::new();
        match self.0.get("scope") {
            None => {}
            Some(Value::String(scope)) => scopes.extend(scope.split(' ')),
            Some(_) => return Err(unusable),
        }
        match self.0.get("scp") {
            None => {}
            Some(Value::String(scope)) => scopes.extend(scope.split(' ')),
            Some(Value::Array(list)) => {
                for scope in list {
                    scopes.push(scope.as_str().ok_or(unusable)?);
                }
            }
            Some(_) => return Err(unusable),
        }
        Ok(scopes)
    }

    /// Only where the issuer says so, some of them as a string: whoever may write any address into their profile could pass for
    /// anybody.
    fn email_is_verified(&self) -> bool {
        self.0.get("email_verified").is_some_and(|value| *value == true || value == "true")
    }

    fn roles(&self, map: &[RoleMapping]) -> Vec<(String, Option<NamespaceName>)> {
        let mut roles = Vec::new();
        for mapping in map.iter().filter(|mapping| self.texts(&mapping.claim).contains(&mapping.value.as_str())) {
            let role = (mapping.role.clone(), mapping.namespace.clone());
            if !roles.contains(&role) {
                roles.push(role);
            }
        }
        roles
    }

    fn text(&self, claim: &str) -> Option<&str> {
        self.0.get(claim).and_then(Value::as_str)
    }

    /// A string, or the first [`MAX_GROUPS`] strings of a list.
    fn texts(&self, claim: &str) -> Vec<&str> {
        match self.0.get(claim) {
            Some(Value::String(text)) => vec![text],
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).take(MAX_GROUPS).collect(),
            _ => Vec::new(),
        }
    }
}
