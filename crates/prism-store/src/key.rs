use prism_core::limits::MAX_KEYS;
use prism_core::page::Page;
use prism_core::permission::Reach;
use prism_core::secret::{SecretHash, SecretId};
use prism_core::session::DataGrant;
use prism_core::{Error, Kind, NamespaceName, Result, UnixMillis};
use rusqlite::{Row, named_params};

use crate::tx::{Tx, corrupt, limited_to};

/// An admin API key as stored.
#[derive(Clone, Debug)]
pub struct ApiKeyRow {
    /// Public id.
    pub id: SecretId,
    /// Hash of the secret.
    pub hash: SecretHash,
    /// Name for people.
    pub name: String,
    /// Roles it holds.
    pub roles: Vec<String>,
    /// The roles hold in this namespace only.
    pub namespace: Option<NamespaceName>,
    /// The person it belongs to; `None` = a shared key.
    pub owner: Option<String>,
    /// Life.
    pub life: KeyLife,
}

/// A data-plane client key as stored.
#[derive(Clone, Debug)]
pub struct ClientKeyRow {
    /// Public id.
    pub id: SecretId,
    /// Hash of the secret.
    pub hash: SecretHash,
    /// Name for people.
    pub name: String,
    /// The one namespace it is for.
    pub namespace: NamespaceName,
    /// What it allows there.
    pub grant: DataGrant,
    /// Life.
    pub life: KeyLife,
}

/// When a key was made, used and will end.
#[derive(Clone, Debug, Default)]
pub struct KeyLife {
    /// When it was made.
    pub created_at: UnixMillis,
    /// By whom.
    pub created_by: String,
    /// When it ends by itself.
    pub expires_at: Option<UnixMillis>,
    /// When it was last accepted, to the second.
    pub last_used_at: Option<UnixMillis>,
    /// When it was revoked.
    pub revoked_at: Option<UnixMillis>,
}

impl KeyLife {
    /// Whether the key is valid at `now`.
    pub fn is_valid(&self, now: UnixMillis) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let time = |column| row.get::<_, Option<i64>>(column).map(|at| at.map(UnixMillis));
        Ok(Self {
            created_at: UnixMillis(row.get("created_at")?),
            created_by: row.get("created_by")?,
            expires_at: time("expires_at")?,
            last_used_at: time("last_used_at")?,
            revoked_at: time("revoked_at")?,
        })
    }
}

fn id_and_hash(row: &Row<'_>) -> rusqlite::Result<(SecretId, SecretHash)> {
    Ok((
        SecretId::parse(row.get_ref("id")?.as_str()?).ok_or_else(|| corrupt("key id"))?,
        SecretHash::from_bytes(row.get_ref("hash")?.as_blob()?).ok_or_else(|| corrupt("key hash"))?,
    ))
}

pub(crate) fn read_api_key(row: &Row<'_>) -> rusqlite::Result<ApiKeyRow> {
    let (id, hash) = id_and_hash(row)?;
    Ok(ApiKeyRow {
        id,
        hash,
        name: row.get("name")?,
        roles: serde_json::from_str(row.get_ref("roles")?.as_str()?).map_err(corrupt)?,
        namespace: row
            .get::<_, Option<String>>("namespace")?
            .map(NamespaceName::try_from)
            .transpose()
            .map_err(corrupt)?,
        owner: row.get("owner")?,
        life: KeyLife::read(row)?,
    })
}

pub(crate) fn read_client_key(row: &Row<'_>) -> rusqlite::Result<ClientKeyRow> {
    let (id, hash) = id_and_hash(row)?;
    Ok(ClientKeyRow {
        id,
        hash,
        name: row.get("name")?,
        namespace: NamespaceName::try_from(row.get::<_, String>("namespace")?).map_err(corrupt)?,
        grant: DataGrant { read: row.get("may_read")?, write: row.get("may_write")? },
        life: KeyLife::read(row)?,
    })
}

const LIMITED: &str = "(:limited IS NULL OR namespace IN (SELECT value FROM json_each(:limited)))";

