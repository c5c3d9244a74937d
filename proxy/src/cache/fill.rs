//! One fill of one digest: one writer, many readers that follow it in the growing file (`follow.rs`).
//!
//! A byte is hashed and written before any reader may have it, and the last byte is held back until the digest is
//! known to match: no reader can take a wrong body for a whole one.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use super::blocking;
use super::follow::Follower;
use super::staged::Staged;
use super::store::{Link, Store};
use super::writer::Writer;
use crate::oci::digest::Hasher;
use crate::oci::{Attempt, Digest, Place};
use crate::trace;

/// Transfers beside one fill, for readers that are far ahead of it.
const SIDES_MAX: usize = 2;
/// Beginnings of blobs that are kept for a transfer that goes on with them.
const KEPT_MAX: usize = 8;

/// What is known of a blob before its first byte.
#[derive(Clone, Debug)]
pub struct Head {
    /// Where it comes from.
    pub place: Place,
    /// Its length, where the registry tells. Units: bytes.
    pub size: Option<u64>,
    /// As the registry gave it.
    pub media_type: String,
    /// How long the registry took to answer.
    pub took: Duration,
    /// The span of the fill.
    pub span: trace::Link,
}

/// How a fill ended that did not bring the blob.
#[derive(Clone, Debug)]
pub enum FillEnd {
    /// By its leader's policy or credentials, or by a fault of ours: another may lead.
    Abandoned,
    /// The disk takes no more: whoever reads goes on past the cache.
    Disk,
    /// Every candidate of the leader failed.
    Exhausted(Arc<[Attempt]>),
}

#[derive(Clone, Default)]
pub(super) struct Progress {
    pub head: Option<Head>,
    /// The growing file. A fill that begins again after wrong bytes begins a new one.
    pub file: Option<Arc<File>>,
    /// Readable up to here. Units: bytes.
    pub available: u64,
    pub state: State,
}

#[derive(Clone, Default)]
pub(super) enum State {
    #[default]
    Running,
    Done,
    Ended(FillEnd),
}

/// The fills under way, by digest, and the beginnings that others have left.
pub struct Fills {
    table: Arc<Mutex<Table>>,
    /// Hashing and writing at once: more than there are processors would only take memory.
    writing: Arc<Semaphore>,
}

#[derive(Default)]
struct Table {
    running: HashMap<Digest, Entry>,
    kept: VecDeque<(Digest, Kept)>,
}

/// What is known of a fill by those who join it.
#[derive(Clone)]
struct Entry {
    progress: watch::Receiver<Progress>,
    readers: Arc<watch::Sender<usize>>,
    sides: Arc<Semaphore>,
}

/// The beginning of a blob, which nobody waited for any more.
struct Kept {
    written: Written,
    size: Option<u64>,
}

/// A staged file, and the hash of what stands in it.
pub(super) struct Written {
    pub staged: Staged,
    pub hasher: Hasher,
    pub length: u64,
}

/// What a request became that asked for a blob which is not there.
pub enum Role {
    /// The first: it brings the blob. It follows its own fill, too.
    Leader(Box<Leader>, Follower),
    /// One that shares a fill under way.
    Follower(Follower),
}

impl Default for Fills {
    fn default() -> Self {
        let writers = std::thread::available_parallelism().map_or(2, usize::from);
        Self { table: Arc::default(), writing: Arc::new(Semaphore::new(writers)) }
    }
}

impl Fills {
    /// Joins the fill of a digest, or begins it.
    pub(super) fn begin(&self, store: &Arc<Store>, digest: Digest) -> Role {
        let mut table = lock(&self.table);
        if let Some(Entry { progress, readers, sides }) = table.running.get(&digest) {
            return Role::Follower(Follower::new(progress.clone(), readers, sides.clone(), digest));
        }
        let (sender, progress) = watch::channel(Progress::default());
        let readers = Arc::new(watch::Sender::new(0));
        let sides = Arc::new(Semaphore::new(SIDES_MAX));
        let entry = Entry { progress: progress.clone(), readers: readers.clone(), sides: sides.clone() };
        table.running.insert(digest, entry);
        let kept = table.kept.iter().position(|(of, _)| *of == digest).and_then(|at| table.kept.remove(at));
        let follower = Follower::new(progress, &readers, sides, digest);
        let leader = Leader {
            digest,
            store: store.clone(),
            table: self.table.clone(),
            writing: self.writing.clone(),
            progress: sender,
            readers,
            kept: Mutex::new(kept.map(|(_, kept)| kept)),
        };
        Role::Leader(Box::new(leader), follower)
    }

