//! Which server is meant, whom to trust there, and with which credential.
//!
//! Address, CA and token come from one source: a data directory or a named context. Flags override
//! single parts, with one bound: a token found in a source is sent only to a server that proves itself
//! with the CA of the same source, so that a mistyped flag cannot hand a credential to a stranger.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Deserialize;

use crate::{
    context::{Context, Contexts},
    error::{Failure, Result},
    exit::Exit,
};

const DEFAULT_PORT: u16 = 8981;
const DEFAULT_DATA_DIR: &str = "prism-data";
/// No credential of Prism comes near this; a larger file is the wrong file.
const LONGEST_TOKEN_FILE: u64 = 64 * 1024;

/// Flags that choose the server.
#[derive(Args, Debug, Clone, Default)]
pub struct Connection {
    /// Address of the admin plane (port 8981 if not given)
    #[arg(long, global = true, env = "PRISM_ADMIN_ENDPOINT", hide_env_values = true)]
    #[arg(value_name = "HOST:PORT", help_heading = "Connection")]
    pub endpoint: Option<String>,
    /// CA certificates to trust, PEM
    #[arg(long, global = true, env = "PRISM_ADMIN_CA", hide_env_values = true)]
    #[arg(value_name = "FILE", help_heading = "Connection")]
    pub ca: Option<PathBuf>,
    /// File with the admin token; or put the token itself in PRISM_ADMIN_TOKEN
    #[arg(long, global = true, env = "PRISM_ADMIN_TOKEN_FILE", hide_env_values = true)]
    #[arg(value_name = "FILE", help_heading = "Connection")]
    pub token_file: Option<PathBuf>,
    /// Person on whose behalf the call is made (x-admin-user)
    #[arg(long, global = true, env = "PRISM_ADMIN_USER", hide_env_values = true)]
    #[arg(value_name = "NAME", help_heading = "Connection")]
    pub user: Option<String>,
    /// Named context to use
    #[arg(long, global = true, value_name = "NAME", help_heading = "Connection")]
    pub context: Option<String>,
    /// Data directory of a server on this machine [env: PRISM_DATA_DIR] [default: ./prism-data]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Connection", conflicts_with = "context")]
    pub data_dir: Option<PathBuf>,
}

/// What is read from the process's surroundings, passed in so that tests need no environment.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// `PRISM_ADMIN_TOKEN`.
    pub token: Option<String>,
    /// `PRISM_DATA_DIR`.
    pub data_dir: Option<PathBuf>,
    /// The contexts' file; none without a home directory.
    pub contexts: Option<PathBuf>,
    /// Working directory.
    pub working_dir: PathBuf,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let folder = text("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| text("HOME").map(|home| Path::new(&home).join(".config")));
        Self {
            token: text("PRISM_ADMIN_TOKEN"),
            data_dir: text("PRISM_DATA_DIR").map(PathBuf::from),
            contexts: folder.map(|folder| folder.join("prism/admin.toml")),
            working_dir: PathBuf::from("."),
        }
    }

    /// The contexts' file.
    pub fn contexts_path(&self) -> Result<&Path> {
        self.contexts.as_deref().ok_or_else(|| Failure::usage("no home directory").hint("set HOME or XDG_CONFIG_HOME"))
    }
}

/// A server and a credential, ready to connect.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// File with the CA certificates.
    pub ca: PathBuf,
    /// The token.
    pub token: String,
    /// Person on whose behalf calls are made.
    pub user: Option<String>,
}

