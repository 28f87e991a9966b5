//! The licences of everything that is built, against a list of what may be.

use anyhow::bail;

use crate::deps::Package;
use crate::spdx;

/// The licences that a dependency may have. `deny.toml` has the same list.
const ALLOWED: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Zlib",
];

/// Every package must have a licence that the list allows.
pub fn check(packages: &[Package]) -> anyhow::Result<()> {
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !spdx::is_met(&package.licence, ALLOWED))
        .map(|package| format!("{} has {:?}", package.name, package.licence))
        .collect();
    if refused.is_empty() {
        return Ok(());
    }
    bail!("not in the list of allowed licences: {}", refused.join("; "))
}
