//! Configs: contract §3, and §9 "config updates" and "config errors".

use std::sync::Arc;

use prism_e2e::site::{config, unique, with_option};
use prism_e2e::{Options, Pattern, Prism, Refused as _, Shared, Site, data};
use prism_proto::admin::v1 as wire;
use prism_proto::config::v1::{
    AccessPattern, BackendConfig, BackendType, CacheConfig, ClientConfig, ConsistencyConfig, PoolConfig,
    RateLimitConfig,
};
use tonic::Code;

static SERVER: Shared = Shared::new();

async fn site() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

async fn get(site: &Site, name: &str) -> wire::GetConfigResponse {
    site.admin.service().get_config(by_name(name)).await.unwrap().into_inner()
}

fn by_name(name: &str) -> wire::GetConfigRequest {
    wire::GetConfigRequest { name: name.to_owned(), ..Default::default() }
}

fn create(config: ClientConfig) -> wire::CreateConfigRequest {
    wire::CreateConfigRequest { config: Some(config), ..Default::default() }
}

fn update(name: &str, config: ClientConfig) -> wire::UpdateConfigRequest {
    wire::UpdateConfigRequest { name: name.to_owned(), config: Some(config), ..Default::default() }
}

/// Every field of a config, within its bounds.
fn full(name: &str, namespace: &str) -> ClientConfig {
    let mut full = with_option(config(name, namespace, Pattern::Queue), "partitions", "4");
    let backend = full.backend.as_mut().unwrap();
    backend.pool = Some(PoolConfig { min_connections: 1, max_connections: 2, idle_timeout_seconds: 3 });
    full.consistency = Some(ConsistencyConfig { level: 2, timeout_ms: 5000 });
    full.cache = Some(CacheConfig { enabled: true, ttl_seconds: 60, max_size_mb: 1 });
    full.rate_limit = Some(RateLimitConfig { requests_per_second: 1000, burst: 2000 });
    full
}

#[tokio::test]
async fn a_config_is_read_back_field_for_field_as_revision_1() {
    let site = site().await;
    let name = unique("full");
    let wanted = full(&name, &site.namespace);
    let made = site.admin.service().create_config(create(wanted.clone())).await.unwrap().into_inner();
    assert_eq!(made.config, Some(wanted.clone()));
    let read = get(&site, &name).await;
    assert_eq!((read.config, read.revision, read.created_at), (Some(wanted), 1, made.created_at));
    assert!(!read.etag.is_empty() && read.updated_at == read.created_at);
}

#[tokio::test]
async fn an_update_replaces_the_whole_and_old_revisions_stay_readable() {
    let site = site().await;
    let name = unique("c");
    site.configure(full(&name, &site.namespace)).await;
    let first = get(&site, &name).await;
    let mut second = config("", &site.namespace, Pattern::Queue);
    second.version = "2".to_owned();
    let answer = site.admin.service().update_config(update(&name, second.clone())).await.unwrap().into_inner();
    second.name.clone_from(&name);
    assert_eq!(answer.config, Some(second.clone()), "nothing of the first is left");
    let mut third = second.clone();
    third.rate_limit = Some(RateLimitConfig { requests_per_second: 5, burst: 0 });
    site.admin.service().update_config(update(&name, third.clone())).await.unwrap();

    let current = get(&site, &name).await;
    assert_eq!((current.config.as_ref(), current.revision), (Some(&third), 3));
    assert_eq!(current.created_at, first.created_at);
    assert_ne!(current.etag, first.etag);
    let at = async |version: Option<&str>, revision: Option<i64>| {
        let request = wire::GetConfigRequest { name: name.clone(), version: version.map(ToOwned::to_owned), revision };
        site.admin.service().get_config(request).await.map(tonic::Response::into_inner)
    };
    assert_eq!(at(None, Some(1)).await.unwrap().config, first.config);
    assert_eq!(at(Some("1"), None).await.unwrap().revision, 1);
    assert_eq!(at(Some("2"), None).await.unwrap().revision, 3, "the newest with that version");
    assert_eq!(at(Some("9"), None).await.refused().code, Code::NotFound);
    assert_eq!(at(None, Some(4)).await.refused().code, Code::NotFound);
    at(None, Some(0)).await.refused().names(&["revision"]);
}

