//! What a failed credential costs whoever presents it: time, that grows with each.
//!
//! Only failures are counted, and a valid credential is never asked for: nobody can lock somebody else out.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prism_core::source::Source;

/// The time over which failures are counted, and after which a quiet source or key is as new.
pub const WINDOW: Duration = Duration::from_mins(1);
/// The first delay; each failure after it doubles it.
pub const FIRST_DELAY: Duration = Duration::from_millis(50);
/// The longest delay.
pub const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// Most delayed answers of one source at a time.
pub const MAX_WAITING_PER_SOURCE: usize = 16;
/// Most delayed answers at a time.
pub const MAX_WAITING: usize = 256;
/// Most sources, and most keys, that are remembered; the one whose last failure is the oldest is forgotten first.
pub const MAX_TRACKED: usize = 10_000;

/// What to do with the answer to a failed credential.
#[derive(Debug)]
pub enum Penalty {
    /// Answer now.
    None,
    /// Answer after this time, and keep the place until then.
    Wait(Duration, WaitPlace),
    /// Too many answers wait already: refuse the call, and say after what time another try makes sense.
    Refuse {
        /// The delay that the answer would have had.
        retry_after: Duration,
    },
}

/// Counts failed credentials by source and by key. A clone counts on.
#[derive(Clone)]
pub struct FailureLimiter {
    free: u32,
    hasher: RandomState,
    state: Arc<Mutex<State>>,
}

/// One of the bounded places for delayed answers; given back when dropped.
pub struct WaitPlace {
    source: Source,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    sources: Table<Source>,
    /// By hash: what callers call themselves has any length.
    keys: Table<u64>,
    waiting: HashMap<Source, usize>,
    all_waiting: usize,
}

impl FailureLimiter {
    /// The first `free` failures of a source or key within a minute cost nothing.
    pub fn new(free: u32) -> Self {
        Self { free, hasher: RandomState::new(), state: Arc::default() }
    }

    /// Counts a failed credential of `source`, and of `key`, the public id that the caller presented, known or not; says
    /// what to do with the answer, which is the same for both. `now` is when it failed.
    pub fn failed(&self, source: IpAddr, key: Option<&str>, now: Instant) -> Penalty {
        let source = Source::of(source);
        let key = key.map(|key| self.hasher.hash_one(key));
        let mut state = locked(&self.state);
        let of_source = state.sources.failed(source, self.free, now);
        let of_key = key.map_or(Duration::ZERO, |key| state.keys.failed(key, self.free, now));
        let delay = of_source.max(of_key);
        if delay.is_zero() {
            return Penalty::None;
        }
        if !state.takes_place(source) {
            return Penalty::Refuse { retry_after: delay };
        }
        Penalty::Wait(delay, WaitPlace { source, state: Arc::clone(&self.state) })
    }
}

impl fmt::Debug for FailureLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailureLimiter").field("free", &self.free).finish_non_exhaustive()
    }
}

impl Drop for WaitPlace {
    fn drop(&mut self) {
        locked(&self.state).gives_place_back(self.source);
    }
}

impl fmt::Debug for WaitPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WaitPlace")
    }
}

impl State {
    fn takes_place(&mut self, source: Source) -> bool {
        let of_source = self.waiting.get(&source).copied().unwrap_or(0);
        if self.all_waiting >= MAX_WAITING || of_source >= MAX_WAITING_PER_SOURCE {
            return false;
        }
        self.waiting.insert(source, of_source + 1);
        self.all_waiting += 1;
        true
    }

    fn gives_place_back(&mut self, source: Source) {
        self.all_waiting = self.all_waiting.saturating_sub(1);
        if let Some(waiting) = self.waiting.get_mut(&source) {
            *waiting -= 1;
            if *waiting == 0 {
                self.waiting.remove(&source);
            }
        }
    }
}

/// The last [`MAX_TRACKED`] of one kind that failed.
struct Table<K> {
    tracked: HashMap<K, Tracked>,
    /// By turn: the first is the one that failed least recently.
    order: BTreeMap<u64, K>,
    turn: u64,
}

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self { tracked: HashMap::new(), order: BTreeMap::new(), turn: 0 }
    }
}

impl<K: Copy + Eq + Hash> Table<K> {
    fn failed(&mut self, key: K, free: u32, now: Instant) -> Duration {
        self.turn += 1;
        let tracked = self.tracked.entry(key).or_insert_with(|| Tracked::new(now));
        self.order.remove(&tracked.turn);
        self.order.insert(self.turn, key);
        let delay = tracked.failed(free, now);
        tracked.turn = self.turn;
        if self.tracked.len() > MAX_TRACKED
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.tracked.remove(&oldest);
        }
        delay
    }
}

