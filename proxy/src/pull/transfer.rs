//! The task that brings a blob into the cache. It outlives the client that caused it, as long as it is worth it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::Live;
use super::attempts::{After, Attempts, Ending, Wanted};
use super::blob::{Told, media_type};
use super::changes::Of;
use super::error::Error;
use super::past::Begun;
use super::routed::Routed;
use crate::cache::{FillEnd, FillError, Head, Leader, Writer};
use crate::metrics::{BrokenBody, Outcome};
use crate::oci::{Candidate, Failure, Method};
use crate::trace;
use crate::upstream;

/// A blob up to this size is always brought to its end. Units: bytes.
const SMALL: u64 = 64 << 20;

impl Routed {
    /// Brings a blob: from the first candidate that has it, and where that one breaks, from the next, from the byte
    /// where it broke. Goes on when its clients have gone, where that is worth it.
    pub(super) async fn lead(self: &Arc<Self>, leader: Leader, tell: oneshot::Sender<Told>) {
        let digest = leader.digest();
        let resource = format!("blobs/{digest}");
        let mut attempts = Attempts::of_blob(self);
        let mut next = attempts.first();
        let mut ending = Ending::Exhausted;
        let mut transfer = Transfer::new(&leader, Orphan::new(self, leader.readers()), &self.core().stopping);
        while let Some(candidate) = next.take() {
            let from = transfer.written();
            let wanted = Wanted { from, ..Wanted::whole(Method::Get, &resource, "*/*") };
            let stopping = &self.core().stopping;
            let before = self.core().changes.now();
            let Some(tried) = stopping.run_until_cancelled(attempts.fetch(candidate, wanted)).await else { return };
            let (candidate, started) = (tried.candidate, tried.started);
            let (failure, retry_after) = match tried.result {
                Err(refused) => (refused.failure, refused.retry_after),
                Ok(answer) => match transfer.take(&candidate, answer, started.elapsed()).await {
                    Ok(size) => {
                        // What was removed while it came is not to be had from here.
                        if self.core().changes.since(before, &candidate.place, Of::Digest(digest)) {
                            self.core().cache.forget_digest(&candidate.place, digest).await;
                        }
                        self.count("ok");
                        tracing::debug!(%digest, size_bytes = size, place = %candidate.place, "blob cached");
                        return;
                    }
                    Err(Broken::Upstream(failure)) => {
                        let labels = BrokenBody {
                            registry: self.live().config.label(&candidate.place.registry).to_owned(),
                            failure: failure.kind(),
                        };
                        self.core().metrics.broken_bodies.get_or_create(&labels).inc();
                        (failure, None)
                    }
                    Err(Broken::Stopped) => return,
                    Err(Broken::Orphaned) => {
                        let (written, size) = (transfer.written(), transfer.size());
                        match transfer.writer.take() {
                            Some(writer) => leader.keep(writer).await,
                            None => leader.end(FillEnd::Abandoned),
                        }
                        self.count("orphaned");
                        tracing::info!(%digest, written_bytes = written, size_bytes = size, "a transfer that nobody waits for is ended; what has come is kept for the next one");
                        return;
                    }
                    Err(Broken::Cache(err, answer)) => {
                        self.core().cache.report(&err);
                        self.count("failed");
                        drop(transfer);
                        leader.end(FillEnd::Disk);
                        if let Some(answer) = answer {
                            let begun = Begun { candidate, started, answer: *answer };
                            let _ = tell.send(self.past_the_cache(digest, Some(begun)).await);
                        }
                        return;
                    }
                },
            };
            if from > 0 && matches!(failure, Failure::Status(416)) {
                // What was brought is longer than the blob is there: one of both is wrong.
                transfer.begin_again().await;
            }
            let brought = transfer.brought();
            let mixed = failure == Failure::DigestMismatch && from > 0;
            let last = (candidate.clone(), attempts.is_last());
            let after = attempts.after((candidate, started), failure, brought, retry_after);
            let Some(after) = stopping.run_until_cancelled(after).await else { return };
            match after {
                After::Try(candidate) => next = Some(candidate),
                // The wrong bytes may be those of another: the last one is asked for the whole.
                After::End(Ending::Exhausted) if mixed && last.1 => next = Some(last.0),
                After::End(end) => ending = end,
            }
        }
        drop(transfer);
        self.count("failed");
        let end = match &ending {
            Ending::Exhausted => {
                let failed = attempts.failed();
                // Who would ask with other credentials than the leader's does not take it for an answer.
                let _ = tell.send(Err(Error::of_attempts(self.pull(), &failed, None)));
                FillEnd::Exhausted(failed.into())
            }
            Ending::Stale | Ending::Stop | Ending::Denied(_) => {
                let _ = tell.send(Err(self.ended(ending, &attempts.failed())));
                FillEnd::Abandoned
            }
        };
        leader.end(end);
    }

