//! Every RPC of the admin plane, found by reflection, × every role, for the installation and in one namespace, × what the call
//! aims at, and × every kind of credential. The verdict is that of the tables in seed A and contract §7, and every refusal is
//! in the audit log.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use prism_e2e::matrix::{ROLES, Scope, Target, Targets, holds, is_known, permission_of, reflected_rules, scope_of};
use prism_e2e::wait::within;
use prism_e2e::{Admin, Failure, Headers, Options, Prism, Site, raw};
use prism_proto::admin::v1::{
    CreateApiKeyRequest, CreateRoleRequest, GetAuditLogRequest, RevokeApiKeyRequest, Role, RotateApiKeyRequest,
};
use prism_proto::rules::{AuditClass, MethodRule, rules};
use tonic::Code;

/// A role of the installation's own, beside the three built in.
const CUSTOM: (&str, &[&str]) = ("auditor", &["audit:read", "access:read", "namespace:*"]);

/// A valid caller.
struct Caller {
    name: String,
    admin: Admin,
    permissions: &'static [&'static str],
    /// The namespace it is bound to.
    own: Option<String>,
}

impl Caller {
    fn expects(&self, rule: &MethodRule, target: &Target) -> bool {
        if !holds(self.permissions, permission_of(&rule.method)) {
            return false;
        }
        match (&self.own, scope_of(&rule.method), target) {
            (None, _, _) | (Some(_), Scope::Filtered, _) => true,
            (Some(_), Scope::Installation, _) => false,
            (Some(own), _, Target::Namespace(aimed)) => own == aimed,
            (Some(_), scope, Target::Installation) => scope == Scope::List,
        }
    }
}

async fn call(admin: &Admin, rule: &MethodRule, request: &serde_json::Value, id: &str) -> Result<(), Failure> {
    let message = prism_proto::from_json(&rule.input, request).unwrap_or_else(|error| panic!("{}: {error}", rule.path));
    let headers = admin.headers.clone().with("x-request-id", id);
    let what = format!("{} with {request}", rule.path);
    let outcome = if request["follow"] == true {
        // It may have nothing to say for long; that it opens is the verdict.
        within(&what, raw::open(&admin.channel, &headers, &rule.path, message)).await.map(drop)
    } else {
        within(&what, raw::call(&admin.channel, &headers, &rule.path, message)).await.map(drop)
    };
    outcome.map_err(|status| Failure::from(&status))
}

/// Past the test harness, which shows nothing of a test that passes.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

async fn server() -> Arc<Prism> {
    Arc::new(Prism::start(Options::new().config("[limits]\nauth_failures = 1000\n")).await)
}

#[test]
fn the_descriptors_say_what_the_contracts_table_says() {
    for rule in rules().unwrap().iter().filter(|rule| rule.audit != AuditClass::None) {
        let expected = if rule.method == "RenewCertificate" { "node:self" } else { permission_of(&rule.method) };
        assert_eq!(rule.permission, expected, "{}", rule.path);
    }
}

