//! Only trusted users, groups or addresses bring images into the cache; everybody else gets what is there.

mod rules;

use rules::{EXAMPLE, Rules};
use tidegate_sdk::{Config, Denial, Facts, Request, Verdict, call, log};

struct Gatekeeper;

static RULES: Config<Rules> = Config::new(EXAMPLE, Rules::parse);

#[tidegate_sdk::plugin]
impl Gatekeeper {
    fn check() -> Result<(), String> {
        let rules = RULES.get()?;
        log::info(&rules.to_string());
        Ok(())
    }

    fn depends_on() -> Facts {
        Facts::CLIENT
    }

    fn admit(request: &Request) -> Verdict {
        match RULES.get() {
            Ok(rules) => rules.admit(request, call::client().as_ref(), &call::client_address()),
            // A host that calls without a check: a policy that cannot be read is never no policy.
            Err(reason) => Denial { status: 503, ..Denial::new(format!("{request} is denied: {reason}")) }.into(),
        }
    }
}
