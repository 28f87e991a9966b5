//! The calls themselves: JSON in, the operation's own request through the door, JSON out.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Request, Response, StatusCode};
use prism_core::{Error, Result, UnixMillis};
use prism_proto::cluster::v1 as wire;
use prism_rpc::convert::timestamp;
use prism_rpc::{Peer, RequestId};
use serde_json::{Value, json};
use tonic::body::Body;

use super::body::{Fields, NumberedPage, in_json_names, life, unescaped};
use super::{Problem, answer, refusal};
use crate::convert::{all_of, outcome};
use crate::door::{Call, Door};
use crate::identity::Identity;
use crate::op::Op;
use crate::ops::join_token::{CreateJoinToken, JoinTokenPageRequest, ListJoinTokenPage, RevokeJoinToken};
use crate::record::Recorded;

/// What the transport knows of a call before its body is read.
struct Caller {
    identity: Arc<Identity>,
    call: Call,
    recorded: Option<Recorded>,
}

impl Caller {
    fn of(request: &Request<Body>) -> Result<Self> {
        let extensions = request.extensions();
        let Some(identity) = extensions.get::<Arc<Identity>>().cloned() else {
            // Only a service that was put in front of the door without authentication could get here.
            return Err(Error::internal("a call that nobody authenticated"));
        };
        let call = Call {
            request_id: extensions.get::<RequestId>().map(|id| id.as_str().to_owned()).unwrap_or_default(),
            source_address: extensions.get::<Peer>().map(|peer| peer.address.to_string()).unwrap_or_default(),
            idempotency_keys: values(request.headers(), "x-idempotency-key"),
        };
        Ok(Self { identity, call, recorded: extensions.get::<Recorded>().cloned() })
    }

    /// From here on the door owns the audit entry.
    fn take_over(&self) {
        if let Some(recorded) = &self.recorded {
            recorded.take_over();
        }
    }

    /// Calls the operation. A request that could not be read is the caller's problem only if they may call at all: to others the
    /// door says that they may not, whatever they sent. `refused` is a request that no operation carries out.
    async fn call<O: Op>(
        self,
        door: &Arc<Door>,
        request: Result<O::Request>,
        refused: O::Request,
        shown: impl FnOnce(O::Response) -> Response<Body>,
    ) -> Response<Body> {
        let request = match request {
            Ok(request) => request,
            Err(problem) if self.may::<O>(door) => return Problem(problem).response(),
            Err(_) => refused,
        };
        self.take_over();
        let id = self.call.request_id.clone();
        match door.call::<O>(self.identity, self.call, request).await {
            Ok(response) => shown(response),
            Err(error) => refusal(&in_json_names(&error), &id),
        }
    }

    fn may<O: Op>(&self, door: &Door) -> bool {
        let rule = door.table().rule(&format!("/{}", O::RPC));
        let grants = door.services.store.standing(&self.identity.credential).unwrap_or_default();
        let reach = rule.and_then(|rule| self.identity.reach(&grants, &rule.permission).ok());
        reach.is_some_and(|reach| O::SCOPE.allows(&reach, None))
    }
}

/// All values of a header; one that is not ASCII counts as present and unreadable.
fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("\u{fffd}").to_owned()).collect()
}

/// `POST /api/v1/admin/tokens`.
pub(super) async fn create_token(door: &Arc<Door>, request: Request<Body>) -> Response<Body> {
    let caller = match Caller::of(&request) {
        Ok(caller) => caller,
        Err(error) => return refusal(&error, ""),
    };
    let read = Fields::read_if_any(request).await.and_then(create_request);
    let node_id = read.as_ref().map(|request| request.node_id.clone()).unwrap_or_default();
    let refused = wire::CreateJoinTokenRequest { node_id: String::new(), ttl_seconds: -1 };
    let created = caller.call::<CreateJoinToken>(door, read, refused, |made| {
        let body = json!({
            "tokenId": made.token_id,
            "joinToken": made.join_token,
            "token": made.join_token,
            "nodeId": absent_if_empty(node_id),
            "expiresAt": rfc3339(made.expires_at_epoch_ms),
            "expiresAtEpochMs": made.expires_at_epoch_ms,
        });
        answer(StatusCode::CREATED, &body)
    });
    created.await
}

fn create_request(mut fields: Fields) -> Result<wire::CreateJoinTokenRequest> {
    let both = fields.has("ttl") && fields.has("ttlSeconds");
    let (node_id, seconds, text) = (fields.text("nodeId"), fields.number("ttlSeconds"), fields.text("ttl"));
    let ttl = text.and_then(|text| text.as_deref().map(life).transpose());
    let clash = if both { Err(Error::invalid("ttl", "must not be given together with ttlSeconds")) } else { Ok(()) };
    let end = fields.end("nodeId, ttlSeconds and ttl");
    all_of([outcome(&node_id), outcome(&seconds), outcome(&ttl), clash, end])?;
    Ok(wire::CreateJoinTokenRequest {
        node_id: node_id?.unwrap_or_default(),
        ttl_seconds: ttl?.or(seconds?).unwrap_or_default(),
    })
}

