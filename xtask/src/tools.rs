//! The tools that tests need beside cargo: found where they are, else brought under `target/tools`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::process;
use crate::workspace::Workspace;

/// Where promtool is: `PROMTOOL`, the path, or Debian's package `prometheus`.
pub fn promtool(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    packaged(workspace, "PROMTOOL", "promtool", "prometheus")
}

/// Where etcd is, beside which the bench measures: `ETCD`, the path, or Debian's package `etcd-server`.
pub fn etcd(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    packaged(workspace, "ETCD", "etcd", "etcd-server")
}

/// Where a program is: what `variable` names, the path, an earlier run, or Debian's package of it, unpacked and not
/// installed, so that no service of it ever runs.
fn packaged(workspace: &Workspace, variable: &str, program: &str, package: &str) -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os(variable) {
        return Ok(PathBuf::from(named));
    }
    if let Some(found) = process::in_path(program) {
        return Ok(found);
    }
    let unpacked = tools_folder(workspace)?.join(package);
    let found = unpacked.join("usr/bin").join(program);
    if !found.is_file() {
        unpack(workspace, package, &unpacked).with_context(|| {
            format!("{program} is not here and cannot be fetched; install it, or name it in {variable}")
        })?;
    }
    Ok(found)
}

/// Fetches a Debian package and unpacks it into a folder.
fn unpack(workspace: &Workspace, package: &str, folder: &Path) -> anyhow::Result<()> {
    let file = download(workspace, package)?;
    process::run(Command::new("dpkg").arg("-x").arg(file).arg(folder))?;
    // Lists and package are many times as large as what is used of them.
    let _ = std::fs::remove_dir_all(tools_folder(workspace)?.join("apt"));
    Ok(())
}

/// Where the library is that gives programs a clock of their own: `LIBFAKETIME`, the system's folders, an earlier run, or Debian's
/// package `libfaketime`, unpacked and not installed.
pub fn libfaketime(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("LIBFAKETIME") {
        return Ok(PathBuf::from(named));
    }
    let unpacked = tools_folder(workspace)?.join("libfaketime");
    let folders = [PathBuf::from("/usr/lib"), PathBuf::from("/usr/lib64"), unpacked.join("usr/lib")];
    let found = || folders.iter().find_map(|folder| library_in(folder));
    if found().is_none() {
        unpack(workspace, "libfaketime", &unpacked).context(
            "libfaketime is not here and cannot be fetched; install it, or name its libfaketime.so.1 in LIBFAKETIME",
        )?;
    }
    found().context("the package libfaketime has no libfaketime.so.1")
}

/// `faketime/libfaketime.so.1` in a folder of libraries, or in that of an architecture below it.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let below = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files = std::iter::once(folder.to_owned()).chain(below).map(|at| at.join("faketime/libfaketime.so.1"));
    files.find(|file| file.is_file())
}

/// Sees that network namespaces can be made where that is allowed: `ip` is installed when it is not there. Without rights or
/// apt-get that is no failure: the tests that want namespaces say that they do without.
pub fn namespaces() {
    if process::in_path("ip").is_none()
        && let Err(why) = apt_install("iproute2")
    {
        eprintln!(
            "xtask: ip (of iproute2) is not here: {why:#}; tests of the network use relays in place of namespaces"
        );
    }
}

/// Makes sure that node and npm can be run: Debian's packages are installed when they are not there.
pub fn node() -> anyhow::Result<()> {
    for (program, package) in [("node", "nodejs"), ("npm", "npm")] {
        // Asked one after the other: some builds of node bring npm along and refuse Debian's.
        if process::in_path(program).is_none() {
            apt_install(package).with_context(|| format!("{program} is not here; install it by hand"))?;
        }
    }
    Ok(())
}

/// Makes sure that what other programs read keystores with can be run: openssl, and a Java with its compiler.
pub fn keystore_readers() -> anyhow::Result<()> {
    for (program, package) in [("openssl", "openssl"), ("javac", "default-jdk-headless")] {
        if process::in_path(program).is_none() {
            apt_install(package).with_context(|| format!("{program} is not here; install it by hand"))?;
        }
    }
    Ok(())
}

fn apt_install(package: &str) -> anyhow::Result<()> {
    if process::in_path("apt-get").is_none() {
        bail!("there is no apt-get to install {package} with");
    }
    let root = process::output(Command::new("id").arg("-u"))?.trim() == "0";
    for arguments in [&["update", "-q"][..], &["install", "-q", "-y", "--no-install-recommends", package]] {
        let mut command = if root { Command::new("apt-get") } else { Command::new("sudo") };
        if !root {
            // Without a question: nobody may be there to answer it.
            command.args(["-n", "apt-get"]);
        }
        process::run(command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments))?;
    }
    Ok(())
}

/// Installs what the `package-lock.json` of a folder names, unless that was done for the same lock file before.
pub fn npm_ci(folder: &Path) -> anyhow::Result<()> {
    let lock = std::fs::read(folder.join("package-lock.json"))
        .with_context(|| format!("{} has no package-lock.json", folder.display()))?;
    let stamp = folder.join("node_modules/.installed-lock.json");
    if std::fs::read(&stamp).is_ok_and(|installed| installed == lock) {
        return Ok(());
    }
    process::run(Command::new("npm").current_dir(folder).args(["ci", "--no-audit", "--no-fund"]))?;
    std::fs::write(&stamp, lock).with_context(|| format!("{} cannot be written", stamp.display()))
}

/// The npm projects of the repository: the root, and the clients that the end-to-end tests run.
pub fn npm_folders(workspace: &Workspace) -> Vec<PathBuf> {
    let mut folders = vec![workspace.root.clone()];
    if let Ok(clients) = workspace.root.join("crates/prism-e2e/clients").read_dir() {
        folders
            .extend(clients.flatten().map(|client| client.path()).filter(|path| path.join("package.json").is_file()));
    }
    folders
}

/// A buf command, from the root's `node_modules`. It keeps its cache under `target/tools`.
pub fn buf(workspace: &Workspace) -> anyhow::Result<Command> {
    node()?;
    npm_ci(&workspace.root)?;
    let mut command = Command::new(workspace.root.join("node_modules/.bin/buf"));
    command.current_dir(&workspace.root).env("BUF_CACHE_DIR", tools_folder(workspace)?.join("buf"));
    Ok(command)
}

/// Fetches a Debian package as a file. It keeps its own package lists, so that it needs no rights and changes nothing
/// of the system's.
fn download(workspace: &Workspace, package: &str) -> anyhow::Result<PathBuf> {
    let folder = tools_folder(workspace)?.join("apt");
    for part in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(folder.join(part))?;
    }
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(&folder).arg("-q");
        command.arg("-o").arg(format!("Dir::State::lists={}", folder.join("lists").display()));
        command.arg("-o").arg(format!("Dir::Cache={}", folder.join("cache").display()));
        // Root's downloads run as a user that may not enter this folder; the packages are verified all the same.
        command.args(["-o", "APT::Sandbox::User="]);
        process::run(command.args(arguments))
    };
    apt(&["update"])?;
    apt(&["download", package])?;
    let fetched = folder.read_dir()?.flatten().map(|entry| entry.path());
    let is_package = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&format!("{package}_")) && path.extension().is_some_and(|extension| extension == "deb")
    };
    fetched.into_iter().find(is_package).with_context(|| format!("apt-get left no package of {package}"))
}

fn tools_folder(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    let folder = workspace.target.join("tools");
    std::fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    Ok(folder)
}
