//! Who may hand out rights for the whole installation, so that never the last one is taken away; and the way back for the
//! operator on the box.

use std::path::Path;

use prism_core::access::Access;
use prism_core::permission::Pattern;
use prism_core::secret::{SecretId, SecretKind};
use prism_core::{Error, Result};

use crate::audit::EntryDraft;
use crate::bootstrap::{ADMIN_TOKEN, PreparedSecret};
use crate::key::{ApiKeyRow, KeyLife};
use crate::{Store, Tx};

/// What an administrator holds, for the whole installation.
const ALL_ACCESS: &str = "access:*";
/// Who recovers a key, in the audit log.
pub const OPERATOR_ON_THE_BOX: &str = "operator on the box";

impl Tx<'_> {
    /// Carries `change` out unless it takes the last administrator away: FAILED_PRECONDITION `LAST_ADMINISTRATOR`.
    ///
    /// Administrators are the API keys that are valid now, and the subjects of bindings, with a role that has `access:*` for the
    /// whole installation. A key with an end counts until then. Whom an issuer's `role_map` makes an administrator is not known
    /// here, and whether anybody proves the subject of a binding neither: the first does not count, the second does. Where there
    /// was none before, there is none to lose.
    pub fn keeping_an_administrator<T>(&mut self, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let before = self.has_administrator()?;
        let changed = change(self)?;
        if before && !self.has_administrator()? {
            return Err(Error::precondition(
                "LAST_ADMINISTRATOR",
                "this takes away the last key or binding that gives access:* for the whole installation, and nobody could hand out \
                 rights again; first create an API key with the role admin, or bind the role admin to a user, group or certificate \
                 (what an issuer's role_map gives does not count)",
            ));
        }
        Ok(changed)
    }

    fn has_administrator(&mut self) -> Result<bool> {
        let access = self.access()?;
        let bound = access.bindings.values().flatten();
        if bound.filter(|grant| grant.namespace.is_none()).any(|grant| gives_all_access(&access, &grant.role)) {
            return Ok(true);
        }
        let sql = "SELECT EXISTS (SELECT 1 FROM api_keys, json_each(api_keys.roles) AS role
            WHERE namespace IS NULL AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?1)
            AND role.value IN (SELECT value FROM json_each(?2)))";
        let roles: Vec<&String> = access.roles.keys().filter(|role| gives_all_access(&access, role)).collect();
        let roles = serde_json::to_string(&roles).map_err(Error::internal)?;
        Ok(self.count(sql, (self.now.0, roles))? > 0)
    }
}

fn gives_all_access(access: &Access, role: &str) -> bool {
    let all = Pattern::try_from(ALL_ACCESS.to_owned());
    let includes = |held: &Pattern| all.as_ref().is_ok_and(|all| held.includes(all));
    access.roles.get(role).is_some_and(|role| role.permissions.iter().any(includes))
}

impl Store {
    /// Makes a new admin key for whoever may write `data_dir`, in `admin.token` (0600), with an entry `RecoverAdminKey` in the
    /// same transaction. Returns its public id. Other keys stay as they are, and their bound does not count.
    ///
    /// The token that is in `admin.token` already is replaced when the new key is valid, not before.
    pub async fn recover_admin_key(&self, data_dir: &Path) -> Result<SecretId> {
        let new = self.random.secret(SecretKind::AdminKey);
        let file = PreparedSecret::write(data_dir, ADMIN_TOKEN, new.token.expose())?;
        let (id, hash) = (new.id, new.hash);
        self.write(move |tx| {
            let created_by = OPERATOR_ON_THE_BOX.to_owned();
            tx.put_api_key(&ApiKeyRow {
                id,
                hash,
                name: "recovered admin key".to_owned(),
                roles: vec!["admin".to_owned()],
                namespace: None,
                owner: None,
                life: KeyLife { created_at: tx.now, created_by, ..KeyLife::default() },
                rotated_at: None,
                previous: None,
            })?;
            tx.append_entry(EntryDraft {
                actor: OPERATOR_ON_THE_BOX.to_owned(),
                operation: "RecoverAdminKey".to_owned(),
                resource: format!("key:{id}"),
                auth_method: "none".to_owned(),
                ..EntryDraft::default()
            })
        })
        .await
        .inspect_err(|_| file.discard())?;
        file.put()?;
        Ok(id)
    }
}
