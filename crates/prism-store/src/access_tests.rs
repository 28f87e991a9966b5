//! Roles, bindings, keys and certificates: what a change makes of what callers may do, at once and for everybody.

use std::time::Duration;

use prism_core::access::{ClientGrant, RoleGrant};
use prism_core::control::{ControlPlane as _, Quota};
use prism_core::limits::SessionPolicy;
use prism_core::page::Page;
use prism_core::permission::{Pattern, Reach, Role};
use prism_core::secret::{NewSecret, Random, SecretId, SecretKind, parse};
use prism_core::session::DataGrant;
use prism_core::subject::Subject;
use prism_core::{Clock, Error, Kind, NamespaceName, Result, UnixMillis};
use tempfile::TempDir;

use crate::{ApiKeyRow, BindingRow, CertificateRow, ClientBindingRow, Credential, KeyLife, RoleRemoval, Store, Tx};

const MINUTE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);

/// A store with the namespaces `a` and `b`, whose clock stands still until it is moved.
struct World {
    _folder: TempDir,
    clock: Clock,
    store: Store,
}

impl World {
    async fn new() -> Self {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(UnixMillis(1_760_000_000_000)));
        let policy = SessionPolicy::default();
        let store = Store::open(folder.path(), policy, clock.clone(), Random::system()).await.unwrap();
        let world = Self { _folder: folder, clock, store };
        for name in ["a", "b"] {
            world.write(move |tx| tx.create_namespace(&namespace(name), "", Quota::default())).await.unwrap();
        }
        world
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.store.write(work).await
    }

    /// An API key with these roles.
    async fn key(&self, roles: &[&str], place: Option<&str>, life: Option<Duration>) -> NewSecret {
        let new = self.store.random().secret(SecretKind::AdminKey);
        let row = ApiKeyRow {
            id: new.id,
            hash: new.hash,
            name: "k".to_owned(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            namespace: place.map(namespace),
            owner: None,
            life: KeyLife { expires_at: life.map(|life| self.clock.now() + life), ..KeyLife::default() },
            rotated_at: None,
            previous: None,
        };
        self.write(move |tx| tx.insert_api_key(&row)).await.unwrap();
        new
    }

    async fn rotate(&self, id: SecretId, overlap: Option<Duration>) -> NewSecret {
        let new = self.store.random().secret_for(SecretKind::AdminKey, id);
        let (hash, until) = (new.hash, overlap.map(|overlap| self.clock.now() + overlap));
        let row = self.write(move |tx| tx.rotate_api_key(id.as_str(), &hash, until)).await.unwrap().unwrap();
        assert_eq!(row.rotated_at, Some(self.clock.now()));
        new
    }

    fn proves(&self, secret: &NewSecret) -> bool {
        let presented = parse(SecretKind::AdminKey, secret.token.expose()).unwrap();
        self.store.authenticate(&presented).is_some()
    }

    /// Whether the credential that a token proved stands still, as it is published and inside a transaction.
    async fn stands(&self, secret: &NewSecret) -> bool {
        let credential = Credential::ApiKey { id: secret.id, hash: secret.hash };
        let published = self.store.standing(&credential).is_some();
        let stored = self.write(move |tx| tx.standing(&credential)).await.unwrap().is_some();
        assert_eq!(published, stored);
        published
    }

    /// Names of the roles of a subject, where they hold.
    async fn roles_of(&self, subject: &Subject) -> Vec<(String, Option<String>)> {
        let credential = Credential::Vouched {
            subjects: vec![subject.clone()],
            roles: Vec::new(),
            certificate: None,
            ends: UnixMillis(i64::MAX),
        };
        let published = self.store.standing(&credential).unwrap();
        assert_eq!(self.write(move |tx| tx.standing(&credential)).await.unwrap().unwrap(), published);
        published.into_iter().map(|grant| (grant.role, grant.namespace.map(String::from))).collect()
    }

    async fn bind(&self, subject: &Subject, role: &str, place: Option<&str>) -> Result<SecretId> {
        let row = BindingRow {
            id: self.store.random().id(),
            subject: subject.clone(),
            grant: RoleGrant { role: role.to_owned(), namespace: place.map(namespace) },
            created_at: self.clock.now(),
            created_by: "root".to_owned(),
        };
        self.write(move |tx| tx.insert_binding(&row).map(|()| row.id)).await
    }

    async fn bind_client(&self, subject: &Subject, place: &str, grant: DataGrant) -> Result<SecretId> {
        let row = ClientBindingRow {
            id: self.store.random().id(),
            subject: subject.clone(),
            grant: ClientGrant { namespace: namespace(place), grant },
            created_at: self.clock.now(),
            created_by: "root".to_owned(),
        };
        self.write(move |tx| tx.insert_client_binding(&row).map(|()| row.id)).await
    }

    fn client_grants(&self, subject: &Subject) -> Vec<ClientGrant> {
        let snapshot = self.store.snapshot().borrow().clone();
        snapshot.client_access.bindings.get(subject).cloned().unwrap_or_default()
    }
}

