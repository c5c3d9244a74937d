//! Whom a registry would serve: of one that is configured so, content is for those alone, wherever its bytes come from.
//!
//! The registry is asked with what the caller sent, or with nothing, and its word is kept for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::{Cause, Error};
use super::routing::Routing;
use crate::oci::{Attempt, Candidate, Content, Failure, Method, Place};
use crate::upstream::{As, Ask, Fingerprint};

/// How long a refusal holds: who is let in meanwhile should not wait long.
const REFUSAL_HOLDS: Duration = Duration::from_secs(10);
/// Words that are kept; past it those that are over are dropped, and if there are none, all.
const WORDS_MAX: usize = 16_384;
/// What is taken of a manifest, whose headers alone are looked at.
const ANY: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*";

/// Who wants to have something of which repository; none: somebody without a user.
type Key = (Place, Option<Fingerprint>);

/// What a registry said last of somebody.
#[derive(Default)]
struct Word {
    said: Option<(Instant, Result<(), Failure>)>,
}

/// What registries said of callers.
#[derive(Default)]
pub(super) struct Words(Mutex<HashMap<Key, Arc<tokio::sync::Mutex<Word>>>>);

impl Words {
    fn of(&self, key: Key) -> Arc<tokio::sync::Mutex<Word>> {
        let mut words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if words.len() >= WORDS_MAX && !words.contains_key(&key) {
            // One that is asked for just now is held by who asks.
            words.retain(|_, word| Arc::strong_count(word) > 1);
        }
        words.entry(key).or_default().clone()
    }
}

impl Word {
    /// What was said, if it still holds.
    fn holds(&self, ttl: Duration) -> Option<Result<(), Failure>> {
        let (since, said) = self.said.as_ref()?;
        let life = if said.is_ok() { ttl } else { ttl.min(REFUSAL_HOLDS) };
        (since.elapsed() < life).then(|| said.clone())
    }
}

impl Routing {
    /// Leaves of the places where content may come from, or be kept under, those that the caller may have it of.
    ///
    /// # Errors
    /// There were some, and none is left.
    pub async fn authorize(&self, candidates: Vec<Candidate>) -> Result<Vec<Candidate>, Error> {
        if !self.live.config.asks_callers {
            return Ok(candidates);
        }
        // Routed nowhere, the cache alone may serve, under the name itself.
        if candidates.is_empty() {
            let named = Candidate::plain(self.pull.place.clone());
            self.may_have(&named).await.map_err(|failed| self.refused(&[failed]))?;
            return Ok(candidates);
        }
        let (mut allowed, mut failed) = (Vec::with_capacity(candidates.len()), Vec::new());
        for candidate in candidates {
            match self.may_have(&candidate).await {
                Ok(()) => allowed.push(candidate),
                Err(attempt) => failed.push(attempt),
            }
        }
        if allowed.is_empty() { Err(self.refused(&failed)) } else { Ok(allowed) }
    }

    /// Lets a caller write to a place: as itself, so that the registry decides; but one whose password is yet to be
    /// looked at waits where too many were wrong.
    ///
    /// # Errors
    /// It is to wait.
    pub async fn may_show(&self, place: &Place) -> Result<(), Error> {
        let Some(wait) = self.caller.waits else { return Ok(()) };
        let Some(callers) = self.live.config.reach(&place.registry).map(|reach| reach.callers) else { return Ok(()) };
        let vouched = match callers.authorize {
            Some(ttl) => self.word(place).lock().await.holds(ttl).is_some_and(|said| said.is_ok()),
            None => !callers.credentials,
        };
        if vouched { Ok(()) } else { Err(Error::new(&self.pull, Cause::Guesses(wait))) }
    }

    fn word(&self, place: &Place) -> Arc<tokio::sync::Mutex<Word>> {
        let who = self.caller.credentials.as_deref().map(Fingerprint::of);
        self.core.words.of((place.clone(), who))
    }

    /// Whether the caller may have what is asked for of a place. Many who want to know the same share one request.
    async fn may_have(&self, candidate: &Candidate) -> Result<(), Attempt> {
        let place = &candidate.place;
        let reach = self.live.config.reach(&place.registry);
        let Some(ttl) = reach.and_then(|reach| reach.callers.authorize) else { return Ok(()) };
        let word = self.word(place);
        let mut word = word.lock().await;
        let started = Instant::now();
        let said = if let Some(said) = word.holds(ttl) {
            said
        } else if self.caller.waits.is_some() {
            Err(Failure::Status(429))
        } else {
            let said = self.ask_whether(candidate).await;
            // That something is not there says nothing of the caller, and neither does a registry that is not.
            let known = matches!(said, Ok(()) | Err(Failure::Auth { refused: true, .. }));
            let kept = said.clone().map_err(|failure| failure.remembered());
            word.said = known.then_some((started, kept));
            said
        };
        said.map_err(|failure| {
            let (registry, reason) = (place.registry.as_str(), failure.to_string());
            tracing::info!(
                request = self.caller.facts.id,
                registry,
                pull = self.pull.to_string(),
                reason,
                "the registry does not let this caller have it"
            );
            let (candidate, duration) = (candidate.clone(), started.elapsed());
            Attempt { candidate, failure, duration, bytes: 0, retry_after: None, rate_limit: Vec::new() }
        })
    }

    async fn ask_whether(&self, candidate: &Candidate) -> Result<(), Failure> {
        let (resource, method, query) = match &self.pull.content {
            Content::Manifest(reference) => (format!("manifests/{reference}"), Method::Head, ""),
            Content::Referrers(digest) => (format!("manifests/{digest}"), Method::Head, ""),
            Content::Blob(digest) => (format!("blobs/{digest}"), Method::Head, ""),
            Content::Tags => ("tags/list".to_owned(), Method::Get, "n=1"),
        };
        let limit = self.live.config.limits.upstream_headers;
        let ask = Ask {
            place: &candidate.place,
            resource: &resource,
            query,
            method,
            accept: ANY,
            from: 0,
            until: None,
            timeout: candidate.timeout.unwrap_or(limit).min(limit),
            via: &self.caller.via,
            by: As::Caller,
            credentials: self.caller.credentials.as_ref(),
        };
        Box::pin(self.live.upstreams.fetch(&ask)).await.map(drop).map_err(|refused| refused.failure)
    }

    fn refused(&self, failed: &[Attempt]) -> Error {
        let error = Error::of_attempts(&self.pull, failed, None);
        let wrong_password =
            failed.iter().any(|attempt| matches!(attempt.failure, Failure::Auth { wrong_password: true, .. }));
        match error.cause {
            Cause::TooManyRequests(story, after) => {
                let cause = self.caller.waits.map_or(Cause::TooManyRequests(story, after), Cause::Guesses);
                Error { cause, ..error }
            }
            Cause::Refused(story) => {
                let who = self.caller.who();
                Error { cause: Cause::NotYours { who, story, wrong_password }, ..error }
            }
            _ => error,
        }
    }
}
