//! `prism-admin key`: admin API keys.

use std::time::Duration;

use clap::{Args, Subcommand};
use prism_proto::admin::v1::{
    ApiKey, CreateApiKeyRequest, ListApiKeysRequest, RevokeApiKeyRequest, RotateApiKeyRequest,
};

use super::{Console, note_rest};
use crate::{
    error::Result,
    exit::Exit,
    output::{Grid, note},
    pages::{self, Paging},
    text,
};

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create a key; its token is shown once. `-o token` prints nothing else
    Create(Create),
    /// List keys
    List(Paging),
    /// Give a key a new token, shown once; `-o token` prints nothing else
    ///
    /// The old token dies at once, or with --overlap after a while.
    Rotate(Rotate),
    /// Revoke a key
    Revoke {
        /// Id as `key list` shows it
        #[arg(value_name = "KEY_ID")]
        id: String,
    },
}

impl Command {
    /// Carries the verb out.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        match self {
            Self::Create(create) => create.run(console).await,
            Self::List(paging) => list(console, paging).await,
            Self::Rotate(rotate) => rotate.run(console).await,
            Self::Revoke { id } => revoke(console, id).await,
        }?;
        Ok(Exit::Ok)
    }
}

/// `key create`.
#[derive(Args, Debug)]
pub struct Create {
    /// Name for people
    name: String,
    /// Role it holds, such as admin, operator or viewer; may be repeated
    #[arg(long = "role", value_name = "ROLE", required = true)]
    roles: Vec<String>,
    /// The roles hold in this namespace only
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Person it belongs to (not --user, which is for the call) [default: a shared key]
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Life, such as 90d [default: it does not expire]
    #[arg(long, value_name = "DURATION", value_parser = text::parse_duration)]
    ttl: Option<Duration>,
}

impl Create {
    async fn run(self, console: &Console) -> Result<()> {
        let request = CreateApiKeyRequest {
            name: self.name,
            roles: self.roles,
            namespace: self.namespace,
            user: self.owner,
            ttl: self.ttl.map(text::duration_to_proto),
        };
        let answer = console.client_for_secret().await?.call(request).await?;
        console.printer.secret(&answer, &answer.token, |answer| {
            sheet(&answer.api_key.clone().unwrap_or_default()).field("token", &answer.token).render("")
        })?;
        note("note: the token is shown this once; Prism keeps only its hash");
        Ok(())
    }
}

/// `key rotate`.
#[derive(Args, Debug)]
pub struct Rotate {
    /// Id as `key list` shows it
    #[arg(value_name = "KEY_ID")]
    id: String,
    /// How long the old token still works, such as 1h [default: not at all]
    #[arg(long, value_name = "DURATION", value_parser = text::parse_duration)]
    overlap: Option<Duration>,
}

impl Rotate {
    async fn run(self, console: &Console) -> Result<()> {
        let client = console.client_for_secret().await?;
        if self.overlap.is_none() {
            console
                .confirm(&format!("Rotate key {}? Its old token dies at once; --overlap keeps it a while.", self.id))?;
        }
        let overlap = self.overlap.map(text::duration_to_proto);
        let answer = client.call(RotateApiKeyRequest { key_id: self.id, overlap }).await?;
        console.printer.secret(&answer, &answer.token, |answer| {
            let key = answer.api_key.clone().unwrap_or_default();
            let old = key.overlap_ends_at.as_ref().map_or_else(
                || "does not work any more".to_owned(),
                |end| format!("works until {}", text::time(Some(end))),
            );
            sheet(&key).field("old token", old).field("token", &answer.token).render("")
        })?;
        note("note: the token is shown this once; Prism keeps only its hash");
        Ok(())
    }
}

async fn list(console: &Console, paging: Paging) -> Result<()> {
    let client = console.client().await?;
    let answer = pages::fetch(&client, ListApiKeysRequest::default(), paging).await?;
    note_rest(answer.api_keys.len(), Some(&answer.next_page_token), answer.total_count);
    console.printer.listing(&answer, "apiKeys", |answer| table(&answer.api_keys))
}

async fn revoke(console: &Console, key_id: String) -> Result<()> {
    let client = console.client().await?;
    console.confirm(&format!("Revoke key {key_id}?"))?;
    let answer = client.call(RevokeApiKeyRequest { key_id: key_id.clone() }).await?;
    note(&format!("key {key_id} revoked"));
    console.printer.done(&answer)
}

fn table(keys: &[ApiKey]) -> String {
    let header = ["KEY", "NAME", "ROLES", "NAMESPACE", "USER", "STATE", "CREATED", "ROTATED", "EXPIRES", "LAST USED"];
    let grid = keys.iter().fold(Grid::new(header), |grid, key| {
        grid.row([
            key.key_id.clone(),
            key.name.clone(),
            key.roles.join(","),
            key.namespace.clone().unwrap_or_else(|| "all".to_owned()),
            key.user.clone().unwrap_or_else(|| "shared".to_owned()),
            text::key_state(key.revoked, key.expires_at.as_ref()).to_owned(),
            text::time(key.created_at.as_ref()),
            text::time(key.rotated_at.as_ref()),
            text::time(key.expires_at.as_ref()),
            text::time(key.last_used_at.as_ref()),
        ])
    });
    grid.render("no keys")
}

fn sheet(key: &ApiKey) -> Grid {
    Grid::sheet()
        .field("key", &key.key_id)
        .field("name", &key.name)
        .field("roles", key.roles.join(", "))
        .field("namespace", key.namespace.as_deref().unwrap_or("all"))
        .field("user", key.user.as_deref().unwrap_or("shared"))
        .field("expires", text::time(key.expires_at.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_tell_scope_and_state() {
        let key = ApiKey {
            key_id: "k1".to_owned(),
            roles: vec!["viewer".to_owned(), "operator".to_owned()],
            revoked: true,
            ..ApiKey::default()
        };
        let text = table(&[key]);
        assert!(text.contains("viewer,operator") && text.contains("revoked") && text.contains("shared"), "{text}");
    }
}
