//! kill -9 under load: issue "Done when", contract §4 and §8 on what survives a crash.
//!
//! `PRISM_CRASH_ROUNDS` sets the number of rounds, 3 without it; `--nocapture` shows what they did.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use prism_e2e::books::{Keys, Log, Topic, random};
use prism_e2e::changes::{Changes, State};
use prism_e2e::site::{config, unique, with_option};
use prism_e2e::wait::{next, until, within};
use prism_e2e::{Admin, Options, Pattern, Prism, Refused as _, Session, Site, data};
use prism_proto::admin::v1 as wire;
use prism_proto::admin::v1::SessionStatus::{Active, Expiring};
use prism_proto::session::v1::CloseSessionRequest;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// Concurrent tasks of each kind.
const WORKERS: usize = 4;
/// Keys of each task that puts.
const KEYS: usize = 10;
/// Sessions that live on through the rounds.
const VETERANS: usize = 10;

fn rounds() -> usize {
    let text = std::env::var("PRISM_CRASH_ROUNDS").unwrap_or_else(|_| "3".to_owned());
    text.parse().expect("PRISM_CRASH_ROUNDS is a number")
}

/// What became of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Open,
    Closing,
    Closed,
}

/// All that the clients were told.
struct Books {
    keys: Vec<Mutex<Keys>>,
    topic: Mutex<Topic>,
    changes: Changes,
    sessions: Mutex<BTreeMap<String, (Session, Life)>>,
    marks: AtomicI64,
    dead: AtomicBool,
}

impl Books {
    fn new() -> Self {
        Self {
            keys: (0..WORKERS).map(|_| Mutex::default()).collect(),
            topic: Mutex::new(Topic::new("t-0")),
            changes: Changes::default(),
            sessions: Mutex::default(),
            marks: AtomicI64::new(1),
            dead: AtomicBool::new(false),
        }
    }

    fn mark(&self) -> i64 {
        // Far above what the load itself needs.
        1_000_000 + self.marks.fetch_add(1, Ordering::Relaxed)
    }
}

/// The long-lived part: a namespace with a config for each pattern in use, and a session on two of them.
struct World {
    site: Site,
    keys_config: String,
    keys: Session,
    queue: Session,
}

impl World {
    async fn new() -> Self {
        let site = Site::new(Arc::new(Prism::start(Options::new()).await)).await;
        let keys_config = site.config(Pattern::KeyValue).await;
        let partitions = config(&unique("queue"), &site.namespace, Pattern::Queue);
        let queue_config = site.configure(with_option(partitions, "partitions", "4")).await;
        let (keys, queue) = (site.session_of(&keys_config).await, site.session_of(&queue_config).await);
        Self { site, keys_config, keys, queue }
    }

    /// The same after a restart: new ports, new connections, old tokens.
    fn again(self) -> Self {
        let site = Site { admin: self.site.server.admin(), channel: self.site.server.data_channel(), ..self.site };
        Self {
            keys: self.keys.on(&site.channel),
            queue: self.queue.on(&site.channel),
            keys_config: self.keys_config,
            site,
        }
    }
}

async fn put_keys(books: &Books, worker: usize, session: &Session) -> Result<(), Status> {
    let mut keys = books.keys[worker].lock().await;
    for turn in 0.. {
        let key = format!("k-{worker}-{}", turn % KEYS);
        let value = format!("{turn} {:x} ", random()).repeat(1 + turn % 40);
        keys.put(session, &key, value.as_bytes()).await?;
    }
    Ok(())
}

async fn publish(books: &Books, session: &Session) -> Result<(), Status> {
    for turn in 0.. {
        let payload = format!("{} ", unique("message")).repeat(1 + turn % 40).into_bytes();
        let request = books.topic.lock().await.begin(&payload);
        let answer = session.queue().publish(request).await?.into_inner();
        books.topic.lock().await.done(&payload, &answer);
    }
    Ok(())
}

