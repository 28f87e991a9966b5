//! Streams to a client: a task per stream that is independent of how fast the client reads, so that a cut takes effect at once.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context as TaskContext, Poll};

use futures::Stream;
use prism_core::{Error, Result};
use prost::Message;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::call::{self, Context, Tokened};
use crate::gate::{Gate, Permit};
use crate::rpc::Rpc;
use crate::session::Session;

/// What a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A queue subscription: when its session leaves it sees to its end itself, message by message.
    Subscription,
    /// Events: when its session leaves it ends, as nothing is in flight.
    Events,
    /// A read that comes to its own end: it is a running operation, and finishes when its session leaves.
    Finite,
}

impl Kind {
    /// Messages that wait for the client to read them. Few, as each may be large; more wait in the driver, which bounds bytes.
    fn buffered(self) -> usize {
        match self {
            Self::Subscription | Self::Events => 4,
            Self::Finite => 1,
        }
    }
}

/// How a stream ended.
struct End {
    /// `None` = OK.
    status: Option<Status>,
    /// Whether what is buffered is dropped.
    cut: bool,
}

/// The sending side of a stream.
pub struct Outlet<T> {
    sender: mpsc::Sender<T>,
    session: Arc<Session>,
}

impl<T: Message> Outlet<T> {
    /// Sends one message, waiting for room. When the client is gone this waits until the task is dropped.
    pub async fn send(&self, message: T) {
        let bytes = message.encoded_len();
        match self.sender.send(message).await {
            Ok(()) => self.session.sent(bytes),
            Err(_) => std::future::pending().await,
        }
    }
}

/// The receiving side of a stream, as tonic wants it.
pub struct Responses<T> {
    receiver: mpsc::Receiver<T>,
    end: Arc<OnceLock<End>>,
    context: Context,
    over: bool,
}

impl<T> Stream for Responses<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        let cut = self.end.get().is_some_and(|end| end.cut);
        if !cut {
            match self.receiver.poll_recv(cx) {
                Poll::Ready(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Poll::Ready(None) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
        self.over = true;
        let status = match self.end.get() {
            Some(end) => end.status.clone(),
            // The task was lost to a defect; its panic is in the log.
            None => Some(self.context.status(&Error::internal("the task of the stream was lost"))),
        };
        Poll::Ready(status.map(Err))
    }
}

/// The two ends of a stream.
pub fn channel<T>(context: Context, kind: Kind) -> (Feed<T>, Responses<T>) {
    let (sender, receiver) = mpsc::channel(kind.buffered() + 1);
    // A fresh channel has room.
    let last = sender.clone().try_reserve_owned().ok();
    let end = Arc::new(OnceLock::new());
    let feed = Feed { sender, last, end: Arc::clone(&end), context: context.clone() };
    (feed, Responses { receiver, end, context, over: false })
}

/// The task's side of a stream.
pub struct Feed<T> {
    sender: mpsc::Sender<T>,
    /// Room that is kept for a last message.
    last: Option<mpsc::OwnedPermit<T>>,
    end: Arc<OnceLock<End>>,
    context: Context,
}

impl<T> Feed<T> {
    /// Where to send the messages of `session`.
    pub fn outlet(&self, session: &Arc<Session>) -> Outlet<T> {
        Outlet { sender: self.sender.clone(), session: Arc::clone(session) }
    }

    /// What outlives the request.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Waits until the client is gone.
    pub async fn client_gone(&self) {
        self.sender.closed().await;
    }

    /// Sends the last message, for which there is always room: this does not wait for the client to read.
    pub fn send_last(&mut self, message: T) {
        if let Some(room) = self.last.take() {
            room.send(message);
        }
    }

    /// Ends the stream: after what is buffered, or at once with `cut`. The receiver wakes up when the last sender is gone.
    pub fn finish(self, outcome: Result<()>, cut: bool) {
        let status = outcome.err().map(|error| self.context.status(&error));
        let _ = self.end.set(End { status, cut });
    }
}

impl Gate {
    /// Lets a call that answers with a stream in.
    pub async fn open<Q: Message + Tokened>(
        &self,
        rpc: Rpc,
        request: Request<Q>,
    ) -> Result<(Permit, Context, Q), Status> {
        let (metadata, extensions, message) = request.into_parts();
        let context = Context::new(rpc, &metadata, &extensions);
        let entered = self.let_in(message.session_token(), &metadata, &context).await;
        let permit = entered.map_err(|refusal| context.status(&refusal))?;
        permit.session().received(message.encoded_len());
        Ok((permit, context, message))
    }
}

/// Starts the stream that `body` feeds. It ends when `body` does, when the session ends or the operators forbid it, when the
/// deadline passes, or when the client is gone; the permit is released at that moment.
pub fn start<T, B, F>(gate: &Arc<Gate>, permit: Permit, context: Context, kind: Kind, body: B) -> Response<Responses<T>>
where
    T: Message + 'static,
    B: FnOnce(Outlet<T>) -> F,
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (feed, responses) = channel(context, kind);
    let work = body(feed.outlet(permit.session()));
    tokio::spawn(run(Arc::clone(gate), permit, feed, kind, work));
    Response::new(responses)
}

async fn run<T>(
    gate: Arc<Gate>,
    mut permit: Permit,
    feed: Feed<T>,
    kind: Kind,
    work: impl Future<Output = Result<()>>,
) {
    let (outcome, cut) = tokio::select! {
        biased;
        error = forbidden(&gate, &permit, kind) => (Err(error), true),
        () = feed.client_gone() => return,
        () = call::passed(feed.context().deadline) => (Err(call::deadline_exceeded()), true),
        outcome = work => (outcome, false),
    };
    if outcome.is_ok() {
        permit.succeeded();
    }
    // Released before the client can see the end.
    drop(permit);
    feed.finish(outcome, cut);
}

/// Waits until the stream of `permit` must end.
pub async fn forbidden(gate: &Gate, permit: &Permit, kind: Kind) -> Error {
    let session = permit.session();
    let mut changes = session.changes();
    loop {
        if let Some(error) = gate.stream_end(permit.act(), session) {
            return error;
        }
        if kind == Kind::Events
            && let Some(error) = session.leaving_error()
        {
            return error;
        }
        if changes.changed().await.is_err() {
            return crate::cause::token_invalid();
        }
    }
}

/// Waits until `session` is on its way out, and says what its subscriptions are told.
pub async fn left(session: &Session) -> Error {
    let mut changes = session.changes();
    loop {
        if let Some(error) = session.leaving_error() {
            return error;
        }
        if changes.changed().await.is_err() {
            return crate::cause::token_invalid();
        }
    }
}