fn namespace(name: &str) -> NamespaceName {
    NamespaceName::parse("n", name).unwrap()
}

fn role(name: &str, permissions: &[&str]) -> Role {
    let permissions = permissions.iter().map(|text| Pattern::try_from((*text).to_owned()).unwrap()).collect();
    Role { name: name.to_owned(), permissions, built_in: false }
}

fn page(size: i32) -> Page {
    Page::parse("list", size, None).unwrap()
}

fn only(name: &str) -> Reach {
    Reach::Namespaces(vec![namespace(name)])
}

const READ: DataGrant = DataGrant { read: true, write: false };

#[tokio::test]
async fn a_rotated_key_works_through_the_overlap_with_both_tokens() {
    let world = World::new().await;
    let old = world.key(&["viewer"], None, None).await;
    let new = world.rotate(old.id, Some(MINUTE)).await;
    assert!(world.proves(&old) && world.proves(&new));
    assert!(world.stands(&old).await && world.stands(&new).await);
    world.clock.advance(Duration::from_millis(59_999));
    assert!(world.proves(&old) && world.stands(&old).await);
    world.clock.advance(Duration::from_millis(1));
    assert!(!world.proves(&old) && !world.stands(&old).await);
    assert!(world.proves(&new) && world.stands(&new).await);
}

#[tokio::test]
async fn without_an_overlap_the_old_token_ends_at_once_and_a_third_ends_the_first() {
    let world = World::new().await;
    let first = world.key(&["viewer"], None, None).await;
    let second = world.rotate(first.id, Some(DAY)).await;
    let third = world.rotate(first.id, Some(DAY)).await;
    assert!(!world.proves(&first) && !world.stands(&first).await);
    assert!(world.proves(&second) && world.proves(&third));
    let fourth = world.rotate(first.id, None).await;
    for dead in [&first, &second, &third] {
        assert!(!world.proves(dead) && !world.stands(dead).await);
    }
    assert!(world.proves(&fourth));
    let id = fourth.id;
    world.write(move |tx| tx.revoke_api_key(id.as_str())).await.unwrap();
    assert!(!world.proves(&fourth) && !world.stands(&fourth).await);
}