#[tokio::test]
async fn overwrite_keeps_created_at_and_revisions_go_on_after_a_deletion() {
    let site = site().await;
    let name = site.config(Pattern::KeyValue).await;
    let first = get(&site, &name).await;
    let again = config(&name, &site.namespace, Pattern::KeyValue);
    let refused = site.admin.service().create_config(create(again.clone())).await.refused();
    assert_eq!(refused.code, Code::AlreadyExists);
    let overwrite = wire::CreateConfigRequest { overwrite: true, ..create(again.clone()) };
    let answer = site.admin.service().create_config(overwrite).await.unwrap().into_inner();
    assert_eq!(answer.created_at, first.created_at);
    assert_eq!(get(&site, &name).await.revision, 2);

    let delete = wire::DeleteConfigRequest { name: name.clone(), etag: None };
    assert!(site.admin.service().delete_config(delete.clone()).await.unwrap().into_inner().success);
    assert_eq!(site.admin.service().get_config(by_name(&name)).await.refused().code, Code::NotFound);
    assert_eq!(site.admin.service().delete_config(delete).await.refused().code, Code::NotFound);
    let gone = site.admin.service().update_config(update(&name, again.clone())).await.refused();
    assert_eq!(gone.code, Code::NotFound);
    site.configure(again).await;
    assert_eq!(get(&site, &name).await.revision, 3);
}

#[tokio::test]
async fn revisions_of_a_config_of_the_same_name_in_another_namespace_stay_hidden() {
    let site = site().await;
    let name = unique("reused");
    site.configure(full(&name, &site.namespace)).await;
    let delete = wire::DeleteConfigRequest { name: name.clone(), etag: None };
    site.admin.service().delete_config(delete).await.unwrap();
    let other = unique("other");
    site.admin.create_namespace(&other).await;
    let second = ClientConfig { version: "2".to_owned(), ..config(&name, &other, Pattern::KeyValue) };
    site.admin.create_config(second).await;
    assert_eq!(get(&site, &name).await.revision, 2);
    let bound = site.admin.with_role("viewer", Some(&other)).await;
    for request in [
        wire::GetConfigRequest { revision: Some(1), ..by_name(&name) },
        wire::GetConfigRequest { version: Some("1".to_owned()), ..by_name(&name) },
    ] {
        assert_eq!(bound.service().get_config(request).await.refused().code, Code::NotFound);
    }
}

#[tokio::test]
async fn name_and_namespace_cannot_change_and_names_are_unique_in_the_installation() {
    let site = site().await;
    let other = unique("other");
    site.admin.create_namespace(&other).await;
    let name = site.config(Pattern::KeyValue).await;
    let renamed = update(&name, config("another", &site.namespace, Pattern::KeyValue));
    site.admin.service().update_config(renamed).await.refused().names(&["config.name"]);
    let moved = config(&name, &other, Pattern::KeyValue);
    site.admin.service().update_config(update(&name, moved.clone())).await.refused().names(&["config.namespace"]);
    let overwrite = wire::CreateConfigRequest { overwrite: true, ..create(moved.clone()) };
    site.admin.service().create_config(overwrite).await.refused().names(&["config.namespace"]);
    let taken = site.admin.service().create_config(create(moved)).await.refused();
    assert_eq!(taken.code, Code::AlreadyExists);
}

#[tokio::test]
async fn an_etag_that_is_not_the_current_one_is_aborted() {
    let site = site().await;
    let name = site.config(Pattern::KeyValue).await;
    let old = get(&site, &name).await.etag;
    let change = |etag: &str| wire::UpdateConfigRequest {
        etag: Some(etag.to_owned()),
        ..update(&name, config(&name, &site.namespace, Pattern::KeyValue))
    };
    site.admin.service().update_config(change(&old)).await.unwrap();
    assert_eq!(site.admin.service().update_config(change(&old)).await.refused().code, Code::Aborted);
    assert_eq!(get(&site, &name).await.revision, 2);
    let delete = |etag: &str| wire::DeleteConfigRequest { name: name.clone(), etag: Some(etag.to_owned()) };
    assert_eq!(site.admin.service().delete_config(delete(&old)).await.refused().code, Code::Aborted);
    let current = get(&site, &name).await.etag;
    site.admin.service().delete_config(delete(&current)).await.unwrap();
}

