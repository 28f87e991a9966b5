//! The embedded SQLite backend: one database file for each namespace.
