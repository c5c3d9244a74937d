//! What is done in the background, on a thread of its own: the index is written, the folders are read for blobs that
//! the index does not know, and the scrub finds what rotted.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;

use super::rows;
use super::store::{Store, now_secs};
use super::survey::Flow;
use super::verify::Verdict;

/// How often the index is written.
const WRITE: Duration = Duration::from_secs(5);
/// How often an index without a file is given another chance to have one.
const REHOUSE: Duration = Duration::from_mins(1);
/// Entries of a folder that are looked at between two pauses, and the pause: at most 25,000 a second.
const ENTRIES: usize = 256;
const ENTRIES_PAUSE: Duration = Duration::from_millis(10);
/// The most that the scrub reads in a second, though its round then takes longer. Units: bytes.
const SCRUB_RATE_MAX: f64 = (32 << 20) as f64;
/// What opening a file costs, in bytes read.
const SCRUB_FILE: u64 = 16 << 10;
/// The part of its time that a round of the scrub uses for reading: the rest is for links, and for what comes.
const SCRUB_SHARE: f64 = 0.8;
/// How long the scrub may sleep at once, and least.
const SCRUB_NAP: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(20));
/// How often it is looked whether a round is due.
const SCRUB_CHECK: Duration = Duration::from_secs(1);
/// How long a link without its blob is kept: it spares asking a registry when the blob comes again.
const LINK_UNUSED: Duration = Duration::from_hours(30 * 24);
/// Name of the scrub's numbers in the index: when its round began, and how far it is.
const SCRUB: &str = "scrub";
/// Its place while no round is under way. No digest has it.
const BETWEEN: &[u8] = &[u8::MAX];