async fn administer(books: &Books, admin: &Admin, home: &str, part: &str) -> Result<(), Status> {
    let changes = &books.changes;
    for turn in 0.. {
        let namespace = unique(&format!("ns-{part}"));
        changes.create_namespace(admin, &namespace, books.mark()).await?;
        let name = unique(&format!("config-{part}"));
        // A schema makes the call do something outside the control state as well.
        let pattern = if turn % 3 == 0 { Pattern::Transact } else { Pattern::KeyValue };
        let draft = |version: &str| {
            let mut draft = config(&name, home, pattern);
            version.clone_into(&mut draft.version);
            draft
        };
        changes.create_config(admin, draft("1")).await?;
        changes.update_config(admin, draft("2")).await?;
        changes.update_namespace(admin, &namespace, books.mark()).await?;
        if turn % 2 == 0 {
            changes.delete_config(admin, &name).await?;
            changes.create_config(admin, draft("3")).await?;
        }
        changes.update_namespace(admin, &namespace, books.mark()).await?;
        if turn % 4 == 3 {
            changes.delete_config(admin, &name).await?;
        }
    }
    Ok(())
}

async fn open_and_close(books: &Books, world: &World, channel: &tonic::transport::Channel) -> Result<(), Status> {
    for turn in 0.. {
        let session = data::create(channel, data::named(&world.site.key, &world.keys_config)).await?;
        let note = async |life| books.sessions.lock().await.insert(session.id.clone(), (session.clone(), life));
        note(Life::Open).await;
        if turn % 2 == 0 {
            note(Life::Closing).await;
            let request = CloseSessionRequest { session_token: session.token.clone(), force: turn % 4 == 0 };
            session.life().close_session(request).await?;
            note(Life::Closed).await;
        }
    }
    Ok(())
}

/// Runs everything at once until the server is killed at a random moment.
async fn load_and_kill(books: &Arc<Books>, world: &Arc<World>, part: &str) -> Duration {
    let mut tasks = JoinSet::new();
    let mut spawn = |name: &'static str, work: std::pin::Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>| {
        let books = Arc::clone(books);
        tasks.spawn(async move {
            if let Err(status) = work.await {
                assert!(books.dead.load(Ordering::SeqCst), "{name} was refused by a living server: {status:?}");
            }
        });
    };
    books.dead.store(false, Ordering::SeqCst);
    for worker in 0..WORKERS {
        let both = || (Arc::clone(books), Arc::clone(world), world.site.server.data_channel());
        let (books, world, channel) = both();
        spawn("Put", Box::pin(async move { put_keys(&books, worker, &world.keys.on(&channel)).await }));
        let (books, world, channel) = both();
        spawn("Publish", Box::pin(async move { publish(&books, &world.queue.on(&channel)).await }));
        let ((books, world, _), part) = (both(), part.to_owned());
        spawn(
            "admin",
            Box::pin(async move { administer(&books, &world.site.server.admin(), &world.site.namespace, &part).await }),
        );
        let (books, world, channel) = both();
        spawn("sessions", Box::pin(async move { open_and_close(&books, &world, &channel).await }));
    }
    let delay = Duration::from_millis(100 + random() % 801);
    tokio::time::sleep(delay).await;
    books.dead.store(true, Ordering::SeqCst);
    world.site.server.kill();
    while let Some(task) = within("the end of the clients", tasks.join_next()).await {
        task.unwrap();
    }
    delay
}

