//! What the controller's end of the link asks of the store.

use std::sync::Arc;
use std::time::Duration;

use prism_core::access::ClientGrant;
use prism_core::config::{AccessPattern, Backend, BackendType, Config};
use prism_core::control::{ClusterState as _, ControlPlane as _, Quota, Removal};
use prism_core::limits::SessionPolicy;
use prism_core::nodes::Told;
use prism_core::secret::{self, Random, SecretKind};
use prism_core::session::{
    AdmitRequest, ClientBasis, DataGrant, EndReason, SessionFigures, SessionRecord, SessionReport,
};
use prism_core::subject::Subject;
use prism_core::{Clock, ConfigName, InstanceName, Kind, NamespaceName, NodeId, UnixMillis};
use tempfile::TempDir;

use crate::session::OVERDUE_GRACE;
use crate::{ClientBindingRow, ClientKeyRow, KeyLife, NamespaceRow, Store, Tx};

const START: UnixMillis = UnixMillis(1_760_000_000_000);
const GRANT: DataGrant = DataGrant { read: true, write: true };

fn node(name: &str) -> NodeId {
    NodeId::parse("node", name).unwrap()
}

async fn store() -> (TempDir, Store, AdmitRequest) {
    let (folder, store, _, request) = store_at().await;
    (folder, store, request)
}

async fn store_at() -> (TempDir, Store, Clock, AdmitRequest) {
    let clock = Clock::manual(START);
    let folder = tempfile::tempdir().unwrap();
    let policy = SessionPolicy::default();
    let store = Store::open(folder.path(), policy, clock.clone(), Random::system()).await.unwrap();
    let namespace = NamespaceName::parse("namespace", "orders").unwrap();
    let name = namespace.clone();
    let subject = Subject::user("app").unwrap();
    let bound = subject.clone();
    store
        .write(move |tx| {
            tx.create_namespace(&name, "", Quota::default())?;
            let row = ClientBindingRow {
                id: Random::system().id(),
                subject: bound,
                grant: ClientGrant { namespace: name, grant: GRANT },
                created_at: START,
                created_by: "test".to_owned(),
            };
            tx.insert_client_binding(&row)
        })
        .await
        .unwrap();
    let config = Config {
        name: ConfigName::try_from("kv".to_owned()).unwrap(),
        version: "1".to_owned(),
        pattern: AccessPattern::KeyValue,
        backend: Backend { kind: BackendType::Memory, options: [].into(), pool: None },
        instance: InstanceName::parse("instance", "memory").unwrap(),
        consistency: None,
        cache: None,
        rate_limit: None,
        namespace,
    };
    let request = AdmitRequest {
        client_id: "app".to_owned(),
        client_version: String::new(),
        metadata: [].into(),
        config: Arc::new(config),
        config_name: None,
        grant: GRANT,
        basis: ClientBasis { credential_id: "app".to_owned(), subjects: vec![subject], ..ClientBasis::default() },
        credential_ends: None,
        key: None,
        node: node("one"),
    };
    (folder, store, clock, request)
}

fn last(record: &SessionRecord, requests_total: i64) -> SessionReport {
    let figures = SessionFigures { requests_total, ..SessionFigures::default() };
    SessionReport { id: record.id, last_activity: record.last_activity, figures }
}

#[tokio::test]
async fn a_session_is_found_by_its_token_and_moves_once() {
    let (_folder, store, clock, request) = store_at().await;
    assert!(store.serving_nodes().await.unwrap().is_empty());
    let (record, token) = store.admit_session(request).await.unwrap();
    let proof = secret::parse(SecretKind::Session, token.expose()).unwrap().proof();
    let (owner, found) = store.session_of(&proof).await.unwrap().unwrap();
    assert_eq!((owner, &found), (node("one"), &record));
    let other = Random::system().secret(SecretKind::Session);
    let wrong = secret::SecretProof { id: proof.id, hash: other.hash };
    assert!(store.session_of(&wrong).await.unwrap().is_none(), "the secret counts, not the id");

    clock.advance(Duration::from_mins(1));
    assert!(store.move_session(record.id, &node("one"), &node("two")).await.unwrap());
    // Whoever brings a token uses its session.
    let record = SessionRecord { last_activity: clock.now(), ..record };
    assert!(!store.move_session(record.id, &node("one"), &node("three")).await.unwrap(), "it is there no more");
    assert_eq!(store.node_of(record.id).await.unwrap(), Some(node("two")));
    assert_eq!(store.serving_nodes().await.unwrap(), [node("two")]);
    assert_eq!(store.sharing_nodes().await.unwrap(), [node("one"), node("two")], "it need not know of the move");
    assert!(store.held_sessions(&node("one")).await.unwrap().is_empty());
    assert_eq!(store.held_sessions(&node("two")).await.unwrap(), std::slice::from_ref(&record));

    store.end_session(last(&record, 1), EndReason::Closed).await.unwrap();
    assert!(store.session_of(&proof).await.unwrap().is_none());
    assert!(!store.move_session(record.id, &node("two"), &node("one")).await.unwrap(), "it is over");
    assert!(store.serving_nodes().await.unwrap().is_empty());
    assert_eq!(store.node_of(record.id).await.unwrap(), Some(node("two")), "also of what has ended");
    assert_eq!(store.sharing_nodes().await.unwrap(), [node("one")]);
    clock.advance(SessionPolicy::default().max_age);
    assert!(store.sharing_nodes().await.unwrap().is_empty(), "no session is older");
}

