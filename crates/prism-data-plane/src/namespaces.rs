//! Namespaces as the gate sees them: policy, rate, meter and figures, kept up to date with the control plane's snapshot.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use prism_core::control::{Maintenance, NamespaceStatus, Quota, Snapshot};
use prism_core::rate::TokenBucket;
use prism_core::storage::StorageMeter;
use prism_core::{NamespaceName, UnixMillis};
use prism_rpc::{Metrics, Series};
use tokio::sync::{Notify, watch};

use crate::decision::Freeze;
use crate::rpc::{COUNT, Rpc};

/// The share of a node that shares with nobody.
const WHOLE: u64 = u64::MAX;

/// What the operators have set for a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether the namespace exists.
    pub exists: bool,
    /// Its status; SUSPENDED when it does not exist.
    pub status: NamespaceStatus,
    /// Its quotas.
    pub quota: Quota,
    /// Maintenance of its own.
    pub own: Option<Arc<Maintenance>>,
    /// Maintenance of the gateway.
    pub gateway: Option<Arc<Maintenance>>,
}

impl Policy {
    fn of(name: &NamespaceName, snapshot: &Snapshot) -> Self {
        let namespace = snapshot.namespaces.get(name);
        Self {
            exists: namespace.is_some(),
            status: namespace.map_or(NamespaceStatus::Suspended, |namespace| namespace.status),
            quota: namespace.map_or_else(Quota::default, |namespace| namespace.quota),
            own: snapshot.namespace_maintenance.get(name).cloned(),
            gateway: snapshot.maintenance.clone(),
        }
    }

    /// What maintenance stops at `now`, and the maintenance to tell of: the namespace's own before the gateway's.
    pub fn freeze(&self, now: UnixMillis) -> (Freeze, Option<&Arc<Maintenance>>) {
        let in_force = |given: &Option<Arc<Maintenance>>| -> bool { given.as_ref().is_some_and(|m| m.in_force(now)) };
        let (own, gateway) = (in_force(&self.own), in_force(&self.gateway));
        let freeze = |given: &Option<Arc<Maintenance>>| match given {
            Some(maintenance) if maintenance.in_force(now) => {
                if maintenance.allow_reads {
                    Freeze::AllButReads
                } else {
                    Freeze::All
                }
            }
            _ => Freeze::Nothing,
        };
        let told = if own { self.own.as_ref() } else { self.gateway.as_ref().filter(|_| gateway) };
        (freeze(&self.own).max(freeze(&self.gateway)), told)
    }
}

/// A namespace on this node.
pub struct NamespaceRuntime {
    name: NamespaceName,
    policy: ArcSwap<Policy>,
    rate: TokenBucket,
    /// What this node may use of `max_rps`, in thousandths of an operation per second; [`WHOLE`] = all of it.
    share: AtomicU64,
    /// Operations asked for, refused ones included.
    asked: AtomicU64,
    meter: Arc<StorageMeter>,
    metrics: Metrics,
    series: [OnceLock<Arc<Series>>; COUNT],
}

impl NamespaceRuntime {
    fn new(name: NamespaceName, policy: Policy, share: u64, metrics: Metrics) -> Self {
        let runtime = Self {
            meter: StorageMeter::new(name.clone()),
            name,
            rate: TokenBucket::new(0, 0),
            share: AtomicU64::new(share),
            asked: AtomicU64::new(0),
            policy: ArcSwap::from_pointee(policy.clone()),
            metrics,
            series: [const { OnceLock::new() }; COUNT],
        };
        runtime.apply(policy);
        runtime
    }

    fn apply(&self, policy: Policy) {
        self.set_rate(policy.quota.max_rps);
        self.meter.set_limit(policy.quota.max_storage_bytes);
        self.policy.store(Arc::new(policy));
    }

    fn set_rate(&self, max_rps: i64) {
        let max = u64::try_from(max_rps).unwrap_or(0);
        match self.share.load(Ordering::SeqCst) {
            share if share != WHOLE && max > 0 => {
                self.rate.set_share(share.min(max.saturating_mul(1000)), Instant::now());
            }
            _ => self.rate.set(max, 0),
        }
    }

