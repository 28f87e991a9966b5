//! Tokens of sessions that are not here. The session may be on another node, and go on here when that is gone: the control plane
//! knows, and is asked once about each token, at a bounded rate.
//!
//! Nothing of this is on the path of a call whose session is here. A token that is wrong costs its source, so that guesses do not
//! flood a controller; one that is right costs nothing.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use prism_core::secret::{SecretId, SecretProof};
use prism_core::session::SessionRecord;
use prism_core::source::Source;
use prism_core::{Error, Kind, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::call::{self, Context};
use crate::cause;
use crate::gate::{Gate, Permit, Turned};
use crate::plane::Plane;

/// Questions under way; others wait for their turn, and how long.
const ASKED_AT_ONCE: usize = 64;
const TURN_WITHIN: Duration = Duration::from_secs(2);
/// Tokens of which is remembered that they are dead, those of sessions that ended here among them.
const MAX_DEAD: usize = 50_000;
/// Tokens of which is remembered what was answered a moment ago.
const MAX_ANSWERED: usize = 10_000;
/// How long the same is answered about a session that is elsewhere.
const ANSWER_HOLDS: Duration = Duration::from_secs(1);
/// Tokens of one source that are asked about at once and, as only those that are wrong count from then on, how many more in a
/// second.
const WRONG_AT_ONCE: f64 = 200.0;
const WRONG_PER_SECOND: f64 = 20.0;
/// Counters of wrong tokens. Sources share them by chance, so that there is no bound on sources.
const COUNTERS: usize = 4096;

/// What tells one token from all others.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key(SecretId, [u8; 32]);

impl Key {
    fn of(token: &SecretProof) -> Self {
        Self(token.id, *token.hash.as_bytes())
    }

    fn of_session(record: &SessionRecord) -> Self {
        Self(record.token_id, *record.token_hash.as_bytes())
    }
}

/// What is known of tokens of sessions that are not here.
pub struct Elsewhere {
    tokens: Mutex<Tokens>,
    /// One question about a token at a time.
    turns: Mutex<HashMap<Key, Weak<tokio::sync::Mutex<()>>>>,
    places: Arc<Semaphore>,
    hasher: RandomState,
    wrong: Box<[Mutex<Wrong>]>,
}

#[derive(Default)]
struct Tokens {
    /// Each with its number in `died`.
    dead: HashMap<Key, u64>,
    /// In the order in which they died.
    died: BTreeMap<u64, Key>,
    next: u64,
    answered: HashMap<Key, (Error, Instant)>,
}

/// Wrong tokens, which are forgotten as time passes.
#[derive(Clone, Copy)]
struct Wrong {
    count: f64,
    at: Instant,
}

impl Wrong {
    fn at(self, now: Instant) -> f64 {
        let gone = now.saturating_duration_since(self.at).as_secs_f64() * WRONG_PER_SECOND;
        (self.count - gone).max(0.0)
    }
}

impl Default for Elsewhere {
    fn default() -> Self {
        let none = Wrong { count: 0.0, at: Instant::now() };
        Self {
            tokens: Mutex::default(),
            turns: Mutex::default(),
            places: Arc::new(Semaphore::new(ASKED_AT_ONCE)),
            hasher: RandomState::new(),
            wrong: (0..COUNTERS).map(|_| Mutex::new(none)).collect(),
        }
    }
}

impl Elsewhere {
    /// The token of this session is dead: it ended here.
    pub fn died(&self, record: &SessionRecord) {
        locked(&self.tokens).dies(Key::of_session(record));
    }

    /// The session is here again.
    pub fn revived(&self, record: &SessionRecord) {
        let key = Key::of_session(record);
        let mut tokens = locked(&self.tokens);
        tokens.answered.remove(&key);
        if let Some(number) = tokens.dead.remove(&key) {
            tokens.died.remove(&number);
        }
    }

    /// The answer, if it is known without a question.
    fn known(&self, key: &Key, now: Instant) -> Option<Error> {
        let tokens = locked(&self.tokens);
        if tokens.dead.contains_key(key) {
            return Some(cause::token_invalid());
        }
        tokens.answered.get(key).filter(|(_, until)| now < *until).map(|(error, _)| error.clone())
    }

    /// Counts a token of `source` as wrong, until it is known to be right.
    fn begin(&self, source: IpAddr, now: Instant) -> Result<()> {
        let mut wrong = locked(self.counter(source));
        let count = wrong.at(now);
        if count > WRONG_AT_ONCE - 1.0 {
            return Err(too_many(Duration::from_secs_f64((count - WRONG_AT_ONCE + 1.0) / WRONG_PER_SECOND)));
        }
        *wrong = Wrong { count: count + 1.0, at: now };
        Ok(())
    }

    /// It was not wrong, or nobody knows.
    fn forgive(&self, source: IpAddr, now: Instant) {
        let mut wrong = locked(self.counter(source));
        *wrong = Wrong { count: (wrong.at(now) - 1.0).max(0.0), at: now };
    }

    /// Waits for a place for a question.
    async fn place(&self) -> Result<OwnedSemaphorePermit> {
        let place = tokio::time::timeout(TURN_WITHIN, Arc::clone(&self.places).acquire_owned()).await;
        place.map_err(|_| too_many(TURN_WITHIN))?.map_err(Error::internal)
    }

    fn counter(&self, source: IpAddr) -> &Mutex<Wrong> {
        let hash = self.hasher.hash_one(Source::of(source));
        &self.wrong[(hash % COUNTERS as u64) as usize]
    }

    /// Remembers what the control plane said.
    fn answered(&self, key: Key, source: IpAddr, answer: &Result<Option<SessionRecord>>, now: Instant) {
        match answer {
            Ok(Some(_)) => self.forgive(source, now),
            Ok(None) => locked(&self.tokens).dies(key),
            // It is somewhere, or nobody knows; that may be otherwise in a moment.
            Err(error) => {
                self.forgive(source, now);
                locked(&self.tokens).is_answered(key, error.clone(), now);
            }
        }
    }

    /// The lock of who asks about a token.
    fn turn(&self, key: Key) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = locked(&self.turns);
        turns.retain(|_, turn| turn.strong_count() > 0);
        let known = turns.get(&key).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let turn = Arc::default();
            turns.insert(key, Arc::downgrade(&turn));
            turn
        })
    }
}

