//! The one place where an [`Error`] becomes a gRPC status with `google.rpc` details.

use std::collections::HashMap;

use prism_core::secret::redact;
use prism_core::{Error, Kind};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, QuotaViolation, StatusExt};

/// Longest message sent, in bytes. Statuses travel in headers, and peers refuse header lists above 16 KiB.
pub(crate) const MAX_MESSAGE_BYTES: usize = 2048;
/// Most bytes of fields and descriptions sent as BadRequest; what does not fit is counted in a last violation.
const MAX_FIELDS_BYTES: usize = 4096;
/// Most bytes of one metadata value.
pub(crate) const MAX_METADATA_BYTES: usize = 1024;

/// Maps an error to a status: ErrorInfo always, BadRequest, QuotaFailure and RetryInfo where they apply. `domain` is the
/// canonical proto package. Internal causes are logged here with the request id, never sent.
pub fn to_status(error: &Error, domain: &str, request_id: &str) -> Status {
    log(error, request_id);
    let metadata: HashMap<String, String> =
        error.metadata().iter().map(|(key, value)| (key.clone(), cut(value, MAX_METADATA_BYTES))).collect();
    let mut details = ErrorDetails::with_error_info(error.reason(), domain, metadata);
    if !error.fields().is_empty() {
        details.set_bad_request(violations(error));
    }
    if let Some((subject, description)) = quota(error) {
        details.set_quota_failure(vec![QuotaViolation::new(subject, description)]);
    }
    if let Some(delay) = error.retry_delay() {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code(error.kind()), cut(error.message(), MAX_MESSAGE_BYTES), details)
}

/// The gRPC code of a kind.
pub fn code(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Aborted => Code::Aborted,
        Kind::OutOfRange => Code::OutOfRange,
        Kind::Unavailable => Code::Unavailable,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::Internal => Code::Internal,
    }
}

pub(crate) fn log(error: &Error, request_id: &str) {
    let cause = error.cause().map(|cause| redact(&chain(cause)).into_owned());
    match (error.kind(), cause) {
        (Kind::Internal, cause) => tracing::error!(
            request.id = request_id,
            reason = error.reason(),
            cause = cause.as_deref().unwrap_or("unknown"),
            "a request failed inside the server"
        ),
        (_, Some(cause)) => tracing::warn!(request.id = request_id, reason = error.reason(), cause, "a request failed"),
        (_, None) => {}
    }
}

fn chain(cause: &(dyn std::error::Error + Send + Sync)) -> String {
    let mut text = cause.to_string();
    let mut next = cause.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

/// Whose quota is used up, and which it is.
pub(crate) fn quota(error: &Error) -> Option<(&str, String)> {
    let quota = error.quota_violation()?;
    Some((&quota.subject, format!("{}: limit {}, usage {}", quota.quota, quota.limit, quota.usage)))
}

pub(crate) fn violations(error: &Error) -> Vec<FieldViolation> {
    let mut room = MAX_FIELDS_BYTES;
    let mut out = Vec::new();
    for violation in error.fields() {
        let field = cut(&violation.field, 256);
        let description = cut(&violation.description, 1024);
        let Some(left) = room.checked_sub(field.len() + description.len()) else { break };
        room = left;
        out.push(FieldViolation::new(field, description));
    }
    let missing = error.fields().len() - out.len();
    if missing > 0 {
        out.push(FieldViolation::new("…", format!("and {missing} more fields")));
    }
    out
}

/// `text`, cut at a character boundary so that it and an ellipsis fit in `limit` bytes.
pub(crate) fn cut(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let mut end = limit.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prism_core::error::QuotaViolation as CoreQuota;

    use super::*;

    #[test]
    fn details_say_what_the_error_says() {
        let error = Error::quota(CoreQuota { subject: "namespace:a".into(), quota: "max_rps", limit: 10, usage: 10 })
            .with("id", "x")
            .retry_after(Duration::from_millis(100));
        let status = to_status(&error, "prism.keyvalue.v1", "r");
        assert_eq!(status.code(), Code::ResourceExhausted);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("QUOTA_EXCEEDED", "prism.keyvalue.v1"));
        assert_eq!(info.metadata["id"], "x");
        let quota = &details.quota_failure().unwrap().violations[0];
        assert_eq!(
            (quota.subject.as_str(), quota.description.as_str()),
            ("namespace:a", "max_rps: limit 10, usage 10")
        );
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(100)));
    }

    #[test]
    fn a_cause_is_never_sent() {
        let status = to_status(&Error::internal("the disk at /secret is broken"), "prism.admin.v1", "r");
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("secret"));
        assert!(!String::from_utf8_lossy(status.details()).contains("secret"));
    }

    #[test]
    fn a_status_fits_in_headers_however_much_is_wrong() {
        let fields =
            (0..10_000).map(|n| prism_core::error::FieldViolation::new(format!("f{n}"), "ä".repeat(3000))).collect();
        let status = to_status(&Error::invalid_fields(fields).with("k", "v".repeat(100_000)), "prism.admin.v1", "r");
        // Details are sent in base64, a message percent-encoded (three characters for a byte at worst).
        assert!(status.details().len() * 4 / 3 + status.message().len() * 3 < 16 * 1024 - 512);
        let details = status.get_error_details();
        let last = details.bad_request().unwrap().field_violations.last().unwrap().clone();
        assert!(last.description.contains("more fields"), "{}", last.description);
    }

    #[test]
    fn every_field_is_named_when_they_fit() {
        let fields = vec![
            prism_core::error::FieldViolation::new("config.name", "must be set"),
            prism_core::error::FieldViolation::new("config.backend.type", "must be set"),
        ];
        let status = to_status(&Error::invalid_fields(fields), "prism.admin.v1", "r");
        let details = status.get_error_details();
        let named: Vec<_> = details.bad_request().unwrap().field_violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(named, ["config.name", "config.backend.type"]);
    }
}
