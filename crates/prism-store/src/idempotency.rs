use std::borrow::Cow;
use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use prism_core::limits::IDEMPOTENCY_WINDOW;
use prism_core::secret::redact;
use prism_core::{Error, Kind, Result};

use crate::tx::Tx;

/// Which call an idempotency key stands for.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// Public id of the caller's credential.
    pub credential: String,
    /// Full name of the RPC.
    pub rpc: &'static str,
    /// The caller's key.
    pub key: String,
    /// SHA-256 of the encoded request.
    pub fingerprint: [u8; 32],
    /// Where the call happens; `None` = not in one namespace. It does not tell calls apart.
    pub namespace: Option<String>,
}

/// A call that was carried out earlier.
#[derive(Clone, Debug)]
pub struct Earlier {
    /// Where it happened; `None` = not in one namespace, or before this was remembered.
    pub namespace: Option<String>,
    /// The encoded answer; ALREADY_EXISTS `SECRET_ALREADY_ISSUED` when it cannot be given twice.
    pub answer: Result<Vec<u8>>,
}

/// What to remember of a call that was carried out.
#[derive(Clone, Debug)]
pub enum Remembered {
    /// The encoded answer.
    Response(Vec<u8>),
    /// The answer carried a secret; only the id of what was made is kept.
    SecretOf(String),
}

impl Tx<'_> {
    /// The earlier call with this key; INVALID_ARGUMENT when it had another request.
    pub fn remembered(&self, key: &IdempotencyKey) -> Result<Option<Earlier>> {
        let oldest = self.now - IDEMPOTENCY_WINDOW;
        let row = self.one(
            "SELECT fingerprint, namespace, response, secret_id FROM idempotency WHERE credential = ?1 AND rpc = ?2 AND key = ?3 AND created_at > ?4",
            (&key.credential, key.rpc, stored(&key.key), oldest.0),
            |row| {
                let (fingerprint, namespace): ([u8; 32], Option<String>) = (row.get(0)?, row.get(1)?);
                let (response, secret_id): (Option<Vec<u8>>, Option<String>) = (row.get(2)?, row.get(3)?);
                Ok((fingerprint, namespace, response, secret_id))
            },
        )?;
        let Some((fingerprint, namespace, response, secret_id)) = row else { return Ok(None) };
        if fingerprint != key.fingerprint {
            let rule = "was used with another request; take a new key for a new request";
            return Err(Error::invalid("x-idempotency-key", rule));
        }
        let answer = response.ok_or_else(|| {
            Error::new(
                Kind::AlreadyExists,
                "SECRET_ALREADY_ISSUED",
                "this request was carried out before, and a secret is shown once only; revoke what it made and ask again",
            )
            .with("id", secret_id.unwrap_or_default())
        });
        Ok(Some(Earlier { namespace, answer }))
    }

    /// Remembers a call that was carried out.
    pub fn remember(&mut self, key: &IdempotencyKey, what: Remembered) -> Result<()> {
        let (response, secret_id) = match what {
            Remembered::Response(response) => (Some(response), None),
            Remembered::SecretOf(id) => (None, Some(id)),
        };
        self.execute(
            "INSERT OR REPLACE INTO idempotency (credential, rpc, key, fingerprint, response, secret_id, created_at, namespace)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            (&key.credential, key.rpc, stored(&key.key), key.fingerprint, response, secret_id, self.now.0, &key.namespace),
        )?;
        Ok(())
    }
}

/// The form in which a key is kept: as it is, or its hash when somebody took a secret for one.
fn stored(key: &str) -> Cow<'_, str> {
    if let Cow::Borrowed(harmless) = redact(key) {
        return harmless.into();
    }
    let hash = digest(&SHA256, key.as_bytes());
    let hex = hash.as_ref().iter().fold("sha256:".to_owned(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    hex.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_kept_and_are_told_apart() {
        assert_eq!(stored("retry-7"), "retry-7");
        let (one, other) = (stored("Bearer prx_secret1"), stored("Bearer prx_secret2"));
        assert!(one.starts_with("sha256:") && one.len() == 71 && !one.contains("secret"), "{one}");
        assert_ne!(one, other);
        assert_eq!(one, stored("Bearer prx_secret1"));
    }
}