/// `GET /api/v1/admin/tokens`.
pub(super) async fn list_tokens(door: &Arc<Door>, request: Request<Body>) -> Response<Body> {
    let caller = match Caller::of(&request) {
        Ok(caller) => caller,
        Err(error) => return refusal(&error, ""),
    };
    let page = NumberedPage::parse(request.uri().query().unwrap_or_default());
    let shown = page.clone().unwrap_or(NumberedPage { number: 1, size: 1 });
    let request = page.map(|page| JoinTokenPageRequest { offset: page.offset(), size: page.size as u32 });
    let listed = caller.call::<ListJoinTokenPage>(door, request, JoinTokenPageRequest::default(), |listed| {
        let data: Vec<Value> = listed.tokens.iter().map(info).collect();
        let (page, size, total) = (shown.number, shown.size, listed.total_count);
        answer(StatusCode::OK, &json!({"data": data, "page": page, "pageSize": size, "total": total}))
    });
    listed.await
}

fn info(token: &wire::JoinTokenInfo) -> Value {
    let redeemed_at = (token.redeemed_at_epoch_ms != 0).then(|| rfc3339(token.redeemed_at_epoch_ms));
    json!({
        "tokenId": token.token_id,
        "nodeId": absent_if_empty(token.node_id.clone()),
        "expiresAt": rfc3339(token.expires_at_epoch_ms),
        "expiresAtEpochMs": token.expires_at_epoch_ms,
        "expired": token.expired,
        "status": token.status,
        "createdAt": rfc3339(token.created_at_epoch_ms),
        "createdBy": token.created_by,
        "redeemedAt": redeemed_at,
        "redeemedBy": absent_if_empty(token.redeemed_by.clone()),
    })
}

/// `DELETE /api/v1/admin/tokens/{id}`.
pub(super) async fn revoke_token(door: &Arc<Door>, request: Request<Body>, id: &str) -> Response<Body> {
    let caller = match Caller::of(&request) {
        Ok(caller) => caller,
        Err(error) => return refusal(&error, ""),
    };
    let query = match request.uri().query() {
        None | Some("") => Ok(()),
        Some(_) => Err(Error::invalid("query", "must not be there: this request has no parameters")),
    };
    let request = query.and_then(|()| unescaped(id)).map(|token_id| wire::RevokeJoinTokenRequest { token_id });
    let refused = wire::RevokeJoinTokenRequest { token_id: String::new() };
    let revoked = caller.call::<RevokeJoinToken>(door, request, refused, |wire::RevokeJoinTokenResponse {}| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    });
    revoked.await
}

/// `POST /api/v1/bootstrap/exchange`.
pub(super) async fn exchange(door: &Arc<Door>, request: Request<Body>) -> Response<Body> {
    let caller = match Caller::of(&request) {
        Ok(caller) => caller,
        Err(error) => return refusal(&error, ""),
    };
    let request = match Fields::read(request).await.and_then(exchange_request) {
        Ok(request) => request,
        Err(problem) => return Problem(problem).response(),
    };
    caller.take_over();
    let id = caller.call.request_id.clone();
    match door.exchange(caller.identity, caller.call, request).await {
        Ok(made) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let body = json!({
                "certificatePem": text(&made.certificate_pem),
                "caCertificatePem": text(&made.ca_certificate_pem),
                "expiresAtEpochMs": made.expires_at_epoch_ms,
                "pkcs12Base64": absent_if_empty(STANDARD.encode(&made.pkcs12)),
                "pkcs12Password": absent_if_empty(made.pkcs12_password),
            });
            answer(StatusCode::OK, &body)
        }
        Err(error) => refusal(&in_json_names(&error), &id),
    }
}

fn exchange_request(mut fields: Fields) -> Result<wire::ExchangeJoinTokenRequest> {
    let (token, node_id, csr) = (fields.text("joinToken"), fields.text("nodeId"), fields.text("csrPem"));
    let end = fields.end("joinToken, nodeId and csrPem");
    all_of([outcome(&token), outcome(&node_id), outcome(&csr), end])?;
    Ok(wire::ExchangeJoinTokenRequest {
        join_token: token?.unwrap_or_default(),
        node_id: node_id?.unwrap_or_default(),
        csr_pem: csr?.unwrap_or_default().into_bytes().into(),
    })
}

fn absent_if_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn rfc3339(epoch_ms: i64) -> String {
    timestamp(UnixMillis(epoch_ms)).to_string()
}
