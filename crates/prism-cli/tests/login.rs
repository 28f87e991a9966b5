//! Logins at a fake issuer, and calls with what it gave.

mod fake;
mod issuer;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use fake::{Ca, Fake, one, stderr, stdout};
use issuer::{Asked, Issuer};
use prism_proto::admin::v1 as admin;
use serde_json::{Value, json};
use tonic::Status;

/// A server that accepts the access tokens which `accepts` does.
fn server(accepts: impl Fn(&str) -> bool + Send + Sync + 'static) -> Fake {
    Fake::start(move |call| {
        let token = call.header("authorization").and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        if accepts(token) {
            one(&admin::WhoAmIResponse { actor: token.to_owned(), ..Default::default() })
        } else {
            Err(Status::unauthenticated("the admin credential is not valid"))
        }
    })
}

/// Runs the command elsewhere than where the data directory is, so that the context counts.
fn command(fake: &Fake, line: &str) -> Command {
    let mut command = fake.command(&line.split(' ').collect::<Vec<_>>());
    command.current_dir(fake.config_dir().parent().unwrap());
    command
}

fn run(fake: &Fake, line: &str) -> Output {
    command(fake, line).output().unwrap()
}

/// Logs the context `prod` in by device code.
fn log_in(fake: &Fake, issuer: &Issuer, more: &str) -> Output {
    fs::create_dir_all(fake.config_dir()).unwrap();
    let (endpoint, ca) = (fake.endpoint(), fake.data_dir().join("ca.pem"));
    let line = format!(
        "login --context prod --endpoint {endpoint} --ca {} --issuer {} --client-id prism{more}",
        ca.display(),
        issuer.url
    );
    run(fake, &line)
}

fn tokens_file(fake: &Fake) -> PathBuf {
    fake.config_dir().join("tokens/prod.json")
}

fn granted(access: &str, refresh: Option<&str>, expires_in: u64) -> (u16, Value) {
    let mut json = json!({ "access_token": access, "token_type": "Bearer", "expires_in": expires_in });
    if let Some(refresh) = refresh {
        json["refresh_token"] = refresh.into();
    }
    (200, json)
}

fn device() -> (u16, Value) {
    let page = "https://id.example/device";
    (
        200,
        json!({
            "device_code": "device-secret",
            "user_code": "WDJB-MJHT",
            "verification_uri": page,
            "verification_uri_complete": format!("{page}?user_code=WDJB-MJHT"),
            "expires_in": 60,
            "interval": 1,
        }),
    )
}

/// An issuer that grants `first` by device code at once, and by refresh what `refresh` says.
fn issuer(
    first: impl Fn() -> (u16, Value) + Send + Sync + 'static,
    refresh: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static,
) -> Issuer {
    Issuer::start(move |asked| match (asked.path.as_str(), asked.field("grant_type")) {
        ("/device", _) => device(),
        ("/token", Some("refresh_token")) => refresh(asked),
        ("/token", _) => first(),
        ("/revoke", _) => (200, json!({})),
        _ => (404, json!({ "error": "not_found" })),
    })
}

fn no_refresh(_: &Asked) -> (u16, Value) {
    (400, json!({ "error": "invalid_grant" }))
}

#[test]
fn a_person_logs_in_by_device_code() {
    let fake = server(|token| token == "access-1");
    let polls = AtomicUsize::new(0);
    let pending = move || match polls.fetch_add(1, Ordering::SeqCst) {
        0 => (400, json!({ "error": "authorization_pending" })),
        _ => granted("access-1", Some("refresh-1"), 3600),
    };
    let issuer = issuer(pending, no_refresh);
    let output = log_in(&fake, &issuer, " --audience https://prism.example");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stderr(&output);
    assert!(text.contains("WDJB-MJHT") && text.contains("https://id.example/device"), "{text}");
    assert_eq!(stdout(&output), "");

    let asked = issuer.asked();
    assert_eq!(asked.len(), 3);
    assert_eq!(asked[0].field("scope"), Some("openid offline_access prism.admin"));
    for request in &asked {
        assert_eq!((request.field("client_id"), request.authorization.as_deref()), (Some("prism"), None));
        assert_eq!(request.field("audience"), Some("https://prism.example"));
        assert_eq!(request.field("resource"), Some("https://prism.example"));
    }
    assert_eq!(asked[2].field("device_code"), Some("device-secret"));

    let file = tokens_file(&fake);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let contexts = fs::read_to_string(fake.config_dir().join("admin.toml")).unwrap();
    for secret in ["access-1", "refresh-1", "device-secret"] {
        assert!(!text.contains(secret) && !contexts.contains(secret), "{secret}");
    }
    let output = run(&fake, "whoami");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("access-1"));
    // No refresh was needed.
    assert_eq!(issuer.asked().len(), 3);
}

