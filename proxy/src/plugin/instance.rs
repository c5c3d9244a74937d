//! One version of one plugin: its code, its hooks, its warm instances, and a call of it.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::Guard;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Semaphore;
use wasmtime::component::{Component, InstancePre};
use wasmtime::{Store, UpdateDeadline};

use super::compile::{self, Awaited};
use super::convert::printable;
use super::counters::Counters;
use super::engine::{Engine, PARTS_OF_SLOT, SLOTS};
use super::facts::Question;
use super::folder::Version;
use super::guest::{Guest, Shared};
use super::hints::{Hints, Used};
use super::hooks::Hooks;
use super::looking;
use super::memory::{Key, Memory, Remembered};
use super::meter::{Metered, within};
use super::ruling::{Ask, Ruling};
use super::settings::{Isolation, Mode, Settings};
use super::state::States;
use super::warm::{Warm, call_error};
use super::wasi;
use crate::metrics::{self, Metrics};
use crate::trace;

/// Bytes of strings and lists that may cross between host and guest in one call.
pub(super) const CROSSING_MAX: usize = 1 << 20;
/// Calls after which an instance is retired: what it leaked goes with it.
const CALLS_MAX: u32 = 100_000;
/// Idle instances of one plugin; more than the cores need are only memory.
const IDLE_MAX: usize = 8;
/// How long an instance may be idle.
const IDLE_TIME: Duration = Duration::from_mins(1);
/// Longest time of `lifecycle.check`, which may read a large configuration.
const CHECK_DEADLINE: Duration = Duration::from_secs(1);
/// How long a call waits for a place in the pool.
const SLOT_WAIT: Duration = Duration::from_millis(500);
/// What a call may take beyond its deadline and its look-ups, of time in which its guest does not run: other guests.
const BEYOND_DEADLINE: Duration = Duration::from_secs(1);
/// Calls of one plugin at once, so that one whose look-ups take long leaves places to the others.
const CALLS_AT_ONCE: usize = (SLOTS / 2) as usize;
/// Decisions of one plugin in shadow mode at once: what is more is passed over.
const SHADOWS_AT_ONCE: usize = 64;
/// Failures in a row after which a plugin is reported.
const FAILURES_MAX: u32 = 10;

/// A version of a plugin that was loaded and has accepted its configuration.
pub struct Plugin {
    pub(super) version: Version,
    pub(super) settings: Settings,
    pub(super) hooks: Hooks,
    /// Its name, cheap to share.
    pub(super) name: Arc<str>,
    pub(super) life: Arc<Life>,
    engine: Arc<Engine>,
    component: Component,
    pre: InstancePre<Guest>,
    shared: Arc<Shared>,
    turns: Arc<Semaphore>,
    /// Places in the pool that an instance takes.
    slots: u32,
    shadows: Arc<Semaphore>,
    #[expect(clippy::vec_box, reason = "each call moves one out and in again")]
    idle: Mutex<Vec<Box<Warm>>>,
    /// What it said of its answers when it was loaded; empty: nothing.
    hints: OnceLock<Hints>,
    counters: Counters,
    metrics: Arc<Metrics>,
}

/// Counts decisions of one hook for which its plugin is not called.
pub(super) struct Tally {
    counter: Counter,
    life: Arc<Life>,
}

impl Tally {
    pub fn count(&self) {
        self.counter.inc();
        self.life.calls.fetch_add(1, Ordering::Relaxed);
    }
}

/// How a version of a plugin fares.
#[derive(Debug)]
pub(super) struct Life {
    pub loaded: SystemTime,
    /// Decisions, those that were remembered too.
    pub calls: AtomicU64,
    pub failures: AtomicU64,
    /// Units: nanoseconds.
    pub busy: AtomicU64,
    pub last_error: Mutex<Option<(SystemTime, String)>>,
    /// Of each hook by itself: one that answers does not make up for another that never does.
    failures_in_a_row: [AtomicU32; Ask::HOOKS],
    given_up: AtomicBool,
}

impl Life {
    fn new() -> Self {
        Self {
            loaded: SystemTime::now(),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            last_error: Mutex::default(),
            failures_in_a_row: Default::default(),
            given_up: AtomicBool::new(false),
        }
    }

    /// Whether its `on_error` answer stands for it.
    pub fn has_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }
}

/// Why a call gave no answer. The instance is gone; the plugin is not.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// It ran longer than its deadline.
    #[error("it ran past its deadline of {} ms", .0.as_millis())]
    Deadline(Duration),
    /// It trapped, or the host refused it something.
    #[error("it failed: {0}")]
    Trap(String),
    /// No instance could be had in time.
    #[error("all {} instances are busy", super::engine::SLOTS)]
    Busy,
    /// It gave what cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// It has failed too often in a row, and is not asked any more.
    #[error("it has failed {0} times in a row, and is not asked until it is replaced")]
    GivenUp(u32),
}

