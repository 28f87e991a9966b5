//! Seed B's calls by each transport: one caller, one request, one kind of answer, whatever it goes by.

use prost::Message;
use serde_json::{Value, json};

use crate::admin::Headers;
use crate::certificates::Holder;
use crate::enrol::{Machine, PACKAGES, uri_of};
use crate::failure::Failure;
use crate::raw;
use crate::rest::{EXCHANGE, Rest, TOKENS};
use crate::server::{Options, Prism};
use prism_proto::admin::v1::AuditLogEntry;
use prism_proto::cluster::v1 as wire;

/// How a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// By its RPC.
    Grpc,
    /// By its RPC under the older package.
    Alias,
    /// By HTTP and JSON.
    Rest,
}

use Transport::{Alias, Grpc, Rest as Http};

/// All of them.
pub const ALL: [Transport; 3] = [Grpc, Alias, Http];

/// A refusal, whatever it came by: code, reason, fields.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal(pub String, pub String, pub Vec<String>);

/// A token as it was issued.
#[derive(Debug)]
pub struct Created {
    /// Its public id.
    pub id: String,
    /// The token.
    pub token: String,
    /// When it ends, in milliseconds since the epoch.
    pub expires_at: i64,
}

/// A token as it is listed: node, expiry, whether it is expired, status.
pub type Listed = (String, i64, bool, String);

/// A caller of the three RPCs, by each transport.
pub struct World {
    /// The server.
    pub server: Prism,
    /// Name of its cluster.
    pub cluster: String,
}

/// Who calls.
#[derive(Clone)]
pub struct Caller {
    /// What a call by gRPC says.
    pub headers: Headers,
    bearer: Option<String>,
    holder: Option<Holder>,
}

impl Caller {
    /// With an admin key.
    pub fn bearer(token: &str) -> Self {
        Self { headers: Headers::bearer(token), bearer: Some(token.to_owned()), holder: None }
    }

    /// With a client certificate.
    pub fn certificate(holder: Holder) -> Self {
        Self { headers: Headers::none(), bearer: None, holder: Some(holder) }
    }

    /// With nothing.
    pub fn nobody() -> Self {
        Self { headers: Headers::none(), bearer: None, holder: None }
    }
}

fn refusal(failure: &Failure) -> Refusal {
    // As google.rpc.Code spells it.
    let mut code = String::new();
    for (at, letter) in format!("{:?}", failure.code).chars().enumerate() {
        if letter.is_ascii_uppercase() && at > 0 {
            code.push('_');
        }
        code.push(letter.to_ascii_uppercase());
    }
    assert_eq!(failure.domain, "prism.cluster.v1", "{failure:?}");
    Refusal(code, failure.reason.clone(), failure.fields.iter().map(|field| camel(field)).collect())
}

fn camel(name: &str) -> String {
    let mut upper = false;
    name.chars()
        .filter_map(|letter| {
            let shown = if upper { letter.to_ascii_uppercase() } else { letter };
            upper = letter == '_';
            (!upper).then_some(shown)
        })
        .collect()
}

impl World {
    /// A server with one node.
    pub async fn new() -> Self {
        let server = Prism::start(Options::new().config("[limits]\nauth_failures = 1000\n")).await;
        let machine = Machine::new();
        let token = server.admin().create_join_token("").await.join_token;
        let joined = machine.exchange(&server.admin_channel(), &token, "first").await.expect("what was asked for");
        let text = String::from_utf8(joined.certificate_pem.to_vec()).expect("what was asked for");
        let holder = machine.holding(text.as_bytes());
        let cluster = uri_of(&holder);
        let cluster = cluster.trim_start_matches("spiffe://").split('/').next().expect("what was asked for").to_owned();
        Self { server, cluster }
    }

    /// The first administrator.
    pub fn root(&self) -> Caller {
        Caller::bearer(&self.server.admin_token())
    }

    /// A call by gRPC, under one path or the other.
    pub async fn grpc<M: Message + Default>(
        &self,
        by: Transport,
        caller: &Caller,
        method: &str,
        request: &impl Message,
    ) -> Result<M, Refusal> {
        let channel = match &caller.holder {
            Some(holder) => self.server.admin_channel_as(holder),
            None => self.server.admin_channel(),
        };
        let path = format!("/{}.{method}", PACKAGES[usize::from(by == Alias)]);
        let answer = raw::call(&channel, &caller.headers, &path, request.encode_to_vec()).await;
        answer
            .map(|bytes| M::decode(bytes).expect("what was asked for"))
            .map_err(|status| refusal(&Failure::from(&status)))
    }

