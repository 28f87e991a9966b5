//! The admin plane: one door, one operation per RPC, transports in front of it.

mod audit_stream;
mod calls;
mod changes;
mod cluster;
mod convert;
pub mod door;
mod exchange;
mod grpc;
pub mod identity;
mod link;
pub mod op;
pub mod ops;
pub mod provision;
mod rates;
mod record;
mod reflection;
mod refused;
mod rest;
mod services;
mod strangers;
mod tally;
mod to_the_end;
mod trailers;
mod unrecorded;
mod upkeep;

use std::sync::Arc;

use arc_swap::ArcSwap;
use prism_core::access::RoleGrant;
use prism_core::config::Catalog;
use prism_core::{Error, Result};
use prism_identity::{ClientTrust, Issuers};
use prism_link::Fleet;
use prism_link::bounds::{MAX_FRAME_BYTES, MAX_NODE_FRAME_BYTES};
use prism_proto::admin::v1::access_service_server::AccessServiceServer;
use prism_proto::admin::v1::admin_service_server::AdminServiceServer;
use prism_proto::cluster::v1::admin_service_server::AdminServiceServer as ClusterAdminServer;
use prism_proto::cluster::v1::bootstrap_service_server::BootstrapServiceServer;
use prism_proto::cluster::v1::ca_service_server::CaServiceServer;
use prism_proto::cluster::v1::link_service_server::LinkServiceServer;
use prism_proto::cluster::v1::node_service_server::NodeServiceServer;
use prism_rpc::metrics::Metrics;
use prism_rpc::shutdown::Shutdown;
use prism_rpc::{CertificateAuthority, Connections, Table};
use prism_store::{AuditSettings, Store};
use tonic::service::Routes;
use tonic_health::ServingStatus;

use crate::audit_stream::AuditStreamService;
use crate::cluster::ClusterGrpc;
use crate::door::Door;
use crate::grpc::Grpc;
use crate::identity::Authenticator;
use crate::link::LinkGrpc;
use crate::op::{Enrolment, Services};
use crate::record::RecordService;
use crate::rest::Rest;
use crate::services::AdminServices;

/// Largest admin request, in bytes.
const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;
/// Largest request about tokens and nodes, in bytes: a token and a signing request. Strangers may send it.
const MAX_SMALL_REQUEST_BYTES: usize = 32 * 1024;
/// Largest admin answer, in bytes: a page of 1000 configs with their schemas.
const MAX_RESPONSE_BYTES: usize = 128 * 1024 * 1024;

/// At the start, before anything is issued: takes over a change of the CA that was decided and cut short, and removes one that was
/// not decided. What the files say then is what is remembered as decided.
pub async fn recover_authority(store: &Store, authority: &CertificateAuthority) -> Result<()> {
    let decided = store.read(|tx| tx.authority_state()).await?;
    authority.recover(decided.as_deref())?;
    let name = authority.state_name();
    if decided.is_some_and(|decided| decided != name) {
        tracing::warn!("the CA in the data directory is another than the one in prism.db; the files are believed");
        store.write(move |tx| tx.set_authority_state(&name)).await?;
    }
    Ok(())
}

/// What an admin plane is made of.
pub struct AdminOptions {
    /// Control state.
    pub store: Arc<Store>,
    /// The data planes it governs.
    pub fleet: Arc<Fleet>,
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
    /// Whose access tokens are believed.
    pub issuers: Issuers,
    /// Whose client certificates are believed.
    pub trust: Arc<ArcSwap<ClientTrust>>,
    /// The CA that issues certificates.
    pub authority: CertificateAuthority,
    /// Open connections of this plane.
    pub connections: Connections,
    /// Failed credentials of one source or key that are answered without delay.
    pub auth_failures: u32,
    /// Most calls of one credential per second; 0 = any number.
    pub admin_rps: u32,
    /// How the audit log is kept.
    pub audit: AuditSettings,
    /// How nodes are taken in.
    pub enrolment: Enrolment,
}

/// The admin plane.
pub struct AdminPlane {
    door: Arc<Door>,
    reflection: bool,
    health: bool,
    shutdown: Shutdown,
    admin_rps: u32,
    audit: AuditSettings,
}

