//! The operations of the admin plane, one file per resource.

pub mod access;
pub mod api_key;
pub mod audit;
pub mod backend;
pub mod client_key;
pub mod config;
pub mod drain;
pub mod later;
pub mod maintenance;
pub mod metrics;
pub mod namespace;
pub mod session;
