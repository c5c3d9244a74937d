//! A reader of a fill: it follows the growing file, never a queue, so that nobody waits for a slow one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use futures_util::stream::try_unfold;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::chunk::Chunker;
use super::fill::{FillEnd, Head, Progress, State};
use crate::body::{Outlet, Piece, Pieces, Short};
use crate::oci::Digest;

/// A blob up to this size is small: configurations, signatures, and pages of error. Units: bytes.
const SMALL: u64 = 128 << 10;
/// How long a small blob is waited for.
const SMALL_WAIT: Duration = Duration::from_secs(5);

/// Somebody who waits for a fill, or reads it.
#[derive(Clone)]
pub struct Follower {
    progress: watch::Receiver<Progress>,
    sides: Arc<Semaphore>,
    digest: Digest,
    _present: Present,
}

/// One of those who are counted: without any, a fill may be ended.
struct Present(Arc<watch::Sender<usize>>);

impl Present {
    fn new(readers: &Arc<watch::Sender<usize>>) -> Self {
        readers.send_modify(|readers| *readers += 1);
        Self(readers.clone())
    }
}

impl Clone for Present {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.send_modify(|readers| *readers -= 1);
    }
}

impl Follower {
    pub(super) fn new(
        progress: watch::Receiver<Progress>,
        readers: &Arc<watch::Sender<usize>>,
        sides: Arc<Semaphore>,
        digest: Digest,
    ) -> Self {
        Self { progress, sides, digest, _present: Present::new(readers) }
    }

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

    /// A reader from `start` to before `end` (none: to the end), by way of `outlet` where there is one.
    pub fn reading(self, start: u64, end: Option<u64>, outlet: Option<Arc<Outlet>>) -> Reading {
        Reading { follower: self, outlet, chunker: None, taken: false, at: start, end }
    }

    /// Reads from `start` to before `end` (none: to the end), as the bytes come.
    pub fn read(self, start: u64, end: Option<u64>) -> Pieces {
        let reading = self.reading(start, end, None);
        Box::pin(try_unfold(reading, |mut reading| async move {
            Ok(reading.next().await.map_err(Short::from)?.map(|piece| (piece, reading)))
        }))
    }
}

/// A reader on its way through a growing file.
pub struct Reading {
    follower: Follower,
    outlet: Option<Arc<Outlet>>,
    /// Reads the file that it began with.
    chunker: Option<Chunker>,
    /// Whether bytes of that file are out.
    taken: bool,
    at: u64,
    end: Option<u64>,
}

/// Why a reader gets no more.
#[derive(Debug)]
pub enum Lost {
    /// The fill has ended; what it had brought was read.
    Ended(FillEnd),
    /// What was read is wrong, or cannot be read.
    Short(Short),
}

impl From<Lost> for Short {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Short(short) => short,
            Lost::Ended(FillEnd::Exhausted(_)) => Self("every upstream failed".to_owned()),
            Lost::Ended(FillEnd::Abandoned) => Self("the transfer was ended".to_owned()),
            Lost::Ended(FillEnd::Disk) => Self("the cache takes no more".to_owned()),
        }
    }
}

impl Reading {
    /// Where it is. Units: bytes.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Goes on from another byte: what lies between came from elsewhere.
    pub fn skip_to(&mut self, at: u64) {
        self.at = at;
    }

    /// The file that it reads, or would.
    pub fn file(&mut self) -> Option<Arc<std::fs::File>> {
        let current = self.follower.progress.borrow().file.clone();
        self.chunker.as_ref().map(|chunker| chunker.file.clone()).or(current)
    }

    /// Waits for leave to bring bytes from far ahead of this fill beside it.
    pub async fn side(&self) -> OwnedSemaphorePermit {
        self.follower.sides.clone().acquire_owned().await.expect("never closed")
    }

    /// Whether a byte can be read at once, or never.
    pub fn is_there(&self) -> bool {
        let progress = self.follower.progress.borrow();
        self.at < progress.available || !matches!(progress.state, State::Running)
    }

    /// Waits until the fill has come to where this reader is, or has ended.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost.
    pub fn arrival(&self) -> impl Future<Output = ()> + Send + use<> {
        let (mut progress, at) = (self.follower.progress.clone(), self.at);
        async move {
            let there = |progress: &Progress| at < progress.available || !matches!(progress.state, State::Running);
            let _ = progress.wait_for(there).await;
        }
    }

    /// The next bytes; none at the end.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost.
    pub async fn next(&mut self) -> Result<Option<Piece>, Lost> {
        let short = |reason: &str| Err(Lost::Short(Short(format!("{}: {reason}", self.follower.digest))));
        loop {
            let (available, state) = {
                let progress = self.follower.progress.borrow_and_update();
                match (&self.chunker, &progress.file) {
                    (Some(mine), Some(file)) if !Arc::ptr_eq(&mine.file, file) => {
                        if self.taken {
                            return short("the first source sent wrong bytes");
                        }
                        self.chunker = Some(Chunker::new(file.clone(), self.outlet.clone()));
                    }
                    (None, Some(file)) => self.chunker = Some(Chunker::new(file.clone(), self.outlet.clone())),
                    _ => {}
                }
                (progress.available, progress.state.clone())
            };
            let until = self.end.map_or(available, |end| end.min(available));
            if let Some(chunker) = self.chunker.as_mut().filter(|_| self.at < until) {
                let piece = chunker.next(self.at, until).await.map_err(Lost::Short)?;
                self.taken = true;
                self.at += piece.remaining() as u64;
                return Ok(Some(piece));
            }
            if self.end.is_some_and(|end| self.at >= end) {
                return Ok(None);
            }
            match state {
                State::Done if self.end.is_none() => return Ok(None),
                State::Done => return short("it is shorter than its length"),
                State::Ended(end) => return Err(Lost::Ended(end)),
                State::Running => {}
            }
            if self.follower.progress.changed().await.is_err() {
                return Err(Lost::Ended(FillEnd::Abandoned));
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use futures_util::StreamExt;

    use super::*;

    pub(in crate::cache) async fn collect(pieces: Pieces) -> (Vec<u8>, bool) {
        let pieces: Vec<_> = pieces.collect().await;
        let whole = pieces.iter().all(Result::is_ok);
        (pieces.into_iter().flatten().flat_map(|piece| piece.chunk().to_vec()).collect(), whole)
    }
}
