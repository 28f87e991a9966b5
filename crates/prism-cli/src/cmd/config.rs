//! `prism-admin config`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use prism_proto::{
    admin::v1::{
        CreateConfigRequest, DeleteConfigRequest, GetConfigRequest, GetConfigResponse, ListConfigsRequest,
        UpdateConfigRequest,
    },
    config::v1::{AccessPattern, BackendConfig, BackendType, ClientConfig, ConsistencyLevel},
};

use super::{Console, Scope, note_rest};
use crate::{
    config_file::{self, ConfigFile},
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
    /// List configurations
    List {
        #[command(flatten)]
        scope: Scope,
        /// Only this pattern: key-value, queue, pubsub, paged-reader or transact-write
        #[arg(long, value_parser = names::parse::<AccessPattern>)]
        pattern: Option<AccessPattern>,
        #[command(flatten)]
        paging: Paging,
    },
    /// Show a configuration; `-o yaml` prints what `config update -f` reads
    Get {
        /// Name of the configuration
        name: String,
        /// Newest revision with this version string [default: the current revision]
        #[arg(long = "version", value_name = "VERSION", conflicts_with = "revision")]
        version: Option<String>,
        /// This revision, from 1
        #[arg(long, value_name = "N")]
        revision: Option<i64>,
    },
    /// Create a configuration from a file, from flags, or from a file with changes by flags
    Create {
        #[command(flatten)]
        input: Input,
        /// Replace one of the same name
        #[arg(long)]
        overwrite: bool,
        /// Check it and change nothing
        #[arg(long, alias = "dry-run")]
        validate_only: bool,
    },
    /// Replace a configuration by a file; without a file, change what the flags name
    Update {
        #[command(flatten)]
        input: Input,
        /// Replace it only if this is still its tag [default: the one in the file]
        #[arg(long)]
        etag: Option<String>,
        /// Check it and change nothing
        #[arg(long, alias = "dry-run")]
        validate_only: bool,
    },
    /// Delete a configuration; running sessions stay, new ones do not start
    Delete {
        /// Name of the configuration
        name: String,
        /// Delete it only if this is still its tag
        #[arg(long)]
        etag: Option<String>,
    },
}

impl Command {
    /// Carries the verb out.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        match self {
            Self::List { scope, pattern, paging } => list(console, scope, pattern, paging).await,
            Self::Get { name, version, revision } => get(console, GetConfigRequest { name, version, revision }).await,
            Self::Create { input, overwrite, validate_only } => create(console, &input, overwrite, validate_only).await,
            Self::Update { input, etag, validate_only } => update(console, &input, etag, validate_only).await,
            Self::Delete { name, etag } => delete(console, DeleteConfigRequest { name, etag }).await,
        }?;
        Ok(Exit::Ok)
    }
}

/// A configuration from a file, flags, or both; flags win.
#[derive(Args, Debug, Clone, Default)]
pub struct Input {
    /// Name of the configuration
    #[arg(value_name = "NAME", conflicts_with = "name_flag")]
    name: Option<String>,
    /// YAML or JSON; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Name of the configuration
    #[arg(long = "name", id = "name_flag", value_name = "NAME")]
    name_flag: Option<String>,
    /// key-value, queue, pubsub, paged-reader or transact-write
    #[arg(long, value_parser = names::parse::<AccessPattern>)]
    pattern: Option<AccessPattern>,
    /// sqlite, memory, postgres, kafka, nats or redis
    #[arg(long, value_name = "TYPE", value_parser = names::parse::<BackendType>)]
    backend: Option<BackendType>,
    /// Namespace that owns it
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Version string of your choice
    #[arg(long = "version", value_name = "VERSION")]
    version: Option<String>,
    /// Backend option; may be repeated
    #[arg(long = "option", value_name = "KEY=VALUE", value_parser = parse_option)]
    options: Vec<(String, String)>,
}

impl Input {
    fn name(&self) -> Option<&String> {
        self.name.as_ref().or(self.name_flag.as_ref())
    }

    fn read_file(&self) -> Result<Option<ConfigFile>> {
        self.file.as_deref().map(config_file::read).transpose()
    }

    fn over(&self, mut config: ClientConfig) -> ClientConfig {
        if let Some(name) = self.name() {
            name.clone_into(&mut config.name);
        }
        if let Some(pattern) = self.pattern {
            config.pattern = pattern.into();
        }
        if let Some(namespace) = &self.namespace {
            namespace.clone_into(&mut config.namespace);
        }
        if let Some(version) = &self.version {
            version.clone_into(&mut config.version);
        }
        if self.backend.is_some() || !self.options.is_empty() {
            let backend = config.backend.get_or_insert_with(BackendConfig::default);
            if let Some(kind) = self.backend {
                backend.r#type = kind.into();
            }
            backend.options.extend(self.options.iter().cloned());
        }
        config
    }
}

