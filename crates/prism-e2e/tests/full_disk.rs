//! A full disk: calls fail with a clear status, nothing acknowledged is lost, nothing refused is done, and the server
//! recovers when there is room (issue "Bad input").

use std::sync::Arc;
use std::time::Duration;

use prism_e2e::books::{Keys, Log, Topic, random};
use prism_e2e::changes::{Changes, State};
use prism_e2e::disk::Disk;
use prism_e2e::matrix::reflected_rules;
use prism_e2e::site::{config, unique};
use prism_e2e::wait::{next, until, within};
use prism_e2e::{Cli, Failure, Headers, Pattern, Prism, Session, Site, audit, data, raw};
use prism_proto::admin::v1 as wire;
use prism_proto::rules::AuditClass;
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// More calls than it takes to fill any of the disks here.
const ENOUGH: usize = 20_000;
/// Messages that are published at the same time.
const TOGETHER: usize = 16;

/// The refusal of a write that found no room.
#[track_caller]
fn is_clear(status: &Status) {
    let failure = Failure::from(status);
    assert_eq!(failure.code, Code::Unavailable, "{failure:?}");
    let reasons = ["STORAGE_FULL", "STORAGE_UNAVAILABLE"];
    assert!(reasons.contains(&failure.reason.as_str()) && !failure.message.is_empty(), "{failure:?}");
}

/// A server on a small disk, with what its clients were told.
struct World {
    disk: Disk,
    site: Site,
    keys_config: String,
    keys: Session,
    queue: Session,
    puts: Keys,
    topic: Topic,
    changes: Changes,
    log: Log,
}

impl World {
    async fn new(mib: usize) -> Self {
        let disk = Disk::new(mib);
        let site = Site::new(Arc::new(Prism::start(disk.options()).await)).await;
        let keys_config = site.config(Pattern::KeyValue).await;
        let (keys, queue) = (site.session_of(&keys_config).await, site.session(Pattern::Queue).await);
        let mut world = Self {
            disk,
            site,
            keys_config,
            keys,
            queue,
            puts: Keys::default(),
            topic: Topic::new("t"),
            changes: Changes::default(),
            log: Log::default(),
        };
        world.log.read(&world.site.admin).await;
        world
    }

    async fn put(&mut self, key: &str, bytes: usize) -> Result<(), Status> {
        let value = [format!("{:x}", random()).into_bytes(), vec![7; bytes]].concat();
        let done = within("Put", self.puts.put(&self.keys, key, &value)).await;
        done.inspect_err(|status| {
            is_clear(status);
            self.puts.refused(key);
        })
    }

    async fn publish(&mut self, bytes: usize) -> Result<(), Status> {
        let payload = [unique("message").into_bytes(), vec![7; bytes]].concat();
        let request = self.topic.begin(&payload);
        match within("Publish", self.queue.queue().publish(request)).await {
            Ok(answer) => {
                self.topic.done(&payload, answer.get_ref());
                Ok(())
            }
            Err(status) => {
                is_clear(&status);
                self.topic.refused(&payload);
                Err(status)
            }
        }
    }

    /// Publishes several at once, which share commits; the last refusal.
    async fn publish_together(&mut self, bytes: usize) -> Result<(), Status> {
        let mut calls = JoinSet::new();
        for _ in 0..TOGETHER {
            let payload = [unique("message").into_bytes(), vec![7; bytes]].concat();
            let (request, mut service) = (self.topic.begin(&payload), self.queue.queue());
            calls.spawn(async move { (payload, service.publish(request).await) });
        }
        let mut outcome = Ok(());
        while let Some(call) = within("Publish", calls.join_next()).await {
            let (payload, answer) = call.unwrap();
            match answer {
                Ok(answer) => self.topic.done(&payload, answer.get_ref()),
                Err(status) => {
                    is_clear(&status);
                    self.topic.refused(&payload);
                    outcome = Err(status);
                }
            }
        }
        outcome
    }