#[test]
fn refresh_tokens_rotate_and_the_new_one_is_kept_first() {
    let fake = server(|token| token.starts_with("access-"));
    // Each token has ended at once, so every command renews.
    let refresh = |asked: &Asked| {
        let number: u32 = asked.field("refresh_token").unwrap().strip_prefix("refresh-").unwrap().parse().unwrap();
        granted(&format!("access-{}", number + 1), Some(&format!("refresh-{}", number + 1)), 0)
    };
    let issuer = issuer(|| granted("access-1", Some("refresh-1"), 0), refresh);
    log_in(&fake, &issuer, "");
    for number in 2..5 {
        let output = run(&fake, "whoami");
        assert!(stdout(&output).contains(&format!("access-{number}")), "{}{}", stdout(&output), stderr(&output));
    }
    let kept: Value = serde_json::from_str(&fs::read_to_string(tokens_file(&fake)).unwrap()).unwrap();
    assert_eq!(kept["refreshToken"], "refresh-4");
}

#[test]
fn an_issuer_that_does_not_rotate_is_asked_again_with_the_same() {
    let fake = server(|token| token.starts_with("access-"));
    let issuer = issuer(|| granted("access-1", Some("refresh-1"), 0), |_| granted("access-2", None, 0));
    log_in(&fake, &issuer, "");
    for _ in 0..2 {
        assert_eq!(run(&fake, "whoami").status.code(), Some(0));
        assert_eq!(issuer.asked().pop().unwrap().field("refresh_token"), Some("refresh-1"));
    }
}

#[test]
fn two_commands_at_once_refresh_once() {
    let fake = server(|token| token == "access-2");
    let issuer = issuer(
        || granted("access-1", Some("refresh-1"), 0),
        |asked| {
            std::thread::sleep(std::time::Duration::from_millis(300));
            match asked.field("refresh_token") {
                Some("refresh-1") => granted("access-2", Some("refresh-2"), 3600),
                _ => no_refresh(asked),
            }
        },
    );
    log_in(&fake, &issuer, "");
    let children: Vec<_> = (0..4)
        .map(|_| {
            let mut command = command(&fake, "whoami");
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    let refreshed = issuer.asked().iter().filter(|asked| asked.field("grant_type") == Some("refresh_token")).count();
    assert_eq!(refreshed, 1);
}

#[test]
fn a_token_that_the_server_refuses_is_renewed_once() {
    let fake = server(|token| token == "access-2");
    let issuer =
        issuer(|| granted("access-1", Some("refresh-1"), 3600), |_| granted("access-2", Some("refresh-2"), 3600));
    log_in(&fake, &issuer, "");
    let output = run(&fake, "whoami");
    assert!(stdout(&output).contains("access-2"), "{}", stderr(&output));
    assert_eq!(fake.calls().len(), 2);

    // Refused for good: one more try, and no more.
    let fake = server(|_| false);
    log_in(&fake, &issuer, "");
    for line in ["whoami", "audit list"] {
        let calls = fake.calls().len();
        let output = run(&fake, line);
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        assert!(stderr(&output).contains("prism-admin login --context prod"), "{}", stderr(&output));
        assert_eq!(fake.calls().len(), calls + 2);
    }
}

#[test]
fn an_expired_login_says_what_to_do() {
    let fake = server(|_| true);
    let expired = issuer(|| granted("access-1", Some("refresh-1"), 0), no_refresh);
    log_in(&fake, &expired, "");
    let output = run(&fake, "whoami");
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("run: prism-admin login --context prod"), "{}", stderr(&output));
    assert!(fake.calls().is_empty());

    let no_token = issuer(|| granted("access-1", None, 0), no_refresh);
    let output = log_in(&fake, &no_token, "");
    assert!(stderr(&output).contains("no refresh token"), "{}", stderr(&output));
    let output = run(&fake, "whoami");
    assert!(stderr(&output).contains("run: prism-admin login --context prod"), "{}", stderr(&output));
    // Logging in again needs no flags.
    assert_eq!(run(&fake, "login").status.code(), Some(0));
}

#[test]
fn tokens_go_to_their_own_issuer_only() {
    let fake = server(|_| true);
    let first = issuer(|| granted("access-1", Some("refresh-1"), 0), no_refresh);
    log_in(&fake, &first, "");
    let second = issuer(|| granted("access-2", None, 60), no_refresh);
    let path = fake.config_dir().join("admin.toml");
    let text = fs::read_to_string(&path).unwrap().replace(&first.url, &second.url);
    fs::write(&path, text).unwrap();
    let output = run(&fake, "whoami");
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("another issuer"), "{}", stderr(&output));
    assert!(second.asked().is_empty());
}

