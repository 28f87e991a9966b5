//! A value that tasks wait for. Unlike tokio's `watch` it wakes them in the order in which they began to wait, so that a
//! simulation runs the same way each time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A value, and who waits for it to change.
pub struct Signal<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Clone> Signal<T> {
    /// With a first value.
    pub fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value now.
    pub fn get(&self) -> T {
        self.lock().clone()
    }

    /// Another value; returns the one before.
    pub fn set(&self, value: T) -> T {
        self.update(|current| std::mem::replace(current, value))
    }

    /// Changes the value.
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.lock());
        self.changed.notify_waiters();
        result
    }

    /// Waits until the value is `wanted`, and returns it.
    pub async fn wait_for(&self, wanted: impl Fn(&T) -> bool) -> T {
        loop {
            // Before the look, so that no change falls between the two.
            let changed = self.changed.notified();
            let value = self.get();
            if wanted(&value) {
                return value;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn whoever_waits_sees_the_value_that_comes() {
        let signal = Arc::new(Signal::new(0));
        let waiting = Arc::clone(&signal);
        let task = tokio::spawn(async move { waiting.wait_for(|value| *value >= 2).await });
        tokio::task::yield_now().await;
        assert_eq!(signal.set(1), 0);
        tokio::task::yield_now().await;
        assert!(!task.is_finished());
        signal.update(|value| *value += 1);
        assert_eq!(task.await.unwrap(), 2);
        assert_eq!(signal.wait_for(|value| *value == 2).await, 2);
    }
}
