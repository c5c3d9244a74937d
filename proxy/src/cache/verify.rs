//! Whether a cached file is what its digest says: hashed once after every change, however many wait for it.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::blocking;
use super::fingerprint::Fingerprint;
use super::store::Store;
use crate::oci::Digest;

/// How much is hashed at a time. Units: bytes.
const PIECE: usize = 256 << 10;
/// Files that are hashed at once for those who wait.
const AT_ONCE: usize = 4;
/// How long a request waits for the hash of one file: a client gives up after 30 s without headers. Beyond, the
/// content is asked for upstream.
const WAIT: Duration = Duration::from_secs(8);

/// What came of hashing a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is what its digest says; it is known for right from now on.
    Right,
    /// It was not, and is removed.
    Wrong,
    /// There is none, or it changed meanwhile, or whoever asked ended it.
    Unknown,
}

impl Store {
    /// Hashes the file of a blob; none where there is none, or it changed meanwhile, or `go_on`, which is told of each
    /// piece, ended it.
    pub(super) fn hash(
        &self,
        digest: &Digest,
        mut go_on: impl FnMut(usize) -> bool,
    ) -> io::Result<Option<(Digest, Fingerprint)>> {
        let Some((file, about)) = self.open_file(digest)? else {
            return Ok(None);
        };
        let before = Fingerprint::told(&about);
        let mut hasher = digest.hasher();
        let mut buffer = vec![0; PIECE];
        let mut at = 0;
        loop {
            let read = file.read_at(&mut buffer, at)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            at += read as u64;
            if !go_on(read) {
                return Ok(None);
            }
        }
        Ok((Fingerprint::of(&file)? == before).then(|| (hasher.finish(), before)))
    }

    /// Whether the file of a blob is the one that was last known to be right.
    fn is_verified(&self, digest: &Digest) -> io::Result<bool> {
        let (Some((_, about)), Some(index)) = (self.open_file(digest)?, &self.index) else { return Ok(false) };
        Ok(index.row(digest).is_some_and(|row| row.verified == Some(Fingerprint::told(&about))))
    }

    /// Hashes the file of a blob, and keeps that it is right, or removes it.
    pub(super) fn verify(&self, digest: &Digest, go_on: impl FnMut(usize) -> bool) -> io::Result<Verdict> {
        let Some((found, before)) = self.hash(digest, go_on)? else {
            return Ok(Verdict::Unknown);
        };
        if found == *digest {
            if let Some(index) = &self.index {
                match index.row(digest) {
                    Some(row) if row.verified == Some(before) => {}
                    // Where it stands in the order of use is not for whoever verifies to change.
                    Some(row) => {
                        index.put(*digest, super::rows::Row { size: before.size, verified: Some(before), ..row });
                    }
                    None => index.put(*digest, index.row_now(before.size, Some(before))),
                }
            }
            self.metrics.cache_verified.inc();
            return Ok(Verdict::Right);
        }
        // A fill may just have put the right one there.
        if self.open_file(digest)?.is_some_and(|(_, about)| Fingerprint::told(&about).inode == before.inode) {
            self.remove_wrong(digest, "its content is another")?;
        }
        Ok(Verdict::Wrong)
    }
}

/// The files that are being hashed for those who wait.
pub struct Verifications {
    running: Arc<Mutex<HashMap<Digest, Running>>>,
    at_once: Arc<Semaphore>,
    tasks: TaskTracker,
    stopped: Arc<AtomicBool>,
}

#[derive(Clone)]
struct Running {
    since: Instant,
    /// Closed when it has ended.
    ended: watch::Receiver<()>,
}

impl Default for Verifications {
    fn default() -> Self {
        Self {
            running: Arc::default(),
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
            tasks: TaskTracker::new(),
            stopped: Arc::default(),
        }
    }
}

impl Verifications {
    /// Waits until the file of a blob was hashed, by whomever. Gives whether it was within the time.
    ///
    /// # Cancel safety
    /// The hash goes on.
    pub(super) async fn wait(&self, store: &Arc<Store>, digest: Digest) -> bool {
        let Running { since, mut ended } = self.join(store, digest);
        tokio::time::timeout_at(since + WAIT, ended.changed()).await.is_ok()
    }

    fn join(&self, store: &Arc<Store>, digest: Digest) -> Running {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = running.get(&digest) {
            return running.clone();
        }
        let (end, ended) = watch::channel(());
        let begun = Running { since: Instant::now(), ended };
        running.insert(digest, begun.clone());
        let entry = Entry { digest, running: self.running.clone(), _end: end };
        let (store, at_once, stopped) = (store.clone(), self.at_once.clone(), self.stopped.clone());
        self.tasks.spawn(async move {
            let _entry = entry;
            let _place = at_once.acquire().await;
            let hashing = store.clone();
            let verified = blocking(move || {
                // Another may have ended between the look of whoever waits and his coming here.
                if hashing.is_verified(&digest)? {
                    return Ok(Verdict::Right);
                }
                hashing.verify(&digest, |_| !stopped.load(Ordering::Relaxed))
            })
            .await;
            if let Err(err) = verified {
                store.metrics.cache_faults.inc();
                tracing::warn!(%digest, error = err.to_string(), "a cached file cannot be verified: it is fetched again");
            }
        });
        begun
    }

    /// Ends what is being hashed, and waits for it.
    pub(super) async fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The place of one among those that run; dropped, those who wait go on.
struct Entry {
    digest: Digest,
    running: Arc<Mutex<HashMap<Digest, Running>>>,
    _end: watch::Sender<()>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.digest);
    }
}
