//! The routing of one pull, and what its plugins may look up.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use http_body::Frame;
use http_body_util::{BodyExt, LengthLimitError, Limited, StreamBody};
use tokio::sync::OnceCell;

use super::admitted::Admitted;
use super::error::{Cause, Error};
use super::routed::Routed;
use super::{Answer, Caller, Core, Live, is_fresh};
use crate::oci::manifest::{Contents, Descriptor, MANIFEST_MAX, Negotiated};
use crate::oci::{Asked, Candidate, Content, Denial, Digest, Method, Place, Pull, RateLimit, Reference, Registry, Tag};
use crate::plugin::{Cached, Gave, Looking, Lookups, Missing, PluginSet, Question, Rule};

/// Why a plugin's look-up goes to no registry.
const CACHE_ONLY: &str = "a look-up";

/// The routing of one pull: done once, when it is needed, be it by an admission plugin that asks for the cache.
pub(super) struct Routing {
    pub core: Arc<Core>,
    pub live: Arc<Live>,
    pub set: Arc<PluginSet>,
    pub pull: Arc<Pull>,
    pub caller: Caller,
    pub dry_run: bool,
    done: OnceCell<Result<Vec<Candidate>, Denial>>,
}

/// Where a plugin's look-ups lead.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Where the routing plugins say.
    Routed,
    /// To the repository that the client named: a routing plugin must not wait for its own answer.
    Named,
    /// Where the routing plugins say, as far as the cache has it.
    Cached,
}

/// What the plugins of one hook may look up.
struct Sight {
    routing: Arc<Routing>,
    way: Way,
}

impl Routing {
    pub fn new(core: &Arc<Core>, live: &Arc<Live>, pull: Pull, caller: Caller, dry_run: bool) -> Arc<Self> {
        let (core, live, set) = (core.clone(), live.clone(), core.plugins.current());
        Arc::new(Self { core, live, set, pull: Arc::new(pull), caller, dry_run, done: OnceCell::new() })
    }

    /// Another pull of the same caller, under the same plugins.
    pub fn another(&self, pull: Pull) -> Arc<Self> {
        let (core, live, set) = (self.core.clone(), self.live.clone(), self.set.clone());
        let (caller, dry_run) = (self.caller.clone(), self.dry_run);
        Arc::new(Self { core, live, set, pull: Arc::new(pull), caller, dry_run, done: OnceCell::new() })
    }

    /// The question to plugins whose look-ups go so far.
    pub fn question(self: &Arc<Self>, way: Way) -> Question {
        // What is asked for a person changes nothing, not even the cache.
        let way = if self.dry_run && way == Way::Routed { Way::Cached } else { way };
        Question {
            asked: Asked::Pull(self.pull.clone()),
            facts: self.caller.facts.clone(),
            lookups: Arc::new(Sight { routing: self.clone(), way }),
            image: None,
            dry_run: self.dry_run,
        }
    }

    /// Where the pull may come from, in order.
    pub async fn candidates(self: &Arc<Self>) -> Result<Vec<Candidate>, Denial> {
        let route = || async {
            let question = self.question(Way::Named);
            self.set.route(&question, vec![self.named()]).await
        };
        self.done.get_or_init(route).await.clone()
    }

    fn named(&self) -> Candidate {
        Candidate::plain(self.pull.place.clone())
    }

    /// Looks into the cache and serves nothing.
    async fn peek(&self, candidates: &[Candidate]) -> Cached {
        let mut stale = Cached::Absent;
        for Candidate { place, .. } in candidates {
            let cache = &self.core.cache;
            match &self.pull.content {
                Content::Manifest(Reference::Tag(tag)) => match cache.tag(place, tag, self.caller.negotiated).await {
                    Some(tagged) if is_fresh(&self.live, place, tagged.age) => {
                        return Cached::Fresh { digest: tagged.manifest.digest, age: tagged.age };
                    }
                    Some(tagged) if stale == Cached::Absent => {
                        stale = Cached::Stale { digest: tagged.manifest.digest, age: tagged.age.unwrap_or_default() };
                    }
                    _ => {}
                },
                Content::Manifest(Reference::Digest(digest)) => {
                    if cache.manifest(place, *digest).await.is_some() {
                        return Cached::Fresh { digest: *digest, age: None };
                    }
                }
                Content::Blob(digest) => {
                    if cache.blob(place, *digest).await.is_some() {
                        return Cached::Fresh { digest: *digest, age: None };
                    }
                }
                Content::Tags | Content::Referrers(_) => return Cached::Absent,
            }
        }
        stale
    }
}

impl Sight {
    async fn candidates(&self) -> Result<Vec<Candidate>, Denial> {
        match self.way {
            Way::Named => Ok(vec![self.routing.named()]),
            Way::Routed | Way::Cached => self.routing.candidates().await,
        }
    }

    /// A pull of the policy's own: no client gets what it brings.
    async fn begin(&self, content: Content) -> Result<Arc<Routed>, Missing> {
        let Routing { core, live, set, pull, caller, .. } = &*self.routing;
        let candidates = self.candidates().await.map_err(|_| Missing::Denied)?;
        let pull = Pull { content, method: Method::Get, ..(**pull).clone() };
        // What it brings is read here: the caller's connection has no part in it.
        let (negotiated, outlet) = (Negotiated::ALL, None);
        let caller = Caller { negotiated, range: None, query: String::new(), outlet, ..caller.clone() };
        let own = Routing {
            core: core.clone(),
            live: live.clone(),
            set: set.clone(),
            pull: Arc::new(pull),
            caller,
            dry_run: self.routing.dry_run,
            done: OnceCell::new_with(Some(Ok(candidates.clone()))),
        };
        let admitted = Admitted::of_policy((self.way == Way::Cached).then(|| CACHE_ONLY.to_owned()));
        Ok(Arc::new(Routed::new(Arc::new(own), admitted, candidates)?))
    }

