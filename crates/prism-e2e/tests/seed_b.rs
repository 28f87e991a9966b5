//! Seed B, read from top to bottom: every sentence is tried by gRPC, by the older package path and by REST.

use prism_e2e::certificates::{Authority, Holder, uri};
use prism_e2e::enrol::{Machine, PACKAGES};
use prism_e2e::rest::{EXCHANGE, Rest, TOKENS};
use prism_e2e::wait::until;
use prism_e2e::{Admin, Failure, Headers, Options, Prism, keys, raw};
use prism_proto::admin::v1::AuditLogEntry;
use prism_proto::cluster::v1 as wire;
use prost::Message;
use serde_json::{Value, json};

/// How a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Grpc,
    Alias,
    Rest,
}

use Transport::{Alias, Grpc, Rest as Http};

const ALL: [Transport; 3] = [Grpc, Alias, Http];

/// A refusal, whatever it came by: code, reason, fields.
#[derive(Debug, PartialEq, Eq)]
struct Refusal(String, String, Vec<String>);

/// A token as it was issued.
#[derive(Debug)]
struct Created {
    id: String,
    token: String,
    expires_at: i64,
}

/// A token as it is listed: node, expiry, whether it is expired, status.
type Listed = (String, i64, bool, String);

/// A caller of the three RPCs, by each transport.
struct World {
    server: Prism,
    cluster: String,
}

/// Who calls.
#[derive(Clone)]
struct Caller {
    headers: Headers,
    bearer: Option<String>,
    holder: Option<Holder>,
}

impl Caller {
    fn bearer(token: &str) -> Self {
        Self { headers: Headers::bearer(token), bearer: Some(token.to_owned()), holder: None }
    }

    fn certificate(holder: Holder) -> Self {
        Self { headers: Headers::none(), bearer: None, holder: Some(holder) }
    }

