//! GetLineage: what hangs together, from whichever link somebody holds.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use prism_core::permission::Reach;
use prism_core::session::SessionId;
use prism_core::{Error, NodeId, Result, UnixMillis};
use prism_proto::admin::v1::AuditLogEntry;
use prism_proto::cluster::v1 as wire;
use prism_proto::cluster::v1::get_lineage_request::Link;
use prism_rpc::convert::timestamp;
use prism_store::{CertificateRow, EntryFilter, EntryQuery, Order, Store, Tx};
use prost::Message as _;

use super::certificate::resource_of as certificate_resource;
use super::join_token::{info, resource_of as token_resource};
use super::node::{node as node_on_wire, resource_of as node_resource, tell_links};
use crate::op::{Caller, Done, Op, Place, Scope, Services};

/// Most entries of each list.
const MAX_LISTED: usize = 100;
/// Entries of each operation that are looked through, newest first.
const SEARCHED: usize = 2000;
/// Operations that are about nodes and tokens.
const OPERATIONS: [&str; 6] =
    ["CreateJoinToken", "RevokeJoinToken", "ExchangeJoinToken", "RenewCertificate", "RevokeNode", "RevokeCertificate"];
/// Most digits of a fingerprint.
const MAX_DIGITS: usize = 64;

/// `GetLineage`.
#[derive(Clone)]
pub struct GetLineage {
    link: Link,
}

#[async_trait]
impl Op for GetLineage {
    type Request = wire::GetLineageRequest;
    type Response = wire::GetLineageResponse;
    const RPC: &'static str = "prism.cluster.v1.NodeService/GetLineage";
    const SCOPE: Scope = Scope::Installation;

    fn resource(request: &Self::Request) -> String {
        match &request.link {
            Some(link) => resource_of(link),
            None => "nodes".to_owned(),
        }
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        let rule = "token_id, node_id, certificate or session_id must be set";
        let link = match request.link.ok_or_else(|| Error::invalid("link", rule))? {
            Link::TokenId(id) if id.is_empty() => return Err(Error::invalid("token_id", "must be set")),
            Link::TokenId(id) => Link::TokenId(id),
            Link::NodeId(id) => Link::NodeId(NodeId::parse("node_id", &id)?.to_string()),
            Link::Certificate(id) => {
                if !(1..=MAX_DIGITS).contains(&id.len()) || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    let rule = "must be the hexadecimal digits of a serial number or of a certificate's SHA-256";
                    return Err(Error::invalid("certificate", rule));
                }
                Link::Certificate(id.to_ascii_lowercase())
            }
            Link::SessionId(id) => {
                SessionId::parse(&id).ok_or_else(|| Error::invalid("session_id", "must be a session's id, a UUID"))?;
                Link::SessionId(id)
            }
        };
        Ok(Self { link })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let unknown = || Error::not_found(resource_of(&self.link));
        let asked = match &self.link {
            Link::TokenId(id) => tx.join_token(id)?,
            _ => None,
        };
        let node_id = match &self.link {
            Link::TokenId(id) => match &asked {
                Some(token) => token.redemption.as_ref().map(|redemption| redemption.node_id.clone()),
                None => Some(tx.node_of_token(id)?.ok_or_else(unknown)?.id.to_string()),
            },
            Link::NodeId(id) => Some(id.clone()),
            Link::Certificate(id) => {
                let row = match tx.certificate_by_serial(id)? {
                    Some(row) => Some(row),
                    None => tx.certificate(id)?,
                };
                Some(row.and_then(|row| row.origin).ok_or_else(unknown)?.node_id)
            }
            Link::SessionId(id) => Some(tx.node_of_session(id)?.ok_or_else(unknown)?),
        };
        let mut response = match &node_id {
            None => wire::GetLineageResponse::default(),
            Some(node_id) => of_node(node_id, tx)?,
        };
        if let Some(token) = asked
            && response.tokens.iter().all(|known| known.token_id != token.id.as_str())
        {
            response.tokens.push(info(&token, tx.now));
        }
        if response.node.is_none() && response.tokens.is_empty() && response.certificates.is_empty() {
            return Err(unknown());
        }
        Ok(Done::new(response))
    }

    async fn follow_up(_: &Self::Request, response: &mut Self::Response, services: &Services) {
        tell_links(&mut response.node, services);
        // The log is read beside the writer; the answer is good without it.
        match entries_about(response, &services.store).await {
            Ok(ids) => response.audit_entry_ids = ids,
            Err(failed) => {
                tracing::warn!(reason = failed.reason(), cause = ?failed.cause(), "a lineage goes without its audit entries");
            }
        }
    }
}