#[tokio::test]
async fn every_valid_credential_may_do_what_its_roles_say_where_they_hold_and_nothing_else() {
    let server = server().await;
    let (site, other) = (Site::new(Arc::clone(&server)).await, Site::new(Arc::clone(&server)).await);
    let role = Role {
        name: CUSTOM.0.to_owned(),
        permissions: CUSTOM.1.iter().map(|text| (*text).to_owned()).collect(),
        built_in: false,
    };
    site.admin.access().create_role(CreateRoleRequest { role: Some(role) }).await.expect("a role");
    let (mine, theirs) = (Targets::of_namespace(&site).await, Targets::of_namespace(&other).await);
    let installation = Targets::of_installation(&site).await;
    let mut callers = Vec::new();
    for (role, permissions) in ROLES.into_iter().chain([CUSTOM]) {
        for own in [None, Some(site.namespace.clone())] {
            let admin = site.admin.with_role(role, own.as_deref()).await;
            let place = own.as_ref().map_or("everywhere", |_| "in its namespace");
            callers.push(Caller { name: format!("{role} {place}"), admin, permissions, own });
        }
    }

    let rules = reflected_rules(&site.admin.channel).await;
    let (mut verdicts, mut refusals, mut wrong) = (0, BTreeMap::new(), Vec::new());
    for caller in &callers {
        for rule in &rules {
            for targets in [&installation, &mine, &theirs] {
                let Some(requests) = targets.requests(&rule.method) else { continue };
                for request in requests {
                    let id = format!("matrix-{verdicts}");
                    let outcome = call(&caller.admin, rule, &request, &id).await;
                    let expected = caller.expects(rule, &targets.target);
                    let (aimed, shown) = (&targets.target, &caller.name);
                    match (&outcome, expected) {
                        (Err(failure), _) if matches!(failure.code, Code::Unauthenticated | Code::Unimplemented) => {
                            wrong.push(format!("{shown}: {} on {aimed:?} answered {failure:?}", rule.path));
                        }
                        (Err(failure), false) if failure.code == Code::PermissionDenied => {
                            refusals.insert(id, (shown, rule, outcome.unwrap_err()));
                        }
                        (Err(failure), true) if failure.code != Code::PermissionDenied => {}
                        (Ok(()), true) => {}
                        _ => {
                            wrong
                                .push(format!("{shown}: {} on {aimed:?}: expected {expected}, {outcome:?}", rule.path));
                        }
                    }
                    verdicts += 1;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {verdicts} verdicts differ from the table:\n{}", wrong.len(), wrong.join("\n"));
    say(&format!(
        "matrix: {verdicts} verdicts of {} RPCs × {} callers × what they aim at, {} of them refusals, each in the audit log",
        rules.len(),
        callers.len(),
        refusals.len()
    ));

    let log = site.admin.whole_log().await;
    prism_e2e::audit::verify(&log);
    let mut entries: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for entry in &log {
        entries.entry(&entry.request_id).or_default().push(entry);
    }
    for (id, (caller, rule, failure)) in &refusals {
        let Some([entry]) = entries.get(id.as_str()).map(Vec::as_slice) else {
            panic!("{caller}: {} left not one entry", rule.path)
        };
        assert_eq!((entry.operation.as_str(), entry.success), (rule.method.as_str(), false), "{caller}");
        failure.is(Code::PermissionDenied, "PERMISSION_DENIED");
        assert_eq!(failure.metadata["permission"], rule.permission, "{caller}: {}", rule.path);
        assert_eq!(failure.metadata["audit_id"], entry.id, "{caller}: {}", rule.path);
        assert_eq!(entry.metadata["permission"], rule.permission, "{caller}: {}", rule.path);
        assert!(failure.message.contains(&rule.permission), "{}", failure.message);
    }
}

/// Credentials that must open nothing, whatever they once were.
async fn dead_credentials(site: &Site) -> Vec<(&'static str, Headers)> {
    let mut access = site.admin.access();
    let key = async |user: Option<&str>| site.admin.create_api_key("admin", None, user).await;
    let revoked = key(None).await;
    let id = revoked.api_key.unwrap().key_id;
    access.revoke_api_key(RevokeApiKeyRequest { key_id: id }).await.expect("a revocation");
    let rotated = key(None).await;
    let rotate = RotateApiKeyRequest { key_id: rotated.api_key.unwrap().key_id, overlap: None };
    let current = access.rotate_api_key(rotate).await.expect("a rotation").into_inner().token;
    assert_ne!(current, rotated.token);
    let short = CreateApiKeyRequest {
        name: "short".to_owned(),
        roles: vec!["admin".to_owned()],
        ttl: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..CreateApiKeyRequest::default()
    };
    let expired = access.create_api_key(short).await.expect("a key").into_inner().token;
    let session = site.session(prism_e2e::Pattern::KeyValue).await;
    let alices = key(Some("alice@example.com")).await.token;
    let valid = site.server.admin_token();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let cut = &valid[..valid.len() - 1];
    let mut flipped = valid.clone();
    let last = flipped.pop().unwrap();
    flipped.push(if last == '0' { '1' } else { '0' });
    vec![
        ("absent", Headers::none()),
        ("empty", Headers::bearer("")),
        ("cut", Headers::bearer(cut)),
        ("doubled", Headers::bearer(&format!("{valid}{valid}"))),
        ("upper case", Headers::bearer(&valid.to_uppercase())),
        ("wrong checksum", Headers::bearer(&flipped)),
        ("no prefix", Headers::admin_token(&valid[4..])),
        ("unknown", Headers::bearer(&prism_e2e::matrix::unknown_key())),
        ("another scheme", Headers::none().with("authorization", &format!("Basic {valid}"))),
        ("a JWT of alg none", Headers::bearer("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.")),
        ("two at once", Headers::bearer(&valid).with("x-admin-token", &revoked.token)),
        ("expired", Headers::bearer(&expired)),
        ("revoked", Headers::bearer(&revoked.token)),
        ("rotated away", Headers::bearer(&rotated.token)),
        ("a client key", Headers::bearer(&site.key)),
        ("a session's token", Headers::bearer(&session.token)),
        ("alice's, as bob", Headers::bearer(&alices).user("bob@example.com")),
    ]
}

#[tokio::test]
async fn no_other_credential_opens_anything() {
    let site = Site::new(server().await).await;
    let targets = Targets::of_namespace(&site).await;
    let rules = reflected_rules(&site.admin.channel).await;
    let credentials = dead_credentials(&site).await;
    let (mut calls, mut wrong, mut reasons) = (0, Vec::new(), BTreeMap::new());
    for (name, headers) in &credentials {
        let admin = site.admin.with_headers(headers.clone());
        for rule in &rules {
            let requests = targets.requests(&rule.method).unwrap_or_else(|| vec![serde_json::json!({})]);
            for request in requests {
                match call(&admin, rule, &request, &format!("dead-{calls}")).await {
                    Err(failure) if failure.code == Code::Unauthenticated => {
                        reasons.entry(*name).or_insert_with(BTreeSet::new).insert((failure.reason, failure.message));
                    }
                    other => wrong.push(format!("{name}: {} answered {other:?}", rule.path)),
                }
                calls += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {calls} calls:\n{}", wrong.len(), wrong.join("\n"));
    say(&format!("matrix: {calls} refusals: {} RPCs × {} credentials that are none", rules.len(), credentials.len()));

    // What is unknown, wrong, expired, revoked or foreign is told apart by nobody.
    for (name, found) in &reasons {
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        let told = ["absent", "two at once", "alice's, as bob"];
        if !told.contains(name) {
            assert_eq!(found, &reasons["unknown"], "{name}");
        }
    }

    // Entries are bounded in number, and none is forgotten: what is not there is counted.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let last = site.admin.with_headers(Headers::none());
    let closing = rules.iter().find(|rule| rule.method == "WhoAmI").unwrap();
    call(&last, closing, &serde_json::json!({}), "closing").await.unwrap_err();
    let log = site.admin.audit(GetAuditLogRequest { limit: 10_000, ..GetAuditLogRequest::default() }).await;
    let anonymous: Vec<_> = log.iter().filter(|entry| entry.actor == "anonymous").collect();
    let counted: u64 = anonymous
        .iter()
        .filter_map(|entry| entry.metadata.get("suppressed_before"))
        .map(|count| count.parse::<u64>().unwrap())
        .sum();
    // An entry that holds nothing but the count is of no call.
    let own = anonymous.iter().filter(|entry| entry.operation != "RefusedCredentials").count();
    assert_eq!(own as u64 + counted, calls + 1);
    assert!(own < calls as usize / 2, "{own} entries for {calls} calls");
}

#[test]
fn every_rpc_has_a_place_in_the_tests_table() {
    for rule in rules().unwrap().iter().filter(|rule| rule.service.starts_with("prism.admin.v1.")) {
        assert!(is_known(&rule.method), "{} is in no list of src/matrix.rs", rule.path);
    }
}

/// They belong to a later version; until then nobody gets anywhere with them, strangers learn nothing, and every try is
/// recorded.
#[tokio::test]
async fn rpcs_of_later_versions_lead_nobody_anywhere() {
    let server = Prism::start(Options::new()).await;
    let admin = server.admin();
    let rules: Vec<_> =
        rules().unwrap().into_iter().filter(|rule| rule.service.starts_with("prism.cluster.v1.")).collect();
    assert_eq!(rules.len(), 5);
    for rule in &rules {
        for (headers, code) in [(admin.headers.clone(), Code::Unimplemented), (Headers::none(), Code::Unauthenticated)]
        {
            let refused = raw::call(&admin.channel, &headers, &rule.path, Vec::new()).await.unwrap_err();
            assert_eq!(refused.code(), code, "{}", rule.path);
        }
    }
    let log = admin.whole_log().await;
    let tries = log.iter().filter(|entry| rules.iter().any(|rule| rule.method == entry.operation)).count();
    assert_eq!(tries, 10);
}
