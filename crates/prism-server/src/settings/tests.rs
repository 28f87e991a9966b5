use std::collections::HashMap;
use std::time::Duration;

use prism_store::OnReadFailure;

use super::*;

fn args(flags: &[&str]) -> ServeArgs {
    use clap::Parser;
    let line = ["prism", "serve"].into_iter().chain(flags.iter().copied());
    let crate::cli::Command::Serve(args) = crate::cli::Cli::try_parse_from(line).unwrap().command else {
        panic!("another command");
    };
    args
}

fn environment(variables: &[(&str, &str)]) -> Result<Environment, String> {
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    Environment::read(|name| variables.get(name).map(std::ffi::OsString::from))
}

fn resolve(flags: &[&str], variables: &[(&str, &str)], text: &str) -> Result<Settings, String> {
    Settings::resolve(&args(flags), &environment(variables)?, File::parse(text)?)
}

/// Every key of contract §1 that this version carries out.
const FULL: &str = r#"
[listen]
bind = "10.0.0.1"
data_port = 1
admin_port = 2
metrics_port = 3
names = ["prism.example"]
reflection = false
health = false
[tls.data]
mode = "files"
cert = "c.pem"
key = "k.pem"
client_ca = "data-cas.pem"
[tls.admin]
mode = "auto"
client_ca = "admin-cas.pem"
[state]
url = "sqlite"
[session]
idle_after = "30s"
expiring_within = "10s"
idle_timeout = "2m"
max_age = "1h"
retain_ended = "2h"
[limits]
max_key_bytes = 10
max_value_bytes = 11
max_connections = 12
max_in_flight = 13
max_streams_per_session = 14
data_threads = 1
auth_failures = 7
admin_rps = 8
[audit]
retention = "90d"
checkpoint_interval = "30s"
on_read_failure = "allow"
[cluster]
certificate_ttl = "12h"
[[backend]]
name = "main"
type = "sqlite"
path = "/var/lib/main"
[[backend]]
name = "scratch"
type = "memory"
[[oidc]]
issuer = "https://id.example.org/realms/a"
audience = "prism-admin"
data_audience = "prism-data"
admin_scope = "operate"
user_claim = "email"
groups_claim = "teams"
prefix = "a:"
role_map = { "platform" = "admin", "payments" = ["operator@payments", "viewer"], "department=ops=1" = "viewer" }
ca = "issuer.pem"
algorithms = ["ES256"]
"#;

#[test]
fn it_starts_without_a_file() {
    let settings = resolve(&[], &[], "").unwrap();
    assert!(settings.issuers(Clock::system()).unwrap().is_empty());
    assert_eq!(settings.data_dir, Path::new("./prism-data"));
    assert_eq!(settings.address(settings.data_port), "0.0.0.0:8980".parse().unwrap());
    assert_eq!((settings.admin_port, settings.metrics_port), (8981, 9090));
    assert_eq!((settings.data_tls, settings.admin_tls), (Some(Certificate::Auto), Certificate::Auto));
    assert_eq!(settings.session.idle_timeout, Duration::from_mins(5));
    assert!(settings.reflection && settings.health && !settings.dev);
    assert_eq!(settings.client_ca, ClientCa::default());
    assert_eq!((settings.audit, settings.auth_failures, settings.admin_rps), (AuditSettings::default(), 20, 0));
    assert_eq!(settings.node_certificate_ttl, Duration::from_hours(24));
    let names: Vec<_> = settings.backends.iter().map(|backend| (backend.name.as_str(), backend.kind())).collect();
    assert_eq!(names, [("sqlite", BackendType::Sqlite), ("memory", BackendType::Memory)]);
    assert_eq!(settings.backends[0].kind, BackendKind::Sqlite { folder: "./prism-data/backends/sqlite".into() });
}

