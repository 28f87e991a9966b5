//! The wire contract of Prism: messages, clients and servers generated from `proto/`, and what
//! the descriptors say about every RPC.
//!
//! Modules mirror packages: `prism.admin.v1` is [`admin::v1`].

pub mod audit_chain;
pub mod audit_checkpoint;
pub mod json;
pub mod rules;
pub mod text;

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

pub use json::{from_json, message_to_json, to_json};

/// All files of `proto/` and their imports, with source information and method options, as an
/// encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/prism.binpb"));

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the descriptor set was written by this crate's build script")
});

/// The descriptors of [`FILE_DESCRIPTOR_SET`].
pub fn descriptor_pool() -> &'static DescriptorPool {
    &POOL
}

macro_rules! package {
    ($area:ident, $package:literal) => {
        #[doc = concat!("Package family of `", $package, "`.")]
        pub mod $area {
            #[doc = concat!("Package `", $package, "`.")]
            // Generated code; its documentation is in the proto files.
            #[allow(missing_docs, clippy::all, clippy::pedantic)]
            pub mod v1 {
                tonic::include_proto!($package);
            }
        }
    };
}

package!(admin, "prism.admin.v1");
package!(cluster, "prism.cluster.v1");
package!(config, "prism.config.v1");
package!(keyvalue, "prism.keyvalue.v1");
package!(options, "prism.options.v1");
package!(pubsub, "prism.pubsub.v1");
package!(queue, "prism.queue.v1");
package!(reader, "prism.reader.v1");
package!(session, "prism.session.v1");
package!(transact, "prism.transact.v1");