    /// A call by REST.
    pub async fn rest(
        &self,
        caller: &Caller,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Refusal> {
        let mut rest = Rest::of(&self.server);
        if let Some(token) = &caller.bearer {
            rest = rest.bearer(token);
        }
        if let Some(holder) = &caller.holder {
            rest = rest.holding(holder);
        }
        let answer = match body {
            Some(body) => rest.json(method, path, body).await,
            None => rest.ask(method, path).await,
        };
        let expected = match method {
            "POST" if path == TOKENS => 201,
            "DELETE" => 204,
            _ => 200,
        };
        if answer.status == expected {
            return Ok(answer.body);
        }
        assert!(answer.status >= 400, "{answer:?}");
        let error = &answer.body["error"];
        let fields = answer.fields().into_iter().map(ToOwned::to_owned).collect();
        Err(Refusal(error["code"].as_str().expect("what was asked for").to_owned(), answer.reason().to_owned(), fields))
    }

    /// Issues a token.
    pub async fn create(&self, by: Transport, caller: &Caller, node: &str, ttl: i32) -> Result<Created, Refusal> {
        if by == Http {
            let body = json!({"nodeId": node, "ttlSeconds": ttl});
            let made = self.rest(caller, "POST", TOKENS, Some(&body)).await?;
            assert_eq!(made["joinToken"], made["token"]);
            assert_eq!(made["nodeId"].as_str().unwrap_or_default(), node);
            let expires_at = made["expiresAtEpochMs"].as_i64().expect("what was asked for");
            assert_eq!(made["expiresAt"].as_str().map(epoch_ms), Some(expires_at));
            let text = |name: &str| made[name].as_str().expect("what was asked for").to_owned();
            return Ok(Created { id: text("tokenId"), token: text("joinToken"), expires_at });
        }
        let request = wire::CreateJoinTokenRequest { node_id: node.to_owned(), ttl_seconds: ttl };
        let made: wire::CreateJoinTokenResponse =
            self.grpc(by, caller, "AdminService/CreateJoinToken", &request).await?;
        Ok(Created { id: made.token_id, token: made.join_token, expires_at: made.expires_at_epoch_ms })
    }

    /// Revokes a token.
    pub async fn revoke(&self, by: Transport, caller: &Caller, id: &str) -> Result<(), Refusal> {
        if by == Http {
            let path = format!("{TOKENS}/{}", id.replace(' ', "%20"));
            return self.rest(caller, "DELETE", &path, None).await.map(|body| assert!(body.is_null()));
        }
        let request = wire::RevokeJoinTokenRequest { token_id: id.to_owned() };
        self.grpc::<wire::RevokeJoinTokenResponse>(by, caller, "AdminService/RevokeJoinToken", &request).await.map(drop)
    }

    /// Lists the tokens.
    pub async fn list(&self, by: Transport, caller: &Caller) -> Result<Vec<(String, Listed)>, Refusal> {
        if by == Http {
            let list = self.rest(caller, "GET", &format!("{TOKENS}?page=1&pageSize=1000"), None).await?;
            let data = list["data"].as_array().expect("what was asked for");
            assert_eq!((list["total"].as_u64(), &list["page"]), (Some(data.len() as u64), &json!(1)));
            let text = |token: &Value, name: &str| token[name].as_str().unwrap_or_default().to_owned();
            return Ok(data
                .iter()
                .map(|token| {
                    let (expires_at, expired) = (token["expiresAtEpochMs"].as_i64(), token["expired"].as_bool());
                    let listed = (
                        text(token, "nodeId"),
                        expires_at.expect("what was asked for"),
                        expired.expect("what was asked for"),
                        text(token, "status"),
                    );
                    (text(token, "tokenId"), listed)
                })
                .collect());
        }
        let request = wire::ListJoinTokensRequest {};
        let list: wire::ListJoinTokensResponse = self.grpc(by, caller, "AdminService/ListJoinTokens", &request).await?;
        let listed = |token: wire::JoinTokenInfo| {
            (token.token_id, (token.node_id, token.expires_at_epoch_ms, token.expired, token.status))
        };
        Ok(list.tokens.into_iter().map(listed).collect())
    }

    /// Exchanges a token for the certificate of a new machine.
    pub async fn exchange(&self, by: Transport, token: &str, node: &str) -> Result<Vec<u8>, Refusal> {
        self.exchange_with(by, Machine::new().request(token, node)).await
    }

    /// Exchanges a token with this request, which has a signing request in it.
    pub async fn exchange_with(
        &self,
        by: Transport,
        request: wire::ExchangeJoinTokenRequest,
    ) -> Result<Vec<u8>, Refusal> {
        if by == Http {
            let csr = String::from_utf8(request.csr_pem.to_vec()).expect("text");
            let body = json!({"joinToken": request.join_token, "nodeId": request.node_id, "csrPem": csr});
            let made = self.rest(&Caller::nobody(), "POST", EXCHANGE, Some(&body)).await?;
            assert!(made["pkcs12Base64"].is_null() && made["pkcs12Password"].is_null());
            assert!(
                made["caCertificatePem"].as_str().expect("what was asked for").starts_with("-----BEGIN CERTIFICATE")
            );
            return Ok(made["certificatePem"].as_str().expect("what was asked for").as_bytes().to_vec());
        }
        let made: wire::ExchangeJoinTokenResponse =
            self.grpc(by, &Caller::nobody(), "BootstrapService/ExchangeJoinToken", &request).await?;
        Ok(made.certificate_pem.to_vec())
    }

    /// Entries of an operation, oldest first.
    pub async fn entries(&self, operation: &str) -> Vec<AuditLogEntry> {
        let log = self.server.admin().whole_log().await;
        log.into_iter().filter(|entry| entry.operation == operation).collect()
    }
}

/// Milliseconds since the epoch of a time such as 2026-11-22T10:00:00.123Z.
pub fn epoch_ms(text: &str) -> i64 {
    let time: prost_types::Timestamp = text.parse().expect("what was asked for");
    time.seconds * 1000 + i64::from(time.nanos) / 1_000_000
}

/// A refusal by its parts.
pub fn is(code: &str, reason: &str, fields: &[&str]) -> Refusal {
    Refusal(code.to_owned(), reason.to_owned(), fields.iter().map(|field| (*field).to_owned()).collect())
}
