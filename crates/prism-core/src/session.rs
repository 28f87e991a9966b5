//! Sessions: what is durable of them, and how their state follows from it (contract §8 "session states").

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::UnixMillis;
use crate::config::Config;
use crate::limits::SessionPolicy;
use crate::name::{ConfigName, NodeId};
use crate::secret::{SecretHash, SecretId, SecretProof};
use crate::subject::Subject;

/// Id of a session: a UUID of version 7, so that ids sort by creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Uuid);

impl SessionId {
    /// A new id.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// Parses the hyphenated lower-case form.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().filter(|id| id.hyphenated().to_string() == text).map(Self)
    }

    /// Reads the 16 bytes of an id.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Uuid::from_slice(bytes).ok().map(Self)
    }

    /// The id as 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// The four states of seed A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionStatus {
    /// In use.
    Active,
    /// No request for `idle_after`.
    Idle,
    /// Being drained or gently terminated, or little of its age is left.
    Expiring,
    /// Over.
    Terminated,
}

/// Why a session ended, or is being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Its client closed it.
    Closed,
    /// An operator terminated it.
    Terminated,
    /// A drain ended it.
    Drained,
    /// It was idle too long or reached its maximum age.
    Expired,
    /// Its namespace was deleted.
    NamespaceDeleted,
    /// The credential it stood on was revoked, or lost its namespace.
    CredentialRevoked,
}

impl EndReason {
    /// All reasons.
    pub const ALL: [Self; 6] =
        [Self::Closed, Self::Terminated, Self::Drained, Self::Expired, Self::NamespaceDeleted, Self::CredentialRevoked];

    /// Its name, as it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Terminated => "terminated",
            Self::Drained => "drained",
            Self::Expired => "expired",
            Self::NamespaceDeleted => "namespace_deleted",
            Self::CredentialRevoked => "credential_revoked",
        }
    }
}

/// What the credential behind a session allows on the data plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataGrant {
    /// Reads.
    pub read: bool,
    /// Writes.
    pub write: bool,
}

/// The client credential that a session stands on; when it falls, the session ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientBasis {
    /// Public id of the credential.
    pub credential_id: String,
    /// Whom a JWT or certificate proved; empty for a client key.
    pub subjects: Vec<Subject>,
    /// SHA-256 of the client certificate, in hexadecimal.
    pub certificate: Option<String>,
    /// SHA-256 of the public key of the CA that vouches for the certificate, in hexadecimal.
    pub authority: Option<String>,
}

/// The durable part of a live session, as the control plane hands it to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// Id.
    pub id: SessionId,
    /// Public id of its token.
    pub token_id: SecretId,
    /// Hash of its token's secret.
    pub token_hash: SecretHash,
    /// What the client calls itself.
    pub client_id: String,
    /// What the client says its version is.
    pub client_version: String,
    /// What else the client says.
    pub metadata: BTreeMap<String, String>,
    /// The config it was made with; later changes of the named config do not touch it.
    pub config: Arc<Config>,
    /// Name of the config it was made from; `None` for an inline one.
    pub config_name: Option<ConfigName>,
    /// What its credential allows.
    pub grant: DataGrant,
    /// What it stands on.
    pub basis: ClientBasis,
    /// When it was made.
    pub created_at: UnixMillis,
    /// When it ends at the latest.
    pub expires_at: UnixMillis,
    /// Its last request, as far as reported.
    pub last_activity: UnixMillis,
    /// Set while an operator's gentle termination waits for running operations; holds the operator's reason.
    pub terminating: Option<String>,
    /// Figures, as far as reported.
    pub figures: SessionFigures,
}

/// Figures of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionFigures {
    /// Requests so far.
    pub requests_total: i64,
    /// Payload bytes sent to the client.
    pub bytes_sent: i64,
    /// Payload bytes received from the client.
    pub bytes_received: i64,
    /// Streams open now.
    pub active_streams: i32,
    /// The last request.
    pub last_request: Option<UnixMillis>,
}

/// What a node reports of a session that changed since its last report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionReport {
    /// Which session.
    pub id: SessionId,
    /// Its last request or heartbeat.
    pub last_activity: UnixMillis,
    /// Its figures now.
    pub figures: SessionFigures,
}

/// What an admission needs to know.
#[derive(Clone, Debug)]
pub struct AdmitRequest {
    /// What the client calls itself.
    pub client_id: String,
    /// What the client says its version is.
    pub client_version: String,
    /// What else the client says.
    pub metadata: BTreeMap<String, String>,
    /// The resolved config.
    pub config: Arc<Config>,
    /// Name of the config it came from; `None` for an inline one.
    pub config_name: Option<ConfigName>,
    /// What the credential allows.
    pub grant: DataGrant,
    /// What it will stand on.
    pub basis: ClientBasis,
    /// When the credential ends; the session does not outlive it.
    pub credential_ends: Option<UnixMillis>,
    /// The client key as it was presented, when the session stands on one; it is proven with the admission.
    pub key: Option<SecretProof>,
    /// The node that will serve it.
    pub node: NodeId,
}

/// The status that follows from a session's times and flags; the only place where it is decided.
pub fn status(
    policy: &SessionPolicy,
    now: UnixMillis,
    ended: bool,
    leaving: bool,
    last_activity: UnixMillis,
    expires_at: UnixMillis,
) -> SessionStatus {
    if ended {
        SessionStatus::Terminated
    } else if leaving || expires_at.since(now) < policy.expiring_within {
        SessionStatus::Expiring
    } else if now.since(last_activity) >= policy.idle_after {
        SessionStatus::Idle
    } else {
        SessionStatus::Active
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn states_follow_from_the_times() {
        let policy = SessionPolicy::default();
        let start = UnixMillis(1_000_000_000);
        let end = start + policy.max_age;
        let at =
            |seconds, ended, leaving| status(&policy, start + Duration::from_secs(seconds), ended, leaving, start, end);
        assert_eq!(at(0, false, false), SessionStatus::Active);
        assert_eq!(at(59, false, false), SessionStatus::Active);
        assert_eq!(at(60, false, false), SessionStatus::Idle);
        assert_eq!(at(24 * 3600 - 59, false, false), SessionStatus::Expiring);
        assert_eq!(at(0, false, true), SessionStatus::Expiring);
        assert_eq!(at(0, true, true), SessionStatus::Terminated);
    }

    #[test]
    fn session_ids_have_one_form() {
        let id = SessionId::generate();
        assert_eq!(SessionId::parse(&id.to_string()), Some(id));
        assert_eq!(SessionId::parse(&id.to_string().to_uppercase()), None);
        assert_eq!(SessionId::parse("nonsense"), None);
    }
}
