//! A blob on its way past a cache that takes nothing: verified all the same, and resumed where it breaks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::unfold;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::attempts::{After, Attempts, Ending, Tried, Wanted};
use super::blob::{Told, media_type};
use super::error::{Cause, Error, story};
use super::routed::Routed;
use super::transfer::resumes_at;
use super::{Answer, Source};
use crate::body::{Body, Chunks, Piece, Short};
use crate::cache::Reading;
use crate::oci::digest::Hasher;
use crate::oci::{Candidate, Digest, Failure, Method};
use crate::upstream;

/// Chunks between the upstream and the client.
const QUEUE: usize = 4;
/// How much of what is on the disk already is hashed at a time. Units: bytes.
const HASHED: usize = 1 << 20;

/// A transfer of which the headers have come.
pub(super) struct Begun {
    pub candidate: Candidate,
    pub started: Instant,
    pub answer: upstream::Answer,
}

/// One transfer past the cache.
pub(super) struct Past {
    routed: Arc<Routed>,
    digest: Digest,
    /// Up to where bytes have come. Units: bytes.
    at: u64,
    /// The client gets bytes from here on. Units: bytes.
    start: u64,
    /// To before this byte; none: to the end. Units: bytes.
    end: Option<u64>,
    size: Option<u64>,
    /// Of all bytes before `at`, where the client gets the last one: then it must be the right blob. None: it does not.
    hasher: Option<Hasher>,
    /// A chunk that waits until it is known to be right, or not the last.
    held: Option<Bytes>,
    _permit: OwnedSemaphorePermit,
}

impl Routed {
    /// Hands a blob on without keeping it. `begun`: where its headers have come already.
    pub(super) async fn past_the_cache(self: &Arc<Self>, digest: Digest, begun: Option<Begun>) -> Told {
        let permit = self.past_permit().map_err(|reason| self.error(Cause::Unavailable(reason)))?;
        let resource = format!("blobs/{digest}");
        let begun = match begun {
            Some(begun) => begun,
            None => self.begin(&resource).await?,
        };
        let (size, media_type) = (begun.answer.length(), media_type(&begun.answer));
        let past = Past {
            routed: self.clone(),
            digest,
            at: 0,
            start: 0,
            end: size,
            size,
            hasher: Some(digest.hasher()),
            held: None,
            _permit: permit,
        };
        Ok(Answer {
            status: 200,
            media_type,
            digest: Some(digest),
            length: size,
            content_range: None,
            headers: Vec::new(),
            body: Body::stream(Box::pin(past.chunks(Some(begun), None).map(|chunk| chunk.map(Piece::from))), size),
            source: Source::Upstream,
            again: None,
        })
    }

    /// The first answer that promises a blob.
    async fn begin(&self, resource: &str) -> Result<Begun, Error> {
        let wanted = Wanted::whole(Method::Get, resource, "*/*");
        let mut attempts = Attempts::of_blob(self);
        let mut next = attempts.first();
        let mut ending = Ending::Exhausted;
        while let Some(candidate) = next.take() {
            let Tried { candidate, started, result } = attempts.fetch(candidate, wanted).await;
            match result {
                Ok(answer) => return Ok(Begun { candidate, started, answer }),
                Err(refused) => {
                    match attempts.after((candidate, started), refused.failure, 0, refused.retry_after).await {
                        After::Try(candidate) => next = Some(candidate),
                        After::End(end) => ending = end,
                    }
                }
            }
        }
        Err(self.ended(ending, &attempts.failed()))
    }

    fn past_permit(&self) -> Result<OwnedSemaphorePermit, String> {
        let permit = self.core().passing.clone().try_acquire_owned();
        permit.map_err(|_| "the cache takes nothing, and too many transfers go past it already".to_owned())
    }
}

impl Past {
    /// Goes on for a reader whose fill the disk has ended.
    pub fn go_on(
        routed: &Arc<Routed>,
        digest: Digest,
        reading: &mut Reading,
        size: Option<u64>,
        end: Option<u64>,
    ) -> Result<Chunks, Short> {
        let permit = routed.past_permit().map_err(Short)?;
        let at = reading.at();
        let last = end.is_none() || end == size;
        let past = Self {
            routed: routed.clone(),
            digest,
            at,
            start: at,
            end,
            size,
            hasher: last.then(|| digest.hasher()),
            held: None,
            _permit: permit,
        };
        Ok(past.chunks(None, reading.file()))
    }

    /// Runs in a task of its own, which ends when the client has gone. `before`: the file that has the bytes before
    /// `at`.
    fn chunks(self, begun: Option<Begun>, before: Option<Arc<File>>) -> Chunks {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let core = self.routed.clone();
        let (stopping, scope) = (core.core().stopping.clone(), core.scope().clone());
        core.core().fills.spawn(async move {
            let gone = sender.clone();
            tokio::select! {
                () = gone.closed() => {}
                () = stopping.cancelled() => {}
                () = scope.within(Box::pin(self.run(begun, before, &sender))) => {}
            }
        });
        Box::pin(unfold(receiver, |mut receiver| async move {
            let chunk = receiver.recv().await?;
            Some((chunk, receiver))
        }))
    }

