//! One fill of one digest: one writer, many readers that follow it in the growing file.
//!
//! A byte is hashed and written before any reader may have it, and the last byte is held back until the digest is
//! known to match: no reader can take a wrong body for a whole one.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::try_unfold;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::store::{Staged, Store};
use crate::body::{Chunks, Short};
use crate::oci::{Attempt, Digest, Place};

/// Chunks that may wait between the network and the disk; with hyper's chunks of at most 64 KiB about 1 MiB a fill.
const QUEUE: usize = 16;
/// A blob up to this size is small: configurations, signatures, and pages of error. Units: bytes.
const SMALL: u64 = 128 << 10;
/// How long a small blob is waited for.
const SMALL_WAIT: Duration = Duration::from_secs(5);
/// How much a reader takes at a time. Units: bytes.
const READ: u64 = 128 << 10;

/// What is known of a blob before its first byte.
#[derive(Clone, Debug)]
pub struct Head {
    /// Where it comes from.
    pub place: Place,
    /// Its length, where the registry tells. Units: bytes.
    pub size: Option<u64>,
    /// As the registry gave it.
    pub media_type: String,
}

/// How a fill ended that did not bring the blob.
#[derive(Clone, Debug)]
pub enum FillEnd {
    /// By its leader's policy or credentials, or by a fault of ours: another may lead.
    Abandoned,
    /// Every candidate of the leader failed.
    Exhausted(Arc<[Attempt]>),
}

#[derive(Clone, Default)]
struct Progress {
    head: Option<Head>,
    /// The growing file. A fill that begins again after wrong bytes begins a new one.
    file: Option<Arc<File>>,
    /// Readable up to here. Units: bytes.
    available: u64,
    state: State,
}

#[derive(Clone, Default)]
enum State {
    #[default]
    Running,
    Done,
    Ended(FillEnd),
}

/// The fills under way, by digest.
#[derive(Default)]
pub struct Fills(Arc<Mutex<HashMap<Digest, watch::Receiver<Progress>>>>);

/// What a request became that asked for a blob which is not there.
pub enum Role {
    /// The first: it brings the blob. It follows its own fill, too.
    Leader(Leader, Follower),
    /// One that shares a fill under way.
    Follower(Follower),
}

impl Fills {
    /// Joins the fill of a digest, or begins it.
    pub(super) fn begin(&self, store: &Arc<Store>, digest: Digest) -> Role {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(progress) = running.get(&digest) {
            return Role::Follower(Follower { progress: progress.clone(), digest });
        }
        let (sender, receiver) = watch::channel(Progress::default());
        running.insert(digest, receiver.clone());
        let leader = Leader { digest, store: store.clone(), fills: self.0.clone(), progress: sender };
        Role::Leader(leader, Follower { progress: receiver, digest })
    }
}

impl Fills {
    /// Whether all of a blob has come from `place`, though it is not on the disk yet.
    pub(super) fn has_brought(&self, place: &Place, digest: Digest) -> bool {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(&digest).is_some_and(|progress| {
            let progress = progress.borrow();
            matches!(progress.state, State::Done) && progress.head.as_ref().is_some_and(|head| head.place == *place)
        })
    }
}

/// The duty to bring a blob. Dropped without an end, it is abandoned: another request may lead.
pub struct Leader {
    digest: Digest,
    store: Arc<Store>,
    fills: Arc<Mutex<HashMap<Digest, watch::Receiver<Progress>>>>,
    progress: watch::Sender<Progress>,
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

    /// Begins the content with its first byte, and tells the readers what is known of it. Space is reserved first,
    /// so that a full disk shows before a byte was served.
    pub async fn start(&self, head: Head) -> Result<Writer, FillError> {
        let (store, size) = (self.store.clone(), head.size);
        let staged = blocking(move || store.reserve(size)).await?;
        let file = staged.file.clone();
        let (chunks, queue) = mpsc::channel(QUEUE);
        let (digest, progress) = (self.digest, self.progress.clone());
        let store = self.store.clone();
        let task = tokio::task::spawn_blocking(move || write_all(&store, staged, queue, digest, &progress));
        self.progress.send_modify(|progress| {
            *progress = Progress { head: Some(head), file: Some(file), available: 0, state: State::Running };
        });
        Ok(Writer { chunks, task, written: 0 })
    }

    /// Makes the content visible under its digest, when it is right. On a mismatch the readers stay, and another
    /// `start` may bring the right bytes to those who have read none.
    pub async fn finish(&self, writer: Writer) -> Result<(), FillError> {
        drop(writer.chunks);
        let (staged, written) = writer.task.await.map_err(io::Error::other)??;
        let Some(staged) = staged else {
            return Err(FillError::Mismatch);
        };
        let (store, digest) = (self.store.clone(), self.digest);
        // The last byte goes out before the disk is forced: the bytes are right, whatever the disk says.
        self.progress.send_modify(|progress| {
            progress.available = written;
            progress.state = State::Done;
        });
        blocking(move || store.commit(staged, &digest)).await?;
        Ok(())
    }

