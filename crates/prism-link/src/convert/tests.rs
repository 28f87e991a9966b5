use std::sync::Arc;
use std::time::Duration;

use prism_core::config::BackendType;
use prism_core::control::{BackendReport, ClientIdentity, Health, NodeFigures, RequestFigures, Snapshot};
use prism_core::error::{FieldViolation, QuotaViolation};
use prism_core::secret::SecretProof;
use prism_core::session::AdmitRequest;
use prism_core::{Error, Kind, UnixMillis};
use prism_proto::cluster::v1 as wire;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::arbitrary as any_of;

/// Through the bytes.
fn sent<M: Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

fn error() -> impl Strategy<Value = Error> {
    let kind = prop::sample::select(Kind::ALL.to_vec());
    let metadata = prop::collection::btree_map(".{0,4}", ".{0,4}", 0..3);
    let retry = prop::option::of(0..1_000_000u64);
    let plain = (kind, "[A-Z_]{1,8}", ".{0,16}").prop_map(|(kind, reason, message)| Error::new(kind, reason, message));
    let fields = prop::collection::vec((".{0,8}", ".{0,8}"), 1..4).prop_map(|fields| {
        Error::invalid_fields(fields.into_iter().map(|(field, why)| FieldViolation::new(field, why)).collect())
    });
    let quota = prop::sample::select(vec!["max_sessions", "max_rps", "max_storage_bytes", "rate_limit"]);
    let quota = (".{0,8}", quota, any::<i64>(), any::<i64>())
        .prop_map(|(subject, quota, limit, usage)| Error::quota(QuotaViolation { subject, quota, limit, usage }));
    (prop_oneof![plain, fields, quota], metadata, retry).prop_map(|(mut error, metadata, retry)| {
        for (key, value) in metadata {
            error = error.with(key, value);
        }
        retry.map_or(error.clone(), |millis| error.retry_after(Duration::from_millis(millis)))
    })
}

proptest! {
    #[test]
    fn a_session_arrives_as_it_was_sent(record in any_of::record()) {
        prop_assert_eq!(record_from_wire(sent(&record_to_wire(&record).unwrap())).unwrap(), record);
    }

    #[test]
    fn a_report_arrives_as_it_was_sent(report in any_of::report()) {
        prop_assert_eq!(report_from_wire(&sent(&report_to_wire(&report))).unwrap(), report);
    }

    #[test]
    fn an_admission_arrives_with_the_node_that_sent_it(record in any_of::record(), node in any_of::node(), ends in prop::option::of(any_of::at())) {
        let request = AdmitRequest {
            client_id: record.client_id,
            client_version: record.client_version,
            metadata: record.metadata,
            config: record.config,
            config_name: record.config_name,
            grant: record.grant,
            basis: record.basis,
            credential_ends: ends,
            key: None,
            node: node.clone(),
        };
        let arrived = admit_from_wire(sent(&admit_to_wire(request.clone()).unwrap()), node).unwrap();
        prop_assert_eq!(format!("{arrived:?}"), format!("{request:?}"));
    }

    #[test]
    fn a_client_arrives_as_it_was_sent(basis in any_of::basis(), grants in prop::collection::vec(any_of::client_grant(), 0..4), ends in prop::option::of(any_of::at())) {
        let client = ClientIdentity { basis, grants, ends };
        prop_assert_eq!(client_from_wire(sent(&client_to_wire(&client))).unwrap(), client);
    }

    #[test]
    fn an_error_arrives_as_it_was_sent(error in error()) {
        let arrived = failure_from_wire(sent(&failure_to_wire(&error))).unwrap();
        prop_assert_eq!(arrived.kind(), error.kind());
        prop_assert_eq!(arrived.reason(), error.reason());
        prop_assert_eq!(arrived.message(), error.message());
        prop_assert_eq!(arrived.fields(), error.fields());
        prop_assert_eq!(arrived.metadata(), error.metadata());
        prop_assert_eq!(arrived.retry_delay(), error.retry_delay());
        prop_assert_eq!(arrived.quota_violation(), error.quota_violation());
    }

    #[test]
    fn a_proof_arrives_as_it_was_sent(id in any_of::secret_id(), hash in any::<[u8; 32]>()) {
        let proof = SecretProof { id, hash: prism_core::secret::SecretHash::from_bytes(&hash).unwrap() };
        let arrived = proof_from_wire(&sent(&proof_to_wire(&proof))).unwrap();
        prop_assert!(arrived.id == proof.id && arrived.hash == proof.hash);
    }

    #[test]
    fn what_is_between_two_snapshots_leads_from_one_to_the_other(one in any_of::snapshot(), other in any_of::snapshot()) {
        for base in [None, Some(&one)] {
            let items = items_between(base.unwrap_or(&Snapshot::default()), &other).unwrap();
            let mut builder = Builder::new(base, 0);
            for item in items {
                builder.add(sent(&item)).unwrap();
            }
            let arrived = builder.finish(7);
            prop_assert_eq!(arrived.revision, 7);
            // A config of the same revision is the same config; these were made at random.
            let mut expected = other.clone();
            for (name, revision) in base.map(|base| &base.configs).into_iter().flatten() {
                if expected.configs.get(name).is_some_and(|known| known.revision == revision.revision) {
                    expected.configs.insert_cow(name.clone(), Arc::clone(revision));
                }
            }
            prop_assert_eq!(any_of::said(&arrived), any_of::said(&expected));
        }
    }

    #[test]
    fn nothing_is_between_a_snapshot_and_itself(one in any_of::snapshot()) {
        prop_assert!(items_between(&one, &one.clone()).unwrap().is_empty());
    }

    #[test]
    fn frames_of_any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(entry) = wire::SessionEntry::decode(bytes.as_slice()) {
            let _ = record_from_wire(entry);
        }
        if let Ok(item) = wire::SnapshotItem::decode(bytes.as_slice()) {
            let _ = Builder::new(None, i64::MAX).add(item);
        }
        if let Ok(failure) = wire::Failure::decode(bytes.as_slice()) {
            let _ = failure_from_wire(failure);
        }
        if let Ok(report) = wire::BackendReportEntry::decode(bytes.as_slice()) {
            let _ = backend_from_wire(report);
        }
    }
}

