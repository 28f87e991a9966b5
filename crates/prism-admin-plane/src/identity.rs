//! Who calls: the identity layer of the admin plane. API keys today; OIDC and client certificates will stand beside them and
//! yield the same [`Identity`].

use prism_core::permission::{Grant, Role};
use prism_core::secret::{self, SecretKind};
use prism_core::{Error, Result};
use prism_store::{ApiKeyRow, Store};

/// Longest `x-admin-user`, in bytes.
const MAX_USER_BYTES: usize = 256;

/// A caller whose credential proved valid.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Who acts, for the audit log.
    pub actor: String,
    /// `api_key`, later also `oidc` and `mtls`; `none` for the server itself.
    pub auth_method: &'static str,
    /// Public id of the credential.
    pub credential_id: String,
    /// What it may do.
    pub grants: Vec<Grant>,
}

impl Identity {
    /// The server itself, at a moment when no operator can be asked (`--dev`).
    pub fn server(actor: &str, roles: &[Role]) -> Self {
        let grants = roles
            .iter()
            .filter(|role| role.name == "admin")
            .map(|role| Grant { role: role.name.clone(), namespace: None, permissions: role.permissions.clone() })
            .collect();
        Self { actor: actor.to_owned(), auth_method: "none", credential_id: String::new(), grants }
    }
}

/// The credentials that a call presents, as it presents them.
#[derive(Clone, Debug, Default)]
pub struct Presented {
    /// Values of `authorization`.
    pub authorization: Vec<String>,
    /// Values of `x-admin-token`.
    pub admin_token: Vec<String>,
    /// Values of `x-admin-user`.
    pub admin_user: Vec<String>,
}

/// A refused credential: the error, and the id of the credential where it proved valid but did not fit.
#[derive(Debug)]
pub struct Refused {
    /// What the caller is told.
    pub error: Error,
    /// Public id, for the audit log.
    pub credential_id: String,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { error, credential_id: String::new() }
    }
}

/// Finds out who calls. Unknown, wrong, expired, revoked and foreign credentials are told apart by nobody.
pub fn authenticate(presented: &Presented, store: &Store, roles: &[Role]) -> Result<Identity, Refused> {
    let token = the_token(presented)?;
    let key = secret::parse(SecretKind::AdminKey, token)
        .and_then(|presented| store.authenticate(&presented))
        .ok_or_else(|| Error::unauthenticated("CREDENTIAL_INVALID", "the admin credential is not valid"))?;
    let actor = actor(presented, &key).map_err(|error| Refused { error, credential_id: key.id.to_string() })?;
    Ok(Identity { actor, auth_method: "api_key", credential_id: key.id.to_string(), grants: grants(&key, roles) })
}

fn the_token(presented: &Presented) -> Result<&str> {
    let mut bearer = presented.authorization.iter().map(|value| {
        value
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map_or("", |(_, token)| token.trim())
    });
    let mut all = presented.admin_token.iter().map(String::as_str);
    let first = bearer.next().or_else(|| all.next()).ok_or_else(|| {
        Error::unauthenticated(
            "CREDENTIAL_MISSING",
            "the admin plane needs a credential: authorization: Bearer prx_…, or x-admin-token: prx_…",
        )
    })?;
    if bearer.chain(all).any(|other| other != first) {
        return Err(Error::unauthenticated(
            "CREDENTIAL_CONFLICT",
            "the call presents several different credentials; present one",
        ));
    }
    Ok(first)
}

fn actor(presented: &Presented, key: &ApiKeyRow) -> Result<String> {
    let named = match presented.admin_user.as_slice() {
        [] => None,
        [one] if one.is_empty() => None,
        [one] if one.len() <= MAX_USER_BYTES && is_readable(one) && !is_reserved(one) => Some(one.as_str()),
        _ => {
            return Err(Error::unauthenticated(
                "ADMIN_USER_INVALID",
                format!(
                    "x-admin-user must be one name of at most {MAX_USER_BYTES} printable ASCII characters, and not one that Prism gives itself"
                ),
            ));
        }
    };
    match (&key.owner, named) {
        (Some(owner), Some(named)) if owner != named => {
            Err(Error::unauthenticated("ADMIN_USER_MISMATCH", "x-admin-user is not the person this key belongs to"))
        }
        (Some(owner), _) => Ok(owner.clone()),
        (None, Some(named)) => Ok(named.to_owned()),
        (None, None) => Ok(format!("key:{}", key.id)),
    }
}

fn is_readable(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}

/// Actors that Prism writes into the audit log itself; nobody may pass for them.
pub(crate) fn is_reserved(name: &str) -> bool {
    matches!(name, "anonymous" | "prism" | "prism-dev") || name.starts_with("key:")
}

fn grants(key: &ApiKeyRow, roles: &[Role]) -> Vec<Grant> {
    roles
        .iter()
        .filter(|role| key.roles.contains(&role.name))
        .map(|role| Grant {
            role: role.name.clone(),
            namespace: key.namespace.clone(),
            permissions: role.permissions.clone(),
        })
        .collect()
}