impl AdminPlane {
    /// Puts the door in front of the store.
    pub fn new(options: AdminOptions) -> Self {
        let store = Arc::clone(&options.store);
        let mapped = options.issuers.mapped_groups().into_iter();
        let mapped = mapped.map(|(group, role, namespace)| (group, RoleGrant { role, namespace })).collect();
        let authenticator = Authenticator::new(store, options.issuers, options.trust, options.auth_failures);
        let services = Services {
            started_at: options.store.clock().now(),
            store: options.store,
            fleet: options.fleet,
            catalog: options.catalog,
            metrics: options.metrics,
            table: options.table,
            authority: options.authority,
            mapped,
            connections: options.connections,
            enrolment: options.enrolment,
            removing: tokio::sync::Mutex::default(),
            settling: tokio::sync::Mutex::default(),
        };
        Self {
            door: Arc::new(Door::new(services, authenticator, options.audit.on_read_failure)),
            admin_rps: options.admin_rps,
            audit: options.audit,
            reflection: options.reflection,
            health: options.health,
            shutdown: options.shutdown,
        }
    }

    /// The door, for what starts inside the server.
    pub fn door(&self) -> &Arc<Door> {
        &self.door
    }

    /// Signs the audit log as it grows, and removes what is past its time, until the end is announced.
    pub fn spawn_audit_upkeep(&self, until: Shutdown) {
        tokio::spawn(upkeep::tend_audit_log(Arc::clone(&self.door), self.audit.clone(), until));
    }

    /// Writes what the audit log still lacks, and signs it for the last time. What fails is logged: the next start signs what is
    /// there.
    pub async fn close_audit_log(&self) {
        if let Err(failed) = self.door.record_suppressed(true).await {
            tracing::error!(reason = failed.reason(), cause = ?failed.cause(), "the last refused credentials were not counted in the audit log");
        }
        if let Err(failed) = self.door.services.store.make_checkpoint().await {
            tracing::warn!(reason = failed.reason(), cause = ?failed.cause(), "the audit log could not be signed at the end");
        }
    }

    /// The service to put behind a listener.
    pub async fn service(&self) -> Result<RecordService<AdminServices>> {
        let grpc = Grpc::new(Arc::clone(&self.door), self.shutdown.clone());
        let admin = AdminServiceServer::new(grpc.clone())
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_RESPONSE_BYTES);
        let access = AccessServiceServer::new(grpc.clone())
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_RESPONSE_BYTES);
        let cluster = ClusterGrpc::new(Arc::clone(&self.door));
        let tokens = ClusterAdminServer::new(cluster.clone())
            .max_decoding_message_size(MAX_SMALL_REQUEST_BYTES)
            .max_encoding_message_size(MAX_RESPONSE_BYTES);
        let nodes = NodeServiceServer::new(cluster.clone()).max_decoding_message_size(MAX_SMALL_REQUEST_BYTES);
        let ca = CaServiceServer::new(cluster.clone()).max_decoding_message_size(MAX_SMALL_REQUEST_BYTES);
        let bootstrap = BootstrapServiceServer::new(cluster).max_decoding_message_size(MAX_SMALL_REQUEST_BYTES);
        let mut routes = Routes::builder();
        routes.add_service(
            LinkServiceServer::new(LinkGrpc::new(Arc::clone(&self.door), self.shutdown.clone()))
                .max_decoding_message_size(MAX_NODE_FRAME_BYTES)
                .max_encoding_message_size(MAX_FRAME_BYTES),
        );
        if self.health {
            let (health, health_service) = tonic_health::server::health_reporter();
            for service in reflection::services() {
                health.set_service_status(service, ServingStatus::Serving).await;
            }
            routes.add_service(health_service);
        }
        if self.reflection {
            let mut served = reflection::services();
            if self.health {
                served.push(tonic_health::pb::health_server::SERVICE_NAME.to_owned());
            }
            let aliases = reflection::alias_descriptors()?;
            let builder = || {
                let builder = tonic_reflection::server::Builder::configure()
                    .register_encoded_file_descriptor_set(prism_proto::FILE_DESCRIPTOR_SET)
                    .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                    .register_file_descriptor_set(aliases.clone());
                // Only what this port serves; the descriptors know more.
                served.iter().fold(builder, tonic_reflection::server::Builder::with_service_name)
            };
            routes.add_service(builder().build_v1().map_err(Error::internal)?);
            routes.add_service(builder().build_v1alpha().map_err(Error::internal)?);
        }
        let served = AdminServices {
            admin,
            access,
            tokens,
            nodes,
            ca,
            bootstrap,
            rest: Rest::new(Arc::clone(&self.door)),
            audit: AuditStreamService(grpc),
            others: routes.routes(),
        };
        Ok(RecordService::new(served, Arc::clone(&self.door), self.admin_rps))
    }
}
