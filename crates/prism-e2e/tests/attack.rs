//! What it costs to try credentials: a growing delay, refusals, bounded memory and bounded entries — for whoever tries, and
//! for nobody else.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prism_e2e::wait::{until, within};
use prism_e2e::{Admin, Failure, Headers, Options, Pattern, Prism, Site, data, dial, keys, raw};
use prism_proto::admin::v1 as wire;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// `[limits] auth_failures`, if nobody sets it.
const FREE: usize = 20;
/// Answers of one source that wait, at most.
const WAITING: usize = 16;
const CONFIGS: &str = "/prism.admin.v1.AdminService/ListConfigs";

/// A plane at which credentials can be tried.
#[derive(Clone)]
enum Door {
    Admin,
    /// The data plane, with the name of a config.
    Data(String),
}

impl Door {
    /// Tries a key over a connection.
    async fn tries(&self, channel: &Channel, key: &str) -> Result<(), Status> {
        match self {
            Self::Admin => raw::call(channel, &Headers::bearer(key), CONFIGS, Vec::new()).await.map(drop),
            Self::Data(config) => data::create(channel, data::named(key, config)).await.map(drop),
        }
    }

    fn prefix(&self) -> &'static str {
        match self {
            Self::Admin => "prx_",
            Self::Data(_) => "prc_",
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Admin => "CREDENTIAL_INVALID",
            Self::Data(_) => "CLIENT_KEY_INVALID",
        }
    }

    /// A key that opens it.
    fn key(&self, site: &Site) -> String {
        match self {
            Self::Admin => site.server.admin_token(),
            Self::Data(_) => site.key.clone(),
        }
    }

    /// A new connection from a source of one's own.
    fn from(&self, site: &Site, source: Ipv4Addr) -> Channel {
        let endpoints = site.server.endpoints();
        let address = match self {
            Self::Admin => endpoints.admin,
            Self::Data(_) => endpoints.data,
        };
        dial::tls_from(source, &address, &site.server.data_dir().join("ca.pem"))
    }

    /// Tries several unknown keys at a time.
    fn storm(&self, channel: &Channel, count: usize) -> Storm {
        let mut storm = Storm::default();
        for _ in 0..count {
            storm.add(self, channel.clone(), keys::unknown(self.prefix()));
        }
        storm
    }
}

/// Keys that are tried at the same time, none of them valid.
#[derive(Default)]
struct Storm {
    calls: JoinSet<(usize, Status)>,
    open: Arc<AtomicUsize>,
}

impl Storm {
    fn add(&mut self, door: &Door, channel: Channel, key: String) {
        self.open.fetch_add(1, Ordering::SeqCst);
        let (door, open, number) = (door.clone(), Arc::clone(&self.open), self.calls.len());
        self.calls.spawn(async move {
            let status = door.tries(&channel, &key).await.expect_err("a key that nobody has");
            open.fetch_sub(1, Ordering::SeqCst);
            (number, status)
        });
    }

    /// The next answer; none when all are there.
    async fn next(&mut self) -> Option<Failure> {
        let answer = within("an answer", self.calls.join_next()).await?;
        Some(Failure::from(&answer.expect("a call").1))
    }

    /// Whether calls wait for their answer.
    fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst) > 0
    }

    /// All answers, in the order of the calls.
    async fn over(self) -> Vec<Status> {
        let mut answers = within("all answers", self.calls.join_all()).await;
        answers.sort_by_key(|(number, _)| *number);
        answers.into_iter().map(|(_, status)| status).collect()
    }
}

async fn site() -> Site {
    Site::new(Arc::new(Prism::start(Options::new()).await)).await
}

async fn doors(site: &Site) -> [Door; 2] {
    [Door::Admin, Door::Data(site.config(Pattern::KeyValue).await)]
}

fn source(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 7, number)
}