    /// Ends the fill without the blob; readers end short, and those who wait for its head are told.
    pub fn end(self, end: FillEnd) {
        self.forget();
        self.mark_ended(end);
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
        let mut running = self.fills.lock().unwrap_or_else(PoisonError::into_inner);
        if running.get(&self.digest).is_some_and(|entry| entry.same_channel(&own)) {
            running.remove(&self.digest);
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.forget();
        self.mark_ended(FillEnd::Abandoned);
    }
}

/// Takes the bytes of a fill, in order.
pub struct Writer {
    chunks: mpsc::Sender<Bytes>,
    task: JoinHandle<io::Result<(Option<Staged>, u64)>>,
    written: u64,
}

impl Writer {
    /// Bytes taken so far: where a broken transfer goes on. Units: bytes.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Takes the next bytes; waits while the disk is behind.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), FillError> {
        let length = chunk.len() as u64;
        if self.chunks.send(chunk).await.is_ok() {
            self.written += length;
            return Ok(());
        }
        // The writing thread has ended: only a fault of the disk ends it early.
        let fault = (&mut self.task).await.map_err(io::Error::other)?.err();
        Err(FillError::Disk(fault.unwrap_or_else(|| io::Error::other("the writing thread ended early"))))
    }
}

/// Hashes, writes and publishes chunks until their sender is gone. Gives the file when it matches the digest.
fn write_all(
    store: &Store,
    staged: Staged,
    mut queue: mpsc::Receiver<Bytes>,
    digest: Digest,
    progress: &watch::Sender<Progress>,
) -> io::Result<(Option<Staged>, u64)> {
    let mut hasher = digest.hasher();
    let mut written = 0;
    let mut batch = Vec::with_capacity(QUEUE);
    while queue.blocking_recv_many(&mut batch, QUEUE) > 0 {
        for chunk in batch.drain(..) {
            hasher.update(&chunk);
            store.write_at(&staged, &chunk, written)?;
            written += chunk.len() as u64;
        }
        // One byte short of what there is, until the digest is known.
        progress.send_modify(|progress| progress.available = written.saturating_sub(1));
    }
    let right = hasher.finish() == digest;
    Ok((right.then_some(staged), written))
}

/// A reader of a fill.
#[derive(Clone)]
pub struct Follower {
    progress: watch::Receiver<Progress>,
    digest: Digest,
}

impl Follower {
    /// Waits until it is known what is coming, or that nothing is. A small blob is waited for whole: what is wrong with
    /// it then shows while another upstream, or a status, can still tell the client.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost.
    pub async fn head(&mut self) -> Result<Head, FillEnd> {
        let ended = |progress: &Progress| !matches!(progress.state, State::Running);
        let small = |progress: &Progress| {
            progress.head.as_ref().is_some_and(|head| head.size.is_some_and(|size| size <= SMALL))
        };
        let waited = async {
            let whole = |progress: &Progress| ended(progress) || (progress.head.is_some() && !small(progress));
            let _ = self.progress.wait_for(whole).await;
        };
        let _ = tokio::time::timeout(SMALL_WAIT, waited).await;
        let known = self.progress.wait_for(|progress| ended(progress) || progress.head.is_some()).await;
        let Ok(progress) = known else {
            return Err(FillEnd::Abandoned);
        };
        match (&progress.state, &progress.head) {
            (State::Ended(end), _) => Err(end.clone()),
            (_, Some(head)) => Ok(head.clone()),
            (_, None) => Err(FillEnd::Abandoned),
        }
    }

    /// Reads from `start` to before `end` (none: to the end), as the bytes come.
    pub fn read(self, start: u64, end: Option<u64>) -> Chunks {
        let reading = Reading { follower: self, chunker: None, at: start, end };
        Box::pin(try_unfold(
            reading,
            |mut reading| async move { Ok(reading.next().await?.map(|chunk| (chunk, reading))) },
        ))
    }
}

struct Reading {
    follower: Follower,
    /// Reads the file that it began with.
    chunker: Option<Chunker>,
    at: u64,
    end: Option<u64>,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, Short> {
        let short = |reason: &str| Err(Short(format!("{}: {reason}", self.follower.digest)));
        loop {
            let (available, done) = {
                let progress = self.follower.progress.borrow_and_update();
                match (&self.chunker, &progress.file) {
                    (None, Some(file)) => self.chunker = Some(Chunker::new(file.clone())),
                    (Some(mine), Some(file)) if !Arc::ptr_eq(&mine.file, file) => {
                        return short("the first source sent wrong bytes");
                    }
                    _ => {}
                }
                if let State::Ended(_) = &progress.state {
                    return short("every upstream failed");
                }
                (progress.available, matches!(progress.state, State::Done))
            };
            let until = self.end.map_or(available, |end| end.min(available));
            if let Some(chunker) = self.chunker.as_mut().filter(|_| self.at < until) {
                let chunk = chunker.read(self.at, until).await?;
                self.at += chunk.len() as u64;
                return Ok(Some(chunk));
            }
            if self.end.is_some_and(|end| self.at >= end) {
                return Ok(None);
            }
            if done {
                return if self.end.is_none() { Ok(None) } else { short("it is shorter than its length") };
            }
            if self.follower.progress.changed().await.is_err() {
                return short("the fill ended");
            }
        }
    }
}

