//! Join tokens, nodes and their certificates: who wins, what is forgotten, and what is bounded.

use std::time::Duration;

use prism_core::limits::{MAX_JOIN_TOKENS, MAX_NODES, SessionPolicy};
use prism_core::page::Page;
use prism_core::permission::Reach;
use prism_core::secret::{AuthorityFingerprint, Random, SecretId};
use prism_core::session::EndReason;
use prism_core::{Clock, Error, NamespaceName, NodeId, Result, UnixMillis};
use tempfile::TempDir;

use crate::JoinTokenStatus::{Expired, Redeemed, Revoked};
use crate::{CertificateOrigin, CertificateRow, JoinTokenRow, JoinTokenStatus, Redemption, Store, Tx};

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

struct World {
    _folder: TempDir,
    clock: Clock,
    store: Store,
}

impl World {
    async fn new() -> Self {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(UnixMillis(1_760_000_000_000)));
        let store =
            Store::open(folder.path(), SessionPolicy::default(), clock.clone(), Random::system()).await.unwrap();
        Self { _folder: folder, clock, store }
    }

    async fn write<T: Send + 'static>(&self, work: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static) -> T {
        self.store.write(work).await.unwrap()
    }

    async fn token(&self, node: Option<&str>, life: Duration) -> SecretId {
        let new = self.store.random().join_token(AuthorityFingerprint::of_certificate(b"ca"));
        let node_id = node.map(|node| NodeId::parse("node_id", node).unwrap());
        self.write(move |tx| {
            tx.insert_join_token(&JoinTokenRow {
                id: new.id,
                hash: new.hash,
                node_id,
                may_replace: false,
                authority: None,
                created_at: tx.now,
                created_by: "root".to_owned(),
                expires_at: tx.now + life,
                revoked_at: None,
                redemption: None,
            })
        })
        .await;
        new.id
    }

    async fn redeem(&self, id: SecretId, node: &str, key: u8) -> bool {
        let node = node.to_owned();
        self.write(move |tx| {
            let redemption = Redemption {
                at: tx.now,
                node_id: node,
                key_hash: [key; 32],
                certificate: format!("certificate {key}"),
            };
            tx.redeem_join_token(id, &redemption)
        })
        .await
    }

    async fn status(&self, id: SecretId) -> Option<JoinTokenStatus> {
        let now = self.clock.now();
        self.write(move |tx| tx.join_token(id.as_str())).await.map(|token| token.status(now))
    }

    async fn enrol(&self, node: &str, token: SecretId) -> Result<()> {
        let node = NodeId::parse("node_id", node).unwrap();
        self.store.write(move |tx| tx.enrol_node(&node, token.as_str())).await
    }
}

fn certificate(node: &str, number: u32, now: UnixMillis) -> CertificateRow {
    CertificateRow {
        fingerprint: format!("{node} {number}"),
        serial: Some(format!("{node} {number}")),
        kind: "node".to_owned(),
        name: node.to_owned(),
        uri: format!("spiffe://c/node/{node}"),
        created_at: now,
        created_by: "root".to_owned(),
        expires_at: Some(now + DAY),
        revoked_at: None,
        authority: None,
        origin: Some(CertificateOrigin {
            pem: "PEM".to_owned(),
            key_hash: [7; 32],
            node_id: node.to_owned(),
            token_id: "t".to_owned(),
            renewed_from: number.checked_sub(1).map(|before| format!("{node} {before}")),
        }),
    }
}

