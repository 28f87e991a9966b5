use prism_core::{Error, Kind, Result};
use rusqlite::{Connection, TransactionBehavior};

use crate::error;

/// Applies the scripts that `user_version` says are missing, each in its own transaction.
///
/// FAILED_PRECONDITION `SCHEMA_TOO_NEW` when a newer version of Prism wrote the file.
pub fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<()> {
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(error)?;
    let found = found as usize;
    if found > migrations.len() {
        return Err(Error::new(
            Kind::FailedPrecondition,
            "SCHEMA_TOO_NEW",
            format!(
                "the database has schema {found}, this version of Prism knows {}; start a newer version",
                migrations.len()
            ),
        ));
    }
    for (index, script) in migrations.iter().enumerate().skip(found) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error)?;
        transaction.execute_batch(script).map_err(error)?;
        transaction.pragma_update(None, "user_version", index as u32 + 1).map_err(error)?;
        transaction.commit().map_err(error)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_run_once_and_a_newer_schema_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        let first = ["CREATE TABLE a (x)"];
        migrate(&mut connection, &first).unwrap();
        migrate(&mut connection, &first).unwrap();
        let both = ["CREATE TABLE a (x)", "CREATE TABLE b (x)"];
        migrate(&mut connection, &both).unwrap();
        assert_eq!(migrate(&mut connection, &first).unwrap_err().reason(), "SCHEMA_TOO_NEW");
    }
}
