//! ConfigService on the data plane: contract §3.

use std::collections::BTreeSet;

use prism_e2e::site::config;
use prism_e2e::{Headers, Options, Pattern, Refused as _, Shared, Site};
use prism_proto::config::v1::config_service_client::ConfigServiceClient;
use prism_proto::config::v1::{
    AccessPattern, CacheConfig, GetConfigRequest, ListConfigsRequest, ValidateConfigRequest,
};
use tonic::{Code, Status};

static SERVER: Shared = Shared::new();

async fn site() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

type Configs = ConfigServiceClient<prism_e2e::admin::Credentialed>;

fn with_key(site: &Site, key: &str) -> Configs {
    ConfigServiceClient::with_interceptor(site.channel.clone(), Headers::bearer(key))
}

#[tokio::test]
async fn a_credential_finds_the_configs_of_its_namespace() {
    let (site, other) = (site().await, site().await);
    let (kv, queue) = (site.config(Pattern::KeyValue).await, site.config(Pattern::Queue).await);
    let foreign = other.config(Pattern::KeyValue).await;
    let session = site.session_of(&kv).await;
    for mut configs in [with_key(&site, &site.key), session.configs()] {
        let mut list = async |pattern: Option<AccessPattern>, namespace: Option<&str>| {
            let request =
                ListConfigsRequest { pattern: pattern.map(Into::into), namespace: namespace.map(ToOwned::to_owned) };
            let found = configs.list_configs(request).await?.into_inner().configs;
            Ok::<BTreeSet<_>, Status>(found.into_iter().map(|config| config.name).collect())
        };
        assert_eq!(list(None, None).await.unwrap(), BTreeSet::from([kv.clone(), queue.clone()]));
        assert_eq!(
            list(Some(AccessPattern::Queue), Some(&site.namespace)).await.unwrap(),
            BTreeSet::from([queue.clone()])
        );
        assert_eq!(list(None, Some(&other.namespace)).await.refused().code, Code::PermissionDenied);
        let mut get = async |name: &str| {
            let request = GetConfigRequest { name: name.to_owned(), version: None };
            configs.get_config(request).await.map(tonic::Response::into_inner)
        };
        assert_eq!(get(&kv).await.unwrap().config.unwrap(), config(&kv, &site.namespace, Pattern::KeyValue));
        let (hidden, absent) = (get(&foreign).await.refused(), get("absent").await.refused());
        assert_eq!((hidden.code, &hidden.reason), (Code::NotFound, &absent.reason));
    }
    let mut nobody = ConfigServiceClient::new(site.channel.clone());
    assert_eq!(nobody.list_configs(ListConfigsRequest::default()).await.refused().code, Code::Unauthenticated);
    for bad in [site.server.admin_token(), "prc_nonsense".to_owned()] {
        let refused = with_key(&site, &bad).list_configs(ListConfigsRequest::default()).await.refused();
        assert_eq!(refused.code, Code::Unauthenticated);
    }
}

#[tokio::test]
async fn version_finds_the_newest_revision_with_it() {
    let site = site().await;
    let name = site.config(Pattern::KeyValue).await;
    let second = prism_proto::config::v1::ClientConfig {
        version: "2".to_owned(),
        ..config(&name, &site.namespace, Pattern::KeyValue)
    };
    let update =
        prism_proto::admin::v1::UpdateConfigRequest { name: name.clone(), config: Some(second), ..Default::default() };
    site.admin.service().update_config(update).await.unwrap();
    let mut configs = with_key(&site, &site.key);
    let mut get = async |version: Option<&str>| {
        let request = GetConfigRequest { name: name.clone(), version: version.map(ToOwned::to_owned) };
        configs.get_config(request).await.map(|answer| answer.into_inner().config.unwrap().version)
    };
    assert_eq!(get(None).await.unwrap(), "2");
    assert_eq!(get(Some("2")).await.unwrap(), "2");
    assert_eq!(get(Some("9")).await.refused().code, Code::NotFound);
    assert_eq!(get(Some("1")).await.unwrap(), "1", "every accepted config is a revision, and old ones stay readable");
}

#[tokio::test]
async fn a_config_is_validated_without_being_made() {
    let site = site().await;
    let mut configs = with_key(&site, &site.key);
    let mut validate = async |config| {
        let answer = configs.validate_config(ValidateConfigRequest { config }).await.unwrap().into_inner();
        assert_eq!(answer.valid, answer.errors.is_empty());
        (answer.errors, answer.warnings)
    };
    let good = config("fine", &site.namespace, Pattern::Transact);
    assert_eq!(validate(Some(good.clone())).await, (vec![], vec![]));
    let mut bad = good.clone();
    bad.version.clear();
    bad.namespace = "nowhere".to_owned();
    bad.backend.as_mut().unwrap().options.insert("schema".to_owned(), "DROP TABLE items".to_owned());
    let (errors, _) = validate(Some(bad)).await;
    assert!(
        errors.iter().any(|e| e.contains("config.version")) && errors.iter().any(|e| e.contains("config.namespace")),
        "{errors:?}"
    );
    let mut schema = good.clone();
    schema.backend.as_mut().unwrap().options.insert("schema".to_owned(), "DROP TABLE items".to_owned());
    let (errors, _) = validate(Some(schema)).await;
    assert!(errors.iter().any(|error| error.contains("config.backend.options.schema")), "{errors:?}");
    let mut cached = good;
    cached.cache = Some(CacheConfig { enabled: true, ttl_seconds: 1, max_size_mb: 1 });
    let (errors, warnings) = validate(Some(cached)).await;
    assert!(errors.is_empty() && warnings.len() == 1, "{warnings:?}");
    assert!(!validate(None).await.0.is_empty());
    let list = with_key(&site, &site.key).list_configs(ListConfigsRequest::default()).await.unwrap().into_inner();
    assert!(list.configs.is_empty(), "nothing was made");
}
