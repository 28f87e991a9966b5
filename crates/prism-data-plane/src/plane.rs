//! What the services and the node share: the gate, the control plane, the backends, and the ways a session ends.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dashmap::DashMap;
use futures::StreamExt;
use prism_core::config::Config;
use prism_core::control::ControlPlane;
use prism_core::rate::TokenBucket;
use prism_core::session::{EndReason, SessionRecord, SessionReport};
use prism_core::{ConfigName, Error, NodeId, Result, UnixMillis};
use prism_rpc::Metrics;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::backends::Backends;
use crate::cause::EndCause;
use crate::credential::Credentials;
use crate::drain::Drains;
use crate::elsewhere::Elsewhere;
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
    /// What client credentials are checked against.
    pub credentials: Credentials,
    /// The backends.
    pub backends: Backends,
    /// This node.
    pub node: NodeId,
    /// Figures.
    pub metrics: Metrics,
    /// Drains in progress.
    pub drains: Drains,
    /// Tokens of sessions that are not here.
    pub elsewhere: Elsewhere,
    /// Held while a session that the control plane has given to this node is put into the map.
    pub taking_up: tokio::sync::Mutex<()>,
    /// Rate limits by config, as all sessions of one config share one.
    rates: DashMap<(ConfigName, i32, i32), Weak<TokenBucket>>,
    /// Ends that the control plane could not take yet.
    unsaved_ends: Mutex<Vec<(SessionReport, EndReason)>>,
    /// Changes that are durable in part, or here in part, until their task is done.
    changes: TaskTracker,
}

