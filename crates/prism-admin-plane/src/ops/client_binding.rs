//! CreateClientBinding, DeleteClientBinding, ListClientBindings: who may use which namespace of the data plane with a token or
//! a certificate.

use prism_core::access::ClientGrant;
use prism_core::page::Page;
use prism_core::secret::Random;
use prism_core::subject::Subject;
use prism_core::{Error, NamespaceName, Result};
use prism_proto::admin::v1 as wire;
use prism_store::{ClientBindingRow, Tx};
use serde_json::{Value, json};

use super::binding::{require_id, require_namespace, resource_of};
use crate::convert;
use crate::op::{Caller, Done, Op, Place, Scope, Services};

/// `CreateClientBinding`.
#[derive(Clone)]
pub struct CreateClientBinding {
    subject: Subject,
    grant: ClientGrant,
    random: Random,
}

impl Op for CreateClientBinding {
    type Request = wire::CreateClientBindingRequest;
    type Response = wire::CreateClientBindingResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/CreateClientBinding";
    const SCOPE: Scope = Scope::Namespace;

    fn resource(_: &Self::Request) -> String {
        "bindings".to_owned()
    }

    fn namespace(request: &Self::Request) -> String {
        request.client_binding.as_ref().map(|binding| binding.namespace.clone()).unwrap_or_default()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::of(Some(Self::namespace(request)).filter(|name| !name.is_empty())))
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let binding = request.client_binding.ok_or_else(|| Error::invalid("client_binding", "must be set"))?;
        let subject = Subject::parse("client_binding.subject", &binding.subject);
        let namespace = NamespaceName::parse("client_binding.namespace", &binding.namespace);
        let grant = convert::data_grant("client_binding.permissions", &binding.permissions);
        convert::all_of([convert::outcome(&subject), convert::outcome(&namespace), convert::outcome(&grant)])?;
        let grant = ClientGrant { namespace: namespace?, grant: grant? };
        Ok(Self { subject: subject?, grant, random: services.random().clone() })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        require_namespace("client_binding.namespace", &self.grant.namespace, tx)?;
        let row = ClientBindingRow {
            id: self.random.id(),
            subject: self.subject,
            grant: self.grant,
            created_at: tx.now,
            created_by: caller.identity.actor.clone(),
        };
        tx.insert_client_binding(&row)?;
        let response = wire::CreateClientBindingResponse { client_binding: Some(convert::client_binding(&row)) };
        let mut done = describe(Done::new(response), &row).changed(None::<&Value>, Some(&state(&row)));
        done.resource = Some(resource_of(row.id.as_str()));
        Ok(done)
    }
}

/// What the audit log shows of a binding.
fn state(row: &ClientBindingRow) -> Value {
    json!({
        "subject": row.subject.to_string(),
        "namespace": row.grant.namespace.as_str(),
        "permissions": convert::data_permissions(row.grant.grant),
    })
}

fn describe<R>(done: Done<R>, row: &ClientBindingRow) -> Done<R> {
    let permissions = convert::data_permissions(row.grant.grant).join(",");
    done.detail("subject", &row.subject).detail("permissions", permissions)
}

/// `DeleteClientBinding`; the data plane ends the sessions that stood on it.
#[derive(Clone)]
pub struct DeleteClientBinding {
    id: String,
}

impl Op for DeleteClientBinding {
    type Request = wire::DeleteClientBindingRequest;
    type Response = wire::DeleteClientBindingResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/DeleteClientBinding";
    const SCOPE: Scope = Scope::Namespace;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.binding_id)
    }

    fn place(request: &Self::Request, tx: &Tx<'_>) -> Result<Place> {
        Ok(Place::of(tx.client_binding(&request.binding_id)?.map(|row| row.grant.namespace.into())))
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        require_id(&request.binding_id)?;
        Ok(Self { id: request.binding_id })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let row = tx.client_binding(&self.id)?.ok_or_else(|| Error::not_found(resource_of(&self.id)))?;
        tx.delete_client_binding(&self.id)?;
        let done = describe(Done::new(wire::DeleteClientBindingResponse {}), &row);
        Ok(done.changed(Some(&state(&row)), None::<&Value>))
    }
}

/// `ListClientBindings`.
#[derive(Clone)]
pub struct ListClientBindings {
    subject: Option<Subject>,
    namespace: Option<String>,
    page: Page,
}

impl Op for ListClientBindings {
    type Request = wire::ListClientBindingsRequest;
    type Response = wire::ListClientBindingsResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/ListClientBindings";
    const SCOPE: Scope = Scope::Filtered;

    fn resource(_: &Self::Request) -> String {
        "bindings".to_owned()
    }

    fn namespace(request: &Self::Request) -> String {
        request.namespace.clone().unwrap_or_default()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(request.namespace.clone().map_or(Place::Visible, Place::Namespace))
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        let subject = request.subject.as_deref().map(|text| Subject::parse("subject", text)).transpose();
        let filter = format!("client_bindings\n{:?}\n{:?}", request.subject, request.namespace);
        let page = Page::parse(&filter, request.page_size, request.page_token.as_deref());
        let namespace = convert::namespace_filter(request.namespace.as_deref());
        convert::all_of([convert::outcome(&subject), namespace, convert::outcome(&page)])?;
        Ok(Self { subject: subject?, namespace: request.namespace, page: page? })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let (mut rows, total) =
            tx.client_bindings(&caller.reach, self.namespace.as_deref(), self.subject.as_ref(), &self.page)?;
        let next_page_token = self.page.cut(&mut rows, |row| row.id.to_string()).unwrap_or_default();
        Ok(Done::new(wire::ListClientBindingsResponse {
            client_bindings: rows.iter().map(convert::client_binding).collect(),
            next_page_token,
            total_count: i32::try_from(total).unwrap_or(i32::MAX),
        }))
    }
}