fn resource_of(link: &Link) -> String {
    match link {
        Link::TokenId(id) => token_resource(id),
        Link::NodeId(id) => node_resource(id),
        Link::Certificate(id) => certificate_resource(id),
        Link::SessionId(id) => format!("session:{id}"),
    }
}

fn of_node(node_id: &str, tx: &Tx<'_>) -> Result<wire::GetLineageResponse> {
    let now = tx.now;
    let (session_ids, count) = tx.sessions_of_node(node_id, MAX_LISTED)?;
    Ok(wire::GetLineageResponse {
        node: tx.node(node_id)?.as_ref().map(node_on_wire),
        tokens: tx.join_tokens_of(node_id, MAX_LISTED)?.iter().map(|token| info(token, now)).collect(),
        certificates: tx.node_certificates(node_id, MAX_LISTED)?.iter().filter_map(certificate).collect(),
        session_ids,
        session_count: i32::try_from(count).unwrap_or(i32::MAX),
        audit_entry_ids: Vec::new(),
    })
}

fn certificate(row: &CertificateRow) -> Option<wire::NodeCertificate> {
    let origin = row.origin.as_ref()?;
    Some(wire::NodeCertificate {
        serial_number: row.serial.clone().unwrap_or_default(),
        fingerprint: row.fingerprint.clone(),
        node_id: origin.node_id.clone(),
        token_id: origin.token_id.clone(),
        renewed_from: origin.renewed_from.clone().unwrap_or_default(),
        key_hash: hex::encode(origin.key_hash),
        created_at: Some(timestamp(row.created_at)),
        expires_at: row.expires_at.map(timestamp),
        revoked: row.revoked_at.is_some(),
    })
}

/// Ids of the entries about what `response` shows, newest first.
async fn entries_about(response: &wire::GetLineageResponse, store: &Store) -> Result<Vec<String>> {
    let certificates = response.certificates.iter();
    let mut resources: BTreeSet<String> = response.tokens.iter().map(|token| token_resource(&token.token_id)).collect();
    resources.extend(certificates.clone().map(|certificate| token_resource(&certificate.token_id)));
    resources.extend(
        certificates
            .clone()
            .flat_map(|certificate| [&certificate.serial_number, &certificate.fingerprint])
            .map(|id| certificate_resource(id)),
    );
    resources.extend(response.node.iter().map(|node| node_resource(&node.node_id)));
    let serials: BTreeSet<&str> = certificates.map(|certificate| certificate.serial_number.as_str()).collect();
    let mut found = BTreeMap::new();
    for operation in OPERATIONS {
        let query = EntryQuery {
            filter: EntryFilter { operation: Some(operation.to_owned()), ..EntryFilter::default() },
            reach: Reach::Installation,
            order: Order::NewestBefore { sequence: i64::MAX, timestamp: UnixMillis(i64::MAX) },
            until: None,
            limit: SEARCHED,
        };
        for entry in store.audit_chunk(query).await?.entries {
            let entry = AuditLogEntry::decode(entry).map_err(Error::internal)?;
            if resources.contains(&entry.resource) || serials.contains(entry.credential_id.as_str()) {
                found.insert(Reverse(entry.sequence), entry.id);
            }
        }
    }
    Ok(found.into_values().take(MAX_LISTED).collect())
}
