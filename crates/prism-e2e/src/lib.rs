//! The harness of the end-to-end tests: starts the real `prism`, speaks to its real ports, and always ends it.
//!
//! The binaries are those of `PRISM_BIN` and `PRISM_ADMIN_BIN`, or the ones that `cargo build` left beside the tests:
//!
//! ```text
//! cargo build --bin prism --bin prism-admin && cargo test -p prism-e2e
//! ```

pub mod admin;
pub mod audit;
pub mod binaries;
pub mod books;
pub mod cases;
pub mod certificates;
pub mod changes;
pub mod checkpoints;
pub mod cli;
pub mod cluster;
pub mod data;
pub mod dial;
pub mod disk;
pub mod enrol;
pub mod failure;
pub mod grants;
pub mod http1;
pub mod issuer;
pub mod keys;
pub mod machines;
pub mod matrix;
pub mod node;
pub mod oidc;
pub mod operations;
pub mod raw;
pub mod rest;
pub mod rows;
pub mod server;
pub mod site;
pub mod transports;
pub mod wait;
pub mod walk;

pub use admin::{Admin, Headers};
pub use cli::Cli;
pub use data::Session;
pub use failure::{Failure, Refused};
pub use server::{Options, Prism, Shared};
pub use site::{Pattern, Site};
