//! How many admin calls may be under way: all together, and of one credential, so that nobody can take all places.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prism_core::{Error, Kind};

/// Most admin calls under way; more are refused. A stream counts until it begins.
pub(crate) const MAX_CALLS: usize = 512;
/// And most of one credential.
pub(crate) const MAX_CALLS_PER_CREDENTIAL: usize = 128;

/// The calls under way; a clone counts the same.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    all: usize,
    by_credential: HashMap<String, usize>,
}

impl Calls {
    /// Counts a call until the place is dropped; RESOURCE_EXHAUSTED `TOO_MANY_CALLS` when there are too many.
    pub(crate) fn begin(&self, credential: &str) -> Result<Place, Error> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.by_credential.get(credential).copied().unwrap_or(0);
        if own >= MAX_CALLS_PER_CREDENTIAL {
            return Err(too_many(format!(
                "{MAX_CALLS_PER_CREDENTIAL} calls of this credential are under way, the most that may be; retry"
            )));
        }
        if counts.all >= MAX_CALLS {
            return Err(too_many(format!("{MAX_CALLS} admin calls are under way, the most that may be; retry")));
        }
        counts.all += 1;
        counts.by_credential.insert(credential.to_owned(), own + 1);
        Ok(Place { calls: self.clone(), credential: credential.to_owned() })
    }
}

fn too_many(message: String) -> Error {
    Error::new(Kind::ResourceExhausted, "TOO_MANY_CALLS", message).retry_after(std::time::Duration::from_secs(1))
}

/// The place of a call under way.
pub(crate) struct Place {
    calls: Calls,
    credential: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.calls.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        let calls = Calls::default();
        let own: Vec<_> = (0..MAX_CALLS_PER_CREDENTIAL).map(|_| calls.begin("a").ok().unwrap()).collect();
        assert_eq!(calls.begin("a").err().unwrap().reason(), "TOO_MANY_CALLS");
        let others: Vec<_> = (MAX_CALLS_PER_CREDENTIAL..MAX_CALLS)
            .map(|number| calls.begin(&number.to_string()).ok().unwrap())
            .collect();
        assert_eq!(calls.begin("b").err().unwrap().reason(), "TOO_MANY_CALLS");
        drop(others);
        assert!(calls.begin("b").is_ok());
        drop(own);
        let counts = calls.0.lock().unwrap();
        assert!(counts.all == 0 && counts.by_credential.is_empty());
    }
}
