use std::sync::Mutex;
use std::thread::JoinHandle;

use prism_core::{Error, Result};
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

/// Most operations that wait for the writer; more callers wait in turn.
const QUEUE_LENGTH: usize = 4096;
/// Most operations of one commit.
const MAX_BATCH: usize = 1024;

/// What the owner of a database keeps on its writer thread.
pub trait Hook: Send + 'static {
    /// Runs before the commit of a batch in which at least one operation succeeded; an error fails the whole batch.
    fn before_commit(&mut self, _connection: &Connection) -> Result<()> {
        Ok(())
    }

    /// Runs when the batch is durable and before any of its callers hears of it.
    fn committed(&mut self, _connection: &Connection) {}

    /// Runs when one operation of a batch was rolled back and the others go on.
    fn undone(&mut self) {}

    /// Runs when the whole batch was rolled back.
    fn rolled_back(&mut self, _connection: &Connection) {}
}

impl Hook for () {}

/// One operation in the queue, its result type erased.
trait Job<H>: Send {
    /// Whether it runs in a savepoint of its own.
    fn is_guarded(&self) -> bool;
    /// Runs the operation; `false` when nothing of it may stay.
    fn run(&mut self, connection: &Connection, hook: &mut H) -> bool;
    /// Answers the caller: the operation's own result, or why the batch failed.
    fn finish(self: Box<Self>, batch: Result<()>);
}

struct Operation<T, F> {
    work: Option<F>,
    guarded: bool,
    result: Option<Result<T>>,
    answer: oneshot::Sender<Result<T>>,
}

impl<H, T, F> Job<H> for Operation<T, F>
where
    T: Send,
    F: FnOnce(&Connection, &mut H) -> Result<T> + Send,
{
    fn is_guarded(&self) -> bool {
        self.guarded
    }

    fn run(&mut self, connection: &Connection, hook: &mut H) -> bool {
        let result = match self.work.take() {
            Some(work) => std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(connection, hook)))
                .unwrap_or_else(|_| {
                    error!("an operation on the writer thread panicked; it was rolled back");
                    Err(Error::internal("panic in a database operation"))
                }),
            None => Err(Error::internal("a database operation ran twice")),
        };
        let kept = result.is_ok();
        self.result = Some(result);
        kept
    }

    fn finish(self: Box<Self>, batch: Result<()>) {
        let result = match (self.result, batch) {
            // A refused operation changed nothing, so the fate of its batch does not matter to its caller.
            (Some(Err(refused)), _) => Err(refused),
            (_, Err(failed)) => Err(failed),
            (Some(result), Ok(())) => result,
            (None, Ok(())) => Err(Error::internal("a database operation did not run")),
        };
        // The caller may have gone away; the work is done all the same.
        let _ = self.answer.send(result);
    }
}

/// The one writer of a database: a thread that gathers the operations that wait, runs each, as a rule in its own savepoint,
/// and commits them with one fsync. Nobody is answered before that.
pub struct Writer<H: Hook> {
    queue: Option<mpsc::Sender<Box<dyn Job<H>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<H: Hook> Writer<H> {
    pub(crate) fn spawn(name: &str, connection: Connection, hook: H) -> Result<Self> {
        let (queue, waiting) = mpsc::channel(QUEUE_LENGTH);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || Committer { connection, hook, waiting }.run())
            .map_err(Error::internal)?;
        Ok(Self { queue: Some(queue), thread: Mutex::new(Some(thread)) })
    }

    /// Runs `work` in a savepoint of the next batch and answers when that batch is durable.
    ///
    /// `work` that fails is rolled back alone. When the commit fails, every operation of the batch fails with its error.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection, &mut H) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.submit(work, true).await
    }

    /// As [`Writer::run`] without the savepoint, whose price is that of a small operation: for work that proves everything
    /// before its first change.
    ///
    /// `work` that fails before it changed anything fails alone. One that fails after a change undoes its whole batch, and
    /// everyone else in it gets UNAVAILABLE `BATCH_UNDONE`.
    pub async fn run_unguarded<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection, &mut H) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.submit(work, false).await
    }

    async fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection, &mut H) -> Result<T> + Send + 'static,
        guarded: bool,
    ) -> Result<T> {
        let (answer, result) = oneshot::channel();
        let job = Box::new(Operation { work: Some(work), guarded, result: None, answer });
        let queue = self.queue.as_ref().ok_or_else(closed)?;
        queue.send(job).await.map_err(|_| closed())?;
        result.await.map_err(|_| closed())?
    }
}