impl Plane {
    /// A plane without sessions.
    pub fn new(
        gate: Gate,
        control: Arc<dyn ControlPlane>,
        credentials: Credentials,
        backends: Backends,
        node: NodeId,
        metrics: Metrics,
    ) -> Self {
        Self {
            gate: Arc::new(gate),
            control,
            credentials,
            backends,
            node,
            metrics,
            drains: Drains::default(),
            elsewhere: Elsewhere::default(),
            taking_up: tokio::sync::Mutex::default(),
            rates: DashMap::new(),
            unsaved_ends: Mutex::default(),
            changes: TaskTracker::new(),
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

    /// Carries out a change that concerns both the control plane and this node, in a task of its own: it is done whole, also when
    /// nobody waits for it any more.
    pub async fn whole<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.changes.spawn(change).await.unwrap_or_else(|lost| Err(Error::internal(lost)))
    }

    /// Waits until no change is under way.
    pub async fn changed(&self) {
        self.changes.close();
        self.changes.wait().await;
    }

    /// Ends a session here, cutting what runs, and then durably; an end that the control plane cannot take now is tried again.
    pub async fn end(self: &Arc<Self>, session: &Arc<Session>, cause: EndCause) {
        self.end_all(vec![Arc::clone(session)], &cause).await;
    }

    /// Ends many sessions as [`Plane::end`] does. All are cut before any is saved: a cut does not wait for the control plane.
    pub async fn end_all(self: &Arc<Self>, mut sessions: Vec<Arc<Session>>, cause: &EndCause) {
        sessions.retain(|session| self.cut(session, cause.clone()));
        if let Err(lost) = self.save_ends_of(sessions, cause.reason()).await {
            tracing::error!(error = %lost, "ends of sessions were lost");
        }
    }

    /// Makes the ends of sessions that were cut durable, in a task of its own that needs nobody to wait for it.
    pub fn save_ends_of(self: &Arc<Self>, sessions: Vec<Arc<Session>>, reason: EndReason) -> JoinHandle<()> {
        let plane = Arc::clone(self);
        self.changes.spawn(async move {
            let saves = sessions.into_iter().map(|session| plane.save_end(last_report(&session), reason));
            futures::stream::iter(saves).buffer_unordered(ENDED_AT_ONCE).collect::<()>().await;
        })
    }

    /// Makes the end of a session that is not here, or not any more, durable; what cannot be saved now is tried again.
    pub async fn save_end(&self, last: SessionReport, reason: EndReason) {
        if let Err(error) = self.control.end_session(last.clone(), reason).await {
            tracing::warn!(session.id = %last.id, %error, "the end of a session is not saved yet");
            self.unsaved_ends.lock().unwrap_or_else(PoisonError::into_inner).push((last, reason));
        }
    }

    /// Whether the session has ended here, and the control plane has not taken that yet.
    pub fn is_ending(&self, record: &SessionRecord) -> bool {
        let unsaved = self.unsaved_ends.lock().unwrap_or_else(PoisonError::into_inner);
        unsaved.iter().any(|(last, _)| last.id == record.id)
    }

    /// Ends a session durably and then here; nothing changes when the control plane refuses. Begun once, it is done whole.
    async fn end_durably(self: &Arc<Self>, session: &Arc<Session>, cause: EndCause) -> Result<()> {
        let (plane, session) = (Arc::clone(self), Arc::clone(session));
        self.whole(async move {
            plane.control.end_session(last_report(&session), cause.reason()).await?;
            plane.cut(&session, cause);
            Ok(())
        })
        .await
    }

    /// Ends many sessions because of a drain; returns how many could not be. When it is dropped, the ends that were begun go on
    /// and the others are not begun.
    pub async fn end_drained(self: &Arc<Self>, sessions: Vec<Arc<Session>>) -> usize {
        let ends = sessions.into_iter().map(|session| async move {
            let (plane, session) = (Arc::clone(self), session);
            let end = async move {
                // Another drain may be at it.
                let Some(_ending) = Ending::begin(&plane, &session) else { return Ok(()) };
                plane.control.end_session(last_report(&session), EndReason::Drained).await?;
                plane.cut(&session, EndCause::Drained);
                Ok(())
            };
            self.whole(end).await
        });
        let outcomes: Vec<_> = futures::stream::iter(ends).buffer_unordered(ENDED_AT_ONCE).collect().await;
        let failures: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        if let Some(error) = failures.first() {
            tracing::warn!(count = failures.len(), %error, "sessions could not be ended");
        }
        failures.len()
    }

    /// Ends a session here and cuts what runs; `false` when it had ended before.
    pub fn cut(&self, session: &Arc<Session>, cause: EndCause) -> bool {
        // Known to be dead before it is missing.
        self.elsewhere.died(session.record());
        self.let_go(session, cause)
    }

    /// As [`Plane::cut`], of a session that may be live on another node.
    pub fn let_go(&self, session: &Arc<Session>, cause: EndCause) -> bool {
        let first = session.cut(cause);
        self.gate.sessions.remove(session);
        first
    }

    /// Closes a session for its client: at once when nothing runs or with `force`, else when what runs is done. Returns what
    /// was running.
    pub async fn close(self: &Arc<Self>, session: &Arc<Session>, force: bool) -> Result<usize> {
        let (plane, session) = (Arc::clone(self), Arc::clone(session));
        self.whole(async move {
            let first = session.close();
            let running = session.running();
            if running > 0 && !force {
                if first {
                    plane.end_when_settled(&session, EndCause::Closed);
                }
                return Ok(running);
            }
            plane.end_durably(&session, EndCause::Closed).await.inspect_err(|_| {
                if first {
                    session.unclose();
                }
            })?;
            Ok(running)
        })
        .await
    }

    /// Moves the end of a session, durably and then here.
    pub async fn extend(self: &Arc<Self>, session: &Arc<Session>, expires_at: UnixMillis) -> Result<()> {
        let (plane, session) = (Arc::clone(self), Arc::clone(session));
        self.whole(async move {
            plane.control.extend_session(session.id(), expires_at).await?;
            session.extend(expires_at);
            Ok(())
        })
        .await
    }

    /// Lets a session that a drain marked go on, unless a drain still covers it or is ending it.
    pub fn undrain(&self, session: &Session) {
        let name = session.namespace().name();
        if !session.is_ending() && !self.gate.is_leaving() && !self.drains.covers(name, &self.node) {
            session.undrain();
        }
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

/// The end of a session by a drain, under way.
struct Ending<'a> {
    plane: &'a Plane,
    session: &'a Session,
}

impl<'a> Ending<'a> {
    /// `None` when it is under way already.
    fn begin(plane: &'a Plane, session: &'a Session) -> Option<Self> {
        session.begin_ending().then_some(Self { plane, session })
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.session.finish_ending();
        // It failed, and the drain may have been over before it did.
        self.plane.undrain(self.session);
    }
}

/// The last report of a session: its streams end with it.
fn last_report(session: &Session) -> SessionReport {
    let mut report = session.report();
    report.figures.active_streams = 0;
    report
}