#[test]
fn every_key_of_the_file_arrives() {
    let settings = resolve(&[], &[], FULL).unwrap();
    assert_eq!(settings.address(settings.data_port), "10.0.0.1:1".parse().unwrap());
    assert_eq!((settings.admin_port, settings.metrics_port), (2, 3));
    assert_eq!(
        (settings.names, settings.reflection, settings.health),
        (vec!["prism.example".to_owned()], false, false)
    );
    assert_eq!(settings.data_tls, Some(Certificate::Files { cert: "c.pem".into(), key: "k.pem".into() }));
    let session = &settings.session;
    let seconds =
        [session.idle_after, session.expiring_within, session.idle_timeout, session.max_age, session.retain_ended]
            .map(|duration| duration.as_secs());
    assert_eq!(seconds, [30, 10, 120, 3600, 7200]);
    let limits = &settings.limits;
    assert_eq!((limits.max_key_bytes, limits.max_value_bytes, limits.max_connections), (10, 11, 12));
    assert_eq!((limits.max_in_flight, limits.max_streams_per_session, limits.data_threads), (13, 14, 1));
    assert_eq!(settings.client_ca, ClientCa { admin: Some("admin-cas.pem".into()), data: Some("data-cas.pem".into()) });
    let audit = AuditSettings {
        retention: Some(Duration::from_hours(90 * 24)),
        checkpoint_interval: Duration::from_secs(30),
        on_read_failure: OnReadFailure::Allow,
    };
    assert_eq!((settings.audit, settings.auth_failures, settings.admin_rps), (audit, 7, 8));
    assert_eq!(settings.node_certificate_ttl, Duration::from_hours(12));
    assert_eq!(settings.backends.len(), 2);
    assert_eq!(settings.backends[0].kind, BackendKind::Sqlite { folder: "/var/lib/main".into() });
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let file = "[listen]\nbind = \"10.0.0.1\"\ndata_port = 1\nadmin_port = 2\nmetrics_port = 3\n";
    let variables = [("PRISM_DATA_PORT", "11"), ("PRISM_ADMIN_PORT", "12"), ("PRISM_DATA_DIR", "from-env")];
    let settings = resolve(&["--data-port", "21", "--bind", "127.0.0.2"], &variables, file).unwrap();
    assert_eq!((settings.data_port, settings.admin_port, settings.metrics_port), (21, 12, 3));
    assert_eq!(settings.bind, "127.0.0.2".parse::<IpAddr>().unwrap());
    assert_eq!(settings.data_dir, Path::new("from-env"));
    let settings = resolve(&["--data-dir", "from-flag"], &variables, "").unwrap();
    assert_eq!(settings.data_dir, Path::new("from-flag"));
    assert_eq!(settings.metrics_port, 9090);
    let settings = resolve(&[], &[("PRISM_METRICS_PORT", "0"), ("PRISM_DATA_PORT", "")], file).unwrap();
    assert_eq!((settings.metrics_port, settings.data_port), (0, 1));
}

#[test]
fn a_bad_variable_is_named() {
    for bad in ["x", "-1", "65536", "1.5"] {
        let error = environment(&[("PRISM_ADMIN_PORT", bad)]).unwrap_err();
        assert!(error.contains("PRISM_ADMIN_PORT") && error.contains(bad), "{error}");
    }
}

#[test]
fn unknown_keys_are_named_with_their_line() {
    for (text, key, line) in [
        ("nothing = 1", "nothing", 1),
        ("[listen]\nport = 1", "port", 2),
        ("\n\n[listener]\n", "listener", 3),
        ("[tls.data]\nca = 1", "ca", 2),
        ("[tls.admin]\n\nca = 1", "ca", 3),
        ("[tls]\nother = {}", "other", 2),
        ("[state]\nuri = 1", "uri", 2),
        ("[session]\nidle = \"1s\"", "idle", 2),
        ("[audit]\nkeep = \"1s\"", "keep", 2),
        ("[limits]\nmax_keys = 1", "max_keys", 2),
        ("[[backend]]\nname = \"a\"\ntype = \"memory\"\nurl = \"x\"", "url", 4),
        ("[[oidc]]\nissuer = \"https://a.example\"\nclient_secret = \"x\"", "client_secret", 3),
    ] {
        let error = File::parse(text).unwrap_err();
        assert!(error.contains(&format!("unknown field `{key}`")), "{text}: {error}");
        assert!(error.contains(&format!("line {line},")), "{text}: {error}");
    }
}

#[test]
fn issuers_that_could_name_the_same_person_are_refused_with_their_line() {
    let section = |number: usize, prefix: &str| {
        format!("[[oidc]]\nissuer = \"https://i{number}.example\"\naudience = \"x\"\nprefix = {prefix:?}\n\n")
    };
    let file = |prefixes: &[&str]| {
        let sections = prefixes.iter().enumerate().map(|(number, prefix)| section(number, prefix));
        File::parse(&("# first\n".to_owned() + &sections.collect::<String>()))
    };
    for (prefixes, line) in [(["", ""], 7), (["a:", "a:"], 7), (["", "b:"], 7), (["a:b:", "a:"], 7)] {
        let error = file(&prefixes).unwrap_err();
        assert!(error.starts_with(&format!("line {line}, oidc.prefix: ")), "{prefixes:?}: {error}");
        assert!(error.contains("https://i0.example"), "{error}");
    }
    assert!(file(&["a:", "b:", "a:c:"]).unwrap_err().starts_with("line 12,"));
    assert_eq!(file(&["a:", "b:", "c:"]).unwrap().oidc.len(), 3);
}

