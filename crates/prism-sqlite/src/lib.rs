//! SQLite as Prism uses it, for control state and for the embedded backend alike: one writer thread with group commit, a few
//! readers, and schema migrations.

mod migrate;
mod reader;
mod writer;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use prism_core::{Error, Result};
use rusqlite::Connection;
use rusqlite::config::DbConfig;

pub use migrate::migrate;
pub use reader::Readers;
pub use writer::{Hook, Writer};

/// Most connections that read a [`Database`] at the same time; more wait.
const MAX_READERS: usize = 4;

/// Opens a database for writing: WAL, `synchronous = FULL` (an answered commit is on the disk), foreign keys on; a new file is its owner's alone.
pub fn open(path: &Path) -> rusqlite::Result<Connection> {
    // SQLite gives its side files the mode of the database. Where this fails, opening says why.
    let _ = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // What a savepoint may have to undo stays in memory instead of a temporary file.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    prepare(&connection)?;
    Ok(connection)
}

/// What readers and writers have in common.
fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "trusted_schema", false)?;
    // A prepared statement keeps its plan. Without this, SQLite may plan it anew for every other parameter.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.set_prepared_statement_cache_capacity(128);
    Ok(())
}

/// Opens a database for reading only.
pub fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    use rusqlite::OpenFlags;
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.pragma_update(None, "query_only", true)?;
    prepare(&connection)?;
    Ok(connection)
}

/// Turns a SQLite error into Prism's: a full disk or a broken device is UNAVAILABLE `STORAGE_UNAVAILABLE` (retry when the
/// operator has made room), anything else INTERNAL. The cause is kept for the log.
pub fn error(cause: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode::{CannotOpen, DatabaseBusy, DiskFull, ReadOnly, SystemIoFailure};
    match cause.sqlite_error_code() {
        Some(DiskFull) => {
            Error::unavailable("STORAGE_FULL", "the disk is full; nothing was changed; retry when there is room")
                .caused_by(cause)
        }
        Some(SystemIoFailure | CannotOpen | ReadOnly) => {
            Error::unavailable("STORAGE_UNAVAILABLE", "the storage does not accept writes; nothing was changed")
                .caused_by(cause)
        }
        Some(DatabaseBusy) => {
            Error::unavailable("STORAGE_BUSY", "the storage was busy for too long; nothing was changed; retry")
                .caused_by(cause)
        }
        _ => Error::internal(cause),
    }
}

/// A database file: where it is, one writer, a few readers.
pub struct Database<H: Hook> {
    /// The file.
    pub path: PathBuf,
    /// Readers, opened on demand.
    pub readers: Readers,
    /// The one writer. It is closed last, and takes over what is left in the write-ahead log.
    pub writer: Writer<H>,
}

impl<H: Hook> Database<H> {
    /// Opens `path`, brings its schema up to date, and starts the writer thread under `name`.
    ///
    /// `hook` is made on the migrated connection, so that it can load what it keeps in memory.
    pub fn open(
        path: &Path,
        name: &str,
        migrations: &[&str],
        hook: impl FnOnce(&Connection) -> Result<H>,
    ) -> Result<Self> {
        let mut connection = open(path).map_err(error)?;
        migrate(&mut connection, migrations)?;
        let hook = hook(&connection)?;
        Ok(Self {
            path: path.to_owned(),
            writer: Writer::spawn(name, connection, hook)?,
            readers: Readers::new(path.to_owned(), MAX_READERS),
        })
    }
}
