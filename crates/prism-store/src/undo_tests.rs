//! Whatever fails within a batch, and however much is undone with it: memory holds what a fresh start would read.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prism_core::access::{Access, ClientGrant, RoleGrant};
use prism_core::config::{AccessPattern, Backend, BackendType, Config};
use prism_core::control::{Maintenance, Quota};
use prism_core::limits::SessionPolicy;
use prism_core::permission::{Pattern, Role};
use prism_core::secret::{Random, SecretKind};
use prism_core::session::DataGrant;
use prism_core::subject::Subject;
use prism_core::{Clock, ConfigName, Error, InstanceName, NamespaceName, Result, UnixMillis};
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::hook::{Published, Publisher};
use crate::{ApiKeyRow, BindingRow, CertificateRow, ClientBindingRow, ClientKeyRow, EntryDraft, KeyLife, Store, Tx};

const START: UnixMillis = UnixMillis(1_760_000_000_000);
const NAMES: [&str; 3] = ["a", "b", "c"];

/// What was found wrong inside operations, where a panic is one more failure.
type Faults = Arc<Mutex<Vec<String>>>;

/// A source of choices that are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.roll(NAMES.len() as u64) as usize]
    }
}

fn namespace(name: &str) -> NamespaceName {
    NamespaceName::parse("namespace", name).unwrap()
}

fn config(name: &str, version: u64) -> Config {
    Config {
        name: ConfigName::try_from(name.to_owned()).unwrap(),
        version: version.to_string(),
        pattern: AccessPattern::KeyValue,
        backend: Backend { kind: BackendType::Memory, options: [].into(), pool: None },
        instance: InstanceName::parse("instance", "memory").unwrap(),
        consistency: None,
        cache: None,
        rate_limit: None,
        namespace: namespace(name),
    }
}

fn role(name: &str, which: u64) -> Role {
    let pattern = ["config:read", "session:*", "audit:read"][which as usize % 3];
    Role {
        name: format!("role-{name}"),
        permissions: [Pattern::try_from(pattern.to_owned()).unwrap()].into(),
        built_in: false,
    }
}

/// Namespaces, configs, maintenance: what the snapshot is made of.
fn step_on_snapshot(tx: &mut Tx<'_>, dice: &mut Dice) -> Result<()> {
    let name = dice.name();
    match dice.roll(6) {
        0 => tx.create_namespace(&namespace(name), "", Quota::default()).map(drop),
        1 => match tx.namespace(name)? {
            Some(mut row) => {
                row.namespace.quota.max_rps = dice.roll(1000) as i64;
                tx.update_namespace(row).map(drop)
            }
            None => Err(Error::not_found("namespace")),
        },
        2 => {
            tx.delete_namespace(&namespace(name))?;
            tx.finish_removal(&namespace(name))
        }
        // Without its namespace the database refuses it.
        3 => tx.store_config(Arc::new(config(name, dice.roll(100)))).map(drop),
        4 => tx.delete_config(name).map(drop),
        _ if dice.roll(2) == 0 => tx.end_maintenance(Some(&namespace(name))),
        _ => {
            let message = dice.roll(100).to_string();
            let terms = Maintenance { message, started_at: tx.now, ends_at: None, allow_reads: true };
            tx.start_maintenance(Some(&namespace(name)), terms).map(drop)
        }
    }
}

/// Keys of both planes.
fn step_on_keys(tx: &mut Tx<'_>, dice: &mut Dice) -> Result<()> {
    let (name, random) = (dice.name(), Random::system());
    let new = random.secret(if dice.roll(2) == 0 { SecretKind::AdminKey } else { SecretKind::ClientKey });
    let any = |tx: &Tx<'_>, table: &str| {
        let sql = format!("SELECT id FROM {table} ORDER BY created_at DESC, id LIMIT 1");
        tx.one(&sql, [], |row| row.get::<_, String>(0)).map(Option::unwrap_or_default)
    };
    let life = KeyLife { created_at: tx.now, ..KeyLife::default() };
    match dice.roll(5) {
        0 => tx.insert_api_key(&ApiKeyRow {
            id: new.id,
            hash: new.hash,
            name: name.to_owned(),
            roles: vec![role(name, 0).name],
            namespace: Some(namespace(name)),
            owner: None,
            life,
            rotated_at: None,
            previous: None,
        }),
        1 => any(tx, "api_keys").and_then(|id| tx.revoke_api_key(&id)).map(drop),
        2 => any(tx, "api_keys").and_then(|id| tx.rotate_api_key(&id, &new.hash, None)).map(drop),
        3 => tx.insert_client_key(&ClientKeyRow {
            id: new.id,
            hash: new.hash,
            name: name.to_owned(),
            namespace: namespace(name),
            grant: DataGrant { read: true, write: false },
            life,
        }),
        _ => any(tx, "client_keys").and_then(|id| tx.revoke_client_key(&id)).map(drop),
    }
}