#[test]
fn every_bound_is_checked_with_its_line() {
    let cases = [
        ("session", "idle_after", "\"0s\"", "\"1s\""),
        ("session", "idle_after", "\"25h\"", "\"5m\""),
        ("session", "idle_after", "60", "\"60s\""),
        ("session", "idle_after", "\"soon\"", "\"60s\""),
        ("session", "expiring_within", "\"25h\"", "\"0s\""),
        ("session", "idle_timeout", "\"0s\"", "\"60s\""),
        ("session", "idle_timeout", "\"31d\"", "\"30d\""),
        ("session", "max_age", "\"99ms\"", "\"61s\""),
        ("session", "max_age", "\"366d\"", "\"365d\""),
        ("session", "retain_ended", "\"366d\"", "\"0s\""),
        ("limits", "max_key_bytes", "0", "1"),
        ("limits", "max_key_bytes", "65537", "65536"),
        ("limits", "max_value_bytes", "-1", "1"),
        ("limits", "max_value_bytes", "67108865", "67108864"),
        ("limits", "max_connections", "0", "1"),
        ("limits", "max_connections", "1000001", "1000000"),
        ("limits", "max_in_flight", "0", "1"),
        ("limits", "max_in_flight", "1000001", "1000000"),
        ("limits", "max_streams_per_session", "0", "1"),
        ("limits", "max_streams_per_session", "10001", "10000"),
        ("limits", "data_threads", "0", "1"),
        ("limits", "data_threads", "1025", "1024"),
        ("limits", "data_threads", "\"2\"", "2"),
        ("limits", "auth_failures", "0", "1"),
        ("limits", "auth_failures", "10001", "10000"),
        ("limits", "admin_rps", "-1", "0"),
        ("limits", "admin_rps", "1000001", "1000000"),
        ("audit", "retention", "\"999ms\"", "\"1s\""),
        ("audit", "retention", "\"11y\"", "\"10y\""),
        ("audit", "retention", "90", "\"90d\""),
        ("audit", "checkpoint_interval", "\"0s\"", "\"1s\""),
        ("audit", "checkpoint_interval", "\"25h\"", "\"1d\""),
        ("audit", "on_read_failure", "\"refuse\"", "\"fail\""),
        ("audit", "on_read_failure", "true", "\"allow\""),
        ("cluster", "certificate_ttl", "\"9s\"", "\"10s\""),
        ("cluster", "certificate_ttl", "\"8d\"", "\"7d\""),
        ("tls.admin", "client_ca", "true", "\"a.pem\""),
        ("tls.data", "client_ca", "[]", "\"a.pem\""),
        ("listen", "data_port", "65536", "65535"),
        ("listen", "admin_port", "-1", "0"),
        ("listen", "metrics_port", "1.5", "1"),
        ("listen", "bind", "\"here\"", "\"::\""),
        ("listen", "reflection", "1", "true"),
        ("listen", "health", "\"no\"", "false"),
        ("tls.data", "mode", "\"on\"", "\"off\""),
        ("tls.admin", "mode", "\"off\"", "\"auto\""),
        ("state", "url", "\"postgres://user:secret@host\"", "\"sqlite\""),
    ];
    for (section, key, bad, good) in cases {
        let error =
            File::parse(&format!("[{section}]\n{key} = {bad}\n")).expect_err(&format!("{section}.{key} = {bad}"));
        assert!(error.contains("line 2,") && error.contains(key), "{section}.{key} = {bad}: {error}");
        if let Err(error) = resolve(&[], &[], &format!("[{section}]\n{key} = {good}\n")) {
            panic!("{section}.{key} = {good}: {error}");
        }
    }
}

