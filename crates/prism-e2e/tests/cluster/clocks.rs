//! Machines whose clocks are five minutes apart, from the moment at which they join.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prism_e2e::cluster::load::Place;
use prism_e2e::cluster::{CONVERGED, Cluster, MARGIN, Machine, NODES, Setup, converges, say};
use prism_e2e::{Admin, Session};
use prism_proto::admin::v1::{CreateClientKeyRequest, SessionStatus, SetMaintenanceModeRequest};
use prost_types::Timestamp;

use crate::{NAMESPACE, place, refuses};

const SKEW: i64 = 300;
/// Without a sign of life for this long, a session ends.
const IDLE: Duration = Duration::from_secs(4);
/// At this age, a session ends.
const AGE: Duration = Duration::from_secs(10);
/// What a key lives for, and with it the sessions that stand on it.
const KEY_LIFE: Duration = Duration::from_secs(6);

/// True time, in seconds since 1970.
fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// The sessions of one node that end in different ways.
struct Lives {
    node: Machine,
    begun: Instant,
    /// Used all the time; ends by its age.
    busy: Session,
    /// Not used at all; ends idle.
    idle: Session,
    /// Used all the time; ends with its key, where it has one of its own.
    lent: Option<Session>,
}

impl Lives {
    async fn begin(cluster: &Cluster, node: Machine, place: &Place, lent: Option<&str>) -> Self {
        let open = async |key: &str| cluster.open(node, key, &place.config).await.expect("a session");
        let begun = Instant::now();
        let lent = match lent {
            Some(key) => Some(open(key).await),
            None => None,
        };
        Self { node, begun, busy: open(&place.key).await, idle: open(&place.key).await, lent }
    }

