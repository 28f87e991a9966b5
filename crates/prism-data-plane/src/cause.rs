//! Refusals and cuts as errors: reasons, messages and retry advice of contract §8 and §9.

use std::time::Duration;

use prism_core::control::Maintenance;
use prism_core::session::EndReason;
use prism_core::{Error, NamespaceName, UnixMillis};

/// After how long to try again when nothing better is known.
pub const RETRY: Duration = Duration::from_secs(30);

/// Why a session ended on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// Its client closed it.
    Closed,
    /// An operator terminated it, for this reason.
    Terminated(String),
    /// A drain ended it.
    Drained,
    /// It was idle too long or reached its end.
    Expired,
    /// Its namespace was deleted.
    NamespaceDeleted,
    /// The credential it stood on was revoked, or lost its namespace.
    CredentialRevoked,
    /// Its node was revoked; the control plane knows, or decides, what becomes of it.
    NodeRevoked,
}

impl EndCause {
    /// What the control plane records.
    pub fn reason(&self) -> EndReason {
        match self {
            Self::Closed => EndReason::Closed,
            Self::Terminated(_) => EndReason::Terminated,
            Self::Drained => EndReason::Drained,
            Self::Expired => EndReason::Expired,
            Self::NamespaceDeleted => EndReason::NamespaceDeleted,
            Self::CredentialRevoked | Self::NodeRevoked => EndReason::CredentialRevoked,
        }
    }

    /// What the session's streams and running operations are told.
    pub fn error(&self) -> Error {
        match self {
            Self::Closed => Error::aborted("SESSION_CLOSED", "the session was closed"),
            Self::Terminated(reason) => {
                let message = if reason.is_empty() {
                    "the session was terminated by an operator".to_owned()
                } else {
                    format!("the session was terminated by an operator: {reason}")
                };
                Error::aborted("SESSION_TERMINATED", message).with("reason", reason.clone())
            }
            Self::Drained => draining().retry_after(RETRY),
            Self::Expired => Error::aborted("SESSION_EXPIRED", "the session has expired; create a new one"),
            Self::NamespaceDeleted => {
                Error::aborted("SESSION_TERMINATED", "the namespace was deleted").with("reason", "namespace deleted")
            }
            Self::CredentialRevoked => {
                let reason = "its credential was revoked or lost this namespace";
                Error::aborted("SESSION_TERMINATED", format!("the session was terminated: {reason}"))
                    .with("reason", reason)
            }
            Self::NodeRevoked => {
                let reason = "its node was revoked";
                let message = format!("the session was terminated: {reason}; go on with a new one on another node");
                Error::aborted("SESSION_TERMINATED", message).with("reason", reason)
            }
        }
    }
}

/// UNAVAILABLE `DRAINING`.
pub fn draining() -> Error {
    Error::unavailable("DRAINING", "the session or its node is draining; go on with a new session")
}

/// UNAVAILABLE `MAINTENANCE` with the operator's message.
pub fn maintenance(maintenance: &Maintenance, now: UnixMillis) -> Error {
    let message = if maintenance.message.is_empty() { "under maintenance" } else { &maintenance.message };
    let delay = maintenance.ends_at.map_or(RETRY, |end| end.since(now));
    Error::unavailable("MAINTENANCE", message).retry_after(delay)
}

/// FAILED_PRECONDITION `NAMESPACE_SUSPENDED`.
pub fn suspended(namespace: &NamespaceName) -> Error {
    Error::precondition("NAMESPACE_SUSPENDED", format!("namespace {namespace} is suspended"))
        .with("namespace", namespace.as_str())
}

/// FAILED_PRECONDITION `NAMESPACE_READ_ONLY`.
pub fn read_only(namespace: &NamespaceName) -> Error {
    Error::precondition("NAMESPACE_READ_ONLY", format!("namespace {namespace} is read-only"))
        .with("namespace", namespace.as_str())
}

/// FAILED_PRECONDITION `SESSION_CLOSING`.
pub fn closing() -> Error {
    Error::precondition("SESSION_CLOSING", "the session was closed and only waits for what is running")
}

/// UNAUTHENTICATED `SESSION_TOKEN_INVALID`: one answer for absent, malformed, unknown and dead tokens.
pub fn token_invalid() -> Error {
    Error::unauthenticated("SESSION_TOKEN_INVALID", "there is no live session with this token")
}

/// PERMISSION_DENIED for a permission that the credential lacks.
pub fn not_granted(permission: &'static str) -> Error {
    Error::new(
        prism_core::Kind::PermissionDenied,
        "PERMISSION_DENIED",
        format!("the session's credential does not have the permission {permission:?}"),
    )
    .with("permission", permission)
}

/// PERMISSION_DENIED for a namespace that is none of the credential's.
pub fn other_namespace() -> Error {
    Error::new(prism_core::Kind::PermissionDenied, "NAMESPACE_NOT_ALLOWED", "the credential is for another namespace")
}
