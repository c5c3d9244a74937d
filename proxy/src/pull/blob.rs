//! Blobs: from the cache, from a fill that others share, or past a cache that takes nothing.

use std::sync::Arc;

use futures_util::StreamExt;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::attempts::{After, Attempts, Ending, Wanted};
use super::error::{Cause, Error};
use super::routed::Routed;
use super::{Answer, Source};
use crate::body::{Body, Chunks, Part, Short, parse_range, verify};
use crate::cache::{FillEnd, FillError, Head, Leader, Link, Role, Writer};
use crate::metrics::Outcome;
use crate::oci::{Attempt, Candidate, Digest, Failure, Method, Place};
use crate::upstream;

/// Times that a request joins a fill which then ends by another's policy, before it gives up.
const ROLES_MAX: usize = 8;
const OCTETS: &str = "application/octet-stream";

/// What the leader of a fill gets when the fill does not bring the blob.
type Told = Result<Answer, Error>;

impl Routed {
    /// A blob.
    pub async fn blob(self: &Arc<Self>, digest: Digest) -> Result<Answer, Error> {
        if let Some(answer) = self.cached_blob(digest).await {
            return Ok(answer);
        }
        self.may_ask_upstream()?;
        if self.core().cache.size_of(digest).await.is_some() {
            // Kept, but for another repository: one of ours must be seen to hold it (I10).
            self.prove(digest).await?;
            if let Some(answer) = self.cached_blob(digest).await {
                return Ok(answer);
            }
        }
        if self.pull().method == Method::Head {
            let (link, _) = self.prove(digest).await?;
            return Ok(self.answer(digest, link.media_type, Some(link.size), Source::Upstream, |_, _| empty()));
        }
        let mut attempts: Arc<[Attempt]> = Arc::new([]);
        for _ in 0..ROLES_MAX {
            let (mut follower, told) = match self.core().cache.begin_fill(digest) {
                Role::Leader(leader, follower) => {
                    // It may have come while nobody looked.
                    if let Some(answer) = self.cached_blob(digest).await {
                        return Ok(answer);
                    }
                    let (tell, told) = oneshot::channel();
                    let leading = self.clone();
                    self.core().fills.spawn(async move { Box::pin(leading.lead(leader, tell)).await });
                    (follower, Some(told))
                }
                Role::Follower(follower) => {
                    self.core().metrics.coalesced.inc();
                    (follower, None)
                }
            };
            match (follower.head().await, told) {
                (Ok(head), leads) => {
                    if leads.is_none() && !self.is_known_to_hold(&head.place, digest).await {
                        self.prove(digest).await?;
                    }
                    return Ok(self.answer(digest, head.media_type, head.size, Source::Fill, |start, end| {
                        follower.read(start, end)
                    }));
                }
                (Err(_), Some(told)) => {
                    return told
                        .await
                        .unwrap_or_else(|_| Err(self.error(Cause::Unavailable("the transfer was ended".to_owned()))));
                }
                (Err(FillEnd::Exhausted(failed)), None) => {
                    if self.candidates().iter().all(|mine| failed.iter().any(|attempt| attempt.candidate == *mine)) {
                        return Err(Error::of_attempts(self.pull(), &failed, None));
                    }
                    attempts = failed;
                }
                (Err(FillEnd::Abandoned), None) => {}
            }
        }
        Err(Error::of_attempts(self.pull(), &attempts, None))
    }

    async fn cached_blob(&self, digest: Digest) -> Option<Answer> {
        for place in self.places() {
            if let Some(blob) = self.core().cache.blob(place, digest).await {
                let (size, media_type) = (blob.size, blob.media_type.clone());
                let read = |start, end: Option<u64>| blob.read(start, end.unwrap_or(size));
                return Some(self.answer(digest, media_type, Some(size), Source::Cache, read));
            }
        }
        None
    }

    /// Whether one of our own candidates is known to hold what is being brought from `source`.
    async fn is_known_to_hold(&self, source: &Place, digest: Digest) -> bool {
        if self.places().contains(source) {
            return true;
        }
        for place in self.places() {
            if self.core().cache.holds(place, digest).await {
                return true;
            }
        }
        false
    }

