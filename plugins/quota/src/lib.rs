//! What is left of an upstream's rate limit is saved for what no other place has, and clients have budgets of pulls.

mod budget;
mod limit;
mod rules;

use rules::Rules;
use tidegate_sdk::{
    Admission, Attempt, CachedTag, Candidate, Config, Denial, Fallback, Freshness, Lifecycle, Request, Routes, Routing,
    Rule, Step, Verdict, log,
};

struct Quota;

static RULES: Config<Rules> = Config::new(rules::EXAMPLE, Rules::parse);

impl Lifecycle for Quota {
    fn check() -> Result<(), String> {
        let rules = RULES.get()?;
        log::info(&rules.to_string());
        Ok(())
    }
}

impl Admission for Quota {
    fn admit(request: &Request) -> Verdict {
        match RULES.get() {
            Ok(rules) => budget::admit(rules, request),
            // A host that calls without a check: a policy that cannot be read is never no policy.
            Err(reason) => Denial { status: 503, ..Denial::new(format!("{request} is denied: {reason}")) }.into(),
        }
    }
}

impl Routing for Quota {
    fn route(request: &Request, candidates: &[Candidate]) -> Routes {
        RULES.get().map_or(Routes::Pass, |rules| limit::route(rules, request, candidates))
    }
}

impl Freshness for Quota {
    fn judge(request: &Request, cached: Option<&CachedTag>) -> Rule {
        RULES.get().map_or(Rule::Pass, |rules| limit::judge(rules, request, cached))
    }
}

impl Fallback for Quota {
    fn on_failure(request: &Request, attempts: &[Attempt], remaining: &[Candidate]) -> Step {
        RULES.get().map_or(Step::Pass, |rules| limit::next_step(rules, request, attempts, remaining))
    }
}

tidegate_sdk::export!(Quota: lifecycle, admission, routing, freshness, fallback);
