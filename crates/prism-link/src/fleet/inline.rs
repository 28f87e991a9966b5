//! Inline configs of admissions: proven here, whatever the node says that it has proven.

use std::sync::Arc;

use prism_core::config::{Catalog, Config, ConfigDraft};
use prism_core::control::NamespaceStatus;
use prism_core::session::AdmitRequest;
use prism_core::{Error, Kind, Result};

use super::Shared;

/// Where an inline config is in the request of a client.
const ROOT: &str = "inline_config";
/// The option that makes tables.
const SCHEMA: &str = "schema";

impl Shared {
    /// The config of a request without a name, held to the rules of one with a name: every field within its bounds, a namespace
    /// that exists, an instance that the node has.
    pub(super) fn inline_config(&self, catalog: &Catalog, request: &AdmitRequest) -> Result<Arc<Config>> {
        let claimed = &*request.config;
        let snapshot = self.options.control.snapshot().borrow().clone();
        let proven = ConfigDraft::from(claimed)
            .validate(ROOT, catalog, |name| snapshot.namespaces.contains_key(name))
            .map_err(Error::invalid_fields)?;
        // All else came through as it was.
        if proven.instance != claimed.instance {
            let message = format!("is the instance {}, and the node says {}", proven.instance, claimed.instance);
            return Err(Error::invalid(format!("{ROOT}.backend.options.instance"), message));
        }
        if proven.backend.options.contains_key(SCHEMA) {
            let name = &proven.namespace;
            let status = snapshot.namespaces.get(name).map(|namespace| namespace.status);
            if status == Some(NamespaceStatus::ReadOnly) {
                let message = format!("namespace {name} is read-only");
                return Err(Error::precondition("NAMESPACE_READ_ONLY", message).with("namespace", name.as_str()));
            }
            if !request.grant.write {
                let message = "the session's credential does not have the permission \"write\"";
                let error = Error::new(Kind::PermissionDenied, "PERMISSION_DENIED", message);
                return Err(error.with("permission", "write"));
            }
        }
        Ok(Arc::new(proven))
    }
}
