//! How often something may be.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So many at once, and one more after each period.
#[derive(Debug)]
pub struct Allowance {
    most: u32,
    period: Duration,
    state: Mutex<(u32, Instant)>,
}

impl Allowance {
    /// With all of `most` left.
    pub fn new((most, period): (u32, Duration)) -> Self {
        Self { most, period, state: Mutex::new((most, Instant::now())) }
    }

    /// Takes one; `false` when there is none.
    pub fn take(&self) -> bool {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = &mut *state;
        let periods = now.saturating_duration_since(*since).as_millis() / self.period.as_millis().max(1);
        let more = u32::try_from(periods).unwrap_or(u32::MAX);
        if more > 0 {
            *left = left.saturating_add(more).min(self.most);
            *since = if *left == self.most { now } else { *since + self.period * more };
        }
        let has = *left > 0;
        *left = left.saturating_sub(1);
        has
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_at_once_and_one_more_after_each_period() {
        let allowance = Allowance::new((3, Duration::from_mins(1)));
        let taken = |times: usize| (0..times).filter(|_| allowance.take()).count();
        assert_eq!(taken(5), 3);
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(taken(1), 0);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(taken(2), 1);
        tokio::time::advance(Duration::from_hours(1)).await;
        assert_eq!(taken(5), 3);
    }
}
