//! Connections without an open request do not stay for ever, so that nobody can hold all of a listener's places with nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

/// The requests of one connection.
#[derive(Clone)]
pub(crate) struct Activity(Option<Arc<State>>);

struct State {
    limit: Duration,
    origin: Instant,
    open: AtomicUsize,
    /// When the last request ended, in milliseconds since `origin`.
    ended: AtomicU64,
}

impl Activity {
    /// Watches for `limit` without an open request; `None` = never, at no cost.
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        let state =
            |limit| State { limit, origin: Instant::now(), open: AtomicUsize::new(0), ended: AtomicU64::new(0) };
        Self(limit.map(|limit| Arc::new(state(limit))))
    }

    /// A request begins; it is open until its answer's body is dropped.
    pub(crate) fn begin(&self) -> Busy {
        if let Some(state) = &self.0 {
            state.open.fetch_add(1, Ordering::Relaxed);
        }
        Busy(self.0.clone())
    }

    /// Returns when no request has been open for the limit.
    pub(crate) async fn ceased(&self) {
        let Some(state) = &self.0 else { return std::future::pending().await };
        loop {
            let silent =
                state.origin.elapsed().saturating_sub(Duration::from_millis(state.ended.load(Ordering::Relaxed)));
            let left =
                if state.open.load(Ordering::Relaxed) > 0 { state.limit } else { state.limit.saturating_sub(silent) };
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

/// An open request.
pub(crate) struct Busy(Option<Arc<State>>);

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(state) = &self.0 {
            let now = u64::try_from(state.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
            state.ended.store(now, Ordering::Relaxed);
            state.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

pin_project! {
    /// An answer's body that holds something until it is sent or dropped, such as the place of its request.
    pub struct HeldBody<B, H> {
        #[pin]
        body: B,
        _held: H,
    }
}

impl<B, H> HeldBody<B, H> {
    /// `body`, with what lives as long.
    pub fn new(body: B, held: H) -> Self {
        Self { body, _held: held }
    }
}

impl<B: Body, H> Body for HeldBody<B, H> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B, H> std::fmt::Debug for HeldBody<B, H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeldBody")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_open_request_keeps_a_connection_and_silence_ends_it() {
        let activity = Activity::new(Some(Duration::from_millis(50)));
        let busy = activity.begin();
        assert!(tokio::time::timeout(Duration::from_millis(200), activity.ceased()).await.is_err());
        drop(busy);
        tokio::time::timeout(Duration::from_secs(5), activity.ceased()).await.unwrap();
        let unlimited = Activity::new(None);
        drop(unlimited.begin());
        assert!(tokio::time::timeout(Duration::from_millis(100), unlimited.ceased()).await.is_err());
    }
}