/// The thread, until it is stopped.
pub struct Upkeep {
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

/// When the work of the background is to end at once.
struct Stopped;

type Step<T = ()> = Result<T, Stopped>;

struct Worker {
    store: Arc<Store>,
    scrub: Arc<ArcSwap<Option<Duration>>>,
    stop: Arc<Stop>,
    written: Instant,
    rehoused: Instant,
}

impl Upkeep {
    /// Starts the thread. `scrub` is read anew for each file.
    pub fn start(store: Arc<Store>, scrub: Arc<ArcSwap<Option<Duration>>>) -> io::Result<Self> {
        let stop = Arc::<Stop>::default();
        let now = Instant::now();
        let mut worker = Worker { store, scrub, stop: stop.clone(), written: now, rehoused: now };
        let thread = std::thread::Builder::new().name("tidegate-cache".to_owned()).spawn(move || {
            let Err(Stopped) = worker.run();
            if let Some(index) = &worker.store.index {
                index.close();
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends the thread; the index is written and closed.
    pub fn stop(self) {
        *self.stop.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.changed.notify_all();
        // It ends by itself; a panic in it was printed.
        let _ = self.thread.join();
    }
}

impl Worker {
    fn run(&mut self) -> Step<std::convert::Infallible> {
        loop {
            if self.store.index.as_ref().is_some_and(super::index::Index::is_incomplete) {
                self.sweep()?;
            }
            while self.store.trim() > 0 {
                self.pause(ENTRIES_PAUSE)?;
            }
            if self.scrub_is_due() {
                self.scrub_round()?;
            }
            self.pause(SCRUB_CHECK)?;
        }
    }

    /// Waits, and writes the index meanwhile.
    fn pause(&mut self, time: Duration) -> Step {
        let until = Instant::now() + time;
        loop {
            if self.written.elapsed() >= WRITE {
                self.write();
            }
            let now = Instant::now();
            let stopped = self.stop.stopped.lock().unwrap_or_else(PoisonError::into_inner);
            if *stopped {
                return Err(Stopped);
            }
            if now >= until {
                return Ok(());
            }
            let wait = until.min(self.written + WRITE).saturating_duration_since(now);
            let waited = self.stop.changed.wait_timeout(stopped, wait).unwrap_or_else(PoisonError::into_inner).0;
            drop(waited);
        }
    }

    fn write(&mut self) {
        self.written = Instant::now();
        self.store.hot.sweep();
        let Some(index) = &self.store.index else { return };
        // Also in the middle of a round of the scrub: other limits, or other files on the disk.
        self.store.trim();
        if index.has_changes() {
            index.write(true);
            self.store.gauge();
        }
        if index.is_homeless() && self.rehoused.elapsed() >= REHOUSE {
            self.rehoused = Instant::now();
            index.reopen();
        }
    }

    /// Gives every blob a row that has none: after a crash, or when the index was lost. Slowly: serving goes on.
    fn sweep(&mut self) -> Step {
        let store = self.store.clone();
        let began = Instant::now();
        let (mut seen, mut stopped) = (0_usize, false);
        let swept = store.sweep(&mut || {
            seen += 1;
            stopped = seen.is_multiple_of(ENTRIES) && self.pause(ENTRIES_PAUSE).is_err();
            if stopped { Flow::Break(()) } else { Flow::Continue(()) }
        });
        if stopped {
            return Err(Stopped);
        }
        let found = match swept {
            Ok(found) => found,
            Err(err) => {
                tracing::warn!(error = err.to_string(), "the blobs of the cache cannot be listed: not all are known");
                return self.pause(REHOUSE);
            }
        };
        if found > 0 {
            let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(blobs = seen, found, elapsed_ms, "blobs that the index did not know are found");
        }
        store.gauge();
        Ok(())
    }

    /// Whether a round of the scrub is under way, or due.
    fn scrub_is_due(&self) -> bool {
        let (Some(period), Some(index)) = (**self.scrub.load(), &self.store.index) else { return false };
        let (began, cursor) = index.kept(SCRUB);
        // A clock that went back makes a round due.
        let since = began.and_then(|began| now_secs().checked_sub(began));
        cursor != BETWEEN || since.is_none_or(|since| since >= period.as_secs())
    }

    /// Hashes every blob, from where the round was left, and drops links whose blob has been gone for long.
    fn scrub_round(&mut self) -> Step {
        let store = self.store.clone();
        let Some(index) = &store.index else { return Ok(()) };
        let (began, mut cursor) = index.kept(SCRUB);
        let mut began = began.unwrap_or_else(now_secs);
        if cursor == BETWEEN || cursor.is_empty() {
            (began, cursor) = (now_secs(), Vec::new());
            index.write(false);
        }
        loop {
            let Some(period) = **self.scrub.load() else { return Ok(()) };
            let totals = index.totals();
            #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
            let all = (totals.bytes + totals.blobs * SCRUB_FILE) as f64;
            let rate = (all / (period.as_secs_f64() * SCRUB_SHARE)).clamp(1.0, SCRUB_RATE_MAX);
            let rows = index.after(&cursor, ENTRIES);
            let Some((last, _)) = rows.last() else { break };
            let next = rows::key(last);
            for (digest, _) in &rows {
                self.scrub_blob(&store, digest, rate)?;
                self.store.metrics.cache_scrub_progress.set(progress(&rows::key(digest)));
            }
            cursor = next;
            index.keep(SCRUB, began, &cursor);
        }
        self.prune()?;
        index.keep(SCRUB, began, BETWEEN);
        store.metrics.cache_scrub_rounds.inc();
        store.metrics.cache_scrub_progress.set(1.0);
        tracing::debug!("a round of the scrub has ended");
        Ok(())
    }

    fn scrub_blob(&mut self, store: &Store, digest: &crate::oci::Digest, rate: f64) -> Step {
        let mut stopped = false;
        let mut debt = 0.0;
        let mut last = Instant::now();
        let mut owe = |worker: &mut Self, bytes: u64| {
            #[expect(clippy::cast_precision_loss, reason = "a pause needs no more than 52 bits")]
            let cost = bytes as f64 / rate;
            debt += cost - last.elapsed().as_secs_f64();
            last = Instant::now();
            let (longest, shortest) = SCRUB_NAP;
            if debt > shortest.as_secs_f64() {
                let nap = Duration::from_secs_f64(debt.min(longest.as_secs_f64()));
                let step = worker.pause(nap);
                debt = 0.0;
                last = Instant::now();
                return step;
            }
            Ok(())
        };
        let verified = store.verify(digest, |piece| {
            store.metrics.cache_scrubbed_bytes.inc_by(piece as u64);
            stopped = owe(self, piece as u64).is_err();
            !stopped
        });
        if stopped {
            return Err(Stopped);
        }
        match verified {
            Ok(Verdict::Unknown) => store.forget_absent(digest),
            Ok(Verdict::Right | Verdict::Wrong) => {}
            Err(err) => {
                store.metrics.cache_faults.inc();
                tracing::warn!(%digest, error = err.to_string(), "the scrub cannot read a cached file");
            }
        }
        owe(self, SCRUB_FILE)
    }

    /// Drops links and tags of digests that are kept no longer, when nobody has written them for long, and folders
    /// that are empty then.
    fn prune(&mut self) -> Step {
        let store = self.store.clone();
        let mut seen = 0_usize;
        let mut stopped = false;
        let mut pause = || {
            seen += 1;
            stopped = seen.is_multiple_of(ENTRIES) && self.pause(ENTRIES_PAUSE).is_err();
            if stopped { Flow::Break(()) } else { Flow::Continue(()) }
        };
        let pruned = store.prune(Some(LINK_UNUSED), &mut pause);
        if stopped {
            return Err(Stopped);
        }
        if let Err(err) = pruned {
            tracing::warn!(error = err.to_string(), "links of the cache cannot be pruned");
        }
        Ok(())
    }
}

/// What was pruned.
#[derive(Clone, Copy, Default, Debug)]
pub struct Pruned {
    /// Links.
    pub links: u64,
    /// Entries of tags.
    pub tags: u64,
}

impl Store {
    /// Gives every blob a row that has none; `each` is told of each blob, and may end it. Gives how many had none.
    pub(super) fn sweep(&self, each: &mut dyn FnMut() -> Flow) -> io::Result<u64> {
        let Some(index) = &self.index else { return Ok(0) };
        // What the index loses from here on asks for another sweep.
        index.completed();
        let mut found = 0;
        let swept = self.each_blob(&mut |digest, file| {
            if let Some(digest) = digest
                && index.row(&digest).is_none()
                && let Ok(about) = fs::symlink_metadata(file)
                && about.is_file()
            {
                index.put(digest, index.row_now(about.len(), None));
                found += 1;
            }
            each()
        });
        if !matches!(swept, Ok(Flow::Continue(()))) {
            index.is_missing_some();
        }
        swept.map(|_| found)
    }

    /// Drops links and tags whose blob is not kept; `unused`: only those that nobody has written for so long.
    pub(super) fn prune(&self, unused: Option<Duration>, each: &mut dyn FnMut() -> Flow) -> io::Result<Pruned> {
        let mut pruned = Pruned::default();
        let old = |file: &std::path::Path| {
            let Some(unused) = unused else { return true };
            let written = fs::symlink_metadata(file).and_then(|about| about.modified());
            // A clock that went back makes nothing old.
            written.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|since| since >= unused))
        };
        let absent = |digest: &crate::oci::Digest| matches!(self.open_file(digest), Ok(None));
        let _ = self.each_place(&mut |place| {
            let flow = self.each_link(place, &mut |digest, file| {
                if absent(&digest) && old(file) && fs::remove_file(file).is_ok() {
                    pruned.links += 1;
                }
                each()
            });
            let flow = match flow {
                ControlFlow::Continue(()) => self.each_tag(place, &mut |_, entry, file| {
                    if absent(&entry.digest) && old(file) && fs::remove_file(file).is_ok() {
                        pruned.tags += 1;
                    }
                    each()
                }),
                ended @ ControlFlow::Break(()) => ended,
            };
            self.remove_empty(place);
            flow
        })?;
        Ok(pruned)
    }

    /// Removes the folders of a repository that are empty.
    pub(super) fn remove_empty(&self, place: &crate::oci::Place) {
        let folder = self.place_path(place);
        let tags = fs::read_dir(folder.join("_tags")).into_iter().flatten().flatten().map(|entry| entry.path());
        let inner = ["_digests/sha256", "_digests/sha512", "_digests", "_tags"].map(|name| folder.join(name));
        // The system removes no folder that is not empty.
        for empty in tags.chain(inner) {
            let _ = fs::remove_dir(empty);
        }
        let links = self.dir.join("links");
        for above in folder.ancestors().take_while(|above| *above != links) {
            if fs::remove_dir(above).is_err() {
                break;
            }
        }
    }

    /// Drops the row of a blob that is not there.
    fn forget_absent(&self, digest: &crate::oci::Digest) {
        if let (Ok(None), Some(index)) = (self.open_file(digest), &self.index) {
            index.gone(digest);
        }
    }
}

/// How far a walk in the order of digests is: they are spread evenly, and nearly all are SHA-256.
fn progress(key: &[u8]) -> f64 {
    match key {
        [0, high, low, ..] => f64::from(u16::from_be_bytes([*high, *low])) / 65536.0,
        _ => 1.0,
    }
}
