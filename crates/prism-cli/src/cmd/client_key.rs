//! `prism-admin client-key`: keys of the data plane.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use prism_proto::admin::v1::{ClientKey, CreateClientKeyRequest, ListClientKeysRequest, RevokeClientKeyRequest};

use super::{Console, Scope, note_rest};
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
    List {
        #[command(flatten)]
        scope: Scope,
        #[command(flatten)]
        paging: Paging,
    },
    /// Revoke a key
    Revoke {
        /// Id as `client-key list` shows it
        #[arg(value_name = "KEY_ID")]
        id: String,
    },
}

impl Command {
    /// Carries the verb out.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        match self {
            Self::Create(create) => create.run(console).await,
            Self::List { scope, paging } => list(console, scope, paging).await,
            Self::Revoke { id } => revoke(console, id).await,
        }?;
        Ok(Exit::Ok)
    }
}

/// What a data-plane key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Permission {
    /// Operations that change nothing
    Read,
    /// Operations that change data
    Write,
}

impl Permission {
    /// The word of the contract.
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// `client-key create`.
#[derive(Args, Debug)]
pub struct Create {
    /// Name for people
    name: String,
    /// The only namespace it is valid in
    #[arg(short, long, value_name = "NAME")]
    namespace: String,
    /// What it may do; may be repeated, or both with a comma
    #[arg(long = "permission", value_enum, required = true, value_delimiter = ',')]
    permissions: Vec<Permission>,
    /// Life, such as 90d [default: it does not expire]
    #[arg(long, value_name = "DURATION", value_parser = text::parse_duration)]
    ttl: Option<Duration>,
}

impl Create {
    async fn run(self, console: &Console) -> Result<()> {
        let request = CreateClientKeyRequest {
            name: self.name,
            namespace: self.namespace,
            permissions: self.permissions.iter().map(|permission| permission.word().to_owned()).collect(),
            ttl: self.ttl.map(text::duration_to_proto),
        };
        let answer = console.client_for_secret().await?.call(request).await?;
        console.printer.secret(&answer, &answer.token, |answer| {
            sheet(&answer.client_key.clone().unwrap_or_default()).field("token", &answer.token).render("")
        })?;
        note("note: the token is shown this once; Prism keeps only its hash");
        Ok(())
    }
}

async fn list(console: &Console, scope: Scope, paging: Paging) -> Result<()> {
    let client = console.client().await?;
    let request = ListClientKeysRequest { namespace: scope.namespace, ..ListClientKeysRequest::default() };
    let answer = pages::fetch(&client, request, paging).await?;
    note_rest(answer.client_keys.len(), Some(&answer.next_page_token), answer.total_count);
    console.printer.listing(&answer, "clientKeys", |answer| table(&answer.client_keys))
}

async fn revoke(console: &Console, key_id: String) -> Result<()> {
    let client = console.client().await?;
    console.confirm(&format!("Revoke client key {key_id}?"))?;
    let answer = client.call(RevokeClientKeyRequest { key_id: key_id.clone() }).await?;
    note(&format!("client key {key_id} revoked"));
    console.printer.done(&answer)
}

fn table(keys: &[ClientKey]) -> String {
    let header = ["KEY", "NAME", "NAMESPACE", "PERMISSIONS", "STATE", "CREATED", "EXPIRES", "LAST USED"];
    let grid = keys.iter().fold(Grid::new(header), |grid, key| {
        grid.row([
            key.key_id.clone(),
            key.name.clone(),
            key.namespace.clone(),
            key.permissions.join(","),
            text::key_state(key.revoked, key.expires_at.as_ref()).to_owned(),
            text::time(key.created_at.as_ref()),
            text::time(key.expires_at.as_ref()),
            text::time(key.last_used_at.as_ref()),
        ])
    });
    grid.render("no client keys")
}

fn sheet(key: &ClientKey) -> Grid {
    Grid::sheet()
        .field("key", &key.key_id)
        .field("name", &key.name)
        .field("namespace", &key.namespace)
        .field("permissions", key.permissions.join(", "))
        .field("expires", text::time(key.expires_at.as_ref()))
}
