//! `endpoints.json`: where the server really listens, for whoever looks for it on this machine (contract §1).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Serialize;

/// The addresses really bound.
#[derive(Clone, Copy, Debug)]
pub struct Endpoints {
    /// Data plane, if this process has one.
    pub data: Option<SocketAddr>,
    /// Admin plane, if this process has one.
    pub admin: Option<SocketAddr>,
    /// Metrics and health.
    pub metrics: SocketAddr,
}

#[derive(Serialize)]
struct Document {
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    admin: Option<String>,
    metrics: String,
}

/// How a client on this machine reaches `address`: a wildcard stands for the loopback address.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port())
    } else {
        address
    }
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("endpoints.json")
}

impl Endpoints {
    /// Writes the file, whole or not at all.
    pub fn write(&self, data_dir: &Path) -> io::Result<()> {
        let text = |address| reachable(address).to_string();
        let document = Document { data: self.data.map(text), admin: self.admin.map(text), metrics: text(self.metrics) };
        prism_rpc::files::write_atomically(&path(data_dir), &serde_json::to_vec(&document)?, 0o644)
    }
}

/// Removes the file; that there is none is no error.
pub fn remove(data_dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(path(data_dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_written_as_loopback() {
        let folder = tempfile::tempdir().unwrap();
        let endpoints = Endpoints {
            data: Some("0.0.0.0:1".parse().unwrap()),
            admin: Some("[::]:2".parse().unwrap()),
            metrics: "10.0.0.1:3".parse().unwrap(),
        };
        endpoints.write(folder.path()).unwrap();
        let text = std::fs::read_to_string(path(folder.path())).unwrap();
        assert_eq!(text, r#"{"data":"127.0.0.1:1","admin":"127.0.0.1:2","metrics":"10.0.0.1:3"}"#);
        Endpoints { admin: None, ..endpoints }.write(folder.path()).unwrap();
        let text = std::fs::read_to_string(path(folder.path())).unwrap();
        assert_eq!(text, r#"{"data":"127.0.0.1:1","metrics":"10.0.0.1:3"}"#);
        remove(folder.path()).unwrap();
        remove(folder.path()).unwrap();
        assert!(!path(folder.path()).exists());
    }
}
