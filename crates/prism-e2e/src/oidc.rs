//! A real OpenID Connect provider in a process of its own, and a person who logs in there.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::certificates::Holder;
use crate::http1;

/// The client of people: public, by device code.
pub const PUBLIC_CLIENT: &str = "prism-admin";
/// The client of machines: confidential, by client credentials.
pub const MACHINE: &str = "machine";
/// Its secret.
pub const MACHINE_SECRET: &str = "machine-secret-0123456789abcdefghijklmnopqrstuvwxyz";
/// Audience and resource of tokens for the admin plane.
pub const ADMIN: &str = "urn:prism:admin";
/// Audience and resource of tokens for the data plane.
pub const DATA: &str = "urn:prism:data";
/// A resource that is none of Prism's, with the same scope.
pub const OTHER: &str = "urn:prism:other";

const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

/// What the provider gave.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Access token.
    pub access: String,
    /// Refresh token; empty for machines.
    pub refresh: String,
    /// ID token; empty unless `openid` was asked for.
    pub id: String,
}

/// The provider. Its process ends with this, or with the test's process if that comes first.
pub struct Provider {
    issuer: String,
    control: String,
    child: Child,
    log: Arc<Mutex<String>>,
    /// CA of a provider that speaks https.
    ca: Option<PathBuf>,
}

impl Provider {
    /// Starts one that speaks http.
    pub fn start() -> Self {
        Self::spawn(&json!({}), None)
    }

    /// Starts one that speaks https, with a certificate of the CA in the PEM file `ca`; `folder` is for its files.
    pub fn start_tls(holder: &Holder, ca: &Path, folder: &Path) -> Self {
        let (cert, key) = holder.write(folder, "oidc-provider");
        Self::spawn(&json!({"tls": {"cert": cert, "key": key}}), Some(ca.to_owned()))
    }

