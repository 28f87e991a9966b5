//! What the services and the node share: the gate, the control plane, the backends, and the ways a session ends.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use dashmap::DashMap;
use futures::StreamExt;
use prism_core::config::Config;
use prism_core::control::ControlPlane;
use prism_core::rate::TokenBucket;
use prism_core::session::{EndReason, SessionRecord, SessionReport};
use prism_core::{ConfigName, NodeId, Result};
use prism_rpc::Metrics;

use crate::backends::Backends;
use crate::cause::EndCause;
use crate::drain::Drains;
use crate::gate::Gate;
use crate::session::{Parts, Session};

/// Sessions that are ended at the same time; each costs the control plane a commit that it shares with the others.
const ENDED_AT_ONCE: usize = 64;
/// Rate limits known before those without sessions are looked for.
const RATES_BEFORE_CLEANING: usize = 1024;

/// What the services and the node share.
pub struct Plane {
    /// The gate.
    pub gate: Arc<Gate>,
    /// The control plane.
    pub control: Arc<dyn ControlPlane>,
    /// The backends.
    pub backends: Backends,
    /// This node.
    pub node: NodeId,
    /// Figures.
    pub metrics: Metrics,
    /// Drains in progress.
    pub drains: Drains,
    /// Rate limits by config, as all sessions of one config share one.
    rates: DashMap<(ConfigName, i32, i32), Weak<TokenBucket>>,
    /// Ends that the control plane could not take yet.
    unsaved_ends: Mutex<Vec<(SessionReport, EndReason)>>,
}

impl Plane {
    /// A plane without sessions.
    pub fn new(gate: Gate, control: Arc<dyn ControlPlane>, backends: Backends, node: NodeId, metrics: Metrics) -> Self {
        Self {
            gate: Arc::new(gate),
            control,
            backends,
            node,
            metrics,
            drains: Drains::default(),
            rates: DashMap::new(),
            unsaved_ends: Mutex::default(),
        }
    }

    /// The rate limit that sessions of `config` share; an inline config has its own.
    fn rate(&self, config: &Config, name: Option<&ConfigName>) -> Option<Arc<TokenBucket>> {
        let limit = config.rate_limit.filter(|limit| limit.requests_per_second > 0)?;
        let (rate, burst) = (limit.requests_per_second, limit.burst);
        let make = || Arc::new(TokenBucket::new(u64::try_from(rate).unwrap_or(0), u64::try_from(burst).unwrap_or(0)));
        let Some(name) = name else { return Some(make()) };
        if self.rates.len() > RATES_BEFORE_CLEANING {
            self.rates.retain(|_, bucket| bucket.strong_count() > 0);
        }
        let mut shared = self.rates.entry((name.clone(), rate, burst)).or_default();
        let known = shared.upgrade();
        Some(known.unwrap_or_else(|| {
            let bucket = make();
            *shared = Arc::downgrade(&bucket);
            bucket
        }))
    }

    /// A session of `record` on `route`; not in the map yet.
    pub fn assemble(&self, record: SessionRecord, route: Result<prism_backends::driver::Route>) -> Arc<Session> {
        let config = Arc::clone(&record.config);
        let parts = Parts {
            namespace: self.gate.namespaces.runtime(&config.namespace),
            route,
            backend: self.metrics.backend(config.backend.kind, config.instance.as_str()),
            rate: self.rate(&config, record.config_name.as_ref()),
        };
        Arc::new(Session::new(record, parts))
    }

    /// Ends a session here, cutting what runs, and then durably; an end that the control plane cannot take now is tried again.
    pub async fn end(&self, session: &Arc<Session>, cause: EndCause) {
        let reason = cause.reason();
        if !self.cut(session, cause) {
            return;
        }
        let last = last_report(session);
        if let Err(error) = self.control.end_session(last.clone(), reason).await {
            tracing::warn!(session.id = %session.id(), %error, "the end of a session is not saved yet");
            self.unsaved_ends.lock().unwrap_or_else(PoisonError::into_inner).push((last, reason));
        }
    }

