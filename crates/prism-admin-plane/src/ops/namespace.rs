//! ListNamespaces, GetNamespace, CreateNamespace, UpdateNamespace, DeleteNamespace.

use std::collections::BTreeSet;

use async_trait::async_trait;
use futures::future::join_all;
use prism_core::control::{NamespaceStatus, Quota};
use prism_core::nodes::{Nodes as _, Reached};
use prism_core::page::Page;
use prism_core::{Error, NamespaceName, Result};
use prism_proto::admin::v1 as wire;
use prism_rpc::convert::timestamp;
use prism_store::{NamespaceRow, Tx};
use serde_json::{Value, json};

use super::config::check_etag;
use crate::convert::{self, names};
use crate::op::{Caller, Done, Op, Place, Scope, Services};

/// Namespaces of a listing whose figures are asked for at a time.
const ASKED_AT_ONCE: usize = 16;

fn resource_of(name: &str) -> String {
    format!("namespace:{name}")
}

fn existing(tx: &Tx<'_>, name: &NamespaceName) -> Result<NamespaceRow> {
    tx.namespace(name.as_str())?.ok_or_else(|| Error::not_found(resource_of(name.as_str())))
}

fn info(tx: &Tx<'_>, row: &NamespaceRow) -> Result<wire::NamespaceInfo> {
    Ok(convert::namespace(row, tx.dependants(&row.namespace.name)?.sessions))
}

/// Adds what only the nodes know, and returns those that could not be asked.
async fn fill(info: Option<&mut wire::NamespaceInfo>, services: &Services) -> Vec<String> {
    let Some(info) = info else { return Vec::new() };
    let Ok(name) = NamespaceName::try_from(info.name.clone()) else { return Vec::new() };
    let reached = services.fleet.namespace_figures(&name).await;
    convert::fill(info, reached.answer);
    names(&reached)
}

/// `ListNamespaces`.
#[derive(Clone)]
pub struct ListNamespaces {
    page: Page,
}

#[async_trait]
impl Op for ListNamespaces {
    type Request = wire::ListNamespacesRequest;
    type Response = wire::ListNamespacesResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/ListNamespaces";
    const SCOPE: Scope = Scope::Filtered;

    fn resource(_: &Self::Request) -> String {
        "namespaces".to_owned()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Visible)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self { page: Page::parse("namespaces", request.page_size, request.page_token.as_deref())? })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let (mut rows, total) = tx.namespaces(&caller.reach, &self.page)?;
        let next_page_token = self.page.cut(&mut rows, |row| row.namespace.name.to_string());
        Ok(Done::new(wire::ListNamespacesResponse {
            namespaces: rows.iter().map(|row| info(tx, row)).collect::<Result<_>>()?,
            next_page_token,
            total_count: i32::try_from(total).unwrap_or(i32::MAX),
            unreachable_nodes: Vec::new(),
        }))
    }

    async fn follow_up(_: &Self::Request, response: &mut Self::Response, services: &Services) {
        let mut unreachable = BTreeSet::new();
        // What one namespace has to wait for, the others wait for meanwhile.
        for some in response.namespaces.chunks_mut(ASKED_AT_ONCE) {
            let mut asked = Vec::new();
            for info in some {
                asked.push(fill(Some(info), services));
            }
            unreachable.extend(join_all(asked).await.into_iter().flatten());
        }
        response.unreachable_nodes = unreachable.into_iter().collect();
    }
}

/// `GetNamespace`.
#[derive(Clone)]
pub struct GetNamespace {
    name: NamespaceName,
}

#[async_trait]
impl Op for GetNamespace {
    type Request = wire::GetNamespaceRequest;
    type Response = wire::GetNamespaceResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/GetNamespace";
    const SCOPE: Scope = Scope::Namespace;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.name)
    }

    fn namespace(request: &Self::Request) -> String {
        request.name.clone()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Namespace(request.name.clone()))
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self { name: NamespaceName::parse("name", &request.name)? })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let row = existing(tx, &self.name)?;
        Ok(Done::new(wire::GetNamespaceResponse { namespace: Some(info(tx, &row)?), unreachable_nodes: Vec::new() }))
    }

    async fn follow_up(_: &Self::Request, response: &mut Self::Response, services: &Services) {
        response.unreachable_nodes = fill(response.namespace.as_mut(), services).await;
    }
}

/// `CreateNamespace`.
#[derive(Clone)]
pub struct CreateNamespace {
    name: NamespaceName,
    description: String,
    quota: Quota,
}

impl Op for CreateNamespace {
    type Request = wire::CreateNamespaceRequest;
    type Response = wire::CreateNamespaceResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/CreateNamespace";
    const SCOPE: Scope = Scope::Installation;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.name)
    }

    fn namespace(request: &Self::Request) -> String {
        request.name.clone()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        let (name, quota) = (NamespaceName::parse("name", &request.name), convert::quota("quota", request.quota));
        convert::all_of([
            name.as_ref().map(|_| ()).map_err(Clone::clone),
            convert::description("description", &request.description),
            quota.as_ref().map(|_| ()).map_err(Clone::clone),
        ])?;
        Ok(Self { name: name?, description: request.description, quota: quota? })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let row = tx.create_namespace(&self.name, &self.description, self.quota)?;
        let done = describe(Done::new(wire::CreateNamespaceResponse { namespace: Some(info(tx, &row)?) }), &row);
        Ok(done.changed(None::<&Value>, Some(&state(&row))))
    }
}

