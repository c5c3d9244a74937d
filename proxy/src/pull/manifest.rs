//! Manifests: by digest, which never change, and by tag, which are asked for again when their time is over.

use std::sync::Arc;
use std::time::Instant;

use super::attempts::{After, Attempts, Ending, Wanted};
use super::error::{Cause, Error, story};
use super::flights::Lost;
use super::routed::Routed;
use super::{Answer, Source, is_fresh};
use crate::body::Body;
use crate::cache::{Manifest, Tagged};
use crate::oci::manifest::{MANIFEST_MAX, Negotiated, parse_blobs};
use crate::oci::{Attempt, Candidate, Digest, Failure, Method, Place, Tag};
use crate::upstream;

/// Why a copy is not served that is there.
const TOO_OLD: &str = "the copy in the cache is older than `max_stale` lets it be";
/// Why a copy is not served that is there.
const INCOMPLETE: &str = "the copy in the cache is not served, since not all blobs of it are cached";
/// The media types of manifests of the old schema 1, whose digest is not the one of their bytes.
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1";
/// What a registry is told that we take by digest: it has one form only.
const ANY: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*";

/// Who gave a manifest, and whether it had to.
type Asked = (Place, (Manifest, Source));

impl Routed {
    /// A manifest by its digest: what is cached never expires.
    pub async fn manifest_by_digest(self: &Arc<Self>, digest: Digest) -> Result<Answer, Error> {
        for place in self.places() {
            if let Some(manifest) = self.core().cache.manifest(place, digest).await
                && (self.may_ask_upstream().is_ok() || self.is_complete(place, &manifest).await)
            {
                return Ok(answer(manifest, Source::Cache));
            }
        }
        self.may_ask_upstream()?;
        let work = move |routed: Arc<Self>| async move { routed.ask_for_digest(digest).await };
        let asked = self.share(&self.core().manifests, &format!("manifests/{digest}"), ANY, work).await;
        let (_, (manifest, source)) = asked.map_err(|lost| self.ended(lost.ending, &lost.failed))?;
        Ok(answer(manifest, source))
    }

    async fn ask_for_digest(&self, digest: Digest) -> Result<Asked, Lost> {
        // It may have come while nobody looked.
        for place in self.places() {
            if let Some(manifest) = self.core().cache.manifest(place, digest).await {
                return Ok((place.clone(), (manifest, Source::Cache)));
            }
        }
        let resource = format!("manifests/{digest}");
        let wanted = Wanted::whole(Method::Get, &resource, ANY);
        let mut attempts = Attempts::new(self, false);
        let mut next = attempts.first();
        let mut ending = Ending::Exhausted;
        while let Some(candidate) = next.take() {
            match self.get(&mut attempts, candidate, wanted, Some(digest)).await {
                Ok((place, manifest)) => return Ok((place, (manifest, Source::Upstream))),
                Err(After::Try(candidate)) => next = Some(candidate),
                Err(After::End(end)) => ending = end,
            }
        }
        Err(Lost { ending, failed: attempts.failed().into() })
    }

    /// A manifest by its tag: fresh from the cache, else as its registry has it now, else stale.
    pub async fn manifest_by_tag(self: &Arc<Self>, tag: &Tag) -> Result<Answer, Error> {
        let negotiated = self.caller().negotiated;
        let (mut kept, too_old) = self.kept(tag, negotiated).await;
        if let Err(refusal) = self.may_ask_upstream() {
            return self.stale(kept).await.ok_or(refusal);
        }
        if let Some(at) = kept.iter().position(|(place, tagged)| is_fresh(self.live(), place, tagged.age)) {
            return Ok(answer(kept.swap_remove(at).1.manifest, Source::Cache));
        }
        let wanted = tag.clone();
        let work = move |routed: Arc<Self>| {
            let tag = wanted.clone();
            async move { routed.ask_for_tag(&tag, negotiated).await }
        };
        let resource = format!("manifests/{tag}");
        let asked = self.share(&self.core().manifests, &resource, &negotiated.accept(), work).await;
        let Lost { ending, failed } = match asked {
            Ok((_, (manifest, source))) => return Ok(answer(manifest, source)),
            Err(lost) => lost,
        };
        let gone = failed.iter().all(|attempt| attempt.failure == Failure::Status(404));
        match ending {
            Ending::Exhausted | Ending::Stale => {
                let beside = if too_old { Some(TOO_OLD) } else { (!kept.is_empty()).then_some(INCOMPLETE) };
                // A tag that every registry says is gone, is gone.
                if (matches!(ending, Ending::Stale) || !gone)
                    && let Some(stale) = self.stale(kept).await
                {
                    let (request, pull) = (self.question().facts.id.as_str(), self.pull().to_string());
                    tracing::warn!(
                        request,
                        pull,
                        reason = story(&failed),
                        "no upstream answers: the tag is served as it was"
                    );
                    return Ok(stale);
                }
                Err(Error::of_attempts(self.pull(), &failed, beside.filter(|_| !gone)))
            }
            ending => Err(self.ended(ending, &failed)),
        }
    }

