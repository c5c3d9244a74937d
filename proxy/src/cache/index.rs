//! The index: what is kept, which of it was not used for the longest time, and which file was verified.
//!
//! It is a cache of what the folders say, never the truth: lost or broken, it is made anew from them. What happens is
//! collected in memory, bounded, and written in one step every few seconds, so that nobody who serves waits for it.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::{fs, io, mem};

use redb::Database;

use super::rows::{self, Change, Row, Totals};
use super::store::now_secs;
use crate::oci::Digest;

/// Rows that are remembered at once, twice over: with 128 bytes each about 2 MiB.
const RECENT: usize = 8 << 10;
/// Changes that may wait to be written. Beyond, a use is forgotten, and whatever else is written at once.
const CHANGES: usize = 8 << 10;

/// The index of one cache folder.
pub struct Index {
    path: PathBuf,
    database: RwLock<Option<Database>>,
    memory: Mutex<Memory>,
    /// One writes at a time, so that no older change is written over a newer one.
    writing: Mutex<()>,
    sequence: AtomicU64,
    /// Blobs may lie in the folders that have no row.
    incomplete: AtomicBool,
    /// The folder takes no file: the index is in memory.
    homeless: AtomicBool,
}

#[derive(Default)]
struct Memory {
    /// What was looked up lately, in two generations: when the young one is full, it becomes the old one.
    young: HashMap<Digest, Row>,
    old: HashMap<Digest, Row>,
    changes: HashMap<Digest, Change>,
    written: Totals,
    /// What `changes` adds, about: what is put over a row of its own counts twice until it is written.
    added: Totals,
    /// And what it takes away, about.
    removed: Totals,
}

impl Memory {
    fn remember(&mut self, digest: Digest, row: Row) {
        if self.young.len() >= RECENT {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(digest, row);
    }

    fn forget(&mut self, digest: &Digest) {
        self.young.remove(digest);
        self.old.remove(digest);
    }
}

impl Index {
    /// Opens the index of a folder. What is no index is set aside, and a new one begun: this never fails.
    pub fn open(path: PathBuf) -> Self {
        let index = Self {
            path,
            database: RwLock::new(None),
            memory: Mutex::default(),
            writing: Mutex::default(),
            sequence: AtomicU64::new(1),
            incomplete: AtomicBool::new(false),
            homeless: AtomicBool::new(false),
        };
        index.reopen();
        index
    }

    /// What is known of a blob. The file is not asked for what was asked lately.
    pub fn row(&self, digest: &Digest) -> Option<Row> {
        {
            let mut memory = self.memory();
            if let Some(row) = memory.young.get(digest) {
                return Some(*row);
            }
            if let Some(row) = memory.old.remove(digest) {
                memory.remember(*digest, row);
                return Some(row);
            }
            match memory.changes.get(digest) {
                Some(Change::Put(row)) => return Some(*row),
                Some(Change::Gone) => return None,
                Some(Change::Used { .. }) | None => {}
            }
        }
        let row = self.ask(|database| rows::get(database, digest))??;
        self.memory().remember(*digest, row);
        Some(row)
    }

    /// A row for a blob that is used now.
    pub fn row_now(&self, size: u64, verified: Option<super::fingerprint::Fingerprint>) -> Row {
        Row { size, used: self.sequence.fetch_add(1, Ordering::Relaxed), used_at_secs: now_secs(), verified }
    }

    /// Keeps what is known of a blob.
    pub fn put(&self, digest: Digest, row: Row) {
        let mut memory = self.memory();
        memory.remember(digest, row);
        if !matches!(memory.changes.insert(digest, Change::Put(row)), Some(Change::Put(_))) {
            memory.added.bytes += row.size;
            memory.added.blobs += 1;
        }
        let full = memory.changes.len() > CHANGES;
        drop(memory);
        if full {
            self.write(false);
        }
    }

    /// Notes that a blob was read. One of the quarter used last stays where it is: it is far from being dropped, and
    /// a blob that all ask for then costs no writing.
    pub fn used(&self, digest: &Digest, row: Row) {
        let totals = self.totals();
        if self.sequence.load(Ordering::Relaxed).saturating_sub(row.used) <= totals.blobs / 4 {
            return;
        }
        let row = self.row_now(row.size, row.verified);
        let mut memory = self.memory();
        let full = memory.changes.len() >= CHANGES;
        match memory.changes.get_mut(digest) {
            Some(Change::Put(put)) => (put.used, put.used_at_secs) = (row.used, row.used_at_secs),
            Some(Change::Used { used, at_secs }) => (*used, *at_secs) = (row.used, row.used_at_secs),
            Some(Change::Gone) => return,
            None if full => return,
            None => {
                memory.changes.insert(*digest, Change::Used { used: row.used, at_secs: row.used_at_secs });
            }
        }
        memory.remember(*digest, row);
    }

