//! What a server says of itself.

use std::collections::BTreeSet;

use prism_proto::rules::{MethodRule, rules};
use prost::Message as _;
use prost_types::FileDescriptorProto;
use tonic::transport::Channel;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::is_for_operators;
use crate::enrol::PACKAGES;

/// The rules of every RPC for operators that the server says it serves on this port, health, reflection and the older package left
/// out.
pub async fn reflected_rules(channel: &Channel) -> Vec<MethodRule> {
    let served = served_rules(channel).await.into_iter();
    served.filter(|rule| is_for_operators(&rule.permission) && rule.service.starts_with("prism.")).collect()
}

/// The rules of every RPC that the server says it serves on this port, health and reflection left out. Those of the older package
/// are the same under other paths. The methods that it lists and those in the descriptors must be the same.
pub async fn served_rules(channel: &Channel) -> Vec<MethodRule> {
    let listed = match ask(channel, MessageRequest::ListServices(String::new())).await {
        MessageResponse::ListServicesResponse(list) => list.service.into_iter().map(|service| service.name),
        other => panic!("{other:?}"),
    };
    let services: Vec<String> = listed.filter(|name| !name.starts_with("grpc.")).collect();
    let mut found = BTreeSet::new();
    for name in &services {
        let answer = ask(channel, MessageRequest::FileContainingSymbol(name.clone())).await;
        let MessageResponse::FileDescriptorResponse(files) = answer else { panic!("{answer:?}") };
        for file in &files.file_descriptor_proto {
            let file = FileDescriptorProto::decode(file.as_slice()).expect("a descriptor");
            for service in &file.service {
                if format!("{}.{}", file.package(), service.name()) == *name {
                    found.extend(service.method.iter().map(|method| format!("/{name}/{}", method.name())));
                }
            }
        }
    }
    let known = rules().expect("rules");
    let [package, alias] = PACKAGES;
    let aliases = known.iter().filter(|rule| rule.service.starts_with(package)).map(|rule| MethodRule {
        service: rule.service.replacen(package, alias, 1),
        path: rule.path.replacen(package, alias, 1),
        ..rule.clone()
    });
    let rules: Vec<_> = known.iter().cloned().chain(aliases).filter(|rule| found.contains(&rule.path)).collect();
    assert!(!rules.is_empty() && rules.len() == found.len(), "{} rules for {found:?}", rules.len());
    rules
}

async fn ask(channel: &Channel, message: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let mut client = ServerReflectionClient::new(channel.clone());
    let answers = client.server_reflection_info(tokio_stream::once(request)).await;
    let answer = answers.expect("reflection").into_inner().message().await.expect("an answer");
    answer.and_then(|answer| answer.message_response).expect("an answer")
}
