//! `prism join`: a machine becomes a node of a cluster.
//!
//! Key first, call after: whatever is lost on the way, a repeated call shows the same key and gets the same certificate.

mod call;
pub mod identity;
mod trust;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use prism_core::secret::{JOIN_TOKEN_LENGTH, parse_join_token};
use prism_core::{Clock, Error, NodeId};
use prism_proto::cluster::v1::{ExchangeJoinTokenRequest, ExchangeJoinTokenResponse};
use prism_proto::text::safe;
use prism_rpc::tls::NodeKey;
use rustls::pki_types::CertificateDer;

use crate::Failure;
use crate::cli::JoinArgs;
use crate::data_dir::DataDir;
pub use call::Controller;
use call::Unanswered;
use identity::{Identity, NodeFiles, Proven};
use trust::ServerTrust;

/// Joins, and says on standard output what came of it.
pub fn join(args: &JoinArgs) -> Result<(), Failure> {
    let token = read_token(&args.token)?;
    let presented = parse_join_token(&token).ok_or_else(|| Failure::Usage(not_a_token(&token)))?;
    let node_id = node_id(args.node_id.as_deref())?;
    let controllers: Vec<Controller> = args
        .controllers
        .iter()
        .map(|address| Controller::parse(address).map_err(Failure::Usage))
        .collect::<Result<_, _>>()?;
    let mut trust = ServerTrust::new(presented.authority, args.ca.as_deref()).map_err(Failure::Usage)?;
    let directory = DataDir::open(&data_dir(args.data_dir.as_deref())).map_err(Failure::Start)?;
    if directory.path().join(prism_rpc::tls::AUTHORITY_KEY_FILE).exists() {
        let shown = directory.path().display();
        return Err(Failure::Usage(format!("{shown} is the data directory of a controller; use another --data-dir")));
    }
    let files = NodeFiles::open(directory.path()).map_err(Failure::Start)?;
    if let Some(known) = files.read().map_err(Failure::Start)? {
        let authorities = fits(&known, &node_id, directory.path())?;
        if !authorities.iter().any(|ca| identity::fingerprint_of(ca) == presented.authority) {
            // The token of another cluster, or of this one with a new CA: then a controller can prove it.
            trust = trust.also(&authorities).map_err(Failure::Start)?;
        }
        if known.token_id == presented.secret.id.as_str() && files.is_valid(Clock::system().now()) {
            println!("this machine is the node {} already; it joined with this token", known.node_id);
            return Ok(());
        }
    }
    let mut key = files.key().map_err(Failure::Start)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Start(format!("no threads: {error}")))?;
    let exchange = |key: &NodeKey| {
        let request = request(&token, &node_id, key)?;
        runtime.block_on(ask(&controllers, &trust, request))
    };
    let mut answer = exchange(&key)?;
    if answer.is_err() {
        println!("the key of this machine was revoked; it makes a new one");
        key = files.new_key().map_err(Failure::Start)?;
        answer = exchange(&key)?;
    }
    let answer = answer.map_err(|KeyRevoked(message)| Failure::Start(message))?;
    let proven = Proven::check(&answer, &key, &node_id, presented.authority, Clock::system().now());
    let proven =
        proven.map_err(|why| Failure::Start(format!("the controller's answer is not used: {}", safe(&why))))?;
    let identity = Identity {
        node_id: node_id.to_string(),
        cluster: proven.cluster.clone(),
        token_id: presented.secret.id.to_string(),
        controllers: args.controllers.clone(),
    };
    files.write(&identity, &proven).map_err(Failure::Start)?;
    println!("joined {} as node {node_id}; its identity is in {}", safe(&identity.cluster), files.folder().display());
    println!("next: prism serve --role data --data-dir {}", directory.path().display());
    Ok(())
}

/// A refusal of the key that was shown.
struct KeyRevoked(String);

