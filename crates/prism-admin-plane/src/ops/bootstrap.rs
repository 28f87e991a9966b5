//! ExchangeJoinToken, RenewCertificate: how a node gets its certificate, and the next one.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use prism_core::limits::{MAX_CERTIFICATES_OF_KEY, MAX_NODE_CERTIFICATES};
use prism_core::secret::{SecretHash, SecretId, parse_join_token};
use prism_core::session::EndReason;
use prism_core::{Error, Kind, NodeId, Result};
use prism_identity::{CertificateKind, own_identity};
use prism_proto::cluster::v1 as wire;
use prism_rpc::CertificateAuthority;
use prism_rpc::tls::{IssuedCertificate, NodeCertificate, SigningRequest};
use prism_store::{CertificateOrigin, CertificateRow, JoinTokenRow, Redemption, Tx};

use super::join_token::resource_of;
use super::link::certificate_unknown;
use super::node::free_id;
use crate::convert;
use crate::identity::Identity;
use crate::op::{Caller, Done, Op, Place, Scope, Services};

/// In the metadata of a refusal, what its entry warns of. Whoever tries is not warned: see [`Door::exchange`].
///
/// [`Door::exchange`]: crate::door::Door::exchange
pub(crate) const ALARM: &str = "alarm";
/// The alarm of a second key for a token.
const TOKEN_REUSE: &str = "token_reuse";
/// The alarm of a certificate that two keys have renewed.
const RENEWAL_FORK: &str = "renewal_fork";

/// Certificates of one key of a node that are looked at for one that can be given again.
const LOOKED_AT: usize = 64;

/// What is told of a join token that is not one, or not of this cluster, or not with this secret.
pub(crate) fn token_invalid() -> Error {
    Error::unauthenticated("TOKEN_INVALID", "the join token is not valid")
}

/// The audit log's name for a join token that somebody presents.
pub(crate) fn resource_of_presented(token: &str) -> String {
    parse_join_token(token).map_or_else(|| "token".to_owned(), |token| resource_of(token.secret.id.as_str()))
}

/// The audit log's name for what a renewal is about: which node it is, its certificate says.
pub(crate) fn resource_of_renewal(identity: &Identity) -> String {
    identity.node().map_or_else(|| "nodes".to_owned(), |(node_id, _)| super::node::resource_of(node_id))
}

/// Issues certificates of nodes.
#[derive(Clone)]
struct Issuer {
    authority: CertificateAuthority,
    cluster: String,
    life: Duration,
}

impl Issuer {
    fn of(services: &Services) -> Self {
        Self {
            authority: services.authority.clone(),
            cluster: services.store.cluster().to_owned(),
            life: services.enrolment.certificate_ttl,
        }
    }

    /// One signature; nothing is stored.
    fn issue(&self, node_id: &NodeId, key: &SigningRequest) -> Result<IssuedCertificate> {
        let uri = own_identity(&self.cluster, CertificateKind::Node, node_id.as_str())
            .ok_or_else(|| Error::invalid("node_id", "cannot stand in a certificate"))?;
        let wanted = NodeCertificate { uri, node_id: node_id.to_string(), life: self.life };
        self.authority.issue_node(&wanted, key)
    }

    fn ca_pem(&self) -> prost::bytes::Bytes {
        self.authority.certificate_pem().into_bytes().into()
    }
}

/// `ExchangeJoinToken`, with a signing request and a token whose secret was proven a moment ago. What decides is the state in
/// the transaction that also holds certificate, node and entry.
#[derive(Clone)]
pub struct ExchangeJoinToken {
    token: SecretId,
    /// SHA-256 of the secret that was presented.
    secret: SecretHash,
    /// The name that was asked for, as it came.
    named: String,
    /// What the token says comes before what is wrong with these.
    node_id: Result<NodeId>,
    key: Result<SigningRequest>,
    /// Hash of the key that was presented, also of a kind that nothing is issued for.
    key_hash: Option<[u8; 32]>,
    issuer: Issuer,
    /// A certificate that was signed before the transaction, which drops it unless it comes to a new one.
    signed: Option<IssuedCertificate>,
    /// What certificates were revoked for the new one.
    replaced: Replaced,
}

/// Fingerprints of the certificates that an exchange revoked: to be looked at when it is committed.
pub(crate) type Replaced = Arc<OnceLock<Vec<String>>>;

/// What an exchange comes to.
enum Outcome<'a> {
    /// The certificate that the same key has got before.
    Again(CertificateRow),
    /// A new one.
    New { token: JoinTokenRow, node_id: &'a NodeId, key: &'a SigningRequest },
}