    /// Asks our candidates whether they hold a blob, without its bytes; the first that does is remembered for it.
    async fn prove(&self, digest: Digest) -> Result<(Link, Place), Error> {
        let resource = format!("blobs/{digest}");
        let wanted = Wanted { resource: &resource, query: "", method: Method::Head, accept: "*/*", from: 0 };
        let mut attempts = Attempts::new(self, false);
        let mut next = attempts.first();
        let mut ending = Ending::Exhausted;
        while let Some(candidate) = next.take() {
            let tried = attempts.fetch(candidate, wanted).await;
            let failed = match tried.result {
                Ok(answer) => match answer.length() {
                    Some(size) => {
                        let link = Link { media_type: media_type(&answer), size };
                        self.core().cache.put_link(&tried.candidate.place, digest, link.clone()).await;
                        return Ok((link, tried.candidate.place));
                    }
                    None => (Failure::Other("an answer to HEAD without a length".to_owned()), None),
                },
                Err(refused) => (refused.failure, refused.retry_after),
            };
            match attempts.after((tried.candidate, tried.started), failed.0, 0, failed.1).await {
                After::Try(candidate) => next = Some(candidate),
                After::End(end) => ending = end,
            }
        }
        Err(self.ended(ending, attempts))
    }

    /// Brings a blob: from the first candidate that has it, and where that one breaks, from the next, from the byte
    /// where it broke. Runs to its end whoever has gone meanwhile.
    async fn lead(&self, leader: Leader, tell: oneshot::Sender<Told>) {
        let digest = leader.digest();
        let resource = format!("blobs/{digest}");
        let mut attempts = Attempts::new(self, false);
        let mut next = attempts.first();
        let mut ending = Ending::Exhausted;
        let mut transfer = Transfer { leader: &leader, writer: None, media_type: OCTETS.to_owned(), size: None };
        while let Some(candidate) = next.take() {
            let from = transfer.written();
            let wanted = Wanted { resource: &resource, query: "", method: Method::Get, accept: "*/*", from };
            let stopping = &self.core().stopping;
            let Some(tried) = stopping.run_until_cancelled(attempts.fetch(candidate, wanted)).await else { return };
            let (failure, retry_after) = match tried.result {
                Err(refused) => (refused.failure, refused.retry_after),
                Ok(answer) => match transfer.take(&tried.candidate, answer, stopping).await {
                    Ok(size) => {
                        let link = Link { media_type: transfer.media_type, size };
                        self.core().cache.put_link(&tried.candidate.place, digest, link).await;
                        self.count("ok");
                        tracing::debug!(%digest, size_bytes = size, place = %tried.candidate.place, "blob cached");
                        return;
                    }
                    Err(Broken::Upstream(failure)) => (failure, None),
                    Err(Broken::Stopped) => return,
                    Err(Broken::Cache(err, rest)) => {
                        self.core().cache.report(&err);
                        self.count("failed");
                        drop(transfer);
                        leader.end(FillEnd::Abandoned);
                        if let Some(rest) = rest {
                            let _ = tell.send(self.pass(*rest, digest));
                        }
                        return;
                    }
                },
            };
            let brought = transfer.written().saturating_sub(from);
            let after = attempts.after((tried.candidate, tried.started), failure, brought, retry_after);
            let Some(after) = stopping.run_until_cancelled(after).await else { return };
            match after {
                After::Try(candidate) => next = Some(candidate),
                After::End(end) => ending = end,
            }
        }
        drop(transfer);
        self.count("failed");
        let end = match &ending {
            Ending::Exhausted => {
                let failed = attempts.failed();
                // Credentials are ours, not the leader's: what they are refused, they are refused for all.
                let _ = tell.send(Err(Error::of_attempts(self.pull(), &failed, None)));
                FillEnd::Exhausted(failed.into())
            }
            Ending::Stale | Ending::Stop | Ending::Denied(_) => {
                let _ = tell.send(Err(self.ended(ending, attempts)));
                FillEnd::Abandoned
            }
        };
        leader.end(end);
    }

    fn count(&self, outcome: &'static str) {
        self.core().metrics.fills.get_or_create(&Outcome { outcome }).inc();
    }

    /// Hands a blob on without keeping it, verified all the same.
    fn pass(&self, answer: upstream::Answer, digest: Digest) -> Told {
        let Ok(permit) = self.core().passing.clone().try_acquire_owned() else {
            return Err(self.error(Cause::Unavailable(
                "the cache takes nothing, and too many transfers go past it already".to_owned(),
            )));
        };
        let (size, media_type) = (answer.length(), media_type(&answer));
        let chunks: Chunks = Box::pin(answer.stream().map(move |chunk| {
            let _held = &permit;
            chunk.map_err(|failure| Short(failure.to_string()))
        }));
        Ok(Answer {
            status: 200,
            media_type,
            digest: Some(digest),
            length: size,
            content_range: None,
            headers: Vec::new(),
            body: Body::stream(verify(chunks, digest), size),
            source: Source::Upstream,
        })
    }