impl Tokens {
    fn dies(&mut self, key: Key) {
        self.answered.remove(&key);
        if self.dead.contains_key(&key) {
            return;
        }
        self.next += 1;
        self.dead.insert(key, self.next);
        self.died.insert(self.next, key);
        if self.died.len() > MAX_DEAD
            && let Some((_, oldest)) = self.died.pop_first()
        {
            self.dead.remove(&oldest);
        }
    }

    fn is_answered(&mut self, key: Key, error: Error, now: Instant) {
        if self.answered.len() >= MAX_ANSWERED {
            self.answered.retain(|_, (_, until)| now < *until);
        }
        if self.answered.len() < MAX_ANSWERED {
            self.answered.insert(key, (error, now + ANSWER_HOLDS));
        }
    }
}

/// No invariant spans a panic here.
fn locked<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn too_many(retry_after: Duration) -> Error {
    let message = "too many session tokens from here are not of this node and had to be asked about; retry later";
    Error::new(Kind::ResourceExhausted, "TOO_MANY_FAILURES", message).retry_after(retry_after)
}

impl Gate {
    /// As [`Gate::enter`], and asks the control plane about a session that is not here: it may come here from a node that is gone.
    pub async fn let_in(
        &self,
        field: &str,
        metadata: &tonic::metadata::MetadataMap,
        context: &Context,
    ) -> Result<Permit> {
        match self.enter(field, metadata, context.rpc) {
            Ok(permit) => Ok(permit),
            Err(Turned::Away(error)) => Err(error),
            Err(Turned::Unknown(token)) => Box::pin(self.fetch(field, metadata, context, token)).await,
        }
    }

    async fn fetch(
        &self,
        field: &str,
        metadata: &tonic::metadata::MetadataMap,
        context: &Context,
        token: SecretProof,
    ) -> Result<Permit> {
        let started = Instant::now();
        let fetched = match self.plane() {
            Some(plane) => call::within(context.deadline, plane.fetch(token, context.source)).await,
            None => Err(cause::token_invalid()),
        };
        let entered = match fetched {
            Ok(()) => self.enter(field, metadata, context.rpc),
            Err(error) => {
                self.count_stranger(context.rpc, started.elapsed(), false);
                return Err(error);
            }
        };
        entered.map_err(|turned| match turned {
            Turned::Away(error) => error,
            // It came, and has ended since.
            Turned::Unknown(_) => {
                self.count_stranger(context.rpc, started.elapsed(), false);
                cause::token_invalid()
            }
        })
    }
}

impl Plane {
    /// Brings the session of a token here, if it may go on here; says otherwise what is to be told to who presents it.
    ///
    /// UNAUTHENTICATED `SESSION_TOKEN_INVALID` when no live session has it, FAILED_PRECONDITION `SESSION_ELSEWHERE` or
    /// `BACKEND_ELSEWHERE`, UNAVAILABLE `NO_CONTROLLER` when nobody can be asked, whatever the token is; RESOURCE_EXHAUSTED when its
    /// source asks for too many that are wrong.
    async fn fetch(self: &Arc<Self>, token: SecretProof, source: IpAddr) -> Result<()> {
        if !self.control.may_be_elsewhere() {
            return Err(cause::token_invalid());
        }
        let key = Key::of(&token);
        let known = |now| self.elsewhere.known(&key, now).map_or(Ok(()), Err);
        known(Instant::now())?;
        let turn = self.elsewhere.turn(key).lock_owned().await;
        known(Instant::now())?;
        if self.gate.sessions.has(&token) {
            return Ok(());
        }
        self.elsewhere.begin(source, Instant::now())?;
        // Once it is asked it is done whole: the session may be this node's from then on.
        let plane = Arc::clone(self);
        self.whole(async move {
            let _turn = turn;
            let most = plane.gate.limits.max_sessions;
            let room = plane.gate.sessions.reserve(most);
            let answer = match &room {
                Some(_) => plane.ask(&token).await,
                None => Err(crate::admission::too_many(most)),
            };
            plane.elsewhere.answered(key, source, &answer, Instant::now());
            let record = answer?.filter(|record| !plane.is_ending(record)).ok_or_else(cause::token_invalid)?;
            tracing::info!(session.id = %record.id, "a session goes on on this node");
            plane.take_up(record).await;
            Ok(())
        })
        .await
    }

