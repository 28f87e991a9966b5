//! The end of a listener in two steps: an announcement, after which running requests finish, and a deadline.

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Announces the end; dropping it announces nothing.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<Option<Instant>>);

/// Tells its holders of the announcement and of the deadline.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<Option<Instant>>);

impl Shutdown {
    /// A trigger and what it triggers.
    pub fn new() -> (ShutdownTrigger, Self) {
        let (sender, receiver) = watch::channel(None);
        (ShutdownTrigger(sender), Self(receiver))
    }

    /// Returns once the end is announced.
    pub async fn announced(&self) {
        if self.0.clone().wait_for(Option::is_some).await.is_err() {
            // Without a trigger nobody can announce it any more.
            std::future::pending::<()>().await;
        }
    }

    /// Returns once the deadline of an announced end has passed.
    pub async fn deadline_passed(&self) {
        self.announced().await;
        let mut deadline = self.0.clone();
        loop {
            let Some(at) = *deadline.borrow_and_update() else { return };
            tokio::select! {
                () = sleep_until(at) => return,
                // `now` may bring the deadline forward.
                changed = deadline.changed() => if changed.is_err() {
                    return sleep_until(at).await;
                },
            }
        }
    }

    /// Whether the end is announced.
    pub fn is_announced(&self) -> bool {
        self.0.borrow().is_some()
    }
}

impl ShutdownTrigger {
    /// Announces the end; what runs then may go on until `deadline`. A second announcement can only bring it forward.
    pub fn announce(&self, deadline: Instant) {
        self.0.send_if_modified(|current| {
            let earlier = current.is_none_or(|at| deadline < at);
            if earlier {
                *current = Some(deadline);
            }
            earlier
        });
    }

    /// Announces the end with a deadline that has passed already.
    pub fn now(&self) {
        self.announce(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_deadline_follows_the_announcement_and_only_moves_forward() {
        let (trigger, shutdown) = Shutdown::new();
        assert!(!shutdown.is_announced());
        let start = Instant::now();
        trigger.announce(start + Duration::from_millis(50));
        shutdown.announced().await;
        assert!(shutdown.is_announced());
        trigger.announce(start + Duration::from_mins(1));
        shutdown.deadline_passed().await;
        assert!((50..10_000).contains(&start.elapsed().as_millis()));
    }

    #[tokio::test]
    async fn now_ends_a_wait_that_has_begun() {
        let (trigger, shutdown) = Shutdown::new();
        let start = Instant::now();
        trigger.announce(start + Duration::from_mins(1));
        let waiting = tokio::spawn(async move { shutdown.deadline_passed().await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        trigger.now();
        waiting.await.unwrap();
        assert!(start.elapsed().as_secs() < 10);
    }
}
