//! Nobody takes the last administrator away by mistake, and whoever is locked out all the same has a way back on the box.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};
use std::sync::Arc;

use prism_e2e::site::unique;
use prism_e2e::wait::{until, within};
use prism_e2e::{Admin, Cli, Failure, Options, Prism, Refused as _, audit, binaries};
use prism_proto::admin::v1 as wire;
use tokio::task::JoinSet;
use tonic::{Code, Response, Status};

const REASON: &str = "LAST_ADMINISTRATOR";

async fn key(admin: &Admin, role: &str, namespace: Option<&str>, ttl: Option<i64>) -> (String, Admin) {
    let request = wire::CreateApiKeyRequest {
        name: format!("{role} key"),
        roles: vec![role.to_owned()],
        namespace: namespace.map(str::to_owned),
        ttl: ttl.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    };
    let made = admin.access().create_api_key(request).await.unwrap().into_inner();
    (made.api_key.unwrap().key_id, admin.with_key(&made.token))
}

async fn revoke(admin: &Admin, key_id: &str) -> Result<(), Status> {
    admin.access().revoke_api_key(wire::RevokeApiKeyRequest { key_id: key_id.to_owned() }).await.map(drop)
}

async fn bind(admin: &Admin, role: &str, namespace: Option<&str>) -> String {
    let binding = wire::Binding {
        subject: format!("user:{}", unique("u")),
        role: role.to_owned(),
        namespace: namespace.map(str::to_owned),
        ..Default::default()
    };
    let request = wire::CreateBindingRequest { binding: Some(binding) };
    admin.access().create_binding(request).await.unwrap().into_inner().binding.unwrap().binding_id
}

async fn unbind(admin: &Admin, binding_id: &str) -> Result<(), Status> {
    let request = wire::DeleteBindingRequest { binding_id: binding_id.to_owned() };
    admin.access().delete_binding(request).await.map(drop)
}

#[track_caller]
fn refused(outcome: Result<(), Status>) {
    let failure = Failure::from(&outcome.expect_err("a refusal"));
    failure.is(Code::FailedPrecondition, REASON);
    assert!(failure.message.contains("first create an API key"), "{failure:?}");
}

async fn own_key(admin: &Admin) -> String {
    admin.who_am_i().await.unwrap().credential_id
}

#[tokio::test]
async fn the_last_key_stays_whatever_else_there_is() {
    let server = Prism::start(Options::new()).await;
    let admin = server.admin();
    let first = own_key(&admin).await;
    admin.create_namespace("team").await;
    // Those who cannot hand out rights everywhere are no administrators.
    key(&admin, "viewer", None, None).await;
    key(&admin, "operator", None, None).await;
    key(&admin, "admin", Some("team"), None).await;
    bind(&admin, "admin", Some("team")).await;
    bind(&admin, "viewer", None).await;
    let (revoked, _) = key(&admin, "admin", None, None).await;
    revoke(&admin, &revoked).await.unwrap();
    let (_, short) = key(&admin, "admin", None, Some(1)).await;
    until("the end of a key", async || short.who_am_i().await.err()).await;
    refused(revoke(&admin, &first).await);
    // It was undone as a whole: the key works, the refusal has its entry, the log is whole.
    let log = admin.whole_log().await;
    audit::verify(&log);
    let entry = log.iter().rfind(|entry| entry.operation == "RevokeApiKey").expect("an entry");
    assert!(!entry.success && entry.metadata["reason"] == REASON, "{entry:?}");
    Cli::of(&server).run(&format!("key revoke {first} --yes")).fails(6, "access:*");

    // A key with an end counts until then; what is revoked already is not taken once more.
    let (expiring, other) = key(&admin, "admin", None, Some(3600)).await;
    revoke(&admin, &first).await.unwrap();
    revoke(&other, &first).await.unwrap();
    refused(revoke(&other, &expiring).await);
    let rotate = wire::RotateApiKeyRequest { key_id: expiring.clone(), overlap: None };
    let token = other.access().rotate_api_key(rotate).await.unwrap().into_inner().token;
    refused(revoke(&other.with_key(&token), &expiring).await);
}

#[tokio::test]
async fn bindings_and_roles_count_like_keys() {
    let server = Prism::start(Options::new()).await;
    let admin = server.admin();
    let first = own_key(&admin).await;
    // With a binding, the key may go; without the key, the binding may not.
    let binding = bind(&admin, "admin", None).await;
    let permissions = admin.access().list_roles(wire::ListRolesRequest::default()).await.unwrap().into_inner().roles;
    let all = permissions.into_iter().find(|role| role.name == "admin").unwrap().permissions;
    let role = wire::Role { name: "root".to_owned(), permissions: all.clone(), built_in: false };
    admin.access().create_role(wire::CreateRoleRequest { role: Some(role.clone()) }).await.unwrap();
    let (_, root) = key(&admin, "root", None, None).await;
    revoke(&root, &first).await.unwrap();
    unbind(&root, &binding).await.unwrap();
    // Now all rests on a role that may change.
    let less = wire::Role {
        permissions: all.into_iter().filter(|permission| !permission.starts_with("access")).collect(),
        ..role.clone()
    };
    refused(root.access().update_role(wire::UpdateRoleRequest { role: Some(less.clone()) }).await.map(drop));
    let delete = wire::DeleteRoleRequest { name: "root".to_owned() };
    refused(root.access().delete_role(delete.clone()).await.map(drop));
    refused(revoke(&root, &own_key(&root).await).await);
    let binding = bind(&root, "admin", None).await;
    root.access().update_role(wire::UpdateRoleRequest { role: Some(less) }).await.map(Response::into_inner).unwrap();
    // The binding is the last one, and whoever lost access to bindings cannot ask.
    unbind(&root, &binding).await.refused().is(Code::PermissionDenied, "PERMISSION_DENIED");
}

