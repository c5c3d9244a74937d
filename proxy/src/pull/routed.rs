//! A pull that was admitted, and knows where its content may come from.

use std::sync::Arc;

use super::admitted::Admitted;
use super::error::{Cause, Error};
use super::routing::{Routing, Way};
use super::{Caller, Core, Live};
use crate::oci::{Candidate, Place, Pull};
use crate::plugin::{PluginSet, Question};
use crate::trace::{self, Scope};

/// What every step behind admission and routing works with.
pub(super) struct Routed {
    routing: Arc<Routing>,
    question: Question,
    candidates: Vec<Candidate>,
    places: Vec<Place>,
    admitted: Admitted,
    scope: Scope,
}

impl Routed {
    /// Sorts out what routing gave: candidates that can be reached are tried; without any, the cache alone may serve.
    pub fn new(routing: Arc<Routing>, admitted: Admitted, given: Vec<Candidate>) -> Result<Self, Error> {
        // A policy that lets only the cache serve does not have registries asked for its own sake either.
        let way = if admitted.cached_only().is_some() { Way::Cached } else { Way::Routed };
        let question = routing.question(way);
        let (live, pull) = (&routing.live, routing.pull.clone());
        let nowhere = given.is_empty();
        let mut candidates: Vec<Candidate> = Vec::with_capacity(given.len());
        for candidate in given {
            if live.upstreams.reaches(&candidate.place) {
                candidates.push(candidate);
            } else if candidate.place != pull.place {
                tracing::warn!(request = question.facts.id, registry = %candidate.place.registry, pull = pull.to_string(), "a plugin routes to a registry that is not in the configuration: skipped; list it under [registries]");
            }
        }
        if candidates.is_empty() && !nowhere {
            return Err(Error::new(&pull, Cause::UnknownRegistry(pull.place.registry.clone())));
        }
        let mut places: Vec<Place> = Vec::with_capacity(candidates.len().max(1));
        for candidate in &candidates {
            if !places.contains(&candidate.place) {
                places.push(candidate.place.clone());
            }
        }
        if nowhere {
            places.push(pull.place.clone());
        }
        Ok(Self { routing, question, candidates, places, admitted, scope: trace::scope() })
    }

    pub fn core(&self) -> &Core {
        &self.routing.core
    }

    /// The configuration that this request began with.
    pub fn live(&self) -> &Live {
        &self.routing.live
    }

    /// The same, for a task that outlives this request.
    pub fn shared_live(&self) -> Arc<Live> {
        self.routing.live.clone()
    }

    pub fn plugins(&self) -> &PluginSet {
        &self.routing.set
    }

    pub fn question(&self) -> &Question {
        &self.question
    }

    /// The question after a failure: what is being asked for must not be waited for by who decides over it.
    pub fn question_after_failure(&self) -> Question {
        self.routing.question(Way::Cached)
    }

    pub fn pull(&self) -> &Pull {
        &self.routing.pull
    }

    pub fn caller(&self) -> &Caller {
        &self.routing.caller
    }

    /// The span of the request: work that goes on elsewhere is done within it.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Where it may come from, in order.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Under which repositories the cache may have it, in order.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    pub fn reaches(&self, candidate: &Candidate) -> bool {
        self.live().upstreams.reaches(&candidate.place)
    }

    /// Whether a registry is asked with what this caller sent.
    pub fn is_personal(&self, place: &Place) -> bool {
        let config = &self.live().config;
        config.asks_callers && config.reach(&place.registry).is_some_and(|reach| reach.callers.credentials)
    }

    /// Lets nobody pass for whom only the cache may serve.
    pub fn may_ask_upstream(&self) -> Result<(), Error> {
        let because = match self.admitted.cached_only() {
            Some(plugin) => format!("the policy {plugin} allows cached content only"),
            None if self.candidates.is_empty() => "the policy routes it nowhere".to_owned(),
            None => return Ok(()),
        };
        Err(self.error(Cause::NotCached(because)))
    }

    pub fn error(&self, cause: Cause) -> Error {
        Error::new(self.pull(), cause)
    }
}
