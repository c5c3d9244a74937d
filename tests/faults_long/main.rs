//! The long forms of the faults, for people: what was done, and what was lost by it. Run by `make faults`.
//!
//! `SOAK_SECONDS` shortens the soak of an hour, `CHANGES` the 1,000 changes of policies at 100 a minute; `FAULTS_SEED`
//! repeats a run; words behind the command choose some of the runs by their names.

use std::env;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidegate_tests::rounds::{self, Ledger};

const MIB: u64 = 1 << 20;

/// Name and run; the run gives none where this machine has not what it needs.
type Run = (&'static str, fn(u64) -> Option<Ledger>);

const RUNS: [Run; 10] = [
    ("kills", |seed| Some(rounds::kills(200, seed))),
    ("resets", |seed| Some(rounds::resets(500, seed))),
    ("crowd", |_| Some(rounds::crowd(1000, 8 * MIB))),
    ("ranges", |_| Some(rounds::ranges(1000, 256 * MIB))),
    ("load", |_| rounds::load_under_a_limit(256 * MIB).map_err(|reason| println!("not tried: {reason}\n")).ok()),
    ("cuts", |_| Some(rounds::cuts())),
    ("flips", |seed| Some(rounds::flips(None, seed))),
    ("reloads", |_| Some(rounds::reloads(10_000))),
    ("changes", |seed| {
        Some(rounds::changes(number("CHANGES").unwrap_or(1000), Some(Duration::from_millis(600)), seed))
    }),
    ("soak", |seed| Some(rounds::soak(Duration::from_secs(number("SOAK_SECONDS").unwrap_or(3600)), seed))),
];

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

fn main() -> ExitCode {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seed = number("FAULTS_SEED").unwrap_or(now);
    let chosen: Vec<String> = env::args().skip(1).collect();
    if let Some(unknown) = chosen.iter().find(|name| !RUNS.iter().any(|(run, _)| run == name)) {
        eprintln!("there is no run {unknown}; there are {}", RUNS.map(|(name, _)| name).join(", "));
        return ExitCode::from(2);
    }
    let mut lost = false;
    for (name, run) in RUNS {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == name) {
            eprintln!("running: {name}");
            lost |= run(seed).is_some_and(|ledger| !ledger.close());
        }
    }
    if lost {
        eprintln!("something was lost; to do the same again: FAULTS_SEED={seed}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
