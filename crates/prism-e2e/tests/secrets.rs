//! Secrets of every kind are made, used, and put where they do not belong; then they are looked for in everything that the
//! server and the command line leave behind (issue "Done when"). Tokens of issuers are looked for in login.rs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use prism_e2e::enrol::{Machine, exchange, without_key};
use prism_e2e::grants::rule;
use prism_e2e::matrix::reflected_rules;
use prism_e2e::rest::{EXCHANGE, Rest, TOKENS};
use prism_e2e::site::{config, unique, with_option};
use prism_e2e::{Admin, Cli, Headers, Options, Pattern, Prism, Site, data, http1, keys, raw};
use prism_proto::admin::v1 as wire;
use prism_proto::session::v1::{CloseSessionRequest, CreateSessionRequest};
use prost_reflect::{Kind, MessageDescriptor};
use serde_json::{Value, json};

/// Files that hold a secret because somebody needs it there.
const HOLDERS: [&str; 2] = ["admin.token", "client.token"];
/// So many bytes of a secret are enough to look closer.
const START: usize = 8;
/// Texts that say something of what is made; the server keeps them as they are.
const KEPT: [&str; 2] = ["description", "message"];
/// Verbs of the command line that only read.
const READERS: [&str; 19] = [
    "namespace list",
    "config list",
    "session list",
    "backend list",
    "maintenance status",
    "metrics",
    "key list",
    "client-key list",
    "role list",
    "binding list",
    "client-binding list",
    "cert list",
    "token list",
    "node list",
    "audit list --limit 10000",
    "audit export",
    "audit export --ocsf",
    "context list",
    "whoami",
];

/// What must be found nowhere, and what it is.
#[derive(Default)]
struct Secrets {
    all: BTreeMap<String, String>,
    /// Those that the server was told to keep, as the name or the description of something: it does, and shows them to
    /// whoever may read that. Elsewhere they must not be either.
    kept: BTreeSet<String>,
}

impl Secrets {
    /// A key or token of Prism: whole, and its secret part alone, as it is and as others would write it.
    fn token(&mut self, what: &str, token: &str) {
        self.text(what, token);
        let secret = keys::secret(token);
        self.text(what, secret);
        self.text(&format!("{what} in hex"), &hex::encode(secret));
        // Characters that do not depend on what stands before it.
        for shift in 0..3 {
            let encoded = STANDARD_NO_PAD.encode(&secret[shift..]);
            self.text(&format!("{what} in base64"), &encoded[..36]);
        }
    }

    fn text(&mut self, what: &str, text: &str) {
        assert!(text.len() >= 24, "{text:?} is too short to be looked for");
        self.all.insert(text.to_owned(), what.to_owned());
    }

    /// Every line of a private key.
    fn pem(&mut self, path: &Path) {
        let text = std::fs::read_to_string(path).expect("a key file");
        for line in text.lines().filter(|line| !line.starts_with("-----") && line.len() >= 24) {
            self.text(&path.display().to_string(), line);
        }
    }
}

/// Looks for many secrets at once.
struct Finder<'a> {
    secrets: &'a Secrets,
    by_start: HashMap<&'a [u8], Vec<&'a str>>,
    /// The first three bytes that any of them has.
    starts: Vec<bool>,
}

impl<'a> Finder<'a> {
    fn new(secrets: &'a Secrets, also_kept: bool) -> Self {
        let (mut by_start, mut starts) = (HashMap::<_, Vec<_>>::new(), vec![false; 1 << 24]);
        for secret in secrets.all.keys().filter(|secret| also_kept || !secrets.kept.contains(*secret)) {
            by_start.entry(&secret.as_bytes()[..START]).or_default().push(secret.as_str());
            starts[start(secret.as_bytes())] = true;
        }
        Self { secrets, by_start, starts }
    }

    /// What of it is in these bytes.
    fn found_in(&self, place: &str, bytes: &[u8]) -> Vec<String> {
        let mut found = BTreeMap::new();
        for (at, window) in bytes.windows(START).enumerate() {
            if !self.starts[start(window)] {
                continue;
            }
            for secret in self.by_start.get(window).into_iter().flatten() {
                if bytes[at..].starts_with(secret.as_bytes()) {
                    found.entry(*secret).or_insert_with(|| around(bytes, at, secret.len()));
                }
            }
        }
        found.into_iter().map(|(secret, context)| format!("{place}: {}: {context}", self.secrets.all[secret])).collect()
    }
}

