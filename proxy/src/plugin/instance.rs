//! One version of one plugin: its code, its hooks, its warm instances, and a call of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use wasmtime::component::{Component, InstancePre};
use wasmtime::{Store, Trap, UpdateDeadline};

use super::bindings::{admission, fallback, lifecycle, routing, types};
use super::compile;
use super::convert::printable;
use super::engine::{Engine, TICK};
use super::facts::Question;
use super::folder::Version;
use super::guest::{Guest, Shared};
use super::settings::Settings;
use super::state::States;
use super::wasi;
use crate::metrics::{Metrics, PluginCall};
use crate::trace;

/// Bytes of strings and lists that may cross between host and guest in one call.
const CROSSING_MAX: usize = 1 << 20;
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
/// What a call may take beyond its deadline, of time in which its guest does not run: host functions, other guests.
const BEYOND_DEADLINE: Duration = Duration::from_secs(1);

/// A version of a plugin that was loaded and has accepted its configuration.
pub struct Plugin {
    pub(super) version: Version,
    pub(super) settings: Settings,
    pub(super) hooks: Hooks,
    engine: Arc<Engine>,
    component: Component,
    pre: InstancePre<Guest>,
    shared: Arc<Shared>,
    idle: Mutex<Vec<Warm>>,
    metrics: Arc<Metrics>,
}

/// The hooks that a component exports.
pub(super) struct Hooks {
    lifecycle: Option<lifecycle::GuestIndices>,
    admission: Option<admission::GuestIndices>,
    routing: Option<routing::GuestIndices>,
    fallback: Option<fallback::GuestIndices>,
}

/// An instance, ready to be called.
struct Warm {
    store: Store<Guest>,
    lifecycle: Option<lifecycle::Guest>,
    admission: Option<admission::Guest>,
    routing: Option<routing::Guest>,
    fallback: Option<fallback::Guest>,
    calls: u32,
    idle_since: Instant,
    /// Its place in the pool.
    _slot: OwnedSemaphorePermit,
}

/// A call of a hook, with what it is given.
pub(super) enum Hook<'a> {
    Check,
    Admit(&'a types::Request),
    Route(&'a types::Request, &'a [types::Candidate]),
    OnFailure(&'a types::Request, &'a [types::Attempt], &'a [types::Candidate]),
}

/// What a hook gave.
pub(super) enum Answer {
    Check(Result<(), String>),
    Verdict(admission::Verdict),
    Routes(routing::Routes),
    Step(fallback::Step),
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
}

impl CallError {
    /// A word for it: a label of a metric.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Deadline(_) => "deadline",
            Self::Trap(_) => "trap",
            Self::Busy => "busy",
            Self::Unusable(_) => "unusable",
        }
    }
}

