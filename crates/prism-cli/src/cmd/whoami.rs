//! `prism-admin whoami`.

use clap::Args;
use prism_proto::admin::v1::{WhoAmIRequest, WhoAmIResponse};

use super::Console;
use crate::{error::Result, exit::Exit, output::Grid, text};

/// `whoami`: the caller as the audit log records it, and what it holds.
#[derive(Args, Debug)]
pub struct WhoAmI {}

impl WhoAmI {
    /// Asks the server.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        let answer = console.client().await?.call(WhoAmIRequest {}).await?;
        console.printer.message(&answer, tables)?;
        Ok(Exit::Ok)
    }
}

fn tables(answer: &WhoAmIResponse) -> String {
    let sheet = Grid::sheet()
        .field("actor", &answer.actor)
        .field("method", &answer.auth_method)
        .field("credential", text::or_dash(&answer.credential_id))
        .render("");
    let grid = answer.grants.iter().fold(Grid::new(["ROLE", "NAMESPACE", "PERMISSIONS"]), |grid, grant| {
        grid.row([
            grant.role.clone(),
            grant.namespace.clone().unwrap_or_else(|| "all".to_owned()),
            grant.permissions.join(" "),
        ])
    });
    format!("{sheet}\n{}", grid.render("no roles"))
}
