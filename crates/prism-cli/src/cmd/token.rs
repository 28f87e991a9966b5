//! `prism-admin token`: join tokens.

use std::time::Duration;

use clap::{Args, Subcommand};
use prism_proto::cluster::v1::{
    CreateJoinTokenRequest, CreateJoinTokenResponse, JoinTokenInfo, ListJoinTokensRequest, RevokeJoinTokenRequest,
};

use super::Console;
use crate::{
    error::{Failure, Result},
    exit::Exit,
    output::{Grid, note},
    target::parse_endpoint,
    text,
};

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create a join token and print the line to paste on the new machine; `-o token` prints the token only
    ///
    /// The token is shown once and is good for one machine.
    Create(Create),
    /// List join tokens
    List,
    /// Revoke a join token; a node that has joined with it stays, see `node revoke`
    Revoke {
        /// Id as `token list` shows it
        #[arg(value_name = "TOKEN_ID")]
        id: String,
    },
}

impl Command {
    /// Carries the verb out.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        match self {
            Self::Create(create) => create.run(console).await,
            Self::List => list(console).await,
            Self::Revoke { id } => revoke(console, id).await,
        }?;
        Ok(Exit::Ok)
    }
}

/// `token create`.
#[derive(Args, Debug)]
pub struct Create {
    /// Only this node may use it, also to come back under a name that is taken
    #[arg(long, value_name = "ID")]
    node: Option<String>,
    /// Life, such as 30m, at most 7d [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = text::parse_duration)]
    ttl: Option<Duration>,
    /// Admin port by which the new machine reaches the controller [default: the one used here]
    #[arg(long, value_name = "HOST:PORT")]
    controller: Option<String>,
}

impl Create {
    async fn run(self, console: &Console) -> Result<()> {
        let controller = match self.controller {
            Some(given) => {
                parse_endpoint(&given)?;
                given
            }
            None => console.endpoint()?,
        };
        let ttl_seconds = self.ttl.map_or(Ok(0), seconds)?;
        let node_id = self.node.unwrap_or_default();
        let request = CreateJoinTokenRequest { node_id: node_id.clone(), ttl_seconds };
        let answer = console.client_for_secret().await?.call(request).await?;
        console.printer.secret(&answer, &answer.join_token, |answer| sheet(answer, &node_id, &controller))?;
        note("note: the token is shown this once; Prism keeps only its hash");
        if is_loopback(&controller) {
            note(&format!(
                "note: other machines do not reach {controller}; put the name there by which they do, see also --controller"
            ));
        }
        Ok(())
    }
}

/// Whole seconds, at least one: 0 would be the server's default.
fn seconds(ttl: Duration) -> Result<i32> {
    i32::try_from(ttl.as_secs())
        .ok()
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| Failure::usage("--ttl must be at least 1s and at most 7d"))
}

fn is_loopback(controller: &str) -> bool {
    let host = parse_endpoint(controller).map(|(host, _)| host).unwrap_or_default();
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn sheet(answer: &CreateJoinTokenResponse, node_id: &str, controller: &str) -> String {
    let named = if node_id.is_empty() { String::new() } else { format!(" --node-id {node_id}") };
    let grid = Grid::sheet()
        .field("token id", &answer.token_id)
        .field("node", if node_id.is_empty() { "any" } else { node_id })
        .field("expires", time(answer.expires_at_epoch_ms))
        .field("token", &answer.join_token)
        .render("");
    format!(
        "{grid}\nOn the new machine:\n\n  prism join '{}' --controller {}{}\n  prism serve --role data\n",
        answer.join_token,
        text::safe(controller),
        text::safe(&named)
    )
}

async fn list(console: &Console) -> Result<()> {
    let answer = console.client().await?.call(ListJoinTokensRequest {}).await?;
    console.printer.listing(&answer, "tokens", |answer| table(&answer.tokens))
}

async fn revoke(console: &Console, token_id: String) -> Result<()> {
    let client = console.client().await?;
    console.confirm(&format!("Revoke join token {token_id}?"))?;
    let answer = client.call(RevokeJoinTokenRequest { token_id: token_id.clone() }).await?;
    note(&format!("join token {token_id} revoked"));
    console.printer.done(&answer)
}

/// Join tokens as a table.
pub(super) fn table(tokens: &[JoinTokenInfo]) -> String {
    let header = ["TOKEN", "NODE", "STATUS", "CREATED", "BY", "EXPIRES", "REDEEMED", "REDEEMED BY"];
    let grid = tokens.iter().fold(Grid::new(header), |grid, token| {
        grid.row([
            token.token_id.clone(),
            if token.node_id.is_empty() { "any".to_owned() } else { token.node_id.clone() },
            token.status.to_lowercase(),
            time(token.created_at_epoch_ms),
            token.created_by.clone(),
            time(token.expires_at_epoch_ms),
            time(token.redeemed_at_epoch_ms),
            text::or_dash(&token.redeemed_by),
        ])
    });
    grid.render("no join tokens")
}

/// A time in milliseconds; `-` for 0.
fn time(epoch_ms: i64) -> String {
    let at = prost_types::Timestamp { seconds: epoch_ms.div_euclid(1000), nanos: 0 };
    text::time((epoch_ms != 0).then_some(&at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_to_paste_is_whole() {
        let answer = CreateJoinTokenResponse {
            token_id: "t".to_owned(),
            join_token: "prj_x".to_owned(),
            expires_at_epoch_ms: 1_760_000_000_000,
        };
        let text = sheet(&answer, "n1", "gateway.example:8981");
        assert!(text.contains("  prism join 'prj_x' --controller gateway.example:8981 --node-id n1\n"), "{text}");
        assert!(text.contains("2025-10-09"), "{text}");
        assert!(!sheet(&answer, "", "a:1").contains("--node-id"));
    }

    #[test]
    fn lives_and_addresses_are_looked_at() {
        assert_eq!(seconds(Duration::from_mins(30)).unwrap(), 1800);
        assert!(seconds(Duration::from_millis(10)).is_err() && seconds(Duration::MAX).is_err());
        assert!(is_loopback("127.0.0.1:8981") && is_loopback("[::1]:1") && is_loopback("localhost:1"));
        assert!(!is_loopback("gateway.example:8981") && !is_loopback("10.0.0.1:1"));
    }
}
