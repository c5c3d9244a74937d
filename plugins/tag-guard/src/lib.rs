//! A tag that moved to another digest is denied, warned of, or pinned to the first one.

mod guard;
mod ledger;
mod rules;

use rules::Rules;
use tidegate_sdk::{CachedTag, Config, Denial, Finding, Freshness, Inspection, Lifecycle, Request, Rule, log};

struct TagGuard;

static RULES: Config<Rules> = Config::new("moved = \"deny\"", Rules::parse);

impl Lifecycle for TagGuard {
    fn check() -> Result<(), String> {
        let rules = RULES.get()?;
        log::info(&rules.to_string());
        Ok(())
    }
}

impl Inspection for TagGuard {
    fn inspect(request: &Request) -> Finding {
        match RULES.get() {
            Ok(rules) => guard::inspect(rules, request),
            // A host that calls without a check: a policy that cannot be read is never no policy.
            Err(reason) => Denial { status: 503, ..Denial::new(format!("{request} is denied: {reason}")) }.into(),
        }
    }
}

impl Freshness for TagGuard {
    fn judge(request: &Request, _cached: Option<&CachedTag>) -> Rule {
        // A policy that cannot be read denies when the manifest is inspected.
        RULES.get().map_or(Rule::Pass, |rules| guard::judge(rules, request))
    }
}

tidegate_sdk::export!(TagGuard: lifecycle, inspection, freshness);
