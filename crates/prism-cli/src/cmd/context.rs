//! `prism-admin context`: named servers and credentials.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::Console;
use crate::{
    context::{Context, Contexts, parse_name},
    error::{Failure, Result},
    exit::Exit,
    oidc::tokens::Store,
    output::{Grid, note},
    secret::Secret,
    target,
};

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List the contexts
    List,
    /// Use a context from now on, where no server's data directory is at hand
    Use {
        /// Name of the context
        name: String,
    },
    /// Make or change a context from --endpoint, --ca, --token-file, --cert and --key, --user or --data-dir
    ///
    /// A context has one credential; a new one takes the place of the old. `prism-admin login` makes one with a login.
    Set(Set),
    /// Remove a context
    Remove {
        /// Name of the context
        name: String,
    },
}

/// `context set`.
#[derive(Args, Debug)]
pub struct Set {
    /// Name of the context
    #[arg(value_parser = parse_name)]
    name: String,
    /// Keep the token itself in the context, instead of the path of its file
    #[arg(long)]
    inline_token: bool,
}

impl Command {
    /// Carries the verb out.
    pub fn run(self, console: &Console) -> Result<Exit> {
        console.printer.refuse_token()?;
        let path = console.around.contexts_path()?;
        let mut contexts = Contexts::load(path)?;
        match self {
            Self::List => return list(console, &contexts),
            Self::Use { name } => {
                contexts.get(&name)?;
                note(&format!("context {name} is used where no server's data directory is at hand"));
                contexts.current = Some(name);
            }
            Self::Set(set) => {
                let present = contexts.contexts.get(&set.name);
                let context = set.context(console, present)?;
                if present.is_some_and(|present| present.oidc.is_some()) && context.oidc.is_none() {
                    give_up_login(path, &set.name)?;
                }
                note(&format!("context {} set: {}", set.name, context.endpoint));
                contexts.current.get_or_insert_with(|| set.name.clone());
                contexts.contexts.insert(set.name, context);
            }
            Self::Remove { name } => {
                let removed = contexts.contexts.remove(&name).ok_or_else(|| contexts.unknown(&name))?;
                if removed.oidc.is_some() {
                    give_up_login(path, &name)?;
                }
                if contexts.current.as_ref() == Some(&name) {
                    contexts.current = None;
                    note("note: it was the current context; choose another with `prism-admin context use NAME`");
                }
            }
        }
        contexts.save(path)?;
        Ok(Exit::Ok)
    }
}

impl Set {
    fn context(&self, console: &Console, present: Option<&Context>) -> Result<Context> {
        let flags = &console.global.connection;
        let mut context = place(console, present)?;
        match (&flags.token_file, &flags.cert, &flags.key) {
            (None, None, None) if !self.inline_token => {}
            (file, None, None) => {
                let token_file = file.clone().or_else(|| context.token_file.clone());
                let token =
                    if self.inline_token { Some(inline(console, token_file.as_deref(), &context)?) } else { None };
                let token_file = if self.inline_token { None } else { token_file };
                context = Context { token_file, token, ..context.without_credentials() };
            }
            (None, Some(cert), Some(key)) if !self.inline_token => {
                let (cert, key) = (Some(cert.clone()), Some(key.clone()));
                context = Context { cert, key, ..context.without_credentials() };
            }
            (None, ..) if !self.inline_token => return Err(Failure::usage("--cert and --key belong together")),
            _ => return Err(Failure::usage("a context has one credential: a token, or --cert and --key")),
        }
        let missing = [
            ("--endpoint", context.endpoint.is_empty()),
            ("--ca", context.ca.as_os_str().is_empty()),
            (
                "a credential: --token-file, PRISM_ADMIN_TOKEN with --inline-token, or --cert and --key",
                context.credentials().is_empty(),
            ),
        ];
        if let Some((flag, _)) = missing.into_iter().find(|(_, missing)| *missing) {
            return Err(Failure::usage(format!("context {:?} needs {flag}", self.name)));
        }
        rooted(context)
    }
}

