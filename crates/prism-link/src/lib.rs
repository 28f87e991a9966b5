//! The link between data nodes and a controller: [`NodeLink`] is the control plane of a data node, [`Fleet`] are the data nodes
//! of a controller. Both run over any [`Transport`] of frames, with tokio's clock, so that a simulation can run them.
//!
//! A node connects to one of its controllers and tells which sessions it holds and by which snapshot it serves. The controller
//! answers with what is missing of both, and from then on the two are equal: changes of the control state come as they are
//! made, questions of the node are answered by the control plane, and commands of the operators reach the node. What ends while
//! there is no controller is written down and told when there is one.

#[cfg(test)]
mod arbitrary;
pub mod bounds;
mod convert;
mod fleet;
mod node;
mod parts;
pub mod shares;
mod signal;
mod storage;
mod transport;

pub use convert::told_from_wire as told;
pub use fleet::{ALREADY_CONNECTED, Certifier, Fleet, FleetOptions, NodeStatus, Refusal};
pub use node::{BackendIdentity, Jitter, NodeLink, NodeLinkOptions};
pub use storage::{Encode, Files, Storage, Stored};
pub use transport::{Closed, Connector, ControllerEnd, Incoming, NodeEnd, Outgoing, Transport};
