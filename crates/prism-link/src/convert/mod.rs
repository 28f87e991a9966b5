//! Between the domain and the wire, both ways. What comes from the wire is proven; nothing here has an effect.

mod failure;
mod figures;
mod hello;
mod session;
mod snapshot;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use prism_core::access::ClientGrant;
use prism_core::config::Config;
use prism_core::control::DrainScope;
use prism_core::secret::{SecretHash, SecretId, SecretProof};
use prism_core::session::{DataGrant, SessionId};
use prism_core::{Error, Kind, NamespaceName, NodeId, Result, UnixMillis};
use prism_proto::cluster::v1 as wire;

use crate::bounds::MAX_GRANTS;

pub use failure::{failure_from_wire, failure_to_wire, refusal_from_wire};
pub use figures::{
    backend_from_wire, backend_to_wire, namespace_figures_from_wire, namespace_figures_to_wire, node_figures_from_wire,
    node_figures_to_wire,
};
pub use hello::{printable, told_from_wire};
pub use session::{
    admit_from_wire, admit_to_wire, basis_from_wire, basis_to_wire, client_from_wire, client_to_wire, known_to_wire,
    record_from_wire, record_to_wire, report_from_wire, report_to_wire,
};
pub use snapshot::{Builder, items_between};

/// INVALID_ARGUMENT `LINK_FRAME_INVALID`: the other end broke the protocol.
pub fn bad(what: impl std::fmt::Display) -> Error {
    Error::new(Kind::InvalidArgument, "LINK_FRAME_INVALID", format!("a frame of the link is not valid: {what}"))
}

/// A required part of a message.
pub fn need<T>(what: &str, part: Option<T>) -> Result<T> {
    part.ok_or_else(|| bad(format_args!("{what} is missing")))
}

/// Refuses what is more than `most`.
pub fn bounded<T>(what: &str, items: Vec<T>, most: usize) -> Result<Vec<T>> {
    if items.len() > most { Err(bad(format_args!("{what} has more than {most} entries"))) } else { Ok(items) }
}

/// A session's id.
pub fn id_from_wire(bytes: &[u8]) -> Result<SessionId> {
    SessionId::from_bytes(bytes).ok_or_else(|| bad("a session id must have 16 bytes"))
}

/// The same, the other way.
pub fn id_to_wire(id: SessionId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

/// A config in the form of the store.
pub fn config_from_wire(json: &[u8]) -> Result<Config> {
    serde_json::from_slice(json).map_err(|error| bad(format_args!("a config cannot be read: {error}")))
}

/// The same, the other way.
pub fn config_to_wire(config: &Config) -> Result<Bytes> {
    serde_json::to_vec(config).map(Bytes::from).map_err(Error::internal)
}

/// A proof of a secret.
pub fn proof_from_wire(proof: &wire::KeyProof) -> Result<SecretProof> {
    let id = SecretId::parse(&proof.id).ok_or_else(|| bad("the public id of a secret must have 16 characters"))?;
    Ok(SecretProof { id, hash: hash_from_wire(&proof.hash)? })
}

/// The same, the other way.
pub fn proof_to_wire(proof: &SecretProof) -> wire::KeyProof {
    wire::KeyProof { id: proof.id.to_string(), hash: Bytes::copy_from_slice(proof.hash.as_bytes()) }
}

fn hash_from_wire(bytes: &[u8]) -> Result<SecretHash> {
    SecretHash::from_bytes(bytes).ok_or_else(|| bad("a hash must have 32 bytes"))
}

/// Grants of a client.
pub fn grants_from_wire(grants: Vec<wire::ClientGrantEntry>) -> Result<Vec<ClientGrant>> {
    bounded("grants", grants, MAX_GRANTS)?.into_iter().map(grant_from_wire).collect()
}

fn grant_from_wire(grant: wire::ClientGrantEntry) -> Result<ClientGrant> {
    let namespace = NamespaceName::try_from(grant.namespace).map_err(bad)?;
    Ok(ClientGrant { namespace, grant: DataGrant { read: grant.read, write: grant.write } })
}

/// The same, the other way.
pub fn grant_to_wire(grant: &ClientGrant) -> wire::ClientGrantEntry {
    let DataGrant { read, write } = grant.grant;
    wire::ClientGrantEntry { namespace: grant.namespace.to_string(), read, write }
}

/// What a drain covers.
pub fn scope_from_wire(scope: wire::Scope) -> Result<DrainScope> {
    Ok(DrainScope {
        namespace: scope.namespace.map(NamespaceName::try_from).transpose().map_err(bad)?,
        node: scope.node_id.map(NodeId::try_from).transpose().map_err(bad)?,
    })
}

/// The same, the other way.
pub fn scope_to_wire(scope: &DrainScope) -> wire::Scope {
    wire::Scope { namespace: scope.namespace.clone().map(String::from), node_id: scope.node.clone().map(String::from) }
}

fn at(millis: Option<i64>) -> Option<UnixMillis> {
    millis.map(UnixMillis)
}

fn millis(at: Option<UnixMillis>) -> Option<i64> {
    at.map(|at| at.0)
}