    /// Creates and changes one config and one namespace.
    async fn administer(&self, turn: usize) -> Result<(), Status> {
        let admin = &self.site.admin;
        let draft = config(&unique("config"), &self.site.namespace, Pattern::KeyValue);
        let work = async {
            self.changes.create_config(admin, draft.clone()).await?;
            let namespace = unique("other");
            self.changes.create_namespace(admin, &namespace, 1).await?;
            self.changes.update_namespace(admin, &namespace, 2).await?;
            if turn.is_multiple_of(2) {
                self.changes.delete_config(admin, &draft.name).await?;
            }
            Ok(())
        };
        within("an admin change", work).await.inspect_err(is_clear)
    }

    /// Publishes, puts and administers until each was refused, and then some more of each.
    async fn write_until_refused(&mut self) {
        if self.disk.is_small() {
            until_refused("Publish", async |_| self.publish_together(60_000).await).await;
            until_refused("Put", async |turn| self.put(&format!("k-{}", turn % 20), 30_000).await).await;
        }
        // Now nothing can grow any more.
        self.disk.fill(&self.site.server);
        until_refused("Publish", async |_| self.publish(20_000).await).await;
        until_refused("Put", async |turn| self.put(&format!("k-{}", turn % 20), 10_000).await).await;
        self.administer_until_refused().await;
        for turn in 0..20 {
            // Some of these may find room in a file that is large enough already; all get an answer.
            let _ = self.publish(random() as usize % 5000).await;
            let _ = self.publish_together(random() as usize % 5000).await;
            let _ = self.put(&format!("k-{turn}"), random() as usize % 5000).await;
            let _ = self.administer(turn).await;
        }
        self.changes.failed_ones_were_refused();
    }

    async fn administer_until_refused(&mut self) {
        self.disk.fill(&self.site.server);
        until_refused("admin", async |turn| self.administer(turn).await).await;
        self.changes.failed_ones_were_refused();
    }

    /// Everything works at the first attempt.
    async fn works(&mut self) {
        for turn in 0..5 {
            self.put(&format!("k-{turn}"), 1000).await.unwrap();
            self.publish(1000).await.unwrap();
            self.administer(turn).await.unwrap();
        }
        let session = self.site.session_of(&self.keys_config).await;
        session.put("own", b"1").await.unwrap();
        self.site.session(Pattern::Transact).await;
    }

    /// Nothing acknowledged is lost, nothing refused was done, every change has its entry.
    async fn verify(&mut self) {
        self.puts.verify(&self.keys).await;
        self.topic.verify(&self.queue).await;
        let entries = self.log.read(&self.site.admin).await;
        self.changes.verify(entries);
        State::replay(entries).verify(&self.site.admin, "").await;
    }

    async fn restarted(self, how: &str) -> Self {
        if how == "KILL" {
            self.site.server.kill();
        } else {
            self.site.server.signal(how);
            self.site.server.exit().await;
        }
        self.site.server.spawn();
        self.site.server.ready().await;
        let site = Site { admin: self.site.server.admin(), channel: self.site.server.data_channel(), ..self.site };
        Self { keys: self.keys.on(&site.channel), queue: self.queue.on(&site.channel), site, ..self }
    }

    fn is_alive(&self) {
        assert_eq!(self.site.server.try_exit(), None, "the server ended");
    }
}

async fn until_refused(what: &str, mut call: impl AsyncFnMut(usize) -> Result<(), Status>) {
    let mut done = 0;
    while let Ok(()) = call(done).await {
        done += 1;
        assert!(done < ENOUGH, "{what} is never refused");
    }
    println!("{what}: refused after {done} that were acknowledged");
}

