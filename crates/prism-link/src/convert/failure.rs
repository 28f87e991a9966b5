//! Errors on the wire. A cause stays where it is: it is for the log of its own process.

use std::time::Duration;

use prism_core::error::{FieldViolation, QuotaViolation};
use prism_core::{Error, Kind, NodeId, Result};
use prism_proto::cluster::v1 as wire;

use super::{bad, bounded};
use crate::bounds::MAX_ITEMS;

/// The quotas that there are.
const QUOTAS: [&str; 4] = ["max_sessions", "max_rps", "max_storage_bytes", "rate_limit"];

/// An error as the other end sees it.
pub fn failure_to_wire(error: &Error) -> wire::Failure {
    let quota = error.quota_violation().map(|quota| wire::QuotaFailure {
        subject: quota.subject.clone(),
        quota: quota.quota.to_owned(),
        limit: quota.limit,
        usage: quota.usage,
    });
    let field = |violation: &FieldViolation| wire::FieldFailure {
        field: violation.field.clone(),
        description: violation.description.clone(),
    };
    wire::Failure {
        code: error.kind().name().to_owned(),
        reason: error.reason().to_owned(),
        message: error.message().to_owned(),
        fields: error.fields().iter().take(MAX_ITEMS).map(field).collect(),
        metadata: error.metadata().clone(),
        retry_after_ms: error.retry_delay().map(|delay| i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)),
        quota,
    }
}

/// Most that is kept of what a node says, in characters.
const MAX_SAID: usize = 300;

/// Why a node did not do what it was told, for operators: nothing of it but the code and a cut text is the node's, so that it can
/// say nothing in the controller's name.
pub fn refusal_from_wire(node: &NodeId, failure: &wire::Failure) -> Error {
    let told = [Kind::InvalidArgument, Kind::FailedPrecondition, Kind::ResourceExhausted];
    let kind = told.into_iter().find(|kind| kind.name() == failure.code).unwrap_or(Kind::Unavailable);
    let clean = |text: &str| -> String {
        text.chars().take(MAX_SAID).map(|char| if char.is_control() { ' ' } else { char }).collect()
    };
    let mut said = clean(&failure.message);
    for field in failure.fields.iter().take(3) {
        said = clean(&format!("{said}; {}: {}", field.field, field.description));
    }
    Error::new(kind, "NODE_REFUSED", format!("the node {node} refuses: {said}")).with("node", node.as_str())
}

/// The error that the other end met.
pub fn failure_from_wire(failure: wire::Failure) -> Result<Error> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == failure.code);
    let kind = kind.ok_or_else(|| bad(format_args!("{:?} is no status code", failure.code)))?;
    let mut error = match failure.quota {
        Some(quota) => {
            let name = QUOTAS.into_iter().find(|name| *name == quota.quota);
            let name = name.ok_or_else(|| bad(format_args!("{:?} is no quota", quota.quota)))?;
            let violation =
                QuotaViolation { subject: quota.subject, quota: name, limit: quota.limit, usage: quota.usage };
            Error::quota(violation).with_message(failure.message)
        }
        None if !failure.fields.is_empty() => {
            let fields = bounded("fields", failure.fields, MAX_ITEMS)?;
            let fields = fields.into_iter().map(|field| FieldViolation::new(field.field, field.description)).collect();
            Error::invalid_fields(fields).with_message(failure.message)
        }
        None => Error::new(kind, failure.reason, failure.message),
    };
    for (key, value) in failure.metadata {
        error = error.with(key, value);
    }
    if let Some(millis) = failure.retry_after_ms {
        error = error.retry_after(Duration::from_millis(u64::try_from(millis).unwrap_or(0)));
    }
    Ok(error)
}