fn start(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2])
}

/// Where it stands, to find out why.
fn around(bytes: &[u8], at: usize, length: usize) -> String {
    let context = &bytes[at.saturating_sub(120)..(at + length + 20).min(bytes.len())];
    String::from_utf8_lossy(context).chars().map(|c| if c.is_control() { '·' } else { c }).collect()
}

/// A server on which secrets are made, with what it and the command line said.
struct World {
    site: Site,
    config: String,
    secrets: Secrets,
    told: Vec<(String, String)>,
}

impl World {
    async fn new() -> Self {
        // Everything is logged; and nobody has to wait because of keys that are none.
        let options = Options::dev().env("PRISM_LOG", "trace").env("RUST_BACKTRACE", "full");
        let options = options.config("[limits]\nauth_failures = 10000\n");
        let site = Site::new(Arc::new(Prism::start(options).await)).await;
        let config = site.config(Pattern::KeyValue).await;
        let mut secrets = Secrets::default();
        secrets.token("the first admin key", &site.server.admin_token());
        secrets.token("the first client key", &site.server.secret("client.token"));
        secrets.token("a client key", &site.key);
        for file in files(&site.server.data_dir()).into_iter().filter(|file| is_key(file)) {
            secrets.pem(&file);
        }
        Self { site, config, secrets, told: Vec::new() }
    }

    fn admin(&self) -> &Admin {
        &self.site.admin
    }

    /// Keys that live, have lived, and were replaced; sessions that live and are over.
    async fn make_and_use(&mut self) {
        let site = &self.site;
        let mut access = site.admin.access();
        let (kept, revoked) = (
            site.admin.create_api_key("admin", None, None).await,
            site.admin.create_api_key("viewer", None, None).await,
        );
        let owned = site.admin.create_api_key("viewer", Some(&site.namespace), Some("carol@example.com")).await;
        let id = |made: &wire::CreateApiKeyResponse| made.api_key.clone().unwrap().key_id;
        let overlap = Some(prost_types::Duration { seconds: 60, nanos: 0 });
        let rotate = wire::RotateApiKeyRequest { key_id: id(&kept), overlap };
        let rotated = access.rotate_api_key(rotate).await.unwrap().into_inner().token;
        access.revoke_api_key(wire::RevokeApiKeyRequest { key_id: id(&revoked) }).await.unwrap();
        for token in [&kept.token, &rotated, &owned.token] {
            site.admin.with_key(token).who_am_i().await.unwrap();
            site.admin.with_headers(Headers::admin_token(token)).who_am_i().await.unwrap();
        }
        site.admin.with_key(&revoked.token).who_am_i().await.unwrap_err();
        // An answer that carries a secret is not stored to be given again.
        let keyed = site.admin.and("x-idempotency-key", &unique("secret"));
        let request = wire::CreateApiKeyRequest {
            name: "keyed".to_owned(),
            roles: vec!["viewer".to_owned()],
            ..Default::default()
        };
        let replayed = keyed.access().create_api_key(request.clone()).await.unwrap().into_inner().token;
        keyed.access().create_api_key(request).await.unwrap_err();
        let named = [
            ("an admin key that was rotated", kept.token),
            ("what it was rotated to", rotated),
            ("an admin key that was revoked", revoked.token),
            ("a person's admin key", owned.token),
            ("an admin key that was made under an idempotency key", replayed),
        ];
        for (what, token) in named {
            self.secrets.token(what, &token);
        }
        let (live, closed) = (site.session_of(&self.config).await, site.session_of(&self.config).await);
        live.put("a", b"1").await.unwrap();
        live.life().heartbeat(prism_proto::session::v1::HeartbeatRequest::default()).await.unwrap();
        let close = CloseSessionRequest { session_token: closed.token.clone(), force: true };
        closed.life().close_session(close).await.unwrap();
        closed.get("a").await.unwrap_err();
        self.secrets.token("the token of a live session", &live.token);
        self.secrets.token("the token of a session that was closed", &closed.token);
        // Of the other plane, and of nobody.
        site.admin.with_key(&live.token).who_am_i().await.unwrap_err();
        site.admin.with_key(&site.key).who_am_i().await.unwrap_err();
        site.open(data::named(&site.server.admin_token(), &self.config)).await.unwrap_err();
    }

