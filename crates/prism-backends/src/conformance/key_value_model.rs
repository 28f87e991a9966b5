//! KEY_VALUE against a model: any sequence of operations has the outcome it has on an ordered map.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prism_core::{Clock, UnixMillis};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use super::Subject;
use super::key_value::{AWKWARD_KEYS, open};
use crate::driver::{KeyValue, PutEntry};

/// Which version a write wants, said without knowing any.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Any,
    Absent,
    Current,
    Wrong,
}

#[derive(Clone, Debug)]
struct Put {
    key: &'static str,
    size: usize,
    seconds: Option<u64>,
    wanted: Wanted,
}

#[derive(Clone, Debug)]
enum Step {
    PutMany(Vec<Put>),
    Put(Put),
    Delete(&'static str, Wanted),
    Get(&'static str),
    List { prefix: &'static str, after: Option<&'static str>, limit: usize },
    Pass(u64),
}

fn wanted() -> impl Strategy<Value = Wanted> {
    prop_oneof![4 => Just(Wanted::Any), 1 => Just(Wanted::Absent), 2 => Just(Wanted::Current), 1 => Just(Wanted::Wrong)]
}

fn put() -> impl Strategy<Value = Put> {
    (select(AWKWARD_KEYS), 0..20_usize, proptest::option::of(0..4_u64), wanted())
        .prop_map(|(key, size, seconds, wanted)| Put { key, size, seconds, wanted })
}

fn step() -> impl Strategy<Value = Step> {
    let key = || select(AWKWARD_KEYS);
    let prefix = prop_oneof![Just(""), key()];
    prop_oneof![
        4 => put().prop_map(Step::Put),
        2 => proptest::collection::vec(put(), 0..5).prop_map(Step::PutMany),
        2 => (key(), wanted()).prop_map(|(key, wanted)| Step::Delete(key, wanted)),
        2 => key().prop_map(Step::Get),
        2 => (prefix, proptest::option::of(key()), 1..5_usize)
            .prop_map(|(prefix, after, limit)| Step::List { prefix, after, limit }),
        1 => (0..3_u64).prop_map(Step::Pass),
    ]
}

#[derive(Clone, Debug)]
struct Stored {
    value: Bytes,
    version: u64,
    expires_at: Option<UnixMillis>,
}

#[derive(Clone, Default)]
struct Model {
    stored: BTreeMap<String, Stored>,
    last: u64,
}

impl Model {
    fn alive(&self, key: &str, now: UnixMillis) -> Option<&Stored> {
        self.stored.get(key).filter(|stored| stored.expires_at.is_none_or(|at| at > now))
    }

    fn version(&self, key: &str, now: UnixMillis) -> u64 {
        self.alive(key, now).map_or(0, |stored| stored.version)
    }

    /// The version to ask for, and whether that is the current one.
    fn resolve(&self, key: &str, wanted: Wanted, now: UnixMillis) -> (Option<u64>, bool) {
        let current = self.version(key, now);
        match wanted {
            Wanted::Any => (None, true),
            Wanted::Absent => (Some(0), current == 0),
            Wanted::Current => (Some(current), true),
            Wanted::Wrong => (Some(current + 1), false),
        }
    }

    /// The entries to write; the model as it is when they are accepted, `None` when they are not.
    fn write(&self, puts: &[Put], now: UnixMillis) -> (Vec<PutEntry>, Option<Self>) {
        let (mut after, mut fits, mut entries) = (self.clone(), true, Vec::new());
        for put in puts {
            // A version that the same batch makes is not known before; such an entry goes without a condition.
            let known = after.version(put.key, now) == self.version(put.key, now);
            let wanted = if known { put.wanted } else { Wanted::Any };
            let (if_version, fine) = self.resolve(put.key, wanted, now);
            fits &= fine;
            let value = Bytes::from(vec![b'v'; put.size]);
            let expires_at = put.seconds.map(|seconds| now + Duration::from_secs(seconds));
            // Any version that no entry had before will do; the driver's own is filled in later.
            let version = u64::MAX - entries.len() as u64;
            after.stored.insert(put.key.to_owned(), Stored { value: value.clone(), version, expires_at });
            entries.push(PutEntry { key: put.key.to_owned(), value, expires_at, if_version });
        }
        (entries, fits.then_some(after))
    }
}

struct Trial {
    store: Arc<dyn KeyValue>,
    clock: Clock,
    model: Model,
}

impl Trial {
    async fn put(&mut self, puts: &[Put], many: bool) {
        let (entries, accepted) = self.model.write(puts, self.clock.now());
        let outcome = match entries.first() {
            Some(only) if !many => self.store.put(only.clone()).await.map(|version| vec![version]),
            _ => self.store.put_many(entries).await,
        };
        match (outcome, accepted) {
            (Ok(versions), Some(mut after)) => {
                assert_eq!(versions.len(), puts.len());
                for (put, version) in puts.iter().zip(versions) {
                    assert!(version > after.last, "versions grow");
                    after.last = version;
                    after.stored.get_mut(put.key).unwrap().version = version;
                }
                self.model = after;
            }
            (Err(refused), None) => assert_eq!(refused.reason(), "VERSION_MISMATCH"),
            (outcome, accepted) => panic!("{outcome:?} where the model says {}", accepted.is_some()),
        }
    }

    async fn delete(&mut self, key: &str, wanted: Wanted) {
        let now = self.clock.now();
        let (if_version, fine) = self.model.resolve(key, wanted, now);
        match self.store.delete(key, if_version).await {
            Ok(existed) => {
                assert!(fine);
                assert_eq!(existed, self.model.alive(key, now).is_some());
                self.model.stored.remove(key);
            }
            Err(refused) => assert_eq!((refused.reason(), fine), ("VERSION_MISMATCH", false)),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) {
        let now = self.clock.now();
        let page = self.store.list(prefix, after, limit, usize::MAX >> 1, false).await.unwrap();
        let all: Vec<&String> = self
            .model
            .stored
            .keys()
            .filter(|key| key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after))
            .filter(|key| self.model.alive(key, now).is_some())
            .collect();
        let keys: Vec<&String> = page.entries.iter().map(|(key, _)| key).collect();
        assert_eq!((keys.as_slice(), page.more), (&all[..limit.min(all.len())], all.len() > limit));
    }

    async fn get(&self, key: &str) {
        let read = self.store.get(key).await.unwrap().map(|entry| (entry.value, entry.version, entry.expires_at));
        let alive = self.model.alive(key, self.clock.now());
        assert_eq!(read, alive.map(|stored| (stored.value.clone(), stored.version, stored.expires_at)));
    }
}

/// Tries `cases` random sequences.
pub fn run(subject: &Subject, runtime: &tokio::runtime::Runtime, cases: u32) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let number = Cell::new(0);
    TestRunner::new(config)
        .run(&proptest::collection::vec(step(), 1..60), |steps| {
            number.set(number.get() + 1);
            runtime.block_on(trial(subject, &format!("kv-model-{}", number.get()), &steps));
            Ok(())
        })
        .unwrap();
}

async fn trial(subject: &Subject, namespace: &str, steps: &[Step]) {
    let (store, meter) = open(subject, namespace).await;
    let mut trial = Trial { store, clock: subject.clock.clone(), model: Model::default() };
    for step in steps {
        match step {
            Step::Put(put) => trial.put(std::slice::from_ref(put), false).await,
            Step::PutMany(puts) => trial.put(puts, true).await,
            Step::Delete(key, wanted) => trial.delete(key, *wanted).await,
            Step::Get(key) => trial.get(key).await,
            Step::List { prefix, after, limit } => trial.list(prefix, *after, *limit).await,
            Step::Pass(seconds) => subject.pass(Duration::from_secs(*seconds)).await,
        }
    }
    for key in AWKWARD_KEYS {
        trial.get(key).await;
        trial.delete(key, Wanted::Any).await;
    }
    assert_eq!(meter.used(), 0, "an empty store takes no room");
    let namespace = subject.config(namespace, prism_core::config::AccessPattern::KeyValue, &[]).namespace;
    subject.backend.remove_namespace(&namespace).await.unwrap();
}
