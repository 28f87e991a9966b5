//! CreateJoinToken, RevokeJoinToken, ListJoinTokens (seed B).

use std::collections::BTreeMap;
use std::time::Duration;

use prism_core::limits::{DEFAULT_JOIN_TOKEN_TTL, MAX_JOIN_TOKEN_TTL};
use prism_core::page::MAX_PAGE_SIZE;
use prism_core::secret::{AuthorityFingerprint, Random};
use prism_core::{Error, NodeId, Result};
use prism_proto::cluster::v1 as wire;
use prism_store::{JoinTokenRow, JoinTokenStatus, Tx};
use prost::Message as _;
use serde_json::{Value, json};

use super::held::require;
use super::node::free_id;
use crate::convert;
use crate::op::{Caller, Done, Op, Place, Scope, Services};

/// What it takes to have a token for a name that a node has or had: the right to put that node out.
const REPLACES: &str = "nodes:manage";

pub(super) fn resource_of(id: &str) -> String {
    super::named("token", id)
}

/// What the audit log shows of a join token.
fn state(token: &JoinTokenRow) -> Value {
    json!({
        "node_id": token.node_id.as_ref().map(NodeId::as_str),
        "expires_at_epoch_ms": token.expires_at,
        "revoked_at_epoch_ms": token.revoked_at,
    })
}

/// `CreateJoinToken`. For the name of a node that is there, or was, it takes the right to revoke that node as well.
#[derive(Clone)]
pub struct CreateJoinToken {
    node_id: Option<NodeId>,
    ttl: Duration,
    authority: AuthorityFingerprint,
    random: Random,
}

impl Op for CreateJoinToken {
    type Request = wire::CreateJoinTokenRequest;
    type Response = wire::CreateJoinTokenResponse;
    const RPC: &'static str = "prism.cluster.v1.AdminService/CreateJoinToken";
    const SCOPE: Scope = Scope::Installation;

    fn resource(_: &Self::Request) -> String {
        "tokens".to_owned()
    }

    fn told(request: &Self::Request) -> BTreeMap<String, String> {
        let bound = Some(&request.node_id).filter(|id| !id.is_empty());
        bound.map(|id| ("node_id".to_owned(), id.clone())).into_iter().collect()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let bound = Some(request.node_id.as_str()).filter(|id| !id.is_empty());
        let node_id = bound.map(|id| free_id("node_id", id, &services.enrolment)).transpose();
        let ttl = ttl(request.ttl_seconds);
        convert::all_of([convert::outcome(&node_id), convert::outcome(&ttl)])?;
        Ok(Self {
            node_id: node_id?,
            ttl: ttl?,
            authority: services.authority.fingerprint(),
            random: services.random().clone(),
        })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        // With such a token the name changes hands: whoever has it is put out.
        let may_replace = match &self.node_id {
            None => false,
            Some(node_id) => {
                let what = format!("there is a node {node_id}, or there was, and the token would take its place");
                let allowed = require(caller, REPLACES, &what);
                if tx.node(node_id.as_str())?.is_some() {
                    allowed.clone()?;
                }
                allowed.is_ok()
            }
        };
        let new = self.random.join_token(self.authority);
        let token = JoinTokenRow {
            id: new.id,
            hash: new.hash,
            node_id: self.node_id,
            may_replace,
            authority: Some(self.authority.to_hex()),
            created_at: tx.now,
            created_by: caller.identity.actor.clone(),
            expires_at: tx.now + self.ttl,
            revoked_at: None,
            redemption: None,
        };
        tx.insert_join_token(&token)?;
        let done = Done::new(wire::CreateJoinTokenResponse {
            token_id: token.id.to_string(),
            join_token: new.token.into_exposed(),
            expires_at_epoch_ms: token.expires_at.0,
        });
        let mut done =
            done.detail("expires_at_epoch_ms", token.expires_at.0).changed(None::<&Value>, Some(&state(&token)));
        done.resource = Some(resource_of(token.id.as_str()));
        done.secret_of = Some(token.id.to_string());
        Ok(done)
    }
}