#[tokio::test]
async fn validate_only_answers_as_live_would_without_timestamps_and_changes_nothing() {
    let site = site().await;
    let name = unique("dry");
    let wanted = config(&name, &site.namespace, Pattern::Transact);
    let dry = |request: wire::CreateConfigRequest| wire::CreateConfigRequest { validate_only: true, ..request };
    let answer = site.admin.service().create_config(dry(create(wanted.clone()))).await.unwrap().into_inner();
    assert_eq!((answer.config, answer.created_at), (Some(wanted.clone()), None));
    assert_eq!(site.admin.service().get_config(by_name(&name)).await.refused().code, Code::NotFound);

    let mut bad = wanted.clone();
    bad.namespace = "nowhere".to_owned();
    let live = site.admin.service().create_config(create(bad.clone())).await.refused();
    let rehearsed = site.admin.service().create_config(dry(create(bad))).await.refused();
    assert_eq!((live.code, live.fields, live.message), (rehearsed.code, rehearsed.fields, rehearsed.message));

    site.configure(wanted.clone()).await;
    let exists = site.admin.service().create_config(dry(create(wanted.clone()))).await.refused();
    assert_eq!(exists.code, Code::AlreadyExists);
    let request = wire::UpdateConfigRequest { validate_only: true, ..update(&name, wanted.clone()) };
    let answer = site.admin.service().update_config(request).await.unwrap().into_inner();
    assert_eq!((answer.config, answer.updated_at), (Some(wanted.clone()), None));
    assert_eq!(get(&site, &name).await.revision, 1);
    let stale =
        wire::UpdateConfigRequest { validate_only: true, etag: Some("stale".to_owned()), ..update(&name, wanted) };
    assert_eq!(site.admin.service().update_config(stale).await.refused().code, Code::Aborted);
}