impl Hook<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Check => "lifecycle",
            Self::Admit(_) => "admission",
            Self::Route(..) => "routing",
            Self::OnFailure(..) => "fallback",
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
        let mut settings = Settings::parse(version.settings.as_ref())?;
        let component = match before {
            Some(before) if before.version.wasm == version.wasm => before.component.clone(),
            _ => compile::compile(engine, &version.wasm).await?,
        };
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
            wasi,
        });
        let plugin = Self {
            settings,
            hooks,
            engine: engine.clone(),
            component,
            pre,
            shared,
            idle: Mutex::default(),
            metrics: metrics.clone(),
            version,
        };
        plugin.check().await?;
        Ok(plugin)
    }

    /// Makes a trial instance and asks it.
    async fn check(&self) -> Result<(), String> {
        if self.hooks.lifecycle.is_none() {
            let mut warm = self.instantiate().await.map_err(|err| err.to_string())?;
            warm.store.data_mut().end();
            self.give_back(warm);
            return Ok(());
        }
        match self.call_within(&Hook::Check, None, CHECK_DEADLINE).await {
            Ok(Answer::Check(Ok(()))) => Ok(()),
            Ok(Answer::Check(Err(reason))) => Err(format!("it refuses its configuration: {}", printable(&reason))),
            Ok(_) => Err("it answers another question".to_owned()),
            Err(err) => Err(format!("lifecycle.check: {err}")),
        }
    }

    /// Calls a hook.
    pub(super) async fn call(&self, hook: &Hook<'_>, question: &Question) -> Result<Answer, CallError> {
        let started = Instant::now();
        let span = trace::child(trace::Kind::Internal, || format!("plugin {} {}", self.version.name, hook.name()));
        let answer = span.within(self.call_within(hook, Some(question), self.settings.deadline)).await;
        let outcome = answer.as_ref().map_or_else(CallError::kind, |_| "ok");
        span.text("tidegate.plugin", &self.version.name);
        span.word("tidegate.hook", hook.name());
        span.word("tidegate.outcome", outcome);
        if let Err(err) = &answer {
            span.fail(err);
        }
        let labels = PluginCall { plugin: self.version.name.clone(), hook: hook.name(), outcome };
        self.metrics.plugin_calls.get_or_create(&labels).inc();
        self.metrics.plugin_seconds.get_or_create(&labels).inc_by(started.elapsed().as_secs_f64());
        answer.inspect_err(|err| self.report(hook.name(), question, err))
    }

    /// Logs why a call gave no answer.
    pub(super) fn report(&self, hook: &'static str, question: &Question, err: &CallError) {
        tracing::error!(
            plugin = self.version.name,
            file = self.version.file,
            hook,
            request = question.facts.id,
            reason = err.to_string(),
            "plugin call failed"
        );
    }

    async fn call_within(
        &self,
        hook: &Hook<'_>,
        question: Option<&Question>,
        deadline: Duration,
    ) -> Result<Answer, CallError> {
        let _running = self.engine.run();
        let called = tokio::time::timeout(deadline + CHECK_DEADLINE + BEYOND_DEADLINE, async {
            let mut warm = match self.take_idle() {
                Some(warm) => warm,
                None => self.warm_up(hook).await?,
            };
            warm.begin(question, ticks(deadline));
            let answer = warm.run(hook).await.map_err(|err| call_error(&err, deadline))?;
            warm.store.data_mut().end();
            warm.calls += 1;
            self.give_back(warm);
            Ok(answer)
        });
        called.await.unwrap_or(Err(CallError::Deadline(deadline)))
    }

    /// A new instance that has read its configuration, which may take longer than a call may.
    async fn warm_up(&self, hook: &Hook<'_>) -> Result<Warm, CallError> {
        let mut warm = self.instantiate().await?;
        if warm.lifecycle.is_some() && !matches!(hook, Hook::Check) {
            warm.store.data_mut().begin_quietly(ticks(CHECK_DEADLINE));
            warm.store.set_epoch_deadline(1);
            warm.run(&Hook::Check).await.map_err(|err| call_error(&err, CHECK_DEADLINE))?;
            warm.store.data_mut().end();
        }
        Ok(warm)
    }

    fn take_idle(&self) -> Option<Warm> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Last in, first out: those at the bottom grow old and go.
    fn give_back(&self, mut warm: Warm) {
        if warm.calls >= CALLS_MAX {
            return;
        }
        warm.idle_since = Instant::now();
        let mut old = Vec::new();
        {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let aged = idle.iter().take_while(|warm| warm.idle_since.elapsed() > IDLE_TIME).count();
            old.extend(idle.drain(..aged));
            if idle.len() < IDLE_MAX {
                idle.push(warm);
            }
        }
        drop(old);
    }

    async fn instantiate(&self) -> Result<Warm, CallError> {
        // Guest code runs here too: a start function may loop.
        let _running = self.engine.run();
        let slot = tokio::time::timeout(SLOT_WAIT, self.engine.slots.clone().acquire_owned()).await;
        let slot = slot.ok().and_then(Result::ok).ok_or(CallError::Busy)?;
        let mut store = Store::new(&self.engine.wasmtime, Guest::new(self.shared.clone(), self.settings.memory_bytes));
        store.limiter(|guest| &mut guest.limits);
        store.set_hostcall_fuel(CROSSING_MAX);
        store.epoch_deadline_callback(|mut context| {
            let go_on = context.data_mut().tick();
            Ok(if go_on { UpdateDeadline::Yield(1) } else { UpdateDeadline::Interrupt })
        });
        let deadline = self.settings.deadline.max(CHECK_DEADLINE);
        store.set_epoch_deadline(1);
        store.data_mut().begin(None, ticks(deadline));
        let trap = |err: wasmtime::Error| call_error(&err, deadline);
        let instance = self.pre.instantiate_async(&mut store).await.map_err(trap)?;
        let hooks = &self.hooks;
        let lifecycle =
            hooks.lifecycle.as_ref().map(|hook| hook.load(&mut store, &instance)).transpose().map_err(trap)?;
        let admission =
            hooks.admission.as_ref().map(|hook| hook.load(&mut store, &instance)).transpose().map_err(trap)?;
        let routing = hooks.routing.as_ref().map(|hook| hook.load(&mut store, &instance)).transpose().map_err(trap)?;
        let fallback =
            hooks.fallback.as_ref().map(|hook| hook.load(&mut store, &instance)).transpose().map_err(trap)?;
        Ok(Warm { store, lifecycle, admission, routing, fallback, calls: 0, idle_since: Instant::now(), _slot: slot })
    }
}

