//! Refusals, with their `google.rpc` details taken apart.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// A refused call.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Canonical code.
    pub code: Code,
    /// Message for people.
    pub message: String,
    /// `ErrorInfo.reason`; empty without one.
    pub reason: String,
    /// `ErrorInfo.domain`.
    pub domain: String,
    /// `ErrorInfo.metadata`.
    pub metadata: BTreeMap<String, String>,
    /// Fields of `BadRequest`, in their order.
    pub fields: Vec<String>,
    /// `RetryInfo.retry_delay`.
    pub retry: Option<Duration>,
    /// Subject and description of each violation of `QuotaFailure`.
    pub quota: Vec<(String, String)>,
}

impl From<&Status> for Failure {
    fn from(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().cloned();
        let (reason, domain, metadata) = info.map(|info| (info.reason, info.domain, info.metadata)).unwrap_or_default();
        let fields = details.bad_request().map(|bad| bad.field_violations.iter().map(|v| v.field.clone()).collect());
        let quota = details
            .quota_failure()
            .map(|quota| quota.violations.iter().map(|v| (v.subject.clone(), v.description.clone())).collect());
        Self {
            code: status.code(),
            message: status.message().to_owned(),
            reason,
            domain,
            metadata: metadata.into_iter().collect(),
            fields: fields.unwrap_or_default(),
            retry: details.retry_info().and_then(|retry| retry.retry_delay),
            quota: quota.unwrap_or_default(),
        }
    }
}

impl Failure {
    /// Asserts code and reason.
    #[track_caller]
    pub fn is(&self, code: Code, reason: &str) -> &Self {
        assert_eq!((self.code, self.reason.as_str()), (code, reason), "{self:?}");
        self
    }

    /// Asserts INVALID_ARGUMENT for exactly these fields.
    #[track_caller]
    pub fn names(&self, fields: &[&str]) -> &Self {
        assert_eq!(self.code, Code::InvalidArgument, "{self:?}");
        assert_eq!(self.fields, fields, "{self:?}");
        self
    }
}

/// A result that must be a refusal.
pub trait Refused {
    /// The refusal; panics when there is none.
    fn refused(self) -> Failure;
}

impl<T: Debug> Refused for Result<T, Status> {
    #[track_caller]
    fn refused(self) -> Failure {
        match self {
            Err(status) => Failure::from(&status),
            Ok(answer) => panic!("this should have been refused: {answer:?}"),
        }
    }
}

impl<T: Debug> Refused for Option<Result<T, Status>> {
    #[track_caller]
    fn refused(self) -> Failure {
        self.expect("the stream should have ended with a refusal, not with OK").refused()
    }
}
