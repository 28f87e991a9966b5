//! Every RPC of the admin plane, found by reflection, × every role, for the installation and in one namespace, × what the call
//! aims at, and × every kind of credential. The verdict is that of the tables in seed A and contract §7, whatever the
//! credential is, and every refusal is in the audit log.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prism_e2e::certificates::{signing_request, uri};
use prism_e2e::enrol::PACKAGES;
use prism_e2e::matrix::{
    Caller, Dead, Deeds, Kind, Target, Targets, World, callers, dead, is_for_operators, is_known, permission_of,
    served_rules,
};
use prism_e2e::wait::within;
use prism_e2e::{Admin, Failure, Headers, Site, raw};
use prism_proto::admin::v1::{AuditLogEntry, CanIRequest, GetAuditLogRequest};
use prism_proto::rules::{AuditClass, MethodRule, rules};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Code;

/// What shows other namespaces to those who may see everything, and to nobody else.
const SHOWN: [&str; 9] = [
    "ListNamespaces",
    "ListConfigs",
    "ListSessions",
    "ListBackends",
    "GetMetrics",
    "ListApiKeys",
    "ListBindings",
    "ListClientKeys",
    "ListClientBindings",
];
/// Callers at a time.
const AT_ONCE: usize = 8;
/// The most entries that one request for the log brings.
const WHOLE_LOG: usize = 10_000;

/// Refusals that come after a caller was let in: the harmless requests of the matrix ask for what cannot be done.
const LET_IN: [Code; 5] =
    [Code::InvalidArgument, Code::NotFound, Code::AlreadyExists, Code::FailedPrecondition, Code::Aborted];

/// One call, and how it went.
struct Verdict {
    /// Its request id.
    id: String,
    rule: usize,
    target: Target,
    streamed: bool,
    /// What was answered; of a stream that follows, nothing is read.
    outcome: Result<Bytes, Failure>,
}

/// Calls with this request id; gives whether the answer is a stream that follows, and the answer.
async fn call(admin: &Admin, rule: &MethodRule, request: &Value, id: &str) -> (bool, Result<Bytes, Failure>) {
    let message = prism_proto::from_json(&rule.input, request).unwrap_or_else(|error| panic!("{}: {error}", rule.path));
    let headers = admin.headers.clone().with("x-request-id", id);
    let what = format!("{} with {request}", rule.path);
    let follows = request["follow"] == true;
    let outcome = if follows {
        // It may have nothing to say for long; that it opens is the verdict.
        within(&what, raw::open(&admin.channel, &headers, &rule.path, message)).await.map(|_| Bytes::new())
    } else {
        within(&what, raw::call(&admin.channel, &headers, &rule.path, message)).await
    };
    (follows, outcome.map_err(|status| Failure::from(&status)))
}

/// Past the test harness, which shows nothing of a test that passes.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Does something for each caller, for some of them at a time; the results are in their order.
async fn for_each<T, R, F>(callers: Vec<T>, work: impl Fn(usize, T) -> F) -> Vec<R>
where
    F: Future<Output = R> + Send + 'static,
    R: Send + 'static,
{
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for (number, caller) in callers.into_iter().enumerate() {
        let (work, places) = (work(number, caller), Arc::clone(&places));
        tasks.spawn(async move {
            let _place = places.acquire_owned().await.expect("nobody closes it");
            (number, work.await)
        });
    }
    // A panic in one of them is the test's.
    let mut done = tasks.join_all().await;
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

/// The entries of each request id.
fn by_request(log: &[AuditLogEntry]) -> BTreeMap<&str, Vec<&AuditLogEntry>> {
    let mut entries: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for entry in log {
        entries.entry(&entry.request_id).or_default().push(entry);
    }
    entries
}

/// As `<number> by <kind>` for each kind.
fn by_kind(counts: &BTreeMap<Kind, usize>) -> String {
    counts.iter().map(|(kind, count)| format!("{count} by {kind}")).collect::<Vec<_>>().join(", ")
}

#[test]
fn the_descriptors_say_what_the_contracts_table_says() {
    for rule in rules().unwrap().iter().filter(|rule| rule.audit != AuditClass::None) {
        assert_eq!(rule.permission, permission_of(&rule.method), "{}", rule.path);
    }
}

/// Every RPC for operators, by each of its paths.
async fn rules_for_operators(admin: &Admin) -> Arc<[MethodRule]> {
    let served = served_rules(&admin.channel).await.into_iter();
    let rules: Arc<[MethodRule]> = served.filter(|rule| is_for_operators(&rule.permission)).collect();
    assert!(rules.iter().any(|rule| rule.service.starts_with(PACKAGES[1])), "the older package is not served");
    rules
}

/// The installation, the namespace that callers are bound to, and another one.
async fn all_targets(own: &Site, other: &Site) -> Arc<[Targets]> {
    let own = [Targets::of_installation(own).await, Targets::of_namespace(own).await];
    own.into_iter().chain([Targets::of_namespace(other).await]).collect()
}

/// Every RPC at everything that it can aim at.
async fn walk(number: usize, caller: Caller, rules: Arc<[MethodRule]>, targets: Arc<[Targets]>) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        for targets in &*targets {
            let Some(requests) = targets.requests(&rule.method).await else { continue };
            for request in requests {
                let id = format!("matrix-{number}-{}", verdicts.len());
                let (streamed, outcome) = call(&caller.admin, rule, &request, &id).await;
                verdicts.push(Verdict { id, rule: at, target: targets.target.clone(), streamed, outcome });
            }
        }
    }
    verdicts
}

