//! An image that was first seen less than so many days ago is held.

mod inspect;
mod ledger;
mod rules;

use rules::Rules;
use tidegate_sdk::{Config, Denial, Finding, Inspection, Lifecycle, Request, log};

struct Cooldown;

static RULES: Config<Rules> = Config::new("days = 7", Rules::parse);

impl Lifecycle for Cooldown {
    fn check() -> Result<(), String> {
        let rules = RULES.get()?;
        log::info(&rules.to_string());
        Ok(())
    }
}

impl Inspection for Cooldown {
    fn inspect(request: &Request) -> Finding {
        match RULES.get() {
            Ok(rules) => inspect::inspect(rules, request),
            // A host that calls without a check: a policy that cannot be read is never no policy.
            Err(reason) => Denial { status: 503, ..Denial::new(format!("{request} is denied: {reason}")) }.into(),
        }
    }
}

tidegate_sdk::export!(Cooldown: lifecycle, inspection);
