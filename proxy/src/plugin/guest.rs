//! What lives in the store of an instance, and the host functions that it answers.

use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use tracing::{debug, error, info, trace, warn};
use wasmtime::component::{HasData, Linker};
use wasmtime::{StoreLimits, StoreLimitsBuilder};

use super::bindings::{call, clock, config, image, log, metrics as wit_metrics, registry, state as wit_state, types};
use super::convert::printable;
use super::facts::Question;
use super::hints::{Kind, Used};
use super::looking::Budget;
use super::lookups::{Cached, Gave, Lookups};
use super::meter::Meter;
use super::settings::Mode;
use super::state::{Refused, State};
use super::wasi::Sandbox;
use crate::metrics::{self, Metrics, Value};
use crate::oci::{Place, Registry};

/// Bytes of log lines that one call of a hook may write.
pub(super) const LOG_MAX: usize = 8 << 10;
/// Lines that one call of a hook may write, empty ones too.
const LOG_LINES_MAX: u32 = 64;
/// What of its last error is told where it fails. Units: bytes.
const SAID_MAX: usize = 1024;
/// Memories and tables that a component may have; `QuickJS` needs 3 of each.
pub(super) const PARTS_MAX: usize = 8;
/// Core instances that a component may have; Python, which is linked of many libraries, needs 38.
pub(super) const INSTANCES_MAX: usize = 64;

/// A configuration file as the plugin gets it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct ConfigFile {
    pub name: String,
    pub text: String,
}

/// What all instances of one version of a plugin share.
pub(super) struct Shared {
    pub plugin: String,
    pub config: Vec<ConfigFile>,
    pub state: Arc<State>,
    pub mode: Mode,
    pub metrics: Arc<Metrics>,
    /// Whether it was built for WASI.
    pub wasi: bool,
}

/// The data of a store.
pub(super) struct Guest {
    shared: Arc<Shared>,
    pub limits: StoreLimits,
    pub(super) question: Option<Question>,
    state: Arc<State>,
    pub(super) meter: Arc<Meter>,
    pub(super) budget: Budget,
    /// The last line that it logged as an error: why it fails, where it does.
    said: Option<String>,
    log_left: usize,
    log_lines_left: u32,
    log_dropped: u32,
    quiet: bool,
    /// Host functions that this call has used.
    used: Used,
    /// What WASI is to it; none: it was not built for that.
    pub sandbox: Option<Box<Sandbox>>,
}

impl Guest {
    pub fn new(shared: Arc<Shared>, memory_bytes: usize) -> Self {
        let limits = StoreLimitsBuilder::new()
            .memory_size(memory_bytes)
            .table_elements(10_000)
            .instances(INSTANCES_MAX)
            .tables(PARTS_MAX)
            .memories(PARTS_MAX)
            .trap_on_grow_failure(true)
            .build();
        let state = shared.state.clone();
        let sandbox = shared.wasi.then(|| Box::new(Sandbox::new()));
        Self {
            shared,
            limits,
            question: None,
            state,
            meter: Arc::default(),
            budget: Budget::default(),
            said: None,
            log_left: 0,
            log_lines_left: 0,
            log_dropped: 0,
            quiet: false,
            used: Used::default(),
            sandbox,
        }
    }

    /// Begins a call of a hook.
    pub fn begin(&mut self, question: Option<&Question>, time: Duration) {
        self.tell_output();
        self.question = question.cloned();
        self.state = match question {
            Some(question) if question.dry_run => Arc::new(self.shared.state.fork()),
            _ => self.shared.state.clone(),
        };
        self.meter.begin(time);
        self.budget = Budget::default();
        self.said = None;
        self.log_left = LOG_MAX;
        self.log_lines_left = LOG_LINES_MAX;
        self.quiet = false;
        self.used = Used::default();
    }

    /// Begins a call of which nothing is logged: every new instance is warmed up by the same one.
    pub fn begin_quietly(&mut self, time: Duration) {
        self.begin(None, time);
        self.log_lines_left = 0;
        self.quiet = true;
    }

    /// Writes what it printed to the log, as it may write there itself.
    fn tell_output(&mut self) {
        let Some(sandbox) = &self.sandbox else { return };
        for (lines, level) in sandbox.take_lines().into_iter().zip([log::Level::Info, log::Level::Warn]) {
            for line in lines {
                log::Host::write(self, level, line);
            }
        }
    }

    /// Ends it; nothing of the request stays behind.
    pub fn end(&mut self) {
        self.tell_output();
        if self.log_dropped > 0 {
            warn!(plugin = self.shared.plugin, dropped = self.log_dropped, "a plugin logs more than a call may");
            self.log_dropped = 0;
        }
        self.question = None;
    }

    /// Takes note of a host function that it has used.
    pub fn uses(&mut self, kind: Kind, function: &'static str) {
        self.used.note(kind, function);
    }

    /// The host functions that this call has used.
    pub fn used(&self) -> Used {
        self.used
    }

