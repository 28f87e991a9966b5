//! `prism-admin login`.

use std::path::PathBuf;

use clap::Args;

use super::{Console, context};
use crate::{
    context::{Context, Contexts, Oidc, parse_name},
    error::{Failure, Result},
    exit::Exit,
    oidc::{
        Login as Session, device,
        issuer::{Answer, Granted},
        tokens::Tokens,
    },
    output::note,
    target, text,
};

const PERSONS_SCOPES: [&str; 3] = ["openid", "offline_access", "prism.admin"];
const MACHINES_SCOPES: [&str; 1] = ["prism.admin"];

/// `login`. What is left out is taken from the last login of the context.
#[derive(Args, Debug)]
pub struct Login {
    /// The issuer, exactly as it calls itself: https, or http on this machine
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
    /// Id of this client at the issuer
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// Scope to ask for; may be repeated [default: openid offline_access prism.admin; for a machine prism.admin]
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ' ')]
    scopes: Vec<String>,
    /// Audience to ask for, which the server expects; as a resource too if it is a URI
    #[arg(long, value_name = "AUDIENCE")]
    audience: Option<String>,
    /// CA certificates to trust for the issuer, PEM [default: those of the system]
    #[arg(long, value_name = "FILE")]
    issuer_ca: Option<PathBuf>,
    /// File with the client's secret; or put the secret itself in PRISM_ADMIN_CLIENT_SECRET
    #[arg(long, value_name = "FILE")]
    client_secret_file: Option<PathBuf>,
    /// Log in as the client itself, without a person
    #[arg(long)]
    client_credentials: bool,
}

impl Login {
    /// Gets the tokens, and keeps them and the way to get them in the context.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        console.printer.refuse_token()?;
        let path = console.around.contexts_path()?;
        let contexts = Contexts::load(path)?;
        let (name, context) = place(console, &contexts)?;
        let settings = self.settings(context.oidc.as_ref())?;
        let context = context::rooted(Context { oidc: Some(settings), ..context.without_credentials() })?;
        let settings = context.oidc.clone().unwrap_or_default();
        let session = Session::new(&name, settings.clone(), &console.around)?;
        let granted = log_in(&session, &settings).await?;

        if granted.refresh.is_none() && !settings.client_credentials {
            note("note: the issuer gave no refresh token, so this login ends with its first token;");
            note("note: allow the scope offline_access for this client at the issuer to have it renewed");
        }
        let tokens = Tokens::of(&settings, granted);
        {
            let _lock = session.store().lock().await?;
            session.store().save(&tokens)?;
        }
        // Read again: a login takes minutes, and another context may have been changed meanwhile.
        let mut contexts = Contexts::load(path)?;
        let present = contexts.contexts.get(&name).map(Context::credentials).unwrap_or_default();
        if let Some(before) = present.iter().find(|credential| **credential != "a login") {
            note(&format!("note: context {name} had {before}; now it has this login"));
        }
        contexts.contexts.insert(name.clone(), context);
        contexts.current.get_or_insert_with(|| name.clone());
        let current = contexts.current.as_ref() == Some(&name);
        contexts.save(path)?;
        let end = tokens.expires_at.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 });
        let until = end.map_or_else(String::new, |end| format!(" until {}", text::time(Some(&end))));
        let renewed =
            if tokens.refresh.is_some() || settings.client_credentials { ", then renewed by itself" } else { "" };
        note(&format!("context {name} is logged in{until}{renewed}"));
        if !current {
            note(&format!("note: it is used with --context {name}, or after `prism-admin context use {name}`"));
        }
        Ok(Exit::Ok)
    }

    fn settings(&self, last: Option<&Oidc>) -> Result<Oidc> {
        let same = |last: &&Oidc| {
            self.issuer.as_ref().is_none_or(|issuer| *issuer == last.issuer)
                && self.client_id.as_ref().is_none_or(|id| *id == last.client_id)
        };
        // Of another issuer or client nothing is taken over.
        let last = last.filter(same).cloned().unwrap_or_default();
        let missing = |flag: &str| {
            Failure::usage(format!("{flag} is missing"))
                .hint("the first login of a context needs --issuer and --client-id")
        };
        let issuer = self.issuer.clone().unwrap_or(last.issuer);
        let client_id = self.client_id.clone().unwrap_or(last.client_id);
        if issuer.is_empty() {
            return Err(missing("--issuer"));
        }
        if client_id.is_empty() {
            return Err(missing("--client-id"));
        }
        let client_credentials = self.client_credentials || last.client_credentials;
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let scopes = match (self.scopes.is_empty(), client_credentials == last.client_credentials) {
            (false, _) => self.scopes.clone(),
            (true, true) if !last.scopes.is_empty() => last.scopes,
            (true, _) if client_credentials => words(&MACHINES_SCOPES),
            (true, _) => words(&PERSONS_SCOPES),
        };
        Ok(Oidc {
            issuer,
            client_id,
            scopes,
            audience: self.audience.clone().or(last.audience),
            issuer_ca: self.issuer_ca.clone().or(last.issuer_ca),
            client_secret_file: self.client_secret_file.clone().or(last.client_secret_file),
            client_credentials,
        })
    }
}

