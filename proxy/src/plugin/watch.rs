//! What is known of the files in the plugin folder: what the system tells of them, and what their fingerprints tell.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::folder::{Fingerprint, Found, Listing};

/// Files that change within this time of each other are one version; as long must a fingerprint hold.
pub(super) const SETTLE: Duration = Duration::from_millis(100);
/// A file that was written but never closed counts as whole when it has not changed for so long.
const NEVER_CLOSED: Duration = Duration::from_secs(30);
/// The coarsest clock of a file system (FAT's) ticks every 2 s.
const COARSE: Duration = Duration::from_secs(3);
/// Things heard that may wait while plugins are loaded.
const QUEUE: usize = 4096;

/// What was heard from the folder.
pub(super) enum Heard {
    /// A file is being written.
    Writing(PathBuf),
    /// A file was closed by its writer, moved or removed.
    Settled(PathBuf),
    /// Something else: look.
    Look,
    /// Events were lost: nothing is known of who writes.
    Lost,
}

/// Hears of a folder.
pub(super) struct Ear {
    queue: mpsc::Receiver<Heard>,
    /// Something was not heard.
    lost: Arc<AtomicBool>,
    /// None: nothing is told of this folder.
    _watcher: Option<notify::RecommendedWatcher>,
}

impl Ear {
    /// Waits for what is heard next; for ever, where nothing is told.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost.
    pub async fn listen(&mut self) -> Heard {
        match self.queue.recv().await {
            Some(heard) => self.heard(heard),
            None => std::future::pending().await,
        }
    }

    /// What was heard since, without waiting.
    pub fn listen_again(&mut self) -> Option<Heard> {
        self.queue.try_recv().ok().map(|heard| self.heard(heard))
    }

    fn heard(&self, heard: Heard) -> Heard {
        if self.lost.swap(false, Ordering::Relaxed) { Heard::Lost } else { heard }
    }
}

/// Watches a folder and what is in it; where that cannot be, it must be looked at now and then.
pub(super) fn watch(dir: &Path) -> Ear {
    let (sender, queue) = mpsc::channel(QUEUE);
    let lost = Arc::new(AtomicBool::new(false));
    let missed = lost.clone();
    let hear = move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else {
            missed.store(true, Ordering::Relaxed);
            let _ = sender.try_send(Heard::Lost);
            return;
        };
        if event.need_rescan() {
            missed.store(true, Ordering::Relaxed);
        }
        for path in event.paths {
            let heard = match event.kind {
                EventKind::Modify(ModifyKind::Data(_)) => Heard::Writing(path),
                EventKind::Access(AccessKind::Close(AccessMode::Write))
                | EventKind::Modify(ModifyKind::Name(_))
                | EventKind::Remove(_) => Heard::Settled(path),
                EventKind::Access(_) => continue,
                _ => Heard::Look,
            };
            if sender.try_send(heard).is_err() {
                missed.store(true, Ordering::Relaxed);
            }
        }
    };
    let watcher = notify::recommended_watcher(hear).and_then(|mut watcher| {
        watcher.watch(dir, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    if let Err(err) = &watcher {
        tracing::warn!(folder = %dir.display(), error = err.to_string(), "the plugin folder cannot be watched; it is read every 2 s instead");
    }
    Ear { queue, lost, _watcher: watcher.ok() }
}

/// What is known of a file of the folder.
struct Seen {
    fingerprint: Fingerprint,
    since: Instant,
    /// Its writer has not closed it yet.
    writing: bool,
}

/// What is known of all files of the folder.
#[derive(Default)]
pub(super) struct Sightings(HashMap<PathBuf, Seen>);

impl Sightings {
    /// Takes note of what was heard.
    pub fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Writing(path) => {
                if let Some(fingerprint) = Fingerprint::of(&path) {
                    self.0.insert(path, Seen { fingerprint, since: Instant::now(), writing: true });
                }
            }
            Heard::Settled(path) => {
                if let Some(seen) = self.0.get_mut(&path) {
                    seen.writing = false;
                }
            }
            Heard::Lost => self.0.values_mut().for_each(|seen| seen.writing = false),
            Heard::Look => {}
        }
    }

    /// Takes fingerprints of all files. Gives the time until the first of those that are not whole may count as it; none when
    /// all do.
    pub fn look(&mut self, listing: &Listing, now: Instant) -> Option<Duration> {
        let mut wait = None;
        let mut there = HashSet::new();
        for path in listing.found.iter().flat_map(Found::paths).chain(&listing.lock) {
            let Some(fingerprint) = Fingerprint::of(path) else { continue };
            there.insert(path.clone());
            // What nobody has changed for long before it was seen first is whole: nothing waits for it at a start.
            let first = if fingerprint.is_old() { now.checked_sub(2 * SETTLE).unwrap_or(now) } else { now };
            let seen = self.0.entry(path.clone()).or_insert(Seen { fingerprint, since: first, writing: false });
            if seen.fingerprint != fingerprint {
                *seen = Seen { fingerprint, since: now, writing: seen.writing };
            }
            if let Some(left) = seen.unsettled(now) {
                wait = Some(wait.map_or(left, |wait: Duration| wait.min(left)));
            }
        }
        self.0.retain(|path, _| there.contains(path));
        wait
    }

    /// Whether all files of a plugin are whole, as far as can be told.
    pub fn are_settled(&self, found: &Found, now: Instant) -> bool {
        found.paths().filter_map(|path| self.0.get(path)).all(|seen| seen.unsettled(now).is_none())
    }

    /// Whether a file is whole, as far as can be told.
    pub fn is_settled(&self, path: &Path, now: Instant) -> bool {
        self.0.get(path).is_none_or(|seen| seen.unsettled(now).is_none())
    }

    /// Whether none of these files has changed since some time before `when`. Where the clock of a file system ticks in
    /// seconds, a change right after the last one leaves no trace; that long before, it does.
    pub fn rest_since(&self, paths: &[PathBuf], when: Instant) -> bool {
        paths.iter().all(|path| self.0.get(path).is_some_and(|seen| seen.since + COARSE < when))
    }

    /// Whether one of the files of a plugin has been empty for less than `time`.
    pub fn has_just_emptied(&self, found: &Found, now: Instant, time: Duration) -> bool {
        let mut seen = found.paths().filter_map(|path| self.0.get(path));
        seen.any(|seen| seen.fingerprint.size == 0 && now.saturating_duration_since(seen.since) < time)
    }

    /// Whether the files of a plugin are as they were when they were looked at.
    pub fn still_hold(&self, found: &Found) -> bool {
        found.paths().all(|path| Fingerprint::of(path) == self.0.get(path).map(|seen| seen.fingerprint))
    }
}

impl Seen {
    /// How long until it may count as whole; none when it does.
    fn unsettled(&self, now: Instant) -> Option<Duration> {
        let needed = if self.writing { NEVER_CLOSED } else { SETTLE };
        // The clock of the wait and this one differ by less than a millisecond.
        needed
            .checked_sub(now.saturating_duration_since(self.since) + Duration::from_millis(1))
            .filter(|left| !left.is_zero())
    }
}
