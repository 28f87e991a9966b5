//! Values of the domain, at random, for the tests of this crate.

use std::collections::BTreeMap;
use std::sync::Arc;

use prism_core::access::{ClientAccess, ClientGrant, ClientKeyAccess};
use prism_core::config::{AccessPattern, Backend, BackendType, Config, RateLimit};
use prism_core::control::{
    ConfigRevision, Configs, DrainScope, Maintenance, Namespace, NamespaceStatus, Quota, Snapshot,
};
use prism_core::secret::{SecretHash, SecretId};
use prism_core::session::{ClientBasis, DataGrant, SessionFigures, SessionId, SessionRecord, SessionReport};
use prism_core::subject::Subject;
use prism_core::{ConfigName, InstanceName, NamespaceName, NodeId, UnixMillis};
use proptest::prelude::*;

pub fn namespace() -> impl Strategy<Value = NamespaceName> {
    "[a-d]{1,2}".prop_map(|name| NamespaceName::try_from(name).unwrap())
}

pub fn node() -> impl Strategy<Value = NodeId> {
    "[a-d]{1,2}".prop_map(|name| NodeId::try_from(name).unwrap())
}

pub fn at() -> impl Strategy<Value = UnixMillis> {
    (0..4_000_000_000_000i64).prop_map(UnixMillis)
}

pub fn id() -> impl Strategy<Value = SessionId> {
    any::<[u8; 16]>().prop_map(|bytes| SessionId::from_bytes(&bytes).unwrap())
}

pub fn secret_id() -> impl Strategy<Value = SecretId> {
    "[0-9A-Za-z]{16}".prop_map(|text| SecretId::parse(&text).unwrap())
}

pub fn grant() -> impl Strategy<Value = DataGrant> {
    (any::<bool>(), any::<bool>()).prop_map(|(read, write)| DataGrant { read, write })
}

pub fn client_grant() -> impl Strategy<Value = ClientGrant> {
    (namespace(), grant()).prop_map(|(namespace, grant)| ClientGrant { namespace, grant })
}

fn subject() -> impl Strategy<Value = Subject> {
    "[a-e]{1,2}".prop_map(|name| Subject::user(&name).unwrap())
}

pub fn basis() -> impl Strategy<Value = ClientBasis> {
    (".{0,8}", prop::collection::vec(subject(), 0..3), prop::option::of("[0-9a-f]{8}"), prop::option::of("[0-9a-f]{8}"))
        .prop_map(|(credential_id, subjects, certificate, authority)| ClientBasis {
            credential_id,
            subjects,
            certificate,
            authority,
        })
}

pub fn config() -> impl Strategy<Value = Config> {
    let options = prop::collection::btree_map("[a-z]{1,4}", ".{0,8}", 0..3);
    let rate = prop::option::of((0..9i32, 0..9i32));
    ("[a-d]{1,2}", ".{1,5}", namespace(), options, rate).prop_map(|(name, version, namespace, options, rate)| Config {
        name: ConfigName::try_from(name).unwrap(),
        version,
        pattern: AccessPattern::KeyValue,
        backend: Backend { kind: BackendType::Sqlite, options, pool: None },
        instance: InstanceName::parse("i", "sqlite").unwrap(),
        consistency: None,
        cache: None,
        rate_limit: rate.map(|(requests_per_second, burst)| RateLimit { requests_per_second, burst }),
        namespace,
    })
}

pub fn figures() -> impl Strategy<Value = SessionFigures> {
    (any::<i64>(), any::<i64>(), any::<i64>(), any::<i32>(), prop::option::of(at())).prop_map(
        |(requests_total, bytes_sent, bytes_received, active_streams, last_request)| SessionFigures {
            requests_total,
            bytes_sent,
            bytes_received,
            active_streams,
            last_request,
        },
    )
}

pub fn report() -> impl Strategy<Value = SessionReport> {
    (id(), at(), figures()).prop_map(|(id, last_activity, figures)| SessionReport { id, last_activity, figures })
}