fn closed() -> Error {
    Error::unavailable("STORAGE_CLOSED", "the storage is shutting down")
}

impl<H: Hook> Drop for Writer<H> {
    /// Finishes what waits, then closes the database.
    fn drop(&mut self) {
        drop(self.queue.take());
        let thread = self.thread.get_mut().ok().and_then(Option::take);
        // The last reference may be dropped by the writer thread itself; it cannot wait for its own end.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

struct Committer<H: Hook> {
    connection: Connection,
    hook: H,
    waiting: mpsc::Receiver<Box<dyn Job<H>>>,
}

impl<H: Hook> Committer<H> {
    fn run(mut self) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        while let Some(first) = self.waiting.blocking_recv() {
            batch.push(first);
            let outcome = self.commit(&mut batch);
            if let Err(failed) = &outcome {
                warn!(reason = failed.reason(), cause = ?failed.cause(), operations = batch.len(), "a batch was rolled back");
            }
            for job in batch.drain(..) {
                job.finish(outcome.clone());
            }
        }
    }

    /// Runs the first job and all that arrive meanwhile in one transaction.
    fn commit(&mut self, batch: &mut Vec<Box<dyn Job<H>>>) -> Result<()> {
        let outcome = self.fill(batch);
        match &outcome {
            Ok(true) => self.hook.committed(&self.connection),
            Ok(false) => {}
            Err(_) => {
                if !self.connection.is_autocommit()
                    && let Err(cause) = self.execute("ROLLBACK")
                {
                    error!(%cause, "a rollback failed");
                }
                self.hook.rolled_back(&self.connection);
            }
        }
        outcome.map(|_| ())
    }

    fn fill(&mut self, batch: &mut Vec<Box<dyn Job<H>>>) -> Result<bool> {
        if !self.connection.is_autocommit() {
            // An earlier rollback failed; without another there would never be a batch again.
            self.execute("ROLLBACK")?;
        }
        self.execute("BEGIN IMMEDIATE")?;
        let mut done = 0;
        let mut kept = false;
        loop {
            while done < batch.len() {
                kept |= self.step(&mut batch[done])?;
                done += 1;
            }
            if batch.len() >= MAX_BATCH {
                break;
            }
            match self.waiting.try_recv() {
                Ok(job) => batch.push(job),
                Err(_) => break,
            }
        }
        if kept {
            self.hook.before_commit(&self.connection)?;
            self.execute("COMMIT")?;
        } else {
            self.execute("ROLLBACK")?;
        }
        Ok(kept)
    }

    fn step(&mut self, job: &mut Box<dyn Job<H>>) -> Result<bool> {
        let guarded = job.is_guarded();
        let changes = self.connection.total_changes();
        if guarded {
            self.execute("SAVEPOINT operation")?;
        }
        let kept = job.run(&self.connection, &mut self.hook);
        if self.connection.is_autocommit() {
            // SQLite itself rolled the transaction back (full disk, I/O error): nothing of this batch holds.
            return Err(Error::unavailable(
                "STORAGE_UNAVAILABLE",
                "the storage refused a write; nothing was changed; retry when the operator has looked at the disk",
            ));
        }
        if !kept {
            if guarded {
                self.execute("ROLLBACK TO operation")?;
            } else if self.connection.total_changes() != changes {
                error!("an operation without a savepoint failed after it had changed something; its batch is undone");
                return Err(Error::unavailable(
                    "BATCH_UNDONE",
                    "another operation of the same commit failed half-way; nothing was changed; retry",
                ));
            }
            self.hook.undone();
        }
        if guarded {
            self.execute("RELEASE operation")?;
        }
        Ok(kept)
    }

    fn execute(&self, sql: &str) -> Result<()> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute([]))
            .map(|_| ())
            .map_err(crate::error)
    }
}