#[tokio::test]
async fn failures_are_answered_at_once_then_later_then_not_at_all_while_a_valid_key_goes_first() {
    let site = site().await;
    for (number, door) in doors(&site).await.into_iter().enumerate() {
        let attacker = door.from(&site, source(number as u8 + 1));
        for _ in 0..FREE {
            let failure = Failure::from(&door.tries(&attacker, &keys::unknown(door.prefix())).await.unwrap_err());
            failure.is(Code::Unauthenticated, door.reason());
        }
        let mut storm = door.storm(&attacker, 120);
        let (mut waited, mut refused, mut overtaken) = (Vec::new(), Vec::new(), false);
        while let Some(failure) = storm.next().await {
            if failure.code == Code::ResourceExhausted {
                refused.push(failure);
            } else {
                waited.push(failure);
            }
            if !overtaken && storm.is_open() {
                door.tries(&attacker, &door.key(&site)).await.expect("a valid key is never made to wait");
                overtaken = storm.is_open();
            }
        }
        assert!(overtaken, "no valid key was answered before the failed ones that came first");
        assert!(
            refused.len() >= WAITING && waited.len() >= WAITING,
            "{} refused, {} waited",
            refused.len(),
            waited.len()
        );
        for failure in &waited {
            failure.is(Code::Unauthenticated, door.reason());
            assert_eq!(failure.retry, None, "{failure:?}");
        }
        for failure in &refused {
            failure.is(Code::ResourceExhausted, "TOO_MANY_FAILURES");
            assert!(failure.retry.is_some_and(|delay| delay > Duration::ZERO), "{failure:?}");
            assert_eq!(failure.message, refused[0].message);
        }
        // Others are not made to pay for it.
        let neighbour = door.from(&site, source(number as u8 + 101));
        for _ in 0..FREE {
            let failure = Failure::from(&door.tries(&neighbour, &keys::unknown(door.prefix())).await.unwrap_err());
            failure.is(Code::Unauthenticated, door.reason());
        }
    }
}

#[tokio::test]
async fn a_key_that_many_sources_guess_at_is_slow_for_all_of_them_and_for_its_owner_it_is_not() {
    const SOURCES: u8 = 60;
    let site = site().await;
    for (number, door) in doors(&site).await.into_iter().enumerate() {
        let network = |host| Ipv4Addr::new(127, 0, 20 + number as u8, host);
        let (owned, unknown) = (door.key(&site), keys::unknown(door.prefix()));
        for guessed in [&owned, &unknown] {
            let mut guesses = Storm::default();
            for host in 1..=SOURCES {
                guesses.add(&door, door.from(&site, network(host)), keys::wrong_secret(guessed));
            }
            for _ in 0..FREE {
                guesses.next().await.expect("an answer").is(Code::Unauthenticated, door.reason());
            }
            // All sources have guessed once only; it is the key that makes them wait, this one and no other.
            let stranger = door.from(&site, network(200));
            let other = Failure::from(&door.tries(&stranger, &keys::unknown(door.prefix())).await.unwrap_err());
            other.is(Code::Unauthenticated, door.reason());
            for channel in [&stranger, &door.from(&site, network(1))] {
                door.tries(channel, &owned).await.expect("the owner's secret is never made to wait");
            }
            assert!(guesses.is_open(), "nobody had to wait for a key that was guessed at {SOURCES} times");
            while let Some(late) = guesses.next().await {
                late.is(Code::Unauthenticated, door.reason());
            }
        }
    }
}

