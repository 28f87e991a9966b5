//! Sessions, their reports, and who opens them.

use std::sync::Arc;

use bytes::Bytes;
use prism_core::control::ClientIdentity;
use prism_core::limits::{MAX_MAP_ENTRIES, MAX_MAP_KEY_BYTES, MAX_MAP_VALUE_BYTES, MAX_TEXT_BYTES};
use prism_core::secret::SecretId;
use prism_core::session::{AdmitRequest, ClientBasis, DataGrant, SessionFigures, SessionRecord, SessionReport};
use prism_core::subject::Subject;
use prism_core::{ConfigName, NodeId, Result, UnixMillis};
use prism_proto::cluster::v1 as wire;

use super::{
    at, bad, bounded, config_from_wire, config_to_wire, grant_to_wire, grants_from_wire, hash_from_wire, id_from_wire,
    id_to_wire, millis, need, proof_from_wire, proof_to_wire,
};
use crate::bounds::{MAX_CREDENTIAL_ID_BYTES, MAX_SUBJECTS};

/// A SHA-256 in hexadecimal.
const FINGERPRINT_BYTES: usize = 64;

/// What a session stands on.
pub fn basis_from_wire(basis: wire::BasisEntry) -> Result<ClientBasis> {
    let subjects = bounded("subjects", basis.subjects, MAX_SUBJECTS)?;
    if basis.credential_id.len() > MAX_CREDENTIAL_ID_BYTES {
        return Err(bad(format_args!("credential_id has more than {MAX_CREDENTIAL_ID_BYTES} bytes")));
    }
    let prints = [("certificate", &basis.certificate), ("authority", &basis.authority)];
    if let Some((field, _)) =
        prints.into_iter().find(|(_, print)| print.as_ref().is_some_and(|print| print.len() > FINGERPRINT_BYTES))
    {
        return Err(bad(format_args!("{field} has more than {FINGERPRINT_BYTES} bytes")));
    }
    Ok(ClientBasis {
        credential_id: basis.credential_id,
        subjects: subjects.iter().map(|subject| Subject::parse("subject", subject)).collect::<Result<_>>()?,
        certificate: basis.certificate,
        authority: basis.authority,
    })
}

/// The same, the other way.
pub fn basis_to_wire(basis: &ClientBasis) -> wire::BasisEntry {
    wire::BasisEntry {
        credential_id: basis.credential_id.clone(),
        subjects: basis.subjects.iter().map(ToString::to_string).collect(),
        certificate: basis.certificate.clone(),
        authority: basis.authority.clone(),
    }
}

fn figures_from_wire(figures: &wire::SessionFiguresEntry) -> SessionFigures {
    SessionFigures {
        requests_total: figures.requests_total,
        bytes_sent: figures.bytes_sent,
        bytes_received: figures.bytes_received,
        active_streams: figures.active_streams,
        last_request: at(figures.last_request_ms),
    }
}

fn figures_to_wire(figures: &SessionFigures) -> wire::SessionFiguresEntry {
    wire::SessionFiguresEntry {
        requests_total: figures.requests_total,
        bytes_sent: figures.bytes_sent,
        bytes_received: figures.bytes_received,
        active_streams: figures.active_streams,
        last_request_ms: millis(figures.last_request),
    }
}

/// A session.
pub fn record_from_wire(entry: wire::SessionEntry) -> Result<SessionRecord> {
    Ok(SessionRecord {
        id: id_from_wire(&entry.id)?,
        token_id: SecretId::parse(&entry.token_id).ok_or_else(|| bad("a token id must have 16 characters"))?,
        token_hash: hash_from_wire(&entry.token_hash)?,
        client_id: entry.client_id,
        client_version: entry.client_version,
        metadata: entry.metadata,
        config: Arc::new(config_from_wire(&entry.config_json)?),
        config_name: entry.config_name.map(ConfigName::try_from).transpose().map_err(bad)?,
        grant: DataGrant { read: entry.read, write: entry.write },
        basis: basis_from_wire(need("basis", entry.basis)?)?,
        created_at: UnixMillis(entry.created_at_ms),
        expires_at: UnixMillis(entry.expires_at_ms),
        last_activity: UnixMillis(entry.last_activity_ms),
        terminating: entry.terminating,
        figures: figures_from_wire(&entry.figures.unwrap_or_default()),
    })
}

