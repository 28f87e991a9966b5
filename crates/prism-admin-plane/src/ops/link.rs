//! Link: a data node opens its link, which is an operation like any other; what follows is [`prism_link::Fleet`]'s.

use prism_core::{Error, NodeId, Result};
use prism_proto::cluster::v1 as wire;
use prism_store::Tx;

use super::node::resource_of;
use crate::op::{Caller, Done, Op, Place, Scope, Services};

/// `Link`, from its first frame.
#[derive(Clone)]
pub struct OpenLink {
    hello: wire::Hello,
}

impl Op for OpenLink {
    type Request = wire::Hello;
    type Response = wire::Done;
    const RPC: &'static str = "prism.cluster.v1.LinkService/Link";
    const SCOPE: Scope = Scope::Installation;

    fn resource(request: &Self::Request) -> String {
        NodeId::parse("node_id", &request.node_id).map_or_else(|_| "nodes".to_owned(), |id| resource_of(id.as_str()))
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self { hello: request })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let (name, _) =
            caller.identity.node().ok_or_else(|| Error::internal("a link of somebody who is not a node"))?;
        // The fleet refuses a Hello of another name; here is only looked whether this one may come.
        let node = tx.node(name)?;
        let node = node.ok_or_else(|| {
            Error::precondition("NODE_UNKNOWN", format!("there is no node {name}; join again with a token"))
        })?;
        if node.revoked_at.is_some() {
            return Err(Error::precondition("NODE_REVOKED", format!("node {name} is revoked")));
        }
        Ok(Done::new(wire::Done {}).detail("version", self.hello.version.chars().take(64).collect::<String>()))
    }
}
