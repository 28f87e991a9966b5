//! Reading the audit log: filters, orders, limits and places to go on from, against a model of them, across crashes; and a
//! reader that is cut off again and again misses nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prism_e2e::books::random;
use prism_e2e::wait::{next, silent, within};
use prism_e2e::{Admin, Options, Prism, Site, audit};
use prism_proto::admin::v1 as wire;
use prism_proto::admin::v1::{AuditLogEntry, GetAuditLogRequest};
use prost_types::Timestamp;
use tokio::task::JoinSet;
use tonic::Streaming;

const USERS: [&str; 4] = ["ann", "bob", "carl", "ann@example.com"];
const OPERATIONS: [&str; 4] = ["GetNamespace", "ListConfigs", "UpdateNamespace", "GetConfig"];
/// What a request without a limit gets.
const DEFAULT_LIMIT: usize = 100;

fn one_of<T: Clone>(all: &[T]) -> T {
    all[random() as usize % all.len()].clone()
}

fn perhaps<T>(value: impl FnOnce() -> T) -> Option<T> {
    random().is_multiple_of(2).then(value)
}

/// One call that leaves an entry, which succeeds or fails.
async fn act(admin: &Admin, operation: &str, namespace: &str) {
    let name = namespace.to_owned();
    let mut service = admin.service();
    match operation {
        "GetNamespace" => drop(service.get_namespace(wire::GetNamespaceRequest { name }).await),
        "UpdateNamespace" => {
            let description = Some(format!("{:x}", random()));
            let request = wire::UpdateNamespaceRequest { name, description, ..Default::default() };
            drop(service.update_namespace(request).await);
        }
        "GetConfig" => {
            let request = wire::GetConfigRequest { name: "absent".to_owned(), ..Default::default() };
            drop(service.get_config(request).await);
        }
        _ => {
            let request = wire::ListConfigsRequest { namespace: Some(name), ..Default::default() };
            drop(service.list_configs(request).await);
        }
    }
}

/// What the contract says that a request yields, of a log as it was.
fn model(
    log: &[AuditLogEntry],
    request: &GetAuditLogRequest,
    seen: &dyn Fn(&AuditLogEntry) -> bool,
) -> Vec<AuditLogEntry> {
    let at = |time: &Timestamp| (time.seconds, time.nanos);
    let matches = |entry: &&AuditLogEntry| {
        let time = at(&entry.timestamp.expect("a time"));
        seen(entry)
            && request.namespace.as_ref().is_none_or(|namespace| *namespace == entry.namespace)
            && request.actor.as_ref().is_none_or(|actor| *actor == entry.actor)
            && request.operation.as_ref().is_none_or(|operation| *operation == entry.operation)
            && request.start_time.as_ref().is_none_or(|start| time >= at(start))
            && request.end_time.as_ref().is_none_or(|end| time < at(end))
    };
    let limit = match (request.limit as usize, &request.resume_after) {
        (0, None) if !request.oldest_first => DEFAULT_LIMIT,
        (0, _) => usize::MAX,
        (limit, _) => limit,
    };
    match &request.resume_after {
        None if request.oldest_first => log.iter().filter(matches).take(limit).cloned().collect(),
        None => log.iter().rev().filter(matches).take(limit).cloned().collect(),
        Some(id) => {
            let from = log.iter().position(|entry| entry.id == *id).expect("an entry");
            log[from + 1..].iter().filter(matches).take(limit).cloned().collect()
        }
    }
}

/// A request that cannot find the entries of requests like itself, which come after `log`.
fn arbitrary(log: &[AuditLogEntry], namespaces: &[String]) -> GetAuditLogRequest {
    let time = || one_of(log).timestamp.expect("a time");
    let end = log.last().and_then(|entry| entry.timestamp).map(|end| Timestamp { nanos: end.nanos + 1_000_000, ..end });
    let (actor, operation) = (perhaps(|| one_of(&USERS).to_owned()), perhaps(|| one_of(&OPERATIONS).to_owned()));
    let mut request = GetAuditLogRequest {
        namespace: perhaps(|| one_of(namespaces)),
        start_time: perhaps(time),
        end_time: if actor.is_none() && operation.is_none() {
            end.filter(|end| end.nanos < 1_000_000_000)
        } else {
            perhaps(time)
        },
        limit: one_of(&[0, 0, 1, 2, 7, 100, 101, 1000, 10_000]),
        resume_after: perhaps(|| one_of(log).id),
        actor,
        operation,
        follow: false,
        oldest_first: one_of(&[true, false, false]),
    };
    let order = |time: &Option<Timestamp>| time.map(|time| (time.seconds, time.nanos));
    if request.end_time.is_some() && order(&request.start_time) > order(&request.end_time) {
        std::mem::swap(&mut request.start_time, &mut request.end_time);
    }
    if request.end_time.is_none() && request.actor.is_none() && request.operation.is_none() {
        request.actor = Some(USERS[0].to_owned());
    }
    request
}

