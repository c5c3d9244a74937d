//! What the policy would decide for a pull, without anything coming of it.

use std::sync::Arc;

use super::admitted::Admitted;
use super::error::{Cause, Error};
use super::manifest::Found;
use super::routed::Routed;
use super::routing::{Routing, Way};
use super::{Caller, Core, Live, Source};
use crate::oci::{Candidate, Content, Denial, Pull, Reference};
use crate::plugin::{Admission, Cached, Decided, Rule};

/// What the policy would decide.
pub struct Explained {
    /// What each plugin rules, in the order in which they are asked.
    pub decided: Vec<Decided>,
    /// The first denial.
    pub denied: Option<Denial>,
    /// The candidates that would be tried, each with whether it can be reached; none where a plugin denies.
    pub candidates: Option<Vec<(Candidate, bool)>>,
    /// What the cache holds of it.
    pub cached: Cached,
    /// Names of the plugins that would be asked after a failed attempt.
    pub fallbacks: Vec<String>,
    /// Names of the plugins that would be asked about the manifest, which is not here.
    pub inspectors: Vec<String>,
}

/// Asks the plugins about a pull. Inspection plugins are asked where the cache has the manifest.
pub async fn explain(core: &Arc<Core>, live: &Arc<Live>, pull: Pull, caller: Caller) -> Explained {
    let facts = caller.facts.clone();
    let routing = Routing::new(core, live, pull, caller, true);
    let question = routing.question(Way::Routed);
    let mut denied = None;
    let admitted = match routing.set.admit(&question).await {
        Admission::Deny(denial) => {
            denied = Some(denial);
            None
        }
        Admission::CachedOnly(plugin) => Some(Some(plugin)),
        Admission::Allow => Some(None),
    };
    let mut candidates = None;
    if let Some(cached_only) = admitted {
        match routing.candidates().await {
            Ok(found) => {
                // Where no candidate can be reached, there is nothing more to ask.
                if let Ok(routed) = Routed::new(routing.clone(), Admitted::of_policy(cached_only), found.clone()) {
                    denied = look(&Arc::new(routed)).await;
                }
                candidates = Some(found);
            }
            Err(denial) => denied = Some(denial),
        }
    }
    let cached = question.lookups.cached().await;
    let decided = facts.decided();
    let is_manifest = matches!(routing.pull.content, Content::Manifest(_));
    let asked = decided.iter().any(|decided| decided.hook == "inspection");
    let inspectors = if is_manifest && !asked && denied.is_none() {
        routing.set.names_with("inspection", &question)
    } else {
        Vec::new()
    };
    let fallbacks = if candidates.is_some() { routing.set.names_with("fallback", &question) } else { Vec::new() };
    let reached = |candidate: Candidate| {
        let reaches = live.upstreams.reaches(&candidate.place);
        (candidate, reaches)
    };
    let candidates = candidates.map(|candidates| candidates.into_iter().map(reached).collect());
    Explained { decided, denied, candidates, cached, fallbacks, inspectors }
}

/// What is asked about tags and manifests, as far as the cache knows them.
async fn look(routed: &Arc<Routed>) -> Option<Denial> {
    let Content::Manifest(reference) = &routed.pull().content else { return None };
    let rule = match reference {
        Reference::Tag(tag) => Some(routed.judge(tag).await),
        Reference::Digest(_) => None,
    };
    let digest = match (&rule, reference) {
        (Some(Rule::Deny(denial)), _) => return Some(denial.clone()),
        (Some(Rule::Pin(digest)), _) | (None, Reference::Digest(digest)) => *digest,
        _ => match routed.question().lookups.cached().await {
            Cached::Fresh { digest, .. } | Cached::Stale { digest, .. } => digest,
            Cached::Absent => return None,
        },
    };
    for place in routed.places() {
        if let Some(manifest) = routed.core().cache.manifest(place, digest).await {
            let found = Found { place: place.clone(), manifest, source: Source::Cache, until: None };
            return match routed.inspect(reference, &found).await {
                Err(Error { cause: Cause::Denied(denial), .. }) => Some(denial),
                _ => None,
            };
        }
    }
    None
}