    fn spawn(options: &Value, ca: Option<PathBuf>) -> Self {
        let mut command = node("server.js");
        command.arg(options.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("node is needed for this test: {error}"));
        let log = Arc::new(Mutex::new(String::new()));
        keep(BufReader::new(child.stderr.take().expect("a pipe")), &log);
        let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
        let (send, said) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = out.read_line(&mut line);
            // Nobody listens any more when it came too late.
            let _ = send.send((read, line, out));
        });
        let Ok((Ok(1..), line, out)) = said.recv_timeout(START_WITHIN) else {
            let _ = child.kill();
            panic!("the provider did not start: {}", lock(&log));
        };
        // Read to its end: a library that says something to a pipe that nobody reads would end the process.
        keep(out, &log);
        let ready: Value = serde_json::from_str(&line).expect("a line of JSON");
        let text = |name: &str| ready[name].as_str().expect("an address").to_owned();
        Self { issuer: text("issuer"), control: text("control"), child, log, ca }
    }

    /// Its name, which is where it is.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The CA to trust when it speaks https.
    pub fn ca(&self) -> Option<&Path> {
        self.ca.as_deref()
    }

    /// What it wrote to its standard error.
    pub fn log(&self) -> String {
        lock(&self.log).clone()
    }

    /// Ends it, and with it everything it knew.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How often it was asked for what: `discovery`, `jwks`, `device`, `poll`, `refresh`, `clientCredentials`.
    pub async fn count(&self, what: &str) -> u64 {
        self.tell("counts", &json!({})).await[what].as_u64().unwrap_or_else(|| panic!("{what} is not counted"))
    }

    /// Every code and token it gave out.
    pub async fn secrets(&self) -> Vec<String> {
        let secrets = self.tell("secrets", &json!({})).await;
        let list = secrets.as_array().expect("a list");
        list.iter().map(|secret| secret.as_str().expect("text").to_owned()).collect()
    }

    /// Changes how it behaves; see `state` in `server.js`.
    pub async fn set(&self, change: &Value) {
        self.tell("set", change).await;
    }

    /// Signs with new keys from now on; with `keep` the old ones are still published.
    pub async fn rotate(&self, keep: bool) {
        self.tell("rotate", &json!({"keep": keep})).await;
    }

    async fn tell(&self, command: &str, with: &Value) -> Value {
        let (status, body) = http1::send(&self.control, "POST", &format!("/{command}"), &[], &with.to_string()).await;
        assert_eq!(status, 200, "{command}: {}", self.log());
        serde_json::from_str(&body).expect("JSON")
    }

    /// The tokens of a person for a resource, by device code; http only.
    pub async fn login_for(&self, name: &str, resource: &str, scope: &str) -> Tokens {
        let form = format!("client_id={PUBLIC_CLIENT}&scope={}&resource={resource}", scope.replace(' ', "+"));
        let device = self.post("/device/auth", &form, &[]).await;
        let page = device["verification_uri_complete"].as_str().expect("a page").to_owned();
        Person::of(self, name).visit(&page, "agree").await;
        let code = device["device_code"].as_str().expect("a device code");
        let form = format!("client_id={PUBLIC_CLIENT}&grant_type={DEVICE_GRANT}&device_code={code}");
        tokens(&self.post("/token", &form, &[]).await)
    }

    /// The tokens of a person for the admin plane.
    pub async fn login(&self, name: &str) -> Tokens {
        self.login_for(name, ADMIN, "openid offline_access prism.admin").await
    }

    /// The access token of the machine for a resource; http only.
    pub async fn machine(&self, resource: &str) -> String {
        use base64::Engine as _;
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("{MACHINE}:{MACHINE_SECRET}"));
        let form = format!("grant_type=client_credentials&scope=prism.admin+prism.data&resource={resource}");
        tokens(&self.post("/token", &form, &[("authorization", &format!("Basic {basic}"))]).await).access
    }

    async fn post(&self, path: &str, form: &str, headers: &[(&str, &str)]) -> Value {
        let address = self.issuer.strip_prefix("http://").expect("a provider that speaks http");
        let headers: Vec<_> = headers.iter().copied().chain([FORM]).collect();
        let (status, body) = http1::send(address, "POST", path, &headers, form).await;
        assert_eq!(status, 200, "{path}: {body}\n{}", self.log());
        serde_json::from_str(&body).expect("JSON")
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Somebody in front of a browser.
#[derive(Clone, Debug)]
pub struct Person {
    name: String,
    ca: Option<PathBuf>,
}

impl Person {
    /// Somebody with an account, or without one, at a provider.
    pub fn of(provider: &Provider, name: &str) -> Self {
        Self { name: name.to_owned(), ca: provider.ca.clone() }
    }

    /// Opens the page that a device showed, and agrees (`agree`), refuses (`deny`) or leaves (`cancel`). Gives the words of
    /// the last page.
    pub async fn visit(&self, page: &str, choice: &str) -> String {
        let mut command = node("person.js");
        command.args([page, &self.name, choice]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(ca) = &self.ca {
            command.env("NODE_EXTRA_CA_CERTS", ca);
        }
        let run = move || command.output().unwrap_or_else(|error| panic!("node is needed for this test: {error}"));
        let output = tokio::task::spawn_blocking(run).await.expect("it ran");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{} at {page}: {out}\n{err}", self.name);
        out.trim().to_owned()
    }
}

/// How long its start may take on a busy machine.
const START_WITHIN: Duration = Duration::from_mins(1);

fn node(script: &str) -> Command {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/oidc_provider");
    let installed = folder.join("node_modules/oidc-provider").is_dir();
    assert!(installed, "{} has no node_modules: run `npm ci` there, or `cargo xtask test`", folder.display());
    let mut command = Command::new("node");
    command.arg(folder.join(script)).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

fn tokens(answer: &Value) -> Tokens {
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    Tokens { access: text("access_token"), refresh: text("refresh_token"), id: text("id_token") }
}

fn keep(pipe: impl BufRead + Send + 'static, log: &Arc<Mutex<String>>) {
    let log = log.clone();
    std::thread::spawn(move || {
        for line in pipe.lines().map_while(Result::ok) {
            let mut log = lock(&log);
            log.push_str(&line);
            log.push('\n');
        }
    });
}

fn lock(log: &Mutex<String>) -> std::sync::MutexGuard<'_, String> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}
