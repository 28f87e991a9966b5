//! The domain of Prism: names, secrets, permissions, sessions, configs, limits, errors, and the traits where the two planes
//! meet. No input or output, no transport, no database.

pub mod access;
pub mod clock;
pub mod config;
pub mod control;
pub mod error;
pub mod limits;
pub mod name;
pub mod nodes;
pub mod page;
pub mod permission;
pub mod rate;
pub mod secret;
pub mod session;
pub mod source;
pub mod storage;
pub mod subject;

pub use clock::{Clock, UnixMillis};
pub use error::{Error, Kind, Result};
pub use name::{ConfigName, InstanceName, NamespaceName, NodeId, RoleName};