#[tokio::test]
async fn every_filter_order_limit_and_place_yields_what_the_contract_says() {
    let server = Arc::new(Prism::start(Options::new()).await);
    let sites = [Site::new(Arc::clone(&server)).await, Site::new(Arc::clone(&server)).await];
    let mut namespaces: Vec<String> = sites.iter().map(|site| site.namespace.clone()).collect();
    namespaces.extend(["nowhere".to_owned()]);
    let bound = server.admin().create_api_key("viewer", Some(&namespaces[0]), None).await.token;
    let mut asked = 0;
    for round in 0..3 {
        let admin = server.admin();
        for _ in 0..150 {
            let caller = admin.and("x-admin-user", one_of(&USERS));
            act(&caller, one_of(&OPERATIONS), &one_of(&namespaces)).await;
        }
        // So that what is asked from here on is later than the log.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let log = admin.whole_log().await;
        audit::verify(&log);
        let viewer = admin.with_key(&bound);
        for _ in 0..80 {
            let request = arbitrary(&log, &namespaces);
            let expected = model(&log, &request, &|_| true);
            assert_eq!(admin.audit(request.clone()).await, expected, "round {round}: {request:?}");
            asked += 1;

            // What a caller may not see is as if it were not there.
            let own = |entry: &AuditLogEntry| entry.namespace == namespaces[0];
            let place = request.resume_after.as_ref().map(|id| log.iter().find(|entry| entry.id == *id).unwrap());
            let mine = request.namespace.as_ref().is_none_or(|namespace| *namespace == namespaces[0]);
            if mine && place.is_none_or(own) {
                let expected = model(&log, &request, &own);
                assert_eq!(viewer.audit(request.clone()).await, expected, "round {round}, bound: {request:?}");
            }

            // Followed from there, the same comes, and then nothing until there is more.
            let Some(place) = place else { continue };
            if asked % 8 == 0 && request.actor.is_some() {
                let request =
                    GetAuditLogRequest { follow: true, limit: 0, resume_after: Some(place.id.clone()), ..request };
                let expected = model(&log, &request, &|_| true);
                let mut stream = admin.service().get_audit_log(request).await.unwrap().into_inner();
                for entry in expected {
                    assert_eq!(next("an entry", &mut stream).await.unwrap().unwrap(), entry);
                }
                assert!(silent(&mut stream, Duration::from_millis(50)).await);
            }
        }
        server.crash_and_restart().await;
    }
    println!("{asked} requests answered as the model says");
}

/// What was asked in pages is the same as what is asked at once, in both directions.
#[tokio::test]
async fn pages_by_the_place_of_their_last_entry_are_the_whole() {
    let server = Prism::start(Options::new()).await;
    let admin = server.admin();
    for _ in 0..300 {
        act(&admin.and("x-admin-user", one_of(&USERS)), one_of(&OPERATIONS), "nowhere").await;
    }
    let log = admin.whole_log().await;
    let mut paged = vec![log[0].clone()];
    while paged.last().unwrap().sequence < log.last().unwrap().sequence {
        let resume_after = Some(paged.last().unwrap().id.clone());
        let limit = 1 + (random() % 40) as i32;
        paged.extend(admin.audit(GetAuditLogRequest { resume_after, limit, ..Default::default() }).await);
        if random().is_multiple_of(8) {
            act(&admin, "GetConfig", "").await;
        }
    }
    paged.truncate(log.len());
    assert_eq!(paged, log);
}

/// Writers that go on until they are told to stop or lose their server; they note what was answered.
struct Load {
    stop: Arc<AtomicBool>,
    writers: JoinSet<BTreeSet<String>>,
}

impl Load {
    fn new(admin: &Admin, namespace: &str, phase: usize) -> Self {
        let (stop, mut writers) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for writer in 0..4 {
            let (admin, namespace, stop) = (admin.clone(), namespace.to_owned(), Arc::clone(&stop));
            writers.spawn(async move {
                let mut answered = BTreeSet::new();
                for number in 0.. {
                    let id = format!("load-{phase}-{writer}-{number}");
                    let caller = admin.and("x-request-id", &id);
                    let answer = match number % 3 {
                        0 => caller.who_am_i().await.map(drop),
                        1 => caller.ask("GetNamespace", &serde_json::json!({"name": namespace})).await,
                        _ => caller.ask("ListConfigs", &serde_json::json!({})).await,
                    };
                    if answer.is_err() || stop.load(Ordering::SeqCst) {
                        break;
                    }
                    answered.insert(id);
                }
                answered
            });
        }
        Self { stop, writers }
    }

    async fn end(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::SeqCst);
        within("the writers", self.writers.join_all()).await.into_iter().flatten().collect()
    }
}

/// A reader that follows with a filter, is cut off, and goes on after what it saw last.
struct Reader {
    filter: GetAuditLogRequest,
    seen: Vec<AuditLogEntry>,
    resumed: usize,
}

