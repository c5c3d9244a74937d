//! Bytes that go from a file to a socket without passing through here: what stands for them in a body, and the queue by
//! which the connection finds their file.
//!
//! hyper never copies a `Buf` that it writes vectored: it hands its slices to the connection's stream, and tells it how
//! many bytes were taken. A piece of a file shows slices of memory in which nothing stands; the stream knows them by
//! their address, and sends the file in their place. Were they ever taken for content, nothing more would be written.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};

/// Largest piece of a file. Units: bytes.
pub const FILE_PIECE_MAX: usize = 1 << 20;

/// What a piece of a file shows in place of its bytes. Nobody reads it, so that it takes no memory.
static BLANK: LazyLock<Box<[u8]>> = LazyLock::new(|| vec![0; FILE_PIECE_MAX].into());

/// A piece of a body.
#[derive(Debug)]
pub enum Piece {
    /// Bytes in memory.
    Bytes(Bytes),
    /// Bytes of a file, which the connection sends by itself.
    File(FilePiece),
}

/// Bytes of a file on their way to a connection. Dropped before all of them were sent, it ends the connection.
#[derive(Debug)]
pub struct FilePiece {
    outlet: Arc<Outlet>,
    left: usize,
}

/// The way of files to one connection, in the order in which they are sent.
#[derive(Debug, Default)]
pub struct Outlet(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    due: VecDeque<Due>,
    /// What the connection has sent of files, beyond what was taken note of.
    sent: usize,
    /// What stands for a file was taken for content, or is missing: nothing more may be written.
    broken: bool,
}

/// A part of a file that is to be sent.
#[derive(Debug)]
pub struct Due {
    /// The file.
    pub file: Arc<File>,
    /// From here. Units: bytes.
    pub at: u64,
    /// To before this byte. Units: bytes.
    pub end: u64,
}

impl Outlet {
    /// A piece of a file from `start` to before `end`, or less of it. Whoever has it sent gives it to the connection at
    /// once, behind all earlier ones.
    pub fn piece(self: &Arc<Self>, file: &Arc<File>, start: u64, end: u64) -> Piece {
        let left = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX).min(FILE_PIECE_MAX);
        self.queue().due.push_back(Due { file: file.clone(), at: start, end: start + left as u64 });
        Piece::File(FilePiece { outlet: self.clone(), left })
    }

    /// Whether a slice stands for bytes of a file.
    pub fn stands_for_file(slice: &[u8]) -> bool {
        BLANK.as_ptr_range().contains(&slice.as_ptr())
    }

    /// The next part that is to be sent.
    pub fn next_due(&self) -> Option<Due> {
        self.queue().due.pop_front()
    }

    /// Takes note of bytes of a file that were sent.
    pub fn sent(&self, bytes: usize) {
        self.queue().sent += bytes;
    }

    /// Whether nothing more may be written.
    pub fn is_broken(&self) -> bool {
        self.queue().broken
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buf for FilePiece {
    fn remaining(&self) -> usize {
        self.left
    }

    fn chunk(&self) -> &[u8] {
        &BLANK[..self.left]
    }

    fn advance(&mut self, bytes: usize) {
        assert!(bytes <= self.left, "not more than there is");
        self.left -= bytes;
        let mut queue = self.outlet.queue();
        match queue.sent.checked_sub(bytes) {
            Some(rest) => queue.sent = rest,
            None => queue.broken = true,
        }
    }
}

impl Drop for FilePiece {
    fn drop(&mut self) {
        if self.left > 0 {
            self.outlet.queue().broken = true;
        }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.remaining(),
            Self::File(file) => file.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes.chunk(),
            Self::File(file) => file.chunk(),
        }
    }

    fn advance(&mut self, bytes: usize) {
        match self {
            Self::Bytes(content) => content.advance(bytes),
            Self::File(file) => file.advance(bytes),
        }
    }
}

impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(length: u64) -> (Arc<Outlet>, Piece) {
        let outlet = Arc::new(Outlet::default());
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        let piece = outlet.piece(&file, 3, 3 + length);
        (outlet, piece)
    }

    #[test]
    fn what_was_sent_may_be_taken() {
        let (outlet, mut piece) = piece(10);
        assert!(Outlet::stands_for_file(piece.chunk()) && piece.remaining() == 10);
        let due = outlet.next_due().expect("a part");
        assert_eq!((due.at, due.end), (3, 13));
        for sent in [7, 3] {
            outlet.sent(sent);
            piece.advance(sent);
        }
        drop(piece);
        assert!(!outlet.is_broken() && outlet.next_due().is_none());
    }

    #[test]
    fn i3_what_stands_for_a_file_is_never_content() {
        let (outlet, mut taken) = piece(10);
        outlet.sent(4);
        let _ = taken.copy_to_bytes(5);
        assert!(outlet.is_broken());
        let (outlet, left) = piece(10);
        drop(left);
        assert!(outlet.is_broken());
        assert!(!Outlet::stands_for_file(b"content") && !Outlet::stands_for_file(&[]));
    }

    #[test]
    fn a_piece_is_bounded() {
        let (outlet, piece) = piece(u64::MAX - 3);
        assert_eq!(piece.remaining(), FILE_PIECE_MAX);
        assert_eq!(outlet.next_due().map(|due| due.end), Some(3 + FILE_PIECE_MAX as u64));
    }
}
