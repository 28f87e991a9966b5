//! The admin plane: one door, one operation per RPC, transports in front of it.

mod convert;
pub mod door;
mod grpc;
pub mod identity;
pub mod op;
pub mod ops;
pub mod provision;
mod record;

use std::sync::Arc;

use prism_core::config::Catalog;
use prism_core::control::DataNode;
use prism_core::permission::built_in_roles;
use prism_core::{Error, Result};
use prism_proto::admin::v1::access_service_server::AccessServiceServer;
use prism_proto::admin::v1::admin_service_server::AdminServiceServer;
use prism_rpc::Table;
use prism_rpc::metrics::Metrics;
use prism_rpc::shutdown::Shutdown;
use prism_store::Store;
use tonic::service::Routes;

use crate::door::Door;
use crate::grpc::Grpc;
use crate::op::Services;
use crate::record::RecordService;

/// Largest admin request, in bytes.
const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;
/// Largest admin answer, in bytes: a page of 1000 configs with their schemas.
const MAX_RESPONSE_BYTES: usize = 128 * 1024 * 1024;

/// What an admin plane is made of.
pub struct AdminOptions {
    /// Control state.
    pub store: Arc<Store>,
    /// The data plane it governs.
    pub node: Arc<dyn DataNode>,
    /// Configured backends.
    pub catalog: Catalog,
    /// Where its figures go.
    pub metrics: Metrics,
    /// RPC rules.
    pub table: Arc<Table>,
    /// Whether gRPC reflection is served.
    pub reflection: bool,
    /// Whether gRPC health is served.
    pub health: bool,
    /// Ends streams that follow.
    pub shutdown: Shutdown,
}

/// The admin plane.
pub struct AdminPlane {
    door: Arc<Door>,
    reflection: bool,
    health: bool,
    shutdown: Shutdown,
}

impl AdminPlane {
    /// Puts the door in front of the store.
    pub fn new(options: AdminOptions) -> Self {
        let services = Services {
            started_at: options.store.clock().now(),
            store: options.store,
            node: options.node,
            catalog: options.catalog,
            metrics: options.metrics,
            table: options.table,
            roles: built_in_roles(),
            removing: tokio::sync::Mutex::default(),
        };
        Self {
            door: Arc::new(Door::new(services)),
            reflection: options.reflection,
            health: options.health,
            shutdown: options.shutdown,
        }
    }

    /// The door, for what starts inside the server.
    pub fn door(&self) -> &Arc<Door> {
        &self.door
    }

    /// The service to put behind a listener.
    pub async fn service(&self) -> Result<RecordService<axum::Router>> {
        let grpc = Grpc::new(Arc::clone(&self.door), self.shutdown.clone());
        let mut routes = Routes::builder();
        routes
            .add_service(
                AdminServiceServer::new(grpc.clone())
                    .max_decoding_message_size(MAX_REQUEST_BYTES)
                    .max_encoding_message_size(MAX_RESPONSE_BYTES),
            )
            .add_service(
                AccessServiceServer::new(grpc)
                    .max_decoding_message_size(MAX_REQUEST_BYTES)
                    .max_encoding_message_size(MAX_RESPONSE_BYTES),
            );
        if self.health {
            let (health, health_service) = tonic_health::server::health_reporter();
            health.set_serving::<AdminServiceServer<Grpc>>().await;
            health.set_serving::<AccessServiceServer<Grpc>>().await;
            routes.add_service(health_service);
        }
        if self.reflection {
            let builder = || {
                tonic_reflection::server::Builder::configure()
                    .register_encoded_file_descriptor_set(prism_proto::FILE_DESCRIPTOR_SET)
                    .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            };
            routes.add_service(builder().build_v1().map_err(Error::internal)?);
            routes.add_service(builder().build_v1alpha().map_err(Error::internal)?);
        }
        Ok(RecordService::new(routes.routes().into_axum_router(), Arc::clone(&self.door)))
    }
}