#[tokio::test]
async fn a_token_is_redeemed_once_and_only_while_it_is_good() {
    let world = World::new().await;
    let (plain, bound) = (world.token(None, HOUR).await, world.token(Some("n1"), HOUR).await);
    let (revoked, short) = (world.token(None, HOUR).await, world.token(None, Duration::from_millis(1)).await);
    assert!(world.write(move |tx| tx.revoke_join_token(revoked.as_str())).await);
    world.clock.advance(Duration::from_millis(1));
    assert!(!world.redeem(short, "n1", 1).await && !world.redeem(revoked, "n1", 1).await);
    assert!(!world.redeem(bound, "n2", 1).await && world.redeem(bound, "n1", 1).await);
    assert!(world.redeem(plain, "n2", 1).await);
    for key in [1, 2] {
        assert!(!world.redeem(plain, "n2", key).await, "the second time nobody wins");
    }
    let stored = world.write(move |tx| tx.join_token(plain.as_str())).await.unwrap();
    assert_eq!(stored.redemption.unwrap().key_hash, [1; 32]);
    for (id, status) in [(plain, Redeemed), (bound, Redeemed), (revoked, Revoked), (short, Expired)] {
        assert_eq!(world.status(id).await, Some(status));
    }
    // Revoked is stronger than redeemed, and expired is weaker.
    world.write(move |tx| tx.revoke_join_token(bound.as_str())).await;
    world.clock.advance(DAY);
    assert_eq!((world.status(bound).await, world.status(plain).await), (Some(Revoked), Some(Redeemed)));
    assert!(!world.write(|tx| tx.revoke_join_token("nobody's")).await);
}

#[tokio::test]
async fn what_is_over_is_forgotten_after_a_month_but_not_what_a_node_stands_on() {
    let world = World::new().await;
    let (used, unused, revoked) =
        (world.token(None, HOUR).await, world.token(None, HOUR).await, world.token(None, 7 * DAY).await);
    assert!(world.redeem(used, "n1", 1).await);
    world.enrol("n1", used).await.unwrap();
    world.write(move |tx| tx.revoke_join_token(revoked.as_str())).await;
    world.clock.advance(29 * DAY + 23 * HOUR);
    world.store.sweep().await.unwrap();
    for id in [used, unused, revoked] {
        assert!(world.status(id).await.is_some());
    }
    world.clock.advance(2 * HOUR);
    world.store.sweep().await.unwrap();
    assert_eq!((world.status(unused).await, world.status(revoked).await), (None, None));
    assert!(world.status(used).await.is_some());
    world.write(|tx| tx.revoke_node("n1", "root")).await;
    world.clock.advance(31 * DAY);
    world.store.sweep().await.unwrap();
    assert!(world.write(|tx| tx.node("n1")).await.is_none());
    assert_eq!(world.status(used).await, None);
}

#[tokio::test]
async fn tokens_that_are_good_are_bounded_in_number() {
    let world = World::new().await;
    let first = world.token(None, HOUR).await;
    world
        .write(|tx| {
            let sql = "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                INSERT INTO join_tokens (id, hash, created_at, created_by, expires_at)
                SELECT printf('%016d', i), zeroblob(32), ?2, 'root', ?3 FROM n";
            tx.touched.known.at_most.join_tokens = None;
            tx.execute(sql, (MAX_JOIN_TOKENS, tx.now.0, (tx.now + DAY).0))
        })
        .await;
    let new = world.store.random().join_token(AuthorityFingerprint::of_certificate(b"ca"));
    let one_more = move |tx: &mut Tx<'_>| {
        tx.insert_join_token(&JoinTokenRow {
            id: new.id,
            hash: new.hash,
            node_id: None,
            may_replace: false,
            authority: None,
            created_at: tx.now,
            created_by: "root".to_owned(),
            expires_at: tx.now + HOUR,
            revoked_at: None,
            redemption: None,
        })
    };
    let refused = world.store.write(one_more).await.unwrap_err();
    assert_eq!(refused.reason(), "TOO_MANY_TOKENS");
    // What is used, revoked or over makes room.
    world.redeem(first, "n1", 1).await;
    world.write(one_more).await;
    assert_eq!(world.write(|tx| tx.join_token_count()).await, MAX_JOIN_TOKENS + 1);
}