/// Roles, bindings, certificates.
fn step_on_access(tx: &mut Tx<'_>, dice: &mut Dice) -> Result<()> {
    let (name, which) = (dice.name(), dice.roll(100));
    let subject = Subject::user(name).unwrap();
    let (created_at, created_by) = (tx.now, "test".to_owned());
    let first = |tx: &Tx<'_>, table: &str| {
        let sql = format!("SELECT id FROM {table} ORDER BY id LIMIT 1");
        tx.one(&sql, [], |row| row.get::<_, String>(0)).map(Option::unwrap_or_default)
    };
    match dice.roll(9) {
        0 => tx.insert_role(&role(name, which), "test"),
        1 => tx.update_role(&role(name, which)).map(drop),
        2 => tx.delete_role(&role(name, which).name).map(drop),
        3 => {
            let grant = RoleGrant { role: role(name, which).name, namespace: Some(namespace(dice.name())) };
            tx.insert_binding(&BindingRow { id: Random::system().id(), subject, grant, created_at, created_by })
        }
        4 => first(tx, "bindings").and_then(|id| tx.delete_binding(&id)).map(drop),
        5 => {
            let grant = ClientGrant { namespace: namespace(dice.name()), grant: DataGrant { read: true, write: true } };
            tx.insert_client_binding(&ClientBindingRow {
                id: Random::system().id(),
                subject,
                grant,
                created_at,
                created_by,
            })
        }
        6 => first(tx, "client_bindings").and_then(|id| tx.delete_client_binding(&id)).map(drop),
        7 => tx.insert_certificate(&CertificateRow {
            fingerprint: format!("{which:064x}"),
            serial: Some(format!("{which:x}")),
            kind: "user".to_owned(),
            name: name.to_owned(),
            uri: String::new(),
            created_at,
            created_by,
            expires_at: None,
            revoked_at: None,
            authority: None,
            origin: None,
        }),
        _ => tx.revoke_certificate(&format!("{which:064x}")).map(drop),
    }
}

fn step(tx: &mut Tx<'_>, dice: &mut Dice) -> Result<()> {
    match dice.roll(3) {
        0 => step_on_snapshot(tx, dice),
        1 => step_on_keys(tx, dice),
        _ => step_on_access(tx, dice),
    }
}

fn failure() -> Error {
    Error::internal("meant to fail")
}

/// One operation: some attempts, of which some fail, an entry for each, and then perhaps the failure of it all.
fn operation(tx: &mut Tx<'_>, mut dice: Dice, faults: &Faults) -> Result<()> {
    for _ in 0..=dice.roll(4) {
        let outcome = tx.attempt(|tx| {
            for _ in 0..=dice.roll(3) {
                step(tx, &mut dice)?;
                if dice.roll(4) == 0 {
                    tx.append_entry(entry("within"))?;
                }
                if dice.roll(3) == 0 {
                    check_current(tx, faults);
                }
            }
            if dice.roll(4) == 0 { Err(failure()) } else { Ok(()) }
        });
        check_current(tx, faults);
        let text = if outcome.is_ok() { "kept" } else { "undone" };
        tx.append_entry(entry(text))?;
    }
    match dice.roll(16) {
        0..3 => Err(failure()),
        3 => std::panic::resume_unwind(Box::new("meant to panic")),
        // As SQLite does it by itself when the disk is full; the whole batch is undone.
        4 => tx.execute("ROLLBACK", []).map(drop),
        _ => Ok(()),
    }
}

fn entry(operation: &str) -> EntryDraft {
    EntryDraft { actor: "test".to_owned(), operation: operation.to_owned(), ..EntryDraft::default() }
}

/// Notes where what is remembered within a batch is not what the transaction holds.
fn check_current(tx: &mut Tx<'_>, faults: &Faults) {
    let (known, stored) = (of_access(&tx.access().unwrap()), of_access(&tx.load_access().unwrap()));
    if known != stored {
        faults.lock().unwrap().push(format!("access is {stored:?}, not {known:?}"));
    }
    check_chain(tx, faults);
}

