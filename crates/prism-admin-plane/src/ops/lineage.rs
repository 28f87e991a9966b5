//! GetLineage: what hangs together, from whichever link somebody holds.

use std::collections::BTreeSet;

use async_trait::async_trait;
use prism_core::permission::Reach;
use prism_core::session::SessionId;
use prism_core::{Error, Kind, NodeId, Result};
use prism_proto::cluster::v1 as wire;
use prism_proto::cluster::v1::get_lineage_request::Link;
use prism_rpc::convert::timestamp;
use prism_store::{CertificateRow, Tx};

use super::certificate::resource_of as certificate_resource;
use super::join_token::{info, resource_of as token_resource};
use super::node::{node as node_on_wire, resource_of as node_resource, tell_links};
use super::session::resource_of as session_resource;
use crate::op::{Caller, Done, Op, Place, Scope, Services};

/// Most entries of each list.
const MAX_LISTED: usize = 100;
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

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let seen = Seen::by(caller)?;
        let node_id = self.node_id(tx, &seen)?;
        let mut response = match &node_id {
            None => wire::GetLineageResponse::default(),
            Some(node_id) => of_node(node_id, tx, &seen)?,
        };
        self.add_asked(&mut response, tx, &seen)?;
        if response.node.is_none() && response.tokens.is_empty() && response.certificates.is_empty() {
            return Err(self.unknown());
        }
        if seen.entries {
            let entries = tx.lineage_entries(&links_of(&response), MAX_LISTED)?;
            response.audit_entry_ids = entries.ids;
            if entries.more {
                response.left_out.push(left_out("audit_entry_ids", too_many("of each kind about each link")));
            }
        } else {
            response.left_out.push(needs("audit_entry_ids", AUDIT));
        }
        Ok(Done::new(response))
    }

    async fn follow_up(_: &Self::Request, response: &mut Self::Response, services: &Services) {
        tell_links(&mut response.node, services);
    }
}

impl GetLineage {
    fn unknown(&self) -> Error {
        Error::not_found(resource_of(&self.link))
    }

    /// The node that the link belongs to; `None` for a token that nobody has redeemed.
    fn node_id(&self, tx: &Tx<'_>, seen: &Seen) -> Result<Option<String>> {
        Ok(match &self.link {
            Link::TokenId(id) => {
                let redemption = tx.join_token(id)?.and_then(|token| token.redemption);
                let node_id = redemption.map(|redemption| redemption.node_id);
                let node_id = match node_id {
                    None => tx.node_of_token(id)?.map(|node| node.id.to_string()),
                    node_id => node_id,
                };
                // Whoever may not see tokens does not learn which there are.
                if node_id.is_none() && !seen.tokens {
                    return Err(denied(TOKENS));
                }
                node_id
            }
            Link::NodeId(id) => Some(id.clone()),
            Link::Certificate(id) => {
                let row = match tx.certificate_by_serial(id)? {
                    Some(row) => Some(row),
                    None => tx.certificate(id)?,
                };
                Some(row.and_then(|row| row.origin).ok_or_else(|| self.unknown())?.node_id)
            }
            Link::SessionId(id) => {
                if !seen.sessions.includes(tx.session_namespace(id)?.as_deref()) {
                    return Err(denied(SESSIONS));
                }
                Some(tx.node_of_session(id)?.ok_or_else(|| self.unknown())?)
            }
        })
    }

    /// What was asked for is shown, however much there is that is newer.
    fn add_asked(&self, response: &mut wire::GetLineageResponse, tx: &Tx<'_>, seen: &Seen) -> Result<()> {
        match &self.link {
            Link::TokenId(id) if seen.tokens => {
                if let Some(token) = tx.join_token(id)?
                    && response.tokens.iter().all(|known| known.token_id != *id)
                {
                    response.tokens.push(info(&token, tx.now));
                }
            }
            Link::Certificate(id) => {
                let is_it = |known: &wire::NodeCertificate| known.serial_number == *id || known.fingerprint == *id;
                if !response.certificates.iter().any(is_it) {
                    let row = match tx.certificate_by_serial(id)? {
                        Some(row) => Some(row),
                        None => tx.certificate(id)?,
                    };
                    response.certificates.extend(row.as_ref().and_then(certificate));
                }
            }
            Link::SessionId(id) if response.node.is_some() && !response.session_ids.contains(id) => {
                response.session_ids.push(id.clone());
            }
            _ => {}
        }
        Ok(())
    }
}