#[tokio::test]
async fn users_data_fills_the_disk() {
    let mut world = World::new(32).await;
    for turn in 0..20 {
        world.put(&format!("k-{turn}"), 100).await.unwrap();
        world.publish(100).await.unwrap();
    }
    let mut stream = world.queue.subscribe("t", "open").await.unwrap();
    let first = next("a message", &mut stream).await.unwrap().unwrap();
    world.write_until_refused().await;
    world.is_alive();

    // Reads answer from what is there, or say why not.
    let mut answered = 0;
    for turn in 0..20 {
        match within("Get", world.keys.get(&format!("k-{turn}"))).await {
            Ok(answer) => {
                assert!(answer.found);
                answered += 1;
            }
            Err(status) => is_clear(&status),
        }
    }
    println!("while the disk was full: {answered} of 20 reads answered");
    if let Err(status) = within("Acknowledge", world.queue.acknowledge(&first.message_id)).await {
        is_clear(&status);
    }
    if let Err(status) =
        within("CreateSession", world.site.open(data::named(&world.site.key, &world.keys_config))).await
    {
        is_clear(&status);
    }
    world.is_alive();

    world.disk.make_room(&world.site.server);
    world.works().await;
    world.verify().await;
    println!(
        "{} puts, {} messages, {} changes acknowledged",
        world.puts.acknowledged(),
        world.topic.acknowledged(),
        world.changes.acknowledged()
    );
    for how in ["KILL", "TERM"] {
        world = world.restarted(how).await;
        world.verify().await;
        world.works().await;
    }
    world.log.is_unchanged(&world.site.admin).await;
}

#[tokio::test]
async fn control_state_without_room_changes_nothing_by_halves() {
    let mut world = World::new(24).await;
    let site = &world.site;
    let victim = site.session_of(&world.keys_config).await;
    let other = Site::new(Arc::clone(&site.server)).await;
    let doomed = other.session(Pattern::KeyValue).await;
    doomed.put("a", b"1").await.unwrap();
    world.log.read(&world.site.admin).await;
    world.administer_until_refused().await;
    let site = &world.site;

    // What is refused is not done. A credential's call that is acknowledged is done; both are seen again below.
    let terminate = wire::TerminateSessionRequest { session_id: victim.id.clone(), force: true, ..Default::default() };
    let terminated = within("TerminateSession", site.admin.service().terminate_session(terminate)).await;
    let delete = wire::DeleteNamespaceRequest { name: other.namespace.clone(), force: true, validate_only: false };
    let deleted = within("DeleteNamespace", site.admin.service().delete_namespace(delete)).await;
    let maintenance = wire::SetMaintenanceModeRequest {
        enabled: true,
        namespace: Some(site.namespace.clone()),
        ..Default::default()
    };
    let maintained = within("SetMaintenanceMode", site.admin.service().set_maintenance_mode(maintenance)).await;
    let key = wire::CreateClientKeyRequest {
        name: "without room".to_owned(),
        namespace: site.namespace.clone(),
        permissions: vec!["read".to_owned()],
        ttl: None,
    };
    let keyed = within("CreateClientKey", site.admin.access().create_client_key(key)).await;
    let timeout = Some(prost_types::Duration::default());
    let drain =
        wire::DrainConnectionsRequest { namespace: Some(site.namespace.clone()), timeout, ..Default::default() };
    let drained = within("DrainConnections", site.admin.service().drain_connections(drain)).await;
    let done = [
        ("TerminateSession", terminated.map(drop)),
        ("DeleteNamespace", deleted.map(drop)),
        ("SetMaintenanceMode", maintained.map(drop)),
        ("CreateClientKey", keyed.map(drop)),
        ("DrainConnections", drained.map(drop)),
    ];
    for (operation, answer) in &done {
        println!("{operation} without room: {}", answer.as_ref().map_or_else(Status::message, |()| "done"));
        answer.as_ref().err().into_iter().for_each(is_clear);
    }
    assert!(done.iter().any(|(_, answer)| answer.is_err()), "the disk was not full: {done:?}");
    world.is_alive();

    world.disk.make_room(&world.site.server);
    let before = world.log.entries().len();
    let entries = world.log.read(&world.site.admin).await;
    for (operation, answer) in &done {
        let succeeded = entries[before..].iter().filter(|entry| entry.success && entry.operation == *operation).count();
        assert_eq!(succeeded, usize::from(answer.is_ok()), "entries of {operation}: {answer:?}");
    }
    let [terminated, deleted, maintained, _, drained] = done.map(|(_, answer)| answer.is_ok());
    if maintained {
        world.site.admin.service().set_maintenance_mode(off(&world.site)).await.unwrap();
    }
    assert_eq!(victim.get("a").await.is_ok(), !terminated && !drained);
    assert_eq!(doomed.get("a").await.is_ok(), !deleted);
    if !drained {
        world.works().await;
        world.verify().await;
        world = world.restarted("KILL").await;
        world.verify().await;
    }
}