#[tokio::test]
async fn a_node_reports_its_own_sessions_only() {
    let (_folder, store, request) = store().await;
    let (record, _) = store.admit_session(request).await.unwrap();
    store.report_of(&node("two"), vec![last(&record, 99)]).await.unwrap();
    assert_eq!(store.held_sessions(&node("one")).await.unwrap()[0].figures.requests_total, 0);
    store.report_of(&node("one"), vec![last(&record, 7)]).await.unwrap();
    assert_eq!(store.held_sessions(&node("one")).await.unwrap()[0].figures.requests_total, 7);
}

#[tokio::test]
async fn a_node_that_goes_on_keeps_what_one_that_starts_loses() {
    let (_folder, store, request) = store().await;
    let (record, _) = store.admit_session(request).await.unwrap();
    let id = record.id;
    store.write(move |tx| tx.mark_terminating(id, "enough")).await.unwrap();
    assert_eq!(store.sharing_nodes().await.unwrap(), [node("one")]);
    let held = store.held_sessions(&node("one")).await.unwrap();
    assert_eq!(held[0].terminating.as_deref(), Some("enough"));
    assert!(store.live_sessions(&node("one")).await.unwrap().is_empty(), "nothing is left to wait for");
    assert!(store.held_sessions(&node("one")).await.unwrap().is_empty());
    assert!(store.serving_nodes().await.unwrap().is_empty());
    assert_eq!(store.sharing_nodes().await.unwrap(), [node("one")], "it need not know of the termination");
}

#[tokio::test]
async fn a_node_moves_and_ends_its_own_sessions_only_and_within_their_bounds() {
    let (_folder, store, request) = store().await;
    let (record, _) = store.admit_session(request).await.unwrap();
    let held = async || store.held_sessions(&node("one")).await.unwrap().pop();
    store.extend_of(&node("two"), record.id, record.created_at).await.unwrap();
    store.end_of(&node("two"), last(&record, 9), EndReason::Closed).await.unwrap();
    assert_eq!(held().await.as_ref(), Some(&record));
    // No node makes a session older than it may be, nor busy tomorrow.
    store.extend_of(&node("one"), record.id, UnixMillis(i64::MAX)).await.unwrap();
    let latest = record.created_at + SessionPolicy::default().max_age;
    assert_eq!(held().await.unwrap().expires_at, latest);
    let mut tomorrow = last(&record, 1);
    tomorrow.last_activity = UnixMillis(i64::MAX);
    tomorrow.figures.last_request = Some(UnixMillis(i64::MAX));
    tomorrow.figures.active_streams = -1;
    store.report_of(&node("one"), vec![tomorrow.clone()]).await.unwrap();
    let busy = held().await.unwrap();
    assert_eq!((busy.last_activity, busy.figures.requests_total), (record.created_at, 1));
    store.end_of(&node("one"), tomorrow, EndReason::Closed).await.unwrap();
    assert!(held().await.is_none());
}

#[tokio::test]
async fn a_session_of_a_client_key_needs_the_key() {
    let (_folder, store, mut request) = store().await;
    let secret = Random::system().secret(SecretKind::ClientKey);
    let (id, hash, namespace) = (secret.id, secret.hash, request.config.namespace.clone());
    store
        .write(move |tx| {
            let life = KeyLife { created_at: tx.now, ..KeyLife::default() };
            let name = "app".to_owned();
            tx.insert_client_key(&ClientKeyRow { id, hash, name, namespace, grant: GRANT, life })
        })
        .await
        .unwrap();
    let proof = secret::parse(SecretKind::ClientKey, secret.token.expose()).unwrap().proof();
    let guessed = secret::SecretProof { id: proof.id, hash: Random::system().secret(SecretKind::ClientKey).hash };
    request.basis = ClientBasis { credential_id: proof.id.to_string(), ..ClientBasis::default() };
    for key in [None, Some(guessed)] {
        let refused = store.admit_session(AdmitRequest { key, ..request.clone() }).await.unwrap_err();
        assert_eq!(refused.reason(), "CLIENT_CREDENTIAL_INVALID");
    }
    store.admit_session(AdmitRequest { key: Some(proof), ..request }).await.unwrap();
}