/// The same, the other way.
pub fn record_to_wire(record: &SessionRecord) -> Result<wire::SessionEntry> {
    Ok(wire::SessionEntry {
        id: id_to_wire(record.id),
        token_id: record.token_id.to_string(),
        token_hash: Bytes::copy_from_slice(record.token_hash.as_bytes()),
        client_id: record.client_id.clone(),
        client_version: record.client_version.clone(),
        metadata: record.metadata.clone(),
        config_json: config_to_wire(&record.config)?,
        config_name: record.config_name.clone().map(String::from),
        read: record.grant.read,
        write: record.grant.write,
        basis: Some(basis_to_wire(&record.basis)),
        created_at_ms: record.created_at.0,
        expires_at_ms: record.expires_at.0,
        last_activity_ms: record.last_activity.0,
        terminating: record.terminating.clone(),
        figures: Some(figures_to_wire(&record.figures)),
    })
}

/// What a node that holds a session needs to know of it.
pub fn known_to_wire(record: &SessionRecord) -> wire::KnownSession {
    wire::KnownSession {
        id: id_to_wire(record.id),
        expires_at_ms: record.expires_at.0,
        terminating: record.terminating.clone(),
    }
}

/// A report.
pub fn report_from_wire(entry: &wire::SessionReportEntry) -> Result<SessionReport> {
    Ok(SessionReport {
        id: id_from_wire(&entry.id)?,
        last_activity: UnixMillis(entry.last_activity_ms),
        figures: figures_from_wire(&entry.figures.unwrap_or_default()),
    })
}

/// The same, the other way.
pub fn report_to_wire(report: &SessionReport) -> wire::SessionReportEntry {
    wire::SessionReportEntry {
        id: id_to_wire(report.id),
        last_activity_ms: report.last_activity.0,
        figures: Some(figures_to_wire(&report.figures)),
    }
}

/// An admission. The node is the one that asks, whatever it may say.
pub fn admit_from_wire(ask: wire::AdmitAsk, node: NodeId) -> Result<AdmitRequest> {
    let texts = [("client_id", &ask.client_id), ("client_version", &ask.client_version)];
    if let Some((field, _)) = texts.into_iter().find(|(_, text)| text.len() > MAX_TEXT_BYTES) {
        return Err(bad(format_args!("{field} has more than {MAX_TEXT_BYTES} bytes")));
    }
    if let Some((field, _)) = texts.into_iter().find(|(_, text)| text.chars().any(char::is_control)) {
        return Err(bad(format_args!("{field} has control characters")));
    }
    if ask.metadata.len() > MAX_MAP_ENTRIES {
        return Err(bad(format_args!("metadata has more than {MAX_MAP_ENTRIES} entries")));
    }
    let within =
        |key: &str, value: &str| (1..=MAX_MAP_KEY_BYTES).contains(&key.len()) && value.len() <= MAX_MAP_VALUE_BYTES;
    if ask.metadata.iter().any(|(key, value)| !within(key, value)) {
        let message =
            format!("keys of metadata must have 1 to {MAX_MAP_KEY_BYTES} bytes, values at most {MAX_MAP_VALUE_BYTES}");
        return Err(bad(message));
    }
    Ok(AdmitRequest {
        client_id: ask.client_id,
        client_version: ask.client_version,
        metadata: ask.metadata,
        config: Arc::new(config_from_wire(&ask.config_json)?),
        config_name: ask.config_name.map(ConfigName::try_from).transpose().map_err(bad)?,
        grant: DataGrant { read: ask.read, write: ask.write },
        basis: basis_from_wire(need("basis", ask.basis)?)?,
        credential_ends: at(ask.credential_ends_ms),
        key: ask.key.as_ref().map(proof_from_wire).transpose()?,
        node,
    })
}

/// The same, the other way.
pub fn admit_to_wire(request: AdmitRequest) -> Result<wire::AdmitAsk> {
    Ok(wire::AdmitAsk {
        config_json: config_to_wire(&request.config)?,
        client_id: request.client_id,
        client_version: request.client_version,
        metadata: request.metadata,
        config_name: request.config_name.map(String::from),
        read: request.grant.read,
        write: request.grant.write,
        basis: Some(basis_to_wire(&request.basis)),
        credential_ends_ms: millis(request.credential_ends),
        key: request.key.as_ref().map(proof_to_wire),
    })
}

/// What a client may do.
pub fn client_from_wire(client: wire::ClientEntry) -> Result<ClientIdentity> {
    Ok(ClientIdentity {
        basis: basis_from_wire(need("basis", client.basis)?)?,
        grants: grants_from_wire(client.grants)?,
        ends: at(client.ends_at_ms),
    })
}

/// The same, the other way.
pub fn client_to_wire(client: &ClientIdentity) -> wire::ClientEntry {
    wire::ClientEntry {
        basis: Some(basis_to_wire(&client.basis)),
        grants: client.grants.iter().map(grant_to_wire).collect(),
        ends_at_ms: millis(client.ends),
    }
}