    /// The answer to a request for a blob, or a part of it. `read` gives the bytes from one offset to another.
    fn answer(
        &self,
        digest: Digest,
        media_type: String,
        size: Option<u64>,
        source: Source,
        read: impl FnOnce(u64, Option<u64>) -> Chunks,
    ) -> Answer {
        let method = self.pull().method;
        // A range is one of GET only (RFC 9110, section 14.2).
        let header = self.caller().range.as_deref().filter(|_| method == Method::Get);
        let part = match (header, size) {
            (Some(header), Some(size)) => parse_range(header, size),
            _ => Part::Whole,
        };
        let total = size.unwrap_or_default();
        let (status, length, content_range, body) = match part {
            Part::Unsatisfiable => (416, Some(0), Some(format!("bytes */{total}")), Body::empty()),
            Part::Whole if method == Method::Head => (200, size, None, Body::empty()),
            Part::Whole => (200, size, None, Body::stream(read(0, size), size)),
            Part::Range(start, end) => {
                let range = format!("bytes {start}-{}/{total}", end - 1);
                (206, Some(end - start), Some(range), Body::stream(read(start, Some(end)), Some(end - start)))
            }
        };
        Answer { status, media_type, digest: Some(digest), length, content_range, headers: Vec::new(), body, source }
    }
}

/// The bytes of a blob on their way into the cache.
struct Transfer<'a> {
    leader: &'a Leader,
    writer: Option<Writer>,
    media_type: String,
    /// As its first source told. Units: bytes.
    size: Option<u64>,
}

/// What broke a transfer.
enum Broken {
    /// The upstream.
    Upstream(Failure),
    /// The program ends.
    Stopped,
    /// The cache; where no byte was taken yet, the answer is whole and can be handed on.
    Cache(std::io::Error, Option<Box<upstream::Answer>>),
}

impl Transfer<'_> {
    fn written(&self) -> u64 {
        self.writer.as_ref().map_or(0, Writer::written)
    }

    /// Takes all that an answer brings, and finishes the fill when it was the last. Gives the size.
    async fn take(
        &mut self,
        candidate: &Candidate,
        answer: upstream::Answer,
        stopping: &CancellationToken,
    ) -> Result<u64, Broken> {
        let from = self.written();
        let mut skip = resumes_at(&answer, from).map_err(Broken::Upstream)?;
        if self.writer.is_none() {
            let head = Head { place: candidate.place.clone(), size: answer.length(), media_type: media_type(&answer) };
            self.size = head.size;
            self.media_type.clone_from(&head.media_type);
            match self.leader.start(head).await {
                Ok(writer) => self.writer = Some(writer),
                Err(FillError::Disk(err)) => return Err(Broken::Cache(err, Some(Box::new(answer)))),
                Err(FillError::Mismatch) => return Err(Broken::Upstream(Failure::DigestMismatch)),
            }
        }
        let Some(writer) = &mut self.writer else { return Err(Broken::Upstream(Failure::Truncated)) };
        let mut stream = answer.stream();
        while let Some(chunk) = stopping.run_until_cancelled(stream.next()).await.ok_or(Broken::Stopped)? {
            let mut chunk = chunk.map_err(Broken::Upstream)?;
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let chunk = chunk.split_off(usize::try_from(skipped).expect("not more than a chunk"));
            if self.size.is_some_and(|size| writer.written() + chunk.len() as u64 > size) {
                return Err(Broken::Upstream(Failure::Other("the content is longer than it was".to_owned())));
            }
            if !chunk.is_empty() {
                writer.write(chunk).await.map_err(disk)?;
            }
        }
        let written = writer.written();
        if self.size.is_some_and(|size| written < size) {
            return Err(Broken::Upstream(Failure::Truncated));
        }
        let Some(writer) = self.writer.take() else { return Err(Broken::Upstream(Failure::Truncated)) };
        match self.leader.finish(writer).await {
            Ok(()) => {}
            Err(FillError::Mismatch) => return Err(Broken::Upstream(Failure::DigestMismatch)),
            Err(err) => return Err(disk(err)),
        }
        Ok(written)
    }
}

fn disk(err: FillError) -> Broken {
    match err {
        FillError::Disk(err) => Broken::Cache(err, None),
        FillError::Mismatch => Broken::Upstream(Failure::DigestMismatch),
    }
}

/// How many bytes of an answer were had before: a server that ignores Range sends all again.
fn resumes_at(answer: &upstream::Answer, from: u64) -> Result<u64, Failure> {
    if answer.status != hyper::StatusCode::PARTIAL_CONTENT {
        return Ok(from);
    }
    let start = answer
        .header("content-range")
        .and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse::<u64>().ok());
    if start == Some(from) {
        return Ok(0);
    }
    Err(Failure::Other("an answer for another range than was asked for".to_owned()))
}

fn media_type(answer: &upstream::Answer) -> String {
    answer.header("content-type").unwrap_or(OCTETS).to_owned()
}

fn empty() -> Chunks {
    Box::pin(futures_util::stream::empty())
}
