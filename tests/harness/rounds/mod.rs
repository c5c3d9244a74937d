//! What is done to the proxy again and again, and what is lost by it: nothing. The suite runs each in a short form,
//! `make faults` in its long one.

mod changes;
mod crowd;
mod files;
mod kills;
mod load;
mod reloads;
mod resets;
mod soak;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

pub use changes::changes;
pub use crowd::{crowd, ranges};
pub use files::{cuts, flips};
pub use kills::kills;
pub use load::load_under_a_limit;
pub use reloads::reloads;
pub use resets::resets;
pub use soak::soak;

use crate::HANG;
use crate::content::Content;
use crate::http::{End, Response};
use crate::process::Process;
use crate::site::Site;

/// What a run has done, and what was lost by it.
#[derive(Debug)]
pub struct Ledger {
    title: String,
    begun: Instant,
    inner: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    done: BTreeMap<&'static str, u64>,
    lost: Vec<String>,
}

/// Losses that are told in full.
const LOST_MAX: usize = 20;

impl Ledger {
    /// An empty one.
    pub(crate) fn new(title: &str) -> Self {
        Self { title: title.to_owned(), begun: Instant::now(), inner: Mutex::default() }
    }

    /// Adds to what was done.
    pub(crate) fn add(&self, what: &'static str, count: u64) {
        *self.inner.lock().unwrap_or_else(PoisonError::into_inner).done.entry(what).or_default() += count;
    }

    /// Takes down a figure, the biggest one.
    pub(crate) fn most(&self, what: &'static str, figure: u64) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let most = inner.done.entry(what).or_default();
        *most = figure.max(*most);
    }

    /// Takes down a loss.
    pub(crate) fn lose(&self, what: String) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).lost.push(what);
    }

    /// Takes down losses, where there are any.
    pub(crate) fn lose_all(&self, what: impl IntoIterator<Item = String>) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).lost.extend(what);
    }

    /// Takes down a loss where something does not hold.
    pub(crate) fn must(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.lose(what());
        }
    }

    /// How often something was done.
    pub fn done(&self, what: &str) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).done.get(what).copied().unwrap_or_default()
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = format!("{} ({} s)\n", self.title, self.begun.elapsed().as_secs());
        let rows = inner.done.iter().map(|(what, count)| (*what, count.to_string()));
        let lost = if inner.lost.is_empty() { "nothing".to_owned() } else { inner.lost.len().to_string() };
        for (what, count) in rows.chain([("LOST", lost)]) {
            let _ = writeln!(table, "  {what:<48} {count:>12}");
        }
        for lost in inner.lost.iter().take(LOST_MAX) {
            let _ = writeln!(table, "    {lost}");
        }
        table
    }

    /// Prints the table, and tells whether nothing was lost.
    pub fn close(&self) -> bool {
        println!("{}", self.table());
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).lost.is_empty()
    }
}

/// Chance that can be repeated (xorshift64*).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed, the same throws.
    pub fn new(seed: u64) -> Self {
        let mut dice = Self(seed ^ 0x9e37_79b9_7f4a_7c15 | 1);
        // Seeds that are near each other begin alike.
        (0..8).for_each(|_| _ = dice.throw());
        dice
    }

    fn throw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below a bound, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.throw() >> 11) % bound
    }

    /// One of some things.
    pub fn one<'a, T>(&mut self, things: &'a [T]) -> &'a T {
        &things[usize::try_from(self.below(things.len() as u64)).expect("an index")]
    }

    /// Whether one of so many throws comes up.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// Dice of its own, for another thread.
    #[must_use]
    pub fn split(&mut self) -> Self {
        Self::new(self.throw())
    }
}

/// A count that others wait for.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    inner: Mutex<(u64, usize)>,
    changed: Condvar,
}

impl Progress {
    /// Adds to the count.
    pub fn add(&self, more: u64) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).0 += more;
        self.changed.notify_all();
    }

    /// One of those who count has come to its end.
    pub fn end(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).1 += 1;
        self.changed.notify_all();
    }

    /// The count so far.
    pub fn count(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits until the count is reached, or all of those who count have come to their end.
    pub fn wait(&self, count: u64, all: usize) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(inner, HANG, |(so_far, ended)| *so_far < count && *ended < all);
        assert!(!waited.unwrap_or_else(PoisonError::into_inner).1.timed_out(), "not {count} within {HANG:?}");
    }
}

/// What a process holds of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub descriptors: usize,
    pub threads: usize,
    pub staging: usize,
}

impl Holdings {
    /// Of a process, and of the cache that it works on.
    pub fn of(process: &Process, site: &Site) -> Self {
        let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", process.id())).map_or(0, Iterator::count);
        Self { descriptors: count("fd"), threads: count("task"), staging: site.staging().len() }
    }

    /// Whether it is no more than before: but for so many, which a process opens once and keeps.
    pub fn are_back_to(&self, before: &Self, kept: usize) -> bool {
        self.descriptors <= before.descriptors + kept && self.threads <= before.threads + kept && self.staging == 0
    }
}

/// Reads an answer that must be a content from one offset to another. Gives how many bytes came; tells what is wrong.
pub(crate) fn read_part(
    response: Response,
    content: &Content,
    from: u64,
    to: u64,
    mut come: impl FnMut(u64),
) -> (u64, End, Option<String>) {
    let mut wrong = None;
    let (read, end) = response.drain(|offset, piece| {
        come(piece.len() as u64);
        if !content.holds(from + offset, piece) && wrong.is_none() {
            wrong = Some(format!("wrong bytes near {} of {}", from + offset, content.digest()));
        }
    });
    if end == End::Whole && from + read != to && wrong.is_none() {
        wrong = Some(format!("{read} bytes, from {from} on, are told to be whole, of {}", content.digest()));
    }
    (read, end, wrong)
}
