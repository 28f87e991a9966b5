//! DrainConnections: an intent in one transaction, the drain itself, its outcome and its one audit entry in another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use prism_core::control::{DrainOutcome, DrainScope};
use prism_core::limits::MAX_DRAIN_TIMEOUT;
use prism_core::nodes::{Nodes as _, Reached};
use prism_core::{Error, NamespaceName, NodeId, Result};
use prism_proto::admin::v1 as wire;
use prism_rpc::convert::from_duration;
use prism_store::{DrainId, IdempotencyKey, Tx};

use crate::convert::{self, names};
use crate::door::{Admitted, Call, Door, Gate, KeyedCall, Verdict, conclude, gate, keyed_call};
use crate::identity::Identity;
use crate::op::{Caller, Done, Op, Place, Scope, Services};
use crate::unrecorded::cannot_record;

/// How long a drain waits when the request does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the answer waits for the end of a drain to be written.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// `DrainConnections`.
#[derive(Clone)]
pub struct DrainConnections {
    scope: DrainScope,
    timeout: Duration,
    force: bool,
    validate_only: bool,
    knows_node: bool,
    preview: Reached<DrainOutcome>,
}

fn answer(reached: &Reached<DrainOutcome>) -> wire::DrainConnectionsResponse {
    let outcome = reached.answer;
    wire::DrainConnectionsResponse {
        drained_count: outcome.drained,
        remaining_count: outcome.remaining,
        // Whoever was not reached may still have some.
        complete: outcome.remaining == 0 && reached.unreachable.is_empty(),
        unreachable_nodes: names(reached),
    }
}

#[async_trait]
impl Op for DrainConnections {
    type Request = wire::DrainConnectionsRequest;
    type Response = wire::DrainConnectionsResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/DrainConnections";
    const SCOPE: Scope = Scope::Namespace;
    const PREPARES: bool = true;

    fn resource(_: &Self::Request) -> String {
        "sessions".to_owned()
    }

    fn namespace(request: &Self::Request) -> String {
        request.namespace.clone().unwrap_or_default()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::of(request.namespace.clone()))
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let namespace = request.namespace.as_deref().map(|name| NamespaceName::parse("namespace", name)).transpose();
        let node = request.node_id.as_deref().map(|name| NodeId::parse("node_id", name)).transpose();
        let timeout = match request.timeout.as_ref().map(|timeout| from_duration("timeout", timeout)).transpose() {
            Ok(Some(timeout)) if timeout > MAX_DRAIN_TIMEOUT => {
                Err(Error::invalid("timeout", format!("must be at most {} s", MAX_DRAIN_TIMEOUT.as_secs())))
            }
            Ok(timeout) => Ok(timeout.unwrap_or(DEFAULT_TIMEOUT)),
            Err(error) => Err(error),
        };
        convert::all_of([
            namespace.as_ref().map(|_| ()).map_err(Clone::clone),
            node.as_ref().map(|_| ()).map_err(Clone::clone),
            timeout.as_ref().map(|_| ()).map_err(Clone::clone),
        ])?;
        let node = node?;
        let knows_node = node.as_ref().is_none_or(|node| services.fleet.knows(node));
        Ok(Self {
            scope: DrainScope { namespace: namespace?, node },
            timeout: timeout?,
            force: request.force,
            validate_only: request.validate_only,
            knows_node,
            preview: Reached::default(),
        })
    }

    async fn prepare(&mut self, services: &Services) -> Result<()> {
        self.preview = services.fleet.drain_preview(&self.scope).await;
        Ok(())
    }

    /// The answer to `validate_only`; a real drain runs through [`Door::drain`].
    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        self.require(tx)?;
        Ok(self.describe(Done::new(answer(&self.preview))))
    }
}

impl DrainConnections {
    fn require(&self, tx: &Tx<'_>) -> Result<()> {
        if let Some(name) = &self.scope.namespace
            && tx.namespace(name.as_str())?.is_none()
        {
            return Err(Error::not_found(format!("namespace:{name}")));
        }
        match &self.scope.node {
            Some(node) if !self.knows_node => Err(Error::not_found(format!("node:{node}"))),
            _ => Ok(()),
        }
    }

    fn describe<R>(&self, done: Done<R>) -> Done<R> {
        let mut done = done.detail("force", self.force).detail("timeout_ms", self.timeout.as_millis());
        if let Some(node) = &self.scope.node {
            done = done.detail("node_id", node);
        }
        if self.validate_only { done.detail("validate_only", true) } else { done }
    }
}

