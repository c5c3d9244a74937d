//! A file read chunk by chunk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream::try_unfold;

use super::blocking;
use crate::body::{Chunks, Short};

/// How much a reader takes at a time, at most and at least. Units: bytes.
const READ: (u64, u64) = (128 << 10, 16 << 10);
/// What all readers together take at a time: many take less each, since each holds what its client has not taken yet.
/// Units: bytes.
const ALL_READS: u64 = 8 << 20;
/// Readers of this process.
static READERS: AtomicU64 = AtomicU64::new(0);

/// Reads a file that is whole, from `start` to before `end`.
pub(super) fn read_file(file: Arc<File>, start: u64, end: u64) -> Chunks {
    Box::pin(try_unfold((Chunker::new(file), start), move |(mut chunker, at)| async move {
        if at >= end {
            return Ok(None);
        }
        let chunk = chunker.read(at, end).await?;
        let next = at + chunk.len() as u64;
        Ok(Some((chunk, (chunker, next))))
    }))
}

/// Reads a file chunk by chunk, into the same memory as soon as the chunk before has been sent.
pub(super) struct Chunker {
    pub file: Arc<File>,
    last: Bytes,
}

impl Chunker {
    pub fn new(file: Arc<File>) -> Self {
        READERS.fetch_add(1, Ordering::Relaxed);
        Self { file, last: Bytes::new() }
    }

    /// The bytes from `start` on, at most up to `end`, and at least one.
    pub async fn read(&mut self, start: u64, end: u64) -> Result<Bytes, Short> {
        let most = (ALL_READS / READERS.load(Ordering::Relaxed).max(1)).clamp(READ.1, READ.0);
        let (length, most) = ((end - start).min(most), usize::try_from(most).expect("at most READ"));
        let length = usize::try_from(length).expect("at most READ");
        let mut buffer = std::mem::take(&mut self.last).try_into_mut().map(Vec::from).unwrap_or_default();
        if buffer.len() > 2 * most {
            buffer = Vec::new();
        }
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

impl Drop for Chunker {
    fn drop(&mut self) {
        READERS.fetch_sub(1, Ordering::Relaxed);
    }
}
