//! The one place where an [`Error`] becomes an HTTP status and a JSON document (contract §6, §9 "REST"); what it says is what
//! [`crate::to_status`] says.

use http::StatusCode;
use prism_core::{Error, Kind};
use serde_json::{Map, Value, json};

use crate::status::{MAX_MESSAGE_BYTES, MAX_METADATA_BYTES, cut, log, quota, violations};

/// The HTTP status of a kind, as `google.rpc.Code` has it.
pub fn http_status(kind: Kind) -> StatusCode {
    match kind {
        Kind::InvalidArgument | Kind::FailedPrecondition | Kind::OutOfRange => StatusCode::BAD_REQUEST,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::PermissionDenied => StatusCode::FORBIDDEN,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::AlreadyExists | Kind::Aborted => StatusCode::CONFLICT,
        Kind::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Kind::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// The name of a kind's gRPC code.
pub fn code_name(kind: Kind) -> &'static str {
    match kind {
        Kind::InvalidArgument => "INVALID_ARGUMENT",
        Kind::NotFound => "NOT_FOUND",
        Kind::AlreadyExists => "ALREADY_EXISTS",
        Kind::PermissionDenied => "PERMISSION_DENIED",
        Kind::Unauthenticated => "UNAUTHENTICATED",
        Kind::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Kind::FailedPrecondition => "FAILED_PRECONDITION",
        Kind::Aborted => "ABORTED",
        Kind::OutOfRange => "OUT_OF_RANGE",
        Kind::Unavailable => "UNAVAILABLE",
        Kind::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Kind::Unimplemented => "UNIMPLEMENTED",
        Kind::Internal => "INTERNAL",
    }
}

/// `{"error": {code, message, status, details}}`, with the same details as in a gRPC status. `status` is the one of the answer.
/// Internal causes are logged here with the request id, never sent.
pub fn to_json(error: &Error, status: StatusCode, domain: &str, request_id: &str) -> Value {
    log(error, request_id);
    let metadata: Map<String, Value> = error
        .metadata()
        .iter()
        .map(|(key, value)| (key.clone(), Value::String(cut(value, MAX_METADATA_BYTES))))
        .collect();
    let mut details =
        vec![typed("ErrorInfo", json!({"reason": error.reason(), "domain": domain, "metadata": metadata}))];
    if !error.fields().is_empty() {
        let fields: Vec<Value> = violations(error)
            .into_iter()
            .map(|violation| json!({"field": violation.field, "description": violation.description}))
            .collect();
        details.push(typed("BadRequest", json!({"fieldViolations": fields})));
    }
    if let Some((subject, description)) = quota(error) {
        let violations = json!([{"subject": subject, "description": description}]);
        details.push(typed("QuotaFailure", json!({"violations": violations})));
    }
    if let Some(delay) = error.retry_delay() {
        details.push(typed("RetryInfo", json!({"retryDelay": format!("{}s", delay.as_secs_f64())})));
    }
    json!({"error": {
        "code": code_name(error.kind()),
        "message": cut(error.message(), MAX_MESSAGE_BYTES),
        "status": status.as_u16(),
        "details": details,
    }})
}

fn typed(name: &str, mut detail: Value) -> Value {
    if let Some(detail) = detail.as_object_mut() {
        detail.insert("@type".to_owned(), format!("type.googleapis.com/google.rpc.{name}").into());
    }
    detail
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prism_core::error::QuotaViolation;

    use super::*;

    #[test]
    fn it_says_what_the_error_says() {
        let error = Error::invalid("csrPem", "must be set").with("id", "x").retry_after(Duration::from_millis(1500));
        let said = to_json(&error, http_status(error.kind()), "prism.cluster.v1", "r");
        let error = &said["error"];
        assert_eq!((&error["code"], &error["status"]), (&json!("INVALID_ARGUMENT"), &json!(400)));
        assert_eq!(error["message"], "csrPem: must be set");
        let [info, fields, retry] = error["details"].as_array().unwrap().as_slice() else { panic!("{error}") };
        assert_eq!((&info["reason"], &info["domain"]), (&json!("INVALID_ARGUMENT"), &json!("prism.cluster.v1")));
        assert_eq!(info["metadata"], json!({"id": "x"}));
        assert_eq!(fields["fieldViolations"], json!([{"field": "csrPem", "description": "must be set"}]));
        assert_eq!(retry["retryDelay"], "1.5s");
    }

    #[test]
    fn a_quota_is_named_as_in_a_grpc_status() {
        let full = QuotaViolation { subject: "namespace:a".into(), quota: "max_rps", limit: 10, usage: 11 };
        let error = Error::quota(full).retry_after(Duration::from_millis(100));
        let said = to_json(&error, http_status(error.kind()), "d", "r");
        let [_, quota, retry] = said["error"]["details"].as_array().unwrap().as_slice() else { panic!("{said}") };
        assert_eq!(quota["@type"], "type.googleapis.com/google.rpc.QuotaFailure");
        let violation = json!({"subject": "namespace:a", "description": "max_rps: limit 10, usage 11"});
        assert_eq!(quota["violations"], json!([violation]));
        assert_eq!(retry["retryDelay"], "0.1s");
    }

    #[test]
    fn a_cause_is_never_sent() {
        let error = Error::internal("the disk at /secret is broken");
        assert!(!to_json(&error, http_status(error.kind()), "d", "r").to_string().contains("secret"));
    }
}