/// What is wrong with a verdict, if anything.
fn fault(caller: &Caller, rule: &MethodRule, verdict: &Verdict) -> Option<String> {
    let expected = caller.expects(rule, &verdict.target);
    let is_right = match &verdict.outcome {
        Ok(_) => expected,
        Err(failure) if expected => LET_IN.contains(&failure.code),
        Err(failure) => failure.code == Code::PermissionDenied,
    };
    let (kind, name, path) = (caller.kind, &caller.name, &rule.path);
    let found = &verdict.outcome;
    (!is_right).then(|| format!("{name}, {kind}: {path} on {:?}: expected {expected}, {found:?}", verdict.target))
}

/// Whether an answer shows something of these targets to whoever did not ask for them.
fn shows(verdict: &Verdict, targets: &Targets) -> bool {
    let Ok(answer) = &verdict.outcome else { return false };
    let contains = |name: &str| answer.windows(name.len()).any(|bytes| bytes == name.as_bytes());
    verdict.target != targets.target && targets.names().into_iter().any(contains)
}

/// The verdict is in the log as it was told, under the name of whoever it was told to.
#[track_caller]
fn is_recorded(caller: &Caller, rule: &MethodRule, verdict: &Verdict, entries: Option<&Vec<&AuditLogEntry>>) {
    let shown = format!("{}, {}: {} on {:?}", caller.name, caller.kind, rule.path, verdict.target);
    let Some([entry]) = entries.map(Vec::as_slice) else { panic!("{shown} left not one entry: {entries:?}") };
    let who = (entry.actor.as_str(), entry.auth_method.as_str(), entry.credential_id.as_str());
    assert_eq!(who, (&*caller.actor, caller.kind.auth_method(), &*caller.credential_id), "{shown}");
    assert_eq!((&entry.operation, entry.success), (&rule.method, verdict.outcome.is_ok()), "{shown}");
    let Err(failure) = &verdict.outcome else { return };
    if failure.code == Code::PermissionDenied {
        failure.is(Code::PermissionDenied, "PERMISSION_DENIED");
        assert_eq!(failure.metadata["permission"], rule.permission, "{shown}");
        assert_eq!(failure.metadata["audit_id"], entry.id, "{shown}");
        assert_eq!(entry.metadata["permission"], rule.permission, "{shown}");
        assert!(failure.message.contains(&rule.permission), "{shown}: {}", failure.message);
    }
}