/// What an operator decides of a namespace.
fn state(row: &NamespaceRow) -> Value {
    let quota = row.namespace.quota;
    json!({
        "description": row.description,
        "status": row.namespace.status.name(),
        "quota": {
            "max_sessions": quota.max_sessions,
            "max_storage_bytes": quota.max_storage_bytes,
            "max_rps": quota.max_rps,
        },
    })
}

fn describe<R>(done: Done<R>, row: &NamespaceRow) -> Done<R> {
    let quota = row.namespace.quota;
    done.detail("status", row.namespace.status.name())
        .detail("max_sessions", quota.max_sessions)
        .detail("max_storage_bytes", quota.max_storage_bytes)
        .detail("max_rps", quota.max_rps)
}

/// `UpdateNamespace`; what is absent stays as it is.
#[derive(Clone)]
pub struct UpdateNamespace {
    name: NamespaceName,
    description: Option<String>,
    quota: Option<Quota>,
    status: Option<NamespaceStatus>,
    etag: Option<String>,
}

#[async_trait]
impl Op for UpdateNamespace {
    type Request = wire::UpdateNamespaceRequest;
    type Response = wire::UpdateNamespaceResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/UpdateNamespace";
    const SCOPE: Scope = Scope::Namespace;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.name)
    }

    fn namespace(request: &Self::Request) -> String {
        request.name.clone()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Namespace(request.name.clone()))
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        let name = NamespaceName::parse("name", &request.name);
        let quota = request.quota.map(|quota| convert::quota("quota", Some(quota))).transpose();
        let status = request.status.map(|number| convert::namespace_status("status", number)).transpose();
        convert::all_of([
            name.as_ref().map(|_| ()).map_err(Clone::clone),
            request.description.as_deref().map_or(Ok(()), |text| convert::description("description", text)),
            quota.as_ref().map(|_| ()).map_err(Clone::clone),
            status.as_ref().map(|_| ()).map_err(Clone::clone),
        ])?;
        Ok(Self { name: name?, description: request.description, quota: quota?, status: status?, etag: request.etag })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let mut row = existing(tx, &self.name)?;
        check_etag(self.etag.as_deref(), &row.etag())?;
        let before = state(&row);
        if let Some(description) = self.description {
            row.description = description;
        }
        if let Some(quota) = self.quota {
            row.namespace.quota = quota;
        }
        if let Some(status) = self.status {
            row.namespace.status = status;
        }
        let row = tx.update_namespace(row)?;
        let response = wire::UpdateNamespaceResponse {
            namespace: Some(info(tx, &row)?),
            updated_at: Some(timestamp(row.updated_at)),
            unreachable_nodes: Vec::new(),
        };
        Ok(describe(Done::new(response), &row).changed(Some(&before), Some(&state(&row))))
    }

    async fn follow_up(_: &Self::Request, response: &mut Self::Response, services: &Services) {
        response.unreachable_nodes = fill(response.namespace.as_mut(), services).await;
    }
}

/// `DeleteNamespace`. Not empty means: configs, live sessions, or stored data.
#[derive(Clone)]
pub struct DeleteNamespace {
    name: NamespaceName,
    force: bool,
    validate_only: bool,
    stored: Reached<i64>,
}

#[async_trait]
impl Op for DeleteNamespace {
    type Request = wire::DeleteNamespaceRequest;
    type Response = wire::DeleteNamespaceResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/DeleteNamespace";
    const SCOPE: Scope = Scope::Namespace;
    const PREPARES: bool = true;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.name)
    }

    fn namespace(request: &Self::Request) -> String {
        request.name.clone()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Namespace(request.name.clone()))
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        let name = NamespaceName::parse("name", &request.name)?;
        Ok(Self { name, force: request.force, validate_only: request.validate_only, stored: Reached::default() })
    }

    async fn prepare(&mut self, services: &Services) -> Result<()> {
        let reached = services.fleet.namespace_figures(&self.name).await;
        self.stored = reached.map(|figures| figures.storage_bytes_used);
        Ok(())
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let row = existing(tx, &self.name)?;
        let found = tx.dependants(&self.name)?;
        if !self.force && (found.configs > 0 || found.sessions > 0 || self.stored.answer > 0) {
            return Err(Error::precondition(
                "NAMESPACE_NOT_EMPTY",
                format!(
                    "namespace {} holds {} configs, {} live sessions and {} stored bytes; force deletes all of it",
                    self.name, found.configs, found.sessions, self.stored.answer
                ),
            ));
        }
        if !self.validate_only {
            tx.delete_namespace(&self.name)?;
        }
        let done = Done::new(wire::DeleteNamespaceResponse {
            success: true,
            configs_affected: i32::try_from(found.configs).unwrap_or(i32::MAX),
            sessions_affected: i32::try_from(found.sessions).unwrap_or(i32::MAX),
            unreachable_nodes: names(&self.stored),
        });
        let done = done.detail("force", self.force).detail("configs", found.configs).detail("sessions", found.sessions);
        Ok(if self.validate_only {
            done.detail("validate_only", true)
        } else {
            done.detail("stored_bytes", self.stored.answer).changed(Some(&state(&row)), None::<&Value>)
        })
    }

    async fn follow_up(request: &Self::Request, response: &mut Self::Response, services: &Services) {
        let Ok(name) = NamespaceName::try_from(request.name.clone()) else { return };
        if !request.validate_only {
            let left = services.remove_data(&name).await.into_iter().map(String::from);
            // Those that could not be asked what they hold and have removed it since are done.
            response.unreachable_nodes = left.collect();
        }
    }
}
