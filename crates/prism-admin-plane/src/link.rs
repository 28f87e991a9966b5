//! The gRPC transport of the link to data nodes: the door lets a node in, and the fleet talks to it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use prism_core::{Error, Kind, NodeId, Result};
use prism_link::bounds::INTRODUCTION_TIMEOUT;
use prism_link::{Closed, ControllerEnd};
use prism_proto::cluster::v1::link_service_server::LinkService;
use prism_proto::cluster::v1::{ControllerFrame, NodeFrame, node_frame};
use prism_rpc::shutdown::Shutdown;
use prism_rpc::to_status;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::cluster::DOMAIN;
use crate::door::Door;
use crate::grpc::announced;
use crate::ops::link::OpenLink;
use crate::record::Recorded;

/// Frames that the connection has not taken yet; the fleet has a queue of its own.
const WAITING: usize = 16;

/// `LinkService` on the one door.
#[derive(Clone)]
pub struct LinkGrpc {
    door: Arc<Door>,
    shutdown: Shutdown,
}

impl LinkGrpc {
    /// Serves through `door`; the server's end is the end of all links.
    pub fn new(door: Arc<Door>, shutdown: Shutdown) -> Self {
        Self { door, shutdown }
    }

    /// Lets a node in by its first frame.
    async fn open(&self, request: Request<Streaming<NodeFrame>>, id: &str) -> Result<Response<Frames>, Error> {
        let (identity, call) = announced(&request).map_err(|status| Error::internal(status.message().to_owned()))?;
        let name = identity.node().map(|(node, _)| node.to_owned());
        let ends = identity.expires_at();
        let recorded = request.extensions().get::<Recorded>().cloned();
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(INTRODUCTION_TIMEOUT, incoming.message()).await;
        let first = first.map_err(|_| bad("the node has not introduced itself in time"))?;
        let first = first.map_err(|status| bad(status.message()))?.ok_or_else(|| bad("there is no Hello"))?;
        let Some(node_frame::Frame::Hello(hello)) = &first.frame else {
            return Err(bad("the first frame of a node must be its Hello"));
        };
        // What came before this has its entry from who reads requests.
        if let Some(recorded) = recorded {
            recorded.take_over();
        }
        self.door.call::<OpenLink>(Arc::clone(&identity), call, hello.clone()).await?;
        let name = name.ok_or_else(|| Error::internal("a link of somebody who is not a node"))?;
        let node = NodeId::parse("node_id", &name)?;

        let (frames, taken) = mpsc::channel::<Result<ControllerFrame, Status>>(WAITING);
        let rest = incoming.map(|frame| frame.map_err(|status| bad(status.message())));
        let outgoing = futures::sink::unfold(frames.clone(), |frames, frame| async move {
            frames.send(Ok(frame)).await.map_err(|_| Closed)?;
            Ok(frames)
        });
        let end = ControllerEnd {
            incoming: futures::stream::iter([Ok(first)]).chain(rest).boxed(),
            outgoing: Box::pin(outgoing),
        };
        let (door, shutdown, id) = (Arc::clone(&self.door), self.shutdown.clone(), id.to_owned());
        tokio::spawn(async move {
            let services = &door.services;
            // A certificate opens a link; when it ends, so does the link. By then the node has another.
            let left = ends.map_or(Duration::MAX, |end| end.since(services.now()));
            let ended = tokio::select! {
                ended = services.fleet.serve(node, end) => ended,
                () = tokio::time::sleep(left.min(LONGEST)) => expired(),
                () = shutdown.announced() => Error::unavailable("LINK_CLOSED", "the controller is ending"),
            };
            // The node may be gone, and needs no reason then.
            let _ = frames.send(Err(to_status(&ended, DOMAIN, &id))).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(taken))))
    }
}

/// The longest time that a timer takes; no certificate of a node lives so long.
const LONGEST: Duration = Duration::from_hours(366 * 24);

fn bad(what: &str) -> Error {
    Error::new(Kind::InvalidArgument, "LINK_FRAME_INVALID", what)
}

fn expired() -> Error {
    Error::unauthenticated(
        "CERTIFICATE_EXPIRED",
        "the certificate under which the link was opened has expired; connect with its successor",
    )
}

type Frames = Pin<Box<dyn Stream<Item = Result<ControllerFrame, Status>> + Send>>;

#[tonic::async_trait]
impl LinkService for LinkGrpc {
    type LinkStream = Frames;

    async fn link(&self, request: Request<Streaming<NodeFrame>>) -> Result<Response<Frames>, Status> {
        let id = prism_rpc::request::request_id(&request);
        self.open(request, &id).await.map_err(|error| to_status(&error, DOMAIN, &id))
    }
}