#[tokio::test]
async fn both_tokens_end_with_their_key() {
    let world = World::new().await;
    let old = world.key(&["viewer"], None, Some(MINUTE)).await;
    let new = world.rotate(old.id, Some(DAY)).await;
    assert!(world.proves(&old) && world.proves(&new));
    let listed = world.write(|tx| tx.valid_api_keys()).await.unwrap();
    assert!(listed.iter().any(|key| key.id == new.id));
    world.clock.advance(MINUTE);
    assert!(!world.proves(&old) && !world.proves(&new) && !world.stands(&new).await);
    let listed = world.write(|tx| tx.valid_api_keys()).await.unwrap();
    assert!(listed.iter().all(|key| key.id != new.id));
    assert!(
        world
            .write(|tx| tx.rotate_api_key("nothing", &Random::system().secret(SecretKind::AdminKey).hash, None))
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_role_is_what_it_is_now_for_all_who_have_it() {
    let world = World::new().await;
    let alice = Subject::user("alice").unwrap();
    let key = world.key(&["viewer", "team"], Some("a"), None).await;
    world.write(|tx| tx.insert_role(&role("team", &["config:read"]), "root")).await.unwrap();
    world.bind(&alice, "team", Some("a")).await.unwrap();
    world.bind(&alice, "viewer", None).await.unwrap();
    let again = world.write(|tx| tx.insert_role(&role("team", &["config:*"]), "root")).await;
    assert_eq!(again.unwrap_err().kind(), Kind::AlreadyExists);
    let built_in = world.write(|tx| tx.insert_role(&role("admin", &["config:*"]), "root")).await;
    assert_eq!(built_in.unwrap_err().kind(), Kind::AlreadyExists);

    assert!(world.write(|tx| tx.update_role(&role("team", &["session:read", "session:terminate"]))).await.unwrap());
    assert_eq!(world.store.access().roles["team"].permissions.len(), 2);
    assert!(!world.write(|tx| tx.update_role(&role("admin", &["session:read"]))).await.unwrap());
    assert_eq!(world.store.access().roles["admin"].permissions.len(), 9);

    let removed = world.write(|tx| tx.delete_role("team")).await.unwrap();
    assert_eq!(removed, Some(RoleRemoval { bindings: 1, keys: 1 }));
    assert_eq!(world.write(|tx| tx.delete_role("team")).await.unwrap(), None);
    assert_eq!(world.write(|tx| tx.delete_role("admin")).await.unwrap(), None);
    // A role of the same name finds nobody who has it.
    world.write(|tx| tx.insert_role(&role("team", &["access:*"]), "root")).await.unwrap();
    assert_eq!(world.roles_of(&alice).await, [("viewer".to_owned(), None)]);
    let credential = Credential::ApiKey { id: key.id, hash: key.hash };
    let grants = world.store.standing(&credential).unwrap();
    assert_eq!(grants.iter().map(|grant| grant.role.as_str()).collect::<Vec<_>>(), ["viewer"]);
}

#[tokio::test]
async fn an_operation_sees_the_changes_before_it_and_none_that_were_undone() {
    let world = World::new().await;
    world
        .write(|tx| {
            tx.insert_role(&role("kept", &["config:read"]), "root")?;
            assert!(tx.access()?.roles.contains_key("kept"));
            let undone = tx.attempt(|tx| {
                tx.insert_role(&role("undone", &["config:read"]), "root")?;
                assert!(tx.access()?.roles.contains_key("undone"));
                Err::<(), _>(Error::not_found("something"))
            });
            assert_eq!(undone.unwrap_err().kind(), Kind::NotFound);
            assert!(!tx.access()?.roles.contains_key("undone") && tx.access()?.roles.contains_key("kept"));
            Ok(())
        })
        .await
        .unwrap();
    assert!(world.store.access().roles.contains_key("kept") && !world.store.access().roles.contains_key("undone"));
    let failed = world.write(|tx| {
        tx.insert_role(&role("undone", &["config:read"]), "root")?;
        Err::<(), _>(Error::not_found("something"))
    });
    failed.await.unwrap_err();
    assert!(!world.store.access().roles.contains_key("undone"));
}

#[tokio::test]
async fn a_binding_holds_once_where_it_is_made_until_it_is_deleted() {
    let world = World::new().await;
    let (alice, ops) = (Subject::user("alice").unwrap(), Subject::group("alice").unwrap());
    let everywhere = world.bind(&alice, "viewer", None).await.unwrap();
    let in_a = world.bind(&alice, "viewer", Some("a")).await.unwrap();
    for place in [None, Some("a")] {
        assert_eq!(world.bind(&alice, "viewer", place).await.unwrap_err().kind(), Kind::AlreadyExists);
    }
    world.bind(&ops, "operator", Some("b")).await.unwrap();
    assert_eq!(world.roles_of(&alice).await.len(), 2);
    assert_eq!(world.roles_of(&ops).await, [("operator".to_owned(), Some("b".to_owned()))]);

    let listed = |reach: Reach, subject: Option<Subject>| {
        world.write(move |tx| {
            let (rows, total) = tx.bindings(&reach, subject.as_ref(), &page(0))?;
            assert_eq!(rows.len() as i64, total);
            Ok(rows.into_iter().map(|row| row.id).collect::<Vec<_>>())
        })
    };
    assert_eq!(listed(Reach::Installation, None).await.unwrap().len(), 3);
    assert_eq!(listed(Reach::Installation, Some(ops.clone())).await.unwrap().len(), 1);
    assert_eq!(listed(only("a"), None).await.unwrap(), [in_a]);
    assert_eq!(listed(only("a"), Some(ops.clone())).await.unwrap(), []);
    assert_eq!(listed(Reach::Nowhere, None).await.unwrap(), []);
    let (rows, total) = world.write(|tx| tx.bindings(&Reach::Installation, None, &page(1))).await.unwrap();
    assert_eq!((rows.len(), total), (2, 3), "one more than the page, to see whether it goes on");

    assert!(world.write(move |tx| tx.delete_binding(everywhere.as_str())).await.unwrap());
    assert!(!world.write(move |tx| tx.delete_binding(everywhere.as_str())).await.unwrap());
    assert_eq!(world.roles_of(&alice).await, [("viewer".to_owned(), Some("a".to_owned()))]);
    world.write(|tx| tx.delete_namespace(&namespace("a"))).await.unwrap();
    assert_eq!(world.roles_of(&alice).await, []);
    assert!(world.write(move |tx| tx.binding(in_a.as_str())).await.unwrap().is_none());
}

#[tokio::test]
async fn a_client_binding_is_one_per_subject_and_namespace() {
    let world = World::new().await;
    let app = Subject::certificate("spiffe://prism-1/client/app").unwrap();
    let before = world.store.snapshot().borrow().revision;
    let id = world.bind_client(&app, "a", READ).await.unwrap();
    assert!(world.store.snapshot().borrow().revision > before, "the data plane hears of it");
    assert_eq!(
        world.bind_client(&app, "a", DataGrant { read: true, write: true }).await.unwrap_err().kind(),
        Kind::AlreadyExists
    );
    world.bind_client(&app, "b", DataGrant { read: false, write: true }).await.unwrap();
    assert_eq!(world.client_grants(&app).len(), 2);

    let listed = |reach: Reach, place: Option<&'static str>, subject: Option<Subject>| {
        world.write(move |tx| tx.client_bindings(&reach, place, subject.as_ref(), &page(0)))
    };
    let namespaces = |rows: &[ClientBindingRow]| {
        let mut names: Vec<String> = rows.iter().map(|row| row.grant.namespace.to_string()).collect();
        names.sort();
        names
    };
    let (rows, total) = listed(Reach::Installation, None, Some(app.clone())).await.unwrap();
    assert_eq!((namespaces(&rows), total), (vec!["a".to_owned(), "b".to_owned()], 2));
    let (rows, total) = listed(only("b"), None, None).await.unwrap();
    assert_eq!((namespaces(&rows), total), (vec!["b".to_owned()], 1));
    assert_eq!(rows[0].grant.grant, DataGrant { read: false, write: true });
    assert_eq!(listed(only("b"), Some("a"), None).await.unwrap().1, 0);
    assert_eq!(listed(Reach::Installation, None, Subject::user("app")).await.unwrap().1, 0);

    assert!(world.write(move |tx| tx.delete_client_binding(id.as_str())).await.unwrap());
    assert_eq!(world.client_grants(&app).len(), 1);
    world.write(|tx| tx.delete_namespace(&namespace("b"))).await.unwrap();
    assert_eq!(world.client_grants(&app), []);
}

fn certificate(world: &World, digit: &str, life: Duration) -> CertificateRow {
    CertificateRow {
        fingerprint: digit.repeat(64),
        serial: Some(format!("4{digit}")),
        kind: "user".to_owned(),
        name: "alice".to_owned(),
        uri: "spiffe://prism-1/user/alice".to_owned(),
        created_at: world.clock.now(),
        created_by: "root".to_owned(),
        expires_at: Some(world.clock.now() + life),
        revoked_at: None,
        authority: None,
        origin: None,
    }
}

#[tokio::test]
async fn a_revoked_certificate_is_dead_on_both_planes() {
    let world = World::new().await;
    let row = certificate(&world, "a", DAY);
    let (inserted, expected) = (row.clone(), row.clone());
    world.write(move |tx| tx.insert_certificate(&inserted)).await.unwrap();
    assert_eq!(world.write(|tx| tx.certificate_by_serial("4a")).await.unwrap(), Some(expected));
    let credential = Credential::Vouched {
        subjects: vec![Subject::user("alice").unwrap()],
        roles: Vec::new(),
        certificate: Some(row.fingerprint.clone()),
        ends: world.clock.now() + DAY,
    };
    assert!(world.store.standing(&credential).is_some());

    let fingerprint = row.fingerprint.clone();
    assert!(world.write(move |tx| tx.revoke_certificate(&fingerprint)).await.unwrap());
    let revoked_at = world.clock.now();
    assert!(world.store.standing(&credential).is_none());
    assert!(world.write(move |tx| tx.standing(&credential)).await.unwrap().is_none());
    assert!(world.store.snapshot().borrow().client_access.revoked_certificates.contains(&row.fingerprint));
    world.clock.advance(MINUTE);
    let fingerprint = row.fingerprint.clone();
    assert!(world.write(move |tx| tx.revoke_certificate(&fingerprint)).await.unwrap());
    let stored = world.write(|tx| tx.certificate_by_serial("4a")).await.unwrap().unwrap();
    assert_eq!(stored.revoked_at, Some(revoked_at), "the first revocation counts");
    assert!(!world.write(|tx| tx.revoke_certificate("unknown")).await.unwrap());
}

#[tokio::test]
async fn certificates_are_listed_until_a_month_after_their_end_and_revoked_ones_for_good() {
    let world = World::new().await;
    for (digit, life) in [("a", DAY), ("b", 100 * DAY)] {
        let row = certificate(&world, digit, life);
        world.write(move |tx| tx.insert_certificate(&row)).await.unwrap();
    }
    let foreign = CertificateRow {
        serial: None,
        kind: String::new(),
        expires_at: None,
        revoked_at: Some(world.clock.now()),
        ..certificate(&world, "f", DAY)
    };
    world.write(move |tx| tx.insert_certificate(&foreign)).await.unwrap();
    assert!(world.store.access().revoked_certificates.contains(&"f".repeat(64)));
    let listed = || world.write(|tx| tx.certificates(&page(0)));
    let (rows, total) = listed().await.unwrap();
    assert_eq!(total, 3);
    assert!(rows.is_sorted_by_key(|row| row.fingerprint.clone()));

    let row = certificate(&world, "d", DAY);
    world.write(move |tx| tx.insert_certificate(&row)).await.unwrap();
    world.write(|tx| tx.revoke_certificate(&"a".repeat(64))).await.unwrap();
    world.clock.advance(31 * DAY);
    let row = certificate(&world, "c", DAY);
    world.write(move |tx| tx.insert_certificate(&row)).await.unwrap();
    let (rows, total) = listed().await.unwrap();
    assert_eq!((rows.len(), total), (4, 4));
    assert!(rows.iter().all(|row| row.fingerprint != "d".repeat(64)));
    let access = world.store.access();
    assert!(access.revoked_certificates.contains(&"a".repeat(64)), "the clock may be wrong today");
    assert!(access.revoked_certificates.contains(&"f".repeat(64)), "its end is not known");
}
