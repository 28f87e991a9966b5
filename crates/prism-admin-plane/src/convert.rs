//! Between the wire's messages and the domain's values, for the admin plane alone.

use std::time::Duration;

use prism_core::control::{BackendReport, Health, NamespaceFigures, NamespaceStatus, Quota, RequestFigures};
use prism_core::error::FieldViolation;
use prism_core::limits::{MAX_DESCRIPTION_BYTES, MAX_QUOTA, SessionPolicy};
use prism_core::permission::Role;
use prism_core::secret::{SecretKind, masked};
use prism_core::session::{DataGrant, SessionStatus};
use prism_core::{Error, NamespaceName, NodeId, Result, UnixMillis};
use prism_proto::admin::v1 as wire;
use prism_rpc::convert::timestamp;
use prism_store::{
    ApiKeyRow, BindingRow, CertificateRow, ClientBindingRow, ClientKeyRow, NamespaceRow, SessionSummary,
};

/// Stored kind of a certificate for a person.
pub(crate) const USER_CERTIFICATE: &str = "user";
/// Stored kind of a certificate for an application.
pub(crate) const CLIENT_CERTIFICATE: &str = "client";
/// Stored kind of a certificate for a node.
pub(crate) const NODE_CERTIFICATE: &str = "node";
/// Most names that a message lists.
const MAX_LISTED: usize = 20;

/// Checks a text for people: at most `max` bytes, no control characters but line breaks and tabs.
pub(crate) fn text(field: &str, value: &str, max: usize) -> Result<()> {
    if value.len() > max {
        return Err(Error::invalid(field, format!("must be at most {max} bytes")));
    }
    if value.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
        return Err(Error::invalid(field, "must not contain control characters"));
    }
    Ok(())
}

/// As [`text`], for a description or a message.
pub(crate) fn description(field: &str, value: &str) -> Result<()> {
    text(field, value, MAX_DESCRIPTION_BYTES)
}

/// Checks the form of a namespace that a list is limited to.
pub(crate) fn namespace_filter(namespace: Option<&str>) -> Result<()> {
    namespace.map_or(Ok(()), |name| NamespaceName::parse("namespace", name).map(|_| ()))
}

/// The outcome of a check without its value, for [`all_of`].
pub(crate) fn outcome<T>(check: &Result<T>) -> Result<()> {
    check.as_ref().map(|_| ()).map_err(Clone::clone)
}

/// Gathers the violations of several checks into one answer.
pub(crate) fn all_of<const N: usize>(checks: [Result<()>; N]) -> Result<()> {
    let mut violations: Vec<FieldViolation> = Vec::new();
    for check in checks {
        if let Err(error) = check {
            if error.fields().is_empty() {
                return Err(error);
            }
            violations.extend_from_slice(error.fields());
        }
    }
    if violations.is_empty() { Ok(()) } else { Err(Error::invalid_fields(violations)) }
}

pub(crate) fn quota(field: &str, quota: Option<wire::NamespaceQuota>) -> Result<Quota> {
    let quota = quota.unwrap_or_default();
    let bound = |name: &str, value: i64| {
        if (0..=MAX_QUOTA).contains(&value) {
            Ok(())
        } else {
            Err(Error::invalid(format!("{field}.{name}"), format!("must be 0 (unlimited) to {MAX_QUOTA}")))
        }
    };
    all_of([
        bound("max_sessions", quota.max_sessions),
        bound("max_storage_bytes", quota.max_storage_bytes),
        bound("max_rps", quota.max_rps),
    ])?;
    Ok(Quota { max_sessions: quota.max_sessions, max_storage_bytes: quota.max_storage_bytes, max_rps: quota.max_rps })
}

pub(crate) fn namespace_status(field: &str, number: i32) -> Result<NamespaceStatus> {
    match wire::NamespaceStatus::try_from(number) {
        Ok(wire::NamespaceStatus::Active) => Ok(NamespaceStatus::Active),
        Ok(wire::NamespaceStatus::ReadOnly) => Ok(NamespaceStatus::ReadOnly),
        Ok(wire::NamespaceStatus::Suspended) => Ok(NamespaceStatus::Suspended),
        _ => Err(Error::invalid(field, "must be ACTIVE, READ_ONLY or SUSPENDED")),
    }
}

/// A namespace on the wire; its figures are filled in by whoever has them.
pub(crate) fn namespace(row: &NamespaceRow, active_sessions: i64) -> wire::NamespaceInfo {
    let status = match row.namespace.status {
        NamespaceStatus::Active => wire::NamespaceStatus::Active,
        NamespaceStatus::ReadOnly => wire::NamespaceStatus::ReadOnly,
        NamespaceStatus::Suspended => wire::NamespaceStatus::Suspended,
    };
    let quota = row.namespace.quota;
    wire::NamespaceInfo {
        name: row.namespace.name.to_string(),
        description: row.description.clone(),
        created_at: Some(timestamp(row.created_at)),
        status: status.into(),
        quota: Some(wire::NamespaceQuota {
            max_sessions: quota.max_sessions,
            max_storage_bytes: quota.max_storage_bytes,
            max_rps: quota.max_rps,
        }),
        metrics: Some(wire::NamespaceMetrics { active_sessions, ..wire::NamespaceMetrics::default() }),
        etag: row.etag(),
    }
}

