use std::time::Duration;

use tonic::metadata::{MetadataMap, MetadataValue};
use tonic_types::ErrorDetails;

use super::*;

fn with_request_id() -> MetadataMap {
    let mut metadata = MetadataMap::new();
    metadata.insert("x-request-id", MetadataValue::from_static("r-42"));
    metadata
}

#[test]
fn every_field_has_its_line() {
    let mut details = ErrorDetails::with_error_info("INVALID_ARGUMENT", "prism.admin.v1", []);
    details.add_bad_request_violation("config.pattern", "does not fit MEMORY");
    details.add_bad_request_violation("config.namespace", "does not exist");
    let status = Status::with_error_details_and_metadata(
        Code::InvalidArgument,
        "config.pattern: does not fit MEMORY; config.namespace: does not exist",
        details,
        with_request_id(),
    );
    let failure = Failure::from_status("CreateConfig", &status);
    assert_eq!(failure.exit(), Exit::Invalid);
    assert_eq!(
        failure.to_string(),
        "error: CreateConfig failed: the request is not valid (INVALID_ARGUMENT)\n  \
         config.pattern: does not fit MEMORY\n  \
         config.namespace: does not exist\n  \
         request: r-42\n\
         hint: nothing was changed; correct this and repeat\n"
    );
}

#[test]
fn denials_name_permission_and_entry() {
    let details = ErrorDetails::with_error_info(
        "PERMISSION_DENIED",
        "prism.admin.v1",
        [("permission".to_owned(), "config:create".to_owned()), ("audit_id".to_owned(), "e-9".to_owned())],
    );
    let text = Failure::from_status("CreateConfig", &Status::with_error_details(Code::PermissionDenied, "no", details))
        .to_string();
    assert!(text.contains("missing permission: config:create"), "{text}");
    assert!(text.contains("audit entry: e-9"), "{text}");
    assert!(text.contains("hint: ask for a role that holds config:create"), "{text}");
}

#[test]
fn quotas_and_retry_are_told() {
    let mut details = ErrorDetails::with_retry_info(Some(Duration::from_secs(5)));
    details.add_quota_failure_violation("namespace:a", "max_rps: limit 10, usage 10");
    let failure =
        Failure::from_status("GetMetrics", &Status::with_error_details(Code::ResourceExhausted, "slow", details));
    let text = failure.to_string();
    assert_eq!(failure.exit(), Exit::Limit);
    assert!(text.contains("quota of namespace:a: max_rps: limit 10, usage 10"), "{text}");
    assert!(text.contains("retry after: 5s"), "{text}");
}

#[test]
fn server_text_cannot_steer_the_terminal() {
    let text = Failure::from_status("GetConfig", &Status::not_found("\u{1b}[2J")).to_string();
    assert!(text.contains("\\u{1b}[2J"), "{text}");
    assert!(text.contains("`prism-admin config list`"), "{text}");
}

#[test]
fn a_closed_pipe_is_no_failure() {
    assert_eq!(Failure::output(&io::Error::from(io::ErrorKind::BrokenPipe)).exit(), Exit::Ok);
    assert_eq!(Failure::output(&io::Error::from(io::ErrorKind::StorageFull)).exit(), Exit::Failed);
}

#[test]
fn an_answer_is_not_a_lost_connection() {
    assert!(!is_lost_connection(&Status::unavailable("maintenance")));
    assert!(is_lost_connection(&Status::from_error(Box::new(io::Error::other("reset")))));
    let mut cancelled = Status::cancelled("operation was canceled");
    assert!(!is_lost_connection(&cancelled));
    cancelled.set_source(std::sync::Arc::new(io::Error::other("the connection was closed before the call was sent")));
    assert!(is_lost_connection(&cancelled));
}