    async fn find_manifest(&self, reference: Reference) -> Result<Bytes, Missing> {
        let routed = self.begin(Content::Manifest(reference.clone())).await?;
        let found = match &reference {
            Reference::Tag(tag) => routed.manifest_by_tag(tag, Rule::Pass).await?,
            Reference::Digest(digest) => routed.manifest_by_digest(*digest).await?,
        };
        Ok(found.manifest.bytes)
    }

    async fn find_referrers(&self, digest: Digest) -> Result<Vec<Descriptor>, Missing> {
        let routed = self.begin(Content::Referrers(digest)).await?;
        let listed = match routed.listing(&format!("referrers/{digest}")).await {
            Ok(answer) => Ok(read(answer, MANIFEST_MAX).await?),
            Err(Error { cause: Cause::NotFound(_), .. }) => {
                // A registry without the API keeps the list under a tag.
                let tag = Tag::parse(&format!("{}-{}", digest.algorithm(), digest.hex())).ok_or(Missing::NotFound)?;
                self.find_manifest(Reference::Tag(tag)).await
            }
            Err(err) => Err(err.into()),
        };
        match listed {
            Ok(bytes) => {
                let list = Contents::parse(&bytes).map_err(|err| Missing::Unavailable(err.to_string()))?;
                Ok(list.manifests)
            }
            Err(Missing::NotFound) => Ok(Vec::new()),
            Err(missing) => Err(missing),
        }
    }

    async fn find_blob(&self, digest: Digest, max: usize) -> Result<Bytes, Missing> {
        let routed = self.begin(Content::Blob(digest)).await?;
        read(routed.blob(digest).await?, max).await
    }

    async fn find_parents(&self, digest: Digest) -> Vec<Digest> {
        let (mut all, Ok(candidates)) = (Vec::new(), self.candidates().await) else { return Vec::new() };
        let core = &self.routing.core;
        for Candidate { place, .. } in candidates {
            for parent in core.parents.of(&core.cache, &place, digest).await {
                if !all.contains(&parent) {
                    all.push(parent);
                }
            }
        }
        all
    }
}

impl Lookups for Sight {
    fn cached(&self) -> Looking<'_, Cached> {
        Box::pin(async move {
            match self.candidates().await {
                Ok(mut candidates) => {
                    // Routed nowhere, the cache alone may serve: what it holds under the name itself.
                    if candidates.is_empty() {
                        candidates.push(self.routing.named());
                    }
                    let cached = self.routing.peek(&candidates).await;
                    if self.way != Way::Named {
                        self.routing.caller.facts.see(|seen| _ = seen.cached.get_or_insert(cached));
                    }
                    cached
                }
                Err(_) => Cached::Absent,
            }
        })
    }

    fn manifest(&self, reference: Reference) -> Looking<'_, Result<Bytes, Missing>> {
        Box::pin(self.find_manifest(reference))
    }

    fn referrers(&self, digest: Digest) -> Looking<'_, Result<Vec<Descriptor>, Missing>> {
        Box::pin(self.find_referrers(digest))
    }

    fn blob(&self, digest: Digest, max: usize) -> Looking<'_, Result<Bytes, Missing>> {
        Box::pin(self.find_blob(digest, max))
    }

    fn parents(&self, digest: Digest) -> Looking<'_, Vec<Digest>> {
        Box::pin(self.find_parents(digest))
    }

    fn rate_limit(&self, registry: &Registry) -> Option<(RateLimit, Duration)> {
        self.routing.live.upstreams.rate_limit(registry)
    }

    fn is_ailing(&self, registry: &Registry) -> bool {
        self.routing.live.upstreams.is_ailing(registry)
    }

    fn gave(&self, how: Gave) -> Vec<Place> {
        let Routing { core, pull, .. } = &*self.routing;
        match pull.content {
            Content::Manifest(Reference::Digest(digest)) | Content::Blob(digest) => {
                core.givers.of(&pull.place, digest, how)
            }
            Content::Manifest(Reference::Tag(_)) | Content::Tags | Content::Referrers(_) => Vec::new(),
        }
    }
}

/// The whole of an answer, which must not be longer than `max` bytes.
async fn read(answer: Answer, max: usize) -> Result<Bytes, Missing> {
    if answer.length.is_some_and(|length| length > max as u64) {
        return Err(Missing::TooLarge);
    }
    let body = StreamBody::new(answer.body.chunks().map_ok(Frame::data));
    match Limited::new(body, max).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(err) if err.is::<LengthLimitError>() => Err(Missing::TooLarge),
        Err(err) => Err(Missing::Unavailable(err.to_string())),
    }
}

impl From<Error> for Missing {
    fn from(err: Error) -> Self {
        match err.cause {
            Cause::NotFound(_) => Self::NotFound,
            Cause::Denied(_)
            | Cause::NotCached(_)
            | Cause::NotYours { .. }
            | Cause::Guesses(_)
            | Cause::Refused(_)
            | Cause::UnknownRegistry(_)
            | Cause::ReadOnly(_)
            | Cause::Answered { .. } => Self::Denied,
            Cause::TooManyRequests(story, _)
            | Cause::Timeout(story)
            | Cause::Corrupt(story)
            | Cause::Client(story)
            | Cause::Unavailable(story) => Self::Unavailable(story),
        }
    }
}