fn ttl(seconds: i32) -> Result<Duration> {
    let most = MAX_JOIN_TOKEN_TTL.as_secs();
    match u64::try_from(seconds) {
        Ok(0) => Ok(DEFAULT_JOIN_TOKEN_TTL),
        Ok(seconds) if seconds <= most => Ok(Duration::from_secs(seconds)),
        _ => {
            let default = DEFAULT_JOIN_TOKEN_TTL.as_secs();
            Err(Error::invalid("ttl_seconds", format!("must be 1 to {most} s; 0 means {default}")))
        }
    }
}

/// `RevokeJoinToken`; revoking a revoked token changes nothing. What it was redeemed for stays: that is for `RevokeNode`.
#[derive(Clone)]
pub struct RevokeJoinToken {
    id: String,
}

impl Op for RevokeJoinToken {
    type Request = wire::RevokeJoinTokenRequest;
    type Response = wire::RevokeJoinTokenResponse;
    const RPC: &'static str = "prism.cluster.v1.AdminService/RevokeJoinToken";
    const SCOPE: Scope = Scope::Installation;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.token_id)
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        if request.token_id.trim().is_empty() {
            return Err(Error::invalid("token_id", "must be set"));
        }
        Ok(Self { id: request.token_id })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let token = tx.join_token(&self.id)?.ok_or_else(|| Error::not_found(resource_of(&self.id)))?;
        tx.revoke_join_token(&self.id)?;
        let after = tx.join_token(&self.id)?;
        let mut done = Done::new(wire::RevokeJoinTokenResponse {});
        if let Some(redemption) = &token.redemption {
            done = done.detail("redeemed_by", &redemption.node_id);
        }
        Ok(done.changed(Some(&state(&token)), after.as_ref().map(state).as_ref()))
    }
}

/// Most tokens of the list that cannot be redeemed any more.
const MAX_DEAD_LISTED: usize = 1000;
/// Most bytes of the list: seed B gives it no pages, and clients take 4 MiB unless they are told otherwise.
const MAX_LISTED_BYTES: usize = 3_670_016;

/// `ListJoinTokens`, oldest first: all that can be redeemed, and the newest of the others.
#[derive(Clone)]
pub struct ListJoinTokens;

impl Op for ListJoinTokens {
    type Request = wire::ListJoinTokensRequest;
    type Response = wire::ListJoinTokensResponse;
    const RPC: &'static str = "prism.cluster.v1.AdminService/ListJoinTokens";
    const SCOPE: Scope = Scope::Installation;

    fn resource(_: &Self::Request) -> String {
        "tokens".to_owned()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(_: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self)
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let rows = tx.open_join_tokens()?.into_iter().chain(tx.dead_join_tokens(MAX_DEAD_LISTED)?);
        let tokens = within(MAX_LISTED_BYTES, rows.map(|token| info(&token, tx.now)));
        Ok(Done::new(wire::ListJoinTokensResponse { tokens, total_count: total(tx)? }))
    }
}

/// As many of the first as fit, oldest first.
fn within(bytes: usize, tokens: impl Iterator<Item = wire::JoinTokenInfo>) -> Vec<wire::JoinTokenInfo> {
    // Tag and length of each come on top.
    const FRAME: usize = 8;
    let mut left = bytes;
    let fits = |token: &wire::JoinTokenInfo| {
        let rest = left.checked_sub(token.encoded_len() + FRAME);
        left = rest.unwrap_or(left);
        rest.is_some()
    };
    let mut tokens: Vec<_> = tokens.take_while(fits).collect();
    tokens.sort_by(|a, b| (a.created_at_epoch_ms, &a.token_id).cmp(&(b.created_at_epoch_ms, &b.token_id)));
    tokens
}

fn total(tx: &Tx<'_>) -> Result<i32> {
    Ok(i32::try_from(tx.join_token_count()?).unwrap_or(i32::MAX))
}