    /// The copies of a tag that may still be served, fresh ones and stale ones, and whether there are any that are too
    /// old for it.
    async fn kept(&self, tag: &Tag, negotiated: Negotiated) -> (Vec<(Place, Tagged)>, bool) {
        let (mut kept, mut too_old) = (Vec::new(), false);
        for place in self.places() {
            let most = self.live().config.tag_times(&place.registry).max_stale;
            let Some(tagged) = self.core().cache.tag(place, tag, negotiated).await else { continue };
            if most.is_none_or(|most| tagged.age.is_none_or(|age| age <= most)) {
                kept.push((place.clone(), tagged));
            } else {
                too_old = true;
            }
        }
        (kept, too_old)
    }

    async fn ask_for_tag(&self, tag: &Tag, negotiated: Negotiated) -> Result<Asked, Lost> {
        let (kept, _) = self.kept(tag, negotiated).await;
        // It may have come while nobody looked.
        if let Some((place, tagged)) = kept.iter().find(|(place, tagged)| is_fresh(self.live(), place, tagged.age)) {
            return Ok((place.clone(), (tagged.manifest.clone(), Source::Cache)));
        }
        let mut attempts = Attempts::new(self, !kept.is_empty());
        let mut next = attempts.first();
        let mut ending = Ending::Exhausted;
        while let Some(candidate) = next.take() {
            let known = kept.iter().find(|(place, _)| *place == candidate.place).map(|(_, tagged)| &tagged.manifest);
            match self.get_tag(&mut attempts, candidate, tag, negotiated, known).await {
                Ok(asked) => return Ok(asked),
                Err(After::Try(candidate)) => next = Some(candidate),
                Err(After::End(end)) => ending = end,
            }
        }
        Err(Lost { ending, failed: attempts.failed().into() })
    }

    /// One candidate's word on a tag. Where a copy is known, a HEAD tells whether it still holds: many registries
    /// count only a GET against the rate that they allow.
    async fn get_tag(
        &self,
        attempts: &mut Attempts<'_>,
        candidate: Candidate,
        tag: &Tag,
        negotiated: Negotiated,
        known: Option<&Manifest>,
    ) -> Result<Asked, After> {
        let cache = &self.core().cache;
        let resource = format!("manifests/{tag}");
        let accept = negotiated.accept();
        let wanted = Wanted::whole(Method::Get, &resource, &accept);
        let mut candidate = candidate;
        if let Some(known) = known {
            let tried = attempts.fetch(candidate, Wanted { method: Method::Head, ..wanted }).await;
            match tried.result {
                Ok(answer) => {
                    let digest =
                        answer.header("docker-content-digest").and_then(|digest| digest.parse::<Digest>().ok());
                    let same_place = tried.candidate.place;
                    if digest == Some(known.digest) {
                        cache.put_tag(&same_place, tag, negotiated, known.digest).await;
                        return Ok((same_place, (known.clone(), Source::Cache)));
                    }
                    candidate = Candidate { place: same_place, hedge_after: None, ..tried.candidate };
                }
                Err(refused) => {
                    let tried = (tried.candidate, tried.started);
                    return Err(attempts.after(tried, refused.failure, 0, refused.retry_after).await);
                }
            }
        }
        let (place, manifest) = self.get(attempts, candidate, wanted, None).await?;
        cache.put_tag(&place, tag, negotiated, manifest.digest).await;
        Ok((place, (manifest, Source::Upstream)))
    }