/// Fills in what only the data plane knows of a namespace.
pub(crate) fn fill(info: &mut wire::NamespaceInfo, figures: NamespaceFigures) {
    let metrics = info.metrics.get_or_insert_default();
    metrics.storage_bytes_used = figures.storage_bytes_used;
    metrics.requests_per_second = figures.requests_per_second;
}

pub(crate) fn session_status(number: i32) -> Result<Option<SessionStatus>> {
    match wire::SessionStatus::try_from(number) {
        Ok(wire::SessionStatus::Unspecified) => Ok(None),
        Ok(wire::SessionStatus::Active) => Ok(Some(SessionStatus::Active)),
        Ok(wire::SessionStatus::Idle) => Ok(Some(SessionStatus::Idle)),
        Ok(wire::SessionStatus::Expiring) => Ok(Some(SessionStatus::Expiring)),
        Ok(wire::SessionStatus::Terminated) => Ok(Some(SessionStatus::Terminated)),
        Err(_) => Err(Error::invalid("status", "is not a known session status")),
    }
}

pub(crate) fn session(row: &SessionSummary, policy: &SessionPolicy, now: UnixMillis) -> wire::SessionInfo {
    let status = match row.status(policy, now) {
        SessionStatus::Active => wire::SessionStatus::Active,
        SessionStatus::Idle => wire::SessionStatus::Idle,
        SessionStatus::Expiring => wire::SessionStatus::Expiring,
        SessionStatus::Terminated => wire::SessionStatus::Terminated,
    };
    wire::SessionInfo {
        session_id: row.id.to_string(),
        session_token: masked(SecretKind::Session, row.token_id),
        client_id: row.client_id.clone(),
        namespace: row.namespace.clone(),
        status: status.into(),
        created_at: Some(timestamp(row.created_at)),
        expires_at: Some(timestamp(row.ended_at.unwrap_or(row.expires_at))),
        last_activity: Some(timestamp(row.last_activity)),
        metrics: Some(wire::SessionMetrics {
            requests_total: row.figures.requests_total,
            bytes_sent: row.figures.bytes_sent,
            bytes_received: row.figures.bytes_received,
            active_streams: row.figures.active_streams,
            last_request: row.figures.last_request.map(timestamp),
        }),
    }
}