/// A page of all join tokens, as REST asks for it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct JoinTokenPageRequest {
    /// How many come before it.
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    /// How many are on it.
    #[prost(uint32, tag = "2")]
    pub size: u32,
}

/// `ListJoinTokens` by pages, oldest first: reads no more than its page.
#[derive(Clone)]
pub struct ListJoinTokenPage(JoinTokenPageRequest);

impl Op for ListJoinTokenPage {
    type Request = JoinTokenPageRequest;
    type Response = wire::ListJoinTokensResponse;
    const RPC: &'static str = ListJoinTokens::RPC;
    const SCOPE: Scope = ListJoinTokens::SCOPE;

    fn resource(_: &Self::Request) -> String {
        "tokens".to_owned()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self(request))
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let offset = usize::try_from(self.0.offset).unwrap_or(usize::MAX);
        let rows = tx.join_tokens(offset, (self.0.size as usize).min(MAX_PAGE_SIZE))?;
        let tokens = rows.iter().map(|token| info(token, tx.now)).collect();
        Ok(Done::new(wire::ListJoinTokensResponse { tokens, total_count: total(tx)? }))
    }
}

/// A join token on the wire, at `now`.
pub(super) fn info(token: &JoinTokenRow, now: prism_core::UnixMillis) -> wire::JoinTokenInfo {
    let redemption = token.redemption.as_ref();
    let status = match token.status(now) {
        JoinTokenStatus::Active => "ACTIVE",
        JoinTokenStatus::Redeemed => "REDEEMED",
        JoinTokenStatus::Revoked => "REVOKED",
        JoinTokenStatus::Expired => "EXPIRED",
    };
    wire::JoinTokenInfo {
        token_id: token.id.to_string(),
        node_id: token.node_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        expires_at_epoch_ms: token.expires_at.0,
        expired: token.is_expired(now),
        created_at_epoch_ms: token.created_at.0,
        created_by: token.created_by.clone(),
        redeemed_at_epoch_ms: redemption.map_or(0, |redemption| redemption.at.0),
        redeemed_by: redemption.map(|redemption| redemption.node_id.clone()).unwrap_or_default(),
        status: status.to_owned(),
        revoked_at_epoch_ms: token.revoked_at.map_or(0, |at| at.0),
        key_hash: redemption.map(|redemption| hex::encode(redemption.key_hash)).unwrap_or_default(),
        certificate_fingerprint: redemption.map(|redemption| redemption.certificate.clone()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_fits_what_clients_take_and_keeps_the_first_it_is_given() {
        let token = |number: i64| wire::JoinTokenInfo {
            token_id: format!("{number:016}"),
            created_by: "x".repeat(1000),
            created_at_epoch_ms: number,
            ..wire::JoinTokenInfo::default()
        };
        let listed = within(MAX_LISTED_BYTES, (0..10_000).rev().map(token));
        let encoded = wire::ListJoinTokensResponse { tokens: listed.clone(), total_count: 10_000 }.encoded_len();
        assert!((MAX_LISTED_BYTES - 20_000..MAX_LISTED_BYTES + 100).contains(&encoded), "{encoded}");
        assert!(encoded < 4 * 1024 * 1024);
        assert_eq!(listed.last().map(|token| token.created_at_epoch_ms), Some(9_999));
        assert!(listed.is_sorted_by_key(|token| token.created_at_epoch_ms));
        assert_eq!(within(0, std::iter::once(token(1))), []);
    }

    #[test]
    fn lives_have_their_bounds() {
        assert_eq!(ttl(0).unwrap(), Duration::from_hours(1));
        assert_eq!(ttl(1).unwrap(), Duration::from_secs(1));
        assert_eq!(ttl(604_800).unwrap(), Duration::from_hours(168));
        for bad in [-1, i32::MIN, 604_801, i32::MAX] {
            assert_eq!(ttl(bad).unwrap_err().fields()[0].field, "ttl_seconds");
        }
    }
}
