//! The admin plane: CreateConfig beside etcd's Put, and what the audit log takes in.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Result, ensure};
use prism_proto::admin::v1::{
    AuditLogEntry, CreateConfigRequest, CreateNamespaceRequest, CreateNamespaceResponse, GetAuditLogRequest,
    WhoAmIRequest,
};
use prism_proto::config::v1::{
    AccessPattern, BackendConfig, BackendType, CacheConfig, ClientConfig, ConsistencyConfig, ConsistencyLevel,
    PoolConfig, RateLimitConfig,
};
use prost::Message as _;
use tokio::task::LocalSet;

use crate::callers::{self, Calls, Outcome};
use crate::etcd::{Etcd, PutRequest};
use crate::figures::median;
use crate::prism::Prism;
use crate::wire::Peer;
use crate::{ROUNDS, Size, audit};

/// Callers of CreateConfig and of Put.
const CALLERS: usize = 64;
/// Callers whose calls change nothing and leave an entry.
const APPENDING_CALLERS: usize = 128;
/// Names that are written over and over, far from the 100,000 configs that an installation may have.
const NAMES: u64 = 5_000;
/// The kind of those names.
const KNOWN: &str = "known";
/// Names that are new, at most; with the others they stay below that bound.
const NEW_NAMES: u64 = 90_000;
/// The rate of CreateConfig over that of Put that is asked for.
const GOAL: f64 = 1.5;
/// Entries per second that the log is to take in.
const APPEND_GOAL: f64 = 10_000.0;

/// The namespace of the configs.
const NAMESPACE: &str = "payments-production";
/// The method that makes a config.
pub const CREATE_CONFIG: &str = "/prism.admin.v1.AdminService/CreateConfig";
/// A method on the same port that does nothing: what TLS and gRPC cost alone.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
/// The method that reads the audit log.
pub const GET_AUDIT_LOG: &str = "/prism.admin.v1.AdminService/GetAuditLog";

/// Measures and prints all of it.
pub fn run(scratch: &Path, size: &Size) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let folder = tempfile::tempdir_in(scratch)?;
        let prism = Prism::start(folder.path())?;
        let admin = prism.admin()?;
        make_namespace(&admin).await?;
        create_beside_put(folder.path(), &admin, size).await?;
        append(&admin, size).await
    })?;
    runtime.block_on(audit::run(scratch, size))
}

/// Makes the namespace of the configs.
pub async fn make_namespace(admin: &Peer) -> Result<()> {
    let request = CreateNamespaceRequest { name: NAMESPACE.to_owned(), ..CreateNamespaceRequest::default() };
    admin.call::<CreateNamespaceResponse>("/prism.admin.v1.AdminService/CreateNamespace", &request).await?;
    Ok(())
}

async fn create_beside_put(scratch: &Path, admin: &Peer, size: &Size) -> Result<()> {
    let etcd = Etcd::start(scratch).await?;
    println!(
        "\nCreateConfig (TLS, API key, authorisation, audit entry) beside etcd's Put (clear text, no access control), on the same disk:\n\
         {CALLERS} callers with one request in flight each, values of {} bytes, {ROUNDS} rounds of {} s, medians",
        create(KNOWN, 0).encoded_len(),
        size.seconds
    );
    println!(
        "{:>14} {:>20} {:>10} {:>8} {:>8} {:>12} {:>14}",
        "names", "side", "calls/s", "p50 µs", "p99 µs", "cpu µs/call", "generator cpu"
    );
    let puts = Rc::new(etcd.puts(|number| put(KNOWN, number)));
    let creates = Rc::new(creates(admin, |number| create(KNOWN, number)));
    let nothing = Rc::new(Calls { peer: admin.clone(), path: HEALTH_CHECK, message: Box::new(|_| Vec::new()) });
    let (mut theirs, mut ours, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        floor.push(callers::run(&nothing, CALLERS, size.measured(), u64::MAX).await?);
        theirs.push(callers::run(&puts, CALLERS, size.measured(), u64::MAX).await?);
        ours.push(callers::run(&creates, CALLERS, size.measured(), u64::MAX).await?);
    }
    print_one("none", "prism Health/Check", &middle(floor));
    print_both(&format!("{NAMES} in turn"), &middle(theirs), &middle(ours));

    // One round: twice as many names would be more than may be.
    let puts = Rc::new(etcd.puts(|number| put("new", number)));
    let creates = Rc::new(self::creates(admin, |number| create("new", number)));
    let theirs = callers::run(&puts, CALLERS, size.measured(), NEW_NAMES).await?;
    let ours = callers::run(&creates, CALLERS, size.measured(), NEW_NAMES).await?;
    print_both("new, 1 round", &theirs, &ours);
    Ok(())
}

fn creates(admin: &Peer, request: impl Fn(u64) -> CreateConfigRequest + 'static) -> Calls {
    let message = Box::new(move |number| request(number).encode_to_vec());
    Calls { peer: admin.clone(), path: CREATE_CONFIG, message }
}

