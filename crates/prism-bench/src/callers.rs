//! Load by callers of which each has one request in flight and makes another message for every call. Every server gets the
//! same generator, in one thread.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::task::spawn_local;

use crate::figures::{Run, percentile};
use crate::process::cpu_microseconds;
use crate::wire::{Peer, framed, unary};

/// Connections that the callers share.
const CONNECTIONS: usize = 8;
/// Load before what is measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// Longest time for a number of calls that is fixed.
const LONGEST: Duration = Duration::from_mins(10);

/// What is called.
pub struct Calls {
    /// Who answers.
    pub peer: Peer,
    /// gRPC path.
    pub path: &'static str,
    /// The message of the call with this number, from 0.
    pub message: Box<dyn Fn(u64) -> Vec<u8>>,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The figures.
    pub run: Run,
    /// All calls that were answered, those of the warm-up too.
    pub answered: u64,
    /// Processor time of this generator over the time; at 1 it has no more to give, and the rate is its own.
    pub generator: f64,
}

/// Moments of a run.
#[derive(Clone, Copy)]
struct Span {
    from: Instant,
    to: Instant,
}

/// Lets `callers` call for `measured` after a warm-up, `most` times at most. Every call must succeed. Runs in a
/// `LocalSet` of a runtime of one thread.
pub async fn run(calls: &Rc<Calls>, callers: usize, measured: Duration, most: u64) -> Result<Outcome> {
    load(calls, callers, (WARM_UP, measured), 0..most).await
}

/// Lets `callers` make each call of `numbers` once, and measures all of them. Every call must succeed. Runs in a `LocalSet` of a
/// runtime of one thread.
pub async fn each(calls: &Rc<Calls>, callers: usize, numbers: Range<u64>) -> Result<Outcome> {
    let wanted = numbers.end - numbers.start;
    let outcome = load(calls, callers, (Duration::ZERO, LONGEST), numbers).await?;
    ensure!(outcome.answered == wanted, "{} of {wanted} calls were answered in {LONGEST:?}", outcome.answered);
    Ok(outcome)
}

async fn load(
    calls: &Rc<Calls>,
    callers: usize,
    (warm_up, measured): (Duration, Duration),
    numbers: Range<u64>,
) -> Result<Outcome> {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(calls.peer.connect().await?);
    }
    let next = Rc::new(Cell::new(numbers.start));
    let from = Instant::now() + warm_up;
    let span = Span { from, to: from + measured };
    let head = calls.peer.head(calls.path)?;
    let tasks: Vec<_> = connections
        .iter()
        .cycle()
        .take(callers)
        .map(|connection| {
            let caller = Caller { calls: Rc::clone(calls), next: Rc::clone(&next), end: numbers.end, span };
            spawn_local(caller.go(connection.clone(), head.clone()))
        })
        .collect();
    tokio::time::sleep_until(from.into()).await;
    let used = || Ok::<_, anyhow::Error>((calls.peer.cpu_microseconds()?, cpu_microseconds(std::process::id())?));
    let before = used()?;
    let mut times = Vec::new();
    let mut last = from;
    let mut answered = 0;
    let mut after = None;
    for task in tasks {
        let done = task.await??;
        // Read when the first caller is done: the others end with the call they are in.
        if after.is_none() {
            after = Some(used()?);
        }
        last = last.max(done.last);
        answered += done.answered;
        times.extend(done.times);
    }
    let after = after.context("there was no caller")?;
    times.sort_unstable();
    ensure!(!times.is_empty(), "no call was answered in time");
    let elapsed = (last - from).as_secs_f64();
    let counted = times.len() as f64;
    Ok(Outcome {
        run: Run {
            rate: counted / elapsed,
            p50: percentile(&times, 0.5),
            p99: percentile(&times, 0.99),
            cpu: (after.0 - before.0) as f64 / counted,
        },
        answered,
        generator: (after.1 - before.1) as f64 / 1e6 / elapsed,
    })
}

struct Caller {
    calls: Rc<Calls>,
    next: Rc<Cell<u64>>,
    end: u64,
    span: Span,
}

/// What one caller saw.
struct Done {
    /// Of the calls that were answered in the measured time, in microseconds.
    times: Vec<u64>,
    answered: u64,
    /// When the last of them was answered.
    last: Instant,
}

impl Caller {
    async fn go(self, mut connection: SendRequest<Bytes>, head: Request<()>) -> Result<Done> {
        let mut done = Done { times: Vec::new(), answered: 0, last: self.span.from };
        loop {
            let number = self.next.replace(self.next.get() + 1);
            let began = Instant::now();
            if number >= self.end || began >= self.span.to {
                return Ok(done);
            }
            let message = framed(&(self.calls.message)(number)).into();
            (_, connection) = unary(connection, head.clone(), message).await?;
            let ended = Instant::now();
            done.answered += 1;
            if self.span.from <= ended && ended <= self.span.to {
                done.times.push((ended - began).as_micros() as u64);
                done.last = ended;
            }
        }
    }
}
