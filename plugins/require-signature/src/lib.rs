//! An image is released only when a cosign signature by a known key verifies over the digest of its manifest, or of an
//! index that lists it.

mod cosign;
mod key;
mod policy;
mod search;
#[cfg(test)]
mod signer;

use std::sync::OnceLock;

use policy::Policies;
use tidegate_sdk::{Denial, Finding, Inspection, Lifecycle, Request, config, log};

struct RequireSignature;

/// The files of one version never change, so what is parsed once holds as long as the instance lives.
fn policies() -> Result<&'static Policies, &'static str> {
    static POLICIES: OnceLock<Result<Policies, String>> = OnceLock::new();
    POLICIES.get_or_init(|| Policies::parse(&config::files())).as_ref().map_err(String::as_str)
}

impl Lifecycle for RequireSignature {
    fn check() -> Result<(), String> {
        let policies = policies()?;
        log::info(&policies.to_string());
        Ok(())
    }
}

impl Inspection for RequireSignature {
    fn inspect(request: &Request) -> Finding {
        match policies() {
            Ok(policies) => search::inspect(policies, request),
            // A host that calls without a check: a policy that cannot be read is never no policy.
            Err(reason) => Denial { status: 503, ..Denial::new(format!("{request} is denied: {reason}")) }.into(),
        }
    }
}

tidegate_sdk::export!(RequireSignature: lifecycle, inspection);