impl Door {
    /// Runs a drain; `validate_only` goes the way of every operation.
    pub(crate) async fn drain(
        self: &Arc<Self>,
        identity: Arc<Identity>,
        call: Call,
        request: wire::DrainConnectionsRequest,
    ) -> Result<wire::DrainConnectionsResponse> {
        if request.validate_only {
            return self.call_as::<DrainConnections>(identity, call, request).await;
        }
        let admitted = self.admit::<DrainConnections>(identity, &call, &request)?;
        let key = admitted.key.clone();
        let _turn = self.turn(admitted.key.as_ref()).await;
        if let Some(outcome) = key.as_ref().and_then(|key| self.unended.outcome(key)) {
            return Err(not_written(outcome));
        }
        let parsed = DrainConnections::parse(request.clone(), &self.services);
        let (op, id) = match self.begin_drain(&admitted, request, parsed).await? {
            Beginning::Begun(op, id) => (op, id),
            Beginning::Answered(response) => return Ok(response),
            Beginning::Refused(error) => return Err(error),
        };
        let services = &self.services;
        services.fleet.caught_up(services.snapshot().revision).await;
        let outcome = services.fleet.drain(&op.scope, op.timeout, op.force).await;
        let told = outcome.answer;
        let (door, waiting) = (Arc::clone(self), key.map(|key| self.unended.add(&key, outcome.answer)));
        let ending = tokio::spawn(async move {
            let verdict = door.end_drain(&admitted, &op, id, outcome).await;
            drop(waiting);
            let services = &door.services;
            services.fleet.caught_up(services.snapshot().revision).await;
            verdict.into_result()
        });
        match tokio::time::timeout(END_TIMEOUT, ending).await {
            Ok(ended) => ended.map_err(Error::internal)?,
            // It goes on.
            Err(_) => Err(not_written(told)),
        }
    }

    /// Writes the outcome. A scope that stays closed because the disk was full for a moment would be worse than an entry that
    /// comes late, so this tries until it succeeds; the server's own end is the only other way out, and its next start settles
    /// the drain.
    async fn end_drain(
        &self,
        admitted: &Admitted,
        op: &DrainConnections,
        id: DrainId,
        outcome: Reached<DrainOutcome>,
    ) -> Verdict<wire::DrainConnectionsResponse> {
        let mut pause = Duration::from_millis(100);
        loop {
            let (op, mut key, draft) = (op.clone(), admitted.key.clone(), admitted.draft.clone());
            let outcome = outcome.clone();
            if let Some(key) = &mut key {
                key.namespace = op.scope.namespace.clone().map(String::from);
            }
            let written = self.services.store.write(move |tx| {
                tx.end_drain(id)?;
                let done = op.describe(Done::new(answer(&outcome)));
                let done = done
                    .detail("drained_count", outcome.answer.drained)
                    .detail("remaining_count", outcome.answer.remaining);
                let done = match outcome.named() {
                    Some(nodes) => done.detail("unreachable_nodes", nodes),
                    None => done,
                };
                conclude(tx, key.as_ref(), draft, Ok(done))
            });
            match written.await {
                Ok(verdict) => return verdict,
                Err(failed) => {
                    tracing::error!(reason = failed.reason(), cause = ?failed.cause(), "the end of a drain could not be written; trying again");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    async fn begin_drain(
        &self,
        admitted: &Admitted,
        request: wire::DrainConnectionsRequest,
        parsed: Result<DrainConnections>,
    ) -> Result<Beginning> {
        let (permission, mut caller, mut key) =
            (admitted.rule.permission.clone(), admitted.caller.clone(), admitted.key.clone());
        let mut draft = admitted.draft.clone();
        self.services
            .store
            .write(move |tx| {
                match gate::<DrainConnections>(tx, &mut caller, &permission, &request, key.as_mut(), &mut draft)? {
                    Gate::Open => {}
                    Gate::Refused(refused) => return Ok(Beginning::Refused(refused)),
                    Gate::Answered(response) => return Ok(Beginning::Answered(response)),
                }
                let begun = parsed.and_then(|op| {
                    tx.attempt(|tx| {
                        op.require(tx)?;
                        let id = tx.begin_drain(&op.scope, &draft)?;
                        Ok((op, id))
                    })
                });
                match begun {
                    Ok((op, id)) => Ok(Beginning::Begun(op, id)),
                    Err(error) => {
                        let refused = conclude::<wire::DrainConnectionsResponse>(tx, None, draft, Err(error))?;
                        Ok(refused.into_result().map_or_else(Beginning::Refused, Beginning::Answered))
                    }
                }
            })
            .await
            .map_err(cannot_record)
    }
}

/// What the caller is told of a drain whose end cannot be written.
fn not_written(outcome: DrainOutcome) -> Error {
    let message = format!(
        "the drain is over, with {} sessions drained and {} left, but the audit log cannot be written; until it can, no session \
         is admitted in its scope; its entry follows",
        outcome.drained, outcome.remaining
    );
    Error::unavailable("STORAGE_UNAVAILABLE", message)
}

/// Drains that are over and whose end is not written yet, by idempotency key: none of them is begun again.
#[derive(Clone, Default)]
pub(crate) struct Unended(Arc<Mutex<HashMap<KeyedCall, DrainOutcome>>>);

impl Unended {
    fn outcome(&self, key: &IdempotencyKey) -> Option<DrainOutcome> {
        self.lock().get(&keyed_call(key)).copied()
    }

    fn add(&self, key: &IdempotencyKey, outcome: DrainOutcome) -> Waiting {
        let key = keyed_call(key);
        self.lock().insert(key.clone(), outcome);
        Waiting { among: self.clone(), key }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<KeyedCall, DrainOutcome>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dropped when the end of its drain is written.
struct Waiting {
    among: Unended,
    key: KeyedCall,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.among.lock().remove(&self.key);
    }
}

/// How a drain begins.
enum Beginning {
    /// Its intent is in the store; what follows must end it.
    Begun(DrainConnections, DrainId),
    /// It was carried out before.
    Answered(wire::DrainConnectionsResponse),
    /// Refused; its entry is written.
    Refused(Error),
}