#[async_trait]
impl Op for ExchangeJoinToken {
    type Request = wire::ExchangeJoinTokenRequest;
    type Response = wire::ExchangeJoinTokenResponse;
    const RPC: &'static str = "prism.cluster.v1.BootstrapService/ExchangeJoinToken";
    const SCOPE: Scope = Scope::Installation;

    fn resource(request: &Self::Request) -> String {
        resource_of_presented(&request.join_token)
    }

    fn told(request: &Self::Request) -> BTreeMap<String, String> {
        [("node_id".to_owned(), request.node_id.clone())].into()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let presented = parse_join_token(&request.join_token).ok_or_else(token_invalid)?;
        Ok(Self {
            token: presented.secret.id,
            secret: presented.secret.hash(),
            node_id: free_id("node_id", &request.node_id, &services.enrolment),
            key: SigningRequest::parse(&request.csr_pem),
            key_hash: SigningRequest::key_hash_of(&request.csr_pem),
            named: request.node_id,
            issuer: Issuer::of(services),
            signed: None,
            replaced: Replaced::default(),
        })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let (token, node_id, key) = match self.decide(tx)? {
            Outcome::Again(row) => return Ok(describe(Done::new(self.answer(&row)), &row).detail("repeated", true)),
            Outcome::New { token, node_id, key } => (token, node_id, key),
        };
        // Whoever held the name before loses it with the same commit, and the sessions with it; who comes again with the same key
        // is no other.
        let changes_hands =
            tx.node(node_id.as_str())?.is_some() && !tx.is_node_key(node_id.as_str(), key.key_hash())?;
        let sessions =
            if changes_hands { tx.end_sessions_of_node(node_id.as_str(), EndReason::CredentialRevoked)? } else { 0 };
        let replaced = tx.revoke_other_keys_of_node(node_id.as_str(), key.key_hash())?;
        let issued = match &self.signed {
            // The CA may have been rotated since.
            Some(signed) if signed.authority == self.issuer.authority.fingerprint().to_hex() => signed.clone(),
            _ => self.issuer.issue(node_id, key)?,
        };
        let redemption = Redemption {
            at: tx.now,
            node_id: node_id.to_string(),
            key_hash: key.key_hash(),
            certificate: issued.fingerprint.clone(),
        };
        if !tx.redeem_join_token(self.token, &redemption)? {
            return Err(Error::aborted("TOKEN_CHANGED", "the join token changed meanwhile; retry"));
        }
        tx.enrol_node(node_id, self.token.as_str())?;
        let row = row(&issued, node_id, (&token.created_by, self.token.as_str()), key, None, tx);
        tx.insert_certificate(&row)?;
        let done = describe(Done::new(self.answer(&row)), &row)
            .detail("certificates_replaced", replaced.len())
            .detail("sessions_ended", sessions);
        // It is carried out once.
        let _ = self.replaced.set(replaced);
        Ok(done)
    }
}

impl ExchangeJoinToken {
    /// Signs what a new certificate would be, so that the transaction need not. Only for who has proven the token's secret; what
    /// fails here is tried again where its refusal is recorded.
    pub(crate) fn sign(&mut self) {
        if let (Ok(node_id), Ok(key)) = (&self.node_id, &self.key) {
            self.signed = self.issuer.issue(node_id, key).ok();
        }
    }

    /// Where it will say which certificates it revoked.
    pub(crate) fn replaced(&self) -> Replaced {
        Arc::clone(&self.replaced)
    }

    /// What it would come to now; changes nothing.
    pub(crate) fn rehearse(&self, tx: &Tx<'_>) -> Result<()> {
        self.decide(tx).map(drop)
    }

