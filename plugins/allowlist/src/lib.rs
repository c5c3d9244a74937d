//! Which registries, repositories and tags may be pulled: an allow list or a block list of patterns.

mod rules;

use rules::Rules;
use tidegate_sdk::{Config, Denial, Request, Verdict, log};

struct Allowlist;

static RULES: Config<Rules> = Config::new("block = [\"docker.io/library/redis\"]", Rules::parse);

#[tidegate_sdk::plugin]
impl Allowlist {
    fn check() -> Result<(), String> {
        let rules = RULES.get()?;
        log::info(&rules.to_string());
        Ok(())
    }

    fn admit(request: &Request) -> Verdict {
        match RULES.get() {
            Ok(rules) => rules.admit(request),
            // A host that calls without a check: a policy that cannot be read is never no policy.
            Err(reason) => Denial { status: 503, ..Denial::new(format!("{request} is denied: {reason}")) }.into(),
        }
    }
}
