//! Reflection and health on both planes: contract §9 "reflection, health".

use prism_e2e::enrol::PACKAGES;
use prism_e2e::wait::{next, until, within};
use prism_e2e::{Options, Pattern, Prism, Shared, Site};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

static SERVER: Shared = Shared::new();

async fn site() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

async fn services(channel: Channel) -> Result<Vec<String>, Status> {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await?.into_inner();
    match next("the services", &mut answers).await.unwrap()?.message_response {
        Some(MessageResponse::ListServicesResponse(list)) => {
            Ok(list.service.into_iter().map(|service| service.name).collect())
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn reflection_and_health_are_open_on_both_planes() {
    let site = site().await;
    for (channel, expected) in [
        (site.admin.channel.clone(), "prism.admin.v1.AdminService"),
        (site.channel.clone(), "prism.keyvalue.v1.KeyValueService"),
    ] {
        let found = services(channel.clone()).await.unwrap();
        assert!(found.iter().any(|name| name == expected), "{found:?}");
        let mut health = HealthClient::new(channel);
        for service in found.iter().map(String::as_str).filter(|name| !name.starts_with("grpc.")).chain([""]) {
            let request = HealthCheckRequest { service: service.to_owned() };
            assert_eq!(health.check(request).await.unwrap().into_inner().status, 1, "{service:?} serves");
        }
        let unknown = HealthCheckRequest { service: "nonsense".to_owned() };
        assert_eq!(health.check(unknown).await.unwrap_err().code(), Code::NotFound);
    }
}

#[tokio::test]
async fn the_admin_port_names_whatever_it_serves() {
    let found = services(site().await.admin.channel.clone()).await.unwrap();
    for package in PACKAGES {
        for service in ["AdminService", "BootstrapService"] {
            assert!(found.contains(&format!("{package}.{service}")), "{package}.{service} is not among {found:?}");
        }
    }
    for service in ["NodeService", "CaService", "LinkService"] {
        assert!(found.contains(&format!("prism.cluster.v1.{service}")), "{service} is not among {found:?}");
    }
}

#[tokio::test]
async fn reflection_and_health_can_be_switched_off() {
    let server = Prism::start(Options::new().config("[listen]\nreflection = false\nhealth = false\n")).await;
    for channel in [server.admin_channel(), server.data_channel()] {
        assert_eq!(services(channel.clone()).await.unwrap_err().code(), Code::Unimplemented);
        let refused = within("health", HealthClient::new(channel).check(HealthCheckRequest::default())).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);
    }
    server.admin().access().who_am_i(prism_proto::admin::v1::WhoAmIRequest {}).await.unwrap();
}

#[tokio::test]
async fn health_says_not_serving_while_the_node_drains() {
    let server = std::sync::Arc::new(Prism::start(Options::new()).await);
    let site = Site::new(std::sync::Arc::clone(&server)).await;
    let queue = site.session(Pattern::Queue).await;
    queue.publish("t", b"1").await.unwrap();
    let mut stream = queue.subscribe("t", "g").await.unwrap();
    next("a message", &mut stream).await.unwrap().unwrap();
    let mut health = HealthClient::new(site.channel.clone());
    server.signal("TERM");
    until("NOT_SERVING", async || {
        let status = health.clone().check(HealthCheckRequest::default()).await.unwrap().into_inner().status;
        (status == 2).then_some(())
    })
    .await;
    drop(health.check(HealthCheckRequest::default()).await);
}