/// What a caller may see of a lineage, beside nodes and their certificates.
struct Seen {
    tokens: bool,
    sessions: Reach,
    entries: bool,
}

impl Seen {
    fn by(caller: &Caller) -> Result<Self> {
        let reach = |permission| caller.identity.reach(&caller.grants, permission);
        Ok(Self {
            tokens: reach(TOKENS)?.includes(None),
            sessions: reach(SESSIONS)?,
            // Most of them are of no namespace.
            entries: reach(AUDIT)?.includes(None),
        })
    }
}

/// For what `ListJoinTokens` asks.
const TOKENS: &str = "tokens:manage";
/// For what `ListSessions` asks.
const SESSIONS: &str = "session:read";
/// For what `GetAuditLog` asks.
const AUDIT: &str = "audit:read";

fn denied(permission: &str) -> Error {
    let message =
        format!("this link is for whom has the permission {permission}, which your credential does not have here");
    Error::new(Kind::PermissionDenied, "PERMISSION_DENIED", message).with("permission", permission)
}

fn left_out(field: &str, description: String) -> wire::LeftOut {
    wire::LeftOut { field: field.to_owned(), description }
}

fn needs(field: &str, permission: &str) -> wire::LeftOut {
    left_out(field, format!("needs the permission {permission} everywhere, which your credential does not have"))
}

fn too_many(of: &str) -> String {
    format!("there are more than {MAX_LISTED}; the newest {of} are shown")
}

fn resource_of(link: &Link) -> String {
    match link {
        Link::TokenId(id) => token_resource(id),
        Link::NodeId(id) => node_resource(id),
        Link::Certificate(id) => certificate_resource(id),
        Link::SessionId(id) => session_resource(id),
    }
}

fn of_node(node_id: &str, tx: &Tx<'_>, seen: &Seen) -> Result<wire::GetLineageResponse> {
    let now = tx.now;
    let mut response =
        wire::GetLineageResponse { node: tx.node(node_id)?.as_ref().map(node_on_wire), ..Default::default() };
    if seen.tokens {
        let mut tokens = tx.join_tokens_of(node_id, MAX_LISTED + 1)?;
        if tokens.len() > MAX_LISTED {
            response.left_out.push(left_out("tokens", too_many("of them")));
            tokens.truncate(MAX_LISTED);
        }
        response.tokens = tokens.iter().map(|token| info(token, now)).collect();
    } else {
        response.left_out.push(needs("tokens", TOKENS));
    }
    let mut certificates = tx.node_certificates(node_id, MAX_LISTED + 1)?;
    if certificates.len() > MAX_LISTED {
        response.left_out.push(left_out("certificates", too_many("of them")));
        certificates.truncate(MAX_LISTED);
    }
    response.certificates = certificates.iter().filter_map(certificate).collect();
    let (session_ids, count) = tx.sessions_of_node(node_id, &seen.sessions, MAX_LISTED)?;
    if count > session_ids.len() as i64 {
        response.left_out.push(left_out("session_ids", too_many("of them")));
    }
    if !seen.sessions.includes(None) {
        response.left_out.push(match seen.sessions {
            Reach::Nowhere => needs("session_ids", SESSIONS),
            _ => left_out("session_ids", format!("only those of namespaces where your credential has {SESSIONS}")),
        });
    }
    (response.session_ids, response.session_count) = (session_ids, i32::try_from(count).unwrap_or(i32::MAX));
    Ok(response)
}

/// The links of a lineage, as the audit log names them.
fn links_of(response: &wire::GetLineageResponse) -> Vec<String> {
    let certificates = response.certificates.iter();
    let tokens = response.tokens.iter().map(|token| &token.token_id);
    let tokens = tokens.chain(certificates.clone().map(|certificate| &certificate.token_id));
    let tokens: BTreeSet<_> = tokens.chain(response.node.iter().map(|node| &node.token_id)).collect();
    let node_ids = response.node.iter().map(|node| &node.node_id);
    let node_ids: BTreeSet<_> = node_ids.chain(certificates.clone().map(|certificate| &certificate.node_id)).collect();
    let certificates = certificates.flat_map(|certificate| [&certificate.serial_number, &certificate.fingerprint]);
    tokens
        .into_iter()
        .map(|id| token_resource(id))
        .chain(node_ids.into_iter().map(|id| node_resource(id)))
        .chain(certificates.map(|id| certificate_resource(id)))
        .chain(response.session_ids.iter().map(|id| session_resource(id)))
        .collect()
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