#[tokio::test]
async fn every_valid_credential_may_do_what_its_roles_say_where_they_hold_and_nothing_else() {
    let world = World::start().await;
    let (site, other) = (Site::new(world.server.clone()).await, Site::new(world.server.clone()).await);
    let targets = all_targets(&site, &other).await;
    let callers = callers(&world, &site).await;
    let rules = rules_for_operators(&site.admin).await;

    let walks =
        for_each(callers.clone(), |number, caller| walk(number, caller, Arc::clone(&rules), Arc::clone(&targets)));
    let walks = walks.await;
    let (mut verdicts, mut refusals, mut shown) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    let (mut streams, mut wrong) = (0, Vec::new());
    for (caller, walk) in callers.iter().zip(&walks) {
        let covered: BTreeSet<usize> = walk.iter().map(|verdict| verdict.rule).collect();
        let missed = (0..rules.len()).filter(|at| !covered.contains(at)).map(|at| &*rules[at].path);
        assert_eq!(missed.collect::<Vec<_>>(), [""; 0], "RPCs that nothing in src/matrix/targets.rs calls");
        for verdict in walk {
            *verdicts.entry(caller.kind).or_default() += 1;
            *refusals.entry(caller.kind).or_default() +=
                usize::from(!caller.expects(&rules[verdict.rule], &verdict.target));
            streams += usize::from(verdict.streamed);
            let rule = &rules[verdict.rule];
            wrong.extend(fault(caller, rule, verdict));
            match (shows(verdict, &targets[2]), &caller.own) {
                (true, Some(_)) => wrong.push(format!(
                    "{}, {}: {} shows another namespace: {:?}",
                    caller.name, caller.kind, rule.path, verdict.outcome
                )),
                (true, None) => {
                    shown.insert(rule.method.as_str());
                }
                (false, _) => {}
            }
        }
    }
    assert!(
        SHOWN.iter().all(|method| shown.contains(method)),
        "those who may see everything see other namespaces in {shown:?} only"
    );
    let count = verdicts.values().sum::<usize>();
    assert!(wrong.is_empty(), "{} of {count} verdicts differ from the table:\n{}", wrong.len(), wrong.join("\n"));

    let log = site.admin.whole_log().await;
    assert!(log.len() < WHOLE_LOG, "the log has to be read in parts");
    prism_e2e::audit::verify(&log);
    let entries = by_request(&log);
    for (caller, walk) in callers.iter().zip(&walks) {
        for verdict in walk {
            is_recorded(caller, &rules[verdict.rule], verdict, entries.get(verdict.id.as_str()));
        }
    }
    say(&format!(
        "matrix: {count} verdicts of {} RPCs × {} callers × what they aim at, {streams} of them on streams that follow, each in \
         the audit log: {}",
        rules.len(),
        callers.len(),
        by_kind(&verdicts)
    ));
    say(&format!("matrix: {} of them refusals: {}", refusals.values().sum::<usize>(), by_kind(&refusals)));
}

/// What `CanI` says of each RPC where the matrix calls it, and what the table says.
async fn ask_all(caller: Caller, rules: Arc<[MethodRule]>, targets: Arc<[Targets]>) -> Vec<String> {
    let mut wrong = Vec::new();
    for rule in &*rules {
        for targets in &*targets {
            if targets.requests(&rule.method).await.is_none() {
                continue;
            }
            let namespace = match &targets.target {
                Target::Namespace(namespace) => Some(namespace.clone()),
                Target::Installation => None,
            };
            let request = CanIRequest { rpc: rule.path.trim_start_matches('/').to_owned(), namespace };
            let answer =
                within(&rule.path, caller.admin.access().can_i(request)).await.expect("an answer").into_inner();
            let expected = caller.expects(rule, &targets.target);
            if (answer.allowed, answer.permission.as_str()) != (expected, rule.permission.as_str()) {
                let target = &targets.target;
                let (name, kind) = (&caller.name, caller.kind);
                wrong.push(format!("{name}, {kind}: {} on {target:?}: expected {expected}, {answer:?}", rule.path));
            }
        }
    }
    wrong
}

#[tokio::test]
async fn can_i_says_what_the_table_says_whatever_the_credential() {
    let world = World::start().await;
    let (site, other) = (Site::new(world.server.clone()).await, Site::new(world.server.clone()).await);
    let targets = all_targets(&site, &other).await;
    let callers = callers(&world, &site).await;
    let rules = rules_for_operators(&site.admin).await;
    let wrong = for_each(callers, |_, caller| ask_all(caller, Arc::clone(&rules), Arc::clone(&targets))).await.concat();
    assert!(wrong.is_empty(), "{} answers differ from the table:\n{}", wrong.len(), wrong.join("\n"));
}