    async fn run(
        mut self,
        begun: Option<Begun>,
        before: Option<Arc<File>>,
        client: &mpsc::Sender<Result<Bytes, Short>>,
    ) {
        let result = match self.take_in(before).await {
            Ok(()) => self.bring(begun, client).await,
            Err(err) => Err(Short(format!("what was brought of {} cannot be read: {err}", self.digest))),
        };
        match result {
            Ok(()) => {}
            // The body must not look whole: a sender that is gone would be the end of it.
            Err(short) => _ = client.send(Err(short)).await,
        }
    }

    /// Hashes what the client has had.
    async fn take_in(&mut self, before: Option<Arc<File>>) -> io::Result<()> {
        let Some(file) = before else { return Ok(()) };
        let Some(mut hasher) = self.hasher.take() else { return Ok(()) };
        let at = self.at;
        let taken = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; HASHED];
            let mut done = 0;
            while done < at {
                let length = usize::try_from((at - done).min(HASHED as u64)).expect("at most a buffer");
                file.read_exact_at(&mut buffer[..length], done)?;
                hasher.update(&buffer[..length]);
                done += length as u64;
            }
            io::Result::Ok(hasher)
        });
        self.hasher = Some(taken.await.map_err(io::Error::other)??);
        Ok(())
    }

    async fn bring(
        &mut self,
        mut begun: Option<Begun>,
        client: &mpsc::Sender<Result<Bytes, Short>>,
    ) -> Result<(), Short> {
        let routed = self.routed.clone();
        let resource = format!("blobs/{}", self.digest);
        let mut attempts = Attempts::of_blob(&routed);
        let mut next = attempts.first();
        while let Some(candidate) = next.take() {
            let until = self.end.filter(|_| self.hasher.is_none());
            let wanted = Wanted { from: self.at, until, ..Wanted::whole(Method::Get, &resource, "*/*") };
            let tried = match begun.take() {
                Some(Begun { candidate, started, answer }) => Tried { candidate, started, result: Ok(answer) },
                None => attempts.fetch(candidate, wanted).await,
            };
            let from = self.at;
            let (failure, retry_after) = match tried.result {
                Err(refused) => (refused.failure, refused.retry_after),
                Ok(answer) => match self.take(answer, client).await {
                    Ok(()) => return Ok(()),
                    Err(Failure::DigestMismatch) => {
                        return Err(Short(format!("the content does not match {}", self.digest)));
                    }
                    Err(failure) => (failure, None),
                },
            };
            let brought = self.at - from;
            if let After::Try(candidate) =
                attempts.after((tried.candidate, tried.started), failure, brought, retry_after).await
            {
                next = Some(candidate);
            }
        }
        Err(Short(story(&attempts.failed())))
    }

    /// Passes on what an answer brings.
    async fn take(
        &mut self,
        answer: upstream::Answer,
        client: &mpsc::Sender<Result<Bytes, Short>>,
    ) -> Result<(), Failure> {
        let (mut skip, _) = resumes_at(&answer, self.at)?;
        let mut stream = answer.stream();
        while let Some(chunk) = stream.next().await {
            let mut chunk = chunk?;
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let mut chunk = chunk.split_off(usize::try_from(skipped).expect("not more than a chunk"));
            if chunk.is_empty() {
                continue;
            }
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&chunk);
            }
            let before = self.at;
            self.at += chunk.len() as u64;
            if self.hasher.is_none()
                && let Some(end) = self.end
            {
                // A server that ignores Range sends what nobody asked for.
                chunk.truncate(usize::try_from(end.saturating_sub(before)).unwrap_or(usize::MAX));
            }
            if self.size.is_some_and(|size| self.at > size) {
                return Err(Failure::DigestMismatch);
            }
            let wanted = chunk
                .split_off(usize::try_from(self.start.saturating_sub(before)).unwrap_or(usize::MAX).min(chunk.len()));
            self.pass(wanted, client).await;
            if self.hasher.is_none() && self.end.is_some_and(|end| self.at >= end) {
                return Ok(());
            }
        }
        if self.size.is_some_and(|size| self.at < size) {
            return Err(Failure::Truncated);
        }
        if self.hasher.take().is_some_and(|hasher| hasher.finish() != self.digest) {
            return Err(Failure::DigestMismatch);
        }
        if let Some(last) = self.held.take() {
            let _ = client.send(Ok(last)).await;
        }
        Ok(())
    }

    /// One chunk late, where the last one has to wait for the digest.
    async fn pass(&mut self, chunk: Bytes, client: &mpsc::Sender<Result<Bytes, Short>>) {
        let due = if self.hasher.is_some() { self.held.replace(chunk) } else { Some(chunk) };
        if let Some(due) = due.filter(|due| !due.is_empty()) {
            // A client that has gone ends this task.
            let _ = client.send(Ok(due)).await;
        }
    }
}
