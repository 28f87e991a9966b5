//! One set of counters for Prometheus and for GetMetrics (contract §9 "metrics"). Recording takes no lock; labels are bounded.

mod buckets;
mod history;
mod render;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use prism_core::config::BackendType;
use prism_core::control::RequestFigures;
use prism_core::{Clock, UnixMillis};
use tokio::time::MissedTickBehavior;

use crate::shutdown::Shutdown;
use buckets::{BUCKETS, Buckets};
use history::{GroupId, History};

/// Most namespaces with series of their own; calls in further ones count under [`OTHER_NAMESPACE`].
pub const MAX_NAMESPACES: usize = 1000;
/// Label of the calls in namespaces beyond [`MAX_NAMESPACES`].
pub const OTHER_NAMESPACE: &str = "_other";
/// Label of calls without a valid session, which belong to no namespace.
pub const NO_NAMESPACE: &str = "_none";

/// Labels of one sample of an extra gauge.
pub type Labels = Vec<(&'static str, String)>;
/// Reads an extra gauge.
pub type GaugeFn = Box<dyn Fn() -> Vec<(Labels, f64)> + Send + Sync>;

/// One series of calls: how many, how many failed, how long they took.
pub struct Series {
    errors: AtomicU64,
    nanos: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Series {
    fn new() -> Self {
        Self { errors: AtomicU64::new(0), nanos: AtomicU64::new(0), buckets: [const { AtomicU64::new(0) }; BUCKETS] }
    }

    /// Counts one call; `ok` = its status was OK.
    pub fn record(&self, latency: Duration, ok: bool) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[buckets::index(nanos)].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        if !ok {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Calls so far.
    pub fn requests(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// Failed calls so far.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    fn add_to(&self, sum: &mut Buckets) {
        for (total, bucket) in sum.0.iter_mut().zip(&self.buckets) {
            *total += bucket.load(Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Series")
            .field("requests", &self.requests())
            .field("errors", &self.errors())
            .finish_non_exhaustive()
    }
}

/// A counter; a clone counts on the same number.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Counts one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Counts `number`.
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Series that are reported together: those of one namespace, or the one of a backend instance.
struct Group<K> {
    id: GroupId,
    series: BTreeMap<K, Arc<Series>>,
}

impl<K> Group<K> {
    fn sum(&self) -> Buckets {
        let mut sum = Buckets::default();
        self.series.values().for_each(|series| series.add_to(&mut sum));
        sum
    }

    fn errors(&self) -> u64 {
        self.series.values().map(|series| series.errors()).sum()
    }
}

struct CounterFamily {
    help: &'static str,
    counter: Counter,
}

struct GaugeFamily {
    help: &'static str,
    read: Arc<GaugeFn>,
}

#[derive(Default)]
struct Registry {
    next_group: GroupId,
    /// By namespace, then by method.
    operations: BTreeMap<String, Group<&'static str>>,
    backends: BTreeMap<(BackendType, String), Group<()>>,
    admin: BTreeMap<&'static str, Arc<Series>>,
    counters: BTreeMap<&'static str, CounterFamily>,
    gauges: BTreeMap<&'static str, GaugeFamily>,
}

impl Registry {
    fn new_group<K>(&mut self) -> Group<K> {
        let id = self.next_group;
        self.next_group += 1;
        Group { id, series: BTreeMap::new() }
    }

    fn named_namespaces(&self) -> usize {
        self.operations.keys().filter(|name| !name.starts_with('_')).count()
    }

    fn sums(&self) -> impl Iterator<Item = (GroupId, Buckets)> + '_ {
        let operations = self.operations.values().map(|group| (group.id, group.sum()));
        operations.chain(self.backends.values().map(|group| (group.id, group.sum())))
    }
}

struct Shared {
    started: Instant,
    started_at: UnixMillis,
    registry: RwLock<Registry>,
    history: Mutex<History>,
}

/// All figures of a process; a clone is the same figures.
#[derive(Clone)]
pub struct Metrics(Arc<Shared>);

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// No figures yet.
    pub fn new() -> Self {
        let started = Instant::now();
        Self(Arc::new(Shared {
            started,
            started_at: Clock::system().now(),
            registry: RwLock::default(),
            history: Mutex::new(History::new(started)),
        }))
    }

    /// When counting began.
    pub fn started_at(&self) -> UnixMillis {
        self.0.started_at
    }

    /// For how long it has been counting.
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// The series of a data-plane method such as `KeyValueService/Get` in `namespace` (`""` = no valid session). Takes a
    /// lock: resolve it once per namespace and method, and keep it.
    pub fn operation(&self, namespace: &str, method: &'static str) -> Arc<Series> {
        let namespace = if namespace.is_empty() { NO_NAMESPACE } else { namespace };
        if let Some(series) = self.read().operations.get(namespace).and_then(|group| group.series.get(method)) {
            return series.clone();
        }
        let mut registry = self.write();
        let known = registry.operations.contains_key(namespace) || namespace.starts_with('_');
        let namespace = if known || registry.named_namespaces() < MAX_NAMESPACES { namespace } else { OTHER_NAMESPACE };
        if !registry.operations.contains_key(namespace) {
            let group = registry.new_group();
            registry.operations.insert(namespace.to_owned(), group);
        }
        let group = registry.operations.get_mut(namespace);
        group.map_or_else(
            || Arc::new(Series::new()),
            |group| group.series.entry(method).or_insert_with(|| Arc::new(Series::new())).clone(),
        )
    }

    /// The series of the driver calls of a backend instance; resolve it once and keep it.
    pub fn backend(&self, kind: BackendType, instance: &str) -> Arc<Series> {
        let mut registry = self.write();
        let fresh = registry.new_group();
        let group = registry.backends.entry((kind, instance.to_owned())).or_insert(fresh);
        group.series.entry(()).or_insert_with(|| Arc::new(Series::new())).clone()
    }

    /// The series of an admin RPC such as `AdminService/CreateConfig`.
    pub fn admin(&self, method: &'static str) -> Arc<Series> {
        if let Some(series) = self.read().admin.get(method) {
            return series.clone();
        }
        self.write().admin.entry(method).or_insert_with(|| Arc::new(Series::new())).clone()
    }

    /// A counter of its own; `name` ends in `_total`. The same name is the same counter.
    pub fn counter(&self, name: &'static str, help: &'static str) -> Counter {
        let mut registry = self.write();
        registry
            .counters
            .entry(name)
            .or_insert_with(|| CounterFamily { help, counter: Counter::default() })
            .counter
            .clone()
    }

    /// A gauge that is read when figures are rendered; the same name replaces it. At most [`MAX_NAMESPACES`] samples are
    /// rendered, the rest summed under the namespace [`OTHER_NAMESPACE`].
    pub fn gauge_fn(&self, name: &'static str, help: &'static str, read: GaugeFn) {
        self.write().gauges.insert(name, GaugeFamily { help, read: Arc::new(read) });
    }

    /// All calls of the data plane, rates and latencies over `window` (1 s to 1 h).
    pub fn total_figures(&self, window: Duration) -> RequestFigures {
        let registry = self.read();
        let (mut total, mut errors, mut recent) = (Buckets::default(), 0, Buckets::default());
        let recents = self.history().recent(window, registry.sums());
        for group in registry.operations.values() {
            total.add(&group.sum());
            errors += group.errors();
            if let Some(buckets) = recents.groups.get(&group.id) {
                recent.add(buckets);
            }
        }
        figures(&total, errors, &recent, recents.covered)
    }

    /// Calls by namespace, rates and latencies over `window` (1 s to 1 h). Calls without a valid session are in no namespace.
    pub fn namespace_figures(&self, window: Duration) -> BTreeMap<String, RequestFigures> {
        let registry = self.read();
        let recents = self.history().recent(window, registry.sums());
        let named = registry.operations.iter().filter(|(name, _)| *name != NO_NAMESPACE);
        named.map(|(name, group)| (name.clone(), recents.figures(group.id, &group.sum(), group.errors()))).collect()
    }

    /// Calls in one namespace, rates and latencies over `window` (1 s to 1 h).
    pub fn namespace(&self, namespace: &str, window: Duration) -> RequestFigures {
        let registry = self.read();
        let Some(group) = registry.operations.get(namespace) else { return RequestFigures::default() };
        let sum = group.sum();
        let recents = self.history().recent(window, std::iter::once((group.id, sum.clone())));
        recents.figures(group.id, &sum, group.errors())
    }

    /// Driver calls by backend instance, rates and latencies over `window` (1 s to 1 h).
    pub fn backend_figures(&self, window: Duration) -> BTreeMap<(BackendType, String), RequestFigures> {
        let registry = self.read();
        let recents = self.history().recent(window, registry.sums());
        let backends = registry.backends.iter();
        backends.map(|(key, group)| (key.clone(), recents.figures(group.id, &group.sum(), group.errors()))).collect()
    }

    /// Everything in the text format of Prometheus ([`CONTENT_TYPE`]).
    pub fn render(&self) -> String {
        let registry = self.read();
        let mut text = render::counted(&registry, self.0.started_at);
        let gauges: Vec<_> =
            registry.gauges.iter().map(|(name, family)| (*name, family.help, Arc::clone(&family.read))).collect();
        // A gauge may use these figures itself, so it is not read under their lock.
        drop(registry);
        for (name, help, read) in gauges {
            render::gauge(&mut text, name, help, read());
        }
        text
    }

    /// Keeps the samples behind the windows, one each second, until `shutdown` is announced. Needs a runtime.
    pub fn spawn_history(&self, shutdown: Shutdown) {
        let metrics = self.clone();
        tokio::spawn(async move {
            let mut seconds = tokio::time::interval(Duration::from_secs(1));
            seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = seconds.tick() => metrics.sample(Instant::now()),
                    () = shutdown.announced() => return,
                }
            }
        });
    }

    fn sample(&self, now: Instant) {
        let registry = self.read();
        self.history().sample(now, registry.sums());
    }

    // Nothing behind these locks is left half-changed by a panic, so a poisoned one is still good.
    fn read(&self) -> RwLockReadGuard<'_, Registry> {
        self.0.registry.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Registry> {
        self.0.registry.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.0.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("started_at", &self.0.started_at).finish_non_exhaustive()
    }
}

/// Media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

fn figures(total: &Buckets, errors: u64, recent: &Buckets, covered: Duration) -> RequestFigures {
    let milliseconds = |quantile| recent.quantile(quantile) / 1e6;
    RequestFigures {
        requests_total: total.count() as i64,
        errors_total: errors as i64,
        requests_per_second: recent.count() as f64 / covered.as_secs_f64().max(0.001),
        latency_p50_ms: milliseconds(0.50),
        latency_p95_ms: milliseconds(0.95),
        latency_p99_ms: milliseconds(0.99),
        active_sessions: 0,
        active_streams: 0,
    }
}

#[cfg(test)]
mod tests;
