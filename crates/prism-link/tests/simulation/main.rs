//! The link under a simulation: one controller, three nodes, clients, an operator, and a network and machines that fail. Time is
//! simulated, every choice comes from a seed, and the same seed makes the same run.
//!
//! `cargo xtask link --seeds 1000` runs as many seeds (`PRISM_LINK_SEEDS` for `cargo test`); `PRISM_LINK_SEED=n` runs one and prints
//! what happened.

mod authorities;
mod client;
mod control;
mod host;
mod hostile;
mod hostile_admission;
mod hostile_controller;
mod hostile_shares;
mod large;
mod network;
mod operator;
mod plane;
mod revoked;
mod twins;
mod unheard;
mod world;

use std::panic::AssertUnwindSafe;

use world::World;

/// Seeds without the environment variable.
const SEEDS: u64 = 200;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// One run; returns what happened.
fn run(seed: u64) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let world = World::new(seed);
    let log = world.log();
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(world.run())));
    if let Err(failed) = outcome {
        let lines = log.lines();
        for line in &lines[lines.len().saturating_sub(150)..] {
            eprintln!("{line}");
        }
        eprintln!("seed {seed} fails; PRISM_LINK_SEED={seed} cargo test -p prism-link --test simulation replays it");
        std::panic::resume_unwind(failed);
    }
    log.lines()
}

#[test]
fn what_was_acknowledged_holds_whatever_fails() {
    if let Some(seed) = number("PRISM_LINK_SEED") {
        for line in run(seed) {
            eprintln!("{line}");
        }
        return;
    }
    let seeds = number("PRISM_LINK_SEEDS").unwrap_or(SEEDS);
    let (mut acknowledged, mut moved) = (0, 0);
    for seed in 0..seeds {
        let lines = run(seed);
        acknowledged += lines.iter().filter(|line| line.contains("acknowledged")).count();
        moved += lines.iter().filter(|line| line.contains("goes on on")).count();
    }
    // A simulation in which nothing happens proves nothing.
    assert!(acknowledged as u64 > seeds * 10, "{acknowledged} acknowledgements in {seeds} runs");
    assert!(moved as u64 > seeds / 2, "{moved} sessions went on on another node in {seeds} runs");
}

#[test]
fn the_same_seed_makes_the_same_run() {
    for seed in [3, 1_000_003] {
        assert!(run(seed) == run(seed), "seed {seed}");
    }
}
