//! REST, strictly: what is not known, not of its type or not of its encoding is refused with the field's name (contract §9 "REST").

use prism_e2e::enrol::Machine;
use prism_e2e::rest::{Answer, EXCHANGE, Rest, TOKENS};
use prism_e2e::{Options, Prism, keys};
use prism_proto::admin::v1::GetAuditLogRequest;
use serde_json::{Value, json};

async fn server() -> Prism {
    Prism::start(Options::new().config("[limits]\nauth_failures = 1000\n")).await
}

fn root(server: &Prism) -> Rest {
    Rest::of(server).bearer(&server.admin_token())
}

#[track_caller]
fn names(answer: &Answer, fields: &[&str]) {
    answer.refuses(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT");
    assert_eq!(answer.fields(), fields, "{answer:?}");
    let message = answer.body["error"]["message"].as_str().unwrap();
    assert!(fields.iter().all(|field| message.contains(field)), "{message}");
}

#[tokio::test]
async fn bodies_are_read_strictly() {
    let server = server().await;
    let root = root(&server);
    let cases: [(Value, &[&str]); 21] = [
        (json!({"node_id": "n1"}), &["node_id"]),
        (json!({"nodeID": "n1", "x": 1}), &["nodeID", "x"]),
        (json!({"nodeId": 1}), &["nodeId"]),
        (json!({"nodeId": ["n1"]}), &["nodeId"]),
        (json!({"nodeId": "N1"}), &["nodeId"]),
        (json!({"ttlSeconds": "60"}), &["ttlSeconds"]),
        (json!({"ttlSeconds": 1.5}), &["ttlSeconds"]),
        (json!({"ttlSeconds": true}), &["ttlSeconds"]),
        (json!({"ttlSeconds": -1}), &["ttlSeconds"]),
        (json!({"ttlSeconds": 604_801}), &["ttlSeconds"]),
        (json!({"ttlSeconds": 1e30}), &["ttlSeconds"]),
        (json!({"ttl": "30"}), &["ttl"]),
        (json!({"ttl": "1w"}), &["ttl"]),
        (json!({"ttl": "-5m"}), &["ttl"]),
        (json!({"ttl": "8d"}), &["ttl"]),
        (json!({"ttl": "0s"}), &["ttl"]),
        (json!({"ttl": 30}), &["ttl"]),
        (json!({"ttl": "30m", "ttlSeconds": 60}), &["ttl"]),
        (json!({"nodeId": 1, "ttl": "x", "y": 2}), &["nodeId", "ttl", "y"]),
        (json!([]), &["body"]),
        (json!("nodeId"), &["body"]),
    ];
    for (body, fields) in cases {
        names(&root.json("POST", TOKENS, &body).await, fields);
    }
    let json = root.clone().with("content-type", "application/json");
    for broken in [
        &b"{"[..],
        b"{\"nodeId\": \"n1\",}",
        b"{} {}",
        b"\xff\xfe{\0}\0",
        b"{\"nodeId\":\"a\",\"nodeId\":\"b\"}",
        b"null",
    ] {
        names(&json.send("POST", TOKENS, broken).await, &["body"]);
    }
    for kind in
        ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16", "application/xml"]
    {
        let odd = root.clone().with("content-type", kind);
        names(&odd.send("POST", TOKENS, b"{}").await, &["content-type"]);
    }
    names(&root.send("POST", TOKENS, b"{}").await, &["content-type"]);
    // Nothing at all stands for no fields, but not where a page of another site could have a browser send it.
    let typed = root.clone().with("content-type", "application/x-www-form-urlencoded");
    for empty in [&root, &json, &typed] {
        assert_eq!(empty.ask("POST", TOKENS).await.status, 201);
    }
    names(&root.clone().with("origin", "https://example.com").ask("POST", TOKENS).await, &["content-type"]);
    let nulls = root.json("POST", TOKENS, &json!({"nodeId": null, "ttl": null, "ttlSeconds": 60})).await;
    assert_eq!((nulls.status, &nulls.body["nodeId"]), (201, &Value::Null), "{nulls:?}");
    names(&root.json("POST", TOKENS, &json!({"other": null})).await, &["other"]);
    names(&json.clone().with("content-encoding", "gzip").send("POST", TOKENS, b"{}").await, &["content-encoding"]);
    let large = format!("{{\"nodeId\": \"{}\"}}", "x".repeat(64 * 1024));
    json.send("POST", TOKENS, large.as_bytes()).await.refuses(429, "RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE");

    let token = server.admin().create_join_token("").await.join_token;
    let csr = String::from_utf8(Machine::new().signing_request()).unwrap();
    let cases: [(Value, &[&str]); 9] = [
        (json!({"joinToken": token, "nodeId": "n1", "csr_pem": csr}), &["csr_pem"]),
        (json!({"joinToken": 1, "nodeId": true, "csrPem": {}}), &["joinToken", "nodeId", "csrPem"]),
        (json!({"nodeId": "n1"}), &["joinToken"]),
        (json!({"joinToken": token}), &["nodeId"]),
        (json!({"joinToken": token, "nodeId": "a.b", "csrPem": "x"}), &["nodeId", "csrPem"]),
        (json!({"joinToken": token, "nodeId": "n1", "csrPem": format!("{csr}{csr}")}), &["csrPem"]),
        (json!({"joinToken": token, "nodeId": "local", "csrPem": csr}), &["nodeId"]),
        (json!({"joinToken": token, "nodeId": "n1", "csrPem": "x".repeat(17 * 1024)}), &["csrPem"]),
        (json!([token]), &["body"]),
    ];
    for (body, fields) in cases {
        names(&Rest::of(&server).json("POST", EXCHANGE, &body).await, fields);
    }
    // Nothing of all this has used the token up.
    let body = json!({"joinToken": token, "nodeId": "n1", "csrPem": csr});
    assert_eq!(Rest::of(&server).json("POST", EXCHANGE, &body).await.status, 200);
}

#[tokio::test]
async fn good_bodies_and_pages() {
    let server = server().await;
    let root = root(&server);
    for (body, life) in [
        (json!({}), 3600),
        (json!({"ttl": "90s"}), 90),
        (json!({"ttl": "30m"}), 1800),
        (json!({"ttl": "2h"}), 7200),
        (json!({"ttl": "7d"}), 604_800),
        (json!({"ttlSeconds": 0}), 3600),
        (json!({"ttlSeconds": 60, "nodeId": ""}), 60),
    ] {
        let made = root.json("POST", TOKENS, &body).await;
        assert_eq!((made.status, made.header("content-type")), (201, Some("application/json")), "{made:?}");
        assert_eq!(made.header("cache-control"), Some("no-store"));
        let info = server.admin().join_token(made.body["tokenId"].as_str().unwrap()).await;
        assert_eq!(info.expires_at_epoch_ms - info.created_at_epoch_ms, life * 1000, "{body}");
        assert!(made.body["nodeId"].is_null());
    }
    // And over HTTP/2.
    assert_eq!(root.clone().over_http2().json("POST", TOKENS, &json!({})).await.status, 201);
    let over2 = root.clone().over_http2();
    let made = over2.json("POST", TOKENS, &json!({"nodeId": "n9"})).await;
    assert_eq!((made.status, &made.body["nodeId"]), (201, &json!("n9")));
    assert!(over2.ask("GET", TOKENS).await.body["total"] == 9);

    let mut seen = Vec::new();
    for (page, count) in [(1, 4), (2, 4), (3, 1), (4, 0)] {
        let list = root.ask("GET", &format!("{TOKENS}?page={page}&pageSize=4")).await;
        assert_eq!(list.status, 200);
        let told = (&list.body["page"], &list.body["pageSize"], &list.body["total"]);
        assert_eq!(told, (&json!(page), &json!(4), &json!(9)));
        let data = list.body["data"].as_array().unwrap();
        assert_eq!(data.len(), count, "page {page}");
        seen.extend(data.iter().map(|token| token["tokenId"].as_str().unwrap().to_owned()));
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 9);
    let list = root.ask("GET", &format!("{TOKENS}?pageSize=100000")).await;
    assert_eq!((&list.body["pageSize"], &list.body["page"]), (&json!(1000), &json!(1)));
    assert_eq!(root.ask("GET", TOKENS).await.body["pageSize"], 50);
    for (query, field) in [
        ("page=0", "page"),
        ("page=-1", "page"),
        ("page=one", "page"),
        ("page=1&page=2", "page"),
        ("pageSize=-1", "pageSize"),
        ("pageSize=1.5", "pageSize"),
        ("page_size=5", "page_size"),
        ("limit=5", "limit"),
    ] {
        names(&root.ask("GET", &format!("{TOKENS}?{query}")).await, &[field]);
    }
    names(&root.ask("DELETE", &format!("{TOKENS}/x?force=1")).await, &["query"]);
    names(&root.ask("DELETE", &format!("{TOKENS}/%zz")).await, &["tokenId"]);
    names(&root.ask("DELETE", &format!("{TOKENS}/")).await, &["tokenId"]);
}

#[tokio::test]
async fn unknown_paths_and_other_methods_are_told_in_json() {
    let server = server().await;
    let root = root(&server);
    for path in ["/api", "/api/", "/api/v1", "/api/v1/admin/token", "/api/v2/admin/tokens", "/api/v1/admin/tokens/a/b"]
    {
        for caller in [root.clone(), root.clone().over_http2()] {
            caller.ask("GET", path).await.refuses(404, "NOT_FOUND", "NOT_FOUND");
        }
        Rest::of(&server).ask("GET", path).await.refuses(401, "UNAUTHENTICATED", "CREDENTIAL_MISSING");
    }
    for (method, path, allow) in [
        ("PUT", TOKENS, "GET, POST"),
        ("DELETE", TOKENS, "GET, POST"),
        ("GET", EXCHANGE, "POST"),
        ("GET", "/api/v1/admin/tokens/x", "DELETE"),
    ] {
        let answer = root.ask(method, path).await;
        answer.refuses(405, "UNIMPLEMENTED", "METHOD_NOT_ALLOWED");
        assert_eq!(answer.header("allow"), Some(allow));
    }
    let refused = Rest::of(&server).ask("GET", TOKENS).await;
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")));
    let id = Rest::of(&server).with("x-request-id", "my-own-id").ask("GET", TOKENS).await;
    assert_eq!(id.header("x-request-id"), Some("my-own-id"));
    // Each of these has its entry.
    let log = server.admin().audit(GetAuditLogRequest { limit: 1000, ..Default::default() }).await;
    let of = |operation: &str| log.iter().filter(|entry| entry.operation == operation && !entry.success).count();
    assert_eq!((of("/api/v1/admin/token"), of("/api/v1/admin/tokens")), (3, 2));
    assert_eq!(log.iter().find(|entry| entry.request_id == "my-own-id").unwrap().operation, "ListJoinTokens");
}

#[tokio::test]
async fn headers_mean_what_they_mean_by_grpc() {
    let server = server().await;
    let admin = server.admin();
    let of_alice = admin.create_api_key("admin", None, Some("alice@example.com")).await.token;
    let keyed = Rest::of(&server).with("x-admin-token", &server.admin_token()).with("x-admin-user", "carol");
    let keyed = keyed.with("x-idempotency-key", "once");
    let made = keyed.json("POST", TOKENS, &json!({"nodeId": "n1"})).await;
    assert_eq!(made.status, 201);
    let info = admin.join_token(made.body["tokenId"].as_str().unwrap()).await;
    assert_eq!(info.created_by, "carol");
    // A secret is shown once.
    let again = keyed.json("POST", TOKENS, &json!({"nodeId": "n1"})).await;
    again.refuses(409, "ALREADY_EXISTS", "SECRET_ALREADY_ISSUED");
    assert_eq!(again.body["error"]["details"][0]["metadata"]["id"], made.body["tokenId"]);
    let other = keyed.json("POST", TOKENS, &json!({"nodeId": "n2"})).await;
    assert_eq!(other.fields(), ["x-idempotency-key"]);
    let mismatch = Rest::of(&server).bearer(&of_alice).with("x-admin-user", "bob").ask("GET", TOKENS).await;
    mismatch.refuses(401, "UNAUTHENTICATED", "ADMIN_USER_MISMATCH");
    let viewer = admin.create_api_key("viewer", None, None).await.token;
    let denied = Rest::of(&server).bearer(&viewer).json("POST", TOKENS, &json!({"nodeId": "n1"})).await;
    denied.refuses(403, "PERMISSION_DENIED", "PERMISSION_DENIED");
    let metadata = &denied.body["error"]["details"][0]["metadata"];
    let entries = admin.whole_log().await;
    let entry = entries.iter().find(|entry| metadata["audit_id"] == entry.id).unwrap();
    assert_eq!((entry.operation.as_str(), &metadata["permission"]), ("CreateJoinToken", &json!("tokens:manage")));
    // Whoever may not is told so, whatever they sent.
    for body in [json!({"x": 1}), json!([])] {
        let denied = Rest::of(&server).bearer(&viewer).json("POST", TOKENS, &body).await;
        denied.refuses(403, "PERMISSION_DENIED", "PERMISSION_DENIED");
    }
    Rest::of(&server).bearer(&viewer).ask("GET", &format!("{TOKENS}?x=1")).await.refuses(
        403,
        "PERMISSION_DENIED",
        "PERMISSION_DENIED",
    );
    prism_e2e::audit::verify(&admin.whole_log().await);
}

#[tokio::test]
async fn wrong_tokens_cost_time_and_leave_few_entries() {
    let server = Prism::start(Options::new().config("[limits]\nauth_failures = 3\n")).await;
    let admin = server.admin();
    let good = admin.create_join_token("").await.join_token;
    let body = |token: &str| json!({"joinToken": token, "nodeId": "n1", "csrPem": String::from_utf8(Machine::new().signing_request()).unwrap()});
    let start = std::time::Instant::now();
    for _ in 0..6 {
        let forged = keys::forged_join(&good, &keys::word(32));
        let refused = Rest::of(&server).json("POST", EXCHANGE, &body(&forged)).await;
        refused.refuses(401, "UNAUTHENTICATED", "TOKEN_INVALID");
        assert_eq!(refused.body["error"]["details"].as_array().unwrap().len(), 1, "nothing else is told");
    }
    // 50, 100 and 200 ms.
    assert!(start.elapsed() >= std::time::Duration::from_millis(350));
    // Who has the right one does not wait.
    assert_eq!(Rest::of(&server).json("POST", EXCHANGE, &body(&good)).await.status, 200);
    // Requests without any credential are bounded in the log and counted.
    let many = 300;
    for _ in 0..many {
        Rest::of(&server).json("POST", EXCHANGE, &json!({"x": 1})).await.refuses(
            400,
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
        );
    }
    let stray = tokio::time::timeout(std::time::Duration::from_secs(30), async {
        loop {
            Rest::of(&server).json("POST", EXCHANGE, &json!({})).await;
            let log = admin.whole_log().await;
            let strangers: Vec<_> = log.iter().filter(|entry| entry.actor == "anonymous" && !entry.success).collect();
            let counted = strangers.iter().filter_map(|entry| entry.metadata.get("suppressed_before"));
            let counted: usize = counted.map(|count| count.parse::<usize>().unwrap()).sum();
            if counted > 0 && strangers.len() + counted > many {
                return strangers.len();
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    });
    let entries = stray.await.expect("what has no entry is counted in the next one");
    assert!(entries < many, "{entries} entries");
    prism_e2e::audit::verify(&admin.whole_log().await);
}