    fn count(&self, outcome: &'static str) {
        trace::scope().word("tidegate.outcome", outcome);
        self.core().metrics.fills.get_or_create(&Outcome { outcome }).inc();
    }
}

/// The bytes of a blob on their way into the cache.
struct Transfer<'a> {
    leader: &'a Leader,
    writer: Option<Writer>,
    head: Option<Head>,
    /// What the last source brought. Units: bytes.
    brought: u64,
    orphan: Orphan,
    stopping: &'a CancellationToken,
}

/// What broke a transfer.
enum Broken {
    /// The upstream.
    Upstream(Failure),
    /// The program ends.
    Stopped,
    /// Nobody waits for it any more.
    Orphaned,
    /// The cache; where no byte was taken yet, the answer is whole and can be handed on.
    Cache(std::io::Error, Option<Box<upstream::Answer>>),
}

impl<'a> Transfer<'a> {
    fn new(leader: &'a Leader, orphan: Orphan, stopping: &'a CancellationToken) -> Self {
        Self { leader, writer: None, head: None, brought: 0, orphan, stopping }
    }

    /// Where it goes on. Units: bytes.
    fn written(&self) -> u64 {
        self.writer.as_ref().map_or_else(|| self.leader.kept(), Writer::written)
    }

    fn brought(&self) -> u64 {
        self.brought
    }

    fn size(&self) -> Option<u64> {
        self.head.as_ref()?.size
    }

    async fn begin_again(&mut self) {
        if let Some(writer) = self.writer.take() {
            // What it still writes must not be told as part of what comes next.
            writer.discard().await;
        }
        self.leader.forget_kept();
    }

    /// Takes all that an answer brings, and finishes the fill when it was the last. Gives the size.
    async fn take(&mut self, candidate: &Candidate, answer: upstream::Answer, took: Duration) -> Result<u64, Broken> {
        self.brought = 0;
        let from = self.written();
        let (mut skip, size) = resumes_at(&answer, from).map_err(Broken::Upstream)?;
        if self.writer.is_none() {
            let head = Head {
                place: candidate.place.clone(),
                size,
                media_type: media_type(&answer),
                took,
                span: trace::scope().link(),
            };
            self.head = Some(head.clone());
            match self.leader.start(head, from).await {
                Ok(writer) => self.writer = Some(writer),
                Err(FillError::Disk(err)) if from == 0 => return Err(Broken::Cache(err, Some(Box::new(answer)))),
                Err(FillError::Disk(_)) => return Err(Broken::Upstream(Failure::Truncated)),
                Err(FillError::Mismatch) => return Err(Broken::Upstream(Failure::DigestMismatch)),
            }
        }
        let size = self.size();
        let Some(writer) = &mut self.writer else { return Err(Broken::Upstream(Failure::Truncated)) };
        let mut stream = answer.stream();
        loop {
            let next = tokio::select! {
                biased;
                next = stream.next() => next,
                () = self.stopping.cancelled() => return Err(Broken::Stopped),
                () = self.orphan.given_up(writer.written(), size) => {
                    if self.leader.leave() {
                        return Err(Broken::Orphaned);
                    }
                    continue;
                }
            };
            let Some(chunk) = next else { break };
            let mut chunk = chunk.map_err(Broken::Upstream)?;
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let chunk = chunk.split_off(usize::try_from(skipped).expect("not more than a chunk"));
            if size.is_some_and(|size| writer.written() + chunk.len() as u64 > size) {
                return Err(Broken::Upstream(Failure::Other("the content is longer than it was".to_owned())));
            }
            if !chunk.is_empty() {
                self.brought += chunk.len() as u64;
                writer.write(chunk).await.map_err(disk)?;
            }
        }
        let written = writer.written();
        if size.is_some_and(|size| written < size) {
            return Err(Broken::Upstream(Failure::Truncated));
        }
        let Some(writer) = self.writer.take() else { return Err(Broken::Upstream(Failure::Truncated)) };
        let media_type = self.head.as_ref().map(|head| head.media_type.clone()).unwrap_or_default();
        self.leader.finish(writer, &candidate.place, media_type).await.map_err(disk)
    }
}

