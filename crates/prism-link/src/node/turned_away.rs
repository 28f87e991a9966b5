//! What a node makes of a controller that does not take it.

use std::time::Duration;

use prism_core::Error;
use tokio::time::Instant;

use super::Shared;
use crate::bounds::{REFUSAL_EVERY, TWIN_PAUSE};
use crate::fleet::ALREADY_CONNECTED;

/// What was said last about why there is no link.
#[derive(Default)]
pub struct Said(Option<(String, Instant)>);

impl Said {
    /// Whether the log has to say why there is no link: for the first time, when it is something else, and now and then.
    pub fn is_news(&mut self, ended: &Error, was_connected: bool) -> bool {
        let known = self.0.as_ref().is_some_and(|(said, at)| said == ended.reason() && at.elapsed() < REFUSAL_EVERY);
        if known && !was_connected {
            return false;
        }
        self.0 = Some((ended.reason().to_owned(), Instant::now()));
        true
    }
}

impl Shared {
    /// Takes note of a controller that has another process of this node; returns how long to wait before it is asked again.
    pub(super) fn turned_away(&self, ended: &Error) -> Option<Duration> {
        if ended.reason() != ALREADY_CONNECTED {
            return None;
        }
        self.is_twin.set(true);
        tracing::error!(
            node.id = %self.options.node,
            serving = self.attached_now().is_some(),
            "another process has this node's identity and is linked; this one is not, and does not begin to serve"
        );
        Some(TWIN_PAUSE)
    }
}