#[tokio::test]
async fn a_binding_that_is_the_last_stays() {
    let server = Prism::start(Options::new()).await;
    let admin = server.admin();
    let manager = wire::Role {
        name: "manager".to_owned(),
        permissions: vec!["access:manage".to_owned(), "access:read".to_owned(), "tokens:manage".to_owned()],
        built_in: false,
    };
    admin.access().create_role(wire::CreateRoleRequest { role: Some(manager) }).await.unwrap();
    let (_, manager) = key(&admin, "manager", None, None).await;
    let binding = bind(&admin, "admin", None).await;
    revoke(&manager, &own_key(&admin).await).await.unwrap();
    refused(unbind(&manager, &binding).await);
}

/// Two who take each other away at the same time: one is left.
#[tokio::test]
async fn of_two_who_revoke_each_other_one_stays() {
    let server = Arc::new(Prism::start(Options::new()).await);
    let mut last = server.admin();
    for _ in 0..20 {
        let first = own_key(&last).await;
        let (second, other) = key(&last, "admin", None, None).await;
        let mut calls = JoinSet::new();
        for (admin, victim) in [(last.clone(), second.clone()), (other.clone(), first.clone())] {
            calls.spawn(async move { revoke(&admin, &victim).await });
        }
        let outcomes = within("both answers", calls.join_all()).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
        last = if last.who_am_i().await.is_ok() { last } else { other };
        last.who_am_i().await.unwrap();
    }
}

fn recover(server: &Prism) -> Output {
    let mut command = Command::new(binaries::prism());
    command.arg("recover").arg("--data-dir").arg(server.data_dir()).env_clear();
    command.output().expect("prism runs")
}

#[tokio::test]
async fn whoever_holds_the_box_gets_a_new_key_and_the_log_tells() {
    let server = Prism::start(Options::new()).await;
    let before = server.admin();
    let first = own_key(&before).await;
    Cli::of(&server).run("whoami").ok();
    // Not while it runs: the data directory is one process's.
    let token = server.admin_token();
    let busy = recover(&server);
    let told = String::from_utf8_lossy(&busy.stderr).into_owned();
    assert!(busy.status.code() == Some(1) && told.contains("in use"), "{busy:?}");
    assert_eq!(server.admin_token(), token);
    server.signal("TERM");
    assert!(server.exit().await.success());
    std::fs::remove_file(server.data_dir().join("admin.token")).unwrap();

    let done = recover(&server);
    assert!(done.status.success(), "{done:?}");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let file = server.data_dir().join("admin.token");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!server.data_dir().join("admin.token.new").exists());
    let new = server.admin_token();
    assert!(new != token && said.contains(&file.display().to_string()), "{said}");
    let output = [done.stdout, done.stderr].concat();
    assert!(!String::from_utf8_lossy(&output).contains(&new), "the token is in the file alone");

    server.spawn();
    server.ready().await;
    let admin = server.admin();
    let id = own_key(&admin).await;
    assert!(id != first && said.contains(&id), "{said}");
    let log = admin.whole_log().await;
    audit::verify(&log);
    let entry = log.iter().find(|entry| entry.operation == "RecoverAdminKey").expect("an entry");
    assert_eq!((entry.actor.as_str(), entry.auth_method.as_str()), ("operator on the box", "none"));
    assert_eq!((entry.resource.clone(), entry.success), (format!("key:{id}"), true));
    // Who remembers the log finds it gone on; the old key is still one.
    Cli::of(&server).run("whoami").ok().quiet();
    Cli::of(&server).run("audit verify").ok().quiet();
    server.admin().with_key(&token).who_am_i().await.unwrap();
    // Nobody else signs with that name.
    let imposter = server.admin().and("x-admin-user", "operator on the box");
    imposter.who_am_i().await.unwrap_err().is(Code::Unauthenticated, "ADMIN_USER_INVALID");
    revoke(&admin, &first).await.unwrap();
    // Once more: the file is replaced.
    server.signal("TERM");
    assert!(server.exit().await.success());
    assert!(recover(&server).status.success());
    assert_ne!(server.admin_token(), new);
}

#[test]
fn where_there_is_nothing_to_recover_nothing_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent");
    for path in [folder.path(), &absent] {
        let output =
            Command::new(binaries::prism()).args(["recover", "--data-dir"]).arg(path).env_clear().output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && told.contains("no prism.db"), "{told}");
    }
    assert!(!absent.exists() && folder.path().read_dir().unwrap().next().is_none());
}
