use std::borrow::Cow;
use std::collections::BTreeMap;

use prism_core::limits::MAX_MAP_ENTRIES;
use prism_core::permission::Reach;
use prism_core::secret::redact;
use prism_core::{Error, Result};
use prism_proto::admin::v1::AuditLogEntry;
use prism_proto::audit_chain;
use rusqlite::named_params;
use serde::{Deserialize, Serialize};

use crate::tx::{Tx, limited_to};

/// What the door knows of a call when it writes its entry; sequence, time and hashes are added here.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EntryDraft {
    /// Who; `anonymous` without a valid credential.
    pub actor: String,
    /// The RPC's name.
    pub operation: String,
    /// What it was about, such as `config:orders`.
    pub resource: String,
    /// Namespace, or empty.
    pub namespace: String,
    /// Details.
    pub metadata: BTreeMap<String, String>,
    /// Why it failed; `None` = it succeeded.
    pub error: Option<String>,
    /// Request id.
    pub request_id: String,
    /// Address of the caller.
    pub source_address: String,
    /// `api_key`, `oidc`, `mtls` or `none`.
    pub auth_method: String,
    /// Public id of the credential, or empty.
    pub credential_id: String,
}

/// Longest text of an entry, in bytes; what a caller sends beyond it is cut, so that nobody can fill the log with one request.
const MAX_TEXT_BYTES: usize = 2048;

/// Without secrets, and not longer than an entry needs it.
fn masked(text: String) -> String {
    // Cut before it is searched: a secret that the cut divides still has its prefix, and is masked.
    let mut text = match redact(&text[..text.floor_char_boundary(2 * MAX_TEXT_BYTES)]) {
        Cow::Owned(redacted) => redacted,
        Cow::Borrowed(whole) if whole.len() == text.len() => text,
        Cow::Borrowed(cut) => cut.to_owned(),
    };
    if text.len() > MAX_TEXT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
        text.push('…');
    }
    text
}

impl Tx<'_> {
    /// Appends the entry of this operation to the chain and returns its id.
    pub fn append_entry(&mut self, draft: EntryDraft) -> Result<String> {
        if self.connection.is_autocommit() {
            // The storage gave the transaction up; an entry now would stand without its change.
            return Err(Error::unavailable("STORAGE_UNAVAILABLE", "the storage refused a write; nothing was changed"));
        }
        let previous = match self.touched.known.chain {
            Some(known) => Some(known),
            None => self.one("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1", [], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, [u8; 32]>(1)?))
            })?,
        };
        let (sequence, previous_hash) = previous.map_or((1, audit_chain::GENESIS), |(last, hash)| (last + 1, hash));
        let id = self.entry_id();
        let (actor, operation, namespace) = (masked(draft.actor), masked(draft.operation), masked(draft.namespace));
        let entry = AuditLogEntry {
            id: id.clone(),
            timestamp: Some(prost_types::Timestamp {
                seconds: self.now.0.div_euclid(1000),
                nanos: (self.now.0.rem_euclid(1000) * 1_000_000) as i32,
            }),
            actor: actor.clone(),
            operation: operation.clone(),
            resource: masked(draft.resource),
            namespace: namespace.clone(),
            // Libraries differ in whether an empty value of a map is written; without any, all hash the same bytes.
            metadata: draft
                .metadata
                .into_iter()
                .take(MAX_MAP_ENTRIES)
                .filter(|(_, value)| !value.is_empty())
                .map(|(key, value)| (key, masked(value)))
                .collect(),
            success: draft.error.is_none(),
            error: draft.error.map(masked),
            sequence: sequence as u64,
            request_id: masked(draft.request_id),
            source_address: masked(draft.source_address),
            auth_method: masked(draft.auth_method),
            // It holds what an issuer put into its token.
            credential_id: masked(draft.credential_id),
            ..AuditLogEntry::default()
        };
        self.index_lineage(sequence, &entry)?;
        let (hash, sealed) = audit_chain::seal(&previous_hash, entry);
        self.execute(
            "INSERT INTO audit (sequence, id, timestamp, actor, operation, namespace, hash, entry) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            (sequence, &id, self.now.0, actor, operation, namespace, hash, sealed),
        )?;
        self.touched.audit = true;
        self.touched.known.chain = Some((sequence, hash));
        Ok(id)
    }

    /// A UUIDv7 of the moment of the operation.
    fn entry_id(&mut self) -> String {
        let random = self.touched.known.random.take();
        let milliseconds = u64::try_from(self.now.0).unwrap_or_default();
        uuid::Builder::from_unix_timestamp_millis(milliseconds, &random).into_uuid().to_string()
    }

    /// The sequence of the newest entry, 0 when there is none.
    pub fn last_sequence(&self) -> Result<i64> {
        match self.touched.known.chain {
            Some((sequence, _)) => Ok(sequence),
            None => self.count("SELECT coalesce(max(sequence), 0) FROM audit", []),
        }
    }

    /// The sequence of the entry with this id; NOT_FOUND when it is unknown, removed by retention, or outside `reach`.
    pub fn entry_sequence(&self, id: &str, reach: &Reach) -> Result<i64> {
        let limited = limited_to(reach, None);
        self.one(
            "SELECT sequence FROM audit WHERE id = :id AND (:limited IS NULL OR namespace IN (SELECT value FROM json_each(:limited)))",
            named_params! {":id": id, ":limited": limited},
            |row| row.get(0),
        )?
        .ok_or_else(|| Error::not_found("the audit entry named by resume_after"))
    }
}
