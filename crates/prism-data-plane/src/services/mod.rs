//! One file per service. Each call passes the gate first; then its fields are checked, and the driver is called.

pub mod config;
pub mod key_value;
pub mod pub_sub;
pub mod queue;
pub mod reader;
pub mod session;
pub mod transact;
mod transaction;

use prism_core::Error;

/// Largest page or listing, in bytes: half of what gRPC clients accept by default, so that a single larger item still fits.
const PAGE_BYTES: usize = 2 * 1024 * 1024;

/// A driver opened another pattern than the config's.
fn wrong_route() -> Error {
    Error::internal("the session's route is of another pattern than its config")
}
