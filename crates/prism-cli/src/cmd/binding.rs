//! `prism-admin binding`: roles given to users, groups and certificates.

use clap::{Args, Subcommand};
use prism_proto::admin::v1::{Binding, CreateBindingRequest, DeleteBindingRequest, ListBindingsRequest};

use super::{Console, note_rest};
use crate::{
    error::Result,
    exit::Exit,
    output::{Grid, note},
    pages::{self, Paging},
};

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Give a role to a subject, everywhere or in one namespace
    Create(Create),
    /// Take the role from the subject again
    Delete {
        /// Id as `binding list` shows it
        #[arg(value_name = "BINDING_ID")]
        id: String,
    },
    /// List bindings
    List {
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
            Self::List { subject, paging } => list(console, subject, paging).await,
        }?;
        Ok(Exit::Ok)
    }
}

/// `binding create`.
#[derive(Args, Debug)]
pub struct Create {
    /// user:NAME, group:NAME or certificate:NAME; `whoami` shows a caller the subjects that stand for it
    #[arg(long, value_name = "SUBJECT")]
    subject: String,
    /// Role it gets, such as admin, operator or viewer
    #[arg(long, value_name = "ROLE")]
    role: String,
    /// In this namespace only [default: everywhere]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
}

impl Create {
    async fn run(self, console: &Console) -> Result<()> {
        let binding =
            Binding { subject: self.subject, role: self.role, namespace: self.namespace, ..Binding::default() };
        let answer = console.client().await?.call(CreateBindingRequest { binding: Some(binding) }).await?;
        console.printer.message(&answer, |answer| {
            let binding = answer.binding.clone().unwrap_or_default();
            Grid::sheet()
                .field("binding", &binding.binding_id)
                .field("subject", &binding.subject)
                .field("role", &binding.role)
                .field("namespace", binding.namespace.as_deref().unwrap_or("all"))
                .render("")
        })
    }
}

async fn delete(console: &Console, binding_id: String) -> Result<()> {
    let client = console.client().await?;
    console.confirm(&format!("Delete binding {binding_id}? Its subject loses the role at once."))?;
    let answer = client.call(DeleteBindingRequest { binding_id: binding_id.clone() }).await?;
    note(&format!("binding {binding_id} deleted"));
    console.printer.done(&answer)
}

async fn list(console: &Console, subject: Option<String>, paging: Paging) -> Result<()> {
    let client = console.client().await?;
    let request = ListBindingsRequest { subject, ..ListBindingsRequest::default() };
    let answer = pages::fetch(&client, request, paging).await?;
    note_rest(answer.bindings.len(), Some(&answer.next_page_token), answer.total_count);
    console.printer.listing(&answer, "bindings", |answer| table(&answer.bindings))
}

fn table(bindings: &[Binding]) -> String {
    let grid = bindings.iter().fold(Grid::new(["BINDING", "SUBJECT", "ROLE", "NAMESPACE"]), |grid, binding| {
        grid.row([
            binding.binding_id.clone(),
            binding.subject.clone(),
            binding.role.clone(),
            binding.namespace.clone().unwrap_or_else(|| "all".to_owned()),
        ])
    });
    grid.render("no bindings")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_tell_the_scope() {
        let binding = |namespace: Option<&str>| Binding {
            subject: "user:alice".to_owned(),
            namespace: namespace.map(str::to_owned),
            ..Binding::default()
        };
        let text = table(&[binding(None), binding(Some("shop"))]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].ends_with("all") && lines[2].ends_with("shop"), "{text}");
    }
}