/// What a context becomes by --data-dir, --endpoint, --ca and --user.
pub fn place(console: &Console, present: Option<&Context>) -> Result<Context> {
    let flags = &console.global.connection;
    let mut context = match (&flags.data_dir, present) {
        (Some(_), _) => {
            let flags = target::Connection { context: None, ..flags.clone() };
            target::source(&flags, &console.around)?.context
        }
        (None, present) => present.cloned().unwrap_or_default(),
    };
    if let Some(endpoint) = &flags.endpoint {
        target::parse_endpoint(endpoint)?;
        endpoint.clone_into(&mut context.endpoint);
    }
    if let Some(ca) = &flags.ca {
        context.ca.clone_from(ca);
    }
    if let Some(user) = &flags.user {
        context.user = Some(user.clone());
    }
    Ok(context)
}

/// A context works from every folder.
pub fn rooted(mut context: Context) -> Result<Context> {
    context.ca = absolute(&context.ca)?;
    for path in [&mut context.token_file, &mut context.cert, &mut context.key] {
        *path = path.as_deref().map(absolute).transpose()?;
    }
    if let Some(oidc) = &mut context.oidc {
        for path in [&mut oidc.issuer_ca, &mut oidc.client_secret_file] {
            *path = path.as_deref().map(absolute).transpose()?;
        }
    }
    Ok(context)
}

fn give_up_login(contexts: &Path, name: &str) -> Result<()> {
    note(&format!(
        "note: the login of {name} is removed here, not ended at its issuer; `prism-admin logout` does both"
    ));
    Store::of(contexts, name).remove()
}