impl Warm {
    fn begin(&mut self, question: Option<&Question>, ticks: u32) {
        self.store.data_mut().begin(question, ticks);
        self.store.set_epoch_deadline(1);
        self.store.set_hostcall_fuel(CROSSING_MAX);
    }

    async fn run(&mut self, hook: &Hook<'_>) -> wasmtime::Result<Answer> {
        let store = &mut self.store;
        let no_hook = || wasmtime::Error::msg("it has no such hook");
        Ok(match hook {
            Hook::Check => Answer::Check(self.lifecycle.as_ref().ok_or_else(no_hook)?.call_check(store).await?),
            Hook::Admit(request) => {
                Answer::Verdict(self.admission.as_ref().ok_or_else(no_hook)?.call_admit(store, request).await?)
            }
            Hook::Route(request, candidates) => {
                Answer::Routes(self.routing.as_ref().ok_or_else(no_hook)?.call_route(store, request, candidates).await?)
            }
            Hook::OnFailure(request, attempts, remaining) => {
                let hook = self.fallback.as_ref().ok_or_else(no_hook)?;
                Answer::Step(hook.call_on_failure(store, request, attempts, remaining).await?)
            }
        })
    }
}

fn ticks(deadline: Duration) -> u32 {
    u32::try_from(deadline.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u32::MAX)
}

/// `{error}` alone says only where it happened: the trap, and the root of it, say what.
fn call_error(err: &wasmtime::Error, deadline: Duration) -> CallError {
    if err.downcast_ref::<Trap>() == Some(&Trap::Interrupt) {
        return CallError::Deadline(deadline);
    }
    let root = err.root_cause().to_string();
    CallError::Trap(printable(root.lines().next().unwrap_or_default()))
}

impl Hooks {
    /// Finds the hooks among the exports of a component. One that has a hook's name but not its functions, and one
    /// that has no hook at all, are refused.
    fn find(component: &Component, pre: &InstancePre<Guest>) -> Result<Self, String> {
        let engine = component.engine();
        let kind = component.component_type();
        let exports: Vec<String> = kind.exports(engine).map(|(name, _)| name.to_owned()).collect();
        let has = |hook: &str| exports.iter().any(|export| export == &format!("tidegate:policy/{hook}@0.1.0"));
        let wrong = |hook: &str, err: wasmtime::Error| format!("its {hook} hook does not fit the interface: {err:#}");
        let hooks = Self {
            lifecycle: has("lifecycle")
                .then(|| lifecycle::GuestIndices::new(pre))
                .transpose()
                .map_err(|err| wrong("lifecycle", err))?,
            admission: has("admission")
                .then(|| admission::GuestIndices::new(pre))
                .transpose()
                .map_err(|err| wrong("admission", err))?,
            routing: has("routing")
                .then(|| routing::GuestIndices::new(pre))
                .transpose()
                .map_err(|err| wrong("routing", err))?,
            fallback: has("fallback")
                .then(|| fallback::GuestIndices::new(pre))
                .transpose()
                .map_err(|err| wrong("fallback", err))?,
        };
        if hooks.names().is_empty() {
            let listed = if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") };
            return Err(format!(
                "it exports no hook of tidegate:policy@0.1.0 (admission, routing, fallback); it exports {listed}"
            ));
        }
        Ok(hooks)
    }

    /// The deciding hooks that there are.
    pub fn names(&self) -> Vec<&'static str> {
        let all = [
            (self.admission.is_some(), "admission"),
            (self.routing.is_some(), "routing"),
            (self.fallback.is_some(), "fallback"),
        ];
        all.into_iter().filter(|(there, _)| *there).map(|(_, name)| name).collect()
    }

    pub fn admits(&self) -> bool {
        self.admission.is_some()
    }

    pub fn routes(&self) -> bool {
        self.routing.is_some()
    }

    pub fn falls_back(&self) -> bool {
        self.fallback.is_some()
    }
}