/// Why a version does not take effect.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum CheckError {
    /// It says so.
    #[error("it refuses its configuration: {0}")]
    Refused(String),
    /// It could not even be asked.
    #[error("{0}")]
    Failed(String),
}

impl CallError {
    /// A word for it: a label of a metric.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Deadline(_) => "deadline",
            Self::Trap(_) => "trap",
            Self::Busy => "busy",
            Self::Unusable(_) => "unusable",
            Self::GivenUp(_) => "given-up",
        }
    }
}

impl Plugin {
    /// Loads a version: compiles it (or takes the code of `before`, where only the configuration changed), makes a
    /// trial instance, loads every hook, and asks it whether it accepts its configuration.
    ///
    /// # Errors
    /// A text for the operator.
    pub(super) async fn load(
        version: Version,
        before: Option<&Self>,
        engine: &Arc<Engine>,
        states: &States,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, String> {
        let component = match before {
            Some(before) if before.version.wasm == version.wasm => before.component.clone(),
            Some(_) => compile::compile(engine, &version.wasm, Awaited::ByNobody).await?,
            None => compile::compile(engine, &version.wasm, Awaited::ByAll).await?,
        };
        let plugin = Self::assemble(version, component, engine, states, metrics)?;
        plugin.check().await.map_err(|err| err.to_string())?;
        metrics.plugin_given_up.remove(&metrics::Plugin { plugin: plugin.version.name.clone() });
        Ok(plugin)
    }

    /// Puts a version together from its code, without asking it anything.
    ///
    /// # Errors
    /// A text for the operator.
    pub(super) fn assemble(
        version: Version,
        component: Component,
        engine: &Arc<Engine>,
        states: &States,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, String> {
        let mut settings = Settings::parse(version.settings.as_ref())?;
        let wasi = wasi::is_wanted_by(&component);
        if wasi || wasi::brings_runtime(&component) {
            settings.allow_for_runtime();
        }
        let linker = if wasi { &engine.wasi_linker } else { &engine.linker };
        let pre =
            linker.instantiate_pre(&component).map_err(|err| format!("it asks for what there is not: {err:#}"))?;
        let hooks = Hooks::find(&component, &pre)?;
        let shared = Arc::new(Shared {
            plugin: version.name.clone(),
            config: version.config.clone(),
            state: states.of(&version.name),
            mode: settings.mode,
            metrics: metrics.clone(),
            wasi,
        });
        Ok(Self {
            settings,
            hooks,
            engine: engine.clone(),
            slots: slots_of(&component),
            component,
            pre,
            shared,
            name: version.name.as_str().into(),
            life: Arc::new(Life::new()),
            turns: Arc::new(Semaphore::new(CALLS_AT_ONCE)),
            shadows: Arc::new(Semaphore::new(SHADOWS_AT_ONCE)),
            idle: Mutex::default(),
            hints: OnceLock::new(),
            counters: Counters::default(),
            metrics: metrics.clone(),
            version,
        })
    }

    /// Makes a trial instance and asks it.
    pub(super) async fn check(&self) -> Result<(), CheckError> {
        if self.hooks.lifecycle.is_none() {
            let mut warm = self.instantiate().await.map_err(|err| CheckError::Failed(err.to_string()))?;
            warm.store.data_mut().end();
            self.give_back(warm, Instant::now());
            return self.ask_hints().await;
        }
        match self.call_within(&Ask::Check, None, CHECK_DEADLINE).await {
            Ok((Ruling::Accepted(Err(reason)), ..)) => Err(CheckError::Refused(printable(&reason))),
            Ok((_, _, warm)) => {
                self.give_back(warm, Instant::now());
                self.ask_hints().await
            }
            Err(err) => Err(CheckError::Failed(format!("lifecycle.check: {err}"))),
        }
    }

    /// Asks it what its answers depend on, where it says that.
    async fn ask_hints(&self) -> Result<(), CheckError> {
        if self.hooks.hints.is_none() {
            return Ok(());
        }
        match self.call_within(&Ask::Hints, None, CHECK_DEADLINE).await {
            Ok((Ruling::Depends(flags), _, warm)) => {
                self.give_back(warm, Instant::now());
                let decides = self.hooks.has("admission") || self.hooks.has("routing");
                let remembers = decides && self.settings.mode == Mode::Enforce;
                self.hints.get_or_init(|| Hints::new(flags, remembers));
                Ok(())
            }
            Ok(_) => Err(CheckError::Failed("hints.depends-on gave no flags".to_owned())),
            Err(err) => Err(CheckError::Failed(format!("hints.depends-on: {err}"))),
        }
    }

    /// What it has answered; none: nothing of it is remembered.
    pub(super) fn memory(&self) -> Option<&Memory> {
        self.hints.get()?.memory()
    }

    /// What it answered when it was asked the same before.
    pub(super) fn recall(&self, key: &Key<'_>, hook: (usize, &'static str)) -> Option<Guard<Option<Arc<Remembered>>>> {
        let memory = self.memory()?;
        // What has been failing is not what it was.
        let found = if self.life.has_given_up() { None } else { memory.get(key) }?;
        let span = trace::child(trace::Kind::Internal, || format!("plugin {} {}", self.name, hook.1));
        span.text("tidegate.plugin", &self.name);
        span.word("tidegate.hook", hook.1);
        span.word("tidegate.outcome", "remembered");
        self.counters.remembered(&self.metrics, &self.version.name, hook).inc();
        self.life.calls.fetch_add(1, Ordering::Relaxed);
        Some(found)
    }

    /// What counts decisions of a hook for which it is not called.
    pub(super) fn tally(&self, hook: (usize, &'static str)) -> Tally {
        let counter = self.counters.remembered(&self.metrics, &self.version.name, hook).clone();
        Tally { counter, life: self.life.clone() }
    }

    /// Remembers the answer of a call, where it may be.
    pub(super) fn remember(&self, key: &Key<'_>, ask: &Ask, ruling: &Ruling, used: &Used) -> bool {
        let Some(hints) = self.hints.get() else { return false };
        if !hints.may_repeat(used, &self.version.name, ask.hook()) {
            return false;
        }
        if let Some(memory) = hints.memory() {
            memory.put(key, ruling);
        }
        true
    }

    /// Makes an instance that could be called, and drops it.
    pub(super) async fn start(&self) -> Result<(), CallError> {
        let _running = self.engine.run();
        let mut warm = self.instantiate().await?;
        self.read_configuration(&mut warm).await
    }

    /// Turns for decisions in shadow mode.
    pub(super) fn shadows(&self) -> Arc<Semaphore> {
        self.shadows.clone()
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Calls a hook. Gives, with its answer, how long it took.
    pub(super) async fn call(&self, ask: &Ask, question: &Question) -> (Result<(Ruling, Used), CallError>, Duration) {
        if let (true, Some(after)) = (self.life.has_given_up(), self.settings.give_up_after) {
            return (Err(CallError::GivenUp(after)), Duration::ZERO);
        }
        let started = Instant::now();
        let span = trace::child(trace::Kind::Internal, || format!("plugin {} {}", self.name, ask.hook()));
        let called = span.within(self.call_within(ask, Some(question), self.settings.deadline)).await;
        let ended = Instant::now();
        let took = ended - started;
        let answer = called.map(|(ruling, used, warm)| {
            self.give_back(warm, ended);
            (ruling, used)
        });
        let outcome = answer.as_ref().map_or_else(CallError::kind, |_| "ok");
        span.text("tidegate.plugin", &self.name);
        span.word("tidegate.hook", ask.hook());
        span.word("tidegate.outcome", outcome);
        if let Err(err) = &answer {
            span.fail(err);
        }
        self.life.calls.fetch_add(1, Ordering::Relaxed);
        self.life.busy.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        match &answer {
            Ok(_) => {
                self.counters.answered(&self.metrics, &self.version.name, ask, took);
                self.life.failures_in_a_row[ask.number()].store(0, Ordering::Relaxed);
            }
            Err(err) => {
                Counters::failed(&self.metrics, &self.version.name, ask, outcome, took);
                self.fail(ask, question, err);
            }
        }
        (answer, took)
    }

    /// Takes note of a call that gave no answer.
    fn fail(&self, ask: &Ask, question: &Question, err: &CallError) {
        let (plugin, file, reason) = (self.version.name.as_str(), self.version.file.as_str(), err.to_string());
        let request = question.facts.id.as_str();
        tracing::error!(plugin, file, hook = ask.hook(), request, reason, "plugin call failed");
        self.life.failures.fetch_add(1, Ordering::Relaxed);
        *self.life.last_error.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((SystemTime::now(), reason.clone()));
        // That all places are taken is not its fault alone.
        if matches!(err, CallError::Busy) {
            return;
        }
        let times = self.life.failures_in_a_row[ask.number()].fetch_add(1, Ordering::Relaxed) + 1;
        if self.settings.give_up_after == Some(times) {
            self.life.given_up.store(true, Ordering::Relaxed);
            self.metrics.plugin_given_up.get_or_create(&metrics::Plugin { plugin: plugin.to_owned() }).set(1);
            tracing::error!(
                plugin,
                file,
                times,
                reason,
                "a plugin keeps failing: its `on_error` answer stands for it until it is replaced"
            );
        } else if self.settings.give_up_after.is_none() && times == FAILURES_MAX {
            tracing::error!(
                plugin,
                file,
                times,
                reason,
                "a plugin keeps failing: `give_up_after` in its settings would let its `on_error` answer stand for it"
            );
        }
    }

    async fn call_within(
        &self,
        ask: &Ask,
        question: Option<&Question>,
        deadline: Duration,
    ) -> Result<(Ruling, Used, Box<Warm>), CallError> {
        let _running = self.engine.run();
        let longest = deadline + CHECK_DEADLINE + BEYOND_DEADLINE + looking::TIME_MAX;
        let called = within(longest, async {
            // First come, first served.
            let turn = within(SLOT_WAIT, self.turns.acquire_many(self.slots)).await;
            let _turn = turn.map_err(|_| CallError::Busy)?;
            let mut warm = match self.take_idle() {
                Some(warm) => warm,
                // Rare, and large: in a box it makes no call's future larger.
                None => Box::pin(self.warm_up(ask)).await?,
            };
            warm.begin(question, deadline);
            let ruling = warm.run(ask, deadline, question, &self.name).await?;
            warm.store.data_mut().end();
            warm.calls += 1;
            let used = warm.store.data().used();
            Ok((ruling, used, warm))
        });
        called.await.unwrap_or(Err(CallError::Deadline(deadline)))
    }

    /// A new instance that has read its configuration, which may take longer than a call may.
    async fn warm_up(&self, ask: &Ask) -> Result<Box<Warm>, CallError> {
        let mut warm = self.instantiate().await?;
        if !matches!(ask, Ask::Check) {
            self.read_configuration(&mut warm).await?;
        }
        Ok(warm)
    }

    async fn read_configuration(&self, warm: &mut Warm) -> Result<(), CallError> {
        if warm.lifecycle.is_some() {
            warm.store.data_mut().begin_quietly(CHECK_DEADLINE);
            warm.store.set_epoch_deadline(1);
            warm.run(&Ask::Check, CHECK_DEADLINE, None, &self.name).await?;
            warm.store.data_mut().end();
        }
        Ok(())
    }

    fn take_idle(&self) -> Option<Box<Warm>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Last in, first out: those at the bottom grow old and go.
    fn give_back(&self, mut warm: Box<Warm>, now: Instant) {
        if warm.calls >= CALLS_MAX || self.settings.isolation == Isolation::Fresh {
            return;
        }
        warm.idle_since = now;
        let mut old = Vec::new();
        {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let aged =
                idle.iter().take_while(|warm| now.saturating_duration_since(warm.idle_since) > IDLE_TIME).count();
            old.extend(idle.drain(..aged));
            if idle.len() < IDLE_MAX {
                idle.push(warm);
            }
        }
        drop(old);
    }

    async fn instantiate(&self) -> Result<Box<Warm>, CallError> {
        // Guest code runs here too: a start function may loop.
        let _running = self.engine.run();
        let slot = within(SLOT_WAIT, self.engine.slots.clone().acquire_many_owned(self.slots)).await;
        let slot = slot.ok().and_then(Result::ok).ok_or(CallError::Busy)?;
        let mut store = Store::new(&self.engine.wasmtime, Guest::new(self.shared.clone(), self.settings.memory_bytes));
        store.limiter(|guest| &mut guest.limits);
        store.set_hostcall_fuel(CROSSING_MAX);
        store.epoch_deadline_callback(|context| {
            let go_on = context.data().meter.tick();
            Ok(if go_on { UpdateDeadline::Yield(1) } else { UpdateDeadline::Interrupt })
        });
        let deadline = self.settings.deadline.max(CHECK_DEADLINE);
        store.set_epoch_deadline(1);
        store.data_mut().begin(None, deadline);
        let meter = store.data().meter.clone();
        let instance = Metered::new(&meter, pin!(self.pre.instantiate_async(&mut store))).await;
        let instance = instance.map_err(|_| CallError::Deadline(deadline))?;
        let instance = instance.map_err(|err| call_error(&err, deadline, &mut store))?;
        Warm::of(&self.hooks, store, &instance, slot).map(Box::new).map_err(|err| CallError::Trap(format!("{err:#}")))
    }
}

/// How many places in the pool an instance takes: `QuickJS` has three memories and as many tables.
fn slots_of(component: &Component) -> u32 {
    let needs = component.resources_required();
    let most = needs.map_or(1, |needs| needs.num_memories.max(needs.num_tables));
    most.div_ceil(PARTS_OF_SLOT).max(1)
}