fn check_chain(tx: &Tx<'_>, faults: &Faults) {
    let Some(known) = tx.touched.known.chain else { return };
    let sql = "SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1";
    let stored: Option<(i64, [u8; 32])> = tx.one(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    if stored != Some(known) {
        faults.lock().unwrap().push(format!("the chain ends at {stored:?}, not {known:?}"));
    }
}

fn of_access(access: &Access) -> BTreeSet<String> {
    let roles = access.roles.values().map(|role| format!("{role:?}"));
    let bindings = access
        .bindings
        .iter()
        .flat_map(|(subject, grants)| grants.iter().map(move |grant| format!("{subject} {grant:?}")));
    let revoked = access.revoked_certificates.iter().map(|fingerprint| format!("revoked {fingerprint}"));
    roles.chain(bindings).chain(revoked).collect()
}

/// All that is published, as facts.
fn of_all(published: &Published) -> BTreeSet<String> {
    let mut facts = of_access(&published.access.load());
    facts.extend(
        (&**published.api_keys.load()).into_iter().map(|(id, key)| format!("api key {id} {key:?} {:?}", key.hash)),
    );
    facts.extend((&**published.client_keys.load()).into_iter().map(|(id, key)| format!("client key {id} {key:?}")));
    facts.insert(format!("sequence {}", *published.audit.borrow()));
    facts.insert(format!("checkpoint {:?}", published.checkpoint.load()));
    let snapshot = Arc::clone(&published.snapshot.borrow());
    facts.extend(snapshot.configs.into_iter().map(|(name, revision)| format!("{name} {revision:?}")));
    facts.extend(snapshot.namespaces.values().map(|namespace| format!("{namespace:?}")));
    facts.extend(snapshot.namespace_maintenance.iter().map(|(name, terms)| format!("{name} {terms:?}")));
    facts.insert(format!("{:?} {:?}", snapshot.maintenance, snapshot.drains));
    let clients = &snapshot.client_access;
    facts.extend(clients.keys.iter().map(|(id, key)| format!("access of {id} {key:?}")));
    for (subject, grants) in &clients.bindings {
        facts.extend(grants.iter().map(|grant| format!("{subject} {grant:?}")));
    }
    facts.extend(clients.revoked_certificates.iter().map(|fingerprint| format!("revoked for clients {fingerprint}")));
    facts
}

fn read_from_file(folder: &Path) -> BTreeSet<String> {
    let connection = Connection::open(folder.join("prism.db")).unwrap();
    let (_, published) = Publisher::load(&connection).unwrap();
    of_all(&published)
}

/// Runs `count` operations that wait for the writer together; how many of them were kept.
async fn batch(store: &Arc<Store>, dice: &mut Dice, count: u64, faults: &Faults) -> usize {
    let (open, opened) = oneshot::channel::<()>();
    let holder = Arc::clone(store);
    let held =
        tokio::spawn(async move { holder.write(move |_| opened.blocking_recv().map_err(Error::internal)).await });
    let mut waiting = Vec::new();
    for _ in 0..count {
        let (store, faults, dice) = (Arc::clone(store), Arc::clone(faults), Dice(dice.roll(u64::MAX) | 1));
        waiting.push(tokio::spawn(async move {
            let unguarded = dice.0 % 8 == 0;
            let work = move |tx: &mut Tx<'_>| operation(tx, dice, &faults);
            if unguarded { store.write_unguarded(work).await } else { store.write(work).await }
        }));
    }
    // One thread runs the tasks, in turn: when it comes back here, all are in the queue.
    tokio::task::yield_now().await;
    open.send(()).unwrap();
    // It is undone with the rest.
    let _ = held.await.unwrap();
    let mut kept = 0;
    for operation in waiting {
        kept += usize::from(operation.await.unwrap().is_ok());
    }
    kept
}

#[tokio::test]
async fn memory_is_what_a_fresh_start_reads_whatever_is_undone() {
    let (mut kept, mut all) = (0, 0);
    for seed in 1..=6_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(START));
        let open = || Store::open(folder.path(), SessionPolicy::default(), clock.clone(), Random::system());
        let (store, faults) = (Arc::new(open().await.unwrap()), Faults::default());
        for round in 0..40 {
            let count = 1 + dice.roll(12);
            kept += batch(&store, &mut dice, count, &faults).await;
            all += count as usize;
            clock.advance(Duration::from_millis(dice.roll(1000)));
            let (memory, file) = (of_all(&store.published), read_from_file(folder.path()));
            assert_eq!(memory, file, "seed {seed}, round {round}");
            let noted = Arc::clone(&faults);
            let look = move |tx: &mut Tx<'_>| {
                check_chain(tx, &noted);
                Ok(())
            };
            store.write(look).await.unwrap();
            assert!(faults.lock().unwrap().is_empty(), "seed {seed}, round {round}: {:?}", faults.lock().unwrap());
        }
        let entries = store.verify_audit().await.unwrap();
        assert!(entries > 40, "seed {seed}: {entries}");
        store.make_checkpoint().await.unwrap();
        let memory = of_all(&store.published);
        drop(store);
        let store = open().await.unwrap();
        assert_eq!(of_all(&store.published), memory, "seed {seed}");
        assert_eq!(store.verify_audit().await.unwrap(), entries, "seed {seed}");
    }
    // Both happened often, or nothing was shown.
    assert!(kept > all / 10 && kept < all * 9 / 10, "{kept} of {all}");
}