    fn decide(&self, tx: &Tx<'_>) -> Result<Outcome<'_>> {
        let token = tx.join_token(self.token.as_str())?.filter(|token| token.hash.is(&self.secret));
        let token = token.ok_or_else(token_invalid)?;
        self.may_redeem(&token, tx)?;
        convert::all_of([convert::outcome(&self.node_id), convert::outcome(&self.key)])?;
        let (node_id, key) = (self.node_id.as_ref().map_err(Error::clone)?, self.key.as_ref().map_err(Error::clone)?);
        if let Some(redemption) = &token.redemption {
            let row = tx.certificate(&redemption.certificate)?;
            let row = row.ok_or_else(|| Error::internal("a redeemed token without its certificate"))?;
            if row.revoked_at.is_some() {
                let message = "the certificate that this join token was redeemed for is revoked; ask for another token";
                return Err(Error::precondition("CERTIFICATE_REVOKED", message));
            }
            // The first answer may have been lost.
            return Ok(Outcome::Again(row));
        }
        // Also one that is revoked: its name is in bindings and in the log.
        if !token.may_replace && tx.node(node_id.as_str())?.is_some() {
            let bound = if token.node_id.is_some() { ", by who may revoke nodes" } else { "" };
            let message = format!(
                "there is a node {node_id} already, or there was; to take its place, use a token that is bound to it{bound}: prism-admin token create --node {node_id}"
            );
            return Err(Error::precondition("NODE_EXISTS", message));
        }
        not_revoked(node_id, key, tx)?;
        Ok(Outcome::New { token, node_id, key })
    }

    /// The order is the contract's (§9 "exchange").
    fn may_redeem(&self, token: &JoinTokenRow, tx: &Tx<'_>) -> Result<()> {
        let redemption = token.redemption.as_ref();
        let another = match (redemption, self.key_hash) {
            (Some(redemption), Some(presented)) => redemption.key_hash != presented,
            _ => false,
        };
        let alarmed = |error: Error| if another { error.with(ALARM, TOKEN_REUSE) } else { error };
        if token.revoked_at.is_some() {
            let error = Error::precondition("TOKEN_REVOKED", "the join token is revoked; ask for another one");
            return Err(alarmed(error));
        }
        if another {
            let message = "the join token was redeemed by another key; if that was not you, tell your operator";
            return Err(alarmed(Error::precondition("TOKEN_REDEEMED", message)));
        }
        if token.is_expired(tx.now) {
            return Err(Error::precondition("TOKEN_EXPIRED", "the join token has expired; ask for another one"));
        }
        let bound = token.node_id.as_ref().map(NodeId::as_str).or(redemption.map(|done| done.node_id.as_str()));
        // Who gives no name has not asked for another's.
        if !self.named.is_empty() && bound.is_some_and(|bound| bound != self.named) {
            return Err(Error::precondition("NODE_MISMATCH", "the join token is for another node"));
        }
        Ok(())
    }

    fn answer(&self, row: &CertificateRow) -> wire::ExchangeJoinTokenResponse {
        wire::ExchangeJoinTokenResponse {
            pkcs12: prost::bytes::Bytes::new(),
            pkcs12_password: String::new(),
            ca_certificate_pem: self.issuer.ca_pem(),
            ca_links_pem: self.issuer.authority.links_pem().into_bytes().into(),
            cli_token: String::new(),
            certificate_pem: pem_of(row),
            expires_at_epoch_ms: expiry_of(row),
        }
    }
}

/// `RenewCertificate`: a node asks with the certificate it has for the next one, for any key.
#[derive(Clone)]
pub struct RenewCertificate {
    key: SigningRequest,
    issuer: Issuer,
}

impl Op for RenewCertificate {
    type Request = wire::RenewCertificateRequest;
    type Response = wire::RenewCertificateResponse;
    const RPC: &'static str = "prism.cluster.v1.BootstrapService/RenewCertificate";
    const SCOPE: Scope = Scope::Installation;

    fn resource(_: &Self::Request) -> String {
        "nodes".to_owned()
    }

