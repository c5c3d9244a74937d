//! Every metric of the program: its name, unit and labels.

mod series;

use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use series::{Series, Value};

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

/// Labels of a request that wrote or removed something, or was to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Written {
    /// `push` or `delete`.
    pub action: &'static str,
    /// `manifest` or `blob`.
    pub content: &'static str,
    /// Status of the answer.
    pub status: u16,
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
    /// `ok`, `failed`, `orphaned`; of CONNECT `intercepted`, `relayed`, `refused`, `failed`; of a span `delivered`, `dropped`, `failed`; of a line `written`, `dropped`, `failed`.
    pub outcome: &'static str,
}

/// Labels of a call of a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PluginCall {
    /// The plugin's name.
    pub plugin: String,
    /// Which hook.
    pub hook: &'static str,
    /// `ok`, `deadline`, `trap`, `busy`, `unusable`, `given-up`, or `remembered`, which is no call.
    pub outcome: &'static str,
}

/// Labels of a decision of a plugin in shadow mode.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Shadow {
    /// The plugin's name.
    pub plugin: String,
    /// Which hook.
    pub hook: &'static str,
    /// `same`, `other` (it would have changed what was decided), `skipped` (too many at once), `failed`.
    pub outcome: &'static str,
}

/// The label of what concerns one plugin.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Plugin {
    /// The plugin's name.
    pub plugin: String,
}

/// Labels of a version of a plugin that was loaded or refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PluginLoad {
    /// The plugin's name.
    pub plugin: String,
    /// `ok` or `failed`.
    pub outcome: &'static str,
}

/// The label of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Listener {
    /// `clients` or `admin`; of the end of a certificate also `intercept`, the authority.
    pub listener: &'static str,
}

/// Labels of how long an answer took.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Answered {
    /// `manifest`, `blob`, `tags`, `referrers`, `other`.
    pub content: &'static str,
    /// Where the body came from: `cache`, `stale`, `fill`, `upstream`, `none`.
    pub source: &'static str,
}

/// What this program is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// Upper bounds of the buckets of times: from a hit to a large blob on a slow line. Units: seconds.
const TIMES: [f64; 12] = [0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];

/// How long something takes, by answer.
#[derive(Clone, Debug)]
pub struct Times(Family<Answered, Histogram, fn() -> Histogram>);

impl Default for Times {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(TIMES)))
    }
}

impl Times {
    /// Takes note of one.
    pub fn observe(&self, labels: &Answered, time: Duration) {
        self.0.get_or_create(labels).observe(time.as_secs_f64());
    }
}

/// What counts answers of one kind: found once, for answers that are given again and again.
#[derive(Clone, Debug)]
pub struct Answers {
    /// Requests under way.
    pub in_flight: Gauge,
    requests: Counter,
    sent_bytes: Counter,
    request_seconds: Histogram,
    first_byte_seconds: Histogram,
}

impl Answers {
    /// Counts one that is over.
    pub fn count(&self, sent: u64, took: Duration, first_byte: Option<Duration>) {
        self.requests.inc();
        self.sent_bytes.inc_by(sent);
        self.request_seconds.observe(took.as_secs_f64());
        if let Some(first_byte) = first_byte {
            self.first_byte_seconds.observe(first_byte.as_secs_f64());
        }
    }
}

/// All metrics. Cheap to share: each is a handle.
#[derive(Default, Debug)]
pub struct Metrics {
    /// Requests answered.
    pub requests: Family<Request, Counter>,
    /// Requests that wrote or removed something, or were to.
    pub pushes: Family<Written, Counter>,
    /// Requests under way, their bodies included.
    pub in_flight: Gauge,
    /// Bytes of bodies sent to clients, by where they came from.
    pub sent_bytes: Family<Answered, Counter>,
    /// From a request to the end of its answer.
    pub request_seconds: Times,
    /// From a request to the first byte of its answer's body.
    pub first_byte_seconds: Times,
    /// Connections that are open.
    pub connections: Family<Listener, Gauge>,
    /// Connections that CONNECT asked for.
    pub tunnels: Family<Outcome, Counter>,
    /// Connections that are carried to another host now.
    pub tunnels_open: Gauge,
    /// What was carried, both ways, by those that have ended.
    pub tunnel_bytes: Counter,
    /// Panics.
    pub panics: Counter,
    /// Spans of traces that ended.
    pub trace_spans: Family<Outcome, Counter>,
    /// Lines of the decision record.
    pub decision_lines: Family<Outcome, Counter>,
    /// Versions of the configuration that were read while running.
    pub config_loads: Family<Outcome, Counter>,
    /// The configuration in effect: counts up at each that takes effect.
    pub config_generation: Gauge,
    /// When the configuration in effect took effect. Units: seconds since 1970.
    pub config_loaded_seconds: Gauge,
    /// When the first certificate of the listener ends; none without TLS. Units: seconds since 1970.
    pub certificate_expires_seconds: Family<Listener, Gauge>,
    /// Attempts at upstreams.
    pub attempts: Family<Attempt, Counter>,
    /// Bytes of bodies that upstreams sent.
    pub received_bytes: Family<Upstream, Counter>,
    /// Bytes of bodies that upstreams were sent.
    pub pushed_bytes: Family<Upstream, Counter>,
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
    /// Requests that were answered as the same one was just before.
    pub repeated: Counter,
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
    /// Decisions of plugins in shadow mode.
    pub plugin_shadows: Family<Shadow, Counter>,
    /// Counters and gauges of plugins.
    pub plugin_series: Series,
    /// What plugins gave of them that breaks a limit.
    pub plugin_dropped: Family<Plugin, Counter>,
    /// 1 while a plugin's `on_error` answer stands for it.
    pub plugin_given_up: Family<Plugin, Gauge>,
    /// Versions of plugins that were loaded or refused.
    pub plugin_loads: Family<PluginLoad, Counter>,
    /// The plugin set in effect: counts up at each swap.
    pub plugin_generation: Gauge,
}