fn request(token: &str, node_id: &NodeId, key: &NodeKey) -> Result<ExchangeJoinTokenRequest, Failure> {
    let csr = key.signing_request().map_err(|error| Failure::Start(error.message().to_owned()))?;
    Ok(ExchangeJoinTokenRequest {
        join_token: token.to_owned(),
        node_id: node_id.to_string(),
        csr_pem: csr.into_bytes().into(),
    })
}

/// The first controller that answers decides; the others are for when one does not.
async fn ask(
    controllers: &[Controller],
    trust: &ServerTrust,
    request: ExchangeJoinTokenRequest,
) -> Result<Result<ExchangeJoinTokenResponse, KeyRevoked>, Failure> {
    let mut unanswered = Vec::new();
    for controller in controllers {
        match controller.exchange(trust, request.clone()).await {
            Ok(answer) => return Ok(Ok(answer)),
            Err(Unanswered::KeyRevoked(message)) => return Ok(Err(KeyRevoked(message))),
            Err(Unanswered::Refused(message)) => return Err(Failure::Start(message)),
            Err(Unanswered::Failed(message)) => unanswered.push(message),
        }
    }
    unanswered.push("nothing is lost: repeat the same command, and it goes on with the same key".to_owned());
    Err(Failure::Start(unanswered.join("\n")))
}

fn read_token(given: &str) -> Result<String, Failure> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    let mut text = String::new();
    // Nothing longer is a token.
    let most = 2 * JOIN_TOKEN_LENGTH as u64;
    let read = std::io::stdin().lock().take(most).read_to_string(&mut text);
    read.map_err(|error| Failure::Usage(format!("the token cannot be read from standard input: {error}")))?;
    Ok(text.trim().to_owned())
}

/// What is wrong with a token; it is not repeated.
fn not_a_token(text: &str) -> String {
    let hint = "copy the whole line that prism-admin token create printed";
    match text.len() {
        0 => format!("the join token is empty; {hint}"),
        JOIN_TOKEN_LENGTH => format!("this is not a join token, or a character of it is wrong; {hint}"),
        length => {
            format!("this is not a join token: it has {length} characters instead of {JOIN_TOKEN_LENGTH}; {hint}")
        }
    }
}

fn node_id(given: Option<&str>) -> Result<NodeId, Failure> {
    let host = gethostname::gethostname().to_string_lossy().to_ascii_lowercase();
    let id = given.unwrap_or_else(|| host.split('.').next().unwrap_or_default());
    NodeId::parse("--node-id", id).map_err(|error: Error| {
        let named = if given.is_some() { "" } else { "; name the node with --node-id: this host's name cannot be one" };
        Failure::Usage(format!("{}{named}", error.message()))
    })
}

fn data_dir(given: Option<&Path>) -> PathBuf {
    let from_environment = || std::env::var_os("PRISM_DATA_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    given.map(Path::to_owned).or_else(from_environment).unwrap_or_else(|| "./prism-data".into())
}

/// A data directory holds one identity, and it does not become another's. Gives the CAs of its cluster as it knows them.
fn fits(known: &Identity, node_id: &NodeId, folder: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let shown = folder.display();
    if known.node_id != node_id.as_str() {
        return Err(Failure::Usage(format!(
            "{shown} holds the identity of node {}, which {node_id} would replace; use another --data-dir, or remove {shown}/node",
            known.node_id
        )));
    }
    identity::authorities_of(&folder.join(identity::FOLDER).join(identity::CA)).map_err(Failure::Start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_token_is_not_repeated() {
        for text in ["", "prj_cut", &"prj_".repeat(100), &"x".repeat(JOIN_TOKEN_LENGTH)] {
            let said = not_a_token(text);
            assert!(said.contains("copy the whole line"), "{said}");
            assert!(text.is_empty() || !said.contains(text), "{said}");
        }
    }

    #[test]
    fn a_name_is_taken_as_it_is_given() {
        assert!(node_id(Some("node-1")).is_ok());
        let Err(Failure::Usage(said)) = node_id(Some("Node.1")) else { panic!("refused") };
        assert!(said.starts_with("--node-id: "), "{said}");
    }
}
