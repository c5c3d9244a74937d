//! Manifests: by digest, which never change, and by tag, which are asked for again when their time is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attempts::{After, Attempts, Ending, Wanted};
use super::changes::{Moment, Of};
use super::error::{Cause, Error, story};
use super::flights::Lost;
use super::routed::Routed;
use super::{Again, Answer, Source, is_fresh};
use crate::body::Body;
use crate::cache::{Manifest, Tagged};
use crate::oci::manifest::{MANIFEST_MAX, Negotiated, parse_blobs};
use crate::oci::{Attempt, Candidate, Digest, Failure, Method, Place, Reference, Tag};
use crate::plugin::{Image, Question, Rule};
use crate::upstream;

/// As long as any answer of the cache is given again.
pub(super) const LONG: Duration = Duration::from_hours(1);
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

/// A manifest that was found, to be inspected before it is served.
pub(super) struct Found {
    /// Who was seen to hold it.
    pub place: Place,
    pub manifest: Manifest,
    pub source: Source,
    /// Until when whoever asks the same gets the same, if the cache does not change; none: he is to ask again.
    pub until: Option<Instant>,
}

impl From<Asked> for Found {
    fn from((place, (manifest, source)): Asked) -> Self {
        Self { place, manifest, source, until: None }
    }
}