    fn nobody() -> Self {
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
    async fn new() -> Self {
        let server = Prism::start(Options::new().config("[limits]\nauth_failures = 1000\n")).await;
        let machine = Machine::new();
        let token = server.admin().create_join_token("").await.join_token;
        let joined = machine.exchange(&server.admin_channel(), &token, "first").await.unwrap();
        let text = String::from_utf8(joined.certificate_pem.to_vec()).unwrap();
        let holder = machine.holding(text.as_bytes());
        let cluster = prism_e2e::enrol::uri_of(&holder);
        let cluster = cluster.trim_start_matches("spiffe://").split('/').next().unwrap().to_owned();
        Self { server, cluster }
    }

    fn root(&self) -> Caller {
        Caller::bearer(&self.server.admin_token())
    }

    async fn grpc<M: Message + Default>(
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
        answer.map(|bytes| M::decode(bytes).unwrap()).map_err(|status| refusal(&Failure::from(&status)))
    }

    async fn rest(&self, caller: &Caller, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Refusal> {
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
        Err(Refusal(error["code"].as_str().unwrap().to_owned(), answer.reason().to_owned(), fields))
    }

    async fn create(&self, by: Transport, caller: &Caller, node: &str, ttl: i32) -> Result<Created, Refusal> {
        if by == Http {
            let body = json!({"nodeId": node, "ttlSeconds": ttl});
            let made = self.rest(caller, "POST", TOKENS, Some(&body)).await?;
            assert_eq!(made["joinToken"], made["token"]);
            assert_eq!(made["nodeId"].as_str().unwrap_or_default(), node);
            let expires_at = made["expiresAtEpochMs"].as_i64().unwrap();
            assert_eq!(made["expiresAt"].as_str().map(epoch_ms), Some(expires_at));
            let text = |name: &str| made[name].as_str().unwrap().to_owned();
            return Ok(Created { id: text("tokenId"), token: text("joinToken"), expires_at });
        }
        let request = wire::CreateJoinTokenRequest { node_id: node.to_owned(), ttl_seconds: ttl };
        let made: wire::CreateJoinTokenResponse =
            self.grpc(by, caller, "AdminService/CreateJoinToken", &request).await?;
        Ok(Created { id: made.token_id, token: made.join_token, expires_at: made.expires_at_epoch_ms })
    }

    async fn revoke(&self, by: Transport, caller: &Caller, id: &str) -> Result<(), Refusal> {
        if by == Http {
            let path = format!("{TOKENS}/{}", id.replace(' ', "%20"));
            return self.rest(caller, "DELETE", &path, None).await.map(|body| assert!(body.is_null()));
        }
        let request = wire::RevokeJoinTokenRequest { token_id: id.to_owned() };
        self.grpc::<wire::RevokeJoinTokenResponse>(by, caller, "AdminService/RevokeJoinToken", &request).await.map(drop)
    }

    async fn list(&self, by: Transport, caller: &Caller) -> Result<Vec<(String, Listed)>, Refusal> {
        if by == Http {
            let list = self.rest(caller, "GET", &format!("{TOKENS}?page=1&pageSize=1000"), None).await?;
            let data = list["data"].as_array().unwrap();
            assert_eq!((list["total"].as_u64(), &list["page"]), (Some(data.len() as u64), &json!(1)));
            let text = |token: &Value, name: &str| token[name].as_str().unwrap_or_default().to_owned();
            return Ok(data
                .iter()
                .map(|token| {
                    let (expires_at, expired) = (token["expiresAtEpochMs"].as_i64(), token["expired"].as_bool());
                    let listed = (text(token, "nodeId"), expires_at.unwrap(), expired.unwrap(), text(token, "status"));
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

    async fn exchange(&self, by: Transport, token: &str, node: &str) -> Result<Vec<u8>, Refusal> {
        let request = Machine::new().request(token, node);
        if by == Http {
            let csr = String::from_utf8(request.csr_pem.to_vec()).unwrap();
            let body = json!({"joinToken": token, "nodeId": node, "csrPem": csr});
            let made = self.rest(&Caller::nobody(), "POST", EXCHANGE, Some(&body)).await?;
            assert!(made["pkcs12Base64"].is_null() && made["pkcs12Password"].is_null());
            assert!(made["caCertificatePem"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE"));
            return Ok(made["certificatePem"].as_str().unwrap().as_bytes().to_vec());
        }
        let made: wire::ExchangeJoinTokenResponse =
            self.grpc(by, &Caller::nobody(), "BootstrapService/ExchangeJoinToken", &request).await?;
        Ok(made.certificate_pem.to_vec())
    }

    async fn entries(&self, operation: &str) -> Vec<AuditLogEntry> {
        let log = self.server.admin().whole_log().await;
        log.into_iter().filter(|entry| entry.operation == operation).collect()
    }
}

/// Milliseconds since the epoch of a time such as 2026-11-22T10:00:00.123Z.
fn epoch_ms(text: &str) -> i64 {
    let time: prost_types::Timestamp = text.parse().unwrap();
    time.seconds * 1000 + i64::from(time.nanos) / 1_000_000
}

fn is(code: &str, reason: &str, fields: &[&str]) -> Refusal {
    Refusal(code.to_owned(), reason.to_owned(), fields.iter().map(|field| (*field).to_owned()).collect())
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_millis() as i64
}

/// "Issue a new join token … The raw join_token string is returned exactly once — the controller persists only its hash. Pair it
/// with the node_id field when you want to restrict bootstrap to a specific daemon."
#[tokio::test]
async fn a_token_is_issued_listed_and_revoked() {
    let world = World::new().await;
    let root = world.root();
    for (by, number) in ALL.into_iter().zip(1..) {
        let node = format!("n{number}");
        // "optional: lifetime; controller falls back to default"
        let before = now_ms();
        let default = world.create(by, &root, "", 0).await.unwrap();
        let life = default.expires_at - before;
        assert!((3_600_000..3_660_000).contains(&life), "{by:?}: {life}");
        let bound = world.create(by, &root, &node, 604_800).await.unwrap();
        assert_eq!(keys::id(&bound.token), bound.id);
        // "optional: bind token to a specific node id"
        let refused = world.exchange(by, &bound.token, "other").await.unwrap_err();
        assert_eq!(refused, is("FAILED_PRECONDITION", "NODE_MISMATCH", &[]), "{by:?}");
        world.exchange(by, &bound.token, &node).await.unwrap();

        // "List currently tracked tokens", seen the same from everywhere. "The raw token value is unrecoverable".
        for seen_by in ALL {
            let listed = world.list(seen_by, &root).await.unwrap();
            let of = |id: &str| listed.iter().find(|(known, _)| known == id).map(|(_, listed)| listed.clone()).unwrap();
            assert_eq!(of(&bound.id), (node.clone(), bound.expires_at, false, "REDEEMED".to_owned()), "{seen_by:?}");
            assert_eq!(of(&default.id), (String::new(), default.expires_at, false, "ACTIVE".to_owned()));
            assert!(!format!("{listed:?}").contains(keys::secret(&bound.token)));
        }

        // "Revoke a token by id (not by raw value)."
        let unknown = world.revoke(by, &root, &default.token).await.unwrap_err();
        assert_eq!(unknown, is("NOT_FOUND", "NOT_FOUND", &[]), "{by:?}");
        world.revoke(by, &root, &default.id).await.unwrap();
        world.revoke(by, &root, &default.id).await.unwrap();
        // "After revocation the controller rejects any BootstrapService.ExchangeJoinToken call presenting that token with
        // FAILED_PRECONDITION."
        for exchanged_by in ALL {
            let refused = world.exchange(exchanged_by, &default.token, &node).await.unwrap_err();
            assert_eq!(refused, is("FAILED_PRECONDITION", "TOKEN_REVOKED", &[]), "{exchanged_by:?}");
        }
        // "bool expired"
        let short = world.create(by, &root, "", 1).await.unwrap();
        let gone = until("the token expires", async || {
            let listed = world.list(by, &root).await.unwrap();
            let (_, listed) = listed.into_iter().find(|(id, _)| *id == short.id).unwrap();
            listed.2.then_some(listed.3)
        });
        assert_eq!(gone.await, "EXPIRED");
        let refused = world.exchange(by, &short.token, &node).await.unwrap_err();
        assert_eq!(refused, is("FAILED_PRECONDITION", "TOKEN_EXPIRED", &[]), "{by:?}");
    }
    prism_e2e::audit::verify(&world.server.admin().whole_log().await);
}

/// "Status mapping", row by row, by every transport; and each call leaves the same entry.
#[tokio::test]
async fn the_status_table_holds_row_by_row() {
    let world = World::new().await;
    let root = world.root();
    let viewer = Caller::bearer(&world.server.admin().create_api_key("viewer", None, None).await.token);
    for by in ALL {
        let invalid = |fields: &[&str]| is("INVALID_ARGUMENT", "INVALID_ARGUMENT", fields);
        for (node, ttl, fields) in [
            ("", -1, &["ttlSeconds"][..]),
            ("", 604_801, &["ttlSeconds"]),
            ("", i32::MIN, &["ttlSeconds"]),
            ("A", 0, &["nodeId"]),
            ("a,b", 0, &["nodeId"]),
            ("a.b", 0, &["nodeId"]),
            (&"x".repeat(64), 0, &["nodeId"]),
            ("controller", 0, &["nodeId"]),
            ("-", -5, &["nodeId", "ttlSeconds"]),
        ] {
            let refused = world.create(by, &root, node, ttl).await.unwrap_err();
            assert_eq!(refused, invalid(fields), "{by:?} {node} {ttl}");
        }
        for blank in ["", "  "] {
            assert_eq!(world.revoke(by, &root, blank).await.unwrap_err(), invalid(&["tokenId"]), "{by:?}");
        }
        let unknown = world.revoke(by, &root, "0123456789abcdef").await.unwrap_err();
        assert_eq!(unknown, is("NOT_FOUND", "NOT_FOUND", &[]), "{by:?}");

        let denied = || is("PERMISSION_DENIED", "PERMISSION_DENIED", &[]);
        assert_eq!(world.create(by, &viewer, "", 0).await.unwrap_err(), denied(), "{by:?}");
        // Authorisation comes before validation.
        assert_eq!(world.create(by, &viewer, "A", -1).await.unwrap_err(), denied(), "{by:?}");
        assert_eq!(world.revoke(by, &viewer, "").await.unwrap_err(), denied(), "{by:?}");
        assert_eq!(world.list(by, &viewer).await.unwrap_err(), denied(), "{by:?}");

        let missing = || is("UNAUTHENTICATED", "CREDENTIAL_MISSING", &[]);
        assert_eq!(world.create(by, &Caller::nobody(), "", 0).await.unwrap_err(), missing(), "{by:?}");
        assert_eq!(world.revoke(by, &Caller::nobody(), "x").await.unwrap_err(), missing(), "{by:?}");
        assert_eq!(world.list(by, &Caller::nobody()).await.unwrap_err(), missing(), "{by:?}");
        let strange = Caller::bearer(&keys::unknown("prx_"));
        let refused = world.list(by, &strange).await.unwrap_err();
        assert_eq!(refused, is("UNAUTHENTICATED", "CREDENTIAL_INVALID", &[]), "{by:?}");

        let refused = world.exchange(by, &keys::unknown("prj_"), "n1").await.unwrap_err();
        assert_eq!(refused, is("UNAUTHENTICATED", "TOKEN_INVALID", &[]), "{by:?}");
        assert_eq!(world.exchange(by, "", "n1").await.unwrap_err(), invalid(&["joinToken"]), "{by:?}");
    }
    for operation in ["CreateJoinToken", "RevokeJoinToken", "ListJoinTokens"] {
        let entries = world.entries(operation).await;
        assert!(entries.len() % 3 == usize::from(operation == "CreateJoinToken"), "{operation}: {}", entries.len());
    }
}

/// "The caller must present either: A valid mTLS client cert from the controller's CA (e.g. another controller node), or a bearer
/// token … belonging to a user with the tokens.manage permission."
#[tokio::test]
async fn both_ways_of_authentication_open_it() {
    let world = World::new().await;
    let admin: Admin = world.server.admin();
    let ca = Authority::of_server(&world.server.data_dir());
    let named = |kind: &str, name: &str| ca.client(vec![uri(&format!("spiffe://{}/{kind}/{name}", world.cluster))]);
    admin.create_role("minter", &["tokens.manage"]).await;
    admin.bind("user:alice", "minter", None).await;
    let minter = admin.create_api_key("minter", None, Some("bob@example.com")).await.token;
    let good = [
        ("a controller", Caller::certificate(named("controller", "c2"))),
        ("a user's certificate", Caller::certificate(named("user", "alice"))),
        ("a user's key", Caller::bearer(&minter)),
    ];
    for (name, caller) in &good {
        for by in ALL {
            let made = world.create(by, caller, "", 60).await.unwrap_or_else(|refused| panic!("{name}: {refused:?}"));
            assert!(world.list(by, caller).await.unwrap().iter().any(|(id, _)| *id == made.id), "{name} by {by:?}");
            world.revoke(by, caller, &made.id).await.unwrap();
        }
    }
    let denied = is("PERMISSION_DENIED", "PERMISSION_DENIED", &[]);
    for (name, holder) in [("a node", named("node", "n1")), ("a user without it", named("user", "carol"))] {
        for by in ALL {
            let refused = world.create(by, &Caller::certificate(holder.clone()), "", 60).await.unwrap_err();
            assert_eq!(refused, denied, "{name} by {by:?}");
        }
    }
    let strange = Authority::new("strange").client(vec![uri(&format!("spiffe://{}/controller/c2", world.cluster))]);
    for by in ALL {
        let refused = world.list(by, &Caller::certificate(strange.clone())).await.unwrap_err();
        assert_eq!(refused, is("UNAUTHENTICATED", "CREDENTIAL_INVALID", &[]), "{by:?}");
    }
    let entries = world.entries("CreateJoinToken").await;
    let of = |actor: &str| entries.iter().filter(|entry| entry.success && entry.actor == actor).count();
    assert_eq!((of("bob@example.com"), of("alice")), (3, 3));
}
