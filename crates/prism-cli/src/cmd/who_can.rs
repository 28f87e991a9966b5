//! `prism-admin who-can`.

use clap::Args;
use prism_proto::admin::v1::WhoCanRequest;

use super::{Console, Place};
use crate::{
    error::Result,
    exit::Exit,
    output::{Grid, note},
};

/// What the server does not list.
const UNLISTED: &str = "note: whom role_map in prism.toml gives roles by other claims than groups, and controllers' certificates, are not listed";

/// `who-can`: the subjects that hold a permission.
#[derive(Args, Debug)]
pub struct WhoCan {
    /// Permission, such as config:create
    #[arg(value_name = "RESOURCE:VERB")]
    permission: String,
    #[command(flatten)]
    place: Place,
}

impl WhoCan {
    /// Asks the server.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        let request = WhoCanRequest { permission: self.permission, namespace: self.place.namespace };
        let answer = console.client().await?.call(request).await?;
        console.printer.message(&answer, |answer| {
            let grid = answer.subjects.iter().fold(Grid::new(["SUBJECT"]), |grid, subject| grid.row([subject.clone()]));
            grid.render("nobody")
        })?;
        if answer.installation_wide > 0 {
            note(&format!(
                "note: {} more hold it for the whole installation; who they are, its operators see",
                answer.installation_wide
            ));
        }
        note(UNLISTED);
        Ok(Exit::Ok)
    }
}
