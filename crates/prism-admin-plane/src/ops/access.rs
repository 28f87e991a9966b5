//! WhoAmI, CanI: what any valid credential may ask about itself.

use prism_core::permission::{Grant, Reach};
use prism_core::{Error, Result};
use prism_proto::admin::v1 as wire;
use prism_store::Tx;

use crate::convert;
use crate::door::reach_of;
use crate::op::{Caller, Done, Op, Place, Services};

/// `WhoAmI`.
#[derive(Clone)]
pub struct WhoAmI;

impl Op for WhoAmI {
    type Request = wire::WhoAmIRequest;
    type Response = wire::WhoAmIResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/WhoAmI";

    fn resource(_: &Self::Request) -> String {
        String::new()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Visible)
    }

    fn parse(_: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self)
    }

    fn execute(self, _: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let grant = |grant: &Grant| wire::Grant {
            role: grant.role.clone(),
            namespace: grant.namespace.as_ref().map(ToString::to_string),
            permissions: grant.permissions.iter().map(ToString::to_string).collect(),
        };
        Ok(Done::new(wire::WhoAmIResponse {
            actor: caller.identity.actor.clone(),
            auth_method: caller.identity.auth_method.to_owned(),
            credential_id: caller.identity.credential_id.clone(),
            grants: caller.identity.grants.iter().map(grant).collect(),
        }))
    }
}

/// `CanI`.
#[derive(Clone)]
pub struct CanI {
    rpc: String,
    permission: String,
    namespace: Option<String>,
    is_list: bool,
}

/// RPCs that answer with what the caller may see, so that a grant in any namespace suffices.
const LISTS: &[&str] = &[
    "prism.admin.v1.AdminService/ListConfigs",
    "prism.admin.v1.AdminService/ListSessions",
    "prism.admin.v1.AdminService/ListNamespaces",
    "prism.admin.v1.AdminService/ListBackends",
    "prism.admin.v1.AdminService/GetBackendStatus",
    "prism.admin.v1.AdminService/GetMetrics",
    "prism.admin.v1.AdminService/GetMaintenanceStatus",
    "prism.admin.v1.AdminService/GetAuditLog",
    "prism.admin.v1.AccessService/ListApiKeys",
    "prism.admin.v1.AccessService/ListClientKeys",
];

/// RPCs that concern the whole installation, whatever namespace they name.
const INSTALLATION: &[&str] = &["prism.admin.v1.AdminService/CreateNamespace"];

impl Op for CanI {
    type Request = wire::CanIRequest;
    type Response = wire::CanIResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/CanI";

    fn resource(_: &Self::Request) -> String {
        String::new()
    }

    fn namespace(request: &Self::Request) -> String {
        request.namespace.clone().unwrap_or_default()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Visible)
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let rpc = request.rpc.strip_prefix('/').unwrap_or(&request.rpc).to_owned();
        let rule = services
            .table
            .rule(&format!("/{rpc}"))
            .filter(|rule| rule.audit != prism_proto::rules::AuditClass::None)
            .ok_or_else(|| {
                Error::invalid(
                    "rpc",
                    "is not an RPC of the admin plane, such as prism.admin.v1.AdminService/CreateConfig",
                )
            });
        convert::all_of([convert::outcome(&rule), convert::namespace_filter(request.namespace.as_deref())])?;
        let rule = rule?;
        let is_list = LISTS.contains(&rpc.as_str());
        Ok(Self { permission: rule.permission.clone(), rpc, namespace: request.namespace, is_list })
    }

    fn execute(self, _: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let (allowed, reason) = match self.permission.as_str() {
            "none" => (true, "needs no credential".to_owned()),
            // A node's own certificate, which no operator holds.
            "node:self" => (false, "is for a node's own certificate".to_owned()),
            permission => {
                let reach = reach_of(&caller.identity, permission)?;
                // Whom a namespace belongs to cannot make another one, whatever its name.
                let wanted = self.namespace.as_deref().filter(|_| !INSTALLATION.contains(&self.rpc.as_str()));
                let allowed = reach.includes(wanted) || (self.is_list && wanted.is_none() && reach != Reach::Nowhere);
                let place =
                    wanted.map_or_else(|| "the whole installation".to_owned(), |name| format!("namespace {name}"));
                (
                    allowed,
                    if allowed {
                        String::new()
                    } else {
                        format!("your grants do not include {permission} for {place}")
                    },
                )
            }
        };
        let done = Done::new(wire::CanIResponse { allowed, permission: self.permission, reason });
        Ok(done.detail("rpc", self.rpc).detail("allowed", allowed))
    }
}
