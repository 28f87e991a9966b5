//! ListNodes, GetNode, RevokeNode: the machines that have joined.

use std::collections::BTreeMap;

use async_trait::async_trait;
use prism_core::limits::LOCAL_NODE;
use prism_core::nodes::ToldBackend;
use prism_core::page::Page;
use prism_core::session::EndReason;
use prism_core::{Error, NodeId, Result};
use prism_link::NodeStatus;
use prism_proto::cluster::v1 as wire;
use prism_rpc::convert::timestamp;
use prism_store::{NodeRow, Tx};
use serde_json::{Value, json};

use crate::op::{Caller, Done, Enrolment, Op, Place, Scope, Services};

/// Names that no node may have: they stand for what is not one.
const RESERVED: [&str; 5] = [LOCAL_NODE, "localhost", "controller", "prism", "anonymous"];
/// Certificates of a node whose connections are looked at after a change.
const LOOKED_AT: usize = 100;

pub(super) fn resource_of(id: &str) -> String {
    format!("node:{id}")
}

/// A node's id as the request gives it, which is not one of those that stand for something else.
pub(super) fn free_id(field: &str, id: &str, enrolment: &Enrolment) -> Result<NodeId> {
    let node_id = NodeId::parse(field, id)?;
    if RESERVED.contains(&id) {
        return Err(Error::invalid(field, format!("{id} is a name that Prism keeps for itself; choose another one")));
    }
    if enrolment.server_names.iter().any(|name| name.eq_ignore_ascii_case(id)) {
        let rule = "is a name of this server in its own certificate, which a node of that name could pass for";
        return Err(Error::invalid(field, format!("{id} {rule}; choose another one")));
    }
    Ok(node_id)
}

fn known_id(id: &str) -> Result<String> {
    NodeId::parse("node_id", id).map(|_| id.to_owned())
}

/// Cuts the connections that stand on revoked certificates of a node.
pub(super) async fn cut_revoked(node_id: &str, services: &Services) {
    let id = node_id.to_owned();
    match services.store.read(move |tx| tx.node_certificates(&id, LOOKED_AT)).await {
        Ok(rows) => {
            let revoked = rows.iter().filter(|row| row.revoked_at.is_some());
            let connections: usize = revoked.map(|row| services.connections.cut(&row.fingerprint)).sum();
            if connections > 0 {
                tracing::info!(node.id = node_id, connections, "connections of a node were cut with its certificates");
            }
        }
        // Its connections stay open, but every call on them is refused.
        Err(failed) => {
            tracing::error!(reason = failed.reason(), cause = ?failed.cause(), "the connections of a node were not cut");
        }
    }
}

/// Adds to nodes what only this process knows: whether they are linked, since when, and why not.
pub(super) fn tell_links<'a>(nodes: impl IntoIterator<Item = &'a mut wire::Node>, services: &Services) {
    let links: BTreeMap<NodeId, NodeStatus> =
        services.fleet.statuses().into_iter().map(|status| (status.node.clone(), status)).collect();
    for node in nodes {
        let Some(link) = links.get(node.node_id.as_str()) else { continue };
        node.connected = link.connected;
        // One that was refused only has never been linked.
        if link.started_at.0 > 0 {
            node.connected_since = Some(timestamp(link.since));
            node.started_at = Some(timestamp(link.started_at));
        }
        if let Some(refusal) = link.refusal.as_ref().filter(|_| !node.revoked) {
            node.link_refusal = format!("{}: {}", refusal.reason, refusal.message);
            node.link_refused_at = Some(timestamp(refusal.at));
        }
    }
}