fn off(site: &Site) -> wire::SetMaintenanceModeRequest {
    wire::SetMaintenanceModeRequest { namespace: Some(site.namespace.clone()), ..Default::default() }
}

#[tokio::test]
async fn a_drain_that_ends_while_there_is_no_room_is_over_when_there_is() {
    let mut world = World::new(24).await;
    world.publish(10).await.unwrap();
    let mut stream = world.queue.subscribe("t", "busy").await.unwrap();
    next("a message", &mut stream).await.unwrap().unwrap();
    let admin = world.site.admin.clone();
    let timeout = Some(prost_types::Duration { seconds: 3, nanos: 0 });
    let request =
        wire::DrainConnectionsRequest { namespace: Some(world.site.namespace.clone()), timeout, ..Default::default() };
    let running = tokio::spawn(async move { admin.service().drain_connections(request).await });
    let (channel, session) = (world.site.channel.clone(), data::named(&world.site.key, &world.keys_config));
    let refused = async || data::create(&channel, session.clone()).await.is_err();
    until("the drain runs", async || refused().await.then_some(())).await;
    world.administer_until_refused().await;
    assert!(!running.is_finished(), "the disk took too long to fill");
    // Past the end of the drain, which cannot be written: the answer may be a refusal, or wait until there is room.
    tokio::time::sleep(Duration::from_secs(4)).await;
    world.is_alive();
    world.disk.make_room(&world.site.server);
    let answer = within("the answer", running).await.unwrap();
    println!("the drain's answer: {:?}", answer.as_ref().map(|answer| answer.get_ref().clone()).map_err(Failure::from));
    until("sessions are admitted again", async || (!refused().await).then_some(())).await;
    assert_eq!(world.site.admin.session(&world.queue.id).await.status(), wire::SessionStatus::Active);
    world.queue.publish("t2", b"1").await.unwrap();
    let entries = world.log.read(&world.site.admin).await;
    let drains: Vec<_> = entries.iter().filter(|entry| entry.operation == "DrainConnections").collect();
    assert_eq!(drains.len(), 1, "a drain has one entry: {drains:?}");
    assert_eq!(drains[0].success, answer.is_ok());
    world.changes.verify(entries);
}