#[tokio::test]
async fn nodes_are_bounded_listed_and_come_back() {
    let world = World::new().await;
    let (first, second) = (world.token(None, HOUR).await, world.token(None, HOUR).await);
    world.enrol("a", first).await.unwrap();
    world
        .write(|tx| {
            let sql = "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                INSERT INTO nodes (id, token_id, joined_at) SELECT printf('n%05d', i), 't', 0 FROM n";
            tx.touched.known.at_most.nodes = None;
            tx.execute(sql, [MAX_NODES])
        })
        .await;
    assert_eq!(world.enrol("b", second).await.unwrap_err().reason(), "TOO_MANY_NODES");
    // One that is there joins again, and a revoked one makes room.
    world.enrol("a", second).await.unwrap();
    world.write(|tx| tx.revoke_node("n00002", "root")).await;
    world.enrol("b", second).await.unwrap();
    let again = world.token(None, HOUR).await;
    assert_eq!(world.enrol("n00002", again).await.unwrap_err().reason(), "TOO_MANY_NODES", "also one that comes back");
    let revoked = world.write(|tx| tx.node("n00002")).await.unwrap();
    assert_eq!((revoked.revoked_at, revoked.revoked_by.as_deref()), (Some(world.clock.now()), Some("root")));
    world.clock.advance(HOUR);
    world.write(|tx| tx.revoke_node("n00002", "another")).await;
    assert_eq!(world.write(|tx| tx.node("n00002")).await.unwrap(), revoked, "it was revoked once");
    let page = Page::parse("nodes", 2, None).unwrap();
    let (rows, total) = world.write(move |tx| tx.nodes(&page)).await;
    let ids: Vec<_> = rows.iter().map(|row| row.id.to_string()).collect();
    assert_eq!((ids, total), (vec!["a".to_owned(), "b".to_owned(), "n00002".to_owned()], MAX_NODES + 1));
    assert_eq!(world.write(move |tx| tx.node_of_token(first.as_str())).await, None);
}

#[tokio::test]
async fn a_number_that_is_too_high_refuses_nothing_and_none_is_too_low() {
    let world = World::new().await;
    let token = world.token(None, HOUR).await;
    world
        .write(|tx| {
            tx.touched.known.at_most.join_tokens = Some(MAX_JOIN_TOKENS);
            Ok(())
        })
        .await;
    // Counted anew.
    world.token(None, HOUR).await;
    let known = world.write(|tx| Ok(tx.touched.known.at_most.join_tokens)).await;
    assert_eq!(known, Some(2));
    world
        .write(|tx| {
            let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                INSERT INTO nodes (id, token_id, joined_at) SELECT printf('n%05d', i), 't', 0 FROM n";
            tx.execute(sql, [MAX_NODES])
        })
        .await;
    // What is counted in an operation that is undone is not remembered.
    let undone = world.store.write(move |tx| -> Result<()> {
        tx.revoke_node("n00001", "root")?;
        tx.revoke_node("n00002", "root")?;
        tx.enrol_node(&NodeId::parse("node_id", "a")?, token.as_str())?;
        Err(Error::aborted("UNDONE", "on purpose"))
    });
    assert_eq!(undone.await.unwrap_err().reason(), "UNDONE");
    assert_eq!(world.enrol("b", token).await.unwrap_err().reason(), "TOO_MANY_NODES");
    // A revoked node that is back counts.
    world.write(|tx| tx.revoke_node("n00001", "root")).await;
    world.enrol("b", token).await.unwrap();
    assert_eq!(world.enrol("c", token).await.unwrap_err().reason(), "TOO_MANY_NODES");
}

#[tokio::test]
async fn certificates_of_a_node_are_revoked_together() {
    let world = World::new().await;
    let token = world.token(None, HOUR).await;
    world.enrol("n1", token).await.unwrap();
    world
        .write(|tx| {
            for number in 0..3 {
                let now = tx.now + Duration::from_millis(number.into());
                tx.insert_certificate(&certificate("n1", number, now))?;
            }
            tx.insert_certificate(&certificate("n2", 0, tx.now))
        })
        .await;
    let newest_first = world.write(|tx| tx.node_certificates("n1", 2)).await;
    let names: Vec<_> = newest_first.iter().map(|row| row.fingerprint.as_str()).collect();
    assert_eq!(names, ["n1 2", "n1 1"]);
    assert_eq!(newest_first[0].origin.as_ref().unwrap().renewed_from.as_deref(), Some("n1 1"));
    assert_eq!(world.write(|tx| tx.live_node_certificates("n1")).await, 3);
    let end = world.write(|tx| tx.node("n1")).await.unwrap().certificate_expires_at;
    assert_eq!(end, Some(world.clock.now() + Duration::from_millis(2) + DAY));
    // What is undone leaves nothing behind, not even in memory.
    let undone = world.store.write(|tx| {
        tx.revoke_node_certificates("n1")?;
        Err::<(), _>(Error::aborted("UNDONE", ""))
    });
    undone.await.unwrap_err();
    assert!(world.store.access().revoked_certificates.is_empty());
    let revoked = world.write(|tx| tx.revoke_node_certificates("n1")).await;
    assert_eq!(revoked.len(), 3);
    assert_eq!(world.write(|tx| tx.revoke_node_certificates("n1")).await, [""; 0]);
    let access = world.store.access();
    assert!(revoked.iter().all(|fingerprint| access.revoked_certificates.contains(fingerprint)));
    assert!(!access.revoked_certificates.contains("n2 0"));
    assert_eq!(world.write(|tx| tx.live_node_certificates("n1")).await, 0);
    assert_eq!(world.write(|tx| tx.node("n1")).await.unwrap().certificate_expires_at, None);
}

