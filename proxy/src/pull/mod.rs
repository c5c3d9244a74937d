//! The life of one pull, top to bottom: admission, routing, cache, upstreams, fallback.
//!
//! The only room where plugins, cache and upstreams meet.

mod admitted;
mod attempts;
mod authorize;
mod blob;
mod changes;
mod error;
mod explain;
mod flights;
mod givers;
mod listing;
mod manifest;
mod misses;
mod parents;
mod past;
mod push;
mod reader;
mod retries;
mod routed;
mod routing;
mod transfer;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use error::{Cause, Error};
pub use explain::{Explained, explain};
pub use listing::rewrite_link;
pub use push::{Offered, Written, push};

use crate::body::{Body, Outlet};
use crate::cache::{Cache, Held, Link, Manifest};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::oci::manifest::Negotiated;
use crate::oci::{Content, Credentials, Digest, Method, Place, Pull, Reference};
use crate::plugin::{Decision, Facts, Plugins};
use crate::upstream::{Upstreams, Via};
use admitted::Admitted;
use authorize::Words;
use changes::Changes;
use flights::Flights;
use givers::Givers;
use listing::Listing;
use misses::Misses;
use parents::Parents;
use push::Seals;
use retries::Retries;
use routed::Routed;
use routing::{Routing, Way};

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
    /// What was written to registries.
    changes: Changes,
    seals: Seals,
    retries: Retries,
    /// Who asks for tags and manifests.
    manifests: Arc<Flights<(Manifest, Source)>>,
    /// Who asks whether a blob is there.
    proofs: Arc<Flights<Link>>,
    /// Who asks for lists.
    listings: Arc<Flights<Listing>>,
    parents: Parents,
    /// What registries said of callers.
    words: Words,
    givers: Givers,
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
    /// What it sent, for registries that are asked with it.
    pub credentials: Option<Arc<Credentials>>,
    /// For how long yet nobody is asked whether they are right, since too many logins have failed.
    pub waits: Option<Duration>,
    /// Which manifests it takes.
    pub negotiated: Negotiated,
    /// Header `Range`.
    pub range: Option<String>,
    /// The query, without what named the registry.
    pub query: String,
    /// The mirrors that the request has come through.
    pub via: Via,
    /// Where files go straight to its connection; none: they are read for it.
    pub outlet: Option<Arc<Outlet>>,
}

impl Caller {
    /// Whom a registry that is asked with what it sent takes it for, in words.
    fn who(&self) -> String {
        match &self.credentials {
            Some(shown) => format!("the user {}", shown.user.escape_debug()),
            None => "who shows no user".to_owned(),
        }
    }
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
    /// Whoever asks the same gets the same; none: he is to ask.
    pub again: Option<Again>,
}

/// Says for how long an answer stands, for whoever asks the same under the same configuration and plugins.
#[derive(Clone, Debug)]
pub struct Again {
    /// What the cache gave, as long as it would give it again.
    pub held: Held,
    /// Not after that.
    pub until: Instant,
}

impl Core {
    /// Puts the parts together.
    pub fn new(live: Live, plugins: Plugins, cache: Cache, metrics: Arc<Metrics>) -> Self {
        let passing = Arc::new(Semaphore::new(PASSING_MAX));
        let (fills, stopping) = (TaskTracker::new(), CancellationToken::new());
        let seals = Seals::new(&live.config.plugins.state_dir);
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
            changes: Changes::default(),
            seals,
            retries: Retries::default(),
            manifests: Arc::default(),
            proofs: Arc::default(),
            listings: Arc::default(),
            parents: Parents::default(),
            words: Words::default(),
            givers: Givers::default(),
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
    let facts = caller.facts.clone();
    let routing = Routing::new(core, live, pull, caller, false);
    let pull = routing.pull.clone();
    facts.see(|seen| seen.generation = routing.set.generation());
    let denied = |denial| Error::new(&pull, Cause::Denied(denial));
    let mut admitted = Admitted::ask(&routing.set, &routing.question(Way::Routed)).await.map_err(denied)?;
    if admitted.cached_only().is_some()
        && pull.method == Method::Head
        && let Some(pushing) = push::admitted(&routing).await
    {
        admitted = pushing;
    }
    facts.decide(match admitted.cached_only() {
        Some(plugin) => Decision::CachedOnly(plugin.to_owned()),
        None => Decision::Allow,
    });
    let candidates = routing.candidates().await.map_err(denied)?;
    let candidates = routing.authorize(candidates).await?;
    if facts.recorded && facts.seen().cached.is_none() {
        routing.question(Way::Cached).lookups.cached().await;
    }
    let decides_alike = routing.set.remembers(&routing.question(Way::Named)).is_some();
    let repeatable = admitted.cached_only().is_none() && decides_alike;
    let routed = Arc::new(Routed::new(routing, admitted, candidates)?);
    let answer = routed.answer_to(&pull).await?;
    let again = answer.again.filter(|_| repeatable && facts.is_repeatable());
    Ok(Answer { again, ..answer })
}

impl Routed {
    async fn answer_to(self: &Arc<Self>, pull: &Pull) -> Result<Answer, Error> {
        match &pull.content {
            Content::Manifest(reference) => {
                let found = match reference {
                    Reference::Tag(tag) => self.manifest_by_tag(tag, self.judge(tag).await).await?,
                    Reference::Digest(digest) => self.manifest_by_digest(*digest).await?,
                };
                self.inspect(reference, &found).await?;
                if self.plugins().routes(self.question()) {
                    self.core().givers.learn(&pull.place, reference, &found);
                }
                Ok(manifest::answer(found))
            }
            Content::Blob(digest) => self.blob(*digest).await,
            Content::Tags => self.listing("tags/list").await,
            Content::Referrers(digest) => self.listing(&format!("referrers/{digest}")).await,
        }
    }
}

fn is_fresh(live: &Live, place: &Place, age: Option<Duration>) -> bool {
    age.is_some_and(|age| age < live.config.tag_times(&place.registry).ttl)
}
