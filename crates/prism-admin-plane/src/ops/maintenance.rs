//! SetMaintenanceMode, GetMaintenanceStatus.

use prism_core::control::{DrainScope, Maintenance};
use prism_core::{Error, NamespaceName, Result, UnixMillis};
use prism_proto::admin::v1 as wire;
use prism_rpc::convert::{from_timestamp, timestamp};
use prism_store::Tx;
use serde_json::{Value, json};

use crate::convert;
use crate::op::{Caller, Done, Op, Place, Scope, Services};

fn status(tx: &Tx<'_>, scope: Option<&NamespaceName>, found: Option<&Maintenance>) -> Result<wire::MaintenanceStatus> {
    let sessions = tx.live_session_count(&DrainScope { namespace: scope.cloned(), node: None })?;
    Ok(wire::MaintenanceStatus {
        enabled: found.is_some(),
        message: found.map(|terms| terms.message.clone()).filter(|message| !message.is_empty()),
        started_at: found.map(|terms| timestamp(terms.started_at)),
        ends_at: found.and_then(|terms| terms.ends_at).map(timestamp),
        active_sessions: i32::try_from(sessions).unwrap_or(i32::MAX),
        namespace: scope.map(ToString::to_string),
        allow_reads: found.is_some_and(|terms| terms.allow_reads),
    })
}

/// The terms of maintenance, which is over when there are none.
fn state(terms: &Maintenance) -> Value {
    json!({
        "message": terms.message,
        "allow_reads": terms.allow_reads,
        "started_at_epoch_ms": terms.started_at,
        "ends_at_epoch_ms": terms.ends_at,
    })
}

fn parse_namespace(namespace: Option<&str>) -> Result<Option<NamespaceName>> {
    namespace.map(|name| NamespaceName::parse("namespace", name)).transpose()
}

fn require(tx: &Tx<'_>, namespace: Option<&NamespaceName>) -> Result<()> {
    match namespace {
        Some(name) if tx.namespace(name.as_str())?.is_none() => Err(Error::not_found(format!("namespace:{name}"))),
        _ => Ok(()),
    }
}

/// `SetMaintenanceMode`, for the gateway or one namespace.
#[derive(Clone)]
pub struct SetMaintenanceMode {
    enabled: bool,
    message: String,
    scheduled_end: Option<UnixMillis>,
    namespace: Option<NamespaceName>,
    allow_reads: bool,
}

impl Op for SetMaintenanceMode {
    type Request = wire::SetMaintenanceModeRequest;
    type Response = wire::SetMaintenanceModeResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/SetMaintenanceMode";
    const SCOPE: Scope = Scope::Namespace;

    fn resource(_: &Self::Request) -> String {
        "maintenance".to_owned()
    }

    fn namespace(request: &Self::Request) -> String {
        request.namespace.clone().unwrap_or_default()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::of(request.namespace.clone()))
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let namespace = parse_namespace(request.namespace.as_deref());
        let scheduled_end = request.scheduled_end.as_ref().map(|end| from_timestamp("scheduled_end", end)).transpose();
        let end = match &scheduled_end {
            Err(error) => Err(error.clone()),
            Ok(Some(_)) if !request.enabled => Err(Error::invalid("scheduled_end", "has a meaning only with enabled")),
            Ok(Some(end)) if *end <= services.now() => Err(Error::invalid("scheduled_end", "must be in the future")),
            Ok(_) => Ok(()),
        };
        let message = request.message.unwrap_or_default();
        convert::all_of([
            convert::description("message", &message),
            end,
            namespace.as_ref().map(|_| ()).map_err(Clone::clone),
        ])?;
        Ok(Self {
            enabled: request.enabled,
            message,
            scheduled_end: scheduled_end?,
            namespace: namespace?,
            allow_reads: request.allow_reads,
        })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        require(tx, self.namespace.as_ref())?;
        let scope = self.namespace.as_ref().map_or("", NamespaceName::as_str);
        let before = tx.maintenance()?.into_iter().find(|(found, _)| found == scope).map(|(_, terms)| state(&terms));
        let terms = if self.enabled {
            let terms = Maintenance {
                message: self.message.clone(),
                started_at: tx.now,
                ends_at: self.scheduled_end,
                allow_reads: self.allow_reads,
            };
            Some(tx.start_maintenance(self.namespace.as_ref(), terms)?)
        } else {
            tx.end_maintenance(self.namespace.as_ref())?;
            None
        };
        let status = status(tx, self.namespace.as_ref(), terms.as_ref())?;
        let mut done = Done::new(wire::SetMaintenanceModeResponse { success: true, status: Some(status) })
            .changed(before.as_ref(), terms.as_ref().map(state).as_ref())
            .detail("enabled", self.enabled)
            .detail("message", self.message);
        if let Some(end) = self.scheduled_end {
            done = done.detail("scheduled_end_epoch_ms", end.0);
        }
        Ok(if self.enabled { done.detail("allow_reads", self.allow_reads) } else { done })
    }
}

/// `GetMaintenanceStatus`: the gateway first, in maintenance or not, then each namespace that is; with `namespace` the
/// gateway and that one.
#[derive(Clone)]
pub struct GetMaintenanceStatus {
    namespace: Option<NamespaceName>,
}

impl Op for GetMaintenanceStatus {
    type Request = wire::GetMaintenanceStatusRequest;
    type Response = wire::GetMaintenanceStatusResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/GetMaintenanceStatus";
    const SCOPE: Scope = Scope::Filtered;

    fn resource(_: &Self::Request) -> String {
        "maintenance".to_owned()
    }

    fn namespace(request: &Self::Request) -> String {
        request.namespace.clone().unwrap_or_default()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(request.namespace.clone().map_or(Place::Visible, Place::Namespace))
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self { namespace: parse_namespace(request.namespace.as_deref())? })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        require(tx, self.namespace.as_ref())?;
        let in_force = tx.maintenance()?;
        let find = |scope: &str| in_force.iter().find(|(found, _)| found == scope).map(|(_, terms)| terms);
        let mut statuses = vec![status(tx, None, find(""))?];
        match &self.namespace {
            Some(name) => statuses.push(status(tx, Some(name), find(name.as_str()))?),
            None => {
                for (scope, terms) in
                    in_force.iter().filter(|(scope, _)| !scope.is_empty() && caller.reach.includes(Some(scope)))
                {
                    let name = NamespaceName::parse("namespace", scope)?;
                    statuses.push(status(tx, Some(&name), Some(terms))?);
                }
            }
        }
        if !caller.reach.includes(None) {
            // How busy the whole gateway is concerns nobody who sees one namespace only.
            statuses[0].active_sessions = 0;
        }
        Ok(Done::new(wire::GetMaintenanceStatusResponse { statuses }))
    }
}
