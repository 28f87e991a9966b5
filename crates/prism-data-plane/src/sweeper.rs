//! What has to be done from time to time: ending sessions whose time is up, reports, and ends that could not be saved.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prism_core::limits::SessionPolicy;
use tokio_util::sync::CancellationToken;

use crate::cause::EndCause;
use crate::plane::Plane;

/// How often sessions that changed are reported.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// The longest and the shortest pause of the sweeper.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Sweeps until `stop`.
pub async fn sweep(plane: Arc<Plane>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(pause(&plane.gate.policy));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reported = Instant::now();
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        end_expired(&plane).await;
        plane.save_ends().await;
        plane.gate.sessions.forget_early();
        if reported.elapsed() >= REPORT_EVERY {
            plane.report().await;
            reported = Instant::now();
        }
    }
}

/// Follows the control plane's snapshots until `stop`.
pub async fn follow(plane: Arc<Plane>, stop: CancellationToken) {
    while stop.run_until_cancelled(plane.gate.namespaces.wait()).await == Some(true) {
        plane.gate.follow();
    }
}

async fn end_expired(plane: &Arc<Plane>) {
    let gate = &plane.gate;
    let now = gate.clock.now();
    let mut over = gate.sessions.all();
    over.retain(|session| session.is_over(&gate.policy, now));
    plane.end_all(over, &EndCause::Expired).await;
}

fn pause(policy: &SessionPolicy) -> Duration {
    let smallest = policy.idle_after.min(policy.expiring_within).min(policy.idle_timeout).min(policy.max_age);
    (smallest / 4).clamp(PAUSE.0, PAUSE.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sweeper_is_quick_enough_for_the_shortest_life() {
        assert_eq!(pause(&SessionPolicy::default()), Duration::from_secs(1));
        let short = SessionPolicy { idle_timeout: Duration::from_millis(400), ..SessionPolicy::default() };
        assert_eq!(pause(&short), Duration::from_millis(100));
        let none = SessionPolicy { idle_timeout: Duration::ZERO, ..SessionPolicy::default() };
        assert_eq!(pause(&none), Duration::from_millis(10));
    }
}
