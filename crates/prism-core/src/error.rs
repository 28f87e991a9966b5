//! The one error of Prism: a canonical code, a stable reason, and what the caller can do about it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Canonical status of a failed operation; maps one to one to a gRPC code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request itself is wrong; repeating it cannot succeed.
    InvalidArgument,
    /// What the request names does not exist.
    NotFound,
    /// What the request would create exists already.
    AlreadyExists,
    /// The credential is valid and does not allow this.
    PermissionDenied,
    /// There is no valid credential.
    Unauthenticated,
    /// A quota, rate or size limit was reached.
    ResourceExhausted,
    /// The state of the system does not allow this now.
    FailedPrecondition,
    /// A concurrent change won (etag, version), or the operation was cut.
    Aborted,
    /// The position lies outside the valid range.
    OutOfRange,
    /// The service cannot answer now; repeating later may succeed.
    Unavailable,
    /// The deadline passed first.
    DeadlineExceeded,
    /// The server does not do this.
    Unimplemented,
    /// A defect or a broken dependency; the cause is in the log under the request id.
    Internal,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 13] = [
        Self::InvalidArgument,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::Unauthenticated,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::Unimplemented,
        Self::Internal,
    ];

    /// Name of the gRPC code.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::OutOfRange => "OUT_OF_RANGE",
            Self::Unavailable => "UNAVAILABLE",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
        }
    }
}

/// One field of a request that breaks its bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field, such as `config.backend.type`.
    pub field: String,
    /// What is wrong and which bound holds.
    pub description: String,
}

impl FieldViolation {
    /// Makes a violation of `field`.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

/// Which quota was reached, and how far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaViolation {
    /// What the quota is on, such as `namespace:orders`.
    pub subject: String,
    /// Name of the quota (`max_sessions`, `max_rps`, `max_storage_bytes`).
    pub quota: &'static str,
    /// The limit in force.
    pub limit: i64,
    /// The usage that met it.
    pub usage: i64,
}

/// A failed operation. Cheap to make, boxed so that `Result<T, Error>` stays small.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: Kind,
    reason: Cow<'static, str>,
    message: String,
    fields: Vec<FieldViolation>,
    metadata: BTreeMap<String, String>,
    retry_after: Option<Duration>,
    quota: Option<QuotaViolation>,
    cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Makes an error with a stable `reason` in UPPER_SNAKE and a message for people.
    pub fn new(kind: Kind, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            reason: reason.into(),
            message: message.into(),
            fields: Vec::new(),
            metadata: BTreeMap::new(),
            retry_after: None,
            quota: None,
            cause: None,
        }))
    }

    /// INVALID_ARGUMENT for one field.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::invalid_fields(vec![FieldViolation::new(field, description)])
    }

    /// INVALID_ARGUMENT for every field that is wrong, all in one answer.
    pub fn invalid_fields(fields: Vec<FieldViolation>) -> Self {
        let message = fields
            .iter()
            .map(|violation| format!("{}: {}", violation.field, violation.description))
            .collect::<Vec<_>>()
            .join("; ");
        let mut error = Self::new(Kind::InvalidArgument, "INVALID_ARGUMENT", message);
        error.0.fields = fields;
        error
    }

    /// NOT_FOUND for a resource such as `config:orders`.
    pub fn not_found(resource: impl fmt::Display) -> Self {
        Self::new(Kind::NotFound, "NOT_FOUND", format!("{resource} does not exist"))
    }

    /// ALREADY_EXISTS for a resource such as `config:orders`.
    pub fn already_exists(resource: impl fmt::Display) -> Self {
        Self::new(Kind::AlreadyExists, "ALREADY_EXISTS", format!("{resource} exists already"))
    }

    /// UNAUTHENTICATED with a stable reason.
    pub fn unauthenticated(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Unauthenticated, reason, message)
    }

    /// FAILED_PRECONDITION with a stable reason.
    pub fn precondition(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::FailedPrecondition, reason, message)
    }

    /// ABORTED with a stable reason.
    pub fn aborted(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Aborted, reason, message)
    }

    /// UNAVAILABLE with a stable reason.
    pub fn unavailable(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, reason, message)
    }

    /// INTERNAL; `cause` goes to the log only.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let mut error = Self::new(
            Kind::Internal,
            "INTERNAL",
            "the server could not complete the request; its log has the cause under this request id",
        );
        error.0.cause = Some(Arc::from(cause.into()));
        error
    }

    /// RESOURCE_EXHAUSTED for a quota of a namespace.
    pub fn quota(violation: QuotaViolation) -> Self {
        let mut error = Self::new(
            Kind::ResourceExhausted,
            "QUOTA_EXCEEDED",
            format!(
                "{} of {} is reached: limit {}, usage {}",
                violation.quota, violation.subject, violation.limit, violation.usage
            ),
        );
        error.0.quota = Some(violation);
        error
    }

    /// Adds a metadata pair to the ErrorInfo.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.metadata.insert(key.into(), value.into());
        self
    }

    /// Says after how long a retry makes sense.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.0.retry_after = Some(delay);
        self
    }

    /// Attaches an internal cause, for the log only.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.cause = Some(Arc::from(cause.into()));
        self
    }

    /// Replaces the message, for instance with secrets masked.
    #[must_use]
    pub fn with_message(mut self, message: impl Into<String>) -> Self {
        self.0.message = message.into();
        self
    }

    /// Canonical status.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }
    /// Stable reason in UPPER_SNAKE.
    pub fn reason(&self) -> &str {
        &self.0.reason
    }
    /// Message for people; never an internal cause.
    pub fn message(&self) -> &str {
        &self.0.message
    }
    /// Fields that broke their bounds.
    pub fn fields(&self) -> &[FieldViolation] {
        &self.0.fields
    }
    /// ErrorInfo metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.0.metadata
    }
    /// After how long a retry makes sense.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.0.retry_after
    }
    /// The quota that was reached.
    pub fn quota_violation(&self) -> Option<&QuotaViolation> {
        self.0.quota.as_ref()
    }
    /// The internal cause, for the log only.
    pub fn cause(&self) -> Option<&(dyn std::error::Error + Send + Sync)> {
        self.0.cause.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.reason, self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("reason", &self.0.reason)
            .field("message", &self.0.message)
            .field("fields", &self.0.fields)
            .field("metadata", &self.0.metadata)
            .field("cause", &self.0.cause.as_ref().map(ToString::to_string))
            .finish_non_exhaustive()
    }
}

impl std::error::Error for Error {}

/// Shorthand for results of Prism's own operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;
