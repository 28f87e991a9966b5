//! What carries the frames: anything that is a stream one way and a sink the other.

use std::pin::Pin;

use async_trait::async_trait;
use futures::{Sink, Stream};
use prism_core::Result;
use prism_proto::cluster::v1::{ControllerFrame, NodeFrame};

/// The other end takes no frames any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// Frames that come in. An error is the last.
pub type Incoming<F> = Pin<Box<dyn Stream<Item = Result<F>> + Send>>;
/// Frames that go out, in order.
pub type Outgoing<F> = Pin<Box<dyn Sink<F, Error = Closed> + Send>>;

/// One end of a link.
pub struct Transport<I, O> {
    /// What comes in.
    pub incoming: Incoming<I>,
    /// What goes out.
    pub outgoing: Outgoing<O>,
}

/// The node's end.
pub type NodeEnd = Transport<ControllerFrame, NodeFrame>;
/// The controller's end.
pub type ControllerEnd = Transport<NodeFrame, ControllerFrame>;

/// How a node reaches a controller.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Connects to `controller`, an entry of the node's list.
    async fn connect(&self, controller: &str) -> Result<NodeEnd>;
}
