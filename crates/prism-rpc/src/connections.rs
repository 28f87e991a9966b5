//! The open connections of a listener: how many there are, and which of them stand on which client certificate, so that
//! those of a revoked one can be cut at once.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prism_core::source::Place;
use rustls_pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

/// The open connections of one listener; a clone is the same set. It never holds more entries than the listener has
/// connections, which are bounded by `ServeOptions::places`.
#[derive(Clone, Default)]
pub struct Connections(Arc<Inner>);

#[derive(Default)]
struct Inner {
    open: AtomicUsize,
    /// By the fingerprint of the leaf.
    certified: Mutex<HashMap<Arc<str>, Arc<Group>>>,
}

/// The connections that stand on one certificate.
struct Group {
    chain: Arc<[CertificateDer<'static>]>,
    cut: CancellationToken,
    /// Changed under the lock of the map only.
    members: AtomicUsize,
}

impl Connections {
    /// How many connections are open, with a certificate or without.
    pub fn open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Closes every connection whose client showed the certificate with this fingerprint (SHA-256 of its DER encoding in
    /// lower-case hexadecimal) at once, streams included. Returns how many there were. The next connection with the same
    /// certificate is not affected: whether it is trusted is decided call by call.
    pub fn cut(&self, fingerprint: &str) -> usize {
        let Some(group) = self.0.certified().remove(fingerprint) else { return 0 };
        group.cut.cancel();
        group.members.load(Ordering::Relaxed)
    }

    /// Closes every connection whose chain of certificates, leaf first, `condemned` says so of, as [`Connections::cut`] does.
    pub fn cut_where(&self, condemned: impl Fn(&[CertificateDer<'static>]) -> bool) -> usize {
        // Judged without the lock: to verify a chain takes its time.
        let groups: Vec<_> =
            self.0.certified().iter().map(|(fingerprint, group)| (fingerprint.clone(), group.chain.clone())).collect();
        let condemned = groups.into_iter().filter(|(_, chain)| condemned(chain));
        condemned.map(|(fingerprint, _)| self.cut(&fingerprint)).sum()
    }

    /// Counts a connection and holds its place.
    pub(crate) fn enter(&self, place: Place) -> Open {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        Open { connections: self.clone(), _place: place }
    }

    /// Notes that a connection stands on a certificate.
    pub(crate) fn certify(&self, fingerprint: &Arc<str>, chain: &Arc<[CertificateDer<'static>]>) -> Certified {
        let mut certified = self.0.certified();
        let new =
            || Arc::new(Group { chain: chain.clone(), cut: CancellationToken::new(), members: AtomicUsize::new(0) });
        let group = certified.entry(fingerprint.clone()).or_insert_with(new).clone();
        group.members.fetch_add(1, Ordering::Relaxed);
        Certified { connections: self.clone(), fingerprint: fingerprint.clone(), group }
    }
}

impl Inner {
    fn certified(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Group>>> {
        self.certified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("open", &self.open()).finish_non_exhaustive()
    }
}

/// An open connection.
pub(crate) struct Open {
    connections: Connections,
    _place: Place,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connections.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open connection that stands on a certificate.
pub(crate) struct Certified {
    connections: Connections,
    fingerprint: Arc<str>,
    group: Arc<Group>,
}

impl Certified {
    /// Returns when the connection is to be cut.
    pub(crate) async fn cut(&self) {
        self.group.cut.cancelled().await;
    }
}

impl Drop for Certified {
    fn drop(&mut self) {
        let mut certified = self.connections.0.certified();
        let last = self.group.members.fetch_sub(1, Ordering::Relaxed) == 1;
        // After a cut the entry may be that of later connections.
        if last && certified.get(&self.fingerprint).is_some_and(|group| Arc::ptr_eq(group, &self.group)) {
            certified.remove(&self.fingerprint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_those_of_the_certificate_are_cut_and_nothing_is_left_behind() {
        let connections = Connections::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let chain = |byte: u8| -> Arc<[CertificateDer<'static>]> { Arc::from([CertificateDer::from(vec![byte])]) };
        let certify = |fingerprint: &Arc<str>| connections.certify(fingerprint, &chain(fingerprint.as_bytes()[0]));
        let (first, second, other) = (certify(&a), certify(&a), certify(&b));
        assert_eq!(connections.cut_where(|chain| chain[0].as_ref() == b"c"), 0);
        assert_eq!(connections.cut("A"), 0);
        assert_eq!(connections.cut("a"), 2);
        assert_eq!(connections.cut("a"), 0);
        first.cut().await;
        second.cut().await;
        assert!(!other.group.cut.is_cancelled());

        let later = certify(&a);
        drop((first, second));
        assert!(!later.group.cut.is_cancelled());
        assert_eq!(connections.cut_where(|chain| chain[0].as_ref() == b"a"), 1);
        drop((later, other));
        assert!(connections.0.certified().is_empty());
    }
}
