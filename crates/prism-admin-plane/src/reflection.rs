//! What the admin plane says that it serves: to reflection and to health.

use prism_core::{Error, Result};
use prism_proto::admin::v1::access_service_server::AccessServiceServer;
use prism_proto::admin::v1::admin_service_server::AdminServiceServer;
use prism_proto::cluster::v1::admin_service_server::AdminServiceServer as ClusterAdminServer;
use prism_proto::cluster::v1::bootstrap_service_server::BootstrapServiceServer;
use prism_proto::cluster::v1::ca_service_server::CaServiceServer;
use prism_proto::cluster::v1::link_service_server::LinkServiceServer;
use prism_proto::cluster::v1::node_service_server::NodeServiceServer;
use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use tonic::server::NamedService as _;

use crate::cluster::{self, ALIAS_PACKAGE, ALIASED_SERVICES, ClusterGrpc};
use crate::grpc::Grpc;
use crate::link::LinkGrpc;

/// Full names of the services, also those of the older package.
pub(crate) fn services() -> Vec<String> {
    let canonical = [
        AdminServiceServer::<Grpc>::NAME,
        AccessServiceServer::<Grpc>::NAME,
        ClusterAdminServer::<ClusterGrpc>::NAME,
        BootstrapServiceServer::<ClusterGrpc>::NAME,
        NodeServiceServer::<ClusterGrpc>::NAME,
        CaServiceServer::<ClusterGrpc>::NAME,
        LinkServiceServer::<LinkGrpc>::NAME,
    ];
    let aliases = ALIASED_SERVICES.iter().map(|service| format!("{ALIAS_PACKAGE}.{service}"));
    canonical.into_iter().map(ToOwned::to_owned).chain(aliases).collect()
}

/// The descriptors of the older package: the files that define its services, with their messages, under its name.
pub(crate) fn alias_descriptors() -> Result<FileDescriptorSet> {
    let all = FileDescriptorSet::decode(prism_proto::FILE_DESCRIPTOR_SET).map_err(Error::internal)?;
    let defines_one = |file: &FileDescriptorProto| {
        file.package() == cluster::DOMAIN
            && file.service.iter().any(|service| ALIASED_SERVICES.contains(&service.name()))
    };
    let files = all.file.into_iter().filter(defines_one).map(renamed).collect();
    Ok(FileDescriptorSet { file: files })
}

fn renamed(mut file: FileDescriptorProto) -> FileDescriptorProto {
    let own: Vec<String> =
        file.message_type.iter().map(|message| format!(".{}.{}", cluster::DOMAIN, message.name())).collect();
    let rename = |name: &mut String| {
        if own.contains(name) {
            *name = name.replacen(cluster::DOMAIN, ALIAS_PACKAGE, 1);
        }
    };
    let fields = file.message_type.iter_mut().flat_map(|message| &mut message.field);
    fields.filter_map(|field| field.type_name.as_mut()).for_each(rename);
    let methods = file.service.iter_mut().flat_map(|service| &mut service.method);
    methods.flat_map(|method| [&mut method.input_type, &mut method.output_type]).flatten().for_each(rename);
    file.service.retain(|service| ALIASED_SERVICES.contains(&service.name()));
    file.name =
        file.name.map(|name| name.replacen(&cluster::DOMAIN.replace('.', "/"), &ALIAS_PACKAGE.replace('.', "/"), 1));
    file.package = Some(ALIAS_PACKAGE.to_owned());
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_package_stands_by_itself() {
        let aliases = alias_descriptors().unwrap();
        let services = aliases.file.iter().flat_map(|file| &file.service);
        let mut named: Vec<_> = services.clone().map(|service| service.name().to_owned()).collect();
        named.sort();
        assert_eq!(named, ALIASED_SERVICES);
        for method in services.flat_map(|service| &service.method) {
            for name in [method.input_type(), method.output_type()] {
                assert!(name.starts_with(&format!(".{ALIAS_PACKAGE}.")), "{}: {name}", method.name());
            }
        }
        // With what it imports it is a whole.
        let known = FileDescriptorSet::decode(prism_proto::FILE_DESCRIPTOR_SET).unwrap();
        let files: Vec<_> = known.file.iter().map(|file| file.name().to_owned()).collect();
        for file in &aliases.file {
            assert!(!files.contains(&file.name().to_owned()), "{}", file.name());
            assert!(file.dependency.iter().all(|import| files.contains(import)), "{:?}", file.dependency);
        }
    }
}
