//! Bounded waiting. The bounds are generous: they are there so that nothing hangs, not to measure.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio_stream::{Stream, StreamExt as _};

/// How long anything may take before the test gives up.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Waits for `future`, at most [`LIMIT`]; panics with `what` after that.
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what}: nothing happened within {LIMIT:?}"))
}

/// Asks again and again until `probe` answers `Some`, at most [`LIMIT`].
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The next item of a stream; panics with `what` when it does not come.
pub async fn next<S: Stream + Unpin>(what: &str, stream: &mut S) -> Option<S::Item> {
    within(what, stream.next()).await
}

/// Whether a stream stays silent for `time`.
pub async fn silent<S: Stream + Unpin>(stream: &mut S, time: Duration) -> bool {
    tokio::time::timeout(time, stream.next()).await.is_err()
}
