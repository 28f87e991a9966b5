//! `prism-admin logout`.

use clap::Args;

use super::Console;
use crate::{
    context::Contexts,
    error::{Failure, Result},
    exit::Exit,
    oidc::Login,
    output::note,
};

/// `logout`: of the context that is named, or of the current one.
#[derive(Args, Debug)]
pub struct Logout {}

impl Logout {
    /// Removes the tokens, and has the refresh token revoked.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        console.printer.refuse_token()?;
        let contexts = Contexts::load(console.around.contexts_path()?)?;
        let name = console.global.connection.context.clone().or_else(|| contexts.current.clone());
        let name = name.ok_or_else(|| Failure::usage("there is no current context").hint("name one with --context"))?;
        let Some(oidc) = contexts.get(&name)?.oidc.clone() else {
            return Err(Failure::usage(format!("context {name} has no login")));
        };
        if Login::new(&name, oidc, &console.around)?.end().await? {
            note(&format!("context {name} is logged out"));
        } else {
            note(&format!("context {name} was not logged in"));
        }
        Ok(Exit::Ok)
    }
}
