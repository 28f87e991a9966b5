//! CreateBinding, DeleteBinding, ListBindings: who has which role.

use prism_core::access::RoleGrant;
use prism_core::page::Page;
use prism_core::secret::Random;
use prism_core::subject::Subject;
use prism_core::{Error, NamespaceName, Result};
use prism_proto::admin::v1 as wire;
use prism_store::{BindingRow, Tx};
use serde_json::{Value, json};

use super::held::require_roles_held;
use super::role::require_role;
use crate::convert;
use crate::op::{Caller, Done, Op, Place, Scope, Services};

pub(super) fn resource_of(id: &str) -> String {
    super::named("binding", id)
}

pub(super) fn require_id(id: &str) -> Result<()> {
    if id.is_empty() { Err(Error::invalid("binding_id", "must be set")) } else { Ok(()) }
}

/// Requires that there is a namespace of this name; INVALID_ARGUMENT on `field`.
pub(super) fn require_namespace(field: &str, name: &NamespaceName, tx: &Tx<'_>) -> Result<()> {
    match tx.namespace(name.as_str())? {
        Some(_) => Ok(()),
        None => Err(Error::invalid(field, format!("namespace {name} does not exist"))),
    }
}

/// `CreateBinding`.
#[derive(Clone)]
pub struct CreateBinding {
    subject: Subject,
    grant: RoleGrant,
    random: Random,
}

impl Op for CreateBinding {
    type Request = wire::CreateBindingRequest;
    type Response = wire::CreateBindingResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/CreateBinding";
    const SCOPE: Scope = Scope::Namespace;

    fn resource(_: &Self::Request) -> String {
        "bindings".to_owned()
    }

    fn namespace(request: &Self::Request) -> String {
        request.binding.as_ref().and_then(|binding| binding.namespace.clone()).unwrap_or_default()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::of(request.binding.as_ref().and_then(|binding| binding.namespace.clone())))
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let binding = request.binding.ok_or_else(|| Error::invalid("binding", "must be set"))?;
        let subject = Subject::parse("binding.subject", &binding.subject);
        let namespace = binding.namespace.as_deref().map(|name| NamespaceName::parse("binding.namespace", name));
        let namespace = namespace.transpose();
        convert::all_of([
            convert::outcome(&subject),
            require_role("binding.role", &binding.role, &services.store.access()),
            convert::outcome(&namespace),
        ])?;
        let grant = RoleGrant { role: binding.role, namespace: namespace? };
        Ok(Self { subject: subject?, grant, random: services.random().clone() })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        if let Some(name) = &self.grant.namespace {
            require_namespace("binding.namespace", name, tx)?;
        }
        let access = tx.access()?;
        // The role may have gone since the request was proven.
        require_role("binding.role", &self.grant.role, &access)?;
        let place = self.grant.namespace.as_ref().map(NamespaceName::as_str);
        require_roles_held(caller, &access, std::slice::from_ref(&self.grant.role), place)?;
        let row = BindingRow {
            id: self.random.id(),
            subject: self.subject,
            grant: self.grant,
            created_at: tx.now,
            created_by: caller.identity.actor.clone(),
        };
        tx.insert_binding(&row)?;
        let done = describe(Done::new(wire::CreateBindingResponse { binding: Some(convert::binding(&row)) }), &row);
        let mut done = done.changed(None::<&Value>, Some(&state(&row)));
        done.resource = Some(resource_of(row.id.as_str()));
        Ok(done)
    }
}

/// What the audit log shows of a binding.
fn state(row: &BindingRow) -> Value {
    json!({
        "subject": row.subject.to_string(),
        "role": row.grant.role,
        "namespace": row.grant.namespace.as_ref().map(NamespaceName::as_str),
    })
}

fn describe<R>(done: Done<R>, row: &BindingRow) -> Done<R> {
    done.detail("subject", &row.subject).detail("role", &row.grant.role)
}

/// `DeleteBinding`.
#[derive(Clone)]
pub struct DeleteBinding {
    id: String,
}

impl Op for DeleteBinding {
    type Request = wire::DeleteBindingRequest;
    type Response = wire::DeleteBindingResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/DeleteBinding";
    const SCOPE: Scope = Scope::Namespace;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.binding_id)
    }

    fn place(request: &Self::Request, tx: &Tx<'_>) -> Result<Place> {
        Ok(Place::of(tx.binding(&request.binding_id)?.and_then(|row| row.grant.namespace).map(String::from)))
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        require_id(&request.binding_id)?;
        Ok(Self { id: request.binding_id })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let row = tx.binding(&self.id)?.ok_or_else(|| Error::not_found(resource_of(&self.id)))?;
        tx.keeping_an_administrator(|tx| tx.delete_binding(&self.id))?;
        Ok(describe(Done::new(wire::DeleteBindingResponse {}), &row).changed(Some(&state(&row)), None::<&Value>))
    }
}

/// `ListBindings`.
#[derive(Clone)]
pub struct ListBindings {
    subject: Option<Subject>,
    page: Page,
}

impl Op for ListBindings {
    type Request = wire::ListBindingsRequest;
    type Response = wire::ListBindingsResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/ListBindings";
    const SCOPE: Scope = Scope::Filtered;

    fn resource(_: &Self::Request) -> String {
        "bindings".to_owned()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Visible)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        let subject = request.subject.as_deref().map(|text| Subject::parse("subject", text)).transpose();
        let filter = format!("bindings\n{:?}", request.subject);
        let page = Page::parse(&filter, request.page_size, request.page_token.as_deref());
        convert::all_of([convert::outcome(&subject), convert::outcome(&page)])?;
        Ok(Self { subject: subject?, page: page? })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let (mut rows, total) = tx.bindings(&caller.reach, self.subject.as_ref(), &self.page)?;
        let next_page_token = self.page.cut(&mut rows, |row| row.id.to_string()).unwrap_or_default();
        Ok(Done::new(wire::ListBindingsResponse {
            bindings: rows.iter().map(convert::binding).collect(),
            next_page_token,
            total_count: i32::try_from(total).unwrap_or(i32::MAX),
        }))
    }
}