#[tokio::test]
async fn every_violation_comes_in_one_answer_with_its_path() {
    let site = site().await;
    let bad = ClientConfig {
        name: "Bad Name".to_owned(),
        version: String::new(),
        pattern: AccessPattern::Queue.into(),
        backend: Some(BackendConfig {
            r#type: BackendType::Sqlite.into(),
            options: [("instance".to_owned(), "nowhere".to_owned()), ("partitions".to_owned(), "0".to_owned())].into(),
            pool: Some(PoolConfig { min_connections: -1, ..PoolConfig::default() }),
        }),
        consistency: Some(ConsistencyConfig { level: 77, timeout_ms: -1 }),
        cache: Some(CacheConfig { enabled: true, ttl_seconds: -1, max_size_mb: -1 }),
        rate_limit: Some(RateLimitConfig { requests_per_second: -1, burst: -1 }),
        namespace: "nowhere".to_owned(),
    };
    let refused = site.admin.service().create_config(create(bad)).await.refused();
    let mut fields = refused.fields.clone();
    fields.sort();
    assert_eq!(
        fields,
        [
            "config.backend.options.instance",
            "config.backend.options.partitions",
            "config.backend.pool.min_connections",
            "config.cache.max_size_mb",
            "config.cache.ttl_seconds",
            "config.consistency.level",
            "config.consistency.timeout_ms",
            "config.name",
            "config.namespace",
            "config.rate_limit.burst",
            "config.rate_limit.requests_per_second",
            "config.version",
        ]
    );
    refused.is(Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(refused.domain, "prism.admin.v1");
}

/// Contract §5, the rows of the embedded backends; the other types are not configured on this server.
#[tokio::test]
async fn a_pattern_that_does_not_fit_its_backend_is_refused() {
    use AccessPattern::{KeyValue, PagedReader, Pubsub, Queue, TransactWrite};

    let site = site().await;
    for backend in [BackendType::Sqlite, BackendType::Memory] {
        for pattern in [KeyValue, Queue, Pubsub, PagedReader, TransactWrite] {
            let fits = match backend {
                BackendType::Sqlite => pattern != Pubsub,
                _ => matches!(pattern, KeyValue | Pubsub),
            };
            let mut wanted = config(&unique("fit"), &site.namespace, Pattern::KeyValue);
            wanted.pattern = pattern.into();
            let part = wanted.backend.as_mut().unwrap();
            part.r#type = backend.into();
            for (only, option) in [(PagedReader, "collections"), (TransactWrite, "tables")] {
                if fits && pattern == only {
                    part.options.insert(option.to_owned(), "items".to_owned());
                }
            }
            let answer = site.admin.service().create_config(create(wanted)).await;
            if fits {
                answer.unwrap();
            } else {
                answer.refused().names(&["config.pattern"]);
            }
        }
    }
    for backend in [BackendType::Postgres, BackendType::Kafka, BackendType::Nats, BackendType::Redis] {
        let mut wanted = config(&unique("fit"), &site.namespace, Pattern::Queue);
        wanted.backend.as_mut().unwrap().r#type = backend.into();
        site.admin.service().create_config(create(wanted)).await.refused().names(&["config.backend.options.instance"]);
    }
}

#[tokio::test]
async fn a_schema_holds_create_table_and_index_if_not_exists_only() {
    let site = site().await;
    for bad in [
        "CREATE TABLE items (id TEXT)",
        "DROP TABLE items",
        "CREATE TABLE IF NOT EXISTS items (id TEXT); DELETE FROM items",
        "CREATE VIEW IF NOT EXISTS v AS SELECT 1",
        "CREATE TABLE IF NOT EXISTS sqlite_x (id TEXT)",
        "CREATE TABLE IF NOT EXISTS _prism_kv (id TEXT)",
        "CREATE TABLE IF NOT EXISTS other.items (id TEXT)",
        "CREATE TABLE IF NOT EXISTS items (",
        "ATTACH DATABASE '/tmp/x' AS y",
        "PRAGMA journal_mode = OFF",
    ] {
        for pattern in [Pattern::Transact, Pattern::Reader] {
            let wanted = with_option(config(&unique("schema"), &site.namespace, pattern), "schema", bad);
            let refused = site.admin.service().create_config(create(wanted)).await.refused();
            assert_eq!(refused.fields, ["config.backend.options.schema"], "{bad}: {refused:?}");
        }
    }
    let good = "CREATE TABLE IF NOT EXISTS items (id TEXT PRIMARY KEY, name TEXT); CREATE INDEX IF NOT EXISTS i ON items (name);";
    site.configure(with_option(config(&unique("schema"), &site.namespace, Pattern::Transact), "schema", good)).await;
}

#[tokio::test]
async fn deleting_a_config_leaves_running_sessions_and_stops_new_ones() {
    let site = site().await;
    let name = site.config(Pattern::KeyValue).await;
    let session = site.session_of(&name).await;
    let delete = wire::DeleteConfigRequest { name: name.clone(), etag: None };
    site.admin.service().delete_config(delete).await.unwrap();
    session.put("a", b"1").await.unwrap();
    assert_eq!(site.open(data::named(&site.key, &name)).await.refused().code, Code::NotFound);
}

#[tokio::test]
async fn an_update_leaves_running_sessions_as_they_are() {
    let site = site().await;
    let name = site.config(Pattern::KeyValue).await;
    let session = site.session_of(&name).await;
    let changed = ClientConfig { version: "2".to_owned(), ..config(&name, &site.namespace, Pattern::Queue) };
    site.admin.service().update_config(update(&name, changed)).await.unwrap();
    session.put("a", b"1").await.unwrap();
    assert_eq!(session.describe().await.unwrap().config.unwrap().version, "1");
    let new = site.session_of(&name).await;
    new.publish("t", b"1").await.unwrap();
    new.put("a", b"1").await.refused().is(Code::FailedPrecondition, "WRONG_PATTERN");
}

#[tokio::test]
async fn lists_filter_by_namespace_and_pattern_with_exact_totals() {
    let site = site().await;
    for pattern in [Pattern::KeyValue, Pattern::KeyValue, Pattern::Queue] {
        site.config(pattern).await;
    }
    let list = async |pattern: Option<i32>| {
        let request =
            wire::ListConfigsRequest { namespace: Some(site.namespace.clone()), pattern, ..Default::default() };
        site.admin.service().list_configs(request).await.map(tonic::Response::into_inner)
    };
    for (pattern, count) in [(None, 3), (Some(AccessPattern::KeyValue), 2), (Some(AccessPattern::Pubsub), 0)] {
        let found = list(pattern.map(Into::into)).await.unwrap();
        assert_eq!((found.configs.len(), found.total_count), (count, count as i32), "{pattern:?}");
    }
    list(Some(99)).await.refused().names(&["pattern"]);
}

#[tokio::test]
async fn the_instance_must_be_named_where_there_are_several() {
    let text = "[[backend]]\nname = \"one\"\ntype = \"sqlite\"\n[[backend]]\nname = \"two\"\ntype = \"sqlite\"\n";
    let site = Site::new(Arc::new(Prism::start(Options::new().config(text)).await)).await;
    let open = config("open", &site.namespace, Pattern::KeyValue);
    let refused = site.admin.service().create_config(create(open.clone())).await.refused();
    refused.names(&["config.backend.options.instance"]);
    // The same namespace on two instances: other data (contract §9 "data of a namespace").
    let mut sessions = Vec::new();
    for instance in ["one", "two"] {
        let named = with_option(ClientConfig { name: instance.to_owned(), ..open.clone() }, "instance", instance);
        site.configure(named).await;
        sessions.push(site.session_of(instance).await);
    }
    sessions[0].put("a", b"1").await.unwrap();
    assert!(!sessions[1].get("a").await.unwrap().found);
}