/// The context that gets the login: its name, and what it is so far.
fn place(console: &Console, contexts: &Contexts) -> Result<(String, Context)> {
    let flags = &console.global.connection;
    let elsewhere = flags.endpoint.is_some() || flags.data_dir.is_some();
    let named = match (&flags.context, elsewhere, &contexts.current) {
        (Some(name), ..) => {
            parse_name(name).map_err(|why| Failure::usage(format!("context {name:?}: {why}")))?;
            Some(name.clone())
        }
        (None, false, Some(current)) => Some(current.clone()),
        _ => None,
    };
    let context = match &named {
        Some(name) => context::place(console, contexts.contexts.get(name))?,
        None if elsewhere => context::place(console, None)?,
        None => target::source(flags, &console.around)?.context,
    };
    if context.endpoint.is_empty() || context.ca.as_os_str().is_empty() {
        let failure = match &named {
            Some(name) => Failure::usage(format!("there is no context {name:?} yet")),
            None => Failure::usage("the login needs a context"),
        };
        return Err(failure.hint("name its server with --endpoint and --ca, or with --data-dir"));
    }
    let name = match named {
        Some(name) => name,
        None => name_of(&context.endpoint)?,
    };
    Ok((name, context))
}

async fn log_in(session: &Session, settings: &Oidc) -> Result<Granted> {
    let issuer = session.issuer().await?;
    if !settings.client_credentials {
        return device::log_in(&issuer).await;
    }
    match issuer.client_credentials().await? {
        Answer::Granted(granted) => Ok(granted),
        Answer::Refused(refused) => Err(refused.failure("the login was refused")),
    }
}

/// A context's name for a server that was given none.
fn name_of(endpoint: &str) -> Result<String> {
    let (host, port) = target::parse_endpoint(endpoint)?;
    let fits = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '-' };
    let name: String = format!("{host}-{port}").chars().map(fits).collect();
    parse_name(name.trim_start_matches(['-', '.']))
        .map_err(|_| Failure::usage("the address is too long for a context's name").hint("give --context NAME"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn login(line: &str) -> (Login, Console) {
        let cli = Cli::try_parse_from(std::iter::once("prism-admin").chain(line.split_whitespace())).unwrap();
        let Command::Login(login) = cli.command else { panic!("not a login") };
        (login, Console::of(cli.global, target::Surroundings::default()))
    }

    fn contexts() -> Contexts {
        let context = Context { endpoint: "a:1".to_owned(), ca: "/ca".into(), ..Context::default() };
        Contexts { current: Some("a".to_owned()), contexts: [("a".to_owned(), context)].into() }
    }

    #[test]
    fn settings_are_those_of_the_last_login_unless_it_was_another() {
        let first = login("login --issuer https://i --client-id c --audience p").0.settings(None).unwrap();
        assert_eq!(first.scopes, ["openid", "offline_access", "prism.admin"]);
        let again = login("login").0.settings(Some(&first)).unwrap();
        assert_eq!(again, first);
        let other = login("login --issuer https://j --client-id c").0.settings(Some(&first)).unwrap();
        assert_eq!(other.audience, None);
        let machine = login("login --client-credentials").0.settings(Some(&first)).unwrap();
        assert_eq!((machine.scopes, machine.audience.as_deref()), (vec!["prism.admin".to_owned()], Some("p")));
        let scopes = login("login --scope openid --scope x").0.settings(Some(&first)).unwrap().scopes;
        assert_eq!(scopes, ["openid", "x"]);
        assert!(login("login --issuer https://i").0.settings(None).unwrap_err().to_string().contains("--client-id"));
        assert!(login("login").0.settings(None).unwrap_err().to_string().contains("--issuer"));
    }

    #[test]
    fn the_context_is_named_current_or_made() {
        let of = |line: &str| {
            let (_, console) = login(line);
            place(&console, &contexts()).map(|(name, context)| (name, context.endpoint))
        };
        assert_eq!(of("login").unwrap(), ("a".to_owned(), "a:1".to_owned()));
        assert_eq!(of("login --context a").unwrap(), ("a".to_owned(), "a:1".to_owned()));
        assert_eq!(of("login --context b --endpoint h:2 --ca c").unwrap(), ("b".to_owned(), "h:2".to_owned()));
        assert_eq!(of("login --endpoint [::1]:2 --ca c").unwrap(), ("1-2".to_owned(), "[::1]:2".to_owned()));
        assert!(of("login --context b").unwrap_err().to_string().contains("no context \"b\" yet"));
        assert!(of("login --endpoint h:2").unwrap_err().to_string().contains("--ca"));
        assert!(of("login --context a/b --endpoint h:2 --ca c").is_err());
    }
}