pub fn record() -> impl Strategy<Value = SessionRecord> {
    let ids = (id(), secret_id(), any::<[u8; 32]>());
    let texts = ("\\PC{0,8}", "\\PC{0,8}", prop::collection::btree_map(".{1,4}", ".{0,4}", 0..3));
    let rest = (grant(), basis(), at(), at(), at(), prop::option::of(".{0,8}"), figures());
    (ids, texts, config(), any::<bool>(), rest).prop_map(
        |((id, token_id, hash), (client_id, client_version, metadata), config, named, rest)| {
            let (grant, basis, created_at, expires_at, last_activity, terminating, figures) = rest;
            SessionRecord {
                id,
                token_id,
                token_hash: SecretHash::from_bytes(&hash).unwrap(),
                client_id,
                client_version,
                metadata,
                config_name: named.then(|| config.name.clone()),
                config: Arc::new(config),
                grant,
                basis,
                created_at,
                expires_at,
                last_activity,
                terminating,
                figures,
            }
        },
    )
}

fn maintenance() -> impl Strategy<Value = Arc<Maintenance>> {
    (".{0,8}", at(), prop::option::of(at()), any::<bool>()).prop_map(|(message, started_at, ends_at, allow_reads)| {
        Arc::new(Maintenance { message, started_at, ends_at, allow_reads })
    })
}

fn access() -> impl Strategy<Value = ClientAccess> {
    let key = (client_grant(), prop::option::of(at()));
    let key = key.prop_map(|(grant, expires_at)| ClientKeyAccess { grant, expires_at });
    (
        prop::collection::hash_map("[a-d]{1,2}", key, 0..5),
        prop::collection::hash_map(subject(), prop::collection::vec(client_grant(), 0..3), 0..5),
        prop::collection::hash_set("[0-9a-f]{2}", 0..5),
    )
        .prop_map(|(keys, bindings, revoked)| ClientAccess {
            keys,
            bindings,
            revoked_certificates: Arc::new(revoked),
        })
}

pub fn snapshot() -> impl Strategy<Value = Snapshot> {
    let status = prop::sample::select(NamespaceStatus::ALL.to_vec());
    let quota = (0..9i64, 0..9i64, 0..9i64);
    let namespaces = prop::collection::vec((namespace(), status, quota), 0..5);
    let configs = prop::collection::vec((config(), 1..4i64, at(), at()), 0..6);
    let drains = prop::collection::vec((prop::option::of(namespace()), prop::option::of(node())), 0..3);
    let maintenances = (prop::option::of(maintenance()), prop::collection::hash_map(namespace(), maintenance(), 0..3));
    (1..1000u64, configs, namespaces, maintenances, drains, access()).prop_map(
        |(revision, configs, namespaces, (maintenance, namespace_maintenance), drains, access)| {
            let mut all = Configs::default();
            for (mut config, revision, created_at, updated_at) in configs {
                // One revision is one config.
                config.version = revision.to_string();
                let key = config.name.clone();
                let config = Arc::new(config);
                all.insert_cow(key, Arc::new(ConfigRevision { revision, config, created_at, updated_at }));
            }
            let namespaces = namespaces.into_iter().map(|(name, status, quota)| {
                let quota = Quota { max_sessions: quota.0, max_storage_bytes: quota.1, max_rps: quota.2 };
                (name.clone(), Arc::new(Namespace { name, status, quota, generation: 1 }))
            });
            let drains = drains.into_iter().map(|(namespace, node)| DrainScope { namespace, node });
            Snapshot {
                revision,
                configs: all,
                namespaces: namespaces.collect(),
                maintenance,
                namespace_maintenance,
                drains: drains.collect(),
                client_access: Arc::new(access),
            }
        },
    )
}

/// What a snapshot says, for comparison.
pub fn said(snapshot: &Snapshot) -> String {
    let sorted = |map: Vec<String>| {
        let mut map = map;
        map.sort();
        map
    };
    let access = &snapshot.client_access;
    let configs: BTreeMap<_, _> =
        (&snapshot.configs).into_iter().map(|(name, revision)| (name.to_string(), format!("{revision:?}"))).collect();
    format!(
        "{configs:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        sorted(snapshot.namespaces.values().map(|one| format!("{one:?}")).collect()),
        snapshot.maintenance,
        sorted(snapshot.namespace_maintenance.iter().map(|one| format!("{one:?}")).collect()),
        snapshot.drains,
        sorted(access.keys.iter().map(|one| format!("{one:?}")).collect()),
        sorted(access.bindings.iter().map(|one| format!("{one:?}")).collect()),
        sorted(access.revoked_certificates.iter().cloned().collect()),
    )
}