/// When the metrics of this process began.
static START: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);

/// A time as metrics carry it. Units: seconds since 1970.
pub fn unix_seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Metrics {
    /// Metrics of a process that starts now.
    pub fn start() -> Self {
        LazyLock::force(&START);
        Self::default()
    }

    /// What counts answers of a kind.
    pub fn answers(&self, labels: &Request) -> Answers {
        let answered = Answered { content: labels.content, source: labels.source };
        Answers {
            in_flight: self.in_flight.clone(),
            requests: self.requests.get_or_create_owned(labels),
            sent_bytes: self.sent_bytes.get_or_create_owned(&answered),
            request_seconds: self.request_seconds.0.get_or_create_owned(&answered),
            first_byte_seconds: self.first_byte_seconds.0.get_or_create_owned(&answered),
        }
    }

    /// Renders all metrics in the text format of `OpenMetrics`, which Prometheus reads.
    pub fn render(&self) -> String {
        let mut registry = Registry::with_prefix("tidegate");
        self.register_serving(&mut registry);
        registry.register("upstream_attempts", "Attempts at upstreams", self.attempts.clone());
        registry.register_with_unit(
            "upstream_received",
            "Bodies that upstreams sent",
            Unit::Bytes,
            self.received_bytes.clone(),
        );
        registry.register_with_unit(
            "upstream_sent",
            "Bodies that upstreams were sent",
            Unit::Bytes,
            self.pushed_bytes.clone(),
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
        registry.register("repeated_requests", "Requests answered as the same one just before", self.repeated.clone());
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
        registry.register("plugin_shadows", "Decisions of plugins in shadow mode", self.plugin_shadows.clone());
        registry.register(
            "plugin_dropped",
            "Counters and gauges of plugins that break a limit",
            self.plugin_dropped.clone(),
        );
        registry.register(
            "plugin_given_up",
            "1 while the `on_error` answer of a plugin that keeps failing stands for it",
            self.plugin_given_up.clone(),
        );
        registry.register_collector(Box::new(self.plugin_series.clone()));
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

    /// What concerns clients, the configuration and the process.
    fn register_serving(&self, registry: &mut Registry) {
        registry.register("requests", "Requests answered", self.requests.clone());
        registry.register("pushes", "Requests to write or to remove something", self.pushes.clone());
        registry.register("requests_in_flight", "Requests under way, their bodies included", self.in_flight.clone());
        registry.register_with_unit("sent", "Bodies sent to clients", Unit::Bytes, self.sent_bytes.clone());
        registry.register_with_unit(
            "request",
            "From a request to the end of its answer",
            Unit::Seconds,
            self.request_seconds.0.clone(),
        );
        registry.register_with_unit(
            "first_byte",
            "From a request to the first byte of its answer's body",
            Unit::Seconds,
            self.first_byte_seconds.0.clone(),
        );
        registry.register("connections", "Connections that are open", self.connections.clone());
        registry.register("tunnels", "Connections that CONNECT asked for", self.tunnels.clone());
        registry.register("tunnels_open", "Connections carried to another host", self.tunnels_open.clone());
        registry.register_with_unit("tunnel", "Carried by tunnels that ended", Unit::Bytes, self.tunnel_bytes.clone());
        registry.register(
            "trace_spans",
            "Spans of traces: delivered, dropped from a full queue, or not taken by the collector",
            self.trace_spans.clone(),
        );
        registry.register(
            "decision_lines",
            "Lines of the decision record: written, dropped from a full queue, or not taken by the file",
            self.decision_lines.clone(),
        );
        registry.register("panics", "Panics: faults of this program", self.panics.clone());
        registry.register(
            "config_loads",
            "Versions of the configuration that were read while running",
            self.config_loads.clone(),
        );
        registry.register(
            "config_generation",
            "The configuration in effect: counts up at each that takes effect",
            self.config_generation.clone(),
        );
        registry.register_with_unit(
            "config_loaded_timestamp",
            "When the configuration in effect took effect, since 1970",
            Unit::Seconds,
            self.config_loaded_seconds.clone(),
        );
        registry.register_with_unit(
            "certificate_expiry_timestamp",
            "When the first certificate of the listener ends, since 1970",
            Unit::Seconds,
            self.certificate_expires_seconds.clone(),
        );
        let started: Gauge = Gauge::default();
        started.set(unix_seconds(*START));
        registry.register_with_unit(
            "process_start_time",
            "When this process started, since 1970",
            Unit::Seconds,
            started,
        );
        registry.register("build", "What this program is", Info::new(Build { version: env!("CARGO_PKG_VERSION") }));
    }
}