fn inline(console: &Console, file: Option<&Path>, context: &Context) -> Result<Secret> {
    match (file, &console.around.token, &context.token) {
        (Some(file), _, _) => Secret::read(file),
        (None, Some(token), _) | (None, None, Some(token)) => Ok(token.clone()),
        (None, None, None) => Err(Failure::usage("--inline-token needs --token-file or PRISM_ADMIN_TOKEN")),
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

fn list(console: &Console, contexts: &Contexts) -> Result<Exit> {
    // Tokens stay out of every form.
    let rows: Vec<_> = contexts
        .contexts
        .iter()
        .map(|(name, context)| {
            json!({
                "name": name,
                "current": contexts.current.as_ref() == Some(name),
                "endpoint": context.endpoint,
                "ca": context.ca,
                "tokenFile": context.token_file,
                "cert": context.cert,
                "key": context.key,
                "issuer": context.oidc.as_ref().map(|oidc| &oidc.issuer),
                "user": context.user,
            })
        })
        .collect();
    console.printer.value(&rows.into(), || table(contexts))?;
    Ok(Exit::Ok)
}

fn table(contexts: &Contexts) -> String {
    let header = ["CURRENT", "NAME", "ENDPOINT", "CA", "CREDENTIAL", "USER"];
    let grid = contexts.contexts.iter().fold(Grid::new(header), |grid, (name, context)| {
        let current = if contexts.current.as_ref() == Some(name) { "*" } else { "" };
        let credential = match (&context.token_file, &context.cert, &context.oidc) {
            (Some(file), ..) => format!("token {}", file.display()),
            (None, Some(cert), _) => format!("certificate {}", cert.display()),
            (None, None, Some(oidc)) => format!("login {}", oidc.issuer),
            (None, None, None) => "inline token".to_owned(),
        };
        grid.row([
            current.to_owned(),
            name.clone(),
            context.endpoint.clone(),
            context.ca.display().to_string(),
            credential,
            context.user.clone().unwrap_or_else(|| "-".to_owned()),
        ])
    });
    grid.render(
        "no contexts; make one with `prism-admin context set NAME --endpoint HOST:PORT --ca FILE --token-file FILE`",
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{cli::Cli, context::Oidc, target::Surroundings};

    fn secret(text: &str) -> Secret {
        Secret::parse(text, "test").unwrap()
    }

    fn run(folder: &Path, line: &str, token: Option<&str>) -> Result<Contexts> {
        let cli = Cli::try_parse_from(std::iter::once("prism-admin").chain(line.split_whitespace())).unwrap();
        let path = folder.join("prism/admin.toml");
        let around = Surroundings { contexts: Some(path.clone()), token: token.map(secret), ..Surroundings::default() };
        let console = Console::of(cli.global, around);
        let crate::cli::Command::Context(command) = cli.command else { panic!("not a context command") };
        command.run(&console)?;
        Contexts::load(&path)
    }

    #[test]
    fn contexts_come_change_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let made = run(folder, "context set a --endpoint h:1 --ca ca.pem --token-file t", None).unwrap();
        assert_eq!(made.current.as_deref(), Some("a"));
        assert!(made.contexts["a"].ca.is_absolute());
        let both = run(folder, "context set b --endpoint h:2 --ca /c --inline-token", Some("prx_b\n")).unwrap();
        assert_eq!(both.contexts["b"].token, Some(secret("prx_b")));
        assert_eq!(both.current.as_deref(), Some("a"));
        let changed = run(folder, "context set a --user alice", None).unwrap();
        assert_eq!(
            (changed.contexts["a"].user.as_deref(), changed.contexts["a"].endpoint.as_str()),
            (Some("alice"), "h:1")
        );
        assert_eq!(run(folder, "context use b", None).unwrap().current.as_deref(), Some("b"));
        assert_eq!(run(folder, "context remove b", None).unwrap().current, None);
        assert!(run(folder, "context use b", None).is_err());
        assert!(run(folder, "context remove b", None).is_err());
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let fault = |line: &str| run(folder.path(), line, None).unwrap_err().to_string();
        assert!(fault("context set a --ca c --token-file t").contains("--endpoint"));
        assert!(fault("context set a --endpoint h:1 --token-file t").contains("--ca"));
        assert!(fault("context set a --endpoint h:1 --ca c").contains("--token-file"));
        assert!(fault("context set a --endpoint http://h:1 --ca c --token-file t").contains("http://"));
    }

    #[test]
    fn a_new_credential_takes_the_place_of_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let of = |contexts: &Contexts| contexts.contexts["a"].credentials().join(",");
        let made = run(folder, "context set a --endpoint h:1 --ca c --cert c --key k", None).unwrap();
        assert_eq!(of(&made), "a certificate");
        assert!(made.contexts["a"].cert.as_ref().unwrap().is_absolute());
        assert_eq!(of(&run(folder, "context set a --token-file t", None).unwrap()), "a token");
        let mut contexts = run(folder, "context set a --cert c --key k", None).unwrap();
        assert_eq!(of(&contexts), "a certificate");

        let login = Context { oidc: Some(Oidc::default()), ..contexts.contexts["a"].clone().without_credentials() };
        contexts.contexts.insert("a".to_owned(), login);
        contexts.save(&folder.join("prism/admin.toml")).unwrap();
        let tokens = folder.join("prism/tokens/a.json");
        std::fs::create_dir(tokens.parent().unwrap()).unwrap();
        std::fs::write(&tokens, "{}").unwrap();
        assert_eq!(of(&run(folder, "context set a --endpoint h:2", None).unwrap()), "a login");
        assert!(tokens.exists());
        assert_eq!(of(&run(folder, "context set a --token-file t", None).unwrap()), "a token");
        assert!(!tokens.exists());

        let fault = |line: &str| run(folder, line, Some("prx_a")).unwrap_err().to_string();
        assert!(fault("context set a --cert c").contains("belong together"));
        assert!(fault("context set a --cert c --key k --inline-token").contains("one credential"));
        assert!(fault("context set a --cert c --key k --token-file t").contains("one credential"));
    }

    #[test]
    fn lists_show_no_token() {
        let context = Context { endpoint: "h".to_owned(), token: Some(secret("prx_secret")), ..Context::default() };
        let text = table(&Contexts { current: None, contexts: [("a".to_owned(), context)].into() });
        assert!(text.contains("inline") && !text.contains("prx_secret"), "{text}");
    }
}
