use std::time::Duration;

use prism_core::limits::MAX_JOIN_TOKENS;
use prism_core::secret::{SecretHash, SecretId};
use prism_core::{Error, Kind, NodeId, Result, UnixMillis};
use rusqlite::Row;

use crate::tx::{Tx, corrupt};

/// A join token stays listed for this long after it was revoked or has ended.
const RETAIN_DEAD_TOKENS: Duration = Duration::from_hours(30 * 24);
/// Most join tokens that are kept once they are dead; those that have been so for longest are forgotten early.
const MAX_DEAD_TOKENS: i64 = 100_000;

/// A join token as stored.
#[derive(Clone, Debug)]
pub struct JoinTokenRow {
    /// Public id.
    pub id: SecretId,
    /// Hash of the secret.
    pub hash: SecretHash,
    /// The node it is for; `None` = any.
    pub node_id: Option<NodeId>,
    /// Whether it may be redeemed for the name of a node that is there, or was: who made it could have revoked that node.
    pub may_replace: bool,
    /// SHA-256 of the certificate of the CA that it names, in hexadecimal; `None` = that was not noted yet.
    pub authority: Option<String>,
    /// When it was issued.
    pub created_at: UnixMillis,
    /// By whom.
    pub created_by: String,
    /// When it ends by itself.
    pub expires_at: UnixMillis,
    /// When it was revoked.
    pub revoked_at: Option<UnixMillis>,
    /// What it was redeemed for.
    pub redemption: Option<Redemption>,
}

/// What a join token was redeemed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redemption {
    /// When.
    pub at: UnixMillis,
    /// By which node.
    pub node_id: String,
    /// SHA-256 of the node's public key (SubjectPublicKeyInfo in DER).
    pub key_hash: [u8; 32],
    /// Fingerprint of the certificate it got.
    pub certificate: String,
}

/// What a join token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinTokenStatus {
    /// It can be redeemed.
    Active,
    /// It was.
    Redeemed,
    /// It was taken back, redeemed or not.
    Revoked,
    /// Its time is over, and nobody has redeemed it.
    Expired,
}

impl JoinTokenRow {
    /// What it is good for at `now`.
    pub fn status(&self, now: UnixMillis) -> JoinTokenStatus {
        if self.revoked_at.is_some() {
            JoinTokenStatus::Revoked
        } else if self.redemption.is_some() {
            JoinTokenStatus::Redeemed
        } else if self.is_expired(now) {
            JoinTokenStatus::Expired
        } else {
            JoinTokenStatus::Active
        }
    }

    /// Whether its time is over at `now`.
    pub fn is_expired(&self, now: UnixMillis) -> bool {
        self.expires_at <= now
    }
}

pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<JoinTokenRow> {
    let node = |id: Option<String>| id.map(NodeId::try_from).transpose().map_err(corrupt);
    let redeemed_at: Option<i64> = row.get("redeemed_at")?;
    Ok(JoinTokenRow {
        id: SecretId::parse(row.get_ref("id")?.as_str()?).ok_or_else(|| corrupt("token id"))?,
        hash: SecretHash::from_bytes(row.get_ref("hash")?.as_blob()?).ok_or_else(|| corrupt("token hash"))?,
        node_id: node(row.get("node_id")?)?,
        may_replace: row.get("may_replace")?,
        authority: row.get("authority")?,
        created_at: UnixMillis(row.get("created_at")?),
        created_by: row.get("created_by")?,
        expires_at: UnixMillis(row.get("expires_at")?),
        revoked_at: row.get::<_, Option<i64>>("revoked_at")?.map(UnixMillis),
        redemption: match redeemed_at {
            None => None,
            Some(at) => Some(Redemption {
                at: UnixMillis(at),
                node_id: row.get("redeemed_by")?,
                key_hash: row.get("key_hash")?,
                certificate: row.get("certificate")?,
            }),
        },
    })
}

