//! The hooks as traits, and what stands between them and the component: the panic hook.

use std::marker::PhantomData;
use std::sync::Once;

use crate::bindings::{admission, fallback, freshness, inspection, lifecycle, routing};
use crate::{Attempt, CachedTag, Candidate, Finding, Request, Routes, Rule, Step, Verdict, log};

/// Asked once, before a version of the plugin or of its configuration takes effect.
pub trait Lifecycle {
    /// Reads the configuration and accepts it.
    ///
    /// # Errors
    /// A text that names the file, the line and the way out: then the version before stays.
    fn check() -> Result<(), String>;
}

/// May this request go on? Asked once a request, before the cache is looked at.
pub trait Admission {
    /// Decides about one request. One denial of one plugin denies.
    fn admit(request: &Request) -> Verdict;
}

/// Where may it come from? A pipeline: each plugin gets the candidates of the one before it.
pub trait Routing {
    /// Gives the candidates to try, in order.
    fn route(request: &Request, candidates: &[Candidate]) -> Routes;
}

/// A candidate failed: what now?
pub trait Fallback {
    /// Decides the next step.
    ///
    /// `attempts`: all so far, the latest last. `remaining`: the candidates not tried yet.
    fn on_failure(request: &Request, attempts: &[Attempt], remaining: &[Candidate]) -> Step;
}

/// The manifest is here: may it be served? What it is stands in [`image`](crate::image).
pub trait Inspection {
    /// Looks at one manifest. One that is not released by every plugin is not served.
    fn inspect(request: &Request) -> Finding;
}

/// How fresh must a tag be? Asked before the cache and the registries are.
pub trait Freshness {
    /// Decides for one tag. The first opinion of a plugin holds.
    ///
    /// `cached`: the copy that the cache holds.
    fn judge(request: &Request, cached: Option<&CachedTag>) -> Rule;
}

/// What the component exports for the plugin `T`.
#[doc(hidden)]
pub struct Hook<T>(PhantomData<T>);

/// Runs before every call of a hook: a panic is a trap, and its message would be lost without the log.
fn begin() {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        std::panic::set_hook(Box::new(|panic| log::error(&panic.to_string())));
    });
}

impl<T: Lifecycle> lifecycle::exports::tidegate::policy::lifecycle::Guest for Hook<T> {
    fn check() -> Result<(), String> {
        begin();
        T::check()
    }
}

impl<T: Admission> admission::exports::tidegate::policy::admission::Guest for Hook<T> {
    fn admit(request: Request) -> Verdict {
        begin();
        T::admit(&request)
    }
}

impl<T: Routing> routing::exports::tidegate::policy::routing::Guest for Hook<T> {
    fn route(request: Request, candidates: Vec<Candidate>) -> Routes {
        begin();
        T::route(&request, &candidates)
    }
}

impl<T: Fallback> fallback::exports::tidegate::policy::fallback::Guest for Hook<T> {
    fn on_failure(request: Request, attempts: Vec<Attempt>, remaining: Vec<Candidate>) -> Step {
        begin();
        T::on_failure(&request, &attempts, &remaining)
    }
}

impl<T: Inspection> inspection::exports::tidegate::policy::inspection::Guest for Hook<T> {
    fn inspect(request: Request) -> Finding {
        begin();
        T::inspect(&request)
    }
}

impl<T: Freshness> freshness::exports::tidegate::policy::freshness::Guest for Hook<T> {
    fn judge(request: Request, cached: Option<CachedTag>) -> Rule {
        begin();
        T::judge(&request, cached.as_ref())
    }
}
