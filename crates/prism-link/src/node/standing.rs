//! Whether this node may serve at all: the word of a controller, which holds across restarts until one takes the node back.
//!
//! Nothing but a controller's refusal of the link, over a connection on which it has proven itself, says that a node is revoked. A
//! connection that fails, a certificate that has ended and a status that is not known are an absent controller.

use prism_core::{Error, Kind};

use super::Shared;
use super::state::Event;

/// With what a controller turns away a node that was revoked, or whose certificate was.
const REVOKED: [(Kind, &str); 2] =
    [(Kind::FailedPrecondition, "NODE_REVOKED"), (Kind::Unauthenticated, "CERTIFICATE_REVOKED")];
/// Most that is kept of what it said, in characters.
const MAX_WHY: usize = 512;
/// What the log says about it.
pub const WHAT_NOW: &str = "this node is revoked: it serves nothing, also after a restart, until a controller takes it back; stop it \
     and join again with a new token (prism-admin token create --node NAME, prism join)";

/// Whether a controller that ends a link with `error` says that the node is revoked.
pub fn is_revocation(error: &Error) -> bool {
    REVOKED.iter().any(|(kind, reason)| error.kind() == *kind && error.reason() == *reason)
}

/// UNAVAILABLE `NODE_REVOKED`: another node may serve what this one does not.
pub fn revoked() -> Error {
    let message = "this node was revoked by an operator and serves nothing; go on with another node";
    Error::unavailable("NODE_REVOKED", message)
}

impl Shared {
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.get()
    }

    /// Ends all that the node serves, and writes down that it may not serve. Cut first and written down after: what is on the disk
    /// matters to the next start.
    pub(super) async fn put_out(&self, said: &Error) {
        let (event, sessions) = {
            let mut memory = self.memory();
            if memory.state.revoked.is_some() {
                return;
            }
            let sessions = memory.state.held.len();
            let event = Event::Revoked(said.message().chars().take(MAX_WHY).collect());
            memory.state.apply(event.clone());
            (event, sessions)
        };
        self.revoked.set(true);
        let (node, reason, why) = (&self.options.node, said.reason(), said.message());
        tracing::error!(node.id = %node, reason, why, sessions, "{WHAT_NOW}");
        self.enforce_standing().await;
        self.write_down(event).await;
    }

    /// A controller has let the node in.
    pub(super) async fn take_back(&self) {
        {
            let mut memory = self.memory();
            if memory.state.revoked.is_none() {
                return;
            }
            memory.state.apply(Event::Reinstated);
        }
        self.revoked.set(false);
        tracing::info!(node.id = %self.options.node, "the node is not revoked any more, and serves again");
        self.enforce_standing().await;
        self.write_down(Event::Reinstated).await;
    }

    /// Has the data plane serve, or not, as things stand when it is its turn.
    pub(super) async fn enforce_standing(&self) {
        let _turn = self.standing.lock().await;
        if let Some(node) = self.attached_now() {
            node.set_revoked(self.is_revoked()).await;
        }
    }

    async fn write_down(&self, event: Event) {
        self.keeper.change();
        if let Err(error) = self.keeper.record(event).await {
            tracing::error!(%error, "whether this node is revoked is not written down yet; trying again");
        }
    }
}
