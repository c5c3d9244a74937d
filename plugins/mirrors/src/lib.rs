//! The mirrors that an operator's files name already: registries.conf, OpenShift's mirror sets, containerd's hosts.toml
//! and config.toml, docker's daemon.json. They are the configuration, as they are.

// Names of products are no code.
#![allow(clippy::doc_markdown)]

mod cluster;
mod containers;
mod decide;
mod hosts;
mod load;
mod order;
mod place;
mod rules;

use std::sync::OnceLock;

use rules::Rules;
use tidegate_sdk::{Candidate, Denial, Facts, Request, Routes, Verdict, config, log};

struct Mirrors;

static RULES: OnceLock<Result<Rules, String>> = OnceLock::new();

fn rules() -> Result<&'static Rules, &'static str> {
    RULES.get_or_init(|| load::load(&config::files())).as_ref().map_err(String::as_str)
}

/// A host that calls without a check: going to the source would leave the operator's mirrors silently.
fn unread(request: &Request, reason: &str) -> Denial {
    Denial { status: 503, ..Denial::new(format!("no route for {request}: {reason}")) }
}

#[tidegate_sdk::plugin]
impl Mirrors {
    fn check() -> Result<(), String> {
        let rules = rules()?;
        rules.notes.iter().for_each(|note| log::warn(note));
        log::info(&rules.to_string());
        Ok(())
    }

    fn depends_on() -> Facts {
        // Of a digest it matters who gave what lists it.
        Facts::LOOKUPS
    }

    fn admit(request: &Request) -> Verdict {
        match rules() {
            Ok(rules) => decide::admit(rules, request),
            Err(reason) => unread(request, reason).into(),
        }
    }

    fn route(request: &Request, candidates: &[Candidate]) -> Routes {
        match rules() {
            Ok(rules) => decide::route(rules, request, candidates),
            Err(reason) => unread(request, reason).into(),
        }
    }
}
