use std::sync::Arc;
use std::time::Duration;

use prism_core::limits::MAX_KEYS;
use prism_core::page::Page;
use prism_core::permission::Reach;
use prism_core::secret::{PresentedSecret, SecretHash, SecretId};
use prism_core::session::{ClientBasis, DataGrant};
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
    /// When it got its current token; `None` = it has its first.
    pub rotated_at: Option<UnixMillis>,
    /// The token before, while it still works.
    pub previous: Option<PreviousToken>,
}

/// A token that was replaced and works until the end of its overlap.
#[derive(Clone, Copy, Debug)]
pub struct PreviousToken {
    /// Hash of its secret.
    pub hash: SecretHash,
    /// When it ends.
    pub until: UnixMillis,
}

impl ApiKeyRow {
    /// The hash of the token that `presented` proves, if the key and that token are valid at `now`.
    pub(crate) fn proven(&self, presented: &PresentedSecret<'_>, now: UnixMillis) -> Option<SecretHash> {
        // Both are compared whatever the first says, so that the time tells nothing.
        let current = self.hash.matches(presented).then_some(self.hash);
        let previous = self.previous.filter(|token| token.hash.matches(presented)).map(|token| token.hash);
        current.or(previous).filter(|hash| self.accepts(hash, now))
    }

    /// Whether the token with this hash, which was proven before, is valid at `now`.
    pub(crate) fn accepts(&self, hash: &SecretHash, now: UnixMillis) -> bool {
        let current = self.hash == *hash;
        let previous = self.previous.is_some_and(|token| token.hash == *hash && now < token.until);
        (current || previous) && self.life.is_valid(now)
    }
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
        rotated_at: row.get::<_, Option<i64>>("rotated_at")?.map(UnixMillis),
        previous: previous_token(row)?,
    })
}

fn previous_token(row: &Row<'_>) -> rusqlite::Result<Option<PreviousToken>> {
    let (Some(hash), Some(until)) =
        (row.get::<_, Option<Vec<u8>>>("previous_hash")?, row.get::<_, Option<i64>>("previous_until")?)
    else {
        return Ok(None);
    };
    let hash = SecretHash::from_bytes(&hash).ok_or_else(|| corrupt("key hash"))?;
    Ok(Some(PreviousToken { hash, until: UnixMillis(until) }))
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

/// Keys whose last use is remembered; when there are more, all are forgotten, and noted once more.
const MAX_KNOWN_USES: usize = 2 * MAX_KEYS as usize;
/// How exactly it is known when a key was last used.
const TOUCH_EVERY: Duration = Duration::from_secs(1);

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

    /// All API keys that are valid now, by id.
    pub fn valid_api_keys(&self) -> Result<Vec<ApiKeyRow>> {
        let sql =
            "SELECT * FROM api_keys WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?1) ORDER BY id";
        self.all(sql, [self.now.0], read_api_key)
    }

    /// Stores a new API key; RESOURCE_EXHAUSTED `TOO_MANY_KEYS` when there are too many.
    pub fn insert_api_key(&mut self, key: &ApiKeyRow) -> Result<()> {
        self.require_room("api_keys")?;
        self.put_api_key(key)
    }

    /// Stores a new API key, however many there are.
    pub(crate) fn put_api_key(&mut self, key: &ApiKeyRow) -> Result<()> {
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

    /// Gives a key a new token. The one before works until `overlap_ends`, or not at all; one that was replaced even earlier
    /// ends now. `None` when the key is unknown.
    pub fn rotate_api_key(
        &mut self,
        id: &str,
        hash: &SecretHash,
        overlap_ends: Option<UnixMillis>,
    ) -> Result<Option<ApiKeyRow>> {
        self.execute(
            "UPDATE api_keys SET previous_hash = CASE WHEN ?3 IS NULL THEN NULL ELSE hash END, previous_until = ?3, hash = ?2,
             rotated_at = ?4 WHERE id = ?1",
            (id, hash.as_bytes(), overlap_ends.map(|at| at.0), self.now.0),
        )?;
        self.touched.api_keys.insert(id.to_owned());
        self.api_key(id)
    }

    /// One API key, as a rule from memory; when it was last used may be older there.
    pub(crate) fn current_api_key(&self, id: SecretId) -> Result<Option<Arc<ApiKeyRow>>> {
        if self.touched.api_keys.contains(id.as_str()) {
            return Ok(self.api_key(id.as_str())?.map(Arc::new));
        }
        Ok(self.published.api_keys.load().get(&id).cloned())
    }

    /// Notes that a key was used, to the second.
    pub(crate) fn touch_api_key(&mut self, key: &ApiKeyRow) -> Result<()> {
        let last = self.touched.known.used.get(&key.id).copied();
        if last.is_some_and(|last| last <= self.now && self.now.since(last) < TOUCH_EVERY) {
            return Ok(());
        }
        if self.touched.known.used.len() >= MAX_KNOWN_USES {
            self.touched.known.used.clear();
        }
        self.touched.known.used.insert(key.id, self.now);
        self.touch("api_keys", key.id.as_str())
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
        self.touched.client_access = true;
        Ok(())
    }

    /// Revokes a client key; one that is revoked already stays as it was. `false` when it is unknown.
    pub fn revoke_client_key(&mut self, id: &str) -> Result<bool> {
        self.touched.client_keys.insert(id.to_owned());
        self.touched.client_access = true;
        self.revoke("client_keys", id)
    }

    /// Notes that the client key under a session was used.
    pub(crate) fn touch_client_key(&mut self, basis: &ClientBasis) -> Result<()> {
        if basis.subjects.is_empty() { self.touch("client_keys", &basis.credential_id) } else { Ok(()) }
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
        let live = format!(
            "SELECT count(*) FROM {table} WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?1)"
        );
        if self.count(&live, [self.now.0])? < MAX_KEYS {
            return Ok(());
        }
        let message = format!("an installation holds at most {MAX_KEYS} keys of a kind; revoke what nobody uses");
        Err(Error::new(Kind::ResourceExhausted, "TOO_MANY_KEYS", message))
    }

    /// Forgets keys that were revoked or ended before `before`.
    pub(crate) fn forget_keys(&mut self, before: UnixMillis) -> Result<()> {
        for table in ["api_keys", "client_keys"] {
            let ids = self.all(
                &format!("DELETE FROM {table} WHERE revoked_at <= ?1 OR expires_at <= ?1 RETURNING id"),
                [before.0],
                |row| row.get::<_, String>(0),
            )?;
            if table == "api_keys" {
                self.touched.api_keys.extend(ids);
            } else if !ids.is_empty() {
                self.touched.client_keys.extend(ids);
                self.touched.client_access = true;
            }
        }
        Ok(())
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
