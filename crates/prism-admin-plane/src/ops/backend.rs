//! GetBackendStatus, ListBackends.

use async_trait::async_trait;
use prism_core::config::BackendType;
use prism_core::control::BackendReport;
use prism_core::nodes::{Nodes as _, Reached};
use prism_core::page::Page;
use prism_core::permission::Reach;
use prism_core::{Error, NodeId, Result};
use prism_proto::admin::v1 as wire;
use prism_rpc::convert::pattern_to_proto;
use prism_store::Tx;

use crate::convert::{self, names};
use crate::op::{Caller, Done, Op, Place, Scope, Services};

/// The worst health of `reports`, which are of one type, and what it says.
fn summary(reports: &[&(NodeId, BackendReport)]) -> Option<wire::BackendHealth> {
    let (node, worst) = reports.iter().max_by_key(|(_, report)| report.health)?;
    let of_several_nodes = reports.iter().any(|(other, _)| other != node);
    let message = match (of_several_nodes, reports.len()) {
        (true, _) => format!("{} on {node}: {}", worst.instance, worst.message),
        (false, 1) => worst.message.clone(),
        (false, _) => format!("{}: {}", worst.instance, worst.message),
    };
    Some(convert::health(worst.health, &message, worst.checked_at))
}

/// `GetBackendStatus`.
#[derive(Clone)]
pub struct GetBackendStatus {
    kind: Option<BackendType>,
    name: String,
    reports: Reached<Vec<(NodeId, BackendReport)>>,
}

#[async_trait]
impl Op for GetBackendStatus {
    type Request = wire::GetBackendStatusRequest;
    type Response = wire::GetBackendStatusResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/GetBackendStatus";
    const SCOPE: Scope = Scope::Filtered;
    const PREPARES: bool = true;

    fn resource(request: &Self::Request) -> String {
        format!("backend:{}", request.backend_type)
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Visible)
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        if request.backend_type.is_empty() {
            return Err(Error::invalid("backend_type", "must be set, such as \"sqlite\""));
        }
        let kind = BackendType::by_name(&request.backend_type)
            .filter(|kind| services.catalog_for(None).instances.iter().any(|instance| instance.kind == *kind));
        Ok(Self { kind, name: request.backend_type, reports: Reached::default() })
    }

    async fn prepare(&mut self, services: &Services) -> Result<()> {
        if self.kind.is_some() {
            self.reports = services.fleet.backends().await;
        }
        Ok(())
    }

    fn execute(self, _: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let kind = self.kind.ok_or_else(|| Error::not_found(format!("backend:{}", self.name)))?;
        let of_kind = self.reports.answer.iter().filter(|(_, report)| report.kind == kind);
        let sees_all = caller.reach.includes(None);
        Ok(Done::new(wire::GetBackendStatusResponse {
            backend_type: kind.name().to_owned(),
            health: summary(&of_kind.clone().collect::<Vec<_>>()),
            instances: of_kind.map(|(node, report)| instance(node, report, sees_all)).collect(),
            unreachable_nodes: names(&self.reports),
        }))
    }
}

/// Where a backend is and what all namespaces do with it is for those who may see all of them.
fn instance(node: &NodeId, report: &BackendReport, sees_all: bool) -> wire::BackendInstance {
    let mut instance = convert::backend_instance(node, report);
    if !sees_all {
        instance.endpoint.clear();
        instance.metrics = None;
    }
    instance
}

/// `ListBackends`, by type.
#[derive(Clone)]
pub struct ListBackends {
    page: Page,
    reports: Reached<Vec<(NodeId, BackendReport)>>,
}

#[async_trait]
impl Op for ListBackends {
    type Request = wire::ListBackendsRequest;
    type Response = wire::ListBackendsResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/ListBackends";
    const SCOPE: Scope = Scope::Filtered;
    const PREPARES: bool = true;

    fn resource(_: &Self::Request) -> String {
        "backends".to_owned()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Visible)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self {
            page: Page::parse("backends", request.page_size, request.page_token.as_deref())?,
            reports: Reached::default(),
        })
    }

    async fn prepare(&mut self, services: &Services) -> Result<()> {
        self.reports = services.fleet.backends().await;
        Ok(())
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let mut kinds: Vec<BackendType> = self.reports.answer.iter().map(|(_, report)| report.kind).collect();
        kinds.sort_by_key(|kind| kind.name());
        kinds.dedup();
        let total_count = i32::try_from(kinds.len()).unwrap_or(i32::MAX);
        kinds.retain(|kind| self.page.after.as_deref().is_none_or(|after| kind.name() > after));
        let next_page_token = self.page.cut(&mut kinds, |kind| kind.name().to_owned());
        let users = namespaces_by_kind(tx, &caller.reach)?;
        let backends = kinds
            .into_iter()
            .map(|kind| {
                let reports: Vec<_> = self.reports.answer.iter().filter(|(_, report)| report.kind == kind).collect();
                wire::BackendSummary {
                    backend_type: kind.name().to_owned(),
                    health: summary(&reports),
                    instance_count: i32::try_from(reports.len()).unwrap_or(i32::MAX),
                    patterns: kind.patterns().map(|pattern| pattern_to_proto(pattern).into()).collect(),
                    namespaces: users.iter().filter(|(user, _)| *user == kind).map(|(_, name)| name.clone()).collect(),
                }
            })
            .collect();
        Ok(Done::new(wire::ListBackendsResponse {
            backends,
            next_page_token,
            total_count,
            unreachable_nodes: names(&self.reports),
        }))
    }
}

/// Which namespaces have configs on which backend type, within what the caller may see; sorted, without repeats.
fn namespaces_by_kind(tx: &Tx<'_>, reach: &Reach) -> Result<Vec<(BackendType, String)>> {
    let mut users: Vec<_> = tx.config_backends(reach)?;
    users.sort();
    users.dedup();
    Ok(users)
}
