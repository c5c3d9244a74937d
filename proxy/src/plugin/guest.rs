//! What lives in the store of an instance, and the host functions that it answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, error, info, trace, warn};
use wasmtime::component::{HasData, Linker};
use wasmtime::{StoreLimits, StoreLimitsBuilder};

use super::bindings::{call, clock, config, log, state as wit_state, types};
use super::convert::printable;
use super::facts::{Cached, Question};
use super::state::{Refused, State, now_ms};
use super::wasi::Sandbox;

/// Bytes of log lines that one call of a hook may write.
pub(super) const LOG_MAX: usize = 8 << 10;
/// Lines that one call of a hook may write, empty ones too.
const LOG_LINES_MAX: u32 = 64;
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
    /// Whether it was built for WASI.
    pub wasi: bool,
}

/// The data of a store.
pub(super) struct Guest {
    shared: Arc<Shared>,
    pub limits: StoreLimits,
    question: Option<Question>,
    state: Arc<State>,
    /// Ticks of the epoch that the guest may still run.
    ticks_left: u32,
    log_left: usize,
    log_lines_left: u32,
    log_dropped: u32,
    quiet: bool,
    started: Instant,
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
            ticks_left: 0,
            log_left: 0,
            log_lines_left: 0,
            log_dropped: 0,
            quiet: false,
            started: Instant::now(),
            sandbox,
        }
    }

    /// Begins a call of a hook.
    pub fn begin(&mut self, question: Option<&Question>, ticks: u32) {
        self.tell_output();
        self.question = question.cloned();
        self.state = match question {
            Some(question) if question.dry_run => Arc::new(self.shared.state.fork()),
            _ => self.shared.state.clone(),
        };
        self.ticks_left = ticks;
        self.log_left = LOG_MAX;
        self.log_lines_left = LOG_LINES_MAX;
        self.quiet = false;
        self.started = Instant::now();
    }

    /// Begins a call of which nothing is logged: every new instance is warmed up by the same one.
    pub fn begin_quietly(&mut self, ticks: u32) {
        self.begin(None, ticks);
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

    /// One tick of the epoch has passed while the guest ran: whether it may go on.
    pub fn tick(&mut self) -> bool {
        self.ticks_left = self.ticks_left.saturating_sub(1);
        self.ticks_left > 0
    }

    async fn peek(&self) -> Cached {
        match &self.question {
            Some(question) => (question.peek)().await,
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
    types::add_to_linker::<_, Has>(linker, |guest| guest)
}

impl types::Host for Guest {}

impl call::Host for Guest {
    fn id(&mut self) -> String {
        self.question.as_ref().map(|question| question.facts.id.clone()).unwrap_or_default()
    }

    fn client_address(&mut self) -> String {
        self.question.as_ref().map(|question| question.facts.client.to_string()).unwrap_or_default()
    }

    fn client(&mut self) -> Option<call::Identity> {
        None
    }

    fn user_agent(&mut self) -> String {
        self.question.as_ref().map(|question| question.facts.user_agent.clone()).unwrap_or_default()
    }

    fn accept(&mut self) -> Vec<String> {
        self.question.as_ref().map(|question| question.facts.accept.clone()).unwrap_or_default()
    }

    fn header(&mut self, name: String) -> Vec<String> {
        let Some(question) = &self.question else { return Vec::new() };
        let named = question.facts.headers.iter().filter(|(header, _)| header.eq_ignore_ascii_case(&name));
        named.map(|(_, value)| value.clone()).collect()
    }

    async fn attribute(&mut self, name: String) -> Option<String> {
        let question = self.question.as_ref()?;
        match name.as_str() {
            "method" => Some(question.pull.method.as_str().to_owned()),
            "addressing" => Some(question.pull.addressing.as_str().to_owned()),
            "cache.digest" => match self.peek().await {
                Cached::Absent => None,
                Cached::Fresh { digest, .. } | Cached::Stale { digest, .. } => Some(digest.to_string()),
            },
            "cache.age-secs" => match self.peek().await {
                Cached::Absent => None,
                Cached::Fresh { age, .. } => age.map(|age| age.as_secs().to_string()),
                Cached::Stale { age, .. } => Some(age.as_secs().to_string()),
            },
            _ => None,
        }
    }

    async fn cache(&mut self) -> call::Cached {
        match self.peek().await {
            Cached::Absent => call::Cached::Absent,
            Cached::Fresh { .. } => call::Cached::Fresh,
            Cached::Stale { .. } => call::Cached::Stale,
        }
    }

    fn remaining_ms(&mut self) -> u32 {
        self.ticks_left
    }

    fn warn(&mut self, message: String) {
        if let Some(question) = &self.question {
            question.facts.warn(&message);
        }
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
        now_ms()
    }

    fn monotonic_ns(&mut self) -> u64 {
        static ZERO: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        let since: Duration = ZERO.get_or_init(Instant::now).elapsed();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl wit_state::Host for Guest {
    fn get(&mut self, key: String) -> Result<Option<String>, wit_state::Error> {
        Ok(self.state.get(&key))
    }

    fn set(&mut self, key: String, value: String, ttl_secs: Option<u32>) -> Result<(), wit_state::Error> {
        Ok(self.state.set(&key, &value, ttl_secs)?)
    }

    fn set_once(&mut self, key: String, value: String, ttl_secs: Option<u32>) -> Result<String, wit_state::Error> {
        Ok(self.state.set_once(&key, &value, ttl_secs)?)
    }

    fn add(&mut self, key: String, delta: i32, ttl_secs: Option<u32>) -> Result<i64, wit_state::Error> {
        Ok(self.state.add(&key, delta, ttl_secs)?)
    }

    fn remove(&mut self, key: String) -> Result<(), wit_state::Error> {
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
