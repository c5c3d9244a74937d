//! The life of one pull, top to bottom: admission, routing, cache, upstreams, fallback.
//!
//! The only room where plugins, cache and upstreams meet.

mod admitted;
mod attempts;
mod blob;
mod error;
mod flights;
mod listing;
mod manifest;
mod misses;
mod past;
mod reader;
mod retries;
mod routed;
mod transfer;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use error::{Cause, Error};
pub use listing::rewrite_link;

use crate::body::Body;
use crate::cache::{Cache, Link, Manifest};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::oci::manifest::Negotiated;
use crate::oci::{Candidate, Content, Denial, Digest, Place, Pull, Reference};
use crate::plugin::{Cached, Decision, Facts, Opinion, Peek, PluginSet, Plugins, Question};
use crate::upstream::{Upstreams, Via};
use admitted::Admitted;
use flights::Flights;
use listing::Listing;
use misses::Misses;
use retries::Retries;
use routed::Routed;

/// Transfers that go past a cache that takes nothing, at once.
const PASSING_MAX: usize = 64;

/// The parts of the program that a pull goes through.
pub struct Core {
    live: ArcSwap<Live>,
    /// Who decides.
    pub plugins: Plugins,
    /// What is kept.
    pub cache: Cache,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Fills under way: they outlive the requests that began them.
    fills: TaskTracker,
    stopping: CancellationToken,
    passing: Arc<Semaphore>,
    /// Fills that nobody waits for.
    orphans: Arc<AtomicUsize>,
    misses: Misses,
    retries: Retries,
    /// Who asks for tags and manifests.
    manifests: Arc<Flights<(Manifest, Source)>>,
    /// Who asks whether a blob is there.
    proofs: Arc<Flights<Link>>,
    /// Who asks for lists.
    listings: Arc<Flights<Listing>>,
}

/// The configuration in effect, and what follows from it. A request keeps the one that it began with.
pub struct Live {
    /// The configuration.
    pub config: Arc<Config>,
    /// Who is asked.
    pub upstreams: Upstreams,
}

/// What of the request concerns how it is answered, rather than what is asked for.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who asks.
    pub facts: Arc<Facts>,
    /// Which manifests it takes.
    pub negotiated: Negotiated,
    /// Header `Range`.
    pub range: Option<String>,
    /// The query, without what named the registry.
    pub query: String,
    /// The mirrors that the request has come through.
    pub via: Via,
}

/// Where the body of an answer comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The cache.
    Cache,
    /// The cache, though nobody upstream confirms it.
    Stale,
    /// A fill under way.
    Fill,
    /// An upstream, past the cache.
    Upstream,
}

impl Source {
    /// The word for it in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Stale => "stale",
            Self::Fill => "fill",
            Self::Upstream => "upstream",
        }
    }
}

/// An answer to a pull.
pub struct Answer {
    /// 200, 206 or 416.
    pub status: u16,
    /// As the registry gave it.
    pub media_type: String,
    /// Of the whole content; none for a listing.
    pub digest: Option<Digest>,
    /// Of the body. Units: bytes.
    pub length: Option<u64>,
    /// Header `Content-Range`.
    pub content_range: Option<String>,
    /// Further headers, of a listing.
    pub headers: Vec<(&'static str, String)>,
    /// The body; a HEAD does not send it.
    pub body: Body,
    /// Where it comes from.
    pub source: Source,
}

impl Core {
    /// Puts the parts together.
    pub fn new(live: Live, plugins: Plugins, cache: Cache, metrics: Arc<Metrics>) -> Self {
        let passing = Arc::new(Semaphore::new(PASSING_MAX));
        let (fills, stopping) = (TaskTracker::new(), CancellationToken::new());
        Self {
            live: ArcSwap::from_pointee(live),
            plugins,
            cache,
            metrics,
            fills,
            stopping,
            passing,
            orphans: Arc::default(),
            misses: Misses::default(),
            retries: Retries::default(),
            manifests: Arc::default(),
            proofs: Arc::default(),
            listings: Arc::default(),
        }
    }

    /// The configuration in effect.
    pub fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Puts another configuration into effect; requests under way end with theirs.
    pub fn replace(&self, live: Live) {
        self.live.store(Arc::new(live));
    }