#[cfg(test)]
mod tests {
    use prism_core::Kind;

    use super::*;
    use crate::Database;

    fn database(hook: impl Hook) -> (tempfile::TempDir, Database<impl Hook>) {
        let folder = tempfile::tempdir().unwrap();
        let database =
            Database::open(&folder.path().join("t.db"), "test", &["CREATE TABLE t (x INTEGER PRIMARY KEY)"], |_| {
                Ok(hook)
            })
            .unwrap();
        (folder, database)
    }

    fn insert(x: i64) -> impl FnOnce(&Connection) -> Result<()> + Send + 'static {
        move |connection| connection.execute("INSERT INTO t VALUES (?1)", [x]).map(|_| ()).map_err(crate::error)
    }

    #[tokio::test]
    async fn a_failed_operation_leaves_the_others_of_its_batch() {
        let (_folder, database) = database(());
        let results = futures::future::join_all((0..50).map(|n| {
            let work = insert(n / 2);
            database.writer.run(move |connection, _| work(connection))
        }))
        .await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 25);
        let count: i64 = database
            .readers
            .run(|c| c.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).map_err(crate::error))
            .await
            .unwrap();
        assert_eq!(count, 25);
    }

    #[tokio::test]
    async fn without_a_savepoint_an_early_failure_is_alone_and_a_late_one_undoes_the_batch() {
        let (_folder, database) = database(());
        let refused = || Error::not_found("something");
        let (open, opened) = oneshot::channel::<()>();
        let first = database.writer.run_unguarded(move |connection, _| {
            insert(1)(connection)?;
            opened.blocking_recv().map_err(Error::internal)
        });
        let early = database.writer.run_unguarded(move |_, _| Err::<(), _>(refused()));
        let (kept, refused_early, ()) = tokio::join!(first, early, async { open.send(()).unwrap() });
        kept.unwrap();
        assert_eq!(refused_early.unwrap_err().kind(), Kind::NotFound);

        let (open, opened) = oneshot::channel::<()>();
        let first = database.writer.run(move |connection, _| {
            opened.blocking_recv().map_err(Error::internal)?;
            insert(2)(connection)
        });
        let late = database.writer.run_unguarded(move |connection, _| {
            insert(3)(connection)?;
            Err::<(), _>(refused())
        });
        let (undone, refused_late, ()) = tokio::join!(first, late, async { open.send(()).unwrap() });
        assert_eq!(undone.unwrap_err().reason(), "BATCH_UNDONE");
        assert_eq!(refused_late.unwrap_err().kind(), Kind::NotFound);
        let stored: Vec<i64> = database
            .readers
            .run(|connection| {
                let mut statement = connection.prepare("SELECT x FROM t").map_err(crate::error)?;
                let rows = statement.query_map([], |row| row.get(0)).map_err(crate::error)?;
                rows.collect::<rusqlite::Result<_>>().map_err(crate::error)
            })
            .await
            .unwrap();
        assert_eq!(stored, [1]);
        let work = insert(2);
        database.writer.run_unguarded(move |connection, _| work(connection)).await.unwrap();
    }

    #[tokio::test]
    async fn a_failed_commit_fails_every_caller_and_keeps_nothing() {
        struct Refuse;
        impl Hook for Refuse {
            fn before_commit(&mut self, _: &Connection) -> Result<()> {
                Err(Error::unavailable("STORAGE_FULL", "no room"))
            }
        }
        let (_folder, database) = database(Refuse);
        let work = insert(1);
        let refused = database.writer.run(move |connection, _| work(connection)).await.unwrap_err();
        assert_eq!(refused.reason(), "STORAGE_FULL");
        let count: i64 = database
            .readers
            .run(|c| c.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).map_err(crate::error))
            .await
            .unwrap();
        assert_eq!(count, 0);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_writer_lives_on() {
        let (_folder, database) = database(());
        let failed = database.writer.run(|_, _| -> Result<()> { panic!("on purpose") }).await;
        assert_eq!(failed.unwrap_err().reason(), "INTERNAL");
        let work = insert(1);
        database.writer.run(move |connection, _| work(connection)).await.unwrap();
    }
}
