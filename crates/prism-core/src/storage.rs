//! Accounting of stored bytes against `max_storage_bytes`.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::error::{Error, QuotaViolation, Result};
use crate::name::NamespaceName;

/// Bytes stored for one namespace on one node, over all its backends, and the limit on them.
#[derive(Debug)]
pub struct StorageMeter {
    namespace: NamespaceName,
    used: AtomicI64,
    /// 0 = unlimited.
    limit: AtomicI64,
}

impl StorageMeter {
    /// A meter that stands at 0, without a limit.
    pub fn new(namespace: NamespaceName) -> Arc<Self> {
        Arc::new(Self { namespace, used: AtomicI64::new(0), limit: AtomicI64::new(0) })
    }

    /// Sets `max_storage_bytes`; 0 = unlimited.
    pub fn set_limit(&self, limit: i64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Bytes in use.
    pub fn used(&self) -> i64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Adds `bytes` without asking the limit: what a driver found stored when it opened, or what a delete freed (negative).
    pub fn adjust(&self, bytes: i64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Charges a growth of `bytes` before it is durable.
    ///
    /// RESOURCE_EXHAUSTED when it would pass the limit. The charge is taken back when the guard is dropped before
    /// [`Charge::keep`], so a write that fails to commit costs nothing.
    pub fn charge(self: &Arc<Self>, bytes: i64) -> Result<Charge> {
        let limit = self.limit.load(Ordering::Relaxed);
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        if bytes > 0 && limit > 0 && before.saturating_add(bytes) > limit {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Error::quota(QuotaViolation {
                subject: format!("namespace:{}", self.namespace),
                quota: "max_storage_bytes",
                limit,
                usage: before,
            })
            .with("requested_bytes", bytes.to_string()));
        }
        Ok(Charge { meter: Arc::clone(self), bytes })
    }
}

/// A charge that is taken back unless it is kept.
#[derive(Debug)]
pub struct Charge {
    meter: Arc<StorageMeter>,
    bytes: i64,
}

impl Charge {
    /// The write is durable: the charge stands. Returns its bytes.
    pub fn keep(mut self) -> i64 {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.bytes != 0 {
            self.meter.used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_is_taken_back_unless_kept() {
        let meter = StorageMeter::new(NamespaceName::parse("n", "a").unwrap());
        meter.set_limit(100);
        meter.charge(60).unwrap().keep();
        drop(meter.charge(40).unwrap());
        assert_eq!(meter.used(), 60);
        let refused = meter.charge(41).unwrap_err();
        let quota = refused.quota_violation().unwrap();
        assert_eq!((quota.quota, quota.limit, quota.usage), ("max_storage_bytes", 100, 60));
        meter.charge(-60).unwrap().keep();
        assert_eq!(meter.used(), 0);
    }
}