    /// Join tokens that wait, were redeemed and were revoked; keystores; and what is none of them.
    async fn join(&mut self) {
        let admin = self.site.admin.clone();
        let (machine, channel) = (Machine::new(), self.site.server.admin_channel());
        let made = async || admin.create_join_token("").await;
        let (waiting, redeemed, revoked, packed) = (made().await, made().await, made().await, made().await);
        admin.revoke_join_token(&revoked.token_id).await;
        for _ in 0..2 {
            machine.exchange(&channel, &redeemed.join_token, "secrets-1").await.unwrap();
        }
        Machine::new().exchange(&channel, &redeemed.join_token, "secrets-1").await.unwrap_err();
        machine.exchange(&channel, &revoked.join_token, "secrets-2").await.unwrap_err();
        let keystore = exchange(&channel, without_key(&packed.join_token, "secrets-3")).await.unwrap();
        self.secrets.text("the password of a keystore", &keystore.pkcs12_password);
        let rest = Rest::of(&self.site.server).bearer(&self.site.server.admin_token());
        let by_rest = rest.json("POST", TOKENS, &json!({})).await.body["joinToken"].as_str().unwrap().to_owned();
        let forged = keys::forged_join(&waiting.join_token, &keys::word(32));
        machine.exchange(&channel, &forged, "secrets-4").await.unwrap_err();
        // Where a token has no business, and in bodies that are none.
        for body in
            [json!({"nodeId": by_rest}), json!({by_rest.clone(): 1}), json!({"joinToken": [by_rest]}), json!(by_rest)]
        {
            assert_eq!(rest.json("POST", TOKENS, &body).await.status, 400, "{body}");
            assert_eq!(rest.json("POST", EXCHANGE, &body).await.status, 400, "{body}");
        }
        rest.ask("DELETE", &format!("{TOKENS}/{by_rest}")).await.refuses(404, "NOT_FOUND", "NOT_FOUND");
        rest.ask("GET", &format!("{TOKENS}?page={by_rest}&{by_rest}=1")).await;
        rest.send("POST", EXCHANGE, format!("{{\"joinToken\": \"{by_rest}").as_bytes()).await;
        rest.ask("GET", &format!("/api/v1/{by_rest}")).await.refuses(404, "NOT_FOUND", "NOT_FOUND");
        let named = [
            ("a join token", waiting.join_token),
            ("a join token that was redeemed", redeemed.join_token),
            ("a join token that was revoked", revoked.join_token),
            ("a join token for a keystore", packed.join_token),
            ("a join token by REST", by_rest),
            ("a join token that is none", forged),
        ];
        for (what, token) in named {
            self.secrets.token(what, &token);
        }
    }

    /// A secret of which the test knows where it goes, to be found again if it comes out there.
    fn stray(&mut self, what: &str) -> String {
        let prefix = ["prx_", "prc_", "prs_", "prj_"][self.secrets.all.len() / 6 % 4];
        let token = keys::unknown(prefix);
        self.secrets.token(what, &token);
        token
    }

    /// One that is put where the server keeps what it is told.
    fn kept(&mut self, what: &str) -> String {
        let before: BTreeSet<String> = self.secrets.all.keys().cloned().collect();
        let token = self.stray(what);
        let new: Vec<String> = self.secrets.all.keys().filter(|secret| !before.contains(*secret)).cloned().collect();
        self.secrets.kept.extend(new);
        token
    }

    /// In every header that somebody may mix up, beside a valid credential and instead of one.
    async fn misplace_in_headers(&mut self) {
        let names = [
            "authorization",
            "x-admin-token",
            "x-admin-user",
            "x-request-id",
            "x-idempotency-key",
            "x-session-token",
            "prism-audit-witness",
            "prism-audit-head",
            "traceparent",
            "cookie",
            "user-agent",
            "x-api-key",
            "grpc-timeout",
        ];
        for name in names {
            for form in ["{}", "Bearer {}", "Basic {}", "{}@example.com", "see {}, please"] {
                let what = format!("a secret in {name}: {form}");
                let token = self.stray(&what);
                let value = form.replace("{}", &token);
                for headers in [Headers::none(), self.admin().headers.clone()] {
                    let admin = self.admin().with_headers(headers.with(name, &value));
                    let _ = admin.who_am_i().await;
                    let create = wire::CreateNamespaceRequest { name: unique("n"), ..Default::default() };
                    let _ = admin.service().create_namespace(create).await;
                    let path = format!("/{token}/{token}");
                    let _ = raw::call(&admin.channel, &admin.headers, &path, Vec::new()).await;
                }
                let session = self.site.open(data::named(&self.site.key, &self.config)).await.unwrap();
                let mut request = tonic::Request::new(CreateSessionRequest::default());
                Headers::none().with(name, &value).apply(&mut request);
                let mut life =
                    prism_proto::session::v1::session_service_client::SessionServiceClient::new(session.channel);
                let _ = life.create_session(request).await;
                self.secrets.token("the token of a session", &session.token);
            }
        }
        // A header whose name is the secret.
        let token = self.stray("a secret as the name of a header").to_ascii_lowercase();
        let _ = self.admin().and(&token.replace('_', "-"), "x").who_am_i().await;
    }