#[test]
fn what_depends_on_another_key_is_checked() {
    for (text, named) in [
        ("[session]\nidle_after = \"10m\"\nidle_timeout = \"5m\"", "session.idle_after"),
        ("[session]\nexpiring_within = \"2m\"\nmax_age = \"2m\"", "session.expiring_within"),
        ("[tls.data]\nmode = \"files\"\nkey = \"k\"", "tls.data.cert"),
        ("[tls.data]\nmode = \"files\"\ncert = \"c\"", "tls.data.key"),
        ("[tls.data]\ncert = \"c\"", "tls.data.cert"),
        ("[tls.data]\nmode = \"off\"\nkey = \"k\"", "tls.data.key"),
        ("[tls.admin]\nmode = \"files\"", "tls.admin.cert"),
        ("[tls.data]\nmode = \"off\"\nclient_ca = \"a.pem\"", "tls.data.client_ca"),
        ("[listen]\ndata_port = 9090", "--data-port and --metrics-port"),
        ("[listen]\nadmin_port = 8980", "--data-port and --admin-port"),
        ("[[backend]]\nname = \"a\"\ntype = \"memory\"\npath = \"x\"", "backend \"a\""),
        ("[[backend]]\nname = \"a\"\ntype = \"memory\"\n[[backend]]\nname = \"a\"\ntype = \"sqlite\"", "backend \"a\""),
        ("[[backend]]\nname = \"sqlite\"\ntype = \"memory\"", "backend \"sqlite\""),
        (
            "[[backend]]\nname = \"a\"\ntype = \"sqlite\"\npath = \"x\"\n[[backend]]\nname = \"b\"\ntype = \"sqlite\"\npath = \"x\"",
            "backend \"b\"",
        ),
    ] {
        let error = resolve(&[], &[], text).unwrap_err();
        assert!(error.contains(named), "{text}: {error}");
    }
    // Who sets one of a pair need not know the other's default.
    for alone in ["idle_after = \"10m\"", "idle_timeout = \"2s\"", "max_age = \"5s\""] {
        resolve(&[], &[], &format!("[session]\n{alone}")).unwrap();
    }
    let names = vec!["\"a.example\""; MAX_NAMES + 1].join(",");
    assert!(resolve(&[], &[], &format!("[listen]\nnames = [{names}]")).unwrap_err().contains("listen.names"));
}

#[test]
fn what_is_not_built_in_is_refused_not_ignored() {
    let error = File::parse("[[backend]]\nname = \"a\"\ntype = \"postgres\"").unwrap_err();
    assert!(error.contains("not built into this version") && error.contains("line 3,"), "{error}");
    assert!(File::parse("[[backend]]\nname = \"a\"\ntype = \"oracle\"").unwrap_err().contains("oracle"));
    assert!(File::parse("[[backend]]\nname = \"A\"\ntype = \"memory\"").unwrap_err().contains("line 2,"));
    let error = File::parse("[state]\nurl = \"postgres://user:secret@host\"").unwrap_err();
    assert!(error.contains("sqlite"), "{error}");
}

#[test]
fn dev_stays_on_this_machine_and_in_clear_text() {
    let settings = resolve(&["--dev"], &[], "").unwrap();
    assert_eq!((settings.bind, settings.data_tls), ("127.0.0.1".parse().unwrap(), None));
    assert_eq!(settings.admin_tls, Certificate::Auto);
    assert!(resolve(&["--dev", "--bind", "::1"], &[], "").is_ok());
    assert!(resolve(&["--dev", "--bind", "0.0.0.0"], &[], "").unwrap_err().contains("--bind"));
    assert!(resolve(&["--dev"], &[], "[listen]\nbind = \"10.0.0.1\"").unwrap_err().contains("listen.bind"));
    assert!(resolve(&["--dev"], &[], "[tls.data]\nmode = \"auto\"").unwrap_err().contains("tls.data"));
    assert!(resolve(&["--dev"], &[], "[tls.data]\nmode = \"off\"").is_ok());
}

#[test]
fn paths_in_a_file_are_relative_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prism.toml");
    std::fs::write(&path, FULL).unwrap();
    let settings =
        Settings::resolve(&ServeArgs::default(), &Environment::default(), File::read(&path).unwrap()).unwrap();
    let cert = folder.path().join("c.pem");
    assert_eq!(settings.data_tls, Some(Certificate::Files { cert, key: folder.path().join("k.pem") }));
    assert_eq!(settings.backends[0].kind, BackendKind::Sqlite { folder: "/var/lib/main".into() });
    let bundles = ["admin-cas.pem", "data-cas.pem"].map(|name| Some(folder.path().join(name)));
    assert_eq!([settings.client_ca.admin.clone(), settings.client_ca.data.clone()], bundles);
    let missing = settings.issuers(Clock::system()).unwrap_err();
    assert!(missing.contains(folder.path().join("issuer.pem").to_str().unwrap()), "{missing}");
    let error = File::read(&folder.path().join("absent.toml")).unwrap_err();
    assert!(error.contains("absent.toml"), "{error}");
}