#[test]
fn refusals_of_the_issuer_have_their_exits() {
    for (error, exit, part) in [
        ("access_denied", 3, "refused at the issuer"),
        ("expired_token", 9, "expired"),
        ("unauthorized_client", 3, "allow this grant"),
    ] {
        let fake = server(|_| true);
        let issuer = issuer(move || (400, json!({ "error": error })), no_refresh);
        let output = log_in(&fake, &issuer, "");
        assert_eq!(output.status.code(), Some(exit), "{error}");
        assert!(stderr(&output).contains(part), "{error}: {}", stderr(&output));
        assert!(!tokens_file(&fake).exists());
    }
    let fake = server(|_| true);
    let issuer = Issuer::start(|_| (400, json!({ "error": "invalid_scope", "error_description": "no \u{1b}[31m" })));
    let output = log_in(&fake, &issuer, "");
    assert_eq!(output.status.code(), Some(3));
    let text = stderr(&output);
    assert!(text.contains("--scope") && text.contains("no \\u{1b}"), "{text}");
}

#[test]
fn an_issuer_is_who_it_says() {
    let fake = server(|_| true);
    let issuer = issuer(|| granted("access-1", None, 60), no_refresh);
    let port = issuer.url.rsplit(':').next().unwrap();
    fs::create_dir_all(fake.config_dir()).unwrap();
    let with = |url: &str| {
        let ca = fake.data_dir().join("ca.pem");
        let place = format!("--endpoint {} --ca {}", fake.endpoint(), ca.display());
        run(&fake, &format!("login {place} --issuer {url} --client-id prism"))
    };
    let output = with(&format!("http://localhost:{port}"));
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("calls itself"), "{}", stderr(&output));
    assert_eq!(with("http://id.example").status.code(), Some(2));
    assert_eq!(with("http://127.0.0.1:1").status.code(), Some(5));
    assert!(issuer.asked().is_empty());
}

#[test]
fn a_private_ca_of_the_issuer_is_named() {
    let ca = Ca::new();
    let fake = server(|token| token == "access-1");
    let issuer = Issuer::start_with(Some(&ca), |asked| match asked.path.as_str() {
        "/device" => device(),
        _ => granted("access-1", None, 3600),
    });
    let file = fake.folder().join("issuer-ca.pem");
    fs::write(&file, &ca.pem).unwrap();
    let output = log_in(&fake, &issuer, &format!(" --issuer-ca {}", file.display()));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(run(&fake, "whoami").status.code(), Some(0));
    let stranger = fake.data_dir().join("ca.pem");
    let output = log_in(&fake, &issuer, &format!(" --issuer-ca {}", stranger.display()));
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(stderr(&output).contains("--issuer-ca"), "{}", stderr(&output));
}

#[test]
fn a_machine_logs_in_by_itself() {
    let fake = server(|token| token.starts_with("machine-"));
    let count = Arc::new(Mutex::new(0));
    let granting = Arc::clone(&count);
    let issuer = Issuer::start(move |_| {
        let mut count = granting.lock().unwrap();
        *count += 1;
        granted(&format!("machine-{count}"), None, 0)
    });
    let file = fake.folder().join("secret");
    fs::write(&file, "s:cret\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let more = format!(" --client-credentials --client-secret-file {} --audience prism-admin", file.display());
    let output = log_in(&fake, &issuer, &more);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&run(&fake, "whoami")).contains("machine-2"));
    let asked = issuer.asked();
    for request in &asked {
        // prism:s%3Acret
        assert_eq!(request.authorization.as_deref(), Some("Basic cHJpc206cyUzQWNyZXQ="));
        assert_eq!(request.field("grant_type"), Some("client_credentials"));
        assert_eq!((request.field("scope"), request.field("client_id")), (Some("prism.admin"), None));
        assert_eq!((request.field("audience"), request.field("resource")), (Some("prism-admin"), None));
    }
    fs::remove_file(&file).unwrap();
    let output = command(&fake, "whoami").env("PRISM_ADMIN_CLIENT_SECRET", "s:cret").output().unwrap();
    assert!(stdout(&output).contains("machine-3"), "{}", stderr(&output));
    assert_eq!(run(&fake, "whoami").status.code(), Some(2));
}

#[test]
fn a_logout_revokes_and_removes() {
    let fake = server(|_| true);
    let issuer = issuer(|| granted("access-1", Some("refresh-1"), 3600), no_refresh);
    log_in(&fake, &issuer, "");
    let output = run(&fake, "logout");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let asked = issuer.asked().pop().unwrap();
    assert_eq!((asked.path.as_str(), asked.field("token")), ("/revoke", Some("refresh-1")));
    assert!(!tokens_file(&fake).exists());
    let output = run(&fake, "whoami");
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("nobody is logged in"), "{}", stderr(&output));
    assert_eq!(run(&fake, "logout").status.code(), Some(0));

    // An issuer that is away: the tokens are gone here, and the person is told.
    log_in(&fake, &issuer, "");
    drop(issuer);
    let output = run(&fake, "logout");
    assert_eq!(output.status.code(), Some(5));
    assert!(stderr(&output).contains("was not told"), "{}", stderr(&output));
    assert!(!tokens_file(&fake).exists());
}