#[tokio::test]
async fn a_revoked_certificate_takes_along_what_was_renewed_from_it() {
    let world = World::new().await;
    world
        .write(|tx| {
            for node in ["n1", "n2"] {
                (0..4).try_for_each(|number| tx.insert_certificate(&certificate(node, number, tx.now)))?;
            }
            // Another key, renewed from the second.
            let mut branch = certificate("n1", 9, tx.now);
            let origin = branch.origin.as_mut().unwrap();
            (origin.key_hash, origin.renewed_from) = ([8; 32], Some("n1 1".to_owned()));
            tx.insert_certificate(&branch)
        })
        .await;
    assert!(!world.write(|tx| tx.is_node_key_revoked("n1", [7; 32])).await);
    let mut revoked = world.write(|tx| tx.revoke_renewals("n1", "n1 1")).await;
    revoked.sort();
    assert_eq!(revoked, ["n1 2", "n1 3", "n1 9"]);
    assert_eq!(world.write(|tx| tx.revoke_renewals("n1", "n1 1")).await, [""; 0]);
    let access = world.store.access();
    assert!(revoked.iter().all(|fingerprint| access.revoked_certificates.contains(fingerprint)));
    assert_eq!(access.revoked_certificates.len(), 3);
    for (node, key, is_revoked) in [("n1", 7, true), ("n1", 8, true), ("n1", 9, false), ("n2", 7, false)] {
        assert_eq!(world.write(move |tx| tx.is_node_key_revoked(node, [key; 32])).await, is_revoked, "{node} {key}");
    }
    // Who comes again with the same key keeps what it has; any other loses it.
    assert_eq!(world.write(|tx| tx.revoke_other_keys_of_node("n2", [7; 32])).await, [""; 0]);
    assert_eq!(world.write(|tx| tx.revoke_other_keys_of_node("n2", [8; 32])).await.len(), 4);
}

#[tokio::test]
async fn the_sessions_of_a_node_end_together() {
    let world = World::new().await;
    let live = |node: &'static str| {
        move |tx: &mut Tx<'_>| tx.count("SELECT count(*) FROM sessions WHERE node = ?1 AND ended_at IS NULL", [node])
    };
    world
        .write(|tx| {
            for (number, node) in ["n1", "n1", "n2", "local"].into_iter().enumerate() {
                let sql = "INSERT INTO sessions (id, token_id, token_hash, namespace, node, client_id, client_version, metadata,
                        config, may_read, may_write, credential_id, created_at, expires_at, last_activity)
                    VALUES (?1, ?1, x'00', 'ns', ?2, '', '', '{}', '{}', 1, 1, '', 0, 1, 0)";
                tx.execute(sql, (format!("session {number}"), node))?;
            }
            Ok(())
        })
        .await;
    let seen = |namespaces: &[&str]| {
        let names = namespaces.iter().map(|name| NamespaceName::parse("namespace", name).unwrap()).collect();
        move |tx: &mut Tx<'_>| tx.sessions_of_node("n1", &Reach::Namespaces(names), 1)
    };
    let all = world.write(|tx| tx.sessions_of_node("n1", &Reach::Installation, 1)).await;
    assert_eq!(all, (vec!["session 1".to_owned()], 2));
    assert_eq!(world.write(seen(&["other"])).await, (Vec::new(), 0));
    assert_eq!(world.write(|tx| tx.sessions_of_node("n1", &Reach::Nowhere, 1)).await, (Vec::new(), 0));
    assert_eq!(world.write(|tx| tx.end_sessions_of_node("n1", EndReason::CredentialRevoked)).await, 2);
    assert_eq!(world.write(|tx| tx.end_sessions_of_node("n1", EndReason::CredentialRevoked)).await, 0);
    assert_eq!(world.write(|tx| tx.end_sessions_of_node("local", EndReason::CredentialRevoked)).await, 0);
    let left = [world.write(live("n1")).await, world.write(live("n2")).await, world.write(live("local")).await];
    assert_eq!(left, [0, 1, 1]);
    let sql = "SELECT count(*) FROM sessions WHERE end_reason = '\"credential_revoked\"'";
    assert_eq!(world.write(move |tx| tx.count(sql, [])).await, 2);
}

