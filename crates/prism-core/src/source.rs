//! Where callers come from, and how many places each may hold.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An IPv4 address, or the /64 of an IPv6 address: whoever has one address of it has them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The address.
    V4(u32),
    /// Its upper half.
    V6(u64),
}

impl Source {
    /// The source of an address; an IPv4 address in the form of IPv6 is what it is.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((Ipv6Addr::to_bits(address) >> 64) as u64),
        }
    }
}

/// How many places there are, and who may hold how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceBounds {
    /// All together.
    pub all: usize,
    /// Of one source.
    pub per_source: usize,
    /// Of all, those that only callers on the machine itself may hold: an operator on the box finds one, whoever presses from
    /// elsewhere.
    pub kept_for_loopback: usize,
}

impl PlaceBounds {
    /// As many as there are, for anyone.
    pub fn shared(all: usize) -> Self {
        Self { all, per_source: all, kept_for_loopback: 0 }
    }
}

/// Bounded places, shared out by source. A clone shares the same. It remembers no more sources than there are places.
#[derive(Clone)]
pub struct Places {
    bounds: PlaceBounds,
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    all: usize,
    from_elsewhere: usize,
    by_source: HashMap<Source, usize>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// All that this caller could have are taken.
    All,
    /// The caller's source holds as many as it may.
    Source,
}

impl Places {
    /// Places that nobody holds yet.
    pub fn new(bounds: PlaceBounds) -> Self {
        Self { bounds, held: Arc::default() }
    }

    /// The bounds.
    pub fn bounds(&self) -> PlaceBounds {
        self.bounds
    }

    /// A place for a caller from `address`, until it is dropped.
    pub fn take(&self, address: IpAddr) -> Result<Place, Full> {
        let (source, loopback) = (Source::of(address), address.to_canonical().is_loopback());
        let PlaceBounds { all, per_source, kept_for_loopback } = self.bounds;
        let mut held = self.held();
        let own = held.by_source.get(&source).copied().unwrap_or(0);
        if own >= per_source {
            return Err(Full::Source);
        }
        if held.all >= all || (!loopback && held.from_elsewhere >= all.saturating_sub(kept_for_loopback)) {
            return Err(Full::All);
        }
        held.all += 1;
        held.from_elsewhere += usize::from(!loopback);
        held.by_source.insert(source, own + 1);
        Ok(Place { places: self.clone(), source, loopback })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Places").field("bounds", &self.bounds).finish_non_exhaustive()
    }
}

/// A place that is held; given back when dropped.
#[derive(Debug)]
pub struct Place {
    places: Places,
    source: Source,
    loopback: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.held();
        held.all = held.all.saturating_sub(1);
        held.from_elsewhere = held.from_elsewhere.saturating_sub(usize::from(!self.loopback));
        match held.by_source.get_mut(&self.source) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(held.by_source.remove(&self.source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn sources_are_addresses_or_networks() {
        assert_eq!(Source::of(at("192.0.2.1")), Source::of(at("::ffff:192.0.2.1")));
        assert_ne!(Source::of(at("192.0.2.1")), Source::of(at("192.0.2.2")));
        assert_eq!(Source::of(at("2001:db8:1:2::1")), Source::of(at("2001:db8:1:2:ffff::")));
        assert_ne!(Source::of(at("2001:db8:1:2::1")), Source::of(at("2001:db8:1:3::1")));
    }

    #[test]
    fn one_source_holds_its_share_and_no_more() {
        let places = Places::new(PlaceBounds { all: 10, per_source: 4, kept_for_loopback: 2 });
        let take = |address: &str| places.take(at(address));
        let first: Vec<_> = (0..4).map(|_| take("192.0.2.1").unwrap()).collect();
        assert_eq!(take("192.0.2.1").unwrap_err(), Full::Source);
        assert_eq!(take("::ffff:192.0.2.1").unwrap_err(), Full::Source);
        let others: Vec<_> =
            ["2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.2"].map(|from| take(from).unwrap()).into();
        // Whoever presses from elsewhere, and with however many addresses: the rest is for the box.
        assert_eq!(take("192.0.2.3").unwrap_err(), Full::All);
        let own = [take("127.0.0.1").unwrap(), take("::1").unwrap()];
        assert_eq!((take("127.0.0.1").unwrap_err(), take("192.0.2.3").unwrap_err()), (Full::All, Full::All));
        drop(first);
        let from_the_box: Vec<_> = (0..3).map(|_| take("127.0.0.1").unwrap()).collect();
        assert_eq!(take("127.0.0.1").unwrap_err(), Full::Source, "a source like any other");
        drop((others, own, from_the_box));
        let held = places.held();
        assert!(held.all == 0 && held.from_elsewhere == 0 && held.by_source.is_empty());
    }

    #[test]
    fn without_shares_only_the_number_counts() {
        let places = Places::new(PlaceBounds::shared(2));
        let held = [places.take(at("192.0.2.1")).unwrap(), places.take(at("192.0.2.1")).unwrap()];
        assert_eq!(places.take(at("192.0.2.1")).unwrap_err(), Full::Source);
        assert_eq!(places.take(at("127.0.0.1")).unwrap_err(), Full::All);
        drop(held);
        assert!(places.take(at("127.0.0.1")).is_ok());
    }
}