#[tokio::test]
async fn a_start_without_room_serves_or_says_why_and_loses_nothing() {
    let mut world = World::new(32).await;
    world.write_until_refused().await;
    let server = Arc::clone(&world.site.server);
    server.kill();
    world.disk.fill(&server);
    server.spawn();
    let ended = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            if server.data_dir().join("endpoints.json").exists() {
                return None;
            }
            if let Some(status) = server.try_exit() {
                return Some(status);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let ended = ended.await.expect("a start on a full disk hangs");
    let log = server.log();
    println!("a start on a full disk: {ended:?}; {}", log.lines().last().unwrap_or_default());
    if let Some(status) = ended {
        assert!(!status.success());
        let text = log.to_lowercase();
        assert!(["full", "storage", "no space"].iter().any(|word| text.contains(word)), "{log}");
    }
    server.kill();
    world.disk.make_room(&server);
    world = world.restarted("KILL").await;
    world.verify().await;
    world.works().await;
}

/// Takes all room, and administers until nothing finds any, twenty times in a row.
async fn fill_up(disk: &Disk, site: &Site) {
    disk.fill(&site.server);
    let mut refused = 0;
    for turn in 0..ENOUGH {
        let draft = config(&unique("config"), &site.namespace, Pattern::KeyValue);
        let request = wire::CreateConfigRequest { config: Some(draft), ..Default::default() };
        match within("CreateConfig", site.admin.service().create_config(request)).await {
            Ok(_) => refused = 0,
            Err(status) => {
                is_clear(&status);
                refused += 1;
            }
        }
        if refused == 20 {
            return;
        }
        assert!(turn + 1 < ENOUGH, "the disk is never full");
    }
}

/// Every RPC, whoever calls it: it answers, with what it was asked for or with a plain word of why not.
#[tokio::test]
async fn without_room_for_the_log_every_call_answers_and_nothing_is_lost() {
    for setting in ["fail", "allow"] {
        let disk = Disk::new(24);
        let audit =
            format!("[audit]\non_read_failure = \"{setting}\"\nretention = \"3s\"\ncheckpoint_interval = \"1s\"\n");
        let limits = "[limits]\nauth_failures = 10000\n";
        let server = Arc::new(Prism::start(disk.options().config(&format!("{audit}{limits}"))).await);
        let site = Site::new(server).await;
        let callers = [
            ("the operator", site.admin.clone()),
            ("a viewer", site.admin.with_role("viewer", None).await),
            ("a viewer of one namespace", site.admin.with_role("viewer", Some(&site.namespace)).await),
            ("a stranger", site.admin.with_key("prx_nonsense")),
            ("nobody", site.admin.with_headers(Headers::none())),
        ];
        let rules = reflected_rules(&site.admin.channel).await;
        let mut followed = site.admin.follow().await.unwrap();
        fill_up(&disk, &site).await;

        let mut calls = JoinSet::new();
        for (who, caller) in &callers {
            for rule in &rules {
                let (who, caller, rule) = (*who, caller.clone(), rule.clone());
                calls.spawn(async move {
                    let (outcome, _) =
                        raw::call_to_the_end(&caller.channel, &caller.headers, &rule.path, b"".as_slice()).await;
                    (who, rule, outcome.map_err(|status| Failure::from(&status)))
                });
            }
        }
        let (mut answered, mut plain) = (0, 0);
        while let Some(call) = within("an answer", calls.join_next()).await {
            let (who, rule, outcome) = call.unwrap();
            let is_known = !matches!(who, "a stranger" | "nobody");
            let is_read = rule.audit == AuditClass::Read;
            match outcome {
                Err(failure) if failure.code == Code::Unavailable => {
                    assert!(["STORAGE_FULL", "STORAGE_UNAVAILABLE"].contains(&failure.reason.as_str()), "{failure:?}");
                    assert!(!failure.message.is_empty(), "{failure:?}");
                    plain += 1;
                }
                Err(failure) if !is_known => assert_eq!(failure.code, Code::Unauthenticated, "{who}: {failure:?}"),
                other => {
                    let may = setting == "allow" && is_known && is_read;
                    assert!(may, "{setting}, {who}, {}: {other:?}", rule.path);
                    answered += 1;
                }
            }
        }
        println!("{setting}: {answered} reads answered, {plain} calls refused for the log");
        assert!(
            plain > 0 && (answered > 20) == (setting == "allow"),
            "{setting}: {answered} answered, {plain} refused"
        );
        let cli = Cli::of(&site.server);
        cli.run("namespace create without-room").fails(5, "audit log cannot be written");
        if setting == "allow" {
            cli.run("namespace list").ok().quiet();
        } else {
            cli.run("namespace list").fails(5, "audit log cannot be written");
        }
        assert_eq!(site.server.try_exit(), None, "the server ended");

        // With room again it goes on by itself: who followed missed nothing, and what is past its time is removed.
        disk.make_room(&site.server);
        let change = async || {
            let request = wire::CreateAuditCheckpointRequest {};
            site.admin.service().create_audit_checkpoint(request).await.ok()
        };
        until("a change", change).await;
        let last = site.admin.checkpoint().await.sequence;
        let mut seen: Vec<wire::AuditLogEntry> = Vec::new();
        while seen.last().is_none_or(|entry| entry.sequence < last) {
            seen.push(next("an entry", &mut followed).await.unwrap().unwrap());
        }
        audit::verify_after(seen[0].sequence - 1, &seen[0].previous_hash, &seen);
        let counted = seen.iter().filter(|entry| entry.operation == "UnrecordedReads").count();
        assert_eq!(counted > 0, setting == "allow", "{counted} entries of unrecorded reads");
        until("a cut", async || site.admin.checkpoints().await.iter().any(|signed| signed.cut).then_some(())).await;
        cli.run("audit verify").ok().quiet();
        site.server.signal("TERM");
        assert!(site.server.exit().await.success());
        cli.run(&format!("audit verify --data-dir {}", site.server.data_dir().display())).ok().quiet();
    }
}
