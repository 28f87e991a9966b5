//! `prism-admin namespace`.

use clap::{Args, Subcommand};
use prism_proto::admin::v1::{
    CreateNamespaceRequest, DeleteNamespaceRequest, GetNamespaceRequest, ListNamespacesRequest, NamespaceInfo,
    NamespaceQuota, NamespaceStatus, UpdateNamespaceRequest,
};

use super::{Console, note_rest, note_unreachable};
use crate::{
    error::{Failure, Result},
    exit::Exit,
    names,
    output::{Grid, note},
    pages::{self, Paging},
    text,
};

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List namespaces
    List(Paging),
    /// Show one namespace
    Get {
        /// Name of the namespace
        name: String,
    },
    /// Create a namespace
    Create(Create),
    /// Change description, status or single quotas; what is not given stays
    Update(Update),
    /// Delete a namespace
    Delete(Delete),
}

impl Command {
    /// Carries the verb out.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        match self {
            Self::List(paging) => list(console, paging).await,
            Self::Get { name } => get(console, name).await,
            Self::Create(create) => create.run(console).await,
            Self::Update(update) => update.run(console).await,
            Self::Delete(delete) => delete.run(console).await,
        }?;
        Ok(Exit::Ok)
    }
}

/// Limits; 0 means unlimited.
#[derive(Args, Debug, Clone, Copy, Default)]
pub struct Quota {
    /// Most live sessions; 0 = unlimited
    #[arg(long = "max-sessions", value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    sessions: Option<i64>,
    /// Most data operations per second; 0 = unlimited
    #[arg(long = "max-rps", value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    rps: Option<i64>,
    /// Most bytes stored, such as 512MiB; 0 = unlimited
    #[arg(long = "max-storage", value_name = "SIZE", alias = "max-storage-bytes", value_parser = text::parse_size)]
    storage: Option<i64>,
}

impl Quota {
    fn is_given(self) -> bool {
        self.sessions.or(self.rps).or(self.storage).is_some()
    }

    fn over(self, base: NamespaceQuota) -> NamespaceQuota {
        NamespaceQuota {
            max_sessions: self.sessions.unwrap_or(base.max_sessions),
            max_storage_bytes: self.storage.unwrap_or(base.max_storage_bytes),
            max_rps: self.rps.unwrap_or(base.max_rps),
        }
    }
}

/// `namespace create`.
#[derive(Args, Debug)]
pub struct Create {
    /// 1 to 63 of a-z, 0-9 and hyphen
    name: String,
    /// Sentence for people
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    description: String,
    #[command(flatten)]
    quota: Quota,
}

impl Create {
    async fn run(self, console: &Console) -> Result<()> {
        let quota = self.quota.is_given().then(|| self.quota.over(NamespaceQuota::default()));
        let request = CreateNamespaceRequest { name: self.name, description: self.description, quota };
        let answer = console.client().await?.call(request).await?;
        console.printer.message(&answer, |answer| sheet(answer.namespace.as_ref()))
    }
}

/// `namespace update`.
#[derive(Args, Debug)]
#[group(id = "change", required = true, multiple = true,
        args = ["description", "status", "sessions", "rps", "storage"])]
pub struct Update {
    /// Name of the namespace
    name: String,
    /// Sentence for people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// active, read-only or suspended
    #[arg(long, value_parser = names::parse::<NamespaceStatus>)]
    status: Option<NamespaceStatus>,
    #[command(flatten)]
    quota: Quota,
    /// Change it only if this is still its tag
    #[arg(long)]
    etag: Option<String>,
}

impl Update {
    async fn run(self, console: &Console) -> Result<()> {
        let client = console.client().await?;
        let mut request = UpdateNamespaceRequest {
            name: self.name,
            description: self.description,
            quota: None,
            status: self.status.map(Into::into),
            etag: self.etag,
        };
        if self.quota.is_given() {
            // The contract replaces all limits at once. Those not named are kept, and the tag makes
            // sure that nobody's change in between is lost.
            let answer = client.call(GetNamespaceRequest { name: request.name.clone() }).await?;
            let present = answer.namespace.unwrap_or_default();
            request.quota = Some(self.quota.over(present.quota.unwrap_or_default()));
            request.etag = request.etag.or(Some(present.etag).filter(|etag| !etag.is_empty()));
        }
        let answer = client.call(request).await?;
        note_unreachable(&answer.unreachable_nodes);
        console.printer.message(&answer, |answer| sheet(answer.namespace.as_ref()))
    }
}

/// `namespace delete`.
#[derive(Args, Debug)]
pub struct Delete {
    /// Name of the namespace
    name: String,
    /// Delete its configs and end its sessions too
    #[arg(long)]
    force: bool,
    /// Say what would be deleted and change nothing
    #[arg(long, alias = "dry-run")]
    validate_only: bool,
}

