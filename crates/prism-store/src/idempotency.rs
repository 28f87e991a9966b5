use prism_core::limits::IDEMPOTENCY_WINDOW;
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
    /// The stored answer of an earlier call with this key.
    ///
    /// INVALID_ARGUMENT when that call had another request, ALREADY_EXISTS `SECRET_ALREADY_ISSUED` when its answer cannot
    /// be given twice.
    pub fn remembered(&self, key: &IdempotencyKey) -> Result<Option<Vec<u8>>> {
        let oldest = self.now - IDEMPOTENCY_WINDOW;
        let row = self.one(
            "SELECT fingerprint, response, secret_id FROM idempotency WHERE credential = ?1 AND rpc = ?2 AND key = ?3 AND created_at > ?4",
            (&key.credential, key.rpc, &key.key, oldest.0),
            |row| Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, Option<Vec<u8>>>(1)?, row.get::<_, Option<String>>(2)?)),
        )?;
        match row {
            None => Ok(None),
            Some((fingerprint, ..)) if fingerprint != key.fingerprint => Err(Error::invalid(
                "x-idempotency-key",
                "was used with another request; take a new key for a new request",
            )),
            Some((_, Some(response), _)) => Ok(Some(response)),
            Some((.., id)) => Err(Error::new(
                Kind::AlreadyExists,
                "SECRET_ALREADY_ISSUED",
                "this request was carried out before, and a secret is shown once only; revoke what it made and ask again",
            )
            .with("id", id.unwrap_or_default())),
        }
    }

    /// Remembers a call that was carried out.
    pub fn remember(&mut self, key: &IdempotencyKey, what: Remembered) -> Result<()> {
        let (response, secret_id) = match what {
            Remembered::Response(response) => (Some(response), None),
            Remembered::SecretOf(id) => (None, Some(id)),
        };
        self.execute(
            "INSERT OR REPLACE INTO idempotency (credential, rpc, key, fingerprint, response, secret_id, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            (&key.credential, key.rpc, &key.key, key.fingerprint, response, secret_id, self.now.0),
        )?;
        Ok(())
    }
}