/// Every RPC with requests that would do something.
async fn try_all(number: usize, dead: Dead, rules: Arc<[MethodRule]>, deeds: Arc<Deeds>) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        for request in deeds.of_method(&rule.method) {
            let id = format!("dead-{number}-{}", verdicts.len());
            let (streamed, outcome) = call(&dead.admin, rule, request, &id).await;
            verdicts.push(Verdict { id, rule: at, target: Target::Installation, streamed, outcome });
        }
    }
    verdicts
}

/// What lists show of the state, without what time alone changes.
async fn state(admin: &Admin, rules: &[MethodRule]) -> BTreeMap<String, Value> {
    let mut state = BTreeMap::new();
    for rule in rules.iter().filter(|rule| rule.method.starts_with("List")) {
        if ["ListAuditCheckpoints", "ListBackends"].contains(&rule.method.as_str()) {
            continue;
        }
        // Seed B's list has no pages.
        let pages = if rule.method == "ListJoinTokens" { json!({}) } else { json!({"pageSize": 1000}) };
        let request = prism_proto::from_json(&rule.input, &pages).expect("every other list has pages");
        let answer = raw::call(&admin.channel, &admin.headers, &rule.path, request).await.expect("a list");
        let mut answer = prism_proto::to_json(&rule.output, &answer).expect("its answer");
        forget_time(&mut answer);
        state.insert(rule.method.clone(), answer);
    }
    assert!(state.len() >= 9, "{:?}", state.keys());
    state
}

fn forget_time(value: &mut Value) {
    // A session is idle when it has said nothing for a minute.
    let is_of_time = |name: &str, value: &Value| {
        ["lastUsedAt", "lastActivity", "metrics"].contains(&name)
            || ["SESSION_STATUS_ACTIVE", "SESSION_STATUS_IDLE"].iter().any(|status| value == status)
    };
    match value {
        Value::Array(all) => all.iter_mut().for_each(forget_time),
        Value::Object(fields) => {
            fields.retain(|name, value| !is_of_time(name, value));
            fields.values_mut().for_each(forget_time);
        }
        _ => {}
    }
}

