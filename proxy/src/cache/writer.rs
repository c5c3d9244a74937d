//! The writer of a fill: takes bytes as they come, and has them hashed and written behind the transfer's back.
//!
//! What comes is copied into memory that is used again and again: the client of the upstream has its own back at once,
//! and each turn of a blocking thread takes all that has come during the one before.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;

use super::blocking;
use super::fill::{FillError, Progress, Written};
use super::store::Store;

/// What may wait for the disk; as much is being written meanwhile. Units: bytes.
const WAITING_MAX: usize = 256 << 10;

/// Takes the bytes of a fill, in order.
pub struct Writer {
    inbox: Sender,
    task: JoinHandle<io::Result<Written>>,
    length: u64,
    size: Option<u64>,
}

/// The bytes on their way from the transfer to the disk.
#[derive(Default)]
struct Inbox {
    state: Mutex<State>,
    /// There are bytes, or no more will come.
    came: Notify,
    /// Bytes were taken out, or nobody takes any more.
    taken: Notify,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    closed: bool,
}

/// Dropped, it says that no more will come.
struct Sender(Arc<Inbox>);

/// Dropped, it says that nobody takes any more.
struct Receiver(Arc<Inbox>);

impl Inbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sender {
    /// Puts bytes behind the others, as soon as there is room. Gives whether somebody will take them.
    async fn put(&self, bytes: &[u8]) -> bool {
        loop {
            {
                let mut state = self.0.state();
                if state.closed {
                    return false;
                }
                if state.bytes.is_empty() || state.bytes.len() + bytes.len() <= WAITING_MAX {
                    state.bytes.extend_from_slice(bytes);
                    break;
                }
            }
            // Who tells between the look and this is heard all the same: there is one who waits.
            self.0.taken.notified().await;
        }
        self.0.came.notify_one();
        true
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.came.notify_one();
    }
}

impl Receiver {
    /// Takes all that has come in exchange for empty memory; none: no more will come.
    async fn take(&self, mut empty: Vec<u8>) -> Option<Vec<u8>> {
        loop {
            {
                let mut state = self.0.state();
                if !state.bytes.is_empty() {
                    std::mem::swap(&mut state.bytes, &mut empty);
                    break;
                }
                if state.closed {
                    return None;
                }
            }
            self.0.came.notified().await;
        }
        self.0.taken.notify_one();
        Some(empty)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.taken.notify_one();
    }
}

impl Writer {
    pub(super) fn start(
        store: Arc<Store>,
        written: Written,
        size: Option<u64>,
        progress: watch::Sender<Progress>,
        writing: Arc<Semaphore>,
    ) -> Self {
        let inbox = Arc::new(Inbox::default());
        let length = written.length;
        let task = tokio::spawn(write_all(store, written, Receiver(inbox.clone()), progress, writing));
        Self { inbox: Sender(inbox), task, length, size }
    }

    /// Bytes taken so far: where a broken transfer goes on. Units: bytes.
    pub fn written(&self) -> u64 {
        self.length
    }

    /// Of the whole content, where that is known. Units: bytes.
    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// Takes the next bytes; waits while the disk is behind.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), FillError> {
        if self.inbox.put(&chunk).await {
            self.length += chunk.len() as u64;
            return Ok(());
        }
        // The writing task has ended: only a fault of the disk ends it early.
        let fault = (&mut self.task).await.map_err(io::Error::other)?.err();
        Err(FillError::Disk(fault.unwrap_or_else(|| io::Error::other("the writing task ended early"))))
    }

    /// Ends it, and lets go of what was written.
    pub async fn discard(self) {
        let Ok(written) = self.end().await else { return };
        let _ = tokio::task::spawn_blocking(move || drop(written)).await;
    }

    pub(super) async fn end(self) -> io::Result<Written> {
        drop(self.inbox);
        self.task.await.map_err(io::Error::other)?
    }
}

/// Hashes, writes and publishes bytes until their sender is gone.
async fn write_all(
    store: Arc<Store>,
    mut written: Written,
    inbox: Receiver,
    progress: watch::Sender<Progress>,
    writing: Arc<Semaphore>,
) -> io::Result<Written> {
    let mut batch = Vec::new();
    while let Some(mut taken) = inbox.take(std::mem::take(&mut batch)).await {
        let place = writing.acquire().await.expect("never closed");
        let store = store.clone();
        (written, batch) = blocking(move || {
            written.hasher.update(&taken);
            store.write_at(&mut written.staged, &taken, written.length)?;
            written.length += taken.len() as u64;
            taken.clear();
            Ok((written, taken))
        })
        .await?;
        drop(place);
        // One byte short of what there is, until the digest is known.
        progress.send_modify(|progress| progress.available = written.length.saturating_sub(1));
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_come_out_as_they_went_in_and_wait_within_a_bound() {
        let inbox = Arc::new(Inbox::default());
        let (sender, receiver) = (Sender(inbox.clone()), Receiver(inbox.clone()));
        let sends = tokio::spawn(async move {
            for at in 0..1000_u32 {
                assert!(sender.put(&vec![at.to_le_bytes()[0]; 10_000]).await);
                assert!(inbox.state().bytes.len() <= WAITING_MAX);
            }
        });
        let (mut got, mut memory) = (Vec::new(), Vec::new());
        while let Some(mut taken) = receiver.take(std::mem::take(&mut memory)).await {
            got.append(&mut taken);
            memory = taken;
        }
        sends.await.expect("no panic");
        assert!(
            (0..1000_u32).all(|at| got[at as usize * 10_000..][..10_000].iter().all(|b| *b == at.to_le_bytes()[0]))
        );
        assert_eq!(got.len(), 10_000_000);
    }

    #[tokio::test]
    async fn who_puts_is_told_that_nobody_takes() {
        let inbox = Arc::new(Inbox::default());
        let (sender, receiver) = (Sender(inbox.clone()), Receiver(inbox));
        assert!(sender.put(&vec![0; WAITING_MAX]).await);
        let waits = tokio::spawn(async move { sender.put(b"more").await });
        tokio::task::yield_now().await;
        drop(receiver);
        assert!(!waits.await.expect("no panic"));
    }
}