    /// In every text of every request, each alone and all at once.
    async fn misplace_in_requests(&mut self) {
        let pool = prism_proto::descriptor_pool();
        let operators = reflected_rules(&self.admin().channel.clone()).await;
        let machines = ["ExchangeJoinToken", "RenewCertificate"].map(rule);
        for rule in operators.into_iter().chain(machines) {
            let input = pool.get_message_by_name(&rule.input).expect("a message");
            let mut fields = Vec::new();
            texts(&input, &[], &mut fields);
            let mut all = json!({});
            for field in &fields {
                let what = format!("a secret in {} of {}", field.join("."), rule.method);
                let is_kept = field.last().is_some_and(|name| KEPT.contains(&name.as_str()));
                let token = if is_kept { self.kept(&what) } else { self.stray(&what) };
                let mut one = json!({});
                for request in [&mut one, &mut all] {
                    put(request, &input, field, &token);
                }
                let _ = self.admin().ask(&rule.method, &one).await;
                // Its text is all that such a request has; some must name something that is there.
                let mut aimed = json!({});
                for (name, value) in [("name", &self.config), ("namespace", &self.site.namespace)] {
                    if input.fields().any(|field| field.json_name() == name && field.kind() == Kind::String) {
                        aimed[name] = json!(value);
                    }
                }
                put(&mut aimed, &input, field, &token);
                let _ = self.admin().ask(&rule.method, &aimed).await;
            }
            // A lineage is asked for by one link only.
            if !["DrainConnections", "GetLineage"].contains(&rule.method.as_str()) {
                let _ = self.admin().ask(&rule.method, &all).await;
            }
        }
        assert!(self.secrets.all.len() > 1000, "{}", self.secrets.all.len());
    }