    fn resource_of_call(_: &Self::Request, identity: &Identity) -> String {
        resource_of_renewal(identity)
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        Ok(Self { key: SigningRequest::parse(&request.csr_pem)?, issuer: Issuer::of(services) })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let (name, fingerprint) =
            caller.identity.node().ok_or_else(|| Error::internal("a renewal by somebody who is not a node"))?;
        let node_id = NodeId::parse("node_id", name)?;
        let node = tx.node(node_id.as_str())?;
        let node = node.ok_or_else(|| {
            Error::precondition("NODE_UNKNOWN", format!("there is no node {node_id}; join again with a token"))
        })?;
        if node.revoked_at.is_some() {
            return Err(Error::precondition("NODE_REVOKED", format!("node {node_id} is revoked")));
        }
        let current = tx.certificate(fingerprint)?.and_then(|row| row.origin).filter(|origin| origin.node_id == name);
        let current = current.ok_or_else(certificate_unknown)?;
        not_revoked(&node_id, &self.key, tx)?;
        tx.node_seen(node_id.as_str())?;
        if let Some(earlier) = self.earlier(&node_id, Some(fingerprint), tx)? {
            return Ok(self.done(&earlier).detail("repeated", true));
        }
        // Places are counted by key, so that who has made keys of his own leaves those of the one that is in place.
        let (own, hash) = (current.key_hash, self.key.key_hash());
        if tx.live_certificates_of_key(node_id.as_str(), hash)? >= MAX_CERTIFICATES_OF_KEY {
            if let Some(latest) = self.earlier(&node_id, None, tx)? {
                return Ok(self.done(&latest).detail("repeated", true));
            }
        } else if own != hash && tx.live_node_certificates(node_id.as_str())? >= MAX_NODE_CERTIFICATES {
            let message = format!(
                "node {node_id} has {MAX_NODE_CERTIFICATES} certificates that are valid, the most that may be for a key that is not the \
                 one of the certificate; use one of them"
            );
            return Err(Error::new(Kind::ResourceExhausted, "TOO_MANY_NODE_CERTIFICATES", message));
        }
        let forked = tx.is_renewed_for_another_key(node_id.as_str(), fingerprint, hash)?;
        let issued = self.issuer.issue(&node_id, &self.key)?;
        let stands_on = (caller.identity.actor.as_str(), current.token_id.as_str());
        let row = row(&issued, &node_id, stands_on, &self.key, Some(fingerprint.to_owned()), tx);
        tx.insert_certificate(&row)?;
        let done = self.done(&row);
        // Two who hold one key: which of them is the node, an operator has to find out.
        Ok(if forked { done.detail(ALARM, RENEWAL_FORK) } else { done })
    }
}

impl RenewCertificate {
    /// What the same certificate (`None` = any of the node) was renewed for with the same key, if more than half of its life is
    /// left: the answer may have been lost.
    fn earlier(&self, node_id: &NodeId, renewed_from: Option<&str>, tx: &Tx<'_>) -> Result<Option<CertificateRow>> {
        let hash = self.key.key_hash();
        let issuing = self.issuer.authority.fingerprint().to_hex();
        let rows = tx.certificates_of_key(node_id.as_str(), hash, LOOKED_AT)?;
        Ok(rows.into_iter().find(|row| {
            let from = row.origin.as_ref().and_then(|origin| origin.renewed_from.as_deref());
            let same = renewed_from.is_none_or(|wanted| from == Some(wanted));
            let fresh = row.expires_at.is_some_and(|end| tx.now + end.since(row.created_at) / 2 < end);
            // One of the old CA is not what a node needs that asks after a rotation.
            let current = row.authority.as_ref().is_none_or(|authority| *authority == issuing);
            same && fresh && current && row.revoked_at.is_none()
        }))
    }

    fn done(&self, row: &CertificateRow) -> Done<wire::RenewCertificateResponse> {
        let done = describe(
            Done::new(wire::RenewCertificateResponse {
                certificate_pem: pem_of(row),
                ca_certificate_pem: self.issuer.ca_pem(),
                expires_at_epoch_ms: expiry_of(row),
            }),
            row,
        );
        let from = row.origin.as_ref().and_then(|origin| origin.renewed_from.clone()).unwrap_or_default();
        done.detail("renewed_from", from)
    }
}

/// A key whose certificate was revoked may be in other hands; no other certificate makes it good.
fn not_revoked(node_id: &NodeId, key: &SigningRequest, tx: &Tx<'_>) -> Result<()> {
    if !tx.is_node_key_revoked(node_id.as_str(), key.key_hash())? {
        return Ok(());
    }
    let message =
        format!("a certificate of node {node_id} for this key is revoked, and the key with it; make a new key");
    Err(Error::precondition("KEY_REVOKED", message))
}

fn row(
    issued: &IssuedCertificate,
    node_id: &NodeId,
    (created_by, token_id): (&str, &str),
    key: &SigningRequest,
    renewed_from: Option<String>,
    tx: &Tx<'_>,
) -> CertificateRow {
    CertificateRow {
        fingerprint: issued.fingerprint.clone(),
        serial: Some(issued.serial.clone()),
        kind: convert::NODE_CERTIFICATE.to_owned(),
        name: node_id.to_string(),
        uri: issued.uri.clone(),
        created_at: tx.now,
        created_by: created_by.to_owned(),
        expires_at: Some(issued.expires_at),
        revoked_at: None,
        authority: Some(issued.authority.clone()),
        origin: Some(CertificateOrigin {
            pem: issued.pem.clone(),
            key_hash: key.key_hash(),
            node_id: node_id.to_string(),
            token_id: token_id.to_owned(),
            renewed_from,
        }),
    }
}

fn describe<R>(done: Done<R>, row: &CertificateRow) -> Done<R> {
    done.detail("node_id", &row.name)
        .detail("serial_number", row.serial.as_deref().unwrap_or_default())
        .detail("fingerprint", &row.fingerprint)
        .detail("expires_at_epoch_ms", expiry_of(row))
}

fn pem_of(row: &CertificateRow) -> prost::bytes::Bytes {
    row.origin.as_ref().map(|origin| origin.pem.clone().into_bytes().into()).unwrap_or_default()
}

fn expiry_of(row: &CertificateRow) -> i64 {
    row.expires_at.map_or(0, |at| at.0)
}

#[cfg(test)]
mod tests;