    async fn ask(&self, token: &SecretProof) -> Result<Option<SessionRecord>> {
        let _place = self.elsewhere.place().await?;
        self.control.resolve_session(token, &self.node).await
    }

    /// Serves a session that the control plane has given to this node; one that is here already stays as it is.
    pub async fn take_up(self: &Arc<Self>, record: SessionRecord) {
        // It may come two ways at once.
        let _one = self.taking_up.lock().await;
        self.gate.follow();
        if self.gate.sessions.by_id(record.id).is_none() {
            self.elsewhere.revived(&record);
            crate::restore_one(self, record).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use prism_core::secret::{Random, SecretKind};

    use super::*;

    fn key() -> Key {
        let secret = Random::system().secret(SecretKind::Session);
        Key(secret.id, *secret.hash.as_bytes())
    }

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn wrong_tokens_of_a_source_are_asked_about_at_a_rate_and_nobody_else_pays() {
        let (elsewhere, start) = (Elsewhere::default(), Instant::now());
        let guess = |source, at: Duration| {
            let began = elsewhere.begin(address(source), start + at);
            began.map(|()| elsewhere.answered(key(), address(source), &Ok(None), start + at))
        };
        let asked = (0..1000).filter(|_| guess(1, Duration::ZERO).is_ok()).count();
        assert_eq!(asked, WRONG_AT_ONCE as usize);
        let refused = guess(1, Duration::ZERO).unwrap_err();
        assert_eq!((refused.kind(), refused.reason()), (Kind::ResourceExhausted, "TOO_MANY_FAILURES"));
        let later = (0..1000).filter(|_| guess(1, Duration::from_secs(1)).is_ok()).count();
        assert_eq!(later, WRONG_PER_SECOND as usize);
        // Sources share counters by chance; of so few others, most have one of their own.
        assert!((2..100).filter(|source| guess(*source, Duration::ZERO).is_ok()).count() > 80);
        // Whose tokens are right may ask as often as it likes.
        let elsewhere = Elsewhere::default();
        for _ in 0..10_000 {
            elsewhere.begin(address(1), start).unwrap();
            elsewhere.answered(key(), address(1), &Err(cause::draining()), start);
        }
    }

    #[tokio::test]
    async fn questions_under_way_are_bounded_and_the_others_wait_for_their_turn() {
        let elsewhere = Elsewhere::default();
        let mut places = Vec::new();
        for _ in 0..ASKED_AT_ONCE {
            places.push(elsewhere.place().await.unwrap());
        }
        let refused = elsewhere.place().await.unwrap_err();
        assert_eq!((refused.kind(), refused.reason()), (Kind::ResourceExhausted, "TOO_MANY_FAILURES"));
        let (waited, ()) = tokio::join!(elsewhere.place(), async { drop(places.pop()) });
        drop(waited.unwrap());
        // Of one source there are not more than it may guess.
        let began = (0..1000).filter(|_| elsewhere.begin(address(1), Instant::now()).is_ok()).count();
        assert!((WRONG_AT_ONCE as usize..1000).contains(&began), "{began}");
    }

    #[test]
    fn memory_is_bounded_and_a_wrong_secret_says_nothing_about_the_right_one() {
        let (elsewhere, now) = (Elsewhere::default(), Instant::now());
        let (first, right) = (key(), key());
        let wrong = Key(right.0, key().1);
        elsewhere.answered(first, address(1), &Ok(None), now);
        elsewhere.answered(wrong, address(1), &Ok(None), now);
        assert_eq!(elsewhere.known(&wrong, now).unwrap().reason(), "SESSION_TOKEN_INVALID");
        assert!(elsewhere.known(&right, now).is_none());
        for number in 0..MAX_DEAD as u32 {
            elsewhere.answered(key(), address(number), &Ok(None), now);
            elsewhere.answered(key(), address(number), &Err(cause::draining()), now);
        }
        assert!(elsewhere.known(&first, now).is_none(), "the oldest is forgotten");
        let tokens = locked(&elsewhere.tokens);
        assert_eq!((tokens.dead.len(), tokens.died.len(), tokens.answered.len()), (MAX_DEAD, MAX_DEAD, MAX_ANSWERED));
    }

    #[test]
    fn what_may_change_is_asked_again() {
        let (elsewhere, now, key) = (Elsewhere::default(), Instant::now(), key());
        elsewhere.answered(key, address(1), &Err(cause::draining()), now);
        assert_eq!(elsewhere.known(&key, now).unwrap().reason(), "DRAINING");
        assert!(elsewhere.known(&key, now + ANSWER_HOLDS).is_none());
    }
}