    /// What it logged last as an error.
    pub fn said(&mut self) -> Option<String> {
        self.said.take()
    }

    async fn peek(&self) -> Cached {
        match &self.question {
            Some(question) => self.meter.free(question.lookups.cached()).await,
            None => Cached::Absent,
        }
    }
}

impl Drop for Guest {
    /// What a guest printed before it failed says why.
    fn drop(&mut self) {
        self.end();
    }
}

/// Offers the host functions to components.
pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    struct Has;
    impl HasData for Has {
        type Data<'a> = &'a mut Guest;
    }
    call::add_to_linker::<_, Has>(linker, |guest| guest)?;
    config::add_to_linker::<_, Has>(linker, |guest| guest)?;
    log::add_to_linker::<_, Has>(linker, |guest| guest)?;
    clock::add_to_linker::<_, Has>(linker, |guest| guest)?;
    wit_state::add_to_linker::<_, Has>(linker, |guest| guest)?;
    image::add_to_linker::<_, Has>(linker, |guest| guest)?;
    registry::add_to_linker::<_, Has>(linker, |guest| guest)?;
    wit_metrics::add_to_linker::<_, Has>(linker, |guest| guest)?;
    types::add_to_linker::<_, Has>(linker, |guest| guest)
}

impl types::Host for Guest {}

impl call::Host for Guest {
    fn id(&mut self) -> String {
        self.uses(Kind::State, "call.id");
        self.question.as_ref().map(|question| question.facts.id.clone()).unwrap_or_default()
    }

    fn client_address(&mut self) -> String {
        self.uses(Kind::Client, "call.client-address");
        self.question.as_ref().map(|question| question.facts.client.to_string()).unwrap_or_default()
    }

    fn client(&mut self) -> Option<call::Identity> {
        self.uses(Kind::Client, "call.client");
        let identity = self.question.as_ref()?.facts.identity.clone()?;
        Some(call::Identity { subject: identity.subject, issuer: identity.issuer, groups: identity.groups })
    }

    fn user_agent(&mut self) -> String {
        self.uses(Kind::Client, "call.user-agent");
        self.question.as_ref().map(|question| question.facts.user_agent.clone()).unwrap_or_default()
    }

    fn accept(&mut self) -> Vec<String> {
        self.uses(Kind::Headers, "call.accept");
        self.question.as_ref().map(|question| question.facts.accept.clone()).unwrap_or_default()
    }

    fn header(&mut self, name: String) -> Vec<String> {
        self.uses(Kind::Headers, "call.header");
        let Some(question) = &self.question else { return Vec::new() };
        let named = question.facts.headers.iter().filter(|(header, _)| header.eq_ignore_ascii_case(&name));
        named.map(|(_, value)| value.clone()).collect()
    }

    async fn attribute(&mut self, name: String) -> Option<String> {
        // These two belong to what is asked.
        if !matches!(name.as_str(), "method" | "addressing") {
            self.uses(Kind::Lookups, "call.attribute");
        }
        let question = self.question.as_ref()?;
        match name.as_str() {
            "method" => Some(question.asked.method().to_owned()),
            "addressing" => Some(question.asked.addressing().as_str().to_owned()),
            "cache.digest" => match self.peek().await {
                Cached::Absent => None,
                Cached::Fresh { digest, .. } | Cached::Stale { digest, .. } => Some(digest.to_string()),
            },
            "cache.age-secs" => match self.peek().await {
                Cached::Absent => None,
                Cached::Fresh { age, .. } => age.map(|age| age.as_secs().to_string()),
                Cached::Stale { age, .. } => Some(age.as_secs().to_string()),
            },
            name => {
                let gave = Gave::parse(name);
                let told = match gave {
                    Some(how) => places(&question.lookups.gave(how)),
                    None => attribute_of_a_registry(&*question.lookups, name),
                };
                let noted = gave.is_some() || name.starts_with("ratelimit.") || name.starts_with("registry.");
                if question.facts.recorded && noted {
                    question.facts.see(|seen| seen.note_attribute(name, told.as_deref()));
                }
                told
            }
        }
    }

    async fn cache(&mut self) -> call::Cached {
        self.uses(Kind::Lookups, "call.cache");
        match self.peek().await {
            Cached::Absent => call::Cached::Absent,
            Cached::Fresh { .. } => call::Cached::Fresh,
            Cached::Stale { .. } => call::Cached::Stale,
        }
    }

    fn remaining_ms(&mut self) -> u32 {
        self.uses(Kind::Time, "call.remaining-ms");
        self.meter.left_ms()
    }

    fn warn(&mut self, message: String) {
        self.uses(Kind::State, "call.warn");
        if let Some(question) = self.question.as_ref().filter(|_| self.shared.mode == Mode::Enforce) {
            question.facts.warn(&message);
        }
    }
}

/// Places as a plugin reads them; none for none.
fn places(places: &[Place]) -> Option<String> {
    let places: Vec<String> = places.iter().map(ToString::to_string).collect();
    (!places.is_empty()).then(|| places.join(" "))
}

