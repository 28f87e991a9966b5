//! Which server is meant, whom to trust there, and with which credential.
//!
//! Address, CA and token come from one source: a data directory or a named context. Flags override
//! single parts, with one bound: a token found in a source is sent only to a server that proves itself
//! with the CA of the same source, so that a mistyped flag cannot hand a credential to a stranger.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Deserialize;

use crate::{
    context::{Context, Contexts},
    error::{Failure, Result},
    exit::Exit,
    memory::{LogName, Memory},
    oidc::Login,
    secret::Secret,
};

const DEFAULT_PORT: u16 = 8981;
const DEFAULT_DATA_DIR: &str = "prism-data";

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
    /// Client certificate to show instead of a token, PEM
    #[arg(long, global = true, env = "PRISM_ADMIN_CERT", hide_env_values = true)]
    #[arg(value_name = "FILE", help_heading = "Connection")]
    pub cert: Option<PathBuf>,
    /// Key of the client certificate, PEM
    #[arg(long, global = true, env = "PRISM_ADMIN_KEY", hide_env_values = true)]
    #[arg(value_name = "FILE", help_heading = "Connection")]
    pub key: Option<PathBuf>,
    /// Person on whose behalf the call is made (x-admin-user); a login or a certificate allows only its own name
    #[arg(long, global = true, env = "PRISM_ADMIN_USER", hide_env_values = true)]
    #[arg(value_name = "NAME", help_heading = "Connection")]
    pub user: Option<String>,
    /// Named context to use
    #[arg(long, global = true, value_name = "NAME", help_heading = "Connection")]
    pub context: Option<String>,
    /// Data directory of a server on this machine [env: PRISM_DATA_DIR] [default: ./prism-data]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Connection")]
    pub data_dir: Option<PathBuf>,
}

/// What is read from the process's surroundings, passed in so that tests need no environment.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// `PRISM_ADMIN_TOKEN`.
    pub token: Option<Secret>,
    /// `PRISM_ADMIN_CLIENT_SECRET`.
    pub client_secret: Option<Secret>,
    /// `PRISM_DATA_DIR`.
    pub data_dir: Option<PathBuf>,
    /// The contexts' file; none without a home directory.
    pub contexts: Option<PathBuf>,
    /// Working directory.
    pub working_dir: PathBuf,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Result<Self> {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let client_secret = "PRISM_ADMIN_CLIENT_SECRET";
        let folder = text("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| text("HOME").map(|home| Path::new(&home).join(".config")));
        Ok(Self {
            token: text("PRISM_ADMIN_TOKEN").map(|value| Secret::parse(&value, "PRISM_ADMIN_TOKEN")).transpose()?,
            client_secret: text(client_secret).map(|value| Secret::parse_client(&value, client_secret)).transpose()?,
            data_dir: text("PRISM_DATA_DIR").map(PathBuf::from),
            contexts: folder.map(|folder| folder.join("prism/admin.toml")),
            working_dir: PathBuf::from("."),
        })
    }

    /// The contexts' file.
    pub fn contexts_path(&self) -> Result<&Path> {
        self.contexts.as_deref().ok_or_else(|| Failure::usage("no home directory").hint("set HOME or XDG_CONFIG_HOME"))
    }
}

/// With what a call proves who makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A token that was given.
    Token(Secret),
    /// A client certificate.
    Certificate(Identity),
    /// Tokens of an issuer, renewed as they end.
    Login(Login),
}

/// Files of a client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and what leads to its CA.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A server and a credential, ready to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// File with the CA certificates.
    pub ca: PathBuf,
    /// The credential.
    pub credential: Credential,
    /// Person on whose behalf calls are made.
    pub user: Option<String>,
    /// Where the server's audit log is remembered.
    pub memory: Memory,
}

impl Target {
    /// `host:port`, with brackets around IPv6.
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

/// What flags, data directory and contexts' file amount to, without single overrides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What it is called.
    pub name: LogName,
    /// What it says.
    pub context: Context,
}

/// Finds the target of a call.
pub fn resolve(flags: &Connection, around: &Surroundings) -> Result<Target> {
    let explicit = explicit_credential(flags, around)?;
    let memory = |name: LogName, ca: &Path| Memory::of(around.contexts.as_deref(), &name, ca);
    let given = flags.endpoint.as_deref().map(parse_endpoint).transpose()?;
    let given_name = given.as_ref().map(|(host, port)| LogName::Endpoint(authority(host, *port)));
    if let (Some((host, port)), Some(name), Some(ca), Some(credential), None, None) =
        (&given, &given_name, &flags.ca, &explicit, &flags.context, &flags.data_dir)
    {
        let memory = memory(name.clone(), ca);
        let (ca, credential, user) = (ca.clone(), credential.clone(), flags.user.clone());
        return Ok(Target { host: host.clone(), port: *port, ca, credential, user, memory });
    }
    let source = source(flags, around)?;
    if flags.ca.is_some() && explicit.is_none() {
        return Err(Failure::usage("--ca is given without a credential").hint(
            "name the token that belongs to it with --token-file or PRISM_ADMIN_TOKEN, or a certificate with --cert and --key",
        ));
    }
    let (host, port) = match given {
        Some(given) => given,
        None => parse_endpoint(&source.context.endpoint)?,
    };
    let credential = match explicit {
        Some(credential) => credential,
        None => credential_of(&source, around)?,
    };
    let ca = flags.ca.clone().unwrap_or(source.context.ca);
    let memory = memory(given_name.unwrap_or(source.name), &ca);
    Ok(Target { host, port, ca, credential, user: flags.user.clone().or(source.context.user), memory })
}

