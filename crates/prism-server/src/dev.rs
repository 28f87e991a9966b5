//! `--dev`: what a newcomer needs to try Prism within a minute (contract §1).

use std::net::SocketAddr;
use std::path::Path;

use prism_admin_plane::AdminPlane;
use prism_admin_plane::provision::DEV_NAMESPACE;
use prism_rpc::files::write_atomically;
use prism_store::Store;

use crate::endpoints::{Endpoints, reachable};

/// File of the ready-made client key.
const CLIENT_TOKEN: &str = "client.token";

/// Makes namespace, configs and client key through the door, like any operator; what is there stays.
pub async fn provision(admin: &AdminPlane, store: &Store, folder: &Path) -> Result<(), String> {
    let failed = |error: prism_core::Error| format!("--dev cannot set up its namespace: {}", error.message());
    let door = admin.door();
    door.provision_dev().await.map_err(failed)?;
    let path = folder.join(CLIENT_TOKEN);
    if let Ok(text) = std::fs::read_to_string(&path) {
        let token = text.trim().to_owned();
        if store.write(move |tx| tx.knows_client_token(&token)).await.map_err(failed)? {
            return Ok(());
        }
    }
    let token = door.dev_client_key().await.map_err(failed)?;
    let written = write_atomically(&path, format!("{token}\n").as_bytes(), 0o600);
    written.map_err(|error| format!("{} cannot be written: {error}", path.display()))
}

/// Prints on stdout what to try.
pub fn print_next_steps(endpoints: &Endpoints, folder: &Path) {
    println!("{}", next_steps(endpoints, folder));
}

fn next_steps(endpoints: &Endpoints, folder: &Path) -> String {
    let folder = folder.display();
    let shown =
        |address: Option<SocketAddr>| address.map(reachable).map(|address| address.to_string()).unwrap_or_default();
    let (data, admin, metrics) = (shown(endpoints.data), shown(endpoints.admin), reachable(endpoints.metrics));
    // The command line looks into ./prism-data by itself.
    let prefix = if folder.to_string() == "./prism-data" { String::new() } else { format!("PRISM_DATA_DIR={folder} ") };
    let commands = [
        ("whoami", "who the key in admin.token is"),
        ("config list", "the five configs to try"),
        ("backend list", "where data is kept"),
        ("session list", "which clients are connected"),
        ("metrics", "what they do"),
        ("audit list", "who did what on the admin plane"),
        ("audit verify", "that nobody rewrote it"),
    ];
    let lines: Vec<String> =
        commands.iter().map(|(command, purpose)| format!("  {prefix}prism-admin {command:<14} # {purpose}")).collect();
    format!(
        "Prism is ready, for this machine only.\n\n\
         \x20 data plane   {data} (gRPC, clear text); client key in {folder}/{CLIENT_TOKEN}\n\
         \x20 admin plane  {admin} (gRPC, TLS); CA in {folder}/ca.pem, admin key in {folder}/admin.token\n\
         \x20 metrics      http://{metrics}/metrics\n\n\
         The namespace {DEV_NAMESPACE:?} has the configs dev-key-value, dev-queue, dev-pubsub, dev-reader and dev-transact.\n\
         To try next, in another terminal:\n\n{}",
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_steps_name_what_there_is() {
        let endpoints = Endpoints {
            data: Some("127.0.0.1:1".parse().unwrap()),
            admin: Some("127.0.0.1:2".parse().unwrap()),
            metrics: "127.0.0.1:3".parse().unwrap(),
        };
        let text = next_steps(&endpoints, Path::new("./prism-data"));
        for part in
            ["127.0.0.1:1 ", "127.0.0.1:2 ", "http://127.0.0.1:3/metrics", "  prism-admin whoami", "client.token"]
        {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(next_steps(&endpoints, Path::new("/srv/p")).contains("PRISM_DATA_DIR=/srv/p prism-admin whoami"));
    }
}
