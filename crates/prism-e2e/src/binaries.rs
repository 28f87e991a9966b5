//! Where the programs under test are.

use std::path::PathBuf;

/// The server; panics with the command that builds it when it is not there.
pub fn prism() -> PathBuf {
    find("PRISM_BIN", "prism")
}

/// The operator's command line; panics with the command that builds it when it is not there.
pub fn prism_admin() -> PathBuf {
    find("PRISM_ADMIN_BIN", "prism-admin")
}

fn find(variable: &str, name: &str) -> PathBuf {
    let path = std::env::var_os(variable).map(PathBuf::from).or_else(|| {
        // The test is target/<profile>/deps/<test>; the programs are two folders up.
        let test = std::env::current_exe().ok()?;
        Some(test.parent()?.parent()?.join(name))
    });
    match path {
        Some(path) if path.is_file() => path,
        other => panic!("{name} is not at {other:?}: run cargo build --bin prism --bin prism-admin, or set {variable}"),
    }
}