/// Reads a file that is whole, from `start` to before `end`.
pub fn read_file(file: impl Into<Arc<File>>, start: u64, end: u64) -> Chunks {
    Box::pin(try_unfold((Chunker::new(file.into()), start), move |(mut chunker, at)| async move {
        if at >= end {
            return Ok(None);
        }
        let chunk = chunker.read(at, end).await?;
        let next = at + chunk.len() as u64;
        Ok(Some((chunk, (chunker, next))))
    }))
}

/// Reads a file chunk by chunk, into the same memory as soon as the chunk before has been sent.
struct Chunker {
    file: Arc<File>,
    last: Bytes,
}

impl Chunker {
    fn new(file: Arc<File>) -> Self {
        Self { file, last: Bytes::new() }
    }

    /// The bytes from `start` on, at most up to `end`, and at least one.
    async fn read(&mut self, start: u64, end: u64) -> Result<Bytes, Short> {
        let length = usize::try_from((end - start).min(READ)).expect("at most READ");
        let mut buffer = std::mem::take(&mut self.last).try_into_mut().map(Vec::from).unwrap_or_default();
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        // What the system has in memory, as it has nearly all that was just written, takes no thread of its own.
        let at_once = rustix::io::preadv2(
            &*self.file,
            &mut [io::IoSliceMut::new(&mut buffer[..length])],
            start,
            rustix::io::ReadWriteFlags::NOWAIT,
        );
        let read = if let Ok(read @ 1..) = at_once {
            read
        } else {
            // Not in memory, or a file system that cannot tell; a real fault shows again.
            let file = self.file.clone();
            let from_disk = blocking(move || match file.read_at(&mut buffer[..length], start)? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                read => Ok((buffer, read)),
            });
            let read;
            (buffer, read) = from_disk.await.map_err(|err| Short(format!("the cached file cannot be read: {err}")))?;
            read
        };
        self.last = Bytes::from(buffer);
        Ok(self.last.slice(..read))
    }
}

/// Runs what blocks where it may.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;
    use crate::config::Cache as Config;
    use crate::oci::{Registry, Repository};

    fn head(size: Option<u64>) -> Head {
        let place = Place {
            registry: Registry::parse("docker.io").expect("a registry"),
            repository: Repository::parse("library/a").expect("a repository"),
        };
        Head { place, size, media_type: String::new() }
    }

    fn store() -> (tempfile::TempDir, Arc<Store>) {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(Store::open(&Config::at(dir.path().to_owned()), Arc::default()).expect("a store"));
        (dir, store)
    }

    async fn collect(chunks: Chunks) -> (Vec<u8>, bool) {
        let chunks: Vec<_> = chunks.collect().await;
        let whole = chunks.iter().all(Result::is_ok);
        (chunks.into_iter().flatten().flatten().collect(), whole)
    }

    #[tokio::test]
    async fn i3_the_last_byte_waits_for_the_digest() {
        let (_dir, store) = store();
        let fills = Fills::default();
        let digest = Digest::sha256_of(b"right");
        let Role::Leader(leader, follower) = fills.begin(&store, digest) else { panic!("the first leads") };
        let mut writer = leader.start(head(Some(5))).await.expect("a writer");
        writer.write(Bytes::from_static(b"wrong")).await.expect("taken");
        let early = tokio::spawn(collect(follower.clone().read(0, Some(5))));
        assert!(matches!(leader.finish(writer).await, Err(FillError::Mismatch)));
        // A reader that has begun with the wrong bytes ends short; one that begins later gets the right ones.
        let mut writer = leader.start(head(Some(5))).await.expect("a writer");
        writer.write(Bytes::from_static(b"right")).await.expect("taken");
        leader.finish(writer).await.expect("right");
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
        let Role::Leader(leader, _) = fills.begin(&store, digest) else { panic!("the first leads") };
        let Role::Follower(mut follower) = fills.begin(&store, digest) else { panic!("the second follows") };
        let writer = leader.start(head(None)).await.expect("a writer");
        drop(leader);
        drop(writer);
        assert!(matches!(follower.head().await, Err(FillEnd::Abandoned)));
        assert!(!collect(follower.read(0, None)).await.1);
        assert!(matches!(fills.begin(&store, digest), Role::Leader(..)));
    }
}