    /// Gives this node `millis` thousandths of an operation per second of `max_rps`; [`WHOLE`] = all of it.
    fn set_share(&self, millis: u64) {
        self.share.store(millis, Ordering::SeqCst);
        self.set_rate(self.policy.load().quota.max_rps);
    }

    /// Operations asked for since this node knows the namespace, refused ones included.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Its name.
    pub fn name(&self) -> &NamespaceName {
        &self.name
    }

    /// What the operators have set.
    pub fn policy(&self) -> arc_swap::Guard<Arc<Policy>> {
        self.policy.load()
    }

    /// Takes an operation from `max_rps`, or says how long until there is one.
    pub fn take(&self, now: Instant) -> Result<(), Duration> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.rate.take(now)
    }

    /// Stored bytes.
    pub fn meter(&self) -> &Arc<StorageMeter> {
        &self.meter
    }

    /// Figures of one RPC.
    pub fn series(&self, rpc: Rpc) -> &Series {
        self.series[rpc as usize].get_or_init(|| self.metrics.operation(self.name.as_str(), rpc.label()))
    }
}

/// The namespaces of this node.
pub struct Namespaces {
    runtimes: DashMap<NamespaceName, Arc<NamespaceRuntime>>,
    metrics: Metrics,
    /// A receiver that has seen what was applied, so that one atomic load tells whether there is something newer.
    seen: ArcSwap<watch::Receiver<Arc<Snapshot>>>,
    current: ArcSwap<Snapshot>,
    /// Counts the values of `client_access` that were in force, the first one included.
    access_generation: AtomicU64,
    access_changed: Notify,
    /// The share of namespaces that have been given none.
    share: AtomicU64,
    refreshing: Mutex<()>,
}

