//! The hooks as traits, and what stands between them and the component: the panic hook.

use std::fmt::Display;
use std::marker::PhantomData;
use std::sync::Once;

use crate::bindings::{admission, fallback, freshness, hints, inspection, lifecycle, routing};
use crate::{Attempt, CachedTag, Candidate, Facts, Finding, Request, Routes, Rule, Step, Verdict, log};

/// Asked once, before a version of the plugin or of its configuration takes effect.
pub trait Lifecycle {
    /// Reads the configuration and accepts it.
    ///
    /// # Errors
    /// A text that names the file, the line and the way out: then the version before stays.
    fn check() -> Result<(), String>;
}

/// What the answers of `admit` and `route` depend on. A plugin that says so keeps nothing between two calls, and the host
/// may remember its answers.
pub trait Hints {
    /// What of a call is used beside what a hook is given: [`Facts::empty()`] where nothing is. Asked once, when the
    /// configuration has been accepted.
    fn depends_on() -> Facts;
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

/// What a method of a plugin may give for the answer `T` of its hook: the answer itself, or a result. An error fails
/// the call, which means a denial or nothing as the operator has set it, and its text is the reason in the log.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no answer of this hook",
    label = "must be `{T}`, or a `Result` of it with an error that can be printed"
)]
pub trait Answer<T> {
    /// The answer; does not return where there is none.
    fn answer(self) -> T;
}

impl<T, E: Display> Answer<T> for Result<T, E> {
    fn answer(self) -> T {
        self.unwrap_or_else(|error| fail(&error))
    }
}

/// Of `check`: an error refuses the configuration.
impl<E: Display> Answer<Result<(), String>> for Result<(), E> {
    fn answer(self) -> Result<(), String> {
        self.map_err(|error| error.to_string())
    }
}

macro_rules! answers {
    ($($answer:ty),+) => {
        $(impl Answer<$answer> for $answer {
            fn answer(self) -> $answer {
                self
            }
        })+
    };
}

answers!(Facts, Verdict, Routes, Step, Finding, Rule);

/// Ends the call, with the reason in the log.
fn fail(error: &dyn Display) -> ! {
    if cfg!(target_arch = "wasm32") {
        log::error(&error.to_string());
        std::process::abort()
    }
    panic!("{error}")
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

impl<T: Hints> hints::exports::tidegate::policy::hints::Guest for Hook<T> {
    fn depends_on() -> Facts {
        begin();
        T::depends_on()
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

#[cfg(test)]
mod tests {
    use super::Answer;
    use crate::Verdict;

    #[test]
    fn an_answer_may_be_a_result() {
        assert_eq!(Answer::<Verdict>::answer(Verdict::CachedOnly), Verdict::CachedOnly);
        assert_eq!(Ok::<_, String>(Verdict::Allow).answer(), Verdict::Allow);
        let refused: Result<(), String> = Err::<(), _>("no number".parse::<u8>().expect_err("it is none")).answer();
        assert_eq!(refused, Err("invalid digit found in string".to_owned()));
    }

    #[test]
    #[should_panic(expected = "the list cannot be read")]
    fn an_error_fails_the_call() {
        let _: Verdict = Err::<Verdict, _>("the list cannot be read").answer();
    }
}
