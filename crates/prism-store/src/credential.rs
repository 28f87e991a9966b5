use prism_core::access::RoleGrant;
use prism_core::permission::Grant;
use prism_core::secret::{SecretHash, SecretId};
use prism_core::subject::Subject;
use prism_core::{Result, UnixMillis};

use crate::key::ApiKeyRow;
use crate::{Store, Tx};

/// What the rights of an admin caller stand on. What it allows is looked up at each use, never remembered.
#[derive(Clone, Debug)]
pub enum Credential {
    /// The server itself, at a moment when no operator can be asked (`--dev`).
    Server,
    /// None: a caller who proves itself by what the request holds, if at all (a join token). It is granted nothing.
    Stranger,
    /// An API key, and which of its tokens.
    ApiKey {
        /// Public id.
        id: SecretId,
        /// Hash of the token that was presented.
        hash: SecretHash,
    },
    /// What an issuer or a CA vouches for.
    Vouched {
        /// Whom bindings may name.
        subjects: Vec<Subject>,
        /// Roles that come with it without a binding.
        roles: Vec<RoleGrant>,
        /// SHA-256 of a certificate, in hexadecimal.
        certificate: Option<String>,
        /// When it ends.
        ends: UnixMillis,
    },
}

impl Store {
    /// What `credential` allows now; `None` when it is not valid any more.
    pub fn standing(&self, credential: &Credential) -> Option<Vec<Grant>> {
        let now = self.clock.now();
        let access = self.published.access.load();
        match credential {
            Credential::Server => Some(access.grants(&server_roles(), &[])),
            Credential::Stranger => Some(Vec::new()),
            Credential::ApiKey { id, hash } => {
                let keys = self.published.api_keys.load();
                let key = keys.get(id).filter(|key| key.accepts(hash, now))?;
                Some(access.grants(&roles_of(key), &[]))
            }
            Credential::Vouched { subjects, roles, certificate, ends } => {
                let revoked = |fingerprint| access.revoked_certificates.contains(fingerprint);
                let valid = now < *ends && !certificate.as_ref().is_some_and(revoked);
                valid.then(|| access.grants(roles, subjects))
            }
        }
    }
}

impl Tx<'_> {
    /// As [`Store::standing`], with the changes of this batch, and notes that a key was used.
    pub fn standing(&mut self, credential: &Credential) -> Result<Option<Vec<Grant>>> {
        let access = self.access()?;
        match credential {
            Credential::Server => Ok(Some(access.grants(&server_roles(), &[]))),
            Credential::Stranger => Ok(Some(Vec::new())),
            Credential::ApiKey { id, hash } => {
                let Some(key) = self.current_api_key(*id)?.filter(|key| key.accepts(hash, self.now)) else {
                    return Ok(None);
                };
                self.touch_api_key(&key)?;
                Ok(Some(access.grants(&roles_of(&key), &[])))
            }
            Credential::Vouched { subjects, roles, certificate, ends } => {
                let revoked = |fingerprint| access.revoked_certificates.contains(fingerprint);
                let valid = self.now < *ends && !certificate.as_ref().is_some_and(revoked);
                Ok(valid.then(|| access.grants(roles, subjects)))
            }
        }
    }
}

fn server_roles() -> [RoleGrant; 1] {
    [RoleGrant { role: "admin".to_owned(), namespace: None }]
}

fn roles_of(key: &ApiKeyRow) -> Vec<RoleGrant> {
    key.roles.iter().map(|role| RoleGrant { role: role.clone(), namespace: key.namespace.clone() }).collect()
}
