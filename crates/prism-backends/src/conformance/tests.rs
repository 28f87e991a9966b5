use prism_core::{InstanceName, UnixMillis};

use super::*;
use crate::memory::MemoryBackend;
use crate::sqlite::SqliteBackend;

fn instance() -> InstanceName {
    InstanceName::parse("instance", "main").unwrap()
}

fn clock() -> Clock {
    Clock::manual(UnixMillis(1_700_000_000_000))
}

fn memory() -> Subject {
    let clock = clock();
    Subject { backend: MemoryBackend::new(instance(), clock.clone()), clock }
}

async fn sqlite() -> (tempfile::TempDir, Subject) {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock());
    let backend = SqliteBackend::open(instance(), folder.path().join("data"), clock.clone()).await.unwrap();
    (folder, Subject { backend, clock })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_serves_key_value() {
    key_value::run(&memory()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_serves_key_value() {
    let (_folder, subject) = sqlite().await;
    key_value::run(&subject).await;
}

#[test]
fn memory_agrees_with_the_key_value_model() {
    key_value_model::run(&memory(), &runtime(), 256);
}

#[test]
fn sqlite_agrees_with_the_key_value_model() {
    let runtime = runtime();
    let (_folder, subject) = runtime.block_on(sqlite());
    key_value_model::run(&subject, &runtime, 24);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_serves_pub_sub() {
    pub_sub::run(&memory()).await;
}