    /// Notes that a blob is gone.
    pub fn gone(&self, digest: &Digest) {
        let row = self.row(digest);
        let mut memory = self.memory();
        memory.forget(digest);
        memory.changes.insert(*digest, Change::Gone);
        if let Some(row) = row {
            memory.removed.bytes += row.size;
            memory.removed.blobs += 1;
        }
        let full = memory.changes.len() > CHANGES;
        drop(memory);
        if full {
            self.write(false);
        }
    }

    /// How much is kept.
    pub fn totals(&self) -> Totals {
        let memory = self.memory();
        let Memory { written, added, removed, .. } = &*memory;
        Totals {
            bytes: (written.bytes + added.bytes).saturating_sub(removed.bytes),
            blobs: (written.blobs + added.blobs).saturating_sub(removed.blobs),
        }
    }

    /// Writes what has changed; `durable`: and waits until it is on the disk.
    pub fn write(&self, durable: bool) {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = {
            let mut memory = self.memory();
            if memory.changes.is_empty() && !durable {
                return;
            }
            mem::take(&mut memory.changes)
        };
        let sequence = self.sequence.load(Ordering::Relaxed);
        let written = self.ask(|database| rows::apply(database, changes.iter(), sequence, durable));
        let mut memory = self.memory();
        if let Some(totals) = written {
            memory.written = totals;
            memory.removed = Totals::default();
            // What came meanwhile counts again.
            let puts = memory.changes.values().filter_map(|change| match change {
                Change::Put(row) => Some(row.size),
                Change::Used { .. } | Change::Gone => None,
            });
            let (mut bytes, mut blobs) = (0, 0);
            puts.for_each(|size| (bytes, blobs) = (bytes + size, blobs + 1));
            memory.added = Totals { bytes, blobs };
        } else {
            // The newer change of a blob stays; so many that memory would grow are left to the sweep.
            for (digest, change) in changes {
                if memory.changes.len() < 2 * CHANGES {
                    memory.changes.entry(digest).or_insert(change);
                }
            }
        }
    }

    /// The blobs not used for the longest time, as last written.
    pub fn oldest(&self, after: Option<u64>, count: usize) -> Vec<(Digest, Row)> {
        self.ask(|database| rows::oldest(database, after, count)).unwrap_or_default()
    }

    /// The blobs behind a cursor, in the order of their digests, as last written.
    pub fn after(&self, cursor: &[u8], count: usize) -> Vec<(Digest, Row)> {
        self.ask(|database| rows::after(database, cursor, count)).unwrap_or_default()
    }

    /// A number and a cursor that somebody keeps here.
    pub fn kept(&self, name: &str) -> (Option<u64>, Vec<u8>) {
        let kept = self.ask(|database| Ok((rows::number(database, name)?, rows::cursor(database, name)?)));
        kept.unwrap_or_default()
    }

    /// Keeps a number and a cursor.
    pub fn keep(&self, name: &str, number: u64, cursor: &[u8]) {
        self.ask(|database| rows::keep(database, name, number, cursor));
    }

    /// When the blobs were used that were used first and last. Units: seconds since the epoch.
    pub fn span(&self) -> Option<(u64, u64)> {
        self.ask(rows::span).flatten()
    }

    /// Whether blobs may lie in the folders that have no row.
    pub fn is_incomplete(&self) -> bool {
        self.incomplete.load(Ordering::Relaxed)
    }

    /// Every blob has a row: the folders have been read.
    pub fn completed(&self) {
        self.incomplete.store(false, Ordering::Relaxed);
    }

    /// Blobs may lie in the folders that have no row: they were not read to the end.
    pub fn is_missing_some(&self) {
        self.incomplete.store(true, Ordering::Relaxed);
    }

    /// Whether something waits to be written.
    pub fn has_changes(&self) -> bool {
        !self.memory().changes.is_empty()
    }

    /// Whether the index has no file, and the next attempt may give it one.
    pub fn is_homeless(&self) -> bool {
        self.homeless.load(Ordering::Relaxed)
    }

