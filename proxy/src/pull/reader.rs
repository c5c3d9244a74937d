//! A client's way through a blob that is being filled: along the growing file; beside it, where the client is far ahead
//! of it; past the cache, where the disk takes no more.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::try_unfold;
use tokio::sync::OwnedSemaphorePermit;

use super::attempts::{Wanted, fetch_once};
use super::past::Past;
use super::routed::Routed;
use crate::body::{Chunks, Piece, Pieces, Short};
use crate::cache::{FillEnd, Head, Lost, Reading};
use crate::oci::{Candidate, Digest, Method};
use crate::upstream::Received;

/// Bounds of the time that a reader waits for a fill to come to where it is: as long as the upstream took to answer.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(2));

pub(super) struct Reader {
    routed: Arc<Routed>,
    digest: Digest,
    head: Head,
    reading: Reading,
    end: Option<u64>,
    beside: Beside,
    past: Option<Chunks>,
}

/// Whether bytes come from the upstream beside the fill.
enum Beside {
    /// It has not been looked whether that is needed.
    Unknown,
    /// They do, by one of the few transfers that a fill may have beside it.
    Side { stream: Received, _permit: OwnedSemaphorePermit },
    /// They do not, and will not.
    Never,
}

impl Reader {
    pub fn new(routed: Arc<Routed>, digest: Digest, head: Head, reading: Reading, end: Option<u64>) -> Self {
        Self { routed, digest, head, reading, end, beside: Beside::Unknown, past: None }
    }

    pub fn pieces(self) -> Pieces {
        Box::pin(try_unfold(self, |mut reader| async move {
            Ok(Box::pin(reader.next()).await?.map(|piece| (piece, reader)))
        }))
    }

    async fn next(&mut self) -> Result<Option<Piece>, Short> {
        if let Some(past) = &mut self.past {
            return Ok(past.next().await.transpose()?.map(Piece::from));
        }
        if matches!(self.beside, Beside::Unknown) {
            self.beside = self.look_ahead().await;
        }
        if let Some(chunk) = self.take_beside().await {
            return Ok(Some(chunk.into()));
        }
        match self.reading.next().await {
            Err(Lost::Ended(FillEnd::Disk)) => {
                let past = Past::go_on(&self.routed, self.digest, &mut self.reading, self.head.size, self.end)?;
                Ok(self.past.insert(past).next().await.transpose()?.map(Piece::from))
            }
            other => Ok(other?),
        }
    }

    /// A reader that is ahead of the fill gives it as long as its upstream took to answer, and then asks itself: so its
    /// first byte comes within twice the time that the upstream needs.
    async fn look_ahead(&mut self) -> Beside {
        let patience = self.head.took.clamp(PATIENCE.0, PATIENCE.1);
        if self.limit().is_none_or(|limit| self.reading.at() >= limit)
            || self.reading.is_there()
            || self.reading.at() == 0
            || tokio::time::timeout(patience, self.reading.arrival()).await.is_ok()
        {
            return Beside::Never;
        }
        tokio::select! {
            biased;
            () = self.reading.arrival() => Beside::Never,
            side = open_side(&self.routed, self.digest, &self.head, &self.reading, self.end) => side,
        }
    }

    /// To before which byte the upstream may be believed: never the last one of the blob, which waits for the digest.
    fn limit(&self) -> Option<u64> {
        let size = self.head.size?;
        Some(self.end.unwrap_or(size).min(size.saturating_sub(1)))
    }

    /// The next bytes from beside the fill, until it has caught up.
    async fn take_beside(&mut self) -> Option<Bytes> {
        let limit = self.limit()?;
        let at = self.reading.at();
        let chunk = match &mut self.beside {
            Beside::Side { stream, .. } if at < limit && !self.reading.is_there() => tokio::select! {
                biased;
                () = self.reading.arrival() => None,
                chunk = stream.next() => chunk,
            },
            _ => None,
        };
        // What broke beside the fill comes with it.
        let Some(Ok(mut chunk)) = chunk else {
            self.beside = Beside::Never;
            return None;
        };
        chunk.truncate(usize::try_from(limit - at).unwrap_or(usize::MAX));
        self.reading.skip_to(at + chunk.len() as u64);
        Some(chunk)
    }
}

/// Asks the upstream of the fill, where it is one of our own candidates, for what this reader is to have.
async fn open_side(routed: &Arc<Routed>, digest: Digest, head: &Head, reading: &Reading, end: Option<u64>) -> Beside {
    let permit = reading.side().await;
    let own = |candidate: &&Candidate| candidate.place == head.place;
    let Some(candidate) = routed.candidates().iter().find(own).or(routed.candidates().first()) else {
        return Beside::Never;
    };
    let (resource, at) = (format!("blobs/{digest}"), reading.at());
    let wanted = Wanted { from: at, until: end, ..Wanted::whole(Method::Get, &resource, "*/*") };
    // A client's body is asked for outside of what was done for its head.
    match routed.scope().within(fetch_once(routed, candidate.clone(), wanted)).await.result {
        Ok(answer) if answer.part() == Some((at, head.size)) => {
            routed.core().metrics.side_ranges.inc();
            Beside::Side { stream: answer.stream(), _permit: permit }
        }
        // It knows no ranges, or has another blob: the fill brings the right one in time.
        _ => Beside::Never,
    }
}