async fn list(console: &Console, scope: Scope, pattern: Option<AccessPattern>, paging: Paging) -> Result<()> {
    let client = console.client().await?;
    let request = ListConfigsRequest {
        namespace: scope.namespace,
        pattern: pattern.map(Into::into),
        ..ListConfigsRequest::default()
    };
    let answer = pages::fetch(&client, request, paging).await?;
    note_rest(answer.configs.len(), answer.next_page_token.as_deref(), answer.total_count);
    console.printer.listing(&answer, "configs", |answer| table(&answer.configs))
}

async fn get(console: &Console, request: GetConfigRequest) -> Result<()> {
    let answer = console.client().await?.call(request).await?;
    console.printer.message(&answer, |answer| {
        sheet(answer.config.as_ref())
            .field("revision", answer.revision.to_string())
            .field("created", text::time(answer.created_at.as_ref()))
            .field("updated", text::time(answer.updated_at.as_ref()))
            .field("etag", text::or_dash(&answer.etag))
            .render("")
    })
}

async fn create(console: &Console, input: &Input, overwrite: bool, validate_only: bool) -> Result<()> {
    let config = input.over(input.read_file()?.unwrap_or_default().config);
    let request = CreateConfigRequest { config: Some(config), overwrite, validate_only };
    let answer = console.client().await?.call(request).await?;
    note_valid(validate_only);
    console.printer.message(&answer, |answer| sheet(answer.config.as_ref()).render(""))
}

async fn update(console: &Console, input: &Input, etag: Option<String>, validate_only: bool) -> Result<()> {
    let file = input.read_file()?;
    let name = input
        .name()
        .cloned()
        .or_else(|| file.as_ref().map(|file| file.config.name.clone()))
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Failure::usage("which configuration? give its NAME, or a file that holds it"))?;
    let client = console.client().await?;
    let base = match file {
        Some(file) => file,
        // Without a file only what the flags name changes; the tag keeps others' changes.
        None => present(client.call(GetConfigRequest { name: name.clone(), ..GetConfigRequest::default() }).await?),
    };
    let request =
        UpdateConfigRequest { name, config: Some(input.over(base.config)), validate_only, etag: etag.or(base.etag) };
    let answer = client.call(request).await?;
    note_valid(validate_only);
    console.printer.message(&answer, |answer| sheet(answer.config.as_ref()).render(""))
}

async fn delete(console: &Console, request: DeleteConfigRequest) -> Result<()> {
    let client = console.client().await?;
    let name = request.name.clone();
    console.confirm(&format!("Delete config {name}?"))?;
    let answer = client.call(request).await?;
    if !answer.success {
        return Err(Failure::new(Exit::Failed, format!("config {name} was not deleted")));
    }
    note(&format!("config {name} deleted"));
    if console.printer.is_for_programs() { console.printer.message(&answer, |_| String::new()) } else { Ok(()) }
}

fn present(answer: GetConfigResponse) -> ConfigFile {
    ConfigFile { config: answer.config.unwrap_or_default(), etag: Some(answer.etag).filter(|etag| !etag.is_empty()) }
}

fn note_valid(validate_only: bool) {
    if validate_only {
        note("note: it is valid; nothing was changed");
    }
}

fn table(configs: &[ClientConfig]) -> String {
    let header = ["NAME", "NAMESPACE", "PATTERN", "BACKEND", "INSTANCE", "VERSION"];
    let grid = configs.iter().fold(Grid::new(header), |grid, config| {
        let backend = config.backend.clone().unwrap_or_default();
        grid.row([
            config.name.clone(),
            config.namespace.clone(),
            names::show::<AccessPattern>(config.pattern),
            names::show::<BackendType>(backend.r#type),
            backend.options.get("instance").cloned().unwrap_or_else(|| "-".to_owned()),
            config.version.clone(),
        ])
    });
    grid.render("no configs")
}

fn sheet(config: Option<&ClientConfig>) -> Grid {
    let config = config.cloned().unwrap_or_default();
    let backend = config.backend.unwrap_or_default();
    let mut grid = Grid::sheet()
        .field("name", config.name)
        .field("namespace", config.namespace)
        .field("version", config.version)
        .field("pattern", names::show::<AccessPattern>(config.pattern))
        .field("backend", names::show::<BackendType>(backend.r#type));
    for (key, value) in backend.options {
        grid = grid.field(&format!("option {key}"), value);
    }
    if let Some(pool) = backend.pool {
        let idle = pool.idle_timeout_seconds;
        grid = grid
            .field("pool", format!("{} to {} connections, idle {idle} s", pool.min_connections, pool.max_connections));
    }
    if let Some(consistency) = config.consistency {
        let level = names::show::<ConsistencyLevel>(consistency.level);
        grid = grid.field("consistency", format!("{level}, timeout {} ms", consistency.timeout_ms));
    }
    if let Some(cache) = config.cache {
        let state = if cache.enabled { "on" } else { "off" };
        grid = grid.field("cache", format!("{state}, {} s, {} MiB", cache.ttl_seconds, cache.max_size_mb));
    }
    if let Some(limit) = config.rate_limit {
        grid = grid.field("rate limit", format!("{} per second, burst {}", limit.requests_per_second, limit.burst));
    }
    grid
}

fn parse_option(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
