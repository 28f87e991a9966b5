//! Drivers: the systems that hold the users' data, behind one trait per access pattern, and one conformance suite that runs on
//! all of them.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod driver;
pub mod memory;
pub mod sqlite;
