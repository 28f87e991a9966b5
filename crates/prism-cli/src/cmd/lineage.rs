//! `prism-admin lineage`: what hangs together, from whichever link is at hand.

use clap::{Args, ValueEnum};
use prism_proto::cluster::v1::{GetLineageRequest, GetLineageResponse, NodeCertificate, get_lineage_request::Link};

use super::{Console, node, token};
use crate::{
    error::{Failure, Result},
    exit::Exit,
    output::Grid,
    text,
};

/// `lineage`.
#[derive(Args, Debug)]
pub struct Lineage {
    /// Id of a join token, a node or a session, or serial number or fingerprint of a certificate
    #[arg(value_name = "ID")]
    id: String,
    /// What it is the id of [default: whatever it has the form of]
    #[arg(long, value_enum)]
    kind: Option<Kind>,
}

/// A link of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A join token
    Token,
    /// A node
    Node,
    /// A certificate of a node
    Certificate,
    /// A session on a node
    Session,
}

impl Lineage {
    /// Asks for what the id can be, one after the other.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        let client = console.client().await?;
        let mut missing = None;
        for link in self.links() {
            match client.call(GetLineageRequest { link: Some(link) }).await {
                Ok(answer) => {
                    console.printer.message(&answer, show)?;
                    return Ok(Exit::Ok);
                }
                Err(failure) if failure.code() == Some(tonic::Code::NotFound) => missing = missing.or(Some(failure)),
                Err(failure) => return Err(failure),
            }
        }
        let none = || Failure::usage(format!("{} has the form of no id", self.id));
        Err(missing.unwrap_or_else(none).hint("say what it is with --kind"))
    }

    fn links(&self) -> Vec<Link> {
        let id = || self.id.clone();
        let plain = self.id.replace(':', "");
        let is_hex = !plain.is_empty() && plain.bytes().all(|byte| byte.is_ascii_hexdigit());
        match self.kind {
            Some(Kind::Token) => vec![Link::TokenId(id())],
            Some(Kind::Node) => vec![Link::NodeId(id())],
            Some(Kind::Certificate) => vec![Link::Certificate(plain)],
            Some(Kind::Session) => vec![Link::SessionId(id())],
            None => {
                let mut links = Vec::new();
                if uuid::Uuid::try_parse(&self.id).is_ok() && self.id.contains('-') {
                    links.push(Link::SessionId(id()));
                }
                if self.id.len() == 16 && self.id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                    links.push(Link::TokenId(id()));
                }
                if is_hex && (plain.len() == 32 || plain.len() == 64) {
                    links.push(Link::Certificate(plain));
                }
                let in_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
                if self.id.len() < 64 && self.id.bytes().all(in_name) {
                    links.push(Link::NodeId(id()));
                }
                links
            }
        }
    }
}

fn show(answer: &GetLineageResponse) -> String {
    let mut parts = Vec::new();
    if let Some(found) = &answer.node {
        parts.push(node::sheet(found).render(""));
    }
    parts.push(token::table(&answer.tokens));
    parts.push(certificates(&answer.certificates));
    let sessions = answer.session_ids.iter().fold(Grid::new(["SESSION"]), |grid, id| grid.row([id.clone()]));
    parts.push(format!("{}{} sessions in all\n", sessions.render("no sessions"), answer.session_count));
    let entries = answer.audit_entry_ids.iter().fold(Grid::new(["AUDIT ENTRY"]), |grid, id| grid.row([id.clone()]));
    parts.push(entries.render("no audit entries"));
    let left_out = answer.left_out.iter();
    parts.extend(
        left_out.map(|part| format!("not shown of {}: {}\n", text::safe(&part.field), text::safe(&part.description))),
    );
    parts.join("\n")
}

fn certificates(certificates: &[NodeCertificate]) -> String {
    let header = ["CERTIFICATE", "NODE", "TOKEN", "RENEWS", "KEY", "ISSUED", "ENDS", "STATE"];
    let short = |digits: &str| if digits.is_empty() { "-".to_owned() } else { digits.chars().take(16).collect() };
    let grid = certificates.iter().fold(Grid::new(header), |grid, certificate| {
        grid.row([
            certificate.serial_number.clone(),
            certificate.node_id.clone(),
            certificate.token_id.clone(),
            short(&certificate.renewed_from),
            short(&certificate.key_hash),
            text::time(certificate.created_at.as_ref()),
            text::time(certificate.expires_at.as_ref()),
            text::key_state(certificate.revoked, certificate.expires_at.as_ref()).to_owned(),
        ])
    });
    grid.render("no certificates")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(id: &str) -> Vec<Link> {
        Lineage { id: id.to_owned(), kind: None }.links()
    }

    #[test]
    fn an_id_says_what_it_can_be() {
        assert_eq!(of("n1"), [Link::NodeId("n1".to_owned())]);
        assert_eq!(of("0123456789ABCDEF"), [Link::TokenId("0123456789ABCDEF".to_owned())]);
        assert_eq!(of("abcdefgh12345678").len(), 2);
        assert_eq!(of(&"AB".repeat(32)), [Link::Certificate("AB".repeat(32))]);
        assert_eq!(of(&format!("AB{}", ":AB".repeat(31))), [Link::Certificate("AB".repeat(32))]);
        assert!(matches!(of("0190a5f0-0000-7000-8000-000000000000")[0], Link::SessionId(_)));
        assert!(of("").is_empty() || of("") == [Link::NodeId(String::new())]);
        assert!(of("A b").is_empty());
    }
}