/// Failures of one source or key: a sliding minute, estimated from the running minute and the one before it.
struct Tracked {
    /// Its place in the order; 0 = none yet.
    turn: u64,
    last: Instant,
    minute: Instant,
    in_minute: u32,
    in_minute_before: u32,
    /// Delayed answers since the last free one.
    delayed: u32,
}

impl Tracked {
    fn new(now: Instant) -> Self {
        Self { turn: 0, last: now, minute: now, in_minute: 0, in_minute_before: 0, delayed: 0 }
    }

    fn failed(&mut self, free: u32, now: Instant) -> Duration {
        if now.saturating_duration_since(self.last) >= WINDOW {
            *self = Self::new(now);
        } else if now.saturating_duration_since(self.minute) >= WINDOW {
            // The last failure is less than a minute ago, so this is the very next minute.
            self.minute += WINDOW;
            self.in_minute_before = std::mem::take(&mut self.in_minute);
        }
        self.last = self.last.max(now);
        self.in_minute = self.in_minute.saturating_add(1);
        let gone = now.saturating_duration_since(self.minute).as_secs_f64() / WINDOW.as_secs_f64();
        let failures = f64::from(self.in_minute) + f64::from(self.in_minute_before) * (1.0 - gone).max(0.0);
        if failures <= f64::from(free) {
            self.delayed = 0;
            return Duration::ZERO;
        }
        let doublings = self.delayed.min(16);
        self.delayed = self.delayed.saturating_add(1);
        (FIRST_DELAY * (1 << doublings)).min(LONGEST_DELAY)
    }
}

