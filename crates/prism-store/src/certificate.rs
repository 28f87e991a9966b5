use std::time::Duration;

use prism_core::limits::MAX_CERTIFICATES;
use prism_core::page::Page;
use prism_core::{Error, Kind, Result, UnixMillis};
use rusqlite::{Row, named_params};

use crate::tx::Tx;

/// A certificate that was issued, or one of another CA that was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRow {
    /// SHA-256 of its DER encoding, in hexadecimal.
    pub fingerprint: String,
    /// Serial number in hexadecimal; `None` for one of another CA.
    pub serial: Option<String>,
    /// `user`, `client` or `node`; empty for one of another CA.
    pub kind: String,
    /// Whom it names.
    pub name: String,
    /// URI in its subject alternative name.
    pub uri: String,
    /// When it was issued, or revoked if it is of another CA.
    pub created_at: UnixMillis,
    /// By whom.
    pub created_by: String,
    /// When it ends; `None` for one of another CA.
    pub expires_at: Option<UnixMillis>,
    /// When it was revoked.
    pub revoked_at: Option<UnixMillis>,
    /// SHA-256 of the certificate of the CA that issued it, in hexadecimal; `None` when that is another's, or was the only one there
    /// had been.
    pub authority: Option<String>,
    /// Where a node's certificate comes from; `None` for all others.
    pub origin: Option<CertificateOrigin>,
}

/// Where a node's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateOrigin {
    /// The certificate in PEM.
    pub pem: String,
    /// SHA-256 of its public key (SubjectPublicKeyInfo in DER).
    pub key_hash: [u8; 32],
    /// The node.
    pub node_id: String,
    /// The join token that the node's membership stands on.
    pub token_id: String,
    /// Fingerprint of the certificate that it renews; `None` for the first.
    pub renewed_from: Option<String>,
}

fn read(row: &Row<'_>) -> rusqlite::Result<CertificateRow> {
    let time = |column| row.get::<_, Option<i64>>(column).map(|at| at.map(UnixMillis));
    Ok(CertificateRow {
        fingerprint: row.get("fingerprint")?,
        serial: row.get("serial")?,
        kind: row.get("kind")?,
        name: row.get("name")?,
        uri: row.get("uri")?,
        created_at: UnixMillis(row.get("created_at")?),
        created_by: row.get("created_by")?,
        expires_at: time("expires_at")?,
        revoked_at: time("revoked_at")?,
        authority: row.get("authority")?,
        origin: row.get::<_, Option<String>>("node_id")?.map(|node_id| origin(row, node_id)).transpose()?,
    })
}

fn origin(row: &Row<'_>, node_id: String) -> rusqlite::Result<CertificateOrigin> {
    Ok(CertificateOrigin {
        pem: row.get("pem")?,
        key_hash: row.get("key_hash")?,
        node_id,
        token_id: row.get("token_id")?,
        renewed_from: row.get("renewed_from")?,
    })
}