impl Tx<'_> {
    /// One API key.
    pub fn api_key(&self, id: &str) -> Result<Option<ApiKeyRow>> {
        self.one("SELECT * FROM api_keys WHERE id = ?1", [id], read_api_key)
    }

    /// API keys within `reach`, by id, and how many there are.
    pub fn api_keys(&self, reach: &Reach, page: &Page) -> Result<(Vec<ApiKeyRow>, i64)> {
        self.key_list("api_keys", limited_to(reach, None).as_deref(), page, read_api_key)
    }

    /// Stores a new API key; RESOURCE_EXHAUSTED `TOO_MANY_KEYS` when there are too many.
    pub fn insert_api_key(&mut self, key: &ApiKeyRow) -> Result<()> {
        self.require_room("api_keys")?;
        self.execute(
            "INSERT INTO api_keys (id, hash, name, roles, namespace, owner, created_at, created_by, expires_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            (
                key.id.as_str(),
                key.hash.as_bytes(),
                &key.name,
                serde_json::to_string(&key.roles).map_err(prism_core::Error::internal)?,
                key.namespace.as_ref().map(NamespaceName::as_str),
                &key.owner,
                key.life.created_at.0,
                &key.life.created_by,
                key.life.expires_at.map(|at| at.0),
            ),
        )?;
        self.touched.api_keys.insert(key.id.as_str().to_owned());
        Ok(())
    }

    /// Revokes an API key; one that is revoked already stays as it was. `false` when it is unknown.
    pub fn revoke_api_key(&mut self, id: &str) -> Result<bool> {
        self.touched.api_keys.insert(id.to_owned());
        self.revoke("api_keys", id)
    }

    /// Whether the key with this id is valid now, and notes that it was used, to the second. "" is the server itself.
    pub fn use_api_key(&mut self, id: &str) -> Result<bool> {
        if id.is_empty() {
            return Ok(true);
        }
        self.touch("api_keys", id)?;
        Ok(self.api_key(id)?.is_some_and(|key| key.life.is_valid(self.now)))
    }

    /// One client key.
    pub fn client_key(&self, id: &str) -> Result<Option<ClientKeyRow>> {
        self.one("SELECT * FROM client_keys WHERE id = ?1", [id], read_client_key)
    }

    /// Client keys within `reach`, by id, and how many there are.
    pub fn client_keys(&self, reach: &Reach, namespace: Option<&str>, page: &Page) -> Result<(Vec<ClientKeyRow>, i64)> {
        self.key_list("client_keys", limited_to(reach, namespace).as_deref(), page, read_client_key)
    }

    /// Stores a new client key; RESOURCE_EXHAUSTED `TOO_MANY_KEYS` when there are too many.
    pub fn insert_client_key(&mut self, key: &ClientKeyRow) -> Result<()> {
        self.require_room("client_keys")?;
        self.execute(
            "INSERT INTO client_keys (id, hash, name, namespace, may_read, may_write, created_at, created_by, expires_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            (
                key.id.as_str(), key.hash.as_bytes(), &key.name, key.namespace.as_str(), key.grant.read, key.grant.write,
                key.life.created_at.0, &key.life.created_by, key.life.expires_at.map(|at| at.0),
            ),
        )?;
        self.touched.client_keys.insert(key.id.as_str().to_owned());
        Ok(())
    }

    /// Revokes a client key; one that is revoked already stays as it was. `false` when it is unknown.
    pub fn revoke_client_key(&mut self, id: &str) -> Result<bool> {
        self.touched.client_keys.insert(id.to_owned());
        self.revoke("client_keys", id)
    }

    pub(crate) fn touch_client_key(&mut self, id: &str) -> Result<()> {
        self.touch("client_keys", id)
    }

    fn key_list<T>(
        &self,
        table: &str,
        limited: Option<&str>,
        page: &Page,
        read: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<(Vec<T>, i64)> {
        let rows = self.all(
            &format!("SELECT * FROM {table} WHERE {LIMITED} AND id > :after ORDER BY id LIMIT :limit"),
            named_params! {":limited": limited, ":after": page.after.as_deref().unwrap_or(""), ":limit": page.size as i64 + 1},
            read,
        )?;
        let total =
            self.count(&format!("SELECT count(*) FROM {table} WHERE {LIMITED}"), named_params! {":limited": limited})?;
        Ok((rows, total))
    }

    fn require_room(&self, table: &str) -> Result<()> {
        if self.count(&format!("SELECT count(*) FROM {table} WHERE revoked_at IS NULL"), [])? < MAX_KEYS {
            return Ok(());
        }
        let message = format!("an installation holds at most {MAX_KEYS} keys of a kind; revoke what nobody uses");
        Err(Error::new(Kind::ResourceExhausted, "TOO_MANY_KEYS", message))
    }

    fn revoke(&self, table: &str, id: &str) -> Result<bool> {
        let sql = format!("UPDATE {table} SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1");
        Ok(self.execute(&sql, (id, self.now.0))? > 0)
    }

    fn touch(&self, table: &str, id: &str) -> Result<()> {
        let sql = format!(
            "UPDATE {table} SET last_used_at = ?2 WHERE id = ?1 AND (last_used_at IS NULL OR last_used_at <= ?2 - 1000)"
        );
        self.execute(&sql, (id, self.now.0)).map(|_| ())
    }
}