#[tokio::test]
async fn no_other_credential_opens_anything() {
    let world = World::start().await;
    let site = Site::new(world.server.clone()).await;
    let credentials = dead(&world, &site).await;
    let deeds = Arc::new(Deeds::of(&world, &site).await);
    let rules = rules_for_operators(&site.admin).await;
    let missed = rules.iter().filter(|rule| deeds.of_method(&rule.method).is_empty()).map(|rule| &*rule.path);
    assert_eq!(missed.collect::<Vec<_>>(), [""; 0], "RPCs that nothing in src/matrix/deeds.rs calls");
    let before = state(&site.admin, &rules).await;
    let first = site.admin.audit(GetAuditLogRequest { limit: 1, ..Default::default() }).await.remove(0).sequence;

    let tries = for_each(credentials.clone(), |number, dead| try_all(number, dead, Arc::clone(&rules), deeds.clone()));
    let tries = tries.await;
    let (mut counts, mut streams, mut wrong, mut answers) = (BTreeMap::new(), 0, Vec::new(), BTreeMap::new());
    for (dead, tries) in credentials.iter().zip(&tries) {
        for verdict in tries {
            *counts.entry(dead.kind).or_default() += 1;
            streams += usize::from(verdict.streamed);
            match &verdict.outcome {
                Err(failure) if failure.code == dead.code => {
                    let answer = (failure.reason.as_str(), failure.message.as_str());
                    answers.entry((dead.kind, dead.name)).or_insert_with(BTreeSet::new).insert(answer);
                }
                other => {
                    let path = &rules[verdict.rule].path;
                    wrong.push(format!("{}, {}: {path} answered {other:?}", dead.name, dead.kind));
                }
            }
        }
    }
    let count = counts.values().sum::<usize>();
    assert!(wrong.is_empty(), "{} of {count} calls:\n{}", wrong.len(), wrong.join("\n"));
    // What is unknown, wrong, expired, revoked or foreign is told apart by nobody.
    let invalid = ("CREDENTIAL_INVALID", "the admin credential is not valid");
    for dead in credentials.iter().filter(|dead| dead.code == Code::Unauthenticated) {
        let answers = &answers[&(dead.kind, dead.name)];
        assert_eq!(answers.len(), 1, "{}, {}: {answers:?}", dead.name, dead.kind);
        assert_eq!(answers.contains(&invalid), !dead.told, "{}, {}: {answers:?}", dead.name, dead.kind);
    }

    // Entries are bounded in number, and none is forgotten: what is not there is counted.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let last = site.admin.with_headers(Headers::none());
    last.who_am_i().await.unwrap_err();
    let after = state(&site.admin, &rules).await;
    let log: Vec<_> = site.admin.whole_log().await.into_iter().filter(|entry| entry.sequence > first).collect();
    let known = count_known(&credentials, &tries, &rules, &log);
    let anonymous: Vec<_> = log.iter().filter(|entry| entry.actor == "anonymous").collect();
    let suppressed = anonymous.iter().filter_map(|entry| entry.metadata.get("suppressed_before"));
    let suppressed: usize = suppressed.map(|count| count.parse::<usize>().unwrap()).sum();
    // An entry that holds nothing but the count is of no call.
    let own = anonymous.iter().filter(|entry| entry.operation != "RefusedCredentials").count();
    assert_eq!(own + suppressed, count - known + 1);
    assert!(own < count / 2, "{own} entries for {count} calls");

    // Nothing has happened.
    let successes = log.iter().filter(|entry| entry.success);
    let successes: BTreeSet<_> = successes.map(|entry| (entry.actor.as_str(), entry.operation.as_str())).collect();
    let root = site.admin.who_am_i().await.unwrap().actor;
    let reads = before.keys().map(|method| (root.as_str(), method.as_str()));
    let reads: BTreeSet<_> = reads.chain([(root.as_str(), "GetAuditLog")]).collect();
    assert!(successes.is_subset(&reads), "{successes:?}");
    assert_eq!(before, after);
    say(&format!(
        "matrix: {count} refusals, {streams} of them of streams that follow: {} RPCs × {} credentials that are none: {}",
        rules.len(),
        credentials.len(),
        by_kind(&counts)
    ));

    // With a good credential each of these requests does what it says.
    for (method, request) in deeds.all() {
        let rule = rules.iter().find(|rule| rule.method == *method).unwrap_or_else(|| panic!("there is no {method}"));
        let (_, outcome) = call(&site.admin, rule, request, "done").await;
        outcome.unwrap_or_else(|refused| panic!("{method} with {request}: {refused:?}"));
    }
}

/// Those whom the server knows and lets do nothing: each of their calls has its entry. Gives their number.
fn count_known(credentials: &[Dead], tries: &[Vec<Verdict>], rules: &[MethodRule], log: &[AuditLogEntry]) -> usize {
    let entries = by_request(log);
    let mut count = 0;
    for (dead, tries) in credentials.iter().zip(tries).filter(|(dead, _)| dead.code == Code::PermissionDenied) {
        for verdict in tries {
            let rule = &rules[verdict.rule];
            let Some([entry]) = entries.get(verdict.id.as_str()).map(Vec::as_slice) else {
                panic!("{}: {} left not one entry", dead.name, rule.path)
            };
            let failure = verdict.outcome.as_ref().unwrap_err().is(Code::PermissionDenied, "PERMISSION_DENIED");
            assert_eq!(failure.metadata["permission"], rule.permission, "{}: {}", dead.name, rule.path);
            assert_eq!(failure.metadata["audit_id"], entry.id, "{}: {}", dead.name, rule.path);
            assert_eq!((&entry.operation, entry.success), (&rule.method, false), "{}", dead.name);
            assert_eq!(entry.auth_method, dead.kind.auth_method(), "{}", dead.name);
            count += 1;
        }
    }
    assert!(count > 0, "no credential that is known and lets do nothing");
    count
}

#[test]
fn every_rpc_has_a_place_in_the_tests_table() {
    let admin = |rule: &&MethodRule| rule.audit != AuditClass::None && is_for_operators(&rule.permission);
    for rule in rules().unwrap().iter().filter(admin) {
        assert!(is_known(&rule.method), "{} is in no list of src/matrix/mod.rs", rule.path);
    }
}

