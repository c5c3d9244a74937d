//! Every metric of the program: its name, unit and labels.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Labels of an answered request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Request {
    /// `manifest`, `blob`, `tags`, `referrers`, `other`.
    pub content: &'static str,
    /// Status of the answer.
    pub status: u16,
    /// Where the body came from: `cache`, `stale`, `fill`, `upstream`, `none`.
    pub source: &'static str,
}

/// Labels of one attempt at an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Attempt {
    /// The registry that was asked.
    pub registry: String,
    /// `ok`, or the kind of its failure.
    pub outcome: &'static str,
}

/// Labels of a body that an upstream did not bring to its end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BrokenBody {
    /// The registry that sent it.
    pub registry: String,
    /// The kind of its failure: `truncated`, `timeout`, `digest-mismatch`, `other`.
    pub failure: &'static str,
}

/// The label of what concerns one upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Upstream {
    /// The registry that was asked.
    pub registry: String,
}

/// The label of how something ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// `ok`, `failed`, `orphaned`.
    pub outcome: &'static str,
}

/// Labels of a call of a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PluginCall {
    /// The plugin's name.
    pub plugin: String,
    /// Which hook.
    pub hook: &'static str,
    /// `ok` or `failed`.
    pub outcome: &'static str,
}

/// Labels of a version of a plugin that was loaded or refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PluginLoad {
    /// The plugin's name.
    pub plugin: String,
    /// `ok` or `failed`.
    pub outcome: &'static str,
}

/// All metrics. Cheap to share: each is a handle.
#[derive(Default, Debug)]
pub struct Metrics {
    /// Requests answered.
    pub requests: Family<Request, Counter>,
    /// Requests under way, their bodies included.
    pub in_flight: Gauge,
    /// Bytes of bodies sent to clients.
    pub sent_bytes: Counter,
    /// Attempts at upstreams.
    pub attempts: Family<Attempt, Counter>,
    /// Bytes of bodies that upstreams sent.
    pub received_bytes: Family<Upstream, Counter>,
    /// Bodies that upstreams did not bring to their end, or that were wrong.
    pub broken_bodies: Family<BrokenBody, Counter>,
    /// Transfers beside a fill, for readers far ahead of it.
    pub side_ranges: Counter,
    /// Whether a registry keeps failing, and stands behind the others: 1 or 0.
    pub upstream_ailing: Family<Upstream, Gauge>,
    /// Fills that ended.
    pub fills: Family<Outcome, Counter>,
    /// Requests that shared the fill of another.
    pub coalesced: Counter,
    /// Cache faults that a pull went around.
    pub cache_faults: Counter,
    /// Blobs that were dropped to make room.
    pub cache_evictions: Counter,
    /// What they took.
    pub cache_evicted_bytes: Counter,
    /// What all cached blobs take.
    pub cache_bytes: Gauge,
    /// How many blobs are cached.
    pub cache_blobs: Gauge,
    /// Cached files that were hashed again and found right.
    pub cache_verified: Counter,
    /// Cached files that were not what their digest says, and removed.
    pub cache_corrupt: Counter,
    /// What the scrub has read.
    pub cache_scrubbed_bytes: Counter,
    /// Rounds that the scrub has ended.
    pub cache_scrub_rounds: Counter,
    /// How far the present round of the scrub is.
    pub cache_scrub_progress: Gauge<f64, AtomicU64>,
    /// Calls of plugins.
    pub plugin_calls: Family<PluginCall, Counter>,
    /// Time spent in calls of plugins.
    pub plugin_seconds: Family<PluginCall, Counter<f64, AtomicU64>>,
    /// Versions of plugins that were loaded or refused.
    pub plugin_loads: Family<PluginLoad, Counter>,
    /// The plugin set in effect: counts up at each swap.
    pub plugin_generation: Gauge,
}

impl Metrics {
    /// Renders all metrics in the text format of `OpenMetrics`, which Prometheus reads.
    pub fn render(&self) -> String {
        let mut registry = Registry::with_prefix("tidegate");
        registry.register("requests", "Requests answered", self.requests.clone());
        registry.register("requests_in_flight", "Requests under way, their bodies included", self.in_flight.clone());
        registry.register_with_unit("sent", "Bodies sent to clients", Unit::Bytes, self.sent_bytes.clone());
        registry.register("upstream_attempts", "Attempts at upstreams", self.attempts.clone());
        registry.register_with_unit(
            "upstream_received",
            "Bodies that upstreams sent",
            Unit::Bytes,
            self.received_bytes.clone(),
        );
        registry.register(
            "upstream_broken_bodies",
            "Bodies that upstreams did not bring to their end, or that were wrong",
            self.broken_bodies.clone(),
        );
        registry.register(
            "side_ranges",
            "Transfers beside a fill, for readers far ahead of it",
            self.side_ranges.clone(),
        );
        registry.register(
            "upstream_ailing",
            "1 while a registry keeps failing, and others are asked before it",
            self.upstream_ailing.clone(),
        );
        registry.register("fills", "Fills of the cache that ended", self.fills.clone());
        registry.register("coalesced_requests", "Requests that shared the fill of another", self.coalesced.clone());
        registry.register("cache_faults", "Cache faults that a pull went around", self.cache_faults.clone());
        registry.register("cache_evictions", "Blobs dropped to make room", self.cache_evictions.clone());
        registry.register_with_unit(
            "cache_evicted",
            "Blobs dropped to make room",
            Unit::Bytes,
            self.cache_evicted_bytes.clone(),
        );
        registry.register_with_unit("cache_size", "All cached blobs", Unit::Bytes, self.cache_bytes.clone());
        registry.register("cache_blobs", "Blobs cached", self.cache_blobs.clone());
        registry.register("cache_verified", "Cached files hashed again and right", self.cache_verified.clone());
        registry.register("cache_corrupt", "Cached files that were wrong, and removed", self.cache_corrupt.clone());
        registry.register_with_unit(
            "cache_scrubbed",
            "Cached blobs read by the scrub",
            Unit::Bytes,
            self.cache_scrubbed_bytes.clone(),
        );
        registry.register("cache_scrub_rounds", "Rounds of the scrub that ended", self.cache_scrub_rounds.clone());
        registry.register_with_unit(
            "cache_scrub_progress",
            "How far the present round of the scrub is",
            Unit::Ratios,
            self.cache_scrub_progress.clone(),
        );
        registry.register("plugin_calls", "Calls of plugins", self.plugin_calls.clone());
        registry.register_with_unit(
            "plugin_call",
            "Time spent in calls of plugins",
            Unit::Seconds,
            self.plugin_seconds.clone(),
        );
        registry.register("plugin_loads", "Versions of plugins loaded or refused", self.plugin_loads.clone());
        registry.register(
            "plugin_generation",
            "The plugin set in effect: counts up at each swap",
            self.plugin_generation.clone(),
        );
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes every write");
        text
    }
}
