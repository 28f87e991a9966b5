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
    note(&format!("node {node_id} revoked, with {} certificates", answer.certificates_revoked));
    console.printer.done(&answer)
}

fn state(node: &Node) -> &'static str {
    if node.revoked { "revoked" } else { "joined" }
}

fn table(nodes: &[Node]) -> String {
    let header = ["NODE", "STATE", "JOINED", "LAST SEEN", "CERTIFICATE ENDS", "VERSION", "DATA"];
    let grid = nodes.iter().fold(Grid::new(header), |grid, node| {
        grid.row([
            node.node_id.clone(),
            state(node).to_owned(),
            text::time(node.joined_at.as_ref()),
            text::time(node.last_seen_at.as_ref()),
            text::time(node.certificate_expires_at.as_ref()),
            text::or_dash(&node.version),
            text::or_dash(&node.data_endpoint),
        ])
    });
    grid.render("no nodes")
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
        .field("last seen", text::time(node.last_seen_at.as_ref()))
        .field("certificate ends", text::time(node.certificate_expires_at.as_ref()))
        .field("revoked", revoked)
        .field("version", text::or_dash(&node.version))
        .field("data plane", text::or_dash(&node.data_endpoint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_shows_whether_it_is_revoked() {
        let node = Node { node_id: "n1".to_owned(), revoked: true, ..Node::default() };
        let text = table(std::slice::from_ref(&node));
        assert!(text.contains("n1") && text.contains("revoked"), "{text}");
        assert!(sheet(&Node::default()).render("").contains("joined"));
    }
}