/// The first few of the names that there are, for messages to people.
pub(crate) fn listed<'a>(mut names: impl Iterator<Item = &'a str>) -> String {
    let shown = names.by_ref().take(MAX_LISTED).collect::<Vec<_>>().join(", ");
    match names.count() {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

pub(crate) fn api_key(key: &ApiKeyRow, now: UnixMillis) -> wire::ApiKey {
    wire::ApiKey {
        key_id: key.id.to_string(),
        name: key.name.clone(),
        roles: key.roles.clone(),
        namespace: key.namespace.as_ref().map(ToString::to_string),
        user: key.owner.clone(),
        created_at: Some(timestamp(key.life.created_at)),
        expires_at: key.life.expires_at.map(timestamp),
        last_used_at: key.life.last_used_at.map(timestamp),
        revoked: key.life.revoked_at.is_some(),
        created_by: key.life.created_by.clone(),
        rotated_at: key.rotated_at.map(timestamp),
        overlap_ends_at: key.previous.filter(|token| now < token.until).map(|token| timestamp(token.until)),
    }
}

/// What is allowed on the data plane, from the wire: `read`, `write` or both, each once.
pub(crate) fn data_grant(field: &str, permissions: &[String]) -> Result<DataGrant> {
    let mut grant = DataGrant::default();
    for (index, permission) in permissions.iter().enumerate() {
        let held = match permission.as_str() {
            "read" => &mut grant.read,
            "write" => &mut grant.write,
            _ => return Err(Error::invalid(format!("{field}[{index}]"), "must be \"read\" or \"write\"")),
        };
        if std::mem::replace(held, true) {
            return Err(Error::invalid(format!("{field}[{index}]"), "is named twice"));
        }
    }
    if permissions.is_empty() { Err(Error::invalid(field, "must name \"read\", \"write\" or both")) } else { Ok(grant) }
}

/// What is allowed on the data plane, for the wire.
pub(crate) fn data_permissions(grant: DataGrant) -> Vec<String> {
    let permissions = [("read", grant.read), ("write", grant.write)];
    permissions.into_iter().filter(|(_, held)| *held).map(|(name, _)| name.to_owned()).collect()
}

pub(crate) fn client_key(key: &ClientKeyRow) -> wire::ClientKey {
    wire::ClientKey {
        key_id: key.id.to_string(),
        name: key.name.clone(),
        namespace: key.namespace.to_string(),
        permissions: data_permissions(key.grant),
        created_at: Some(timestamp(key.life.created_at)),
        expires_at: key.life.expires_at.map(timestamp),
        last_used_at: key.life.last_used_at.map(timestamp),
        revoked: key.life.revoked_at.is_some(),
        created_by: key.life.created_by.clone(),
    }
}

pub(crate) fn role(role: &Role) -> wire::Role {
    wire::Role {
        name: role.name.clone(),
        permissions: role.permissions.iter().map(ToString::to_string).collect(),
        built_in: role.built_in,
    }
}

pub(crate) fn binding(row: &BindingRow) -> wire::Binding {
    wire::Binding {
        binding_id: row.id.to_string(),
        subject: row.subject.to_string(),
        role: row.grant.role.clone(),
        namespace: row.grant.namespace.as_ref().map(ToString::to_string),
    }
}

pub(crate) fn client_binding(row: &ClientBindingRow) -> wire::ClientBinding {
    wire::ClientBinding {
        binding_id: row.id.to_string(),
        subject: row.subject.to_string(),
        namespace: row.grant.namespace.to_string(),
        permissions: data_permissions(row.grant.grant),
        created_at: Some(timestamp(row.created_at)),
        created_by: row.created_by.clone(),
    }
}

/// A certificate; of one of another CA nothing is known but its fingerprint.
pub(crate) fn certificate(row: &CertificateRow) -> wire::Certificate {
    let kind = match row.kind.as_str() {
        USER_CERTIFICATE => wire::CertificateKind::User,
        CLIENT_CERTIFICATE => wire::CertificateKind::Client,
        NODE_CERTIFICATE => wire::CertificateKind::Node,
        _ => wire::CertificateKind::Unspecified,
    };
    wire::Certificate {
        serial_number: row.serial.clone().unwrap_or_default(),
        kind: kind.into(),
        name: row.name.clone(),
        uri: row.uri.clone(),
        created_at: row.serial.as_ref().map(|_| timestamp(row.created_at)),
        expires_at: row.expires_at.map(timestamp),
        revoked: row.revoked_at.is_some(),
        created_by: row.created_by.clone(),
        fingerprint: row.fingerprint.clone(),
    }
}

pub(crate) fn health(health: Health, message: &str, checked_at: UnixMillis) -> wire::BackendHealth {
    use wire::backend_health::HealthStatus;
    let status = match health {
        Health::Healthy => HealthStatus::Healthy,
        Health::Degraded => HealthStatus::Degraded,
        Health::Unhealthy => HealthStatus::Unhealthy,
    };
    wire::BackendHealth { status: status.into(), message: message.to_owned(), last_check: Some(timestamp(checked_at)) }
}

pub(crate) fn backend_instance(node: &NodeId, report: &BackendReport) -> wire::BackendInstance {
    wire::BackendInstance {
        id: report.instance.clone(),
        endpoint: report.endpoint.clone(),
        health: Some(health(report.health, &report.message, report.checked_at)),
        metrics: Some(wire::BackendMetrics {
            active_connections: report.active_connections,
            pool_size: report.pool_size,
            idle_connections: report.idle_connections,
            cpu_percent: report.cpu_percent,
            memory_percent: report.memory_percent,
            requests_per_second: report.requests_per_second,
            avg_latency_ms: report.avg_latency_ms,
        }),
        node_id: node.to_string(),
    }
}

pub(crate) fn figures(figures: &RequestFigures) -> wire::RequestMetrics {
    wire::RequestMetrics {
        requests_total: figures.requests_total,
        errors_total: figures.errors_total,
        requests_per_second: figures.requests_per_second,
        latency_p50_ms: figures.latency_p50_ms,
        latency_p95_ms: figures.latency_p95_ms,
        latency_p99_ms: figures.latency_p99_ms,
        active_sessions: figures.active_sessions,
        active_streams: figures.active_streams,
    }
}

/// The end of a life that begins at `now` and has the wire's `ttl`; positive and at most `max`.
pub(crate) fn life(field: &str, ttl: Option<&prost_types::Duration>, max: Duration) -> Result<Option<Duration>> {
    let Some(ttl) = ttl else { return Ok(None) };
    let ttl = prism_rpc::convert::from_duration(field, ttl)?;
    if ttl < Duration::from_millis(1) || ttl > max {
        return Err(Error::invalid(field, format!("must be positive and at most {} s", max.as_secs())));
    }
    Ok(Some(ttl))
}

/// The nodes that were not reached, for an answer.
pub fn names<T>(reached: &prism_core::nodes::Reached<T>) -> Vec<String> {
    reached.unreachable.iter().map(ToString::to_string).collect()
}