async fn verify_sessions(books: &Books, world: &World) {
    let mut sessions = books.sessions.lock().await;
    for (session, life) in sessions.values_mut() {
        *session = session.on(&world.site.channel);
        let now = match session.get("nothing").await {
            Ok(_) => Life::Open,
            other => {
                other.refused().is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
                Life::Closed
            }
        };
        assert!(*life == now || *life == Life::Closing, "session {} was {life:?} and is {now:?}", session.id);
        *life = now;
    }
    // Some go on to the next crash; the rest would only be in the way.
    let mut left = 0;
    for (session, _) in sessions.values().filter(|(_, life)| *life == Life::Open) {
        left += 1;
        if left > VETERANS {
            let request = CloseSessionRequest { session_token: session.token.clone(), force: true };
            session.life().close_session(request).await.unwrap();
        }
    }
    let mut left = 0;
    sessions.retain(|_, (_, life)| {
        left += usize::from(*life == Life::Open);
        *life == Life::Open && left <= VETERANS
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9_under_load() {
    let (rounds, start) = (rounds(), Instant::now());
    let (books, mut log) = (Arc::new(Books::new()), Log::default());
    let mut world = Arc::new(World::new().await);
    let (mut puts, mut published, mut topics) = (0, 0, Vec::new());
    log.read(&world.site.admin).await;
    for round in 0..rounds {
        let name = format!("t-{round}");
        topics.push(std::mem::replace(&mut *books.topic.lock().await, Topic::new(&name)));
        let part = format!("r{round}x");
        let changes_before = books.changes.acknowledged();
        let delay = load_and_kill(&books, &world, &part).await;

        let restart = Instant::now();
        world.site.server.spawn();
        world.site.server.ready().await;
        let restart = restart.elapsed();
        world = Arc::new(Arc::into_inner(world).expect("the clients have ended").again());
        let entries = log.read(&world.site.admin).await;
        books.changes.verify(entries);
        State::replay(entries).verify(&world.site.admin, &part).await;
        let puts_before = puts;
        puts = 0;
        for worker in &books.keys {
            let mut worker = worker.lock().await;
            worker.verify(&world.keys).await;
            puts += worker.acknowledged();
        }
        let mut topic = books.topic.lock().await;
        let messages = topic.acknowledged();
        topic.verify(&world.queue).await;
        published += messages;
        let sessions = books.sessions.lock().await.len();
        verify_sessions(&books, &world).await;
        println!(
            "round {round}: killed after {delay:?}, ready again after {restart:?}: {} puts, {messages} messages, {} changes, {sessions} sessions",
            puts - puts_before,
            books.changes.acknowledged() - changes_before,
        );
    }
    // All of it once more, after the last crash.
    for topic in &mut topics[1..] {
        topic.verify(&world.queue).await;
    }
    let entries = log.read(&world.site.admin).await;
    State::replay(entries).verify(&world.site.admin, "").await;
    log.is_unchanged(&world.site.admin).await;
    println!(
        "{rounds} rounds in {:?}: {puts} puts, {published} messages, {} changes, {} audit entries; nothing is missing, nothing twice",
        start.elapsed(),
        books.changes.acknowledged(),
        log.entries().len(),
    );
    assert!(published > 0 && books.changes.acknowledged() > 0, "there was no load");
}

/// A session that holds a message, and with it something running.
async fn busy(site: &Site, config: &str) -> (Session, impl Sized + use<>) {
    let session = site.session_of(config).await;
    let topic = unique("topic");
    session.publish(&topic, b"1").await.unwrap();
    let mut stream = session.subscribe(&topic, "g").await.unwrap();
    next("a message", &mut stream).await.unwrap().unwrap();
    (session, stream)
}

#[tokio::test]
async fn a_crash_during_a_drain_leaves_one_entry_and_active_sessions() {
    let mut site = Site::new(Arc::new(Prism::start(Options::new()).await)).await;
    let queue = site.config(Pattern::Queue).await;
    for crash in 1..=2 {
        let (session, _stream) = busy(&site, &queue).await;
        let admin = site.admin.clone();
        let timeout = Some(prost_types::Duration { seconds: 60, nanos: 0 });
        let request =
            wire::DrainConnectionsRequest { namespace: Some(site.namespace.clone()), timeout, ..Default::default() };
        let running = tokio::spawn(async move { admin.service().drain_connections(request).await });
        until("EXPIRING", async || (site.admin.session(&session.id).await.status() == Expiring).then_some(())).await;
        site.server.crash_and_restart().await;
        assert!(within("the end of the call", running).await.unwrap().is_err());
        // A second crash has nothing more to answer for.
        site.server.crash_and_restart().await;

        site = Site { admin: site.server.admin(), channel: site.server.data_channel(), ..site };
        assert_eq!(site.admin.session(&session.id).await.status(), Active);
        session.on(&site.channel).publish("after", b"2").await.unwrap();
        site.session_of(&queue).await;
        let mut log = Log::default();
        let drains: Vec<_> =
            log.read(&site.admin).await.iter().filter(|entry| entry.operation == "DrainConnections").collect();
        assert_eq!(drains.len(), crash, "{drains:?}");
        for drain in drains {
            assert!(
                !drain.success && drain.error.as_deref().is_some_and(|error| error.contains("interrupted")),
                "{drain:?}"
            );
            assert_eq!(drain.namespace, site.namespace);
        }
    }
}

/// Puts and publishes enough that the removal of it takes a moment.
async fn fill(site: &Site, keys: &Session, queue: &Session) {
    for _ in 0..20 {
        keys.put(&unique("filler"), &vec![7; 100_000]).await.unwrap();
    }
    keys.put("kept", b"old").await.unwrap();
    queue.publish("t", b"old").await.unwrap();
    assert!(storage(site).await.unwrap() > 0);
}

/// Stored bytes of the namespace; `None` when there is no such namespace.
async fn storage(site: &Site) -> Option<i64> {
    let request = wire::GetNamespaceRequest { name: site.namespace.clone() };
    match site.admin.service().get_namespace(request).await {
        Ok(answer) => Some(answer.into_inner().namespace.unwrap().metrics.unwrap().storage_bytes_used),
        Err(status) if status.code() == Code::NotFound => None,
        Err(status) => panic!("{status:?}"),
    }
}

#[tokio::test]
async fn a_crash_while_a_namespace_is_deleted_leaves_all_of_it_or_nothing() {
    let server = Arc::new(Prism::start(Options::new()).await);
    let (mut whole, mut gone, mut halfway) = (0, 0, 0);
    for round in 0..rounds() * 2 {
        let mut site = Site::new(Arc::clone(&server)).await;
        let (keys_config, queue_config) = (site.config(Pattern::KeyValue).await, site.config(Pattern::Queue).await);
        let (keys, queue) = (site.session_of(&keys_config).await, site.session_of(&queue_config).await);
        fill(&site, &keys, &queue).await;
        let (admin, name) = (site.admin.clone(), site.namespace.clone());
        let deletion = tokio::spawn(async move {
            let request = wire::DeleteNamespaceRequest { name, force: true, validate_only: false };
            admin.service().delete_namespace(request).await
        });
        // The first at once, later ones up to when the deletion is about to be answered.
        tokio::time::sleep(Duration::from_micros(random() % 10_000 * (round as u64).min(1))).await;
        server.kill();
        let files = find(&server.data_dir(), &format!("{}.db", site.namespace));
        server.spawn();
        server.ready().await;
        let acknowledged = within("the end of the call", deletion).await.unwrap().is_ok();

        site = Site { admin: server.admin(), channel: server.data_channel(), ..site };
        let (keys, queue) = (keys.on(&site.channel), queue.on(&site.channel));
        let mut log = Log::default();
        let is_deletion =
            |entry: &&wire::AuditLogEntry| entry.operation == "DeleteNamespace" && entry.namespace == site.namespace;
        let entries = log.read(&site.admin).await.iter().filter(is_deletion).count();
        if storage(&site).await.is_some() {
            assert!(!acknowledged && entries == 0, "the namespace is there: {acknowledged} {entries}");
            whole += 1;
            assert_eq!(keys.get("kept").await.unwrap().value.as_ref(), b"old");
            assert_eq!(queue.publish("t", b"new").await.unwrap().offset, 1);
            site.session_of(&keys_config).await;
        } else {
            assert_eq!(entries, 1, "the namespace is gone");
            gone += 1;
            halfway += usize::from(files);
            is_gone(&site, &keys, &keys_config).await;
            is_made_again_empty(&mut site, &keys_config, &queue_config).await;
        }
    }
    println!(
        "crashes while a namespace is deleted: {whole} left it whole, {gone} left nothing, {halfway} of these before its files were removed"
    );
}

/// Whether there is a file of this name anywhere in `folder`.
fn find(folder: &Path, name: &str) -> bool {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .any(|path| if path.is_dir() { find(&path, name) } else { path.file_name().is_some_and(|found| found == name) })
}

async fn is_gone(site: &Site, keys: &Session, config: &str) {
    keys.get("kept").await.refused().is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    let get = wire::GetConfigRequest { name: config.to_owned(), ..Default::default() };
    assert_eq!(site.admin.service().get_config(get).await.refused().code, Code::NotFound);
    assert_eq!(site.open(data::named(&site.key, config)).await.refused().code, Code::Unauthenticated);
}

async fn is_made_again_empty(site: &mut Site, keys_config: &str, queue_config: &str) {
    let request = wire::CreateNamespaceRequest { name: site.namespace.clone(), ..Default::default() };
    until("the namespace can be made again", async || {
        match site.admin.service().create_namespace(request.clone()).await {
            Ok(_) => Some(()),
            Err(status) => {
                Err::<(), _>(status).refused().is(Code::FailedPrecondition, "NAMESPACE_BEING_REMOVED");
                None
            }
        }
    })
    .await;
    assert_eq!(storage(site).await, Some(0));
    site.key = site.admin.create_client_key(&site.namespace, &["read", "write"]).await;
    site.configure(config(keys_config, &site.namespace, Pattern::KeyValue)).await;
    site.configure(config(queue_config, &site.namespace, Pattern::Queue)).await;
    let (keys, queue) = (site.session_of(keys_config).await, site.session_of(queue_config).await);
    assert!(!keys.get("kept").await.unwrap().found);
    assert_eq!(queue.publish("t", b"new").await.unwrap().offset, 0);
}
