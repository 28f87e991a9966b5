//! One issuer and the keys it had when it was last asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use prism_core::Result;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::discovery::Discovery;
use super::keys::{KeySet, Verdict};
use super::settings::IssuerSettings;
use super::token::Unproven;

/// How often, and how long, issuers are asked. Measured with the monotonic clock: a jump of the other changes nothing.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two fetches when the issuer does not ask for more; also the longest.
    pub refresh: Duration,
    /// The shortest between two fetches, whatever the issuer asks for.
    pub soonest: Duration,
    /// Before the first try after a failure; doubles from there.
    pub retry: Duration,
    /// The longest between two tries.
    pub slowest_retry: Duration,
    /// Between two fetches that unknown keys cause.
    pub unknown_key: Duration,
    /// One fetch, discovery included.
    pub timeout: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            refresh: Duration::from_mins(10),
            soonest: Duration::from_mins(1),
            retry: Duration::from_secs(1),
            slowest_retry: Duration::from_mins(1),
            unknown_key: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
        }
    }
}

impl Pace {
    /// How long to wait after a failure that came after one with this pause.
    fn slower(&self, pause: Duration) -> Duration {
        (pause * 2).min(self.slowest_retry)
    }
}

/// An issuer, its keys, and how to get newer ones.
pub struct Issuer {
    /// What the operator says of it.
    pub settings: IssuerSettings,
    keys: ArcSwapOption<KeySet>,
    /// Absent where the keys are given.
    source: Option<Source>,
    /// How many fetches have ended.
    fetches: AtomicU64,
    /// When the keys were last fetched; before the first time, when the issuer was set up.
    fetched: ArcSwap<Instant>,
    flight: Arc<Mutex<Flight>>,
}

struct Source {
    discovery: Discovery,
    pace: Pace,
}

/// Held through a fetch, so that there is one at a time.
#[derive(Default)]
struct Flight {
    /// When an unknown key last caused a fetch.
    asked: Option<Instant>,
    /// What is wrong with the issuer, as it was last logged.
    problem: Option<String>,
}

impl Issuer {
    /// An issuer whose keys are fetched; FAILED_PRECONDITION when its CA certificates cannot be used.
    pub fn discovered(settings: IssuerSettings, pace: Pace) -> Result<Self> {
        let source = Source { discovery: Discovery::new(&settings)?, pace };
        Ok(Self::with(settings, None, Some(source)))
    }

    /// An issuer whose keys stay as they are.
    pub fn fixed(settings: IssuerSettings, keys: KeySet) -> Self {
        Self::with(settings, Some(Arc::new(keys)), None)
    }

    fn with(settings: IssuerSettings, keys: Option<Arc<KeySet>>, source: Option<Source>) -> Self {
        Self {
            settings,
            keys: ArcSwapOption::new(keys),
            source,
            fetches: AtomicU64::new(0),
            fetched: ArcSwap::from_pointee(Instant::now()),
            flight: Arc::new(Mutex::new(Flight::default())),
        }
    }

    /// How long ago the keys were fetched, or since the start while they never were; `None` where they are given.
    pub fn age(&self) -> Option<Duration> {
        self.source.as_ref().map(|_| self.fetched.load().elapsed())
    }

    /// Checks the signature of a token, with newer keys if there are any and these do not fit. `None`: there are no keys.
    pub async fn check(self: &Arc<Self>, token: &Unproven<'_>) -> Option<Verdict> {
        let seen = self.fetches.load(Ordering::Acquire);
        match self.verdict(token) {
            None | Some(Verdict::NoKey) => {}
            settled => return settled,
        }
        self.fetch_unless_newer(seen).await;
        self.verdict(token)
    }

    fn verdict(&self, token: &Unproven<'_>) -> Option<Verdict> {
        let keys = self.keys.load();
        let keys = keys.as_ref()?;
        Some(keys.verify(token.algorithm, token.kid.as_deref(), token.message, &token.signature))
    }

    /// One fetch at a time, and at most one per interval; callers who waited for another's share what it brought.
    async fn fetch_unless_newer(self: &Arc<Self>, seen: u64) {
        let Some(source) = &self.source else { return };
        let mut flight = Arc::clone(&self.flight).lock_owned().await;
        let is_newer = self.fetches.load(Ordering::Acquire) != seen;
        if is_newer || flight.asked.is_some_and(|asked| asked.elapsed() < source.pace.unknown_key) {
            return;
        }
        flight.asked = Some(Instant::now());
        let issuer = Arc::clone(self);
        // Detached: a caller who hangs up must not keep new keys from those who come after.
        let fetch = tokio::spawn(async move { issuer.fetch(&mut flight).await });
        if let Err(error) = fetch.await {
            tracing::error!(issuer = %self.settings.issuer, %error, "fetching keys was cut short");
        }
    }

    /// Keeps the keys fresh for ever; ends at once where they are given.
    pub async fn keep_fresh(self: Arc<Self>) {
        let Some(source) = &self.source else { return };
        let pace = source.pace;
        let mut retry = pace.retry;
        loop {
            let mut flight: OwnedMutexGuard<Flight> = Arc::clone(&self.flight).lock_owned().await;
            let pause = if let Some(max_age) = self.fetch(&mut flight).await {
                retry = pace.retry;
                max_age.unwrap_or(pace.refresh).clamp(pace.soonest, pace.refresh)
            } else {
                let slower = pace.slower(retry);
                std::mem::replace(&mut retry, slower)
            };
            drop(flight);
            tokio::time::sleep(pause).await;
        }
    }

    /// Fetches the keys and says how long they are good for, if the issuer does; `None` when that failed.
    async fn fetch(&self, flight: &mut Flight) -> Option<Option<Duration>> {
        let source = self.source.as_ref()?;
        let fetched = tokio::time::timeout(source.pace.timeout, source.discovery.fetch())
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {:?}", source.pace.timeout)));
        let issuer = &self.settings.issuer;
        let outcome = match fetched {
            Ok(fetched) => {
                let problem = fetched.keys.is_empty().then(|| "it publishes no key that can be used".to_owned());
                match &problem {
                    _ if flight.problem == problem => {}
                    Some(problem) => tracing::warn!(%issuer, problem, "no token of this issuer can be verified"),
                    None => tracing::info!(%issuer, "the keys of the issuer can be fetched again"),
                }
                flight.problem = problem;
                self.keys.store(Some(Arc::new(fetched.keys)));
                self.fetched.store(Arc::new(Instant::now()));
                Some(fetched.max_age)
            }
            Err(problem) => {
                if flight.problem.as_ref() != Some(&problem) {
                    tracing::warn!(%issuer, problem, "the keys of the issuer cannot be fetched; those it had stay in use");
                }
                flight.problem = Some(problem);
                None
            }
        };
        self.fetches.fetch_add(1, Ordering::Release);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_become_slower_up_to_a_minute() {
        let pace = Pace::default();
        let pauses = std::iter::successors(Some(pace.retry), |pause| Some(pace.slower(*pause)));
        let seconds: Vec<u64> = pauses.take(9).map(|pause| pause.as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