impl Routed {
    /// A manifest by its digest: what is cached never expires.
    pub async fn manifest_by_digest(self: &Arc<Self>, digest: Digest) -> Result<Found, Error> {
        for place in self.places() {
            if let Some(manifest) = self.core().cache.manifest(place, digest).await
                && (self.may_ask_upstream().is_ok() || self.is_complete(place, &manifest).await)
            {
                let until = Some(Instant::now() + LONG);
                return Ok(Found { place: place.clone(), manifest, source: Source::Cache, until });
            }
        }
        self.may_ask_upstream()?;
        let work = move |routed: Arc<Self>| async move { routed.ask_for_digest(digest).await };
        let asked = self.share(&self.core().manifests, &format!("manifests/{digest}"), ANY, work).await;
        asked.map(Found::from).map_err(|lost| self.ended(lost.ending, &lost.failed))
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

    /// What the freshness plugins say of a tag.
    pub async fn judge(&self, tag: &Tag) -> Rule {
        let cached = || async {
            // The first that is fresh, else the first that there is: the one that would be served.
            let mut copy = None;
            for place in self.places() {
                if let Some(tagged) = self.core().cache.tag(place, tag, self.caller().negotiated).await {
                    let known = (tagged.manifest.digest, tagged.age.unwrap_or(Duration::MAX));
                    if is_fresh(self.live(), place, tagged.age) {
                        return Some(known);
                    }
                    copy = copy.or(Some(known));
                }
            }
            copy
        };
        self.plugins().judge(self.question(), cached).await
    }

    /// A manifest by its tag: fresh from the cache, else as its registry has it now, else stale; or as the freshness
    /// plugins ruled.
    pub async fn manifest_by_tag(self: &Arc<Self>, tag: &Tag, rule: Rule) -> Result<Found, Error> {
        let negotiated = self.caller().negotiated;
        let (mut kept, too_old) = self.kept(tag, negotiated, rule == Rule::Serve).await;
        let revalidate = match rule {
            Rule::Deny(denial) => return Err(self.error(Cause::Denied(denial))),
            Rule::Pin(digest) => return self.manifest_by_digest(digest).await,
            Rule::Serve => {
                let fresh = |(place, tagged): &(Place, Tagged)| is_fresh(self.live(), place, tagged.age);
                if let Some(at) = kept.iter().position(fresh).or((!kept.is_empty()).then_some(0)) {
                    let source = if fresh(&kept[at]) { Source::Cache } else { Source::Stale };
                    let (place, tagged) = kept.swap_remove(at);
                    // Without a registry to bring the rest, an image that is not all there is none.
                    if self.may_ask_upstream().is_ok() || self.is_complete(&place, &tagged.manifest).await {
                        return Ok(Found { place, manifest: tagged.manifest, source, until: None });
                    }
                }
                false
            }
            Rule::Revalidate => true,
            Rule::Pass => false,
        };
        if let Err(refusal) = self.may_ask_upstream() {
            return self.stale(kept).await.ok_or(refusal);
        }
        let fresh = kept.iter().position(|(place, tagged)| is_fresh(self.live(), place, tagged.age));
        if let Some(at) = fresh.filter(|_| !revalidate) {
            let (place, tagged) = kept.swap_remove(at);
            let ttl = self.live().config.tag_times(&place.registry).ttl;
            // What stands before it may be fresh again by then.
            let until = (self.places().first() == Some(&place))
                .then(|| Instant::now() + ttl.saturating_sub(tagged.age.unwrap_or(ttl)).min(LONG));
            return Ok(Found { place, manifest: tagged.manifest, source: Source::Cache, until });
        }
        let wanted = tag.clone();
        let work = move |routed: Arc<Self>| {
            let tag = wanted.clone();
            async move { routed.ask_for_tag(&tag, negotiated, revalidate).await }
        };
        // Who must have it as it is now is not content with one that somebody else takes from the cache.
        let resource = if revalidate { format!("manifests/{tag} now") } else { format!("manifests/{tag}") };
        let asked = self.share(&self.core().manifests, &resource, &negotiated.accept(), work).await;
        let Lost { ending, failed } = match asked {
            Ok(asked) => return Ok(asked.into()),
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
    async fn kept(&self, tag: &Tag, negotiated: Negotiated, any_age: bool) -> (Vec<(Place, Tagged)>, bool) {
        let (mut kept, mut too_old) = (Vec::new(), false);
        for place in self.places() {
            let most = self.live().config.tag_times(&place.registry).max_stale;
            let Some(tagged) = self.core().cache.tag(place, tag, negotiated).await else { continue };
            if any_age || most.is_none_or(|most| tagged.age.is_none_or(|age| age <= most)) {
                kept.push((place.clone(), tagged));
            } else {
                too_old = true;
            }
        }
        (kept, too_old)
    }

    async fn ask_for_tag(&self, tag: &Tag, negotiated: Negotiated, revalidate: bool) -> Result<Asked, Lost> {
        let (kept, _) = self.kept(tag, negotiated, false).await;
        // It may have come while nobody looked.
        let mut fresh = kept.iter().filter(|(place, tagged)| !revalidate && is_fresh(self.live(), place, tagged.age));
        if let Some((place, tagged)) = fresh.next() {
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
        let resource = format!("manifests/{tag}");
        let accept = negotiated.accept();
        let wanted = Wanted::whole(Method::Get, &resource, &accept);
        let mut candidate = candidate;
        let before = self.core().changes.now();
        if let Some(known) = known {
            let tried = attempts.fetch(candidate, Wanted { method: Method::Head, ..wanted }).await;
            match tried.result {
                Ok(answer) => {
                    let digest =
                        answer.header("docker-content-digest").and_then(|digest| digest.parse::<Digest>().ok());
                    let same_place = tried.candidate.place;
                    if digest == Some(known.digest) {
                        self.keep_tag((&same_place, tag, negotiated), known.digest, before).await;
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
        self.keep_tag((&place, tag, negotiated), manifest.digest, before).await;
        Ok((place, (manifest, Source::Upstream)))
    }

    /// Keeps what a tag was said to stand for, unless it was written since: then that may be what it stood for before.
    async fn keep_tag(&self, (place, tag, negotiated): (&Place, &Tag, Negotiated), digest: Digest, before: Moment) {
        let (cache, changes) = (&self.core().cache, &self.core().changes);
        if changes.since(before, place, Of::Tag(tag)) {
            return;
        }
        cache.put_tag(place, tag, negotiated, digest).await;
        if changes.since(before, place, Of::Tag(tag)) {
            cache.forget_tag(place, tag).await;
        }
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
                    let (core, removed) = (self.core(), Of::Digest(manifest.digest));
                    let before = core.changes.now();
                    core.cache.put_manifest(&candidate.place, &manifest).await;
                    if core.changes.since(before, &candidate.place, removed) {
                        core.cache.forget_digest(&candidate.place, manifest.digest).await;
                    }
                    return Ok((candidate.place, manifest));
                }
                Err(failure) => (failure, None),
            },
        };
        Err(attempts.after((candidate, started), failed.0, 0, failed.1).await)
    }

    /// The first kept copy that a client can use to its end: an image whose layers cannot be had is none, since some
    /// clients stay with the mirror that gave them the manifest.
    async fn stale(&self, kept: Vec<(Place, Tagged)>) -> Option<Found> {
        for (place, tagged) in kept {
            if self.is_complete(&place, &tagged.manifest).await {
                return Some(Found { place, manifest: tagged.manifest, source: Source::Stale, until: None });
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
    Ok(Manifest { digest, media_type, bytes, ticket: None })
}

impl Routed {
    /// Lets nobody have a manifest that an inspection plugin does not release.
    pub async fn inspect(&self, asked: &Reference, found: &Found) -> Result<(), Error> {
        if !self.plugins().inspects(self.question()) {
            return Ok(());
        }
        let Manifest { digest, media_type, bytes, .. } = &found.manifest;
        self.caller().facts.see(|seen| seen.inspected = Some(*digest));
        let image = Image::parse(*digest, media_type, bytes.clone())
            .map_err(|err| self.error(Cause::Corrupt(format!("it cannot be inspected: {err}"))))?;
        if !image.contents.manifests.is_empty() {
            let children = image.contents.manifests.iter().map(|child| child.digest);
            let core = self.core();
            core.parents.learn(&core.cache, &found.place, *digest, children).await;
        }
        if image.is_beside(asked, &*self.question().lookups).await {
            return Ok(());
        }
        let question = Question { image: Some(Arc::new(image)), ..self.question().clone() };
        self.plugins().inspect(&question).await.map_err(|denial| self.error(Cause::Denied(denial)))
    }
}

/// The answer that brings a manifest.
pub(super) fn answer(Found { manifest, source, until, .. }: Found) -> Answer {
    let again = until.zip(manifest.ticket.as_ref()).map(|(until, ticket)| Again { held: ticket.held(), until });
    Answer {
        status: 200,
        media_type: manifest.media_type,
        digest: Some(manifest.digest),
        length: Some(manifest.bytes.len() as u64),
        content_range: None,
        headers: Vec::new(),
        body: Body::bytes(manifest.bytes),
        source,
        again,
    }
}
