//! How often one join token is shown: whoever has it, spent or revoked, must not fill the audit log with it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Exchanges of one join token in a minute that have their entries one by one. Beyond these, refusals cost time and are counted
/// like wrong credentials, and as many that are good may follow.
pub(crate) const EXCHANGES_PER_MINUTE: u32 = 2000;
/// The time over which they are counted.
const WINDOW: Duration = Duration::from_mins(1);
/// Most join tokens that are remembered, all of which somebody had. When more are shown within a minute, the count of all of them
/// begins anew.
const MAX_TRACKED: usize = 10_000;

/// Exchanges of each join token whose secret was right.
#[derive(Debug, Default)]
pub(crate) struct TokenTally(Mutex<HashMap<String, Shown>>);

#[derive(Debug)]
struct Shown {
    since: Instant,
    all: u32,
    good: u32,
    alarmed: bool,
}

impl Shown {
    fn new(since: Instant) -> Self {
        Self { since, all: 0, good: 0, alarmed: false }
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= WINDOW
    }
}

impl TokenTally {
    /// Counts an exchange; whether it is one of those that have an entry whatever comes of it.
    pub(crate) fn has_entry(&self, token_id: &str, now: Instant) -> bool {
        self.update(token_id, now, |shown| {
            shown.all = shown.all.saturating_add(1);
            shown.all <= EXCHANGES_PER_MINUTE
        })
    }

    /// Counts an exchange beyond those that is good all the same; says how long to wait when that is one too many as well.
    pub(crate) fn has_entry_if_good(&self, token_id: &str, now: Instant) -> Result<(), Duration> {
        self.update(token_id, now, |shown| {
            shown.good = shown.good.saturating_add(1);
            if shown.good <= EXCHANGES_PER_MINUTE {
                Ok(())
            } else {
                Err((shown.since + WINDOW).saturating_duration_since(now))
            }
        })
    }

    /// Whether an alarm beyond those is the first of them in the minute: that one has its entry.
    pub(crate) fn is_first_alarm(&self, token_id: &str, now: Instant) -> bool {
        self.update(token_id, now, |shown| !std::mem::replace(&mut shown.alarmed, true))
    }

    fn update<T>(&self, token_id: &str, now: Instant, change: impl FnOnce(&mut Shown) -> T) -> T {
        // No invariant spans a panic here: each count is changed whole.
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !tokens.contains_key(token_id) && tokens.len() >= MAX_TRACKED {
            tokens.retain(|_, shown| !shown.is_over(now));
            if tokens.len() >= MAX_TRACKED {
                tokens.clear();
            }
        }
        let shown = tokens.entry(token_id.to_owned()).or_insert_with(|| Shown::new(now));
        if shown.is_over(now) {
            *shown = Shown::new(now);
        }
        change(shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_has_its_own_minute() {
        let (tally, now) = (TokenTally::default(), Instant::now());
        let passed = |id: &str, at| (0..2 * EXCHANGES_PER_MINUTE).filter(|_| tally.has_entry(id, at)).count();
        assert_eq!((passed("a", now), passed("b", now)), (2000, 2000));
        assert_eq!(passed("a", now + Duration::from_millis(59_999)), 0);
        assert!(tally.is_first_alarm("a", now) && !tally.is_first_alarm("a", now) && tally.is_first_alarm("b", now));
        for _ in 0..EXCHANGES_PER_MINUTE {
            tally.has_entry_if_good("a", now).unwrap();
        }
        let wait = tally.has_entry_if_good("a", now + Duration::from_secs(20)).unwrap_err();
        assert_eq!(wait, Duration::from_secs(40));
        let later = now + WINDOW;
        assert_eq!(passed("a", later), 2000);
        assert!(tally.is_first_alarm("a", later) && tally.has_entry_if_good("a", later).is_ok());
    }

    #[test]
    fn memory_is_bounded_and_a_token_that_is_shown_is_remembered_before_a_quiet_one() {
        let (tally, now) = (TokenTally::default(), Instant::now());
        for number in 0..MAX_TRACKED - 1 {
            tally.has_entry(&format!("quiet{number}"), now);
        }
        let later = now + Duration::from_secs(59);
        assert!(tally.is_first_alarm("loud", later));
        assert!(tally.has_entry("other", now + WINDOW));
        assert!(!tally.is_first_alarm("loud", now + WINDOW));
        assert_eq!(tally.0.lock().unwrap().len(), 2);
        for number in 0..3 * MAX_TRACKED {
            tally.has_entry(&format!("crowd{number}"), later);
        }
        assert!(tally.0.lock().unwrap().len() <= MAX_TRACKED);
    }
}
