//! Link: a data node opens its link, which is an operation like any other; what follows is [`prism_link::Fleet`]'s.

use async_trait::async_trait;
use prism_core::nodes::Told;
use prism_core::{Error, Kind, NodeId, Result};
use prism_link::ALREADY_CONNECTED;
use prism_proto::cluster::v1 as wire;
use prism_store::Tx;

use super::bootstrap::ALARM;
use super::node::resource_of;
use crate::identity::Identity;
use crate::op::{Caller, Done, Op, Place, Scope, Services};

/// Most that is kept of a text of a node, in characters.
const MAX_TOLD: usize = 64;
/// The alarm of a second process with the identity of a node that is linked.
const NODE_TWIN: &str = "node_twin";

/// A certificate that this cluster has not issued, or has forgotten.
pub(crate) fn certificate_unknown() -> Error {
    let message = "the certificate is not one that this cluster remembers; join again with a token";
    Error::precondition("CERTIFICATE_UNKNOWN", message)
}

/// What a node is told that opens a link with a revoked certificate. It stops serving: nothing else may be answered so.
pub(crate) fn certificate_revoked(name: &str) -> Error {
    let message =
        format!("this certificate of node {name} was revoked, alone or with the node; join again with a new token");
    Error::unauthenticated("CERTIFICATE_REVOKED", message)
}

/// `Link`, from its first frame.
#[derive(Clone)]
pub struct OpenLink {
    hello: wire::Hello,
    told: Told,
    /// Why the fleet has no place for the node.
    refusal: Option<Error>,
}

#[async_trait]
impl Op for OpenLink {
    type Request = wire::Hello;
    type Response = wire::Done;
    const RPC: &'static str = "prism.cluster.v1.LinkService/Link";
    const SCOPE: Scope = Scope::Installation;
    const PREPARES: bool = true;

    /// Which node it is, its certificate says, and not the request: see [`Self::execute`].
    fn resource(_: &Self::Request) -> String {
        "nodes".to_owned()
    }

    fn resource_of_call(request: &Self::Request, identity: &Identity) -> String {
        identity.node().map_or_else(|| Self::resource(request), |(name, _)| resource_of(name))
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        let told = prism_link::told(&request)?;
        Ok(Self { hello: request, told, refusal: None })
    }

    /// Asks the fleet, for who calls and nobody else. Its answer is told where the entry is written.
    async fn prepare_for(&mut self, identity: &Identity, services: &Services) -> Result<()> {
        if let Some((name, _)) = identity.node().filter(|(name, _)| *name == self.hello.node_id) {
            let node = NodeId::parse("node_id", name)?;
            self.refusal = services.fleet.may_link(&node, &self.hello).await.err();
        }
        Ok(())
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let (name, fingerprint) =
            caller.identity.node().ok_or_else(|| Error::internal("a link of somebody who is not a node"))?;
        if self.hello.node_id != name {
            let told: String = self.hello.node_id.chars().take(MAX_TOLD).collect();
            let message = format!("the certificate is of the node {name}, and the Hello of {told:?}");
            return Err(Error::new(Kind::PermissionDenied, "NODE_MISMATCH", message));
        }
        let node = tx.node(name)?;
        let node = node.ok_or_else(|| {
            Error::precondition("NODE_UNKNOWN", format!("there is no node {name}; join again with a token"))
        })?;
        if node.revoked_at.is_some() {
            return Err(Error::precondition(
                "NODE_REVOKED",
                format!("node {name} is revoked; join again with a new token"),
            ));
        }
        // As for a renewal: a certificate that is not remembered is worth nothing, whoever signed it.
        let certificate = tx.certificate(fingerprint)?;
        let certificate = certificate.filter(|row| row.origin.as_ref().is_some_and(|origin| origin.node_id == name));
        let certificate = certificate.ok_or_else(certificate_unknown)?;
        if certificate.revoked_at.is_some() {
            return Err(certificate_revoked(name));
        }
        if let Some(refusal) = self.refusal {
            let is_twin = refusal.reason() == ALREADY_CONNECTED;
            return Err(if is_twin { refusal.with(ALARM, NODE_TWIN) } else { refusal });
        }
        let resource = resource_of(name);
        tx.node_linked(name, &self.told)?;
        let done = Done::new(wire::Done {}).detail("version", self.told.version);
        let done = done.detail("data_endpoint", self.told.data_endpoint);
        Ok(Done { resource: Some(resource), ..done })
    }
}