/// Where the log of the server that is meant is remembered; unlike [`resolve`], this asks for no credential, and
/// for no server that runs.
pub fn memory(flags: &Connection, around: &Surroundings) -> Result<Memory> {
    one_source(flags)?;
    let of = |name: &LogName, ca: &Path| Memory::of(around.contexts.as_deref(), name, ca);
    let given = flags.endpoint.as_deref().map(parse_endpoint).transpose()?;
    let given = given.map(|(host, port)| LogName::Endpoint(authority(&host, port)));
    match (given, &flags.ca, &flags.data_dir) {
        (Some(name), Some(ca), _) => Ok(of(&name, ca)),
        (None, ca, Some(folder)) => {
            Ok(of(&LogName::DataDir(canonical(folder)), ca.as_ref().unwrap_or(&folder.join("ca.pem"))))
        }
        (name, ca, _) => {
            let source = source(flags, around)?;
            Ok(of(&name.unwrap_or(source.name), ca.as_ref().unwrap_or(&source.context.ca)))
        }
    }
}

fn explicit_credential(flags: &Connection, around: &Surroundings) -> Result<Option<Credential>> {
    let identity = match (&flags.cert, &flags.key) {
        (Some(cert), Some(key)) => Some(Identity { cert: cert.clone(), key: key.clone() }),
        (None, None) => None,
        (Some(_), None) => return Err(Failure::usage("--cert needs --key, the file with the certificate's key")),
        (None, Some(_)) => return Err(Failure::usage("--key needs --cert, the file with the certificate")),
    };
    match (identity, &flags.token_file, &around.token) {
        (None, None, None) => Ok(None),
        (None, Some(path), _) => Secret::read(path).map(Credential::Token).map(Some),
        (None, None, Some(token)) => Ok(Some(Credential::Token(token.clone()))),
        (Some(identity), None, None) => Ok(Some(Credential::Certificate(identity))),
        (Some(_), file, _) => {
            let token = if file.is_some() { "--token-file" } else { "PRISM_ADMIN_TOKEN" };
            Err(Failure::usage(format!("--cert and {token} are two credentials"))
                .hint("leave out one of them; they may also come from PRISM_ADMIN_CERT and PRISM_ADMIN_TOKEN_FILE"))
        }
    }
}

fn credential_of(source: &Source, around: &Surroundings) -> Result<Credential> {
    let context = &source.context;
    let present = context.credentials();
    if present.len() > 1 {
        return Err(Failure::usage(format!("{} has {}", source.name, present.join(" and ")))
            .hint("a context has one credential; give it anew with `prism-admin context set` or `prism-admin login`"));
    }
    match (&context.token, &context.token_file, &context.cert, &context.key, &context.oidc, &source.name) {
        (Some(token), ..) => Secret::parse(token.reveal(), "the context").map(Credential::Token),
        (None, Some(path), ..) => Secret::read(path).map(Credential::Token),
        (None, None, Some(cert), Some(key), ..) => {
            Ok(Credential::Certificate(Identity { cert: cert.clone(), key: key.clone() }))
        }
        (None, None, None, None, Some(oidc), LogName::Context(name)) => {
            Login::new(name, oidc.clone(), around).map(Credential::Login)
        }
        (None, None, Some(_), None, ..) | (None, None, None, Some(_), ..) => {
            Err(Failure::usage(format!("{} has only one of cert and key", source.name)))
        }
        _ => Err(Failure::usage("no credential")
            .hint("name a token with --token-file or PRISM_ADMIN_TOKEN, or a certificate with --cert and --key")),
    }
}

/// The context that flags, data directory and contexts' file amount to.
pub fn source(flags: &Connection, around: &Surroundings) -> Result<Source> {
    one_source(flags)?;
    let named = |contexts: &Contexts, name: &String| {
        let context = contexts.get(name)?.clone();
        Ok(Source { name: LogName::Context(name.clone()), context })
    };
    if let Some(name) = &flags.context {
        return named(&Contexts::load(around.contexts_path()?)?, name);
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
            return named(&contexts, current);
        }
    }
    if folder.is_dir() {
        return from_data_dir(&folder);
    }
    Err(Failure::usage(format!("no server to talk to: there is no {} and no current context", folder.display()))
        .hint("on the server's machine: run where its prism-data is, or give --data-dir DIR or PRISM_DATA_DIR")
        .hint("elsewhere: `prism-admin context set NAME --endpoint HOST:PORT --ca FILE --token-file FILE`"))
}

fn one_source(flags: &Connection) -> Result<()> {
    if flags.context.is_some() && flags.data_dir.is_some() {
        return Err(Failure::usage("--context and --data-dir both name a server; leave out one of them"));
    }
    Ok(())
}

fn from_data_dir(folder: &Path) -> Result<Source> {
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
    let context = Context {
        endpoint: endpoints.admin,
        ca: folder.join("ca.pem"),
        token_file: Some(folder.join("admin.token")),
        ..Context::default()
    };
    Ok(Source { name: LogName::DataDir(canonical(folder)), context })
}

/// The folder's one path, so that it is the same from everywhere.
fn canonical(folder: &Path) -> PathBuf {
    folder.canonicalize().or_else(|_| std::path::absolute(folder)).unwrap_or_else(|_| folder.to_owned())
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
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

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
