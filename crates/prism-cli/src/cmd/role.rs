//! `prism-admin role`: named sets of permissions.

use clap::{Args, Subcommand};
use prism_proto::admin::v1::{CreateRoleRequest, DeleteRoleRequest, ListRolesRequest, Role, UpdateRoleRequest};

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
    /// Create a role
    Create(Permissions),
    /// Replace the permissions of a role; built-in roles cannot change
    Update(Permissions),
    /// Delete a role; who held it by a binding or a key holds it no more
    Delete {
        /// Name of the role
        name: String,
    },
    /// List roles, built-in ones included
    List(Paging),
}

impl Command {
    /// Carries the verb out.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        match self {
            Self::Create(permissions) => create(console, permissions.role()).await,
            Self::Update(permissions) => update(console, permissions.role()).await,
            Self::Delete { name } => delete(console, name).await,
            Self::List(paging) => list(console, paging).await,
        }?;
        Ok(Exit::Ok)
    }
}

/// A role and all of its permissions.
#[derive(Args, Debug)]
pub struct Permissions {
    /// Name of the role
    name: String,
    /// Permission, such as config:read or session:*; may be repeated, or several with commas
    #[arg(long = "permission", value_name = "RESOURCE:VERB", required = true, value_delimiter = ',')]
    permissions: Vec<String>,
}

impl Permissions {
    fn role(self) -> Role {
        Role { name: self.name, permissions: self.permissions, built_in: false }
    }
}

async fn create(console: &Console, role: Role) -> Result<()> {
    let answer = console.client().await?.call(CreateRoleRequest { role: Some(role) }).await?;
    console.printer.message(&answer, |answer| sheet(&answer.role.clone().unwrap_or_default()))
}

async fn update(console: &Console, role: Role) -> Result<()> {
    let answer = console.client().await?.call(UpdateRoleRequest { role: Some(role) }).await?;
    console.printer.message(&answer, |answer| sheet(&answer.role.clone().unwrap_or_default()))
}

async fn delete(console: &Console, name: String) -> Result<()> {
    let client = console.client().await?;
    console.confirm(&format!("Delete role {name}? Who holds it loses its permissions at once."))?;
    let answer = client.call(DeleteRoleRequest { name: name.clone() }).await?;
    note(&format!("role {name} deleted"));
    console.printer.done(&answer)
}

async fn list(console: &Console, paging: Paging) -> Result<()> {
    let client = console.client().await?;
    let answer = pages::fetch(&client, ListRolesRequest::default(), paging).await?;
    note_rest(answer.roles.len(), Some(&answer.next_page_token), answer.total_count);
    console.printer.listing(&answer, "roles", |answer| {
        let grid = answer.roles.iter().fold(Grid::new(["ROLE", "BUILT-IN", "PERMISSIONS"]), |grid, role| {
            grid.row([role.name.clone(), text::yes_no(role.built_in), role.permissions.join(" ")])
        });
        grid.render("no roles")
    })
}

fn sheet(role: &Role) -> String {
    Grid::sheet().field("role", &role.name).field("permissions", role.permissions.join(" ")).render("")
}
