//! `prism-admin context`: named servers and credentials.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::Console;
use crate::{
    context::{Context, Contexts, parse_name},
    error::{Failure, Result},
    exit::Exit,
    output::{Grid, note},
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
    /// Make or change a context from --endpoint, --ca, --token-file, --user or --data-dir
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
                let context = set.context(console, contexts.contexts.get(&set.name))?;
                note(&format!("context {} set: {}", set.name, context.endpoint));
                contexts.current.get_or_insert_with(|| set.name.clone());
                contexts.contexts.insert(set.name, context);
            }
            Self::Remove { name } => {
                contexts.contexts.remove(&name).ok_or_else(|| contexts.unknown(&name))?;
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
        let mut context = match (&flags.data_dir, present) {
            (Some(_), _) => target::source(flags, &console.around)?,
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
        match (&flags.token_file, self.inline_token) {
            (Some(file), false) => (context.token, context.token_file) = (None, Some(file.clone())),
            (file, true) => {
                (context.token, context.token_file) = (Some(inline(console, file.as_deref(), &context)?), None);
            }
            (None, false) => {}
        }
        let missing = [
            ("--endpoint", context.endpoint.is_empty()),
            ("--ca", context.ca.as_os_str().is_empty()),
            (
                "--token-file (or PRISM_ADMIN_TOKEN and --inline-token)",
                context.token.is_none() && context.token_file.is_none(),
            ),
        ];
        if let Some((flag, _)) = missing.into_iter().find(|(_, missing)| *missing) {
            return Err(Failure::usage(format!("context {:?} needs {flag}", self.name)));
        }
        // A context works from every folder.
        context.ca = absolute(&context.ca)?;
        context.token_file = context.token_file.as_deref().map(absolute).transpose()?;
        Ok(context)
    }
}

fn inline(console: &Console, file: Option<&Path>, context: &Context) -> Result<String> {
    match (file.or(context.token_file.as_deref()), &console.around.token, &context.token) {
        (Some(file), _, _) => target::read_token(file),
        (None, Some(token), _) | (None, None, Some(token)) => Ok(token.trim().to_owned()),
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
                "user": context.user,
            })
        })
        .collect();
    console.printer.value(&rows.into(), || table(contexts))?;
    Ok(Exit::Ok)
}

fn table(contexts: &Contexts) -> String {
    let header = ["CURRENT", "NAME", "ENDPOINT", "CA", "TOKEN", "USER"];
    let grid = contexts.contexts.iter().fold(Grid::new(header), |grid, (name, context)| {
        let current = if contexts.current.as_ref() == Some(name) { "*" } else { "" };
        let token = context.token_file.as_ref().map_or_else(|| "inline".to_owned(), |path| path.display().to_string());
        grid.row([
            current.to_owned(),
            name.clone(),
            context.endpoint.clone(),
            context.ca.display().to_string(),
            token,
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
    use crate::{cli::Cli, output::Printer, target::Surroundings};

    fn run(folder: &Path, line: &str, token: Option<&str>) -> Result<Contexts> {
        let cli = Cli::try_parse_from(std::iter::once("prism-admin").chain(line.split_whitespace())).unwrap();
        let path = folder.join("prism/admin.toml");
        let around =
            Surroundings { contexts: Some(path.clone()), token: token.map(str::to_owned), ..Surroundings::default() };
        let console = Console { printer: Printer::new(cli.global.output), global: cli.global, around };
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
        assert_eq!(both.contexts["b"].token.as_deref(), Some("prx_b"));
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
    fn lists_show_no_token() {
        let context = Context { endpoint: "h".to_owned(), token: Some("prx_secret".to_owned()), ..Context::default() };
        let text = table(&Contexts { current: None, contexts: [("a".to_owned(), context)].into() });
        assert!(text.contains("inline") && !text.contains("prx_secret"), "{text}");
    }
}
