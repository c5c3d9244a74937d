//! A file read chunk by chunk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};
use futures_util::stream::try_unfold;

use super::blocking;
use super::fingerprint::Fingerprint;
use crate::body::{Outlet, Piece, Pieces, Short};

/// How much a reader takes at a time, at most and at least. Units: bytes.
const READ: (u64, u64) = (128 << 10, 16 << 10);
/// What all readers together take at a time: many take less each, since each holds what its client has not taken yet.
/// Units: bytes.
const ALL_READS: u64 = 8 << 20;
/// Length of the memory for one, and how many of them are kept for the next who reads.
const BUFFER: usize = 128 << 10;
const KEPT_MAX: usize = 16;
/// Readers of this process that have read into memory.
static READERS: AtomicU64 = AtomicU64::new(0);

/// Reads a file that is whole, from `start` to before `end`. Where it is not any more what it was when it was verified,
/// it ends short of the last bytes: these are read here, when all before them were taken.
pub(super) fn read_file(chunker: Chunker, verified: Fingerprint, start: u64, end: u64) -> Pieces {
    Box::pin(try_unfold((chunker, start), move |(mut chunker, at)| async move {
        if at >= end {
            return Ok(None);
        }
        let until = chunker.before_last(at, end);
        let piece = if until > at { chunker.next(at, until).await? } else { chunker.read(at, end).await?.into() };
        let next = at + piece.remaining() as u64;
        // Its ctime changes also when it is dropped or replaced, which harms nobody who reads it.
        let unchanged = || {
            Fingerprint::of(&chunker.file)
                .is_ok_and(|now| (now.mtime_ns, now.size) == (verified.mtime_ns, verified.size))
        };
        if next < end || unchanged() {
            Ok(Some((piece, (chunker, next))))
        } else {
            Err(Short("the cached file was changed".to_owned()))
        }
    }))
}

/// Takes a file piece by piece: into memory, or, where the connection sends files by itself, not. What is as small as
/// one chunk is read in any case: two calls of the system are less than three.
pub(super) struct Chunker {
    pub file: Arc<File>,
    outlet: Option<Arc<Outlet>>,
    counted: bool,
}

impl Chunker {
    pub fn new(file: Arc<File>, outlet: Option<Arc<Outlet>>) -> Self {
        Self { file, outlet, counted: false }
    }

    /// The piece from `start` on, at most up to `end`, and at least one byte.
    pub async fn next(&mut self, start: u64, end: u64) -> Result<Piece, Short> {
        match &self.outlet {
            Some(outlet) if end - start > READ.1 => Ok(outlet.piece(&self.file, start, end)),
            _ => self.read(start, end).await.map(Piece::from),
        }
    }

    /// Up to where the rest from `at` to `end` need not be read here, if some of it must be.
    fn before_last(&self, at: u64, end: u64) -> u64 {
        match &self.outlet {
            Some(_) if end - at > READ.0 => end - READ.1,
            _ => at,
        }
    }

    /// The bytes from `start` on, at most up to `end`, and at least one.
    pub async fn read(&mut self, start: u64, end: u64) -> Result<Bytes, Short> {
        if !std::mem::replace(&mut self.counted, true) {
            READERS.fetch_add(1, Ordering::Relaxed);
        }
        let most = (ALL_READS / READERS.load(Ordering::Relaxed).max(1)).clamp(READ.1, READ.0);
        let length = usize::try_from((end - start).min(most)).expect("at most READ");
        let mut buffer = if most == READ.0 { Buffer::kept() } else { Buffer(vec![0; length]) };
        // What the system has in memory, as it has nearly all that was just written, takes no thread of its own.
        let at_once = rustix::io::preadv2(
            &*self.file,
            &mut [io::IoSliceMut::new(&mut buffer.0[..length])],
            start,
            rustix::io::ReadWriteFlags::NOWAIT,
        );
        let read = if let Ok(read @ 1..) = at_once {
            read
        } else {
            // Not in memory, or a file system that cannot tell; a real fault shows again.
            let file = self.file.clone();
            let from_disk = blocking(move || match file.read_at(&mut buffer.0[..length], start)? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                read => Ok((buffer, read)),
            });
            let read;
            (buffer, read) = from_disk.await.map_err(|err| Short(format!("the cached file cannot be read: {err}")))?;
            read
        };
        Ok(Bytes::from_owner(buffer).slice(..read))
    }
}

impl Drop for Chunker {
    fn drop(&mut self) {
        if self.counted {
            READERS.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Memory for one chunk. Once the chunk is sent, the next one is read into it.
struct Buffer(Vec<u8>);

/// Those that nobody uses now, all of them as long as the largest chunk.
static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

impl Buffer {
    fn kept() -> Self {
        let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self(kept.unwrap_or_else(|| vec![0; BUFFER]))
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.0.len() == BUFFER {
            let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < KEPT_MAX {
                kept.push(std::mem::take(&mut self.0));
            }
        }
    }
}