    /// Ends the fills that still bring bytes, and waits for those that have brought them all: what a client has got
    /// whole is kept.
    pub async fn stop(&self) {
        self.stopping.cancel();
        self.fills.close();
        self.fills.wait().await;
        self.cache.close().await;
    }
}

/// Runs a pull.
///
/// # Errors
/// Why there is no answer.
///
/// # Cancel safety
/// A fill that it began goes on.
pub async fn run(core: &Arc<Core>, live: &Arc<Live>, pull: Pull, caller: Caller) -> Result<Answer, Error> {
    let set = core.plugins.current();
    let pull = Arc::new(pull);
    let routing = Routing::new(core, live, &set, &pull, &caller, false);
    let question = routing.question();
    let admitted = Admitted::ask(&set, &question).await.map_err(|denial| Error::new(&pull, Cause::Denied(denial)))?;
    caller.facts.decide(match admitted.cached_only() {
        Some(plugin) => Decision::CachedOnly(plugin.to_owned()),
        None => Decision::Allow,
    });
    let candidates = routing.candidates().await.map_err(|denial| Error::new(&pull, Cause::Denied(denial)))?;
    let routed = Arc::new(Routed::new(core.clone(), live.clone(), set, question, caller, admitted, candidates)?);
    match &pull.content {
        Content::Manifest(Reference::Tag(tag)) => routed.manifest_by_tag(tag).await,
        Content::Manifest(Reference::Digest(digest)) => routed.manifest_by_digest(*digest).await,
        Content::Blob(digest) => routed.blob(*digest).await,
        Content::Tags => routed.listing("tags/list").await,
        Content::Referrers(digest) => routed.listing(&format!("referrers/{digest}")).await,
    }
}

/// What each plugin decides for a pull, and the candidates that would be tried, each with whether it can be reached.
/// Changes nothing.
pub async fn explain(
    core: &Arc<Core>,
    live: &Arc<Live>,
    pull: Pull,
    caller: &Caller,
) -> (Vec<Opinion>, Option<Vec<(Candidate, bool)>>) {
    let set = core.plugins.current();
    let pull = Arc::new(pull);
    let question = Routing::new(core, live, &set, &pull, caller, true).question();
    let (opinions, candidates) = set.explain(&question, Candidate::plain(pull.place.clone())).await;
    let reached = |candidate: Candidate| {
        let reaches = live.upstreams.reaches(&candidate.place);
        (candidate, reaches)
    };
    (opinions, candidates.map(|candidates| candidates.into_iter().map(reached).collect()))
}

/// The routing of one pull: done once, when it is needed, be it by an admission plugin that asks for the cache.
#[derive(Clone)]
struct Routing {
    core: Arc<Core>,
    live: Arc<Live>,
    set: Arc<PluginSet>,
    pull: Arc<Pull>,
    facts: Arc<Facts>,
    negotiated: Negotiated,
    dry_run: bool,
    done: Arc<OnceCell<Result<Vec<Candidate>, Denial>>>,
}

impl Routing {
    fn new(
        core: &Arc<Core>,
        live: &Arc<Live>,
        set: &Arc<PluginSet>,
        pull: &Arc<Pull>,
        caller: &Caller,
        dry_run: bool,
    ) -> Self {
        Self {
            core: core.clone(),
            live: live.clone(),
            set: set.clone(),
            pull: pull.clone(),
            facts: caller.facts.clone(),
            negotiated: caller.negotiated,
            dry_run,
            done: Arc::default(),
        }
    }

    /// The question to plugins that come before or after routing.
    fn question(&self) -> Question {
        let routing = self.clone();
        let peek: Peek = Arc::new(move || {
            let routing = routing.clone();
            Box::pin(async move {
                match routing.candidates().await {
                    Ok(candidates) => routing.peek(&candidates).await,
                    Err(_) => Cached::Absent,
                }
            })
        });
        Question { pull: self.pull.clone(), facts: self.facts.clone(), peek, dry_run: self.dry_run }
    }

    async fn candidates(&self) -> Result<Vec<Candidate>, Denial> {
        let first = || Candidate::plain(self.pull.place.clone());
        let route = || async {
            // A routing plugin that asks for the cache must not wait for its own answer.
            let routing = self.clone();
            let peek: Peek = Arc::new(move || {
                let routing = routing.clone();
                Box::pin(async move { routing.peek(&[Candidate::plain(routing.pull.place.clone())]).await })
            });
            let question = Question { pull: self.pull.clone(), facts: self.facts.clone(), peek, dry_run: self.dry_run };
            self.set.route(&question, vec![first()]).await
        };
        self.done.get_or_init(route).await.clone()
    }

    /// Looks into the cache and serves nothing.
    async fn peek(&self, candidates: &[Candidate]) -> Cached {
        let mut stale = Cached::Absent;
        for Candidate { place, .. } in candidates {
            let cache = &self.core.cache;
            match &self.pull.content {
                Content::Manifest(Reference::Tag(tag)) => match cache.tag(place, tag, self.negotiated).await {
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

fn is_fresh(live: &Live, place: &Place, age: Option<Duration>) -> bool {
    age.is_some_and(|age| age < live.config.tag_times(&place.registry).ttl)
}