#[tokio::test]
async fn nothing_tells_what_is_wrong_with_a_credential() {
    let site = site().await;
    let mut access = site.admin.access();
    let key = async || site.admin.create_api_key("admin", None, None).await;
    let (revoked, rotated, valid) = (key().await, key().await, key().await);
    let id = |made: &wire::CreateApiKeyResponse| made.api_key.clone().unwrap().key_id;
    access.revoke_api_key(wire::RevokeApiKeyRequest { key_id: id(&revoked) }).await.unwrap();
    access.rotate_api_key(wire::RotateApiKeyRequest { key_id: id(&rotated), overlap: None }).await.unwrap();
    let ttl = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let roles = vec!["admin".to_owned()];
    let short = wire::CreateApiKeyRequest { name: "short".to_owned(), roles, ttl, ..Default::default() };
    let expired = access.create_api_key(short).await.unwrap().into_inner().token;
    let who = async |token: &str| site.admin.with_key(token).who_am_i().await;
    until("its expiry", async || who(&expired).await.is_err().then_some(())).await;

    let mut cut = valid.token.clone();
    cut.pop();
    let credentials = [
        ("unknown", keys::unknown("prx_")),
        ("wrong", keys::wrong_secret(&valid.token)),
        ("wrong of the first key", keys::wrong_secret(&site.server.admin_token())),
        ("wrong and revoked", keys::wrong_secret(&revoked.token)),
        ("revoked", revoked.token),
        ("rotated away", rotated.token),
        ("expired", expired),
        ("cut", cut),
        ("nonsense", "prx_nonsense".to_owned()),
        ("a client key", site.key.clone()),
        ("no key at all", "nonsense".to_owned()),
    ];
    // Each from a source of its own, so that none has to wait; then all from one, where all have to.
    for shared in [false, true] {
        let crowd = Door::Admin.from(&site, source(50));
        if shared {
            Door::Admin.storm(&crowd, FREE + 4).over().await;
        }
        let mut storm = Storm::default();
        for (number, (_, token)) in credentials.iter().enumerate() {
            let own = || Door::Admin.from(&site, source(number as u8 + 60));
            storm.add(&Door::Admin, if shared { crowd.clone() } else { own() }, token.clone());
        }
        let answers = storm.over().await;
        let names = |status: &Status| -> BTreeSet<String> {
            status.metadata().clone().into_headers().keys().map(ToString::to_string).collect()
        };
        let (first, expected) = (Failure::from(&answers[0]), names(&answers[0]));
        first.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
        for ((what, _), status) in credentials.iter().zip(&answers) {
            let answer = Failure::from(status);
            assert_eq!(
                (answer.code, &answer.reason, &answer.message),
                (first.code, &first.reason, &first.message),
                "{what}"
            );
            assert_eq!((&answer.metadata, &answer.domain), (&first.metadata, &first.domain), "{what}");
            assert_eq!(names(status), expected, "{what}");
        }
    }
    // The log of the server's operator does not tell either, beside what it masks.
    let log = site.admin.whole_log().await;
    let errors: BTreeSet<_> = log
        .iter()
        .filter(|entry| entry.actor == "anonymous" && entry.operation != "RefusedCredentials")
        .map(|entry| (&entry.error, &entry.metadata["reason"]))
        .collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
}