    /// Fetches a manifest from a candidate, verifies it and keeps it.
    async fn get(
        &self,
        attempts: &mut Attempts<'_>,
        candidate: Candidate,
        wanted: Wanted<'_>,
        digest: Option<Digest>,
    ) -> Result<(Place, Manifest), After> {
        let tried = attempts.fetch(candidate, wanted).await;
        let (candidate, started): (Candidate, Instant) = (tried.candidate, tried.started);
        let failed = match tried.result {
            Err(refused) => (refused.failure, refused.retry_after),
            Ok(upstream) => match read(upstream, digest).await {
                Ok(manifest) => {
                    self.core().cache.put_manifest(&candidate.place, &manifest).await;
                    return Ok((candidate.place, manifest));
                }
                Err(failure) => (failure, None),
            },
        };
        Err(attempts.after((candidate, started), failed.0, 0, failed.1).await)
    }

    /// The first kept copy that a client can use to its end: an image whose layers cannot be had is none, since some
    /// clients stay with the mirror that gave them the manifest.
    async fn stale(&self, kept: Vec<(Place, Tagged)>) -> Option<Answer> {
        for (place, tagged) in kept {
            if self.is_complete(&place, &tagged.manifest).await {
                return Some(answer(tagged.manifest, Source::Stale));
            }
        }
        None
    }

    /// Whether the cache has all blobs that a manifest refers to.
    async fn is_complete(&self, place: &Place, manifest: &Manifest) -> bool {
        let Ok(blobs) = parse_blobs(&manifest.bytes, &manifest.media_type) else { return false };
        for digest in blobs {
            if !self.core().cache.has_blob(place, digest).await {
                let (request, pull) = (self.question().facts.id.as_str(), self.pull().to_string());
                tracing::warn!(request, pull, %digest, "a cached manifest is not served while nothing else can be had: this blob of it is not cached");
                return false;
            }
        }
        true
    }

    /// The error of attempts that ended without an answer.
    pub(super) fn ended(&self, ending: Ending, failed: &[Attempt]) -> Error {
        match ending {
            Ending::Denied(denial) => self.error(Cause::Denied(denial)),
            Ending::Exhausted | Ending::Stop | Ending::Stale => Error::of_attempts(self.pull(), failed, None),
        }
    }
}

/// Reads a manifest whole and verifies it: against the digest that was asked for, or the one that comes with it.
async fn read(answer: upstream::Answer, digest: Option<Digest>) -> Result<Manifest, Failure> {
    let media_type =
        answer.header("content-type").map(|value| value.split(';').next().unwrap_or(value).trim().to_owned());
    if media_type.as_ref().is_some_and(|media_type| media_type.starts_with(SCHEMA_1)) {
        return Err(Failure::Other(
            "it offers only a manifest of the old schema 1 for the media types asked for".to_owned(),
        ));
    }
    let said = answer.header("docker-content-digest").and_then(|digest| digest.parse::<Digest>().ok());
    let bytes = answer.collect(MANIFEST_MAX).await?;
    let digest = match digest.or(said) {
        Some(digest) if digest.matches(&bytes) => digest,
        Some(_) => return Err(Failure::DigestMismatch),
        None => Digest::sha256_of(&bytes),
    };
    let media_type = media_type.ok_or_else(|| Failure::Other("a manifest without a Content-Type".to_owned()))?;
    parse_blobs(&bytes, &media_type).map_err(|err| Failure::Other(err.to_string()))?;
    Ok(Manifest { digest, media_type, bytes })
}

fn answer(manifest: Manifest, source: Source) -> Answer {
    Answer {
        status: 200,
        media_type: manifest.media_type,
        digest: Some(manifest.digest),
        length: Some(manifest.bytes.len() as u64),
        content_range: None,
        headers: Vec::new(),
        body: Body::bytes(manifest.bytes),
        source,
    }
}