    /// Follows them to their ends: none comes early, none late. `skew` is that of the controller, if it is the same
    /// all the time.
    async fn follow(self, admin: &Admin, skew: Option<i64>) {
        let Self { node, begun, busy, idle, lent } = self;
        let (mut idle_end, mut busy_end, mut lent_end) = (None, None, None);
        let latest = AGE + MARGIN + Duration::from_secs(2);
        while busy_end.is_none() || idle_end.is_none() || (lent.is_some() && lent_end.is_none()) {
            let at = begun.elapsed();
            assert!(at < latest, "on {node} after {at:?}: busy {busy_end:?}, idle {idle_end:?}, lent {lent_end:?}");
            if busy_end.is_none() && busy.get("x").await.is_err() {
                busy_end = Some(begun.elapsed());
            }
            if let Some(lent) = lent.as_ref().filter(|_| lent_end.is_none())
                && lent.get("x").await.is_err()
            {
                lent_end = Some(begun.elapsed());
            }
            // Not of the node, which would take it for a sign of life.
            if idle_end.is_none() {
                let told = admin.session(&idle.id).await;
                if told.status() == SessionStatus::Terminated {
                    idle_end = Some(begun.elapsed());
                } else if let Some(skew) = skew {
                    let there = now() + skew;
                    let seen = told.last_activity.expect("a time").seconds;
                    assert!((there - 30..=there + 2).contains(&seen), "the controller's time is {there}, not {seen}");
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        say(&format!("  {node}: idle for {idle_end:.1?}, busy for {busy_end:.1?}, with its key for {lent_end:.1?}"));
        // Times have whole seconds here and there, and the sweeper looks once a second.
        let within = |what: &str, end: Option<Duration>, life: Duration| {
            let Some(end) = end else { return };
            let good = life.saturating_sub(Duration::from_secs(1))..life + MARGIN;
            assert!(good.contains(&end), "{what} on {node} ended after {end:?}, and {life:?} was its life");
        };
        within("an idle session", idle_end, IDLE);
        within("a busy session", busy_end, AGE);
        within("a session whose key ends", lent_end, KEY_LIFE);
        assert!(refuses(&idle, "SESSION_TOKEN_INVALID").await.is_some(), "it has ended on its node, too");
    }
}

/// A client key that ends soon.
async fn short_key(admin: &Admin) -> String {
    let request = CreateClientKeyRequest {
        name: "short".to_owned(),
        namespace: NAMESPACE.to_owned(),
        permissions: vec!["read".to_owned()],
        ttl: Some(prost_types::Duration { seconds: KEY_LIFE.as_secs().cast_signed(), nanos: 0 }),
    };
    admin.access().create_client_key(request).await.expect("a key").into_inner().token
}

/// Follows the sessions of both nodes.
async fn follow(admin: &Admin, lives: [Lives; 2], skew: Option<i64>) {
    let [one, two] = lives;
    tokio::join!(one.follow(admin, skew), two.follow(admin, skew));
}

/// Maintenance that ends by itself, by the controller's clock.
async fn maintenance_ends_in_time(admin: &Admin, sessions: &[Session], skew: i64) {
    let life = Duration::from_secs(3);
    let begun = Instant::now();
    let end = Timestamp { seconds: now() + skew + life.as_secs().cast_signed(), nanos: 0 };
    let namespace = Some(NAMESPACE.to_owned());
    let request = SetMaintenanceModeRequest {
        enabled: true,
        scheduled_end: Some(end),
        namespace: namespace.clone(),
        ..SetMaintenanceModeRequest::default()
    };
    admin.service().set_maintenance_mode(request).await.expect("maintenance");
    for session in sessions {
        refuses(session, "MAINTENANCE").await.expect("maintenance is in force on every node when it is answered");
    }
    for session in sessions {
        while session.get("x").await.is_err() {
            assert!(begun.elapsed() < life + CONVERGED, "maintenance does not end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let took = begun.elapsed();
        say(&format!("  {took:>8.1?}  maintenance of {life:?} has ended"));
        assert!(took > life.saturating_sub(Duration::from_millis(1500)), "maintenance ended after {took:?}");
    }
    // Its end is a moment: where the clock is set back before it, it would be in force again.
    let request = SetMaintenanceModeRequest { namespace, ..SetMaintenanceModeRequest::default() };
    admin.service().set_maintenance_mode(request).await.expect("the end of maintenance");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_five_minutes_apart_shorten_and_prolong_nothing() {
    let config = "[session]\nidle_after = \"1s\"\nexpiring_within = \"1s\"\nidle_timeout = \"4s\"\nmax_age = \"10s\"\n";
    let setup = Setup { config: config.to_owned(), clocks: Some([0, SKEW, -SKEW]) };
    let cluster = Cluster::with(setup).await;
    let admin = cluster.admin();
    let place = place(&admin, 100).await;
    let begin = async |lent: Option<&str>| {
        let one = Lives::begin(&cluster, Machine::One, &place, lent).await;
        [one, Lives::begin(&cluster, Machine::Two, &place, lent).await]
    };

    say("  node one runs five minutes ahead, node two five minutes behind");
    let short = short_key(&admin).await;
    let lives = begin(Some(&short)).await;
    follow(&admin, lives, Some(0)).await;
    let sessions = [
        &cluster.open(Machine::One, &place.key, &place.config).await.unwrap(),
        &cluster.open(Machine::Two, &place.key, &place.config).await.unwrap(),
    ];
    maintenance_ends_in_time(&admin, &sessions.map(Clone::clone), 0).await;

    say("  the controller's clock is set five minutes ahead while everything runs");
    let lives = begin(None).await;
    cluster.clocks().set(Machine::Controller, SKEW);
    tokio::time::sleep(Duration::from_secs(2)).await;
    follow(&admin, lives, None).await;
    let short = short_key(&admin).await;
    let lives = begin(Some(&short)).await;
    follow(&admin, lives, Some(SKEW)).await;

    say("  the controller starts again, five minutes behind, ten minutes from where it was");
    cluster.kill(Machine::Controller);
    cluster.clocks().set(Machine::Controller, -SKEW);
    cluster.restart(Machine::Controller).await;
    let ready = Instant::now();
    let admin = cluster.admin();
    for node in NODES {
        converges(&format!("node {node} opens sessions"), ready, || async {
            cluster.open(node, &place.key, &place.config).await.ok()
        })
        .await;
    }
    let short = short_key(&admin).await;
    let lives = begin(Some(&short)).await;
    follow(&admin, lives, Some(-SKEW)).await;
}