impl Tx<'_> {
    /// The certificate with this serial number.
    pub fn certificate_by_serial(&self, serial: &str) -> Result<Option<CertificateRow>> {
        self.one("SELECT * FROM certificates WHERE serial = ?1", [serial], read)
    }

    /// The certificate with this fingerprint.
    pub fn certificate(&self, fingerprint: &str) -> Result<Option<CertificateRow>> {
        self.one("SELECT * FROM certificates WHERE fingerprint = ?1", [fingerprint], read)
    }

    /// All certificates, by fingerprint, and how many there are.
    pub fn certificates(&self, page: &Page) -> Result<(Vec<CertificateRow>, i64)> {
        let rows = self.all(
            "SELECT * FROM certificates WHERE fingerprint > :after ORDER BY fingerprint LIMIT :limit",
            named_params! {":after": page.after.as_deref().unwrap_or(""), ":limit": page.size as i64 + 1},
            read,
        )?;
        Ok((rows, self.count("SELECT count(*) FROM certificates", [])?))
    }

    /// Stores a certificate; RESOURCE_EXHAUSTED `TOO_MANY_CERTIFICATES` when there are too many that have not ended.
    pub fn insert_certificate(&mut self, row: &CertificateRow) -> Result<()> {
        // What has ended proves nothing any more. A revocation stays: the clock may be wrong today.
        let over = "DELETE FROM certificates
            WHERE expires_at IS NOT NULL AND expires_at <= ?1 AND revoked_at IS NULL AND node_id IS NULL";
        self.execute(over, [(self.now - RETAIN_ENDED).0])?;
        let kept = ("SELECT count(*) FROM certificates WHERE revoked_at IS NULL", []);
        // There is always room for a revocation.
        if row.revoked_at.is_none() && !self.takes_room(|at_most| &mut at_most.certificates, MAX_CERTIFICATES, kept)? {
            let message = format!("an installation keeps track of at most {MAX_CERTIFICATES} certificates");
            return Err(Error::new(Kind::ResourceExhausted, "TOO_MANY_CERTIFICATES", message));
        }
        let origin = row.origin.as_ref();
        self.execute(
            "INSERT INTO certificates (fingerprint, serial, kind, name, uri, created_at, created_by, expires_at, revoked_at,
                pem, key_hash, node_id, token_id, renewed_from, ancestor, authority)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?14, ?15)",
            (
                &row.fingerprint,
                &row.serial,
                &row.kind,
                &row.name,
                &row.uri,
                row.created_at.0,
                &row.created_by,
                row.expires_at.map(|at| at.0),
                row.revoked_at.map(|at| at.0),
                origin.map(|origin| &origin.pem),
                origin.map(|origin| origin.key_hash),
                origin.map(|origin| &origin.node_id),
                origin.map(|origin| &origin.token_id),
                origin.and_then(|origin| origin.renewed_from.as_ref()),
                &row.authority,
            ),
        )?;
        if row.revoked_at.is_some() {
            self.certificates_changed();
        }
        Ok(())
    }

    /// Forgets certificates of nodes that ended a day ago, and revoked ones that ended a month ago. One that a join token was
    /// redeemed for stays while the token could be shown again, and so does a node's last: who comes back with its key, however long
    /// it slept, is no other. What was renewed from a forgotten one goes back to what that went
    /// back to, so that a revocation still finds it.
    pub(crate) fn forget_node_certificates(&mut self) -> Result<()> {
        let sql = format!(
            "UPDATE certificates SET ancestor = (SELECT p.ancestor FROM certificates p WHERE p.fingerprint = certificates.ancestor)
             WHERE ancestor IN (SELECT fingerprint FROM certificates WHERE {ENDED} OR {REVOKED_AND_ENDED})"
        );
        let times = named_params! {
            ":ended": (self.now - RETAIN_ENDED_OF_NODE).0,
            ":now": self.now.0,
            ":revoked": (self.now - RETAIN_ENDED).0,
        };
        // One step up at a time; several of a chain may go together.
        while self.execute(&sql, times)? > 0 {}
        let ended = format!("DELETE FROM certificates WHERE {ENDED}");
        self.execute(&ended, &times[..2])?;
        let revoked = format!("DELETE FROM certificates WHERE {REVOKED_AND_ENDED}");
        if self.execute(&revoked, &times[2..])? > 0 {
            self.certificates_changed();
        }
        Ok(())
    }

    /// Certificates of a node, newest first, at most `limit`.
    pub fn node_certificates(&self, node_id: &str, limit: usize) -> Result<Vec<CertificateRow>> {
        self.all(
            "SELECT * FROM certificates WHERE node_id = ?1 ORDER BY created_at DESC, fingerprint LIMIT ?2",
            (node_id, limit as i64),
            read,
        )
    }

    /// Certificates of a node for this key, newest first, at most `limit`.
    pub fn certificates_of_key(&self, node_id: &str, key_hash: [u8; 32], limit: usize) -> Result<Vec<CertificateRow>> {
        self.all(
            "SELECT * FROM certificates WHERE node_id = ?1 AND key_hash = ?2 ORDER BY created_at DESC, fingerprint LIMIT ?3",
            (node_id, key_hash, limit as i64),
            read,
        )
    }

    /// How many certificates of a node are valid now.
    pub fn live_node_certificates(&self, node_id: &str) -> Result<i64> {
        self.count(
            "SELECT count(*) FROM certificates WHERE node_id = ?1 AND revoked_at IS NULL AND expires_at > ?2",
            (node_id, self.now.0),
        )
    }

    /// Revokes all certificates of a node, and returns their fingerprints.
    pub fn revoke_node_certificates(&mut self, node_id: &str) -> Result<Vec<String>> {
        let revoked = self.all(
            "UPDATE certificates SET revoked_at = ?2 WHERE node_id = ?1 AND revoked_at IS NULL RETURNING fingerprint",
            (node_id, self.now.0),
            |row| row.get(0),
        )?;
        if !revoked.is_empty() {
            self.certificates_changed();
        }
        Ok(revoked)
    }

    /// Revokes the certificates of a node that are for other keys than this one, and returns their fingerprints.
    pub fn revoke_other_keys_of_node(&mut self, node_id: &str, key_hash: [u8; 32]) -> Result<Vec<String>> {
        let revoked = self.all(
            "UPDATE certificates SET revoked_at = ?3 WHERE node_id = ?1 AND key_hash <> ?2 AND revoked_at IS NULL
             RETURNING fingerprint",
            (node_id, key_hash, self.now.0),
            |row| row.get(0),
        )?;
        if !revoked.is_empty() {
            self.certificates_changed();
        }
        Ok(revoked)
    }

    /// Revokes what a node's certificate was renewed for, and what that was, and so on, whatever of it is forgotten; returns their
    /// fingerprints.
    pub fn revoke_renewals(&mut self, node_id: &str, fingerprint: &str) -> Result<Vec<String>> {
        let revoked = self.all(
            "WITH RECURSIVE renewed(fingerprint) AS (
                SELECT ?2
                UNION SELECT fingerprint FROM certificates WHERE node_id = ?1 AND renewed_from = ?2
                UNION SELECT c.fingerprint FROM renewed JOIN certificates c
                    ON c.node_id = ?1 AND c.ancestor = renewed.fingerprint)
             UPDATE certificates SET revoked_at = ?3
             WHERE node_id = ?1 AND revoked_at IS NULL AND fingerprint <> ?2 AND fingerprint IN (SELECT fingerprint FROM renewed)
             RETURNING fingerprint",
            (node_id, fingerprint, self.now.0),
            |row| row.get(0),
        )?;
        if !revoked.is_empty() {
            self.certificates_changed();
        }
        Ok(revoked)
    }

    /// How many certificates of a node for this key are valid now.
    pub fn live_certificates_of_key(&self, node_id: &str, key_hash: [u8; 32]) -> Result<i64> {
        self.count(
            "SELECT count(*) FROM certificates
             WHERE node_id = ?1 AND key_hash = ?2 AND revoked_at IS NULL AND expires_at > ?3",
            (node_id, key_hash, self.now.0),
        )
    }

    /// Whether a certificate of this node was renewed for another key than this one, as far as is remembered and not revoked.
    pub fn is_renewed_for_another_key(&self, node_id: &str, fingerprint: &str, key_hash: [u8; 32]) -> Result<bool> {
        let sql = "SELECT count(*) FROM certificates
             WHERE node_id = ?1 AND renewed_from = ?2 AND key_hash <> ?3 AND revoked_at IS NULL";
        Ok(self.count(sql, (node_id, fingerprint, key_hash))? > 0)
    }

    /// Whether this key is one of a node: it has had a certificate for it, as far as is remembered, that is not revoked.
    pub fn is_node_key(&self, node_id: &str, key_hash: [u8; 32]) -> Result<bool> {
        let sql = "SELECT count(*) FROM certificates WHERE node_id = ?1 AND key_hash = ?2 AND revoked_at IS NULL";
        Ok(self.count(sql, (node_id, key_hash))? > 0)
    }

    /// The node that has a certificate which was renewed from this one. So one that is forgotten itself is known to have been a
    /// node's.
    pub fn node_of_renewal(&self, fingerprint: &str) -> Result<Option<String>> {
        self.one("SELECT node_id FROM certificates WHERE renewed_from = ?1 LIMIT 1", [fingerprint], |row| row.get(0))
    }

    /// Whether a certificate of this node for this key was revoked, as far as is remembered.
    pub fn is_node_key_revoked(&self, node_id: &str, key_hash: [u8; 32]) -> Result<bool> {
        let sql = "SELECT count(*) FROM certificates WHERE node_id = ?1 AND key_hash = ?2 AND revoked_at IS NOT NULL";
        Ok(self.count(sql, (node_id, key_hash))? > 0)
    }

    /// Revokes a certificate; one that is revoked already stays as it was. `false` when it is unknown.
    pub fn revoke_certificate(&mut self, fingerprint: &str) -> Result<bool> {
        let sql = "UPDATE certificates SET revoked_at = coalesce(revoked_at, ?2) WHERE fingerprint = ?1";
        let changed = self.execute(sql, (fingerprint, self.now.0))?;
        self.certificates_changed();
        Ok(changed > 0)
    }

    fn certificates_changed(&mut self) {
        self.access_changed();
        self.touched.client_access = true;
    }
}

/// A certificate stays listed for this long after its end.
const RETAIN_ENDED: Duration = Duration::from_hours(30 * 24);
/// A node's, of which there is a new one every few hours, for this long.
const RETAIN_ENDED_OF_NODE: Duration = Duration::from_hours(24);
/// Certificates of nodes that can be forgotten.
const ENDED: &str = "(node_id IS NOT NULL AND revoked_at IS NULL AND expires_at <= :ended
    AND EXISTS (SELECT 1 FROM certificates later WHERE later.node_id = certificates.node_id
        AND (later.created_at, later.fingerprint) > (certificates.created_at, certificates.fingerprint))
    AND fingerprint NOT IN
    (SELECT certificate FROM join_tokens WHERE certificate IS NOT NULL AND expires_at > :now))";
/// Revoked ones.
const REVOKED_AND_ENDED: &str = "(node_id IS NOT NULL AND revoked_at IS NOT NULL AND expires_at <= :revoked)";