#[tokio::test]
async fn certificates_that_ended_are_forgotten_but_not_before_their_token() {
    let world = World::new().await;
    let token = world.token(None, 7 * DAY).await;
    let first = world
        .write(move |tx| {
            let rows = [certificate("n1", 0, tx.now), certificate("n1", 1, tx.now), certificate("n1", 2, tx.now)];
            rows.iter().try_for_each(|row| tx.insert_certificate(row))?;
            tx.revoke_certificate(&rows[2].fingerprint)?;
            let redemption = Redemption {
                at: tx.now,
                node_id: "n1".to_owned(),
                key_hash: [7; 32],
                certificate: rows[0].fingerprint.clone(),
            };
            tx.redeem_join_token(token, &redemption)?;
            Ok(rows[0].fingerprint.clone())
        })
        .await;
    let kept = async || -> Vec<String> {
        world.store.sweep().await.unwrap();
        let mut rows: Vec<_> =
            world.write(|tx| tx.node_certificates("n1", 10)).await.into_iter().map(|row| row.fingerprint).collect();
        rows.sort();
        rows
    };
    world.clock.advance(DAY + 23 * HOUR);
    assert_eq!(kept().await, ["n1 0", "n1 1", "n1 2"]);
    world.clock.advance(2 * HOUR);
    assert_eq!(kept().await, [first.as_str(), "n1 2"]);
    world.clock.advance(6 * DAY);
    assert_eq!(kept().await, ["n1 2"]);
    assert!(world.store.access().revoked_certificates.contains("n1 2"));
    world.clock.advance(30 * DAY);
    assert_eq!(kept().await, [""; 0]);
    assert!(world.store.access().revoked_certificates.is_empty());
}

/// One more certificate of `n1` with a life of its own, renewed from the one before.
async fn renewed(world: &World, number: u32, life: Duration) {
    world
        .write(move |tx| {
            let mut row = certificate("n1", number, tx.now);
            row.expires_at = Some(tx.now + life);
            tx.insert_certificate(&row)
        })
        .await;
}

async fn kept(world: &World) -> Vec<String> {
    world.store.sweep().await.unwrap();
    let rows = world.write(|tx| tx.node_certificates("n1", 100)).await;
    let mut kept: Vec<_> = rows.into_iter().map(|row| row.fingerprint).collect();
    kept.sort();
    kept
}

#[tokio::test]
async fn the_last_key_of_a_node_is_known_however_long_it_slept() {
    let world = World::new().await;
    for number in 0..3 {
        renewed(&world, number, DAY).await;
        world.clock.advance(12 * HOUR);
    }
    let is_its_own = async || world.write(|tx| tx.is_node_key("n1", [7; 32])).await;
    world.clock.advance(100 * DAY);
    assert_eq!(kept(&world).await, ["n1 2"]);
    assert!(is_its_own().await);
    // Of one that was put out nothing stays.
    world.write(|tx| tx.revoke_node_certificates("n1")).await;
    assert_eq!(kept(&world).await, [""; 0]);
    assert!(!is_its_own().await);
}

