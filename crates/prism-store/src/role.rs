use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use prism_core::access::{Access, ClientAccess, ClientGrant, ClientKeyAccess};
use prism_core::limits::MAX_ROLES;
use prism_core::permission::{Role, built_in_roles};
use prism_core::{Error, Kind, Result};
use rusqlite::Row;

use crate::binding::{read_binding, read_client_binding};
use crate::key::read_client_key;
use crate::tx::{Tx, corrupt};

fn read_role(row: &Row<'_>) -> rusqlite::Result<Role> {
    Ok(Role {
        name: row.get("name")?,
        permissions: serde_json::from_str::<Vec<_>>(row.get_ref("permissions")?.as_str()?).map_err(corrupt)?.into(),
        built_in: false,
    })
}

/// What the deletion of a role took from others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoleRemoval {
    /// Bindings that were deleted with it.
    pub bindings: i64,
    /// API keys that do not have it any more.
    pub keys: i64,
}

impl Tx<'_> {
    /// Who may do what, with the changes of this batch.
    pub fn access(&mut self) -> Result<Arc<Access>> {
        if !self.touched.access {
            return Ok(self.published.access.load_full());
        }
        if let Some(current) = &self.touched.current_access {
            return Ok(Arc::clone(current));
        }
        let current = Arc::new(self.load_access()?);
        self.touched.current_access = Some(Arc::clone(&current));
        Ok(current)
    }

    pub(crate) fn access_changed(&mut self) {
        self.touched.access = true;
        self.touched.current_access = None;
    }

    pub(crate) fn load_access(&self) -> Result<Access> {
        let mut roles: BTreeMap<String, Role> =
            built_in_roles().into_iter().map(|role| (role.name.clone(), role)).collect();
        for role in self.all("SELECT * FROM roles", [], read_role)? {
            // A name that became built in later stays what it is there.
            roles.entry(role.name.clone()).or_insert(role);
        }
        let mut bindings: HashMap<_, Vec<_>> = HashMap::new();
        for row in self.all("SELECT * FROM bindings ORDER BY id", [], read_binding)? {
            bindings.entry(row.subject).or_default().push(row.grant);
        }
        Ok(Access { roles, bindings, revoked_certificates: Arc::new(self.revoked_certificates()?) })
    }

    pub(crate) fn load_client_access(&self) -> Result<ClientAccess> {
        let keys = self.all("SELECT * FROM client_keys WHERE revoked_at IS NULL", [], read_client_key)?;
        let keys = keys.into_iter().map(|key| {
            let grant = ClientGrant { namespace: key.namespace, grant: key.grant };
            (key.id.to_string(), ClientKeyAccess { grant, expires_at: key.life.expires_at })
        });
        let mut bindings: HashMap<_, Vec<_>> = HashMap::new();
        for row in self.all("SELECT * FROM client_bindings ORDER BY id", [], read_client_binding)? {
            bindings.entry(row.subject).or_default().push(row.grant);
        }
        Ok(ClientAccess {
            keys: keys.collect(),
            bindings,
            revoked_certificates: Arc::new(self.revoked_certificates()?),
        })
    }

    fn revoked_certificates(&self) -> Result<HashSet<String>> {
        let revoked =
            self.all("SELECT fingerprint FROM certificates WHERE revoked_at IS NOT NULL", [], |row| row.get(0))?;
        Ok(revoked.into_iter().collect())
    }

    /// Stores a new role; ALREADY_EXISTS when there is one of this name, RESOURCE_EXHAUSTED `TOO_MANY_ROLES` when there are too
    /// many.
    pub fn insert_role(&mut self, role: &Role, created_by: &str) -> Result<()> {
        let access = self.access()?;
        if access.roles.contains_key(&role.name) {
            return Err(Error::already_exists(format!("role:{}", role.name)));
        }
        if access.roles.len() >= MAX_ROLES {
            let message = format!("an installation holds at most {MAX_ROLES} roles; delete what nobody needs");
            return Err(Error::new(Kind::ResourceExhausted, "TOO_MANY_ROLES", message));
        }
        let permissions = serde_json::to_string(&*role.permissions).map_err(Error::internal)?;
        self.execute(
            "INSERT INTO roles (name, permissions, created_at, created_by) VALUES (?1, ?2, ?3, ?4)",
            (&role.name, permissions, self.now.0, created_by),
        )?;
        self.access_changed();
        Ok(())
    }

    /// Replaces the permissions of a custom role; `false` when there is none of this name.
    pub fn update_role(&mut self, role: &Role) -> Result<bool> {
        let permissions = serde_json::to_string(&*role.permissions).map_err(Error::internal)?;
        let changed = self.execute("UPDATE roles SET permissions = ?2 WHERE name = ?1", (&role.name, permissions))?;
        self.access_changed();
        Ok(changed > 0)
    }

    /// Deletes a custom role, with its bindings, and takes it from API keys: a later role of the same name must not find
    /// holders that nobody gave it to. `None` when there is none of this name.
    pub fn delete_role(&mut self, name: &str) -> Result<Option<RoleRemoval>> {
        if self.execute("DELETE FROM roles WHERE name = ?1", [name])? == 0 {
            return Ok(None);
        }
        let bindings = self.execute("DELETE FROM bindings WHERE role = ?1", [name])?;
        let keys = self.all(
            "UPDATE api_keys SET roles = (SELECT json_group_array(value) FROM json_each(api_keys.roles) WHERE value <> ?1)
             WHERE EXISTS (SELECT 1 FROM json_each(api_keys.roles) WHERE value = ?1) RETURNING id",
            [name],
            |row| row.get::<_, String>(0),
        )?;
        let removal = RoleRemoval { bindings: bindings as i64, keys: keys.len() as i64 };
        self.touched.api_keys.extend(keys);
        self.access_changed();
        Ok(Some(removal))
    }
}
