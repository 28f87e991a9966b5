//! The port for machines that watch: `/metrics`, `/live`, `/ready`.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use prism_core::source::PlaceBounds;
use prism_rpc::{Metrics, ServeOptions, metrics};

/// Most connections of this port.
const MAX_CONNECTIONS: usize = 256;

/// A connection without an open request for this long makes room for others: probes must always find a place.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// In which part of its life the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Not yet serving.
    Starting,
    /// Both planes answer.
    Ready,
    /// On its way out.
    Draining,
    /// Put out by the controllers: it serves nothing.
    Revoked,
}

/// Says what keeps a server that is up from serving, if something does.
type Obstacle = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// Tells the phase to whoever asks.
#[derive(Clone, Default)]
pub struct Readiness(Arc<AtomicU8>, Arc<OnceLock<Obstacle>>);

impl Readiness {
    /// Enters a phase.
    pub fn enter(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::SeqCst);
    }

    /// Is not ready in [`Phase::Ready`] either while `obstacle` says why. One call; a second is ignored.
    pub fn unless(&self, obstacle: impl Fn() -> Option<String> + Send + Sync + 'static) {
        let _ = self.1.set(Box::new(obstacle));
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::SeqCst) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            2 => Phase::Draining,
            _ => Phase::Revoked,
        }
    }

    /// Enters a phase, unless the current one is another than `from`.
    pub fn change(&self, from: Phase, to: Phase) {
        // If it is another, there is nothing to do.
        let _ = self.0.compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::SeqCst);
    }
}

/// The bounds of the listener.
pub fn options() -> ServeOptions {
    ServeOptions {
        http1: true,
        places: PlaceBounds::shared(MAX_CONNECTIONS),
        max_streams: 32,
        idle_timeout: Some(IDLE_TIMEOUT),
        ..ServeOptions::new("metrics")
    }
}

/// The routes.
pub fn routes(metrics: Metrics, readiness: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(render).with_state(metrics))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready).with_state(readiness))
}

async fn render(State(metrics): State<Metrics>) -> impl IntoResponse {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.render())
}

async fn ready(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let obstacle = || readiness.1.get().and_then(|obstacle| obstacle());
    let not_ready = match readiness.phase() {
        Phase::Ready => obstacle(),
        Phase::Starting => Some("starting".to_owned()),
        Phase::Draining => Some("draining".to_owned()),
        Phase::Revoked => Some("revoked".to_owned()),
    };
    match not_ready {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::Request;
    use tower::ServiceExt as _;

    use super::*;

    async fn get(readiness: &Readiness, path: &str) -> (StatusCode, String) {
        let routes = routes(Metrics::new(), readiness.clone());
        let response = routes.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let kind = response.headers().get(CONTENT_TYPE).map(|kind| kind.to_str().unwrap().to_owned());
        (response.status(), kind.unwrap_or_default())
    }

    #[tokio::test]
    async fn what_stands_in_the_way_is_said() {
        let readiness = Readiness::default();
        let away = Arc::new(AtomicU8::new(0));
        let seen = Arc::clone(&away);
        readiness.unless(move || (seen.load(Ordering::SeqCst) > 0).then(|| "a reason".to_owned()));
        readiness.enter(Phase::Ready);
        assert_eq!(get(&readiness, "/ready").await.0, 200);
        away.store(1, Ordering::SeqCst);
        let asked =
            routes(Metrics::new(), readiness.clone()).oneshot(Request::get("/ready").body(Body::empty()).unwrap());
        let response = asked.await.unwrap();
        assert_eq!(response.status(), 503);
        let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
        assert_eq!(body, "a reason\n");
    }

    #[tokio::test]
    async fn readiness_follows_the_phase() {
        let readiness = Readiness::default();
        for (phase, ready) in
            [(Phase::Starting, 503), (Phase::Ready, 200), (Phase::Revoked, 503), (Phase::Draining, 503)]
        {
            readiness.enter(phase);
            assert_eq!(readiness.phase(), phase);
            readiness.change(Phase::Starting, Phase::Starting);
            assert_eq!(get(&readiness, "/ready").await.0, ready);
            assert_eq!(get(&readiness, "/live").await.0, 200);
        }
        assert_eq!(get(&readiness, "/metrics").await, (StatusCode::OK, metrics::CONTENT_TYPE.to_owned()));
        assert_eq!(get(&readiness, "/").await.0, 404);
    }
}
