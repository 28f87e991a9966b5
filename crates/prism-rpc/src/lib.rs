//! What both planes share between the wire and their own logic: listener, TLS, request ids, status mapping, conversions,
//! metrics, the table of RPC rules, and the end of a process in an orderly way.

mod connections;
pub mod convert;
pub mod files;
pub mod http_status;
mod idle;
pub mod listener;
pub mod metrics;
pub mod request;
pub mod shutdown;
pub mod status;
pub mod table;
pub mod tls;
pub mod watched;

pub use connections::Connections;
pub use idle::HeldBody;
pub use listener::{BoundListener, ServeOptions, serve};
pub use metrics::{Counter, Metrics, Series};
pub use request::{Peer, RequestId, RequestIdService, RequestIds};
pub use shutdown::{Shutdown, ShutdownTrigger};
pub use status::to_status;
pub use table::Table;
pub use tls::{CertificateAuthority, ServerTls};
pub use watched::Watched;