/// No invariant spans a panic here: counts are changed whole.
fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    /// What was to be waited for; the place is given back.
    fn delay(penalty: &Penalty) -> Duration {
        match penalty {
            Penalty::None => Duration::ZERO,
            Penalty::Wait(delay, _) => *delay,
            Penalty::Refuse { .. } => panic!("refused"),
        }
    }

    #[test]
    fn the_first_are_free_and_then_the_delay_doubles_up_to_its_bound() {
        let limiter = FailureLimiter::new(3);
        let now = Instant::now();
        let delays: Vec<u128> = (0..12).map(|_| delay(&limiter.failed(address(1), None, now)).as_millis()).collect();
        assert_eq!(delays, [0, 0, 0, 50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        for _ in 0..10_000 {
            assert_eq!(delay(&limiter.failed(address(1), None, now)), LONGEST_DELAY);
        }
        assert_eq!(delay(&limiter.failed(address(2), None, now)), Duration::ZERO);
    }

    #[test]
    fn nothing_is_shown_but_the_setting() {
        let limiter = FailureLimiter::new(0);
        let penalty = limiter.failed(address(1), Some("key"), Instant::now());
        assert_eq!(format!("{limiter:?}"), "FailureLimiter { free: 0, .. }");
        assert_eq!(format!("{penalty:?}"), "Wait(50ms, WaitPlace)");
    }

    #[test]
    fn none_are_free_when_none_are_to_be() {
        let limiter = FailureLimiter::new(0);
        assert_eq!(delay(&limiter.failed(address(1), None, Instant::now())), FIRST_DELAY);
    }

    #[test]
    fn a_quiet_minute_is_forgiven_and_less_is_not() {
        let limiter = FailureLimiter::new(1);
        let start = Instant::now();
        for _ in 0..8 {
            limiter.failed(address(1), None, start);
        }
        let soon = start + Duration::from_millis(59_999);
        assert!(delay(&limiter.failed(address(1), None, soon)) > FIRST_DELAY);
        assert_eq!(delay(&limiter.failed(address(1), None, soon + WINDOW)), Duration::ZERO);
    }

    #[test]
    fn the_minute_slides() {
        let limiter = FailureLimiter::new(10);
        let start = Instant::now();
        let failed = |at: Duration| delay(&limiter.failed(address(1), None, start + at));
        for second in [0, 40, 40, 40, 40, 40, 40, 40, 40, 40] {
            assert_eq!(failed(Duration::from_secs(second)), Duration::ZERO);
        }
        // Half a minute into the next one, half of those ten still count.
        for _ in 0..5 {
            assert_eq!(failed(Duration::from_secs(90)), Duration::ZERO);
        }
        assert_eq!(failed(Duration::from_secs(90)), FIRST_DELAY);
        // Those ten are gone now, and the six after them count for a little.
        assert_eq!(failed(Duration::from_secs(149)), Duration::ZERO);
        // A failure every ten seconds is for ever below ten a minute.
        for second in (10..3600).step_by(10) {
            assert_eq!(delay(&limiter.failed(address(2), None, start + Duration::from_secs(second))), Duration::ZERO);
        }
    }

    #[test]
    fn a_key_is_delayed_wherever_the_failures_come_from_and_the_longer_delay_holds() {
        let limiter = FailureLimiter::new(5);
        let now = Instant::now();
        for source in 0..5 {
            assert_eq!(delay(&limiter.failed(address(source), Some("key"), now)), Duration::ZERO);
        }
        assert_eq!(delay(&limiter.failed(address(100), Some("key"), now)), FIRST_DELAY);
        assert_eq!(delay(&limiter.failed(address(100), Some("other"), now)), Duration::ZERO);
        for _ in 0..5 {
            limiter.failed(address(200), None, now);
        }
        assert_eq!(delay(&limiter.failed(address(200), Some("key"), now)), FIRST_DELAY * 2);
    }

    #[test]
    fn a_network_of_ipv6_is_one_source_and_mapped_addresses_are_ipv4() {
        let limiter = FailureLimiter::new(1);
        let now = Instant::now();
        let failed = |source: &str| delay(&limiter.failed(source.parse().unwrap(), None, now));
        assert_eq!(failed("2001:db8:0:1::1"), Duration::ZERO);
        assert_eq!(failed("2001:db8:0:1:ffff::2"), FIRST_DELAY);
        assert_eq!(failed("2001:db8:0:2::1"), Duration::ZERO);
        assert_eq!(failed("192.0.2.1"), Duration::ZERO);
        assert_eq!(failed("::ffff:192.0.2.1"), FIRST_DELAY);
    }

    #[test]
    fn few_wait_and_the_rest_is_refused() {
        let limiter = FailureLimiter::new(0);
        let now = Instant::now();
        let mut places = Vec::new();
        for source in 0..MAX_WAITING / MAX_WAITING_PER_SOURCE {
            for _ in 0..MAX_WAITING_PER_SOURCE {
                let penalty = limiter.failed(address(source as u32), None, now);
                assert!(matches!(penalty, Penalty::Wait(..)));
                places.push(penalty);
            }
            let Penalty::Refuse { retry_after } = limiter.failed(address(source as u32), None, now) else {
                panic!("one source has more places than it may");
            };
            assert_eq!(retry_after, LONGEST_DELAY);
        }
        assert!(matches!(limiter.failed(address(1000), None, now), Penalty::Refuse { .. }));
        places.pop();
        assert!(matches!(limiter.failed(address(1001), None, now), Penalty::Wait(..)));
        drop(places);
        let state = locked(&limiter.state);
        assert_eq!((state.all_waiting, state.waiting.len()), (0, 0));
    }

    #[test]
    fn memory_is_bounded_and_the_least_recent_is_forgotten() {
        let limiter = FailureLimiter::new(1);
        let now = Instant::now();
        for source in 0..MAX_TRACKED as u32 {
            limiter.failed(address(source), Some(&format!("key {source}")), now);
        }
        // The first is recent again; the second is the oldest now.
        assert_eq!(delay(&limiter.failed(address(0), Some("key 0"), now)), FIRST_DELAY);
        limiter.failed(address(u32::MAX), Some(&"x".repeat(1_000_000)), now);
        assert_eq!(delay(&limiter.failed(address(1), None, now)), Duration::ZERO);
        assert!(delay(&limiter.failed(address(0), None, now)) > Duration::ZERO);
        for source in 0..100_000 {
            limiter.failed(address(source), Some(&format!("other {source}")), now);
        }
        // Those that are quiet for a while are no more either.
        for minutes in 1..5 {
            limiter.failed(address(7), Some("other 7"), now + WINDOW * minutes);
        }
        let state = locked(&limiter.state);
        for (tracked, order) in [
            (state.sources.tracked.len(), state.sources.order.len()),
            (state.keys.tracked.len(), state.keys.order.len()),
        ] {
            assert_eq!((tracked, order), (MAX_TRACKED, MAX_TRACKED));
        }
    }

    proptest! {
        #[test]
        fn delays_stay_in_their_bounds_at_any_time(
            free in 0u32..8,
            calls in proptest::collection::vec((0u64..200_000, 0u32..3, proptest::option::of(0u8..3)), 0..200),
        ) {
            let limiter = FailureLimiter::new(free);
            let start = Instant::now();
            for (at, source, key) in calls {
                let key = key.map(|key| key.to_string());
                let delay = delay(&limiter.failed(address(source), key.as_deref(), start + Duration::from_millis(at)));
                prop_assert!(delay.is_zero() || (FIRST_DELAY..=LONGEST_DELAY).contains(&delay));
            }
        }
    }
}