impl Target {
    /// `host:port`, with brackets around IPv6.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Finds the target of a call.
pub fn resolve(flags: &Connection, around: &Surroundings) -> Result<Target> {
    let explicit_token = match (&flags.token_file, &around.token) {
        (Some(path), _) => Some(read_token(path)?),
        (None, Some(token)) => Some(check_token(token, "PRISM_ADMIN_TOKEN")?),
        (None, None) => None,
    };
    if let (Some(endpoint), Some(ca), Some(token), None, None) =
        (&flags.endpoint, &flags.ca, &explicit_token, &flags.context, &flags.data_dir)
    {
        let (host, port) = parse_endpoint(endpoint)?;
        return Ok(Target { host, port, ca: ca.clone(), token: token.clone(), user: flags.user.clone() });
    }
    let source = source(flags, around)?;
    if flags.ca.is_some() && explicit_token.is_none() {
        return Err(Failure::usage("--ca is given without a token")
            .hint("name the token that belongs to it with --token-file or PRISM_ADMIN_TOKEN"));
    }
    let (host, port) = parse_endpoint(flags.endpoint.as_ref().unwrap_or(&source.endpoint))?;
    let token = match (explicit_token, source.token, source.token_file) {
        (Some(token), _, _) => token,
        (None, Some(token), _) => check_token(&token, "the context")?,
        (None, None, Some(path)) => read_token(&path)?,
        (None, None, None) => {
            return Err(Failure::usage("no token").hint("name one with --token-file or PRISM_ADMIN_TOKEN"));
        }
    };
    let ca = flags.ca.clone().unwrap_or(source.ca);
    Ok(Target { host, port, ca, token, user: flags.user.clone().or(source.user) })
}

/// The context that flags, data directory and contexts' file amount to, without single overrides.
pub fn source(flags: &Connection, around: &Surroundings) -> Result<Context> {
    if let Some(name) = &flags.context {
        return Contexts::load(around.contexts_path()?)?.get(name).cloned();
    }
    if let Some(folder) = &flags.data_dir {
        return from_data_dir(folder);
    }
    let folder = around.data_dir.clone().unwrap_or_else(|| around.working_dir.join(DEFAULT_DATA_DIR));
    if folder.join("endpoints.json").is_file() {
        return from_data_dir(&folder);
    }
    if let Some(path) = &around.contexts {
        let contexts = Contexts::load(path)?;
        if let Some(current) = &contexts.current {
            return contexts.get(current).cloned();
        }
    }
    if folder.is_dir() {
        return from_data_dir(&folder);
    }
    Err(Failure::usage(format!("no server to talk to: there is no {} and no current context", folder.display()))
        .hint("on the server's machine: run where its prism-data is, or give --data-dir DIR or PRISM_DATA_DIR")
        .hint("elsewhere: `prism-admin context set NAME --endpoint HOST:PORT --ca FILE --token-file FILE`"))
}

fn from_data_dir(folder: &Path) -> Result<Context> {
    #[derive(Deserialize)]
    struct Endpoints {
        admin: String,
    }
    let path = folder.join("endpoints.json");
    let text = fs::read_to_string(&path).map_err(|error| {
        Failure::new(
            Exit::Unreachable,
            format!("no server runs on {}: cannot read {}: {error}", folder.display(), path.display()),
        )
        .hint(format!("start it with `prism serve --data-dir {}`", folder.display()))
    })?;
    let endpoints: Endpoints = serde_json::from_str(&text)
        .map_err(|error| Failure::usage(format!("{} is not Prism's: {error}", path.display())))?;
    Ok(Context {
        endpoint: endpoints.admin,
        ca: folder.join("ca.pem"),
        token_file: Some(folder.join("admin.token")),
        ..Context::default()
    })
}

/// Reads `host`, `host:port`, `[v6]:port`, with or without `https://`.
pub fn parse_endpoint(text: &str) -> Result<(String, u16)> {
    let wrong = |why: &str| {
        Failure::usage(format!("{text:?} is not the address of an admin plane: {why}"))
            .hint("write host:port, for example prism.example.com:8981")
    };
    let rest = match text.split_once("://") {
        Some(("https", rest)) => rest.strip_suffix('/').unwrap_or(rest),
        Some((scheme, _)) => return Err(wrong(&format!("{scheme}:// is not served, only TLS (https://)"))),
        None => text,
    };
    let authority: http::uri::Authority = rest.parse().map_err(|_| wrong("it is malformed"))?;
    if authority.as_str().contains('@') {
        return Err(wrong("it must not hold a user"));
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let port = match authority.port_u16() {
        Some(0) => return Err(wrong("the port is 0")),
        Some(port) => port,
        None if authority.as_str().ends_with(authority.host()) => DEFAULT_PORT,
        None => return Err(wrong("the port is not a number up to 65535")),
    };
    if host.is_empty() {
        return Err(wrong("the host is missing"));
    }
    Ok((host.to_owned(), port))
}

/// Reads a token from a file, and warns if others can read it too.
pub fn read_token(path: &Path) -> Result<String> {
    let failed = |error: std::io::Error| {
        Failure::usage(format!("cannot read the token in {}: {error}", path.display()))
            .hint("run as the user who owns it, or name another with --token-file")
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.len() > LONGEST_TOKEN_FILE {
        return Err(Failure::usage(format!("{} is too large to hold a token", path.display())));
    }
    if metadata.is_file() && metadata.permissions().mode() & 0o077 != 0 {
        crate::output::note(&format!("warning: others can read {}; `chmod 600` it", path.display()));
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    check_token(&text, &path.display().to_string())
}

fn check_token(text: &str, from: &str) -> Result<String> {
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::usage(format!("{from} does not hold a token"))
            .hint("a token is one word of printable ASCII, such as prx_…"));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
