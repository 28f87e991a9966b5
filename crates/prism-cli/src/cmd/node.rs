//! `prism-admin node`: machines that have joined.

use clap::{Args, Subcommand};
use prism_proto::cluster::v1::{GetNodeRequest, ListNodesRequest, Node, RevokeNodeRequest};

use super::{Console, drain::Drain, note_rest};
use crate::{
    error::Result,
    exit::Exit,
    output::{Grid, note},
    pages::{self, Paging},
    text,
};

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List nodes
    List(Paging),
    /// Show a node
    Show {
        /// Its id
        #[arg(value_name = "NODE_ID")]
        id: String,
    },
    /// Revoke a node and all its certificates; its connections are cut
    Revoke {
        /// Its id
        #[arg(value_name = "NODE_ID")]
        id: String,
    },
    /// End the sessions of a node, as `drain --node` does
    Drain(NodeDrain),
}

impl Command {
    /// Carries the verb out.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        match self {
            Self::List(paging) => list(console, paging).await,
            Self::Show { id } => show(console, id).await,
            Self::Revoke { id } => revoke(console, id).await,
            Self::Drain(drain) => return Drain::of_node(drain.id, drain.force, drain.validate_only).run(console).await,
        }?;
        Ok(Exit::Ok)
    }
}

/// `node drain`.
#[derive(Args, Debug)]
pub struct NodeDrain {
    /// Its id
    #[arg(value_name = "NODE_ID")]
    id: String,
    /// Cut at the timeout what is still running
    #[arg(long)]
    force: bool,
    /// Say what would end and change nothing
    #[arg(long, alias = "dry-run")]
    validate_only: bool,
}

async fn list(console: &Console, paging: Paging) -> Result<()> {
    let client = console.client().await?;
    let answer = pages::fetch(&client, ListNodesRequest::default(), paging).await?;
    note_rest(answer.nodes.len(), Some(&answer.next_page_token), answer.total_count);
    console.printer.listing(&answer, "nodes", |answer| table(&answer.nodes))
}

async fn show(console: &Console, node_id: String) -> Result<()> {
    let answer = console.client().await?.call(GetNodeRequest { node_id }).await?;
    console.printer.message(&answer, |answer| sheet(&answer.node.clone().unwrap_or_default()).render(""))
}

async fn revoke(console: &Console, node_id: String) -> Result<()> {
    let client = console.client().await?;
    console.confirm(&format!("Revoke node {node_id}? It is cut off, and comes back with a new join token only."))?;
    let answer = client.call(RevokeNodeRequest { node_id: node_id.clone() }).await?;
    let (certificates, tokens) = (answer.certificates_revoked, answer.tokens_revoked);
    note(&format!(
        "node {node_id} revoked, with {certificates} certificates and {tokens} join tokens that waited for it"
    ));
    console.printer.done(&answer)
}

fn state(node: &Node) -> &'static str {
    match (node.revoked, node.connected, node.last_seen_at) {
        (true, ..) => "revoked",
        (false, true, _) => "connected",
        // It has said who it is, so it had a link.
        (false, false, Some(_)) if !node.version.is_empty() => "away",
        _ => "joined",
    }
}

/// Why its newest try to link was refused, and when.
fn refusal(node: &Node) -> String {
    if node.link_refusal.is_empty() {
        return text::or_dash("");
    }
    format!("{} {}", text::time(node.link_refused_at.as_ref()), node.link_refusal)
}

/// The reason of it, for a list.
fn refusal_reason(node: &Node) -> String {
    text::or_dash(node.link_refusal.split(':').next().unwrap_or_default())
}

fn table(nodes: &[Node]) -> String {
    let header = [
        "NODE",
        "STATE",
        "SINCE",
        "LAST SEEN",
        "CERTIFICATE ENDS",
        "VERSION",
        "DATA",
        "SESSIONS",
        "BACKENDS",
        "LINK REFUSED",
    ];
    let grid = nodes.iter().fold(Grid::new(header), |grid, node| {
        grid.row([
            node.node_id.clone(),
            state(node).to_owned(),
            text::time(node.connected_since.as_ref().or(node.joined_at.as_ref())),
            text::time(node.last_seen_at.as_ref()),
            text::time(node.certificate_expires_at.as_ref()),
            text::or_dash(&node.version),
            text::or_dash(&node.data_endpoint),
            node.live_sessions.to_string(),
            text::or_dash(&backends(node)),
            refusal_reason(node),
        ])
    });
    grid.render("no nodes")
}

/// Its backends, as `instance (type)`.
fn backends(node: &Node) -> String {
    let shown = node.backends.iter().map(|backend| format!("{} ({})", backend.instance, backend.r#type));
    shown.collect::<Vec<_>>().join(", ")
}

/// A node as a sheet.
pub(super) fn sheet(node: &Node) -> Grid {
    let revoked = node.revoked_at.as_ref().map_or_else(
        || "no".to_owned(),
        |at| format!("{} by {}", text::time(Some(at)), text::or_dash(&node.revoked_by)),
    );
    Grid::sheet()
        .field("node", &node.node_id)
        .field("state", state(node))
        .field("token id", text::or_dash(&node.token_id))
        .field("joined", text::time(node.joined_at.as_ref()))
        .field(if node.connected { "connected since" } else { "away since" }, text::time(node.connected_since.as_ref()))
        .field("started", text::time(node.started_at.as_ref()))
        .field("last seen", text::time(node.last_seen_at.as_ref()))
        .field("certificate ends", text::time(node.certificate_expires_at.as_ref()))
        .field("revoked", revoked)
        .field("version", text::or_dash(&node.version))
        .field("data plane", text::or_dash(&node.data_endpoint))
        .field("backends", text::or_dash(&backends(node)))
        .field("live sessions", node.live_sessions.to_string())
        .field("link refused", refusal(node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_shows_where_it_serves_and_whether_it_is_there() {
        let node = Node {
            node_id: "n1".to_owned(),
            version: "1.0".to_owned(),
            last_seen_at: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
            data_endpoint: "10.0.0.1:8980\u{1b}[2J".to_owned(),
            backends: vec![prism_proto::cluster::v1::NodeBackend {
                instance: "main".to_owned(),
                r#type: "sqlite".to_owned(),
            }],
            live_sessions: 42,
            ..Node::default()
        };
        for text in [table(std::slice::from_ref(&node)), sheet(&node).render("")] {
            for part in ["away", "10.0.0.1:8980", "main (sqlite)", "42"] {
                assert!(text.contains(part) && !text.contains('\u{1b}'), "{part}: {text:?}");
            }
        }
        let node = Node { connected: true, ..node };
        assert!(table(std::slice::from_ref(&node)).contains("connected"));
    }

    #[test]
    fn a_node_shows_whether_it_is_revoked() {
        let node = Node { node_id: "n1".to_owned(), revoked: true, ..Node::default() };
        let text = table(std::slice::from_ref(&node));
        assert!(text.contains("n1") && text.contains("revoked"), "{text}");
        assert!(sheet(&Node::default()).render("").contains("joined"));
    }

    #[test]
    fn a_node_that_is_refused_shows_why() {
        let node = Node { link_refusal: "TOO_MANY_NODES: 1000 nodes are linked".to_owned(), ..Node::default() };
        let text = table(std::slice::from_ref(&node));
        assert!(text.contains("TOO_MANY_NODES") && !text.contains("1000"), "{text}");
        assert!(sheet(&node).render("").contains("1000 nodes are linked"));
    }
}
