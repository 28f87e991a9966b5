//! `prism-admin ca`: the CA of the cluster, and its rotation.

use std::fmt::Write as _;

use clap::Subcommand;
use prism_proto::cluster::v1::{
    CertificateAuthority, GetCaStatusRequest, GetCaStatusResponse, RetireCaRequest, RotateCaRequest,
};

use super::Console;
use crate::{
    error::Result,
    exit::Exit,
    output::{Grid, note},
    text,
};

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show the CAs that are trusted, what stands on them, and whether the old one can go
    Status,
    /// Make a new CA, which issues from now on; the old one stays trusted until it is retired
    Rotate,
    /// Trust the old CA no more
    Retire {
        /// Also while valid certificates stand on it: their holders are locked out
        #[arg(long)]
        force: bool,
    },
}

impl Command {
    /// Carries the verb out.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        match self {
            Self::Status => status(console).await,
            Self::Rotate => rotate(console).await,
            Self::Retire { force } => retire(console, force).await,
        }?;
        Ok(Exit::Ok)
    }
}

async fn status(console: &Console) -> Result<()> {
    let answer = console.client().await?.call(GetCaStatusRequest {}).await?;
    console.printer.message(&answer, |answer| format!("{}{}\n", table(answer), verdict(answer)))
}

async fn rotate(console: &Console) -> Result<()> {
    let client = console.client().await?;
    console.confirm("Make a new CA? It issues from now on; the old one stays trusted until it is retired.")?;
    let answer = client.call(RotateCaRequest {}).await?;
    note(&format!("the new CA is {}; the old one stays trusted", answer.fingerprint));
    note("next: give clients the new ca.pem, let certificates be renewed, and see prism-admin ca status");
    console.printer.done(&answer)
}

async fn retire(console: &Console, force: bool) -> Result<()> {
    let client = console.client().await?;
    let question = if force {
        "Retire the old CA? Whoever has a certificate of it is locked out, and whoever trusts it alone cannot connect any more."
    } else {
        "Retire the old CA? Whoever trusts it alone cannot connect any more."
    };
    console.confirm(question)?;
    let answer = client.call(RetireCaRequest { force }).await?;
    note(&format!("the CA {} is trusted no more", answer.retired_fingerprint));
    if answer.certificates_cut > 0 {
        note(&format!("{} certificates that stood on it are worth nothing now", answer.certificates_cut));
    }
    console.printer.done(&answer)
}

fn table(answer: &GetCaStatusResponse) -> String {
    let header = ["CA", "STATE", "SINCE", "UNTIL", "USERS", "CLIENTS", "NODES", "LAST ENDS"];
    let grid = answer.authorities.iter().fold(Grid::new(header), |grid, ca| {
        grid.row([
            ca.fingerprint.clone(),
            if ca.issues { "issues" } else { "old" }.to_owned(),
            text::time(ca.since.as_ref()),
            text::time(ca.until.as_ref()),
            ca.user_certificates.to_string(),
            ca.client_certificates.to_string(),
            ca.node_certificates.to_string(),
            text::time(ca.last_certificate_ends.as_ref()),
        ])
    });
    grid.render("no CA")
}

/// Whether the old CA can go, in a sentence, and what stands in the way.
fn verdict(answer: &GetCaStatusResponse) -> String {
    let Some(old) = answer.authorities.iter().find(|ca| !ca.issues) else {
        return "there is one CA; no rotation is under way".to_owned();
    };
    let tokens = match old.join_tokens {
        0 => String::new(),
        count => format!("; {count} join tokens that nobody has redeemed name it, and end with it"),
    };
    if answer.can_retire {
        return format!(
            "the old CA can go: no valid certificate stands on it{tokens}; give every client the new ca.pem, then run: prism-admin ca \
             retire"
        );
    }
    let CertificateAuthority { user_certificates, client_certificates, node_certificates, .. } = old;
    let mut sentence = format!(
        "the old CA cannot go yet: {user_certificates} user, {client_certificates} client and {node_certificates} node certificates \
         stand on it, the last until {}",
        text::time(old.last_certificate_ends.as_ref())
    );
    if answer.nodes_waiting_count > 0 {
        let more = usize::try_from(answer.nodes_waiting_count).unwrap_or_default() > answer.nodes_waiting.len();
        let and = if more { ", …" } else { "" };
        let names = answer.nodes_waiting.join(", ");
        let _ = write!(sentence, "; {} nodes have no new one yet: {names}{and}", answer.nodes_waiting_count);
    } else if (*user_certificates, *client_certificates) == (0, 0) {
        sentence.push_str("; every node has been given a new one, so --force locks out none that has received it");
    }
    sentence + &tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_what_stands_in_the_way() {
        let new = CertificateAuthority { issues: true, ..Default::default() };
        let mut answer = GetCaStatusResponse { authorities: vec![new], ..Default::default() };
        assert!(verdict(&answer).contains("one CA"));
        answer.authorities.push(CertificateAuthority { node_certificates: 3, join_tokens: 4, ..Default::default() });
        (answer.nodes_waiting, answer.nodes_waiting_count) = (vec!["n1".to_owned()], 2);
        let said = verdict(&answer);
        for part in ["cannot go yet", "3 node", "2 nodes have no new one yet: n1, …", "4 join tokens"] {
            assert!(said.contains(part), "{said}");
        }
        (answer.nodes_waiting, answer.nodes_waiting_count) = (Vec::new(), 0);
        assert!(verdict(&answer).contains("every node has been given a new one"));
        if let Some(old) = answer.authorities.last_mut() {
            old.client_certificates = 1;
        }
        assert!(!verdict(&answer).contains("every node"));
        answer.can_retire = true;
        assert!(verdict(&answer).starts_with("the old CA can go"));
        assert!(table(&answer).contains("issues"));
    }
}