    /// Ends many sessions.
    pub async fn end_all(&self, sessions: impl IntoIterator<Item = Arc<Session>>, cause: &EndCause) {
        let ends = sessions.into_iter().map(|session| async move { self.end(&session, cause.clone()).await });
        futures::stream::iter(ends).buffer_unordered(ENDED_AT_ONCE).collect::<()>().await;
    }

    /// Ends a session durably and then here; nothing changes when the control plane refuses.
    pub async fn end_durably(&self, session: &Arc<Session>, cause: EndCause) -> Result<()> {
        self.control.end_session(last_report(session), cause.reason()).await?;
        self.cut(session, cause);
        Ok(())
    }

    /// Ends many sessions durably; returns how many could not be.
    pub async fn end_all_durably(&self, sessions: Vec<Arc<Session>>, cause: &EndCause) -> usize {
        let ends = sessions.into_iter().map(|session| async move { self.end_durably(&session, cause.clone()).await });
        let outcomes: Vec<_> = futures::stream::iter(ends).buffer_unordered(ENDED_AT_ONCE).collect().await;
        let failures: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        if let Some(error) = failures.first() {
            tracing::warn!(count = failures.len(), %error, "sessions could not be ended");
        }
        failures.len()
    }

    /// Ends a session here and cuts what runs; `false` when it had ended before.
    pub fn cut(&self, session: &Arc<Session>, cause: EndCause) -> bool {
        let first = session.cut(cause);
        self.gate.sessions.remove(session);
        first
    }

    /// Closes a session for its client: at once when nothing runs or with `force`, else when what runs is done. Returns what
    /// was running.
    pub async fn close(self: &Arc<Self>, session: &Arc<Session>, force: bool) -> Result<usize> {
        let first = session.close();
        let running = session.running();
        if running > 0 && !force {
            if first {
                self.end_when_settled(session, EndCause::Closed);
            }
            return Ok(running);
        }
        self.end_durably(session, EndCause::Closed).await.inspect_err(|_| {
            if first {
                session.unclose();
            }
        })?;
        Ok(running)
    }

    /// Ends a session on its way out as soon as nothing runs.
    pub fn end_when_settled(self: &Arc<Self>, session: &Arc<Session>, cause: EndCause) {
        let (plane, session) = (Arc::clone(self), Arc::clone(session));
        tokio::spawn(async move {
            tokio::select! {
                _ = session.ended() => {}
                () = session.settled() => plane.end(&session, cause).await,
            }
        });
    }

    /// Sessions that changed since the last call.
    pub fn take_reports(&self) -> Vec<SessionReport> {
        self.gate.sessions.all().iter().filter_map(|session| session.take_report()).collect()
    }

    /// Reports changed sessions to the control plane; what it cannot take is reported next time.
    pub async fn report(&self) {
        let reports = self.take_reports();
        if reports.is_empty() {
            return;
        }
        let ids: Vec<_> = reports.iter().map(|report| report.id).collect();
        if let Err(error) = self.control.report(reports).await {
            tracing::warn!(count = ids.len(), %error, "reports of sessions are not saved yet");
            for session in ids.into_iter().filter_map(|id| self.gate.sessions.by_id(id)) {
                session.touch();
            }
        }
    }

    /// Tries again to make ends durable; returns how many are left.
    pub async fn save_ends(&self) -> usize {
        let waiting = std::mem::take(&mut *self.unsaved_ends.lock().unwrap_or_else(PoisonError::into_inner));
        let saves = waiting.into_iter().map(|(last, reason)| async move {
            self.control.end_session(last.clone(), reason).await.is_err().then_some((last, reason))
        });
        let failed: Vec<_> = futures::stream::iter(saves).buffer_unordered(ENDED_AT_ONCE).collect().await;
        let mut unsaved = self.unsaved_ends.lock().unwrap_or_else(PoisonError::into_inner);
        unsaved.extend(failed.into_iter().flatten());
        unsaved.len()
    }
}

/// The last report of a session: its streams end with it.
fn last_report(session: &Session) -> SessionReport {
    let mut report = session.report();
    report.figures.active_streams = 0;
    report
}
