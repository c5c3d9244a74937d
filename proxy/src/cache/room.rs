//! Room for what comes: the limits of the cache, and what is dropped to keep them, longest unused first.

use std::fs::TryLockError;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytesize::ByteSize;

use super::store::Store;
use super::survey::Flow;
use crate::config;

/// The most that stays free where nothing else is said. Units: bytes.
const MIN_FREE_MOST: u64 = 1 << 30;
/// And the part of the file system that does.
const MIN_FREE_PART: u64 = 20;
/// Rows of the index that are read at once.
const ROWS: usize = 64;
/// Blobs in use that are passed over in one search for others.
const IN_USE_MAX: usize = 4096;
/// Blobs that somebody who waits drops beyond his own need.
const ENOUGH: u64 = 256;
/// Blobs that are dropped at least where the file system has no inode left, and the part of all that is.
const INODES: u64 = 8;
const INODES_PART: u64 = 64;

/// How often the log is told of what was dropped.
const TELL: Duration = Duration::from_secs(10);

/// The limits, and what is promised to fills under way.
pub struct Room {
    limits: ArcSwap<Limits>,
    promised: Arc<Promised>,
    /// One makes room at a time: two would drop twice as much.
    making: Mutex<()>,
    /// What was dropped since the log was told, and when that was.
    untold: Mutex<(Freed, Option<Instant>)>,
}

/// `[cache] max_size` and `min_free`. Units: bytes.
#[derive(Clone, Copy, Debug)]
struct Limits {
    max_size: Option<u64>,
    min_free: Option<u64>,
}

/// Why there is no room. What comes then goes past the cache.
#[derive(Debug, thiserror::Error)]
pub enum NoRoom {
    /// It alone is bigger than the cache may be.
    #[error("{} are more than the cache may hold: `[cache] max_size` is {}", ByteSize(*size), ByteSize(*max))]
    Bigger {
        /// Units: bytes.
        size: u64,
        /// Units: bytes.
        max: u64,
    },
    /// All that could be dropped is being read.
    #[error("the cache is full, and what is in it is in use")]
    InUse,
    /// Other files take the disk.
    #[error(
        "{} do not fit: its disk has {} free, of which `[cache] min_free` keeps {}",
        ByteSize(*size),
        ByteSize(*free),
        ByteSize(*least)
    )]
    Disk {
        /// Units: bytes.
        size: u64,
        /// Units: bytes.
        free: u64,
        /// Units: bytes.
        least: u64,
    },
}

impl From<NoRoom> for io::Error {
    fn from(reason: NoRoom) -> Self {
        Self::new(io::ErrorKind::StorageFull, reason)
    }
}

/// Whether the disk is too full for what came.
pub fn is_no_space(err: &io::Error) -> bool {
    let reason = err.get_ref().and_then(|reason| reason.downcast_ref::<NoRoom>());
    matches!(reason, Some(NoRoom::Disk { .. }))
}

/// Whether it is no fault that something was not kept: the operator said so.
pub fn is_wanted(err: &io::Error) -> bool {
    let reason = err.get_ref().and_then(|reason| reason.downcast_ref::<NoRoom>());
    matches!(reason, Some(NoRoom::Bigger { .. } | NoRoom::InUse))
}

