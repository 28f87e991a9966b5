//! How many admin calls may be under way and how many streams open: all together, and of one credential, so that nobody can take
//! all places.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prism_core::error::QuotaViolation;
use prism_core::{Error, Kind};

/// Most admin calls under way; more are refused. A stream counts here until it begins.
pub(crate) const MAX_CALLS: usize = 1024;
/// And most of one credential.
pub(crate) const MAX_CALLS_PER_CREDENTIAL: usize = 256;
/// Most streams of the audit log that are open, whether they follow or are read slowly.
pub(crate) const MAX_STREAMS: usize = 1024;
/// And most of one credential.
pub(crate) const MAX_STREAMS_PER_CREDENTIAL: usize = 64;

/// Places that are held for a time; a clone counts the same.
#[derive(Clone)]
pub(crate) struct Calls {
    bounds: Bounds,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Clone, Copy)]
enum Bounds {
    UnderWay,
    Streams,
}

impl Bounds {
    /// Of all, and of one credential.
    fn most(self) -> (usize, usize) {
        match self {
            Self::UnderWay => (MAX_CALLS, MAX_CALLS_PER_CREDENTIAL),
            Self::Streams => (MAX_STREAMS, MAX_STREAMS_PER_CREDENTIAL),
        }
    }

    /// What is said when all places are taken, or all of `credential`.
    fn exceeded(self, credential: Option<&str>) -> Error {
        let (all, own) = self.most();
        let refused = match (self, credential) {
            (Self::UnderWay, Some(_)) => {
                too_many(format!("{own} calls of this credential are under way, the most that may be; retry"))
            }
            (Self::UnderWay, None) => too_many(format!("{all} admin calls are under way, the most that may be; retry")),
            (Self::Streams, Some(credential)) => Error::quota(QuotaViolation {
                subject: format!("credential:{credential}"),
                quota: "audit_streams",
                limit: own as i64,
                usage: own as i64,
            }),
            (Self::Streams, None) => {
                too_many(format!("{all} streams of the audit log are open, the most that may be; retry"))
            }
        };
        refused.retry_after(Duration::from_secs(1))
    }
}

#[derive(Default)]
struct Counts {
    all: usize,
    by_credential: HashMap<String, usize>,
}

impl Calls {
    /// Calls under way.
    pub(crate) fn under_way() -> Self {
        Self { bounds: Bounds::UnderWay, counts: Arc::default() }
    }

    /// Open streams.
    pub(crate) fn streams() -> Self {
        Self { bounds: Bounds::Streams, counts: Arc::default() }
    }

    /// Counts one until the place is dropped. RESOURCE_EXHAUSTED when there are too many: `QUOTA_EXCEEDED` for the streams of one
    /// credential, else `TOO_MANY_CALLS`.
    pub(crate) fn begin(&self, credential: &str) -> Result<Place, Error> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let (most, most_own) = self.bounds.most();
        if counts.by_credential.get(credential).is_some_and(|own| *own >= most_own) {
            return Err(self.bounds.exceeded(Some(credential)));
        }
        if counts.all >= most {
            return Err(self.bounds.exceeded(None));
        }
        counts.all += 1;
        match counts.by_credential.get_mut(credential) {
            Some(own) => *own += 1,
            None => drop(counts.by_credential.insert(credential.to_owned(), 1)),
        }
        Ok(Place { calls: self.clone(), credential: credential.to_owned() })
    }
}

fn too_many(message: String) -> Error {
    Error::new(Kind::ResourceExhausted, "TOO_MANY_CALLS", message)
}

/// The place of a call or stream.
pub(crate) struct Place {
    calls: Calls,
    credential: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.calls.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        match counts.by_credential.get_mut(&self.credential) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(counts.by_credential.remove(&self.credential)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_credential_cannot_take_all_places_and_places_come_back() {
        for (calls, reason) in [(Calls::under_way(), "TOO_MANY_CALLS"), (Calls::streams(), "QUOTA_EXCEEDED")] {
            let (all, most) = calls.bounds.most();
            let own: Vec<_> = (0..most).map(|_| calls.begin("a").ok().unwrap()).collect();
            let refused = calls.begin("a").err().unwrap();
            assert_eq!((refused.reason(), refused.kind()), (reason, Kind::ResourceExhausted));
            let others: Vec<_> = (most..all).map(|number| calls.begin(&number.to_string()).ok().unwrap()).collect();
            assert_eq!(calls.begin("b").err().unwrap().reason(), "TOO_MANY_CALLS");
            drop(others);
            assert!(calls.begin("b").is_ok());
            drop(own);
            let counts = calls.counts.lock().unwrap();
            assert!(counts.all == 0 && counts.by_credential.is_empty());
        }
    }
}
