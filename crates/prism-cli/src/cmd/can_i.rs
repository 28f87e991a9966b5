//! `prism-admin can-i`.

use clap::Args;
use prism_proto::{
    admin::v1::{CanIRequest, CanIResponse},
    rules::{self, AuditClass},
};

use super::{Console, Place};
use crate::{
    error::{Failure, Result},
    exit::Exit,
    output::Grid,
    text,
};

/// `can-i`: exit code 0 if the call would be allowed, 10 if not.
#[derive(Args, Debug)]
pub struct CanI {
    /// RPC such as CreateConfig or prism.admin.v1.AdminService/CreateConfig
    rpc: String,
    #[command(flatten)]
    place: Place,
}

impl CanI {
    /// Asks the server.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        let request = CanIRequest { rpc: full_name(&self.rpc)?, namespace: self.place.namespace };
        let answer = console.client().await?.call(request).await?;
        console.printer.message(&answer, sheet)?;
        Ok(if answer.allowed { Exit::Ok } else { Exit::NotAllowed })
    }
}

fn sheet(answer: &CanIResponse) -> String {
    Grid::sheet()
        .field("allowed", text::yes_no(answer.allowed))
        .field("permission", text::or_dash(&answer.permission))
        .field("reason", text::or_dash(&answer.reason))
        .render("")
}

/// The full name of an RPC of the admin plane. A name with a slash is taken as it is: the server may
/// know more RPCs than this command.
fn full_name(text: &str) -> Result<String> {
    let text = text.trim_start_matches('/');
    if text.contains('/') {
        return Ok(text.to_owned());
    }
    let rules = rules::rules().map_err(|why| Failure::new(Exit::Failed, why))?;
    let admin = || rules.iter().filter(|rule| rule.audit != AuditClass::None);
    let mut found = admin().filter(|rule| rule.method.eq_ignore_ascii_case(text));
    match (found.next(), found.next()) {
        (Some(rule), None) => Ok(rule.path.trim_start_matches('/').to_owned()),
        (Some(first), Some(second)) => Err(Failure::usage(format!("{text} is in several services")).hint(format!(
            "write {} or {}",
            &first.path.trim_start_matches('/'),
            second.path.trim_start_matches('/')
        ))),
        (None, _) => {
            let names: Vec<&str> = admin().map(|rule| rule.method.as_str()).collect();
            Err(Failure::usage(format!("the admin plane has no RPC {text:?}"))
                .hint(format!("there are: {}", names.join(" "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed() {
        assert_eq!(full_name("CreateConfig").unwrap(), "prism.admin.v1.AdminService/CreateConfig");
        assert_eq!(full_name("whoami").unwrap(), "prism.admin.v1.AccessService/WhoAmI");
        assert_eq!(full_name("/a.B/C").unwrap(), "a.B/C");
        assert_eq!(full_name("Put").unwrap_err().exit(), Exit::Usage);
    }
}