impl Namespaces {
    /// Follows `snapshots`.
    pub fn new(mut snapshots: watch::Receiver<Arc<Snapshot>>, metrics: Metrics) -> Self {
        let current = Arc::clone(&snapshots.borrow_and_update());
        Self {
            runtimes: DashMap::new(),
            metrics,
            seen: ArcSwap::from_pointee(snapshots),
            current: ArcSwap::new(current),
            access_generation: AtomicU64::new(1),
            access_changed: Notify::new(),
            share: AtomicU64::new(WHOLE),
            refreshing: Mutex::new(()),
        }
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Whether the control plane has published something newer than what is in force here.
    pub fn is_behind(&self) -> bool {
        self.seen.load().has_changed().unwrap_or(false)
    }

    /// Takes over the newest snapshot; returns the namespaces whose policy changed.
    pub fn refresh(&self) -> HashSet<NamespaceName> {
        let _one_at_a_time = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_behind() {
            return HashSet::new();
        }
        let mut receiver = watch::Receiver::clone(&self.seen.load());
        let snapshot = Arc::clone(&receiver.borrow_and_update());
        let mut changed = HashSet::new();
        for runtime in &self.runtimes {
            let policy = Policy::of(&runtime.name, &snapshot);
            if **runtime.policy.load() != policy {
                runtime.apply(policy);
                changed.insert(runtime.name.clone());
            }
        }
        let before = self.current.swap(Arc::clone(&snapshot));
        if !Arc::ptr_eq(&before.client_access, &snapshot.client_access) {
            // After the snapshot, so that who reads this number finds what it stands for, and before `seen`, so that nobody
            // takes the snapshot for taken over and still finds the number before it.
            self.access_generation.fetch_add(1, Ordering::SeqCst);
            self.access_changed.notify_one();
        }
        self.seen.store(Arc::new(receiver));
        changed
    }

    /// Number of the client access in force; [`Namespaces::snapshot`], called after this, has it or a newer one.
    pub fn access_generation(&self) -> u64 {
        self.access_generation.load(Ordering::SeqCst)
    }

    /// Has all sessions looked over again, for a reason outside the client access.
    pub fn access_moved(&self) {
        self.access_generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Waits until the client access has changed since the last time that this returned; for one task only.
    pub async fn access_changed(&self) {
        self.access_changed.notified().await;
    }

    /// Waits for a newer snapshot; `false` when the control plane is gone.
    pub async fn wait(&self) -> bool {
        let mut receiver = watch::Receiver::clone(&self.seen.load());
        receiver.changed().await.is_ok()
    }

    /// The runtime of a namespace, made when it is the first time that this node hears of it.
    pub fn runtime(&self, name: &NamespaceName) -> Arc<NamespaceRuntime> {
        if let Some(known) = self.known(name) {
            return known;
        }
        // Under the lock of `refresh`, so that no policy change falls between reading it and adding the runtime.
        let _no_refresh = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let policy = Policy::of(name, &self.current.load());
            let share = self.share.load(Ordering::SeqCst);
            Arc::new(NamespaceRuntime::new(name.clone(), policy, share, self.metrics.clone()))
        };
        Arc::clone(self.runtimes.entry(name.clone()).or_insert_with(make).value())
    }

    /// Whether this node shares each `max_rps` with others: it may use nothing of it but what it is given from now on. When it
    /// does not share any more, it may use all.
    pub fn share_rates(&self, with_others: bool) {
        // Under the lock of `runtime`, so that none is made with what was true before.
        let _no_refresh = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        let share = if with_others { 0 } else { WHOLE };
        if self.share.swap(share, Ordering::SeqCst) != share {
            self.runtimes.iter().for_each(|runtime| runtime.set_share(share));
        }
    }

    /// What this node may use of the `max_rps` of a namespace, in thousandths of an operation per second.
    pub fn share(&self, name: &NamespaceName, millis: u64) {
        let runtime = self.runtime(name);
        // A share that comes after the last one to share with is gone.
        if self.share.load(Ordering::SeqCst) != WHOLE {
            runtime.set_share(millis);
        }
    }

    /// The runtime of a namespace that this node has heard of.
    pub fn known(&self, name: &NamespaceName) -> Option<Arc<NamespaceRuntime>> {
        self.runtimes.get(name).map(|entry| Arc::clone(entry.value()))
    }

    /// All runtimes.
    pub fn all(&self) -> Vec<Arc<NamespaceRuntime>> {
        self.runtimes.iter().map(|entry| Arc::clone(entry.value())).collect()
    }

    /// Forgets a deleted namespace with its meter.
    pub fn forget(&self, name: &NamespaceName) {
        self.runtimes.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_000_000);

    fn maintenance(allow_reads: bool, ends: bool) -> Arc<Maintenance> {
        let ends_at = ends.then(|| NOW + Duration::from_secs(1));
        Arc::new(Maintenance { message: String::new(), started_at: NOW, ends_at, allow_reads })
    }

    fn policy(own: Option<Arc<Maintenance>>, gateway: Option<Arc<Maintenance>>) -> Policy {
        Policy { exists: true, status: NamespaceStatus::Active, quota: Quota::default(), own, gateway }
    }

    #[test]
    fn the_stricter_maintenance_counts_and_the_namespaces_is_told() {
        assert_eq!(policy(None, None).freeze(NOW), (Freeze::Nothing, None));
        let both = policy(Some(maintenance(true, false)), Some(maintenance(false, false)));
        let (freeze, told) = both.freeze(NOW);
        assert_eq!((freeze, told), (Freeze::All, both.own.as_ref()));
        let gateway = policy(None, Some(maintenance(true, false)));
        assert_eq!(gateway.freeze(NOW), (Freeze::AllButReads, gateway.gateway.as_ref()));
    }

    #[test]
    fn maintenance_ends_by_itself() {
        let ending = policy(Some(maintenance(false, true)), None);
        assert_eq!(ending.freeze(NOW).0, Freeze::All);
        assert_eq!(ending.freeze(NOW + Duration::from_secs(1)), (Freeze::Nothing, None));
    }
}
