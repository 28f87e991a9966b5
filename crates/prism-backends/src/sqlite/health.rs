use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prism_core::Error;
use prism_core::control::Health;
use rusqlite::{Connection, OptionalExtension};

/// A durable write that takes longer than this is a sign of trouble.
const SLOW: Duration = Duration::from_secs(1);
/// A check that takes longer than this has failed.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Writes to a file of its own beside the namespaces' files and reads it back. No namespace can have its name, which begins
/// with an underscore.
pub(crate) struct Probe {
    path: PathBuf,
    kept: Mutex<Option<Connection>>,
}

impl Probe {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, kept: Mutex::new(None) }
    }

    /// Does one durable write and reads it back.
    pub(crate) async fn check(self: &Arc<Self>) -> (Health, String) {
        let probe = Arc::clone(self);
        let begun = Instant::now();
        let work = tokio::task::spawn_blocking(move || probe.write_and_read());
        let outcome = match tokio::time::timeout(TIMEOUT, work).await {
            Ok(done) => done.map_err(|cause| cause.to_string()).and_then(|written| written),
            Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
        };
        let millis = begun.elapsed().as_secs_f64() * 1000.0;
        match outcome {
            Ok(()) if begun.elapsed() > SLOW => (Health::Degraded, format!("write and read back took {millis:.0} ms")),
            Ok(()) => (Health::Healthy, format!("write and read back in {millis:.1} ms")),
            Err(cause) => (Health::Unhealthy, format!("write and read back failed: {cause}")),
        }
    }

    fn write_and_read(&self) -> Result<(), String> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken out: a connection that failed is not used again.
        let connection = match kept.take() {
            Some(connection) if self.path.exists() => connection,
            _ => self.connect().map_err(|cause| describe(&cause))?,
        };
        round_trip(&connection).map_err(|cause| describe(&cause))?;
        *kept = Some(connection);
        Ok(())
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        let connection = prism_sqlite::open(&self.path)?;
        connection.busy_timeout(TIMEOUT)?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS health (id INTEGER PRIMARY KEY CHECK (id = 1), beat INTEGER NOT NULL)",
        )?;
        Ok(connection)
    }
}

fn round_trip(connection: &Connection) -> rusqlite::Result<()> {
    let written: i64 = connection.query_row(
        "INSERT INTO health VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET beat = beat + 1 RETURNING beat",
        [],
        |row| row.get(0),
    )?;
    let read: Option<i64> = connection.query_row("SELECT beat FROM health", [], |row| row.get(0)).optional()?;
    if read == Some(written) { Ok(()) } else { Err(rusqlite::Error::QueryReturnedNoRows) }
}

/// The message for operators: Prism's own where there is one, else SQLite's.
fn describe(cause: &rusqlite::Error) -> String {
    let text = cause.to_string();
    let known: Error = prism_sqlite::error(rusqlite::Error::SqliteFailure(
        cause.sqlite_error().copied().unwrap_or_else(|| rusqlite::ffi::Error::new(1)),
        None,
    ));
    if known.reason() == "INTERNAL" { text } else { format!("{} ({text})", known.message()) }
}
