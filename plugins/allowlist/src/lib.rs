//! Which registries, repositories and tags may be pulled: an allow list or a block list of patterns, OpenShift's
//! `image.config.openshift.io/cluster`, containers' policy.json. Each file that is there must let a pull through.

// Names of products are no code.
#![allow(clippy::doc_markdown)]

mod policies;
mod rules;
mod scopes;

use std::sync::OnceLock;

use policies::Policies;
use tidegate_sdk::{Denial, Facts, Request, Verdict, config, log};

struct Allowlist;

static POLICIES: OnceLock<Result<Policies, String>> = OnceLock::new();

fn policies() -> Result<&'static Policies, &'static str> {
    POLICIES.get_or_init(|| Policies::load(&config::files())).as_ref().map_err(String::as_str)
}

#[tidegate_sdk::plugin]
impl Allowlist {
    fn check() -> Result<(), String> {
        for line in policies()?.lines() {
            log::info(&line);
        }
        Ok(())
    }

    fn depends_on() -> Facts {
        Facts::empty()
    }

    fn admit(request: &Request) -> Verdict {
        match policies() {
            Ok(policies) => policies.admit(request),
            // A host that calls without a check: a policy that cannot be read is never no policy.
            Err(reason) => Denial { status: 503, ..Denial::new(format!("{request} is denied: {reason}")) }.into(),
        }
    }
}