/// Whether a disk or a quota is full.
pub fn is_full(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What is promised to all fills under way. Units: bytes.
#[derive(Default)]
struct Promised {
    /// Of the room that the cache may take.
    all: AtomicU64,
    /// And of that, what the disk has not set apart yet.
    owed: AtomicU64,
}

/// A part of the room; given back when it is dropped.
pub struct Reserved {
    bytes: u64,
    owed: u64,
    promised: Arc<Promised>,
}

impl Reserved {
    /// No part.
    pub fn none() -> Self {
        Self { bytes: 0, owed: 0, promised: Arc::default() }
    }

    /// Units: bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Some of it is being set apart on the disk: it counts there from now on.
    pub fn is_set_apart(&mut self, bytes: u64) {
        let bytes = bytes.min(self.owed);
        self.owed -= bytes;
        self.promised.owed.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.promised.all.fetch_sub(self.bytes, Ordering::Relaxed);
        self.promised.owed.fetch_sub(self.owed, Ordering::Relaxed);
    }
}

impl Room {
    /// With the limits of a configuration.
    pub fn new(config: &config::Cache) -> Self {
        let limits = Limits { max_size: config.max_size, min_free: config.min_free };
        Self {
            limits: ArcSwap::from_pointee(limits),
            promised: Arc::default(),
            making: Mutex::default(),
            untold: Mutex::default(),
        }
    }

    /// Other limits from now on. What is too much by them is dropped in the background.
    pub fn set_limits(&self, config: &config::Cache) {
        self.limits.store(Arc::new(Limits { max_size: config.max_size, min_free: config.min_free }));
    }

    /// Tells the log what was dropped: once in a while, since a full cache drops something for all that comes.
    fn tell(&self, freed: Freed) {
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        let (sum, told) = &mut *untold;
        sum.bytes += freed.bytes;
        sum.blobs += freed.blobs;
        if told.is_none_or(|told| told.elapsed() >= TELL) {
            tracing::info!(
                blobs = sum.blobs,
                size_bytes = sum.bytes,
                "blobs unused for the longest time were dropped to make room"
            );
            (*sum, *told) = (Freed::default(), Some(Instant::now()));
        }
    }

    /// What is promised, and not set apart on the disk yet. Units: bytes.
    #[cfg(test)]
    pub fn owed(&self) -> u64 {
        self.promised.owed.load(Ordering::Relaxed)
    }

    /// `owed`: how much of it the disk has yet to give.
    fn reserve(&self, bytes: u64, owed: u64) -> Reserved {
        self.promised.all.fetch_add(bytes, Ordering::Relaxed);
        self.promised.owed.fetch_add(owed, Ordering::Relaxed);
        Reserved { bytes, owed, promised: self.promised.clone() }
    }
}

/// What was dropped.
#[derive(Clone, Copy, Default, Debug)]
pub struct Freed {
    /// Units: bytes.
    pub bytes: u64,
    /// How many.
    pub blobs: u64,
}

impl Store {
    /// Keeps room for so many bytes within the limits: drops what was not used for the longest time, never what is
    /// being read or filled.
    pub(super) fn make_room(&self, bytes: u64) -> io::Result<Reserved> {
        self.make_room_for(bytes, bytes)
    }

    /// The same for bytes of which the disk has given all but `owed` already.
    pub(super) fn make_room_for(&self, bytes: u64, owed: u64) -> io::Result<Reserved> {
        let Some(index) = &self.index else { return Ok(self.room.reserve(bytes, owed)) };
        let limits = **self.room.limits.load();
        if let Some(max) = limits.max_size.filter(|max| bytes > *max) {
            return Err(NoRoom::Bigger { size: bytes, max }.into());
        }
        let reserved = self.room.reserve(bytes, owed);
        let _one = self.room.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(max) = limits.max_size {
            let taken = index.totals().bytes + self.room.promised.all.load(Ordering::Relaxed);
            if taken > max {
                // Written, the totals are exact.
                index.write(false);
                let taken = index.totals().bytes + self.room.promised.all.load(Ordering::Relaxed);
                let over = taken.saturating_sub(max);
                if self.evict(over, 0, bytes)?.bytes < over.min(bytes.max(1)) {
                    return Err(NoRoom::InUse.into());
                }
            }
        }
        let (free, least) = self.free(&limits)?;
        // With these bytes among it. What is set apart meanwhile may be missing in both: better than to count it twice.
        let all_owed = self.room.promised.owed.load(Ordering::Relaxed);
        let missing = (least + all_owed).saturating_sub(free);
        if missing > 0 {
            // Where all that is kept would not be enough, nothing is won by dropping it.
            let enough = missing <= index.totals().bytes;
            let dropped = if enough { self.evict(missing, 0, owed)?.bytes } else { 0 };
            if dropped < missing.min(owed) {
                return Err(NoRoom::Disk { size: bytes, free, least }.into());
            }
        }
        Ok(reserved)
    }

    /// Applies the limits, a part at a time. Gives how many blobs were dropped: with none, the limits hold, or nothing
    /// more can be dropped.
    pub(super) fn trim(&self) -> u64 {
        let before = self.metrics.cache_evictions.get();
        if let Err(err) = self.make_room(0) {
            tracing::debug!(reason = err.to_string(), "the limits of the cache cannot be kept now");
        }
        self.metrics.cache_evictions.get() - before
    }

    /// Free space of the file system, and what must stay of it. Units: bytes.
    fn free(&self, limits: &Limits) -> io::Result<(u64, u64)> {
        let about = rustix::fs::statvfs(&self.dir)?;
        let of_all = (about.f_blocks * about.f_frsize / MIN_FREE_PART).min(MIN_FREE_MOST);
        Ok((about.f_bavail * about.f_frsize, limits.min_free.unwrap_or(of_all)))
    }

    /// The limits as they hold, and what is free: for people. Units: bytes.
    pub(super) fn limits(&self) -> io::Result<(Option<u64>, u64, u64)> {
        let limits = **self.room.limits.load();
        let (free, least) = self.free(&limits)?;
        Ok((limits.max_size, least, free))
    }

    /// Does something that takes room on the disk; on a full one, once more after others were dropped.
    pub(super) fn unless_full<T>(&self, bytes: u64, work: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match work() {
            Err(err) if is_full(&err) => {
                let Some(index) = &self.index else { return Err(err) };
                let _one = self.room.making.lock().unwrap_or_else(PoisonError::into_inner);
                let no_inode = rustix::fs::statvfs(&self.dir).is_ok_and(|about| about.f_favail == 0);
                let freed = if no_inode {
                    // A dropped blob leaves its links, which take inodes too. Finding them is a walk through all: it
                    // is paid by a part of all that is kept.
                    let evicted = self.evict(bytes, (index.totals().blobs / INODES_PART).max(INODES), u64::MAX)?;
                    evicted.blobs + self.prune(None, &mut || Flow::Continue(()))?.links
                } else {
                    self.evict(bytes, 1, u64::MAX)?.blobs
                };
                if freed == 0 { Err(err) } else { work() }
            }
            done => done,
        }
    }

    /// Drops blobs, longest unused first, until so many bytes and so many blobs are dropped, or there is no other.
    /// Costs what is dropped, however many there are. Whoever waits needs `own` bytes of it: once these and some
    /// more are dropped, the rest is left to the background.
    fn evict(&self, bytes: u64, blobs: u64, own: u64) -> io::Result<Freed> {
        let Some(index) = &self.index else { return Ok(Freed::default()) };
        index.write(false);
        let (mut freed, mut after, mut in_use) = (Freed::default(), None, 0);
        let enough = |freed: Freed| {
            let all = freed.bytes >= bytes && freed.blobs >= blobs;
            all || (freed.bytes >= own && freed.blobs >= blobs.max(ENOUGH))
        };
        while !enough(freed) {
            let rows = index.oldest(after, ROWS);
            let Some((_, last)) = rows.last() else { break };
            after = Some(last.used);
            for (digest, row) in rows {
                if enough(freed) {
                    break;
                }
                // What is only kept open for the next who asks is used by nobody.
                self.hot.digest_changed(&digest);
                // Alone, this may have the lock that readers share.
                if let Ok(Some((file, _))) = self.open_file(&digest)
                    && matches!(file.try_lock(), Err(TryLockError::WouldBlock))
                {
                    in_use += 1;
                    continue;
                }
                if self.remove_blob(&digest)? {
                    freed.bytes += row.size;
                    freed.blobs += 1;
                    tracing::debug!(%digest, size_bytes = row.size, "dropped to make room");
                }
            }
            if in_use > IN_USE_MAX {
                break;
            }
        }
        self.metrics.cache_evictions.inc_by(freed.blobs);
        self.metrics.cache_evicted_bytes.inc_by(freed.bytes);
        if freed.blobs > 0 {
            self.gauge();
            self.room.tell(freed);
        }
        Ok(freed)
    }
}
