//! An instance of a plugin that is kept warm, and one call of a hook in it.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use wasmtime::component::Instance;
use wasmtime::{Store, Trap};

use super::bindings::{admission, fallback, freshness, hints, inspection, lifecycle, routing};
use super::convert::{self, printable};
use super::facts::Question;
use super::guest::Guest;
use super::hooks::Hooks;
use super::instance::{CROSSING_MAX, CallError};
use super::meter::{Late, Meter, Metered};
use super::ruling::{Ask, Ruling};

/// An instance, ready to be called.
pub(super) struct Warm {
    pub store: Store<Guest>,
    meter: Arc<Meter>,
    pub lifecycle: Option<lifecycle::Guest>,
    hints: Option<hints::Guest>,
    admission: Option<admission::Guest>,
    routing: Option<routing::Guest>,
    fallback: Option<fallback::Guest>,
    inspection: Option<inspection::Guest>,
    freshness: Option<freshness::Guest>,
    pub calls: u32,
    pub idle_since: Instant,
    /// Its place in the pool.
    _slot: OwnedSemaphorePermit,
}

impl Warm {
    pub fn of(
        hooks: &Hooks,
        mut store: Store<Guest>,
        instance: &Instance,
        slot: OwnedSemaphorePermit,
    ) -> wasmtime::Result<Self> {
        let within = &mut store;
        Ok(Self {
            meter: within.data().meter.clone(),
            lifecycle: hooks.lifecycle.as_ref().map(|hook| hook.load(&mut *within, instance)).transpose()?,
            hints: hooks.hints.as_ref().map(|hook| hook.load(&mut *within, instance)).transpose()?,
            admission: hooks.admission.as_ref().map(|hook| hook.load(&mut *within, instance)).transpose()?,
            routing: hooks.routing.as_ref().map(|hook| hook.load(&mut *within, instance)).transpose()?,
            fallback: hooks.fallback.as_ref().map(|hook| hook.load(&mut *within, instance)).transpose()?,
            inspection: hooks.inspection.as_ref().map(|hook| hook.load(&mut *within, instance)).transpose()?,
            freshness: hooks.freshness.as_ref().map(|hook| hook.load(&mut *within, instance)).transpose()?,
            store,
            calls: 0,
            idle_since: Instant::now(),
            _slot: slot,
        })
    }

    pub fn begin(&mut self, question: Option<&Question>, deadline: Duration) {
        self.store.data_mut().begin(question, deadline);
        self.store.set_epoch_deadline(1);
        self.store.set_hostcall_fuel(CROSSING_MAX);
    }

    pub async fn run(
        &mut self,
        ask: &Ask,
        deadline: Duration,
        question: Option<&Question>,
        plugin: &str,
    ) -> Result<Ruling, CallError> {
        let meter = self.meter.clone();
        let ran = Metered::new(&meter, pin!(self.ask(ask, question, plugin))).await;
        match ran {
            Ok(Ok(Ok(ruling))) => Ok(ruling),
            Ok(Ok(Err(unusable))) => Err(CallError::Unusable(unusable)),
            Ok(Err(err)) => Err(call_error(&err, deadline, &mut self.store)),
            Err(Late) => Err(CallError::Deadline(deadline)),
        }
    }

    /// Outside, that the call came to no end; inside, that its answer cannot be used.
    async fn ask(
        &mut self,
        ask: &Ask,
        question: Option<&Question>,
        plugin: &str,
    ) -> wasmtime::Result<Result<Ruling, String>> {
        let store = &mut self.store;
        let no_hook = || wasmtime::Error::msg("it has no such hook");
        let place = question.map(|question| question.asked.place());
        Ok(match ask {
            Ask::Check => Ok(Ruling::Accepted(self.lifecycle.as_ref().ok_or_else(no_hook)?.call_check(store).await?)),
            Ask::Hints => Ok(Ruling::Depends(self.hints.as_ref().ok_or_else(no_hook)?.call_depends_on(store).await?)),
            Ask::Admit(request) => {
                let verdict = self.admission.as_ref().ok_or_else(no_hook)?.call_admit(store, request).await?;
                Ok(Ruling::Verdict(convert::verdict(verdict, plugin)))
            }
            Ask::Route(request, candidates) => {
                let hook = self.routing.as_ref().ok_or_else(no_hook)?;
                let routes = hook.call_route(store, request, candidates).await?;
                convert::routes(routes, plugin, place.ok_or_else(no_hook)?).map(Ruling::Routes)
            }
            Ask::OnFailure(request, attempts, remaining) => {
                let hook = self.fallback.as_ref().ok_or_else(no_hook)?;
                let step = hook.call_on_failure(store, request, attempts, remaining).await?;
                convert::step(step, plugin, place.ok_or_else(no_hook)?).map(Ruling::Step)
            }
            Ask::Inspect(request) => {
                let finding = self.inspection.as_ref().ok_or_else(no_hook)?.call_inspect(store, request).await?;
                Ok(Ruling::Finding(convert::finding(finding, plugin)))
            }
            Ask::Judge(request, cached) => {
                let hook = self.freshness.as_ref().ok_or_else(no_hook)?;
                convert::rule(hook.call_judge(store, request, cached.as_ref()).await?).map(Ruling::Rule)
            }
        })
    }
}

/// `{error}` alone says only where it happened: what the guest said last, the trap, and the root of it, say what.
pub(super) fn call_error(err: &wasmtime::Error, deadline: Duration, store: &mut Store<Guest>) -> CallError {
    if err.downcast_ref::<Trap>() == Some(&Trap::Interrupt) {
        return CallError::Deadline(deadline);
    }
    let root = err.root_cause().to_string();
    let mut root = printable(root.lines().next().unwrap_or_default());
    if root.contains("forcing trap when growing memory") {
        root = format!("it needs more memory than it may have: `memory` in its settings raises that ({root})");
    }
    CallError::Trap(match store.data_mut().said() {
        Some(said) => format!("{said} ({root})"),
        None => root,
    })
}
