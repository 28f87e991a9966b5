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
        .field("expires", answer.expires_at.as_ref().map_or_else(|| "never".to_owned(), |end| text::time(Some(end))));
    let sheet = answer.subjects.iter().fold(sheet, |sheet, subject| sheet.field("subject", subject)).render("");
    let grid = answer.grants.iter().fold(Grid::new(["ROLE", "NAMESPACE", "PERMISSIONS"]), |grid, grant| {
        grid.row([
            grant.role.clone(),
            grant.namespace.clone().unwrap_or_else(|| "all".to_owned()),
            grant.permissions.join(" "),
        ])
    });
    format!("{sheet}\n{}", grid.render("no roles"))
}

#[cfg(test)]
mod tests {
    use prism_proto::admin::v1::Grant;

    use super::*;

    #[test]
    fn tables_tell_subjects_expiry_and_grants() {
        let mut answer = WhoAmIResponse {
            actor: "alice".to_owned(),
            subjects: vec!["user:alice".to_owned(), "group:ops".to_owned()],
            expires_at: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
            grants: vec![Grant { role: "viewer".to_owned(), ..Grant::default() }],
            ..WhoAmIResponse::default()
        };
        let text = tables(&answer);
        for part in ["user:alice", "group:ops", "1970-01-01T00:00:00Z", "viewer"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        answer.expires_at = None;
        assert!(tables(&answer).contains("never"));
    }
}