    /// In texts of requests that are right otherwise, and are carried out if a secret in them is no reason to refuse them.
    async fn misplace_in_what_is_accepted(&mut self) {
        let namespace = self.site.namespace.clone();
        let text = |world: &mut Self, what: &str| {
            let token = world.kept(&format!("a secret in {what}"));
            format!("please use {token}, thanks")
        };
        let mut requests = Vec::new();
        let description = text(self, "a description");
        requests.push(("CreateNamespace", json!({"name": unique("n"), "description": description})));
        let description = text(self, "a changed description");
        requests.push(("UpdateNamespace", json!({"name": namespace, "description": description})));
        let message = text(self, "a message of maintenance");
        requests.push(("SetMaintenanceMode", json!({"enabled": true, "namespace": namespace, "message": message})));
        requests.push(("SetMaintenanceMode", json!({"enabled": false, "namespace": namespace})));
        for user in ["alice", &self.kept("a secret as a user")] {
            let name = text(self, "the name of an admin key");
            requests.push(("CreateApiKey", json!({"name": name, "roles": ["viewer"], "user": user})));
        }
        let name = text(self, "the name of a client key");
        let permissions = ["read"];
        requests.push(("CreateClientKey", json!({"name": name, "namespace": namespace, "permissions": permissions})));
        let subject = format!("user:{}", self.kept("a secret as a subject"));
        requests.push(("CreateBinding", json!({"binding": {"subject": subject, "role": "viewer"}})));
        let subject = format!("group:{}", self.kept("a secret as a subject of clients"));
        let binding = json!({"subject": subject, "namespace": namespace, "permissions": ["read"]});
        requests.push(("CreateClientBinding", json!({"clientBinding": binding})));
        let reason = text(self, "the reason of a termination");
        for force in [false, true] {
            let session = self.site.session_of(&self.config).await;
            requests.push(("TerminateSession", json!({"sessionId": session.id, "force": force, "reason": reason})));
            self.secrets.token("the token of a session that was terminated", &session.token);
        }
        for (method, request) in requests {
            let outcome = self.admin().ask(method, &request).await;
            self.told.push((format!("{method}'s refusal"), format!("{:?}", outcome.err())));
        }
        // A config with one in its options and its version.
        let schema =
            format!("CREATE TABLE IF NOT EXISTS items (id TEXT PRIMARY KEY) -- {}", self.kept("a secret in a schema"));
        let mut draft = with_option(config(&unique("c"), &namespace, Pattern::Transact), "schema", &schema);
        draft.version = self.kept("a secret as a version");
        let (name, value) = (self.kept("a secret as an option"), self.kept("a secret in an option"));
        let odd = with_option(config(&unique("c"), &namespace, Pattern::KeyValue), &name, &value);
        for config in [draft, odd] {
            let request = wire::CreateConfigRequest { config: Some(config), ..Default::default() };
            let _ = self.admin().service().create_config(request).await;
        }
        // A session that its client describes with one.
        let metadata = [(self.kept("a secret as a key of metadata"), self.kept("a secret in metadata"))];
        let request = CreateSessionRequest {
            client_id: self.kept("a secret as a client's id"),
            client_version: self.kept("a secret as a client's version"),
            metadata: metadata.into(),
            ..data::named(&self.site.key, &self.config)
        };
        if let Ok(session) = self.site.open(request).await {
            session.put("a", b"1").await.unwrap();
            self.secrets.token("the token of a session", &session.token);
        }
        for name in [self.kept("a secret as a config's name"), self.kept("another secret as a config's name")] {
            let _ = self.site.open(data::named(&self.site.key, &name)).await;
            let _ = self.site.open(data::named(&name, &self.config)).await;
        }
    }

    /// At the command line, in flags, in the environment, and as the words of a command.
    fn misplace_at_the_command_line(&mut self) {
        let cli = Cli::of(&self.site.server);
        let mut outcomes = Vec::new();
        let token = self.stray("a secret in PRISM_ADMIN_TOKEN");
        outcomes.push(cli.clone().with_token(&token).run("namespace list"));
        // A command repeats what it was called with to who called it; the server does not.
        let token = self.stray("a secret as an argument");
        for line in ["namespace get", "config get", "session get", "key revoke", "whoami --user", "audit list --actor"]
        {
            cli.run_with(line, &[&token], "");
        }
        for line in READERS {
            for format in ["", " -o json", " -o yaml"] {
                outcomes.push(cli.run(&format!("{line}{format}")));
            }
        }
        for (line, file) in
            [("key create a --role viewer", "prx_"), ("client-key create a --permission read -n", "prc_")]
        {
            let more =
                if file == "prc_" { vec![self.site.namespace.as_str(), "-o", "token"] } else { vec!["-o", "token"] };
            let shown = cli.run_with(line, &more, "").ok().out.trim().to_owned();
            assert!(shown.starts_with(file), "{shown}");
            self.secrets.token("a key that the command line showed", &shown);
        }
        for outcome in outcomes {
            // What it was called with is the caller's, and is not in what it says.
            self.told.push((outcome.line.clone(), format!("{}\n{}", outcome.out, outcome.err)));
        }
    }

    /// Everything that is left behind, but for the files that are there to hold a secret.
    async fn look(&mut self, moment: &str) -> Vec<String> {
        let server = &self.site.server;
        let (every, known) = (Finder::new(&self.secrets, true), Finder::new(&self.secrets, false));
        let (mut found, mut texts) = (every.found_in("the server's log", server.log().as_bytes()), 1);
        if server.try_exit().is_none() {
            let metrics = server.endpoints().metrics;
            for path in ["/metrics", "/live", "/ready"] {
                found.extend(every.found_in(path, http1::get(&metrics, path).await.1.as_bytes()));
                texts += 1;
            }
            let cli = Cli::of(server);
            for line in READERS {
                let outcome = cli.run(line).ok();
                // Lists show things with their names.
                let finder = if line.starts_with("audit") || line == "metrics" { &every } else { &known };
                found.extend(finder.found_in(line, format!("{}\n{}", outcome.out, outcome.err).as_bytes()));
                texts += 1;
            }
        }
        for (place, text) in &self.told {
            found.extend(known.found_in(place, text.as_bytes()));
            texts += 1;
        }
        let mut searched = 0;
        for file in files(server.folder()) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if HOLDERS.contains(&name.as_str()) || is_key(&file) {
                continue;
            }
            // What has gone since it was listed holds nothing.
            let Ok(bytes) = std::fs::read(&file) else { continue };
            searched += 1;
            found.extend(known.found_in(&name, &bytes));
            if file.extension().is_some_and(|extension| extension == "db") {
                found.extend(known.found_in(&format!("rows of {name}"), rows(&file, "").as_bytes()));
                if name == "prism.db" {
                    found.extend(every.found_in("the audit log", rows(&file, "audit").as_bytes()));
                }
            }
        }
        println!("{moment}: {} secrets looked for in {texts} texts and {searched} files", self.secrets.all.len());
        found.into_iter().map(|what| format!("{moment}: {what}")).collect()
    }
}