fn disk(err: FillError) -> Broken {
    match err {
        FillError::Disk(err) => Broken::Cache(err, None),
        FillError::Mismatch => Broken::Upstream(Failure::DigestMismatch),
    }
}

/// How many bytes of an answer were had before (a server that ignores Range sends all again), and the length of the
/// whole content.
pub(super) fn resumes_at(answer: &upstream::Answer, from: u64) -> Result<(u64, Option<u64>), Failure> {
    if answer.status != hyper::StatusCode::PARTIAL_CONTENT {
        return Ok((from, answer.length()));
    }
    match answer.part() {
        Some((start, total)) if start == from => Ok((0, total)),
        _ => Err(Failure::Other("an answer for another range than was asked for".to_owned())),
    }
}

/// What is to become of a transfer that nobody waits for: it goes on for a while, and to its end where that is near or
/// the blob is small. Few such transfers go on at once.
struct Orphan {
    live: Arc<Live>,
    others: Arc<AtomicUsize>,
    readers: watch::Receiver<usize>,
    since: Option<Instant>,
    place: Option<Place>,
}

/// One of the few transfers that go on though nobody waits for them.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(others: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let counted =
            others.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < most).then_some(count + 1));
        counted.ok().map(|_| Self(others.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Orphan {
    fn new(routed: &Routed, readers: watch::Receiver<usize>) -> Self {
        let others = routed.core().orphans.clone();
        Self { live: routed.shared_live(), others, readers, since: None, place: None }
    }

    /// Waits until a transfer that has brought `done` bytes of `size` is to be ended.
    ///
    /// # Cancel safety
    /// Safe: for how long it has been so is remembered.
    async fn given_up(&mut self, done: u64, size: Option<u64>) {
        let limits = &self.live.config.limits;
        loop {
            if *self.readers.borrow_and_update() > 0 {
                (self.since, self.place) = (None, None);
                if self.readers.wait_for(|readers| *readers == 0).await.is_err() {
                    return;
                }
            }
            let due = *self.since.get_or_insert_with(Instant::now) + limits.orphan_time;
            let wait = due.saturating_duration_since(Instant::now());
            if !wait.is_zero()
                && tokio::time::timeout(wait, self.readers.wait_for(|readers| *readers > 0)).await.is_ok()
            {
                continue;
            }
            if self.place.is_none() {
                self.place = Place::take(&self.others, limits.orphan_fills);
            }
            let worth = match size {
                Some(size) => size < SMALL || done > size / 2,
                None => done < SMALL,
            };
            if self.place.is_none() || !worth {
                return;
            }
            if self.readers.wait_for(|readers| *readers > 0).await.is_err() {
                return;
            }
        }
    }
}