    /// Whether all of a blob has come from `place`, though it is not on the disk yet.
    pub(super) fn has_brought(&self, place: &Place, digest: Digest) -> bool {
        lock(&self.table).running.get(&digest).is_some_and(|entry| {
            let progress = entry.progress.borrow();
            matches!(progress.state, State::Done) && progress.head.as_ref().is_some_and(|head| head.place == *place)
        })
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The duty to bring a blob. Dropped without an end, it is abandoned: another request may lead.
pub struct Leader {
    digest: Digest,
    store: Arc<Store>,
    table: Arc<Mutex<Table>>,
    writing: Arc<Semaphore>,
    progress: watch::Sender<Progress>,
    readers: Arc<watch::Sender<usize>>,
    /// What an earlier fill has left.
    kept: Mutex<Option<Kept>>,
}

/// Why bytes could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The content does not hash to the digest.
    #[error("the content does not match its digest")]
    Mismatch,
    /// The disk failed us.
    #[error("the cache cannot take it: {0}")]
    Disk(#[from] io::Error),
}

impl Leader {
    /// The digest that is to be brought.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Bytes that an earlier fill has left: where a transfer may go on. Units: bytes.
    pub fn kept(&self) -> u64 {
        self.own_kept().as_ref().map_or(0, |kept| kept.written.length)
    }

    /// Forgets what an earlier fill has left.
    pub fn forget_kept(&self) {
        self.own_kept().take();
    }

    fn own_kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who reads this fill, counted.
    pub fn readers(&self) -> watch::Receiver<usize> {
        self.readers.subscribe()
    }

    /// Begins the content, and tells the readers what is known of it: with its first byte, or behind what an earlier
    /// fill has left, where `from` says that the transfer goes on there. Space is reserved first, so that a full disk
    /// shows before a byte was served.
    pub async fn start(&self, head: Head, from: u64) -> Result<Writer, FillError> {
        let kept = self
            .own_kept()
            .take()
            .filter(|kept| from > 0 && kept.written.length == from && (kept.size.is_none() || kept.size == head.size));
        let (store, size, digest, table) = (self.store.clone(), head.size, self.digest, self.table.clone());
        let written = blocking(move || {
            let Some(Kept { mut written, .. }) = kept else {
                let staged = store.reserve(size).or_else(|_| {
                    // What others have left is worth less than what is wanted now.
                    let others = std::mem::take(&mut lock(&table).kept);
                    drop(others);
                    store.reserve(size)
                })?;
                return Ok(Written { staged, hasher: digest.hasher(), length: 0 });
            };
            store.reserve_rest(&mut written.staged, written.length, size)?;
            Ok(written)
        })
        .await?;
        let length = written.length;
        if length != from {
            return Err(FillError::Disk(io::Error::other("what an earlier transfer has left is gone")));
        }
        let file = written.staged.file.clone();
        self.progress.send_modify(|progress| {
            let available = length.saturating_sub(1);
            *progress = Progress { head: Some(head), file: Some(file), available, state: State::Running };
        });
        let (store, progress, writing) = (self.store.clone(), self.progress.clone(), self.writing.clone());
        Ok(Writer::start(store, written, size, progress, writing))
    }

    /// Makes the content visible under its digest, when it is right, and keeps that `place` holds it: before, so that
    /// nobody finds it without. On a mismatch the readers stay, and another `start` may bring the right bytes to those
    /// who have read none. Gives the size.
    pub async fn finish(&self, writer: Writer, place: &Place, media_type: String) -> Result<u64, FillError> {
        let Written { staged, hasher, length } = writer.end().await?;
        if hasher.finish() != self.digest {
            return Err(FillError::Mismatch);
        }
        let (store, digest) = (self.store.clone(), self.digest);
        // The last byte goes out before the disk is forced: the bytes are right, whatever the disk says.
        self.progress.send_modify(|progress| {
            progress.available = length;
            progress.state = State::Done;
        });
        let (place, link) = (place.clone(), Link { media_type, size: length });
        blocking(move || {
            let linked = store.put_link(&place, &digest, &link);
            store.commit(staged, &digest)?;
            linked
        })
        .await?;
        Ok(length)
    }

    /// Ends the fill without the blob; readers end short, and those who wait for its head are told.
    pub fn end(self, end: FillEnd) {
        self.forget();
        self.mark_ended(end);
    }

    /// Takes the fill off the table, so that nobody joins it any more, unless somebody reads it.
    pub fn leave(&self) -> bool {
        let mut table = lock(&self.table);
        // Who joins does so under the same lock, and is counted there.
        let unread = *self.readers.borrow() == 0;
        if unread {
            table.running.remove(&self.digest);
        }
        unread
    }

    /// Ends the fill that nobody reads, and keeps what has come for the next one.
    pub async fn keep(self, writer: Writer) {
        let size = writer.size();
        if let Ok(written) = writer.end().await
            && written.length > 0
        {
            let given_back = blocking(move || {
                let mut written = written;
                written.staged.give_back(written.length);
                Ok(Kept { written, size })
            });
            let Ok(written) = given_back.await else { return };
            let oldest = {
                let kept = &mut lock(&self.table).kept;
                kept.push_back((self.digest, written));
                (kept.len() > KEPT_MAX).then(|| kept.pop_front())
            };
            let _ = tokio::task::spawn_blocking(move || drop(oldest)).await;
        }
        self.end(FillEnd::Abandoned);
    }

    /// What is done stays done.
    fn mark_ended(&self, end: FillEnd) {
        self.progress.send_if_modified(|progress| {
            let running = matches!(progress.state, State::Running);
            if running {
                progress.state = State::Ended(end);
            }
            running
        });
    }

    fn forget(&self) {
        // Only the entry of this fill: once it has ended, another may stand under the same digest.
        let own = self.progress.subscribe();
        let mut table = lock(&self.table);
        if table.running.get(&self.digest).is_some_and(|entry| entry.progress.same_channel(&own)) {
            table.running.remove(&self.digest);
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.forget();
        self.mark_ended(FillEnd::Abandoned);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::cache::follow::tests::collect;
    use crate::config::Cache as Config;
    use crate::oci::{Registry, Repository};

    fn place() -> Place {
        Place {
            registry: Registry::parse("docker.io").expect("a registry"),
            repository: Repository::parse("library/a").expect("a repository"),
        }
    }

    fn head(size: Option<u64>) -> Head {
        Head { place: place(), size, media_type: String::new(), took: Duration::ZERO, span: trace::Link::default() }
    }

    fn store() -> (tempfile::TempDir, Arc<Store>) {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(Store::open(&Config::at(dir.path().to_owned()), Arc::default()).expect("a store"));
        (dir, store)
    }

    #[tokio::test]
    async fn i3_the_last_byte_waits_for_the_digest() {
        let (_dir, store) = store();
        let fills = Fills::default();
        let digest = Digest::sha256_of(b"right");
        let Role::Leader(leader, follower) = fills.begin(&store, digest) else { panic!("the first leads") };
        let Role::Follower(other) = fills.begin(&store, digest) else { panic!("the second follows") };
        let mut writer = leader.start(head(Some(5)), 0).await.expect("a writer");
        writer.write(Bytes::from_static(b"wrong")).await.expect("taken");
        let early = tokio::spawn(collect(other.read(0, Some(5))));
        assert!(matches!(leader.finish(writer, &place(), String::new()).await, Err(FillError::Mismatch)));
        // A reader that has begun with the wrong bytes ends short; one that begins later gets the right ones.
        let mut writer = leader.start(head(Some(5)), 0).await.expect("a writer");
        writer.write(Bytes::from_static(b"right")).await.expect("taken");
        leader.finish(writer, &place(), String::new()).await.expect("right");
        drop(leader);
        assert_eq!(collect(follower.read(0, Some(5))).await, (b"right".to_vec(), true));
        let (read, whole) = early.await.expect("no panic");
        assert!((!whole && read.len() < 5) || read == b"right");
        assert!(store.open_blob(&digest).expect("read").is_some());
    }

    #[tokio::test]
    async fn a_leader_that_is_dropped_lets_another_lead() {
        let (_dir, store) = store();
        let fills = Fills::default();
        let digest = Digest::sha256_of(b"x");
        let Role::Leader(leader, _follower) = fills.begin(&store, digest) else { panic!("the first leads") };
        let Role::Follower(mut follower) = fills.begin(&store, digest) else { panic!("the second follows") };
        let writer = leader.start(head(None), 0).await.expect("a writer");
        drop(leader);
        drop(writer);
        assert!(matches!(follower.head().await, Err(FillEnd::Abandoned)));
        assert!(!collect(follower.read(0, None)).await.1);
        assert!(matches!(fills.begin(&store, digest), Role::Leader(..)));
    }

    #[tokio::test]
    async fn what_nobody_waited_for_is_gone_on_with() {
        let (_dir, store) = store();
        let fills = Fills::default();
        let digest = Digest::sha256_of(b"beginning and end");
        let Role::Leader(leader, follower) = fills.begin(&store, digest) else { panic!("the first leads") };
        let mut readers = leader.readers();
        assert_eq!(*readers.borrow_and_update(), 1);
        drop(follower);
        assert_eq!(*readers.borrow_and_update(), 0);
        let mut writer = leader.start(head(Some(17)), 0).await.expect("a writer");
        writer.write(Bytes::from_static(b"beginning ")).await.expect("taken");
        leader.keep(writer).await;
        let Role::Leader(leader, follower) = fills.begin(&store, digest) else { panic!("it has ended") };
        assert_eq!(leader.kept(), 10);
        let mut writer = leader.start(head(Some(17)), 10).await.expect("a writer");
        writer.write(Bytes::from_static(b"and end")).await.expect("taken");
        leader.finish(writer, &place(), String::new()).await.expect("right");
        assert_eq!(collect(follower.read(0, Some(17))).await, (b"beginning and end".to_vec(), true));
    }
}