    /// Writes everything, and that nothing is missing.
    pub fn close(&self) {
        self.write(true);
        if !self.is_incomplete() && self.memory().changes.is_empty() {
            self.ask(rows::close);
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the tables. A fault of theirs makes them be opened again, and there is no answer.
    fn ask<T>(&self, work: impl Fn(&Database) -> Result<T, redb::Error>) -> Option<T> {
        let reason = {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            let database = database.as_ref()?;
            // A page that rotted may also show as a panic in there.
            match catch_unwind(AssertUnwindSafe(|| work(database))) {
                Ok(Ok(done)) => return Some(done),
                Ok(Err(err)) => err.to_string(),
                Err(_) => "it is damaged".to_owned(),
            }
        };
        tracing::warn!(index = %self.path.display(), reason, "the index of the cache failed: it is opened again");
        self.reopen();
        None
    }

    /// Opens the file; if it cannot be, sets it aside and begins a new one; if that cannot be, goes on in memory.
    pub fn reopen(&self) {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let before = database.take();
        let again = before.is_some() || self.is_homeless();
        // After a panic in there, closing may panic once more.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(before)));
        let open = || {
            // Opening a FIFO that somebody put there would block, and of a folder comes nothing.
            if fs::symlink_metadata(&self.path).is_ok_and(|about| !about.is_file()) {
                return Err(("it is no regular file".to_owned(), true));
            }
            match catch_unwind(|| rows::open(&self.path)) {
                Ok(Ok(opened)) => Ok(opened),
                Ok(Err(err)) => Err((err.to_string(), is_the_files(&err))),
                Err(_) => Err(("it is damaged".to_owned(), true)),
            }
        };
        let opened = open().or_else(|(reason, damaged)| {
            let aside = self.path.with_extension("redb.aside");
            if damaged {
                match set_aside(&self.path, &aside) {
                    Ok(()) => tracing::warn!(
                        index = %self.path.display(), reason, aside = %aside.display(),
                        "the index of the cache cannot be used: it is set aside and made anew; delete it at will"
                    ),
                    Err(err) => return Err(format!("{reason}; it cannot be set aside: {err}")),
                }
            }
            open().map_err(|(second, _)| if damaged { second } else { reason })
        });
        let (opened, homeless) = match opened {
            Ok(opened) => (Some(opened), false),
            Err(reason) => {
                if !self.is_homeless() {
                    tracing::warn!(index = %self.path.display(), reason, "the cache goes on without a file for its index");
                }
                (rows::open_in_memory().ok(), true)
            }
        };
        self.homeless.store(homeless, Ordering::Relaxed);
        let Some((opened, totals, sequence, closed)) = opened else { return };
        if again || !closed {
            self.incomplete.store(true, Ordering::Relaxed);
        }
        self.sequence.fetch_max(sequence, Ordering::Relaxed);
        self.memory().written = totals;
        *database = Some(opened);
    }
}

/// Whether an error is the fault of the file: that of a disk goes away without losing the file.
fn is_the_files(err: &redb::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    match err {
        redb::Error::Io(err) => matches!(err.kind(), InvalidData | InvalidInput | UnexpectedEof),
        redb::Error::DatabaseAlreadyOpen | redb::Error::PreviousIo => false,
        _ => true,
    }
}

fn set_aside(path: &std::path::Path, aside: &std::path::Path) -> io::Result<()> {
    if fs::symlink_metadata(aside).is_ok_and(|about| about.is_dir()) {
        fs::remove_dir_all(aside)?;
    }
    fs::rename(path, aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u64) -> Digest {
        Digest::sha256_of(&number.to_le_bytes())
    }

    fn index() -> (tempfile::TempDir, Index) {
        let dir = tempfile::tempdir().expect("a folder");
        let index = Index::open(dir.path().join("index.redb"));
        (dir, index)
    }

    fn order(index: &Index) -> Vec<Digest> {
        index.write(false);
        index.oldest(None, 100).into_iter().map(|(digest, _)| digest).collect()
    }

    #[test]
    fn the_order_of_use_counts_and_outlives_the_process() {
        let (dir, index) = index();
        for number in 0..4 {
            index.put(digest(number), index.row_now(10, None));
        }
        index.used(&digest(0), index.row(&digest(0)).expect("a row"));
        assert_eq!(order(&index), [1, 2, 3, 0].map(digest));
        index.gone(&digest(2));
        assert_eq!(index.totals(), Totals { bytes: 30, blobs: 3 });
        assert_eq!(order(&index), [1, 3, 0].map(digest));
        assert_eq!(index.totals(), Totals { bytes: 30, blobs: 3 });
        index.completed();
        index.close();
        drop(index);
        let index = Index::open(dir.path().join("index.redb"));
        assert!(!index.is_incomplete(), "it was closed in order");
        assert_eq!(index.totals(), Totals { bytes: 30, blobs: 3 });
        index.put(digest(9), index.row_now(1, None));
        assert_eq!(order(&index), [1, 3, 0, 9].map(digest));
    }

    #[test]
    fn t1_the_order_of_use_does_not_know_the_clock() {
        let (_dir, index) = index();
        // As a clock that goes back by two hours would write it.
        for (number, secs) in [(0, 10_000), (1, 2_800), (2, 5_000)] {
            index.put(digest(number), Row { used_at_secs: secs, ..index.row_now(1, None) });
        }
        assert_eq!(order(&index), [0, 1, 2].map(digest));
    }

    #[test]
    fn d3_an_index_that_was_not_closed_asks_for_a_sweep() {
        let (dir, index) = index();
        index.completed();
        index.put(digest(0), index.row_now(10, None));
        index.write(true);
        drop(index);
        let index = Index::open(dir.path().join("index.redb"));
        assert!(index.is_incomplete());
        assert_eq!(order(&index), [digest(0)]);
    }

    #[test]
    fn d5_a_foreign_index_is_set_aside() {
        for bytes in [b"no index at all".to_vec(), vec![0; 70_000], Vec::new()] {
            let dir = tempfile::tempdir().expect("a folder");
            let path = dir.path().join("index.redb");
            fs::write(&path, &bytes).expect("written");
            let index = Index::open(path.clone());
            assert!(index.is_incomplete() && !index.is_homeless());
            index.put(digest(0), index.row_now(10, None));
            assert_eq!(order(&index), [digest(0)]);
            assert_eq!(path.with_extension("redb.aside").exists(), !bytes.is_empty());
        }
    }

    #[test]
    fn d2_without_a_file_the_index_is_in_memory() {
        let index = Index::open("/proc/no-file-can-be-here/index.redb".into());
        assert!(index.is_homeless() && index.is_incomplete());
        index.put(digest(0), index.row_now(10, None));
        assert_eq!(order(&index), [digest(0)]);
    }

    #[test]
    fn what_waits_to_be_written_is_bounded_and_nothing_kept_is_lost() {
        let (_dir, index) = index();
        let all = CHANGES as u64 + 100;
        for number in 0..all {
            index.put(digest(number), index.row_now(1, None));
        }
        assert!(index.memory().changes.len() <= CHANGES + 1);
        index.write(false);
        assert_eq!(index.totals(), Totals { bytes: all, blobs: all });
        for number in 0..all {
            index.used(&digest(number), index.row(&digest(number)).expect("a row"));
        }
        assert!(index.memory().changes.len() <= CHANGES + 1);
        assert!(index.memory().young.len() <= RECENT && index.memory().old.len() <= RECENT);
    }

    #[test]
    fn d5_an_index_that_rotted_is_made_anew_and_nobody_panics() {
        use std::os::unix::fs::FileExt;
        // The header of the file is of one page: from the first byte behind it on, and in the midst of the tables.
        for from in [4096, 20_000, 120_000] {
            let (dir, index) = index();
            for number in 0..2000 {
                index.put(digest(number), index.row_now(10, None));
            }
            index.close();
            drop(index);
            let path = dir.path().join("index.redb");
            let file = fs::File::options().write(true).open(&path).expect("the index");
            file.write_all_at(&vec![0xff; 400_000], from).expect("written");
            let index = Index::open(path);
            for number in 0..2000 {
                let _ = index.row(&digest(number));
            }
            for number in 2000..2100 {
                index.put(digest(number), index.row_now(10, None));
                index.gone(&digest(number - 1500));
            }
            index.write(true);
            index.oldest(None, 5000);
            index.put(digest(9999), index.row_now(10, None));
            index.write(true);
            assert_eq!(index.row(&digest(9999)).map(|row| row.size), Some(10), "{from}");
            index.write(true);
            assert!(index.oldest(None, 5000).iter().any(|(found, _)| *found == digest(9999)), "{from}");
        }
    }
}