#[tokio::test]
async fn a_node_that_has_still_to_remove_an_earlier_namespace_gets_no_sessions_of_the_later_one() {
    let (_folder, store, mut request) = store().await;
    let namespace = request.config.namespace.clone();
    let told = Told { version: "1".to_owned(), ..Told::default() };
    for name in ["one", "two"] {
        let told = told.clone();
        let joined = move |tx: &mut Tx<'_>| {
            tx.enrol_node(&node(name), "token")?;
            tx.node_linked(name, &told)
        };
        store.write(joined).await.unwrap();
    }
    // One that has never had a link has no data.
    store.write(|tx| tx.enrol_node(&node("three"), "token")).await.unwrap();
    let deleted = namespace.clone();
    store.write(move |tx| tx.delete_namespace(&deleted)).await.unwrap();
    let removals = store.removals(&namespace).await.unwrap();
    let names: Vec<&str> = removals.iter().map(|(node, _)| node.as_str()).collect();
    assert_eq!(names, ["one", "two"]);
    let (name, subject) = (namespace.clone(), request.basis.subjects[0].clone());
    store
        .write(move |tx| {
            tx.finish_removal(&name)?;
            let made = tx.create_namespace(&name, "", Quota::default())?;
            assert!(made.namespace.generation > removals[0].1.generation, "whatever the clock says");
            let grant = ClientGrant { namespace: name.clone(), grant: GRANT };
            let (id, created_by) = (Random::system().id(), "test".to_owned());
            tx.insert_client_binding(&ClientBindingRow { id, subject, grant, created_at: START, created_by })
        })
        .await
        .unwrap();
    let refused = store.admit_session(request.clone()).await.unwrap_err();
    assert_eq!((refused.kind(), refused.reason()), (Kind::Unavailable, "NAMESPACE_BEING_REMOVED"));
    let earlier = Removal { namespace: namespace.clone(), generation: 0 };
    store.removed(&node("one"), &earlier).await.unwrap();
    assert_eq!(store.removals(&namespace).await.unwrap().len(), 2, "what was removed was an earlier one");
    let removal = store.removals_of(&node("one")).await.unwrap().remove(0);
    store.removed(&node("one"), &removal).await.unwrap();
    let (record, _) = store.admit_session(request.clone()).await.unwrap();
    assert!(!store.move_session(record.id, &node("one"), &node("two")).await.unwrap(), "that is not ready for it");
    store.removed(&node("two"), &removal).await.unwrap();
    assert!(store.move_session(record.id, &node("one"), &node("two")).await.unwrap());
    request.node = node("three");
    store.admit_session(request).await.unwrap();
}

#[tokio::test]
async fn no_generation_is_given_twice_whatever_the_clock_does() {
    let (folder, store, request) = store().await;
    let name = request.config.namespace.clone();
    let again = name.clone();
    let generation = |row: Option<NamespaceRow>| row.expect("the namespace").namespace.generation;
    // No node has it to remove, and the clock stands still.
    let remake = move |tx: &mut Tx<'_>| {
        let before = generation(tx.namespace(again.as_str())?);
        tx.delete_namespace(&again)?;
        tx.finish_removal(&again)?;
        let made = tx.create_namespace(&again, "", Quota::default())?;
        assert_eq!((made.namespace.generation, made.created_at), (before + 1, START));
        Ok(made.etag())
    };
    let etag = store.write(remake.clone()).await.unwrap();
    assert_ne!(store.write(remake.clone()).await.unwrap(), etag);
    drop(store);
    // Nor when it was set back while nothing ran.
    let back = Clock::manual(UnixMillis(START.0 - 1000));
    let store = Store::open(folder.path(), SessionPolicy::default(), back, Random::system()).await.unwrap();
    let made = store
        .write(move |tx| {
            tx.delete_namespace(&name)?;
            tx.finish_removal(&name)?;
            tx.create_namespace(&name, "", Quota::default())
        })
        .await
        .unwrap();
    assert_eq!((made.namespace.generation, made.created_at), (START.0 + 3, UnixMillis(START.0 - 1000)));
}

#[tokio::test]
async fn a_session_of_a_node_that_is_away_counts_until_no_node_serves_it() {
    let (_folder, store, clock, request) = store_at().await;
    let name = request.config.namespace.clone();
    let quota = Quota { max_sessions: 1, ..Quota::default() };
    store
        .write(move |tx| {
            let mut row = tx.namespace(name.as_str())?.expect("the namespace");
            row.namespace.quota = quota;
            tx.update_namespace(row).map(|_| ())
        })
        .await
        .unwrap();
    let (record, _) = store.admit_session(request.clone()).await.unwrap();
    // Long idle as far as anybody here knows, which is no reason: the node may know better.
    let left = record.expires_at.since(START) + OVERDUE_GRACE;
    let (moment, before) = (Duration::from_millis(1), left.saturating_sub(Duration::from_millis(1)));
    clock.advance(before);
    store.sweep().await.unwrap();
    assert_eq!(store.held_sessions(&node("one")).await.unwrap().len(), 1);
    assert_eq!(store.admit_session(request.clone()).await.unwrap_err().reason(), "QUOTA_EXCEEDED");
    clock.advance(moment);
    store.sweep().await.unwrap();
    assert!(store.held_sessions(&node("one")).await.unwrap().is_empty(), "and the node drops it when it is back");
    assert!(store.serving_nodes().await.unwrap().is_empty());
    store.admit_session(request).await.unwrap();
}