/// A node on the wire, as far as it is stored.
pub(super) fn node(row: &NodeRow) -> wire::Node {
    let backend =
        |told: &ToldBackend| wire::NodeBackend { instance: told.instance.to_string(), r#type: told.kind.clone() };
    wire::Node {
        connected: false,
        connected_since: None,
        started_at: None,
        backends: row.backends.iter().map(backend).collect(),
        live_sessions: i32::try_from(row.live_sessions).unwrap_or(i32::MAX),
        node_id: row.id.to_string(),
        token_id: row.token_id.clone(),
        joined_at: Some(timestamp(row.joined_at)),
        revoked: row.revoked_at.is_some(),
        revoked_at: row.revoked_at.map(timestamp),
        revoked_by: row.revoked_by.clone().unwrap_or_default(),
        last_seen_at: row.last_seen_at.map(timestamp),
        version: row.version.clone().unwrap_or_default(),
        data_endpoint: row.data_endpoint.clone().unwrap_or_default(),
        certificate_expires_at: row.certificate_expires_at.map(timestamp),
        link_refusal: String::new(),
        link_refused_at: None,
    }
}

/// What the audit log shows of a node.
fn state(row: &NodeRow) -> Value {
    json!({ "token_id": row.token_id, "joined_at_epoch_ms": row.joined_at, "revoked_at_epoch_ms": row.revoked_at })
}

/// `ListNodes`, by id.
#[derive(Clone)]
pub struct ListNodes {
    page: Page,
}

#[async_trait]
impl Op for ListNodes {
    type Request = wire::ListNodesRequest;
    type Response = wire::ListNodesResponse;
    const RPC: &'static str = "prism.cluster.v1.NodeService/ListNodes";
    const SCOPE: Scope = Scope::Installation;

    fn resource(_: &Self::Request) -> String {
        "nodes".to_owned()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self { page: Page::parse("nodes", request.page_size, request.page_token.as_deref())? })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let (mut rows, total) = tx.nodes(&self.page)?;
        let next_page_token = self.page.cut(&mut rows, |row| row.id.to_string()).unwrap_or_default();
        Ok(Done::new(wire::ListNodesResponse {
            nodes: rows.iter().map(node).collect(),
            next_page_token,
            total_count: i32::try_from(total).unwrap_or(i32::MAX),
        }))
    }

    async fn follow_up(_: &Self::Request, response: &mut Self::Response, services: &Services) {
        tell_links(&mut response.nodes, services);
    }
}

/// `GetNode`.
#[derive(Clone)]
pub struct GetNode {
    id: String,
}

#[async_trait]
impl Op for GetNode {
    type Request = wire::GetNodeRequest;
    type Response = wire::GetNodeResponse;
    const RPC: &'static str = "prism.cluster.v1.NodeService/GetNode";
    const SCOPE: Scope = Scope::Installation;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.node_id)
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self { id: known_id(&request.node_id)? })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let row = tx.node(&self.id)?.ok_or_else(|| Error::not_found(resource_of(&self.id)))?;
        Ok(Done::new(wire::GetNodeResponse { node: Some(node(&row)) }))
    }

    async fn follow_up(_: &Self::Request, response: &mut Self::Response, services: &Services) {
        tell_links(&mut response.node, services);
    }
}

/// `RevokeNode`: the node, all its certificates, the tokens that wait for its name, and its live sessions; connections that stand on them are cut. Of a
/// revoked node the tokens that were made since are revoked.
#[derive(Clone)]
pub struct RevokeNode {
    id: String,
}

#[async_trait]
impl Op for RevokeNode {
    type Request = wire::RevokeNodeRequest;
    type Response = wire::RevokeNodeResponse;
    const RPC: &'static str = "prism.cluster.v1.NodeService/RevokeNode";
    const SCOPE: Scope = Scope::Installation;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.node_id)
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self { id: known_id(&request.node_id)? })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let before = tx.node(&self.id)?.ok_or_else(|| Error::not_found(resource_of(&self.id)))?;
        let certificates = tx.revoke_node_certificates(&self.id)?;
        tx.revoke_node(&self.id, &caller.identity.actor)?;
        // Whoever takes the name next does not get them with it.
        let sessions = tx.end_sessions_of_node(&self.id, EndReason::CredentialRevoked)?;
        let tokens = tx.revoke_waiting_join_tokens(&self.id)?;
        let after = tx.node(&self.id)?.unwrap_or_else(|| before.clone());
        let response = wire::RevokeNodeResponse {
            node: Some(node(&after)),
            certificates_revoked: i32::try_from(certificates.len()).unwrap_or(i32::MAX),
            tokens_revoked: i32::try_from(tokens).unwrap_or(i32::MAX),
        };
        let done = Done::new(response)
            .detail("certificates_revoked", certificates.len())
            .detail("tokens_revoked", tokens)
            .detail("sessions_ended", sessions);
        Ok(done.changed(Some(&state(&before)), Some(&state(&after))))
    }

    async fn follow_up(request: &Self::Request, response: &mut Self::Response, services: &Services) {
        cut_revoked(&request.node_id, services).await;
        tell_links(&mut response.node, services);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn some_names_are_taken() {
        let enrolment =
            Enrolment { certificate_ttl: Duration::from_hours(24), server_names: vec!["Gateway".to_owned()] };
        for good in ["a", "node-1", "controller-1", "0", &"x".repeat(63)] {
            assert!(free_id("node_id", good, &enrolment).is_ok(), "{good}");
        }
        for bad in
            ["", "a,b", "a.b", "A", "-a", "a-", "ä", &"x".repeat(64), "local", "controller", "localhost", "gateway"]
        {
            let error = free_id("node_id", bad, &enrolment).unwrap_err();
            assert_eq!(error.fields()[0].field, "node_id", "{bad}");
        }
    }
}