#[tokio::test]
async fn entries_of_failed_credentials_are_bounded_and_counted() {
    let site = site().await;
    let attacker = Door::Admin.from(&site, source(1));
    let mut tried: u64 = 0;
    for _ in 0..3 {
        tried += Door::Admin.storm(&attacker, 400).over().await.len() as u64;
    }
    // The next one that is recorded tells how many were not.
    let counted = async || {
        let log = site.admin.whole_log().await;
        let entries: Vec<_> = log.iter().filter(|entry| entry.actor == "anonymous").collect();
        let suppressed = |entry: &&wire::AuditLogEntry| {
            entry.metadata.get("suppressed_before").map_or(0, |count| count.parse::<u64>().expect("a number"))
        };
        // An entry that holds nothing but the count is of no try.
        let own = entries.iter().filter(|entry| entry.operation != "RefusedCredentials").count();
        (own as u64, entries.iter().map(suppressed).sum::<u64>())
    };
    let (mut entries, mut suppressed) = counted().await;
    let neighbour = Door::Admin.from(&site, source(2));
    for _ in 0..FREE {
        if entries + suppressed == tried {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        Door::Admin.tries(&neighbour, &keys::unknown("prx_")).await.unwrap_err();
        tried += 1;
        (entries, suppressed) = counted().await;
    }
    assert_eq!(entries + suppressed, tried, "{entries} entries that tell of {suppressed} more");
    assert!(suppressed > tried / 2, "{entries} entries for {tried} tries");
    prism_e2e::audit::verify(&site.admin.whole_log().await);
}

#[tokio::test]
async fn memory_is_bounded_however_many_keys_are_tried() {
    const KEYS: usize = 20_000;
    const SOURCES: u8 = 20;
    const GROWTH: u64 = 64 << 20;
    let site = site().await;
    let [admin, data] = doors(&site).await;
    let storm = async |keys: usize, network: u8| {
        let mut storms = JoinSet::new();
        for host in 1..=SOURCES {
            for door in [&admin, &data] {
                let channel = door.from(&site, Ipv4Addr::new(127, 1, network, host));
                storms.spawn(door.storm(&channel, keys / usize::from(SOURCES) / 2).over());
            }
        }
        let mut answered = 0;
        while let Some(answers) = storms.join_next().await {
            for status in answers.unwrap() {
                assert!(matches!(status.code(), Code::Unauthenticated | Code::ResourceExhausted), "{status:?}");
                answered += 1;
            }
        }
        answered
    };
    // What connections, threads and buffers need is there before it is measured.
    storm(KEYS / 10, 1).await;
    let mut seen = vec![resident(&site.server)];
    for network in 2..4 {
        assert_eq!(storm(KEYS, network).await, KEYS);
        seen.push(resident(&site.server));
    }
    println!("{seen:?} bytes resident before and after each {KEYS} keys that were tried");
    assert!(seen.iter().all(|after| *after < seen[0] + GROWTH), "{seen:?} bytes resident");
    admin.tries(&site.admin.channel, &admin.key(&site)).await.expect("the operator is let in");
    data.tries(&site.channel, &data.key(&site)).await.expect("clients are let in");
}

fn resident(server: &Prism) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process_id())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// A setting for those who share an address with many, and one for those who do not.
#[tokio::test]
async fn how_many_failures_are_free_is_a_setting() {
    for (free, tries) in [(200, 150), (1, 1)] {
        let options = Options::new().config(&format!("[limits]\nauth_failures = {free}\n"));
        let site = Site::new(Arc::new(Prism::start(options).await)).await;
        let attacker = Door::Admin.from(&site, source(1));
        for status in Door::Admin.storm(&attacker, tries).over().await {
            Failure::from(&status).is(Code::Unauthenticated, "CREDENTIAL_INVALID");
        }
        if free == 1 {
            let answers = Door::Admin.storm(&attacker, 60).over().await;
            let refused = |status: &Status| Failure::from(status).reason == "TOO_MANY_FAILURES";
            assert!(answers.iter().any(refused), "{answers:?}");
        }
    }
}

/// What is no credential of its own is no guess: nobody is delayed for it.
#[tokio::test]
async fn callers_without_a_credential_are_turned_away_at_once() {
    let site = site().await;
    let nobody = Admin { channel: Door::Admin.from(&site, source(1)), headers: Headers::none() };
    let mut calls = JoinSet::new();
    for _ in 0..100 {
        let nobody = nobody.clone();
        calls.spawn(async move { nobody.who_am_i().await.unwrap_err() });
    }
    for failure in within("refusals", calls.join_all()).await {
        failure.is(Code::Unauthenticated, "CREDENTIAL_MISSING");
    }
    // Nor is a valid key that names somebody else, or comes beside another.
    for _ in 0..FREE * 2 {
        let mismatch = nobody.with_headers(site.admin.headers.clone().user("prism"));
        mismatch.who_am_i().await.unwrap_err().is(Code::Unauthenticated, "ADMIN_USER_INVALID");
    }
    for _ in 0..FREE {
        Door::Admin.tries(&nobody.channel, &keys::unknown("prx_")).await.unwrap_err();
    }
}