impl Delete {
    async fn run(self, console: &Console) -> Result<()> {
        let client = console.client().await?;
        if !self.validate_only {
            let with = if self.force { " with its configs and sessions" } else { "" };
            console.confirm(&format!("Delete namespace {}{with}?", self.name))?;
        }
        let request =
            DeleteNamespaceRequest { name: self.name.clone(), force: self.force, validate_only: self.validate_only };
        let answer = client.call(request).await?;
        if !answer.success {
            return Err(Failure::new(Exit::Failed, format!("namespace {} was not deleted", self.name)));
        }
        let verb = if self.validate_only { "would be deleted" } else { "deleted" };
        note(&format!(
            "namespace {} {verb}: {} configs, {} sessions",
            self.name, answer.configs_affected, answer.sessions_affected
        ));
        if !answer.unreachable_nodes.is_empty() {
            let nodes = answer.unreachable_nodes.join(", ");
            note(&format!("note: could not be reached and may hold data of it until they are back: {nodes}"));
        }
        if console.printer.is_for_programs() { console.printer.message(&answer, |_| String::new()) } else { Ok(()) }
    }
}

async fn list(console: &Console, paging: Paging) -> Result<()> {
    let client = console.client().await?;
    let answer = pages::fetch(&client, ListNamespacesRequest::default(), paging).await?;
    note_unreachable(&answer.unreachable_nodes);
    note_rest(answer.namespaces.len(), answer.next_page_token.as_deref(), answer.total_count);
    console.printer.listing(&answer, "namespaces", |answer| table(&answer.namespaces))
}

async fn get(console: &Console, name: String) -> Result<()> {
    let answer = console.client().await?.call(GetNamespaceRequest { name }).await?;
    note_unreachable(&answer.unreachable_nodes);
    console.printer.message(&answer, |answer| sheet(answer.namespace.as_ref()))
}

fn table(namespaces: &[NamespaceInfo]) -> String {
    let header = ["NAME", "STATUS", "SESSIONS", "MAX SESSIONS", "RPS", "MAX RPS", "STORAGE", "MAX STORAGE", "CREATED"];
    let grid = namespaces.iter().fold(Grid::new(header), |grid, namespace| {
        let quota = namespace.quota.unwrap_or_default();
        let metrics = namespace.metrics.unwrap_or_default();
        grid.row([
            namespace.name.clone(),
            names::show::<NamespaceStatus>(namespace.status),
            metrics.active_sessions.to_string(),
            text::limit(quota.max_sessions),
            metrics.requests_per_second.to_string(),
            text::limit(quota.max_rps),
            text::bytes(metrics.storage_bytes_used),
            storage_limit(quota),
            text::time(namespace.created_at.as_ref()),
        ])
    });
    grid.render("no namespaces")
}

fn sheet(namespace: Option<&NamespaceInfo>) -> String {
    let Some(namespace) = namespace else { return String::new() };
    let quota = namespace.quota.unwrap_or_default();
    let metrics = namespace.metrics.unwrap_or_default();
    Grid::sheet()
        .field("name", &namespace.name)
        .field("description", text::or_dash(&namespace.description))
        .field("status", names::show::<NamespaceStatus>(namespace.status))
        .field("sessions", format!("{} of {}", metrics.active_sessions, text::limit(quota.max_sessions)))
        .field("requests per second", format!("{} of {}", metrics.requests_per_second, text::limit(quota.max_rps)))
        .field("storage", format!("{} of {}", text::bytes(metrics.storage_bytes_used), storage_limit(quota)))
        .field("created", text::time(namespace.created_at.as_ref()))
        .field("etag", text::or_dash(&namespace.etag))
        .render("")
}

fn storage_limit(quota: NamespaceQuota) -> String {
    if quota.max_storage_bytes == 0 { text::limit(0) } else { text::bytes(quota.max_storage_bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_quotas_leave_the_others() {
        let base = NamespaceQuota { max_sessions: 1, max_storage_bytes: 2, max_rps: 3 };
        let change = Quota { rps: Some(0), ..Quota::default() };
        assert_eq!(change.over(base), NamespaceQuota { max_rps: 0, ..base });
        assert!(change.is_given() && !Quota::default().is_given());
    }

    #[test]
    fn tables_show_use_and_limits() {
        let namespace = NamespaceInfo {
            name: "shop".to_owned(),
            status: NamespaceStatus::ReadOnly.into(),
            quota: Some(NamespaceQuota { max_storage_bytes: 1 << 20, ..NamespaceQuota::default() }),
            ..NamespaceInfo::default()
        };
        let text = table(std::slice::from_ref(&namespace));
        assert!(text.contains("shop") && text.contains("read-only") && text.contains("1.0 MiB"), "{text}");
        assert!(sheet(Some(&namespace)).contains("0 of unlimited"));
    }
}
