//! Mirrors for a prefix of registry and repository, and what to do after each kind of failure.

mod failures;
mod mirrors;
mod upstreams;

use tidegate_sdk::{Attempt, Candidate, Config, Denial, Facts, Request, Routes, Step, log};
use upstreams::Upstreams;

struct Failover;

static UPSTREAMS: Config<Upstreams> = Config::new(upstreams::EXAMPLE, Upstreams::parse);

#[tidegate_sdk::plugin]
impl Failover {
    fn check() -> Result<(), String> {
        let upstreams = UPSTREAMS.get()?;
        log::info(&upstreams.to_string());
        Ok(())
    }

    fn depends_on() -> Facts {
        Facts::empty()
    }

    fn route(request: &Request, candidates: &[Candidate]) -> Routes {
        match UPSTREAMS.get() {
            Ok(upstreams) => mirrors::route(upstreams, request, candidates),
            // A host that calls without a check: going to the source would leave the operator's mirrors silently.
            Err(reason) => Denial { status: 503, ..Denial::new(format!("no route for {request}: {reason}")) }.into(),
        }
    }

    fn on_failure(request: &Request, attempts: &[Attempt], _remaining: &[Candidate]) -> Step {
        match UPSTREAMS.get() {
            Ok(upstreams) => failures::next_step(upstreams, request, attempts),
            Err(_) => Step::Pass,
        }
    }
}
