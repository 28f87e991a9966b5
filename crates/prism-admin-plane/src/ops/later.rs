//! RPCs of the contract that this version does not carry out. They go through the door like all others, so that a refusal is
//! a refusal and every call leaves its entry.

use std::marker::PhantomData;

use prism_core::{Error, Kind, Result};
use prism_proto::admin::v1 as wire;
use prism_store::Tx;

use crate::op::{Caller, Done, Op, Place, Services};

/// An RPC that answers UNIMPLEMENTED.
pub trait Later: Send + Sync + 'static {
    /// Its request.
    type Request: prost::Message + Default + Clone + 'static;
    /// Its response.
    type Response: prost::Message + Default + 'static;
    /// Its full name.
    const RPC: &'static str;
    /// The audit entry's resource.
    fn resource(request: &Self::Request) -> String;
}

/// The operation of an RPC that comes later.
pub struct NotYet<L>(PhantomData<fn() -> L>);

impl<L> Clone for NotYet<L> {
    fn clone(&self) -> Self {
        Self(PhantomData)
    }
}

impl<L: Later> Op for NotYet<L> {
    type Request = L::Request;
    type Response = L::Response;
    const RPC: &'static str = L::RPC;

    fn resource(request: &Self::Request) -> String {
        L::resource(request)
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(_: Self::Request, _: &Services) -> Result<Self> {
        let method = crate::door::method_name(L::RPC);
        Err(Error::new(Kind::Unimplemented, "NOT_IN_THIS_VERSION", format!("{method} is not in this version of Prism")))
    }

    fn execute(self, _: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        Err(Error::internal("an operation that is never proven was carried out"))
    }
}

macro_rules! later {
    ($($name:ident($request:ident) -> $response:ident: $resource:expr;)*) => {$(
        #[doc = concat!("`", stringify!($name), "`.")]
        pub struct $name;

        impl Later for $name {
            type Request = wire::$request;
            type Response = wire::$response;
            const RPC: &'static str = concat!("prism.admin.v1.AccessService/", stringify!($name));

            fn resource(request: &Self::Request) -> String {
                let resource: fn(&Self::Request) -> String = $resource;
                resource(request)
            }
        }
    )*};
}

fn role(role: Option<&wire::Role>) -> String {
    format!("role:{}", role.map_or("", |role| &role.name))
}

later! {
    RotateApiKey(RotateApiKeyRequest) -> RotateApiKeyResponse: |request| format!("key:{}", request.key_id);
    CreateRole(CreateRoleRequest) -> CreateRoleResponse: |request| role(request.role.as_ref());
    UpdateRole(UpdateRoleRequest) -> UpdateRoleResponse: |request| role(request.role.as_ref());
    DeleteRole(DeleteRoleRequest) -> DeleteRoleResponse: |request| format!("role:{}", request.name);
    ListRoles(ListRolesRequest) -> ListRolesResponse: |_| "roles".to_owned();
    CreateBinding(CreateBindingRequest) -> CreateBindingResponse: |_| "bindings".to_owned();
    DeleteBinding(DeleteBindingRequest) -> DeleteBindingResponse: |request| format!("binding:{}", request.binding_id);
    ListBindings(ListBindingsRequest) -> ListBindingsResponse: |_| "bindings".to_owned();
    WhoCan(WhoCanRequest) -> WhoCanResponse: |_| "roles".to_owned();
}
