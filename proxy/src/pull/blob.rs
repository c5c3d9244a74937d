//! Blobs: from the cache, from a fill that others share, or past a cache that takes nothing.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::attempts::{After, Attempts, Ending, Wanted};
use super::error::{Cause, Error};
use super::flights::Lost;
use super::manifest::LONG;
use super::reader::Reader;
use super::routed::Routed;
use super::{Again, Answer, Source};
use crate::body::{Body, Multipart, Part, Pieces, parse_range};
use crate::cache::{FillEnd, Link, Role, Ticket};
use crate::oci::{Attempt, Digest, Failure, Method, Place};
use crate::trace;
use crate::upstream;

/// Times that a request joins a fill which then ends by another's policy, before it gives up.
const ROLES_MAX: usize = 8;
const OCTETS: &str = "application/octet-stream";

/// What the leader of a fill gets when the fill does not bring the blob.
pub(super) type Told = Result<Answer, Error>;

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
            let link = self.prove(digest).await?;
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
                    let span = self.scope().child(trace::Kind::Internal, || "fill".to_owned());
                    self.core().fills.spawn(async move {
                        span.within(Box::pin(leading.lead(*leader, tell))).await;
                    });
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
                    if leads.is_none() {
                        self.scope().point_at(&head.span);
                    }
                    let (routed, size) = (self.clone(), head.size);
                    let media_type = head.media_type.clone();
                    return Ok(self.answer(digest, media_type, size, Source::Fill, move |start, end| {
                        let reading = follower.clone().reading(start, end, routed.caller().outlet.clone());
                        Reader::new(routed.clone(), digest, head.clone(), reading, end).pieces()
                    }));
                }
                (Err(_), Some(told)) => {
                    return told
                        .await
                        .unwrap_or_else(|_| Err(self.error(Cause::Unavailable("the transfer was ended".to_owned()))));
                }
                (Err(FillEnd::Exhausted(failed)), None) => {
                    if self.are_ours(&failed) {
                        return Err(Error::of_attempts(self.pull(), &failed, None));
                    }
                    attempts = failed;
                }
                (Err(FillEnd::Disk), None) => return self.past_the_cache(digest, None).await,
                (Err(FillEnd::Abandoned), None) => {}
            }
        }
        Err(Error::of_attempts(self.pull(), &attempts, None))
    }

    async fn cached_blob(&self, digest: Digest) -> Option<Answer> {
        for place in self.places() {
            if let Some(blob) = self.core().cache.blob(place, digest).await {
                let (media_type, size) = (blob.media_type.clone(), blob.size);
                let (held, outlet) = (blob.ticket.as_ref().map(Ticket::held), self.caller().outlet.clone());
                let read = move |start, end: Option<u64>| blob.read(start, end.unwrap_or(size), outlet.clone());
                let mut answer = self.answer(digest, media_type, Some(size), Source::Cache, read);
                answer.again = held.map(|held| Again { held, until: Instant::now() + LONG });
                return Some(answer);
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

    /// Asks our candidates whether they hold a blob, without its bytes; the first that does is remembered for it. Many
    /// who ask the same share one request.
    async fn prove(self: &Arc<Self>, digest: Digest) -> Result<Link, Error> {
        let work = move |routed: Arc<Self>| async move { routed.ask_for(digest).await };
        let asked = self.share(&self.core().proofs, &format!("blobs/{digest}"), "*/*", work).await;
        let (_, link) = asked.map_err(|lost| self.ended(lost.ending, &lost.failed))?;
        Ok(link)
    }

    async fn ask_for(&self, digest: Digest) -> Result<(Place, Link), Lost> {
        let resource = format!("blobs/{digest}");
        let wanted = Wanted::whole(Method::Head, &resource, "*/*");
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
                        return Ok((tried.candidate.place, link));
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
        Err(Lost { ending, failed: attempts.failed().into() })
    }

    /// The answer to a request for a blob, or parts of it. `read` gives the bytes from one offset to another.
    pub(super) fn answer(
        &self,
        digest: Digest,
        media_type: String,
        size: Option<u64>,
        source: Source,
        mut read: impl FnMut(u64, Option<u64>) -> Pieces + Send + 'static,
    ) -> Answer {
        let method = self.pull().method;
        // A range is one of GET only (RFC 9110, section 14.2).
        let header = self.caller().range.as_deref().filter(|_| method == Method::Get);
        let part = match (header, size) {
            (Some(header), Some(size)) => parse_range(header, size),
            _ => Part::Whole,
        };
        let total = size.unwrap_or_default();
        let mut answer = Answer {
            status: 200,
            media_type,
            digest: Some(digest),
            length: size,
            content_range: None,
            headers: Vec::new(),
            body: Body::empty(),
            source,
            again: None,
        };
        match part {
            Part::Unsatisfiable => {
                answer.status = 416;
                answer.length = Some(0);
                answer.content_range = Some(format!("bytes */{total}"));
            }
            Part::Whole if method == Method::Head => {}
            Part::Whole => answer.body = Body::stream(read(0, size), size),
            Part::Range(start, end) => {
                answer.status = 206;
                answer.length = Some(end - start);
                answer.content_range = Some(format!("bytes {start}-{}/{total}", end - 1));
                answer.body = Body::stream(read(start, Some(end)), answer.length);
            }
            Part::Many(parts) => {
                let multipart = Multipart::new(&parts, total, &answer.media_type, &boundary());
                answer.status = 206;
                answer.length = Some(multipart.length);
                answer.media_type.clone_from(&multipart.media_type);
                let pieces = multipart.pieces(move |start, end| read(start, Some(end)));
                answer.body = Body::stream(pieces, answer.length);
            }
        }
        answer
    }
}

/// A word that nobody can have put into a blob: it is another one each time.
fn boundary() -> String {
    let random = || RandomState::new().hash_one(0);
    format!("{:016x}{:016x}", random(), random())
}

pub(super) fn media_type(answer: &upstream::Answer) -> String {
    answer.header("content-type").unwrap_or(OCTETS).to_owned()
}

fn empty() -> Pieces {
    Box::pin(futures_util::stream::empty())
}