impl Tx<'_> {
    /// One join token.
    pub fn join_token(&self, id: &str) -> Result<Option<JoinTokenRow>> {
        self.one("SELECT * FROM join_tokens WHERE id = ?1", [id], read)
    }

    /// Join tokens that are kept, oldest first, `limit` of them from the place `offset` on.
    pub fn join_tokens(&self, offset: usize, limit: usize) -> Result<Vec<JoinTokenRow>> {
        let place = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.all(
            "SELECT * FROM join_tokens ORDER BY created_at, id LIMIT ?1 OFFSET ?2",
            (place(limit), place(offset)),
            read,
        )
    }

    /// How many join tokens are kept.
    pub fn join_token_count(&self) -> Result<i64> {
        self.count("SELECT count(*) FROM join_tokens", [])
    }

    /// All join tokens that can be redeemed, newest first.
    pub fn open_join_tokens(&self) -> Result<Vec<JoinTokenRow>> {
        self.all(
            "SELECT * FROM join_tokens WHERE revoked_at IS NULL AND redeemed_at IS NULL AND expires_at > ?1
             ORDER BY created_at DESC, id DESC",
            [self.now.0],
            read,
        )
    }

    /// Join tokens that cannot be redeemed any more, newest first, at most `limit`.
    pub fn dead_join_tokens(&self, limit: usize) -> Result<Vec<JoinTokenRow>> {
        self.all(
            "SELECT * FROM join_tokens WHERE revoked_at IS NOT NULL OR redeemed_at IS NOT NULL OR expires_at <= ?1
             ORDER BY created_at DESC, id DESC LIMIT ?2",
            (self.now.0, limit as i64),
            read,
        )
    }

    /// The join tokens that a node redeemed, newest first, at most `limit`.
    pub fn join_tokens_of(&self, node_id: &str, limit: usize) -> Result<Vec<JoinTokenRow>> {
        self.all(
            "SELECT * FROM join_tokens WHERE redeemed_by = ?1 ORDER BY redeemed_at DESC, id LIMIT ?2",
            (node_id, limit as i64),
            read,
        )
    }

    /// Stores a new join token; RESOURCE_EXHAUSTED `TOO_MANY_TOKENS` when there are too many that could be redeemed.
    pub fn insert_join_token(&mut self, token: &JoinTokenRow) -> Result<()> {
        let open =
            "SELECT count(*) FROM join_tokens WHERE revoked_at IS NULL AND redeemed_at IS NULL AND expires_at > ?1";
        let open = (open, [self.now.0]);
        if !self.takes_room(|at_most| &mut at_most.join_tokens, MAX_JOIN_TOKENS, open)? {
            let message = format!(
                "an installation holds at most {MAX_JOIN_TOKENS} join tokens that can be redeemed; revoke what nobody needs"
            );
            return Err(Error::new(Kind::ResourceExhausted, "TOO_MANY_TOKENS", message));
        }
        self.execute(
            "INSERT INTO join_tokens (id, hash, node_id, created_at, created_by, expires_at, may_replace, authority)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            (
                token.id.as_str(),
                token.hash.as_bytes(),
                token.node_id.as_ref().map(NodeId::as_str),
                token.created_at.0,
                &token.created_by,
                token.expires_at.0,
                token.may_replace,
                &token.authority,
            ),
        )?;
        Ok(())
    }

    /// Redeems a join token, if at this moment it can be: the one statement that decides who wins. `false` = it cannot.
    pub fn redeem_join_token(&mut self, id: SecretId, redemption: &Redemption) -> Result<bool> {
        let changed = self.execute(
            "UPDATE join_tokens SET redeemed_at = ?2, redeemed_by = ?3, key_hash = ?4, certificate = ?5
             WHERE id = ?1 AND redeemed_at IS NULL AND revoked_at IS NULL AND expires_at > ?2
                AND (node_id IS NULL OR node_id = ?3)",
            (id.as_str(), self.now.0, &redemption.node_id, redemption.key_hash, &redemption.certificate),
        )?;
        Ok(changed > 0)
    }

    /// Revokes a join token; one that is revoked already stays as it was. `false` when it is unknown.
    pub fn revoke_join_token(&mut self, id: &str) -> Result<bool> {
        let sql = "UPDATE join_tokens SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1";
        Ok(self.execute(sql, (id, self.now.0))? > 0)
    }

    /// Revokes the join tokens that are bound to a node and wait for it, and returns how many that were.
    pub fn revoke_waiting_join_tokens(&mut self, node_id: &str) -> Result<usize> {
        self.execute(
            "UPDATE join_tokens SET revoked_at = ?2
             WHERE node_id = ?1 AND revoked_at IS NULL AND redeemed_at IS NULL AND expires_at > ?2",
            (node_id, self.now.0),
        )
    }

    /// How many join tokens that could be redeemed name another CA than this one.
    pub fn join_tokens_of_another_authority(&self, authority: &str) -> Result<i64> {
        self.count(
            "SELECT count(*) FROM join_tokens WHERE revoked_at IS NULL AND redeemed_at IS NULL AND expires_at > ?1
                AND coalesce(authority, '') <> ?2",
            (self.now.0, authority),
        )
    }

    /// Forgets join tokens that were revoked or ended a month ago, and the oldest when there are too many. Those that a
    /// node stands on stay.
    pub(crate) fn forget_join_tokens(&mut self) -> Result<()> {
        self.execute(
            "DELETE FROM join_tokens WHERE coalesce(revoked_at, expires_at) <= ?1 AND id NOT IN (SELECT token_id FROM nodes)",
            [(self.now - RETAIN_DEAD_TOKENS).0],
        )?;
        self.execute(
            "DELETE FROM join_tokens WHERE id IN (
                SELECT id FROM join_tokens WHERE coalesce(revoked_at, redeemed_at, expires_at) <= ?1
                    AND id NOT IN (SELECT token_id FROM nodes)
                ORDER BY coalesce(revoked_at, redeemed_at, expires_at) DESC, id LIMIT -1 OFFSET ?2)",
            (self.now.0, MAX_DEAD_TOKENS),
        )?;
        Ok(())
    }
}