/// The request for config number `number` of a `kind`, as an operator's would be; after all [`NAMES`] have had their turn it
/// says another version.
pub fn create(kind: &str, number: u64) -> CreateConfigRequest {
    let config = ClientConfig {
        name: name(kind, if kind == KNOWN { number % NAMES } else { number }),
        version: format!("2026.11.22-build.{:04}.9f3c2a1de8b7", number / NAMES),
        pattern: AccessPattern::KeyValue.into(),
        backend: Some(BackendConfig {
            r#type: BackendType::Memory.into(),
            pool: Some(PoolConfig { min_connections: 2, max_connections: 16, idle_timeout_seconds: 300 }),
            ..BackendConfig::default()
        }),
        consistency: Some(ConsistencyConfig { level: ConsistencyLevel::Strong.into(), timeout_ms: 5_000 }),
        cache: Some(CacheConfig { enabled: true, ttl_seconds: 300, max_size_mb: 64 }),
        rate_limit: Some(RateLimitConfig { requests_per_second: 1_000, burst: 2_000 }),
        namespace: NAMESPACE.to_owned(),
    };
    CreateConfigRequest { config: Some(config), overwrite: true, validate_only: false }
}

/// The Put of the same name, with the same request as its value.
fn put(kind: &str, number: u64) -> PutRequest {
    let create = create(kind, number);
    let name = create.config.as_ref().map(|config| config.name.clone()).unwrap_or_default();
    PutRequest { key: name.into_bytes(), value: create.encode_to_vec() }
}

fn name(kind: &str, number: u64) -> String {
    format!("payments.orders.checkout-carts.read-write.{kind}.{number:06}")
}

async fn append(admin: &Peer, size: &Size) -> Result<()> {
    let message = Box::new(|_| WhoAmIRequest {}.encode_to_vec());
    let calls = Rc::new(Calls { peer: admin.clone(), path: "/prism.admin.v1.AccessService/WhoAmI", message });
    let mut outcomes = Vec::new();
    for _ in 0..ROUNDS {
        let before = newest_entry(admin).await?;
        let outcome = callers::run(&calls, APPENDING_CALLERS, size.measured(), u64::MAX).await?;
        let appended = newest_entry(admin).await? - before;
        ensure!(appended >= outcome.answered, "{} calls left {appended} entries only", outcome.answered);
        outcomes.push(outcome);
    }
    let outcome = middle(outcomes);
    println!("\naudit log on the same disk; every answer after the fsync of its entry");
    println!(
        "{:>26} {:>12.0} entries/s {:>8.2} of the goal  {APPENDING_CALLERS} in flight, 1 a call: p50 {} µs  p99 {} µs  cpu {:.1} µs/call  generator {:.0} %",
        "append (WhoAmI)",
        outcome.run.rate,
        outcome.run.rate / APPEND_GOAL,
        outcome.run.p50,
        outcome.run.p99,
        outcome.run.cpu,
        100.0 * outcome.generator
    );
    Ok(())
}

async fn newest_entry(admin: &Peer) -> Result<u64> {
    let request = GetAuditLogRequest { limit: 1, ..GetAuditLogRequest::default() };
    Ok(admin.call::<AuditLogEntry>(GET_AUDIT_LOG, &request).await?.sequence)
}

fn middle(outcomes: Vec<Outcome>) -> Outcome {
    median(outcomes, |outcome| outcome.run.rate)
}

fn print_one(names: &str, side: &str, outcome: &Outcome) {
    println!(
        "{names:>14} {side:>20} {:>10.0} {:>8} {:>8} {:>12.2} {:>12.0} %",
        outcome.run.rate,
        outcome.run.p50,
        outcome.run.p99,
        outcome.run.cpu,
        100.0 * outcome.generator
    );
}

fn print_both(names: &str, theirs: &Outcome, ours: &Outcome) {
    print_one(names, "etcd Put", theirs);
    print_one(names, "prism CreateConfig", ours);
    println!(
        "{names:>14} {:>20} {:>10.3} {:>+8} {:>+8} {:>12.3} {:>14}",
        "ratio / more",
        ours.run.rate / theirs.run.rate,
        ours.run.p50.cast_signed() - theirs.run.p50.cast_signed(),
        ours.run.p99.cast_signed() - theirs.run.p99.cast_signed(),
        theirs.run.cpu / ours.run.cpu,
        format!("goal {GOAL}")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_get_entries_of_the_same_size() {
        let (config, put) = (create("known", 7), put("known", 7));
        assert_eq!(put.value, config.encode_to_vec());
        assert_eq!(put.key, config.config.unwrap().name.into_bytes());
        assert!((150..=250).contains(&put.value.len()), "{}", put.value.len());
        assert_eq!(put.value.len(), create("known", NAMES - 1).encoded_len());
    }
}