fn is_key(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "key")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in folder.read_dir().expect("a folder").flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

/// Every value of a table, or of all: a value that is long lies in pieces in the file.
fn rows(database: &Path, only: &str) -> String {
    use rusqlite::types::ValueRef;
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let database = rusqlite::Connection::open_with_flags(database, flags).expect("a database");
    let mut tables = database.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").expect("a schema");
    let tables: Vec<String> = tables.query_map([], |row| row.get(0)).expect("tables").flatten().collect();
    let mut text = String::new();
    for table in tables.into_iter().filter(|table| only.is_empty() || table == only) {
        let mut statement = database.prepare(&format!("SELECT * FROM \"{table}\"")).expect("a table");
        let columns = statement.column_count();
        let mut rows = statement.query([]).expect("rows");
        while let Some(row) = rows.next().expect("a row") {
            for column in 0..columns {
                match row.get_ref(column).expect("a value") {
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => text.push_str(&String::from_utf8_lossy(bytes)),
                    _ => {}
                }
                text.push('\n');
            }
        }
    }
    text
}

/// The texts of a message, by the names that lead to them.
fn texts(message: &MessageDescriptor, path: &[String], found: &mut Vec<Vec<String>>) {
    for field in message.fields() {
        let path = [path, &[field.json_name().to_owned()]].concat();
        match field.kind() {
            Kind::String | Kind::Bytes => found.push(path),
            // A map of texts, or a message; none of the requests is so deep that it must end.
            Kind::Message(inner) if field.is_map() && inner.fields().all(|part| part.kind() == Kind::String) => {
                found.push(path);
            }
            Kind::Message(inner) if !field.is_map() && path.len() < 4 && !inner.full_name().starts_with("google.") => {
                texts(&inner, &path, found);
            }
            _ => {}
        }
    }
}

/// Sets a text of a request.
fn put(request: &mut Value, message: &MessageDescriptor, path: &[String], text: &str) {
    let Some((name, rest)) = path.split_first() else { return };
    let field = message.fields().find(|field| field.json_name() == name).expect("a field");
    let value = match field.kind() {
        Kind::Message(inner) if !field.is_map() => {
            let mut inside = if field.is_list() { json!({}) } else { request[name].take() };
            if !inside.is_object() {
                inside = json!({});
            }
            put(&mut inside, &inner, rest, text);
            inside
        }
        Kind::Message(_) => json!({text: text}),
        Kind::Bytes => {
            json!(STANDARD.encode(text))
        }
        _ => json!(text),
    };
    request[name] = if field.is_list() { json!([value]) } else { value };
}

#[tokio::test]
async fn secrets_are_where_somebody_needs_them_and_nowhere_else() {
    let mut world = World::new().await;
    world.make_and_use().await;
    world.join().await;
    world.misplace_in_headers().await;
    world.misplace_in_requests().await;
    world.misplace_in_what_is_accepted().await;
    world.misplace_at_the_command_line();
    let mut found = world.look("while it runs").await;
    // Crashed: what it says then, and what it leaves.
    world.site.server.signal("ABRT");
    assert!(!world.site.server.exit().await.success());
    found.extend(world.look("after a crash").await);
    world.site.server.kill();
    world.site.server.spawn();
    world.site.server.ready().await;
    world.site.server.signal("TERM");
    assert!(world.site.server.exit().await.success());
    found.extend(world.look("stopped").await);
    assert!(found.is_empty(), "{} found:\n{}", found.len(), found.join("\n"));
}