#[tokio::test]
async fn a_revocation_finds_what_hangs_on_forgotten_certificates() {
    let world = World::new().await;
    let token = world.token(None, 7 * DAY).await;
    let redemption = |certificate: &str| Redemption {
        at: world.clock.now(),
        node_id: "n1".to_owned(),
        key_hash: [7; 32],
        certificate: certificate.to_owned(),
    };
    let redeemed = redemption("n1 0");
    assert!(world.write(move |tx| tx.redeem_join_token(token, &redeemed)).await);
    // Two chains, one of which is of another certificate: it must stay.
    world
        .write(|tx| {
            let mut other = certificate("n1", 50, tx.now);
            other.origin.as_mut().unwrap().renewed_from = None;
            other.expires_at = Some(tx.now + 100 * DAY);
            tx.insert_certificate(&other)
        })
        .await;
    renewed(&world, 0, 20 * HOUR).await;
    for number in 1..9 {
        world.clock.advance(12 * HOUR);
        // The life of certificates was made shorter: one ends long before what it was renewed from.
        renewed(&world, number, if number == 6 { 30 * DAY } else { 20 * HOUR }).await;
        if number % 4 == 0 {
            kept(&world).await;
        }
    }
    assert_eq!(kept(&world).await, ["n1 0", "n1 5", "n1 50", "n1 6", "n1 7", "n1 8"]);
    world.clock.advance(4 * DAY);
    renewed(&world, 9, DAY).await;
    assert_eq!(kept(&world).await, ["n1 50", "n1 6", "n1 9"], "the token is over, and 7 and 8 are forgotten");
    assert_eq!(world.write(|tx| tx.node_of_renewal("n1 8")).await.as_deref(), Some("n1"));
    assert_eq!(world.write(|tx| tx.node_of_renewal("n1 7")).await, None);
    let undone = world.store.write(|tx| {
        let revoked = tx.revoke_renewals("n1", "n1 8")?;
        Err::<(), _>(Error::aborted("UNDONE", revoked.join(", ")))
    });
    assert!(undone.await.unwrap_err().message().contains("n1 9"), "of a forgotten one");
    assert_eq!(world.write(|tx| tx.revoke_renewals("n1", "n1 6")).await, ["n1 9"]);
    assert_eq!(world.write(|tx| tx.live_node_certificates("n1")).await, 2);
}

#[tokio::test]
async fn the_certificate_of_a_token_takes_along_what_it_was_renewed_for_days_ago() {
    let world = World::new().await;
    let token = world.token(None, 7 * DAY).await;
    renewed(&world, 0, DAY).await;
    let redemption = Redemption {
        at: world.clock.now(),
        node_id: "n1".to_owned(),
        key_hash: [7; 32],
        certificate: "n1 0".to_owned(),
    };
    assert!(world.write(move |tx| tx.redeem_join_token(token, &redemption)).await);
    for number in 1..12 {
        world.clock.advance(12 * HOUR);
        renewed(&world, number, DAY).await;
        kept(&world).await;
    }
    assert_eq!(kept(&world).await, ["n1 0", "n1 10", "n1 11", "n1 8", "n1 9"]);
    let mut revoked = world.write(|tx| tx.revoke_renewals("n1", "n1 0")).await;
    revoked.sort();
    assert_eq!(revoked, ["n1 10", "n1 11", "n1 8", "n1 9"]);
    assert_eq!(world.write(|tx| tx.live_node_certificates("n1")).await, 0);
}

#[tokio::test]
async fn lists_of_tokens_read_no_more_than_they_show() {
    let world = World::new().await;
    let mut ids = Vec::new();
    for number in 0..6 {
        ids.push(world.token(None, if number % 2 == 0 { HOUR } else { DAY }).await);
        world.clock.advance(Duration::from_secs(1));
    }
    world.clock.advance(HOUR);
    let names = |rows: Vec<JoinTokenRow>| -> Vec<SecretId> { rows.into_iter().map(|row| row.id).collect() };
    assert_eq!(names(world.write(|tx| tx.open_join_tokens()).await), [ids[5], ids[3], ids[1]]);
    assert_eq!(names(world.write(|tx| tx.dead_join_tokens(2)).await), [ids[4], ids[2]]);
    assert_eq!(names(world.write(|tx| tx.join_tokens(0, 4)).await), ids[..4]);
    assert_eq!(names(world.write(|tx| tx.join_tokens(4, 4)).await), ids[4..]);
    assert_eq!(names(world.write(|tx| tx.join_tokens(usize::MAX, 4)).await), []);
    assert_eq!(world.write(|tx| tx.join_token_count()).await, 6);
}