impl Reader {
    fn new(first: AuditLogEntry, filter: GetAuditLogRequest) -> Self {
        Self { filter, seen: vec![first], resumed: 0 }
    }

    async fn resume(&mut self, admin: &Admin) -> Streaming<AuditLogEntry> {
        let resume_after = self.seen.last().map(|entry| entry.id.clone());
        let request = GetAuditLogRequest { follow: true, resume_after, ..self.filter.clone() };
        self.resumed += 1;
        admin.service().get_audit_log(request).await.expect("a stream").into_inner()
    }

    /// Goes on, is cut off `cuts` times, each time after a few entries.
    async fn read(&mut self, server: &Prism, cuts: usize) {
        for cut in 0..cuts {
            // Now with the connection, now without.
            let admin = server.admin();
            let mut stream = self.resume(&admin).await;
            for _ in 0..random() % 60 {
                match next("an entry", &mut stream).await {
                    Some(Ok(entry)) => self.seen.push(entry),
                    lost => panic!("cut {cut}: {lost:?}"),
                }
            }
        }
    }

    /// Reads until the server goes away.
    async fn read_to_the_end(&mut self, admin: &Admin) {
        let mut stream = self.resume(admin).await;
        while let Some(Ok(entry)) = next("an entry", &mut stream).await {
            self.seen.push(entry);
        }
    }

    /// Reads on until the entry with this sequence has come, or would have.
    async fn catch_up(&mut self, admin: &Admin, log: &[AuditLogEntry]) {
        let expected = self.expected(log);
        let mut stream = self.resume(admin).await;
        while self.seen.len() < expected.len() {
            self.seen.push(next("an entry", &mut stream).await.expect("an entry").expect("an entry"));
        }
        assert_eq!(self.seen, expected, "after {} resumptions", self.resumed);
    }

    /// The first entry, and all that match after it.
    fn expected(&self, log: &[AuditLogEntry]) -> Vec<AuditLogEntry> {
        let request = GetAuditLogRequest { resume_after: Some(self.seen[0].id.clone()), ..self.filter.clone() };
        let mut expected = vec![self.seen[0].clone()];
        expected.extend(model(log, &request, &|_| true));
        expected
    }
}

#[tokio::test]
async fn readers_that_are_cut_off_under_load_see_each_entry_once() {
    const CUTS: usize = 10;
    let server = Arc::new(Prism::start(Options::new()).await);
    let site = Site::new(Arc::clone(&server)).await;
    let first = server.admin().whole_log().await.remove(0);
    let mut readers = [
        Reader::new(first.clone(), GetAuditLogRequest::default()),
        Reader::new(
            first.clone(),
            GetAuditLogRequest { operation: Some("GetNamespace".to_owned()), ..Default::default() },
        ),
        Reader::new(first, GetAuditLogRequest { namespace: Some(site.namespace.clone()), ..Default::default() }),
    ];
    let mut answered = BTreeSet::new();
    for (phase, how) in ["KILL", "TERM", "no"].into_iter().enumerate() {
        let load = Load::new(&server.admin(), &site.namespace, phase);
        let [all, operation, namespace] = &mut readers;
        tokio::join!(all.read(&server, CUTS), operation.read(&server, CUTS), namespace.read(&server, CUTS));
        if how == "no" {
            answered.extend(load.end().await);
            continue;
        }
        // The last cut is that of the server.
        let admin = server.admin();
        let ending = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if how == "KILL" {
                server.kill();
            } else {
                server.signal(how);
                server.exit().await;
            }
        };
        tokio::join!(
            all.read_to_the_end(&admin),
            operation.read_to_the_end(&admin),
            namespace.read_to_the_end(&admin),
            ending
        );
        answered.extend(load.end().await);
        server.spawn();
        server.ready().await;
    }
    let admin = server.admin();
    let log = admin.whole_log().await;
    audit::verify(&log);
    for reader in &mut readers {
        reader.catch_up(&admin, &log).await;
        assert!(reader.resumed >= 20);
    }
    // Everything that was answered was recorded, once.
    let recorded: Vec<&str> =
        log.iter().map(|entry| entry.request_id.as_str()).filter(|id| answered.contains(*id)).collect();
    assert_eq!(recorded.len(), answered.len());
    assert_eq!(recorded.into_iter().map(ToOwned::to_owned).collect::<BTreeSet<_>>(), answered);
    println!("{} entries, {} calls answered under load", log.len(), answered.len());
}

/// One that follows from now on is there for what comes next, however soon it comes.
#[tokio::test]
async fn a_follower_is_there_once_its_stream_begins() {
    let server = Prism::start(Options::new()).await;
    let admin = server.admin();
    for number in 0..30 {
        let id = format!("after-{number}");
        let mut stream = admin.follow().await.unwrap();
        admin.and("x-request-id", &id).who_am_i().await.unwrap();
        while next("its entry", &mut stream).await.unwrap().unwrap().request_id != id {}
    }
}
