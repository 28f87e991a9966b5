//! The operations of the admin plane, one file per resource.

pub mod access;
pub mod api_key;
pub mod audit;
pub mod authority;
pub mod backend;
pub mod binding;
pub mod bootstrap;
pub mod certificate;
pub mod checkpoint;
pub mod client_binding;
pub mod client_key;
pub mod config;
pub mod drain;
mod held;
pub mod join_token;
pub mod lineage;
pub mod link;
pub mod maintenance;
pub mod metrics;
pub mod namespace;
pub mod node;
mod permissions;
pub mod role;
mod scopes;
pub mod session;

use prism_core::secret::SecretId;

/// A resource of the audit log named by its public id. Whoever mixes the two up sends the secret in place of the id, and the log is
/// for more eyes than that: what is no id is not repeated.
fn named(kind: &str, id: &str) -> String {
    match SecretId::parse(id) {
        Some(id) => format!("{kind}:{id}"),
        None => kind.to_owned(),
    }
}