/// A request that an RPC for machines takes, whoever sends it; and why one is refused that shows no credential of its kind.
fn for_machines(rule: &MethodRule) -> (Value, &'static str) {
    match rule.method.as_str() {
        "ExchangeJoinToken" => (json!({"joinToken": "prj_nonsense", "nodeId": "n1"}), "TOKEN_INVALID"),
        "RenewCertificate" => (json!({"csrPem": csr()}), "CREDENTIAL_MISSING"),
        "Link" => (
            json!({"hello": {"oldestProtocol": 1, "newestProtocol": 1, "nodeId": "n1", "version": "1"}}),
            "CREDENTIAL_MISSING",
        ),
        _ => panic!("{} is called by nobody here", rule.path),
    }
}

/// The RPCs that are not for operators: one needs no credential and looks at none, the others a node's certificate.
#[tokio::test]
async fn what_is_for_machines_is_closed_to_everybody_else() {
    let world = World::start().await;
    let site = Site::new(world.server.clone()).await;
    let served = served_rules(&site.admin.channel).await.into_iter();
    let rules: Vec<_> = served.filter(|rule| !is_for_operators(&rule.permission)).collect();
    let paths: BTreeSet<_> =
        rules.iter().map(|rule| (rule.method.as_str(), rule.service.starts_with("prism."))).collect();
    let expected = [
        ("ExchangeJoinToken", false),
        ("ExchangeJoinToken", true),
        ("Link", true),
        ("RenewCertificate", false),
        ("RenewCertificate", true),
    ];
    assert_eq!(paths, expected.into());
    let mut callers: Vec<_> =
        callers(&world, &site).await.into_iter().map(|caller| (caller.name, caller.kind, caller.admin, true)).collect();
    let dead = dead(&world, &site).await.into_iter();
    callers.extend(dead.filter(|dead| dead.name != "of a node").map(|dead| {
        let shows_a_good_one = dead.name.ends_with("beside a good certificate") || dead.name.ends_with("as bob");
        (dead.name.to_owned(), dead.kind, dead.admin, shows_a_good_one)
    }));
    let (calls, count) = (callers.len() * rules.len(), callers.len());
    for (number, (name, kind, admin, good)) in callers.into_iter().enumerate() {
        for (at, rule) in rules.iter().enumerate() {
            let shown = format!("{name}, {kind}: {}", rule.path);
            let (request, missing) = for_machines(rule);
            let (_, refused) = call(&admin, rule, &request, &format!("machines-{number}-{at}")).await;
            let refused = refused.expect_err(&shown);
            if rule.permission == "none" {
                refused.is(Code::Unauthenticated, missing);
                continue;
            }
            let (certificate, told) = match kind {
                Kind::OwnCertificate | Kind::Certificate => (true, refused.reason == "CREDENTIAL_INVALID"),
                // One of these comes over a connection with a certificate.
                _ => (name.ends_with("beside a good certificate"), refused.reason == missing),
            };
            if certificate && good {
                refused.is(Code::PermissionDenied, "PERMISSION_DENIED");
                assert_eq!(refused.metadata["permission"], "node:self", "{shown}");
            } else {
                assert!(refused.code == Code::Unauthenticated && told, "{shown}: {refused:?}");
            }
        }
    }
    say(&format!("matrix: {calls} refusals of {} paths for machines × {count} credentials of others", rules.len()));
    // A node that the CA knows and the cluster does not.
    let stranger = world.with_certificate(&world.own_ca.client(vec![uri(&world.own_uri("node", "n1"))]));
    for (at, rule) in rules.iter().filter(|rule| rule.permission == "node:self").enumerate() {
        let id = format!("stranger-{at}");
        let (_, refused) = call(&stranger, rule, &for_machines(rule).0, &id).await;
        refused.unwrap_err().is(Code::FailedPrecondition, "NODE_UNKNOWN");
        let entries = site.admin.whole_log().await;
        let entry = entries.iter().find(|entry| entry.request_id == id).unwrap();
        let told = (entry.actor.as_str(), entry.operation.as_str(), entry.success);
        assert_eq!(told, (&*world.own_uri("node", "n1"), &*rule.method, false));
    }
}

fn csr() -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(signing_request().0)
}
