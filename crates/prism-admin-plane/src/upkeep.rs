//! What the server does on its audit log by itself: it signs what it grew by, and removes what is past its time.

use std::sync::Arc;

use prism_rpc::shutdown::Shutdown;
use prism_store::{AuditSettings, AuditUpkeep};
use tokio::time::MissedTickBehavior;

use crate::door::Door;

/// Runs until the end is announced. What fails is tried again with the next turn.
pub(crate) async fn tend_audit_log(door: Arc<Door>, settings: AuditSettings, until: Shutdown) {
    let store = &door.services.store;
    let mut upkeep = AuditUpkeep::new(settings);
    let mut turns = tokio::time::interval(upkeep.interval());
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = turns.tick() => {}
            () = until.announced() => return,
        }
        if let Err(failed) = door.unrecorded.record(store).await {
            tracing::warn!(reason = failed.reason(), "reads without an entry wait until the audit log can be written");
        }
        if let Err(failed) = door.record_suppressed(false).await {
            tracing::warn!(reason = failed.reason(), "refused credentials wait until the audit log can be written");
        }
        match upkeep.run(store).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "entries past their time were removed from the audit log"),
            Err(failed) => {
                tracing::error!(reason = failed.reason(), cause = ?failed.cause(), "the audit log was neither signed nor cut");
            }
        }
    }
}