#[test]
fn times_of_a_snapshot_are_those_of_the_one_who_reads_it() {
    let maintenance = prism_core::control::Maintenance {
        message: String::new(),
        started_at: UnixMillis(1000),
        ends_at: Some(UnixMillis(5000)),
        allow_reads: false,
    };
    let snapshot = Snapshot { maintenance: Some(Arc::new(maintenance)), ..Snapshot::default() };
    let mut builder = Builder::new(None, 300);
    for item in items_between(&Snapshot::default(), &snapshot).unwrap() {
        builder.add(item).unwrap();
    }
    let arrived = builder.finish(1).maintenance.unwrap();
    assert_eq!((arrived.started_at, arrived.ends_at), (UnixMillis(1300), Some(UnixMillis(5300))));
}

#[test]
fn figures_and_backends_arrive_as_they_were_sent() {
    let some =
        RequestFigures { requests_total: 3, latency_p99_ms: 1.5, active_streams: 2, ..RequestFigures::default() };
    let figures = NodeFigures {
        total: some,
        namespaces: [("a".to_owned(), some), (String::new(), RequestFigures::default())].into(),
        backends: [((BackendType::Memory, "m".to_owned()), some)].into(),
    };
    assert_eq!(node_figures_from_wire(sent(&node_figures_to_wire(&figures))).unwrap(), figures);
    let report = BackendReport {
        kind: BackendType::Sqlite,
        instance: "sqlite".to_owned(),
        endpoint: "/x".to_owned(),
        health: Health::Degraded,
        message: "slow".to_owned(),
        checked_at: UnixMillis(5),
        active_connections: 1,
        pool_size: 2,
        idle_connections: 3,
        cpu_percent: 4.0,
        memory_percent: 5.0,
        requests_per_second: 6,
        avg_latency_ms: 7.0,
        patterns: prism_core::config::AccessPattern::ALL.to_vec(),
    };
    assert_eq!(backend_from_wire(sent(&backend_to_wire(&report))).unwrap(), report);
}
