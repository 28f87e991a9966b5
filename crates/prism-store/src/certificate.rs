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
    /// `user` or `client`; empty for one of another CA.
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
        let over = "DELETE FROM certificates WHERE expires_at IS NOT NULL AND expires_at <= ?1 AND revoked_at IS NULL";
        self.execute(over, [(self.now - RETAIN_ENDED).0])?;
        // There is always room for a revocation.
        if row.revoked_at.is_none()
            && self.count("SELECT count(*) FROM certificates WHERE revoked_at IS NULL", [])? >= MAX_CERTIFICATES
        {
            let message = format!("an installation keeps track of at most {MAX_CERTIFICATES} certificates");
            return Err(Error::new(Kind::ResourceExhausted, "TOO_MANY_CERTIFICATES", message));
        }
        self.execute(
            "INSERT INTO certificates (fingerprint, serial, kind, name, uri, created_at, created_by, expires_at, revoked_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
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
            ),
        )?;
        if row.revoked_at.is_some() {
            self.certificates_changed();
        }
        Ok(())
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
const RETAIN_ENDED: std::time::Duration = std::time::Duration::from_hours(30 * 24);