/// What a fact about a registry is, by its name.
fn attribute_of_a_registry(lookups: &dyn Lookups, name: &str) -> Option<String> {
    let (kind, rest) = name.split_once('.')?;
    // A registry's name has dots itself.
    let (registry, what) = rest.rsplit_once('.')?;
    let registry = Registry::parse(registry)?;
    if (kind, what) == ("registry", "ailing") {
        return Some(lookups.is_ailing(&registry).to_string());
    }
    let (limit, age) = lookups.rate_limit(&registry).filter(|_| kind == "ratelimit")?;
    match what {
        "remaining" => Some(limit.remaining.to_string()),
        "limit" => limit.limit.map(|limit| limit.to_string()),
        "window-secs" => Some(limit.window.as_secs().to_string()),
        "age-secs" => Some(age.as_secs().to_string()),
        _ => None,
    }
}

impl config::Host for Guest {
    fn files(&mut self) -> Vec<config::File> {
        self.shared
            .config
            .iter()
            .map(|file| config::File { name: file.name.clone(), text: file.text.clone() })
            .collect()
    }
}

impl log::Host for Guest {
    fn write(&mut self, level: log::Level, message: String) {
        self.uses(Kind::State, "log.write");
        if matches!(level, log::Level::Error) {
            self.said = Some(printable(&message[..message.floor_char_boundary(SAID_MAX)]));
        }
        if message.len() > self.log_left || self.log_lines_left == 0 {
            self.log_dropped += u32::from(!self.quiet);
            return;
        }
        self.log_left -= message.len();
        self.log_lines_left -= 1;
        let plugin = self.shared.plugin.as_str();
        let request = self.question.as_ref().map(|question| question.facts.id.as_str());
        // Line ends and control characters of a guest must not write lines of their own.
        let text = printable(&message);
        match level {
            log::Level::Trace => trace!(plugin, request, "{text}"),
            log::Level::Debug => debug!(plugin, request, "{text}"),
            log::Level::Info => info!(plugin, request, "{text}"),
            log::Level::Warn => warn!(plugin, request, "{text}"),
            log::Level::Error => error!(plugin, request, "{text}"),
        }
    }
}

impl clock::Host for Guest {
    fn now_ms(&mut self) -> u64 {
        self.uses(Kind::Time, "clock.now-ms");
        let Some(question) = &self.question else { return self.state.now_ms() };
        let since = question.lookups.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic_ns(&mut self) -> u64 {
        static ZERO: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        self.uses(Kind::Time, "clock.monotonic-ns");
        let since: Duration = ZERO.get_or_init(Instant::now).elapsed();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl wit_state::Host for Guest {
    fn get(&mut self, key: String) -> Result<Option<String>, wit_state::Error> {
        self.uses(Kind::State, "state.get");
        Ok(self.state.get(&key))
    }

    fn set(&mut self, key: String, value: String, ttl_secs: Option<u32>) -> Result<(), wit_state::Error> {
        self.uses(Kind::State, "state.set");
        Ok(self.state.set(&key, &value, ttl_secs)?)
    }

    fn set_once(&mut self, key: String, value: String, ttl_secs: Option<u32>) -> Result<String, wit_state::Error> {
        self.uses(Kind::State, "state.set-once");
        Ok(self.state.set_once(&key, &value, ttl_secs)?)
    }

    fn add(&mut self, key: String, delta: i32, ttl_secs: Option<u32>) -> Result<i64, wit_state::Error> {
        self.uses(Kind::State, "state.add");
        Ok(self.state.add(&key, delta, ttl_secs)?)
    }

    fn remove(&mut self, key: String) -> Result<(), wit_state::Error> {
        self.uses(Kind::State, "state.remove");
        self.state.remove(&key);
        Ok(())
    }
}

impl From<Refused> for wit_state::Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TooManyKeys => Self::TooManyKeys,
            Refused::KeyTooLong => Self::KeyTooLong,
            Refused::ValueTooLong => Self::ValueTooLong,
        }
    }
}

impl Guest {
    fn count(&mut self, name: &str, labels: Vec<types::Pair>, value: Value) {
        self.uses(Kind::State, "metrics");
        // What is asked for a person, or of every new instance, is not counted.
        if self.quiet || self.question.as_ref().is_some_and(|question| question.dry_run) {
            return;
        }
        let labels = labels.into_iter().map(|pair| (pair.key, pair.value)).collect();
        let Shared { plugin, metrics, .. } = &*self.shared;
        if !metrics.plugin_series.take(plugin, name, labels, value) {
            metrics.plugin_dropped.get_or_create(&metrics::Plugin { plugin: plugin.clone() }).inc();
        }
    }
}

impl wit_metrics::Host for Guest {
    fn increment(&mut self, name: String, labels: Vec<types::Pair>, by: u32) {
        self.count(&name, labels, Value::Increment(by));
    }

    fn set(&mut self, name: String, labels: Vec<types::Pair>, value: f64) {
        self.count(&name, labels, Value::Gauge(value));
    }
}
