//! `prism-admin client-binding`: namespaces given to users, groups and certificates on the data plane.

use clap::{Args, Subcommand};
use prism_proto::admin::v1::{
    ClientBinding, CreateClientBindingRequest, DeleteClientBindingRequest, ListClientBindingsRequest,
};

use super::{Console, Scope, client_key::Permission, note_rest};
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
    /// Let a subject use a namespace, by JWT or client certificate
    Create(Create),
    /// Take the namespace from the subject; sessions that stand on it end
    Delete {
        /// Id as `client-binding list` shows it
        #[arg(value_name = "BINDING_ID")]
        id: String,
    },
    /// List client bindings
    List {
        #[command(flatten)]
        scope: Scope,
        /// Only bindings of this subject
        #[arg(long, value_name = "SUBJECT")]
        subject: Option<String>,
        #[command(flatten)]
        paging: Paging,
    },
}

impl Command {
    /// Carries the verb out.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        match self {
            Self::Create(create) => create.run(console).await,
            Self::Delete { id } => delete(console, id).await,
            Self::List { scope, subject, paging } => list(console, scope, subject, paging).await,
        }?;
        Ok(Exit::Ok)
    }
}

/// `client-binding create`.
#[derive(Args, Debug)]
pub struct Create {
    /// user:NAME or group:NAME as a JWT proves it, or certificate:NAME
    #[arg(long, value_name = "SUBJECT")]
    subject: String,
    /// The namespace
    #[arg(short, long, value_name = "NAME")]
    namespace: String,
    /// What it may do there; may be repeated, or both with a comma
    #[arg(long = "permission", value_enum, required = true, value_delimiter = ',')]
    permissions: Vec<Permission>,
}

impl Create {
    async fn run(self, console: &Console) -> Result<()> {
        let binding = ClientBinding {
            subject: self.subject,
            namespace: self.namespace,
            permissions: self.permissions.iter().map(|permission| permission.word().to_owned()).collect(),
            ..ClientBinding::default()
        };
        let request = CreateClientBindingRequest { client_binding: Some(binding) };
        let answer = console.client().await?.call(request).await?;
        console.printer.message(&answer, |answer| {
            let binding = answer.client_binding.clone().unwrap_or_default();
            Grid::sheet()
                .field("binding", &binding.binding_id)
                .field("subject", &binding.subject)
                .field("namespace", &binding.namespace)
                .field("permissions", binding.permissions.join(", "))
                .render("")
        })
    }
}

async fn delete(console: &Console, binding_id: String) -> Result<()> {
    let client = console.client().await?;
    console.confirm(&format!("Delete client binding {binding_id}? Sessions that stand on it end at once."))?;
    let answer = client.call(DeleteClientBindingRequest { binding_id: binding_id.clone() }).await?;
    note(&format!("client binding {binding_id} deleted"));
    console.printer.done(&answer)
}

async fn list(console: &Console, scope: Scope, subject: Option<String>, paging: Paging) -> Result<()> {
    let client = console.client().await?;
    let request =
        ListClientBindingsRequest { subject, namespace: scope.namespace, ..ListClientBindingsRequest::default() };
    let answer = pages::fetch(&client, request, paging).await?;
    note_rest(answer.client_bindings.len(), Some(&answer.next_page_token), answer.total_count);
    console.printer.listing(&answer, "clientBindings", |answer| {
        let header = ["BINDING", "SUBJECT", "NAMESPACE", "PERMISSIONS", "CREATED", "BY"];
        let grid = answer.client_bindings.iter().fold(Grid::new(header), |grid, binding| {
            grid.row([
                binding.binding_id.clone(),
                binding.subject.clone(),
                binding.namespace.clone(),
                binding.permissions.join(","),
                text::time(binding.created_at.as_ref()),
                text::or_dash(&binding.created_by),
            ])
        });
        grid.render("no client bindings")
    })
}
