//! Which registries keep failing. Such a one is moved behind the others for a while, and probed by one request at a
//! time. Nothing is ever left out: with all of them failing, all are tried in the order that was given.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::{Metrics, Upstream};
use crate::oci::{Candidate, Failure, Registry};

/// Failures in a row that move a registry back.
const FAILURES_MAX: u32 = 3;
/// How often the first time behind the others is doubled, or nearly: twelve times as long is the end of it.
const TIMES_MAX: u32 = 12;
/// How long a probe is waited for before the next request may be one: a probe that is never asked, or never says how
/// it ended, wedges nothing.
const PROBE_TIME: Duration = Duration::from_secs(10);
/// Registries whose failures are remembered at once.
const REGISTRIES_MAX: usize = 4096;

/// What an attempt showed of a registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// The way to the headers of an answer.
    Answer,
    /// The body.
    Body,
}

#[derive(Default)]
struct Record {
    /// Failures in a row, on the way to an answer and in a body: an answer does not make up for bodies that stall.
    failures: [u32; 2],
    ailing: Option<Ailing>,
}

struct Ailing {
    until: Instant,
    times: u32,
    /// When the probe under way began.
    probe: Option<Instant>,
}

/// The health of all registries; only those that fail are in it.
pub(super) struct Health {
    records: Mutex<HashMap<Registry, Record>>,
    metrics: Arc<Metrics>,
    hasher: RandomState,
}

/// Whether a failure tells that a registry is not well: not what it says about one repository, or about our pace.
fn counts(failure: &Failure) -> bool {
    match failure {
        Failure::Connect(_) | Failure::Tls(_) | Failure::Timeout | Failure::Truncated => true,
        Failure::Auth { refused, .. } => !refused,
        Failure::Status(status) => *status >= 500,
        Failure::DigestMismatch | Failure::Other(_) => false,
    }
}

impl Health {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { records: Mutex::default(), metrics, hasher: RandomState::new() }
    }

    /// Whether a registry stands behind the others.
    pub fn is_ailing(&self, registry: &Registry) -> bool {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.get(registry).is_some_and(|record| record.ailing.is_some())
    }

    /// Puts those that fail behind the others, and keeps the order otherwise. One whose time is over stays where it
    /// stands for this request alone, which thereby probes it.
    pub fn order(&self, candidates: Vec<Candidate>, now: Instant) -> Vec<Candidate> {
        if candidates.len() < 2 {
            return candidates;
        }
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if records.is_empty() {
            return candidates;
        }
        let mut probed = Vec::new();
        let mut stays = |registry: &Registry| {
            let Some(ailing) = records.get_mut(registry).and_then(|record| record.ailing.as_mut()) else { return true };
            if probed.contains(registry) {
                return true;
            }
            let is_probed = ailing.probe.is_some_and(|began| now.saturating_duration_since(began) < PROBE_TIME);
            if now < ailing.until || is_probed {
                return false;
            }
            ailing.probe = Some(now);
            probed.push(registry.clone());
            true
        };
        let (mut first, last): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|candidate| stays(&candidate.place.registry));
        first.extend(last);
        first
    }

    /// Takes note of a good end.
    pub fn good(&self, registry: &Registry, stage: Stage) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = records.get_mut(registry) else { return };
        record.failures[0] = 0;
        if stage == Stage::Body {
            record.failures[1] = 0;
        }
        if record.failures != [0, 0] {
            return;
        }
        let was_ailing = records.remove(registry).is_some_and(|record| record.ailing.is_some());
        if was_ailing {
            self.gauge(registry, 0);
            tracing::info!(%registry, "registry answers again: it is asked in its turn");
        }
    }

    /// Takes note of a failure; `first` is how long the registry stands behind the others the first time.
    pub fn bad(&self, registry: &Registry, stage: Stage, failure: &Failure, first: Duration, now: Instant) {
        if !counts(failure) {
            return;
        }
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() >= REGISTRIES_MAX && !records.contains_key(registry) {
            return;
        }
        let record = records.entry(registry.clone()).or_default();
        let failures = &mut record.failures[stage as usize];
        *failures = failures.saturating_add(1);
        let failures = *failures;
        if failures < FAILURES_MAX {
            return;
        }
        let (times, was_ailing) = match &record.ailing {
            // Requests that were under way when it was moved back say nothing new.
            Some(ailing) if now < ailing.until => return,
            Some(ailing) => ((ailing.times * 2).min(TIMES_MAX), true),
            None => (1, false),
        };
        // Up to a fifth more, so that many proxies do not come back together.
        let spread = self.hasher.hash_one((registry, now)) % 200;
        let rest = (first * times).mul_f64(1.0 + f64::from(u32::try_from(spread).unwrap_or(0)) / 1000.0);
        record.ailing = Some(Ailing { until: now + rest, times, probe: None });
        self.gauge(registry, 1);
        let rest_ms = u64::try_from(rest.as_millis()).unwrap_or(u64::MAX);
        if was_ailing {
            tracing::debug!(%registry, reason = failure.to_string(), rest_ms, "registry fails still");
        } else {
            tracing::warn!(%registry, reason = failure.to_string(), failures, rest_ms, "registry keeps failing: others are asked before it");
        }
    }

    fn gauge(&self, registry: &Registry, ailing: i64) {
        self.metrics.upstream_ailing.get_or_create_owned(&Upstream { registry: registry.to_string() }).set(ailing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Place, Repository};

    const FIRST: Duration = Duration::from_secs(10);

    fn registry(name: &str) -> Registry {
        Registry::parse(name).expect("a registry")
    }

    fn candidates() -> Vec<Candidate> {
        let repository = Repository::parse("a").expect("a repository");
        let place = |name| Place { registry: registry(name), repository: repository.clone() };
        ["a.lan", "b.lan", "c.lan"].into_iter().map(|name| Candidate::plain(place(name))).collect()
    }

    fn order(health: &Health, now: Instant) -> String {
        let ordered = health.order(candidates(), now);
        ordered.iter().map(|candidate| &candidate.place.registry.as_str()[..1]).collect()
    }

    fn fail(health: &Health, name: &str, times: usize, now: Instant) {
        for _ in 0..times {
            health.bad(&registry(name), Stage::Answer, &Failure::Connect("refused".to_owned()), FIRST, now);
        }
    }

    #[test]
    fn u14_a_registry_that_keeps_failing_is_moved_back_probed_by_one_and_healed() {
        let health = Health::new(Arc::default());
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        fail(&health, "a.lan", 2, start);
        assert_eq!(order(&health, start), "abc", "two failures are no illness");
        fail(&health, "a.lan", 1, start);
        assert_eq!(order(&health, start), "bca");
        assert_eq!(order(&health, at(9)), "bca", "it rests");
        assert_eq!(order(&health, at(13)), "abc", "one probes it");
        assert_eq!(order(&health, at(13)), "bca", "and only one");
        assert_eq!(order(&health, at(24)), "abc", "a probe of which nothing is heard wedges nothing");
        // The probe fails: twice as long.
        fail(&health, "a.lan", 1, at(25));
        assert_eq!(order(&health, at(44)), "bca");
        assert_eq!(order(&health, at(50)), "abc");
        health.good(&registry("a.lan"), Stage::Answer);
        assert_eq!(order(&health, at(50)) + &order(&health, at(50)), "abcabc", "one good answer heals");
        fail(&health, "a.lan", 2, at(51));
        assert_eq!(order(&health, at(51)), "abc", "and all is forgotten");
    }

    #[test]
    fn with_all_failing_the_order_is_as_it_was_given_and_the_rest_is_bounded() {
        let health = Health::new(Arc::default());
        let mut now = Instant::now();
        for name in ["b.lan", "c.lan", "a.lan"] {
            fail(&health, name, 3, now);
        }
        assert_eq!(order(&health, now), "abc");
        for _ in 0..40 {
            now += FIRST * TIMES_MAX * 2;
            fail(&health, "a.lan", 1, now);
        }
        now += (FIRST * TIMES_MAX).mul_f64(1.21);
        assert_eq!(order(&health, now), "abc", "after 40 failures it is probed after two minutes and a bit");
    }

    #[test]
    fn what_a_registry_says_of_one_repository_is_no_illness() {
        let health = Health::new(Arc::default());
        let now = Instant::now();
        for _ in 0..10 {
            for failure in [
                Failure::Status(404),
                Failure::Status(401),
                Failure::Status(429),
                Failure::DigestMismatch,
                Failure::Other("nonsense".to_owned()),
                Failure::Auth { reason: "no".to_owned(), refused: true, wrong_password: false },
            ] {
                health.bad(&registry("a.lan"), Stage::Answer, &failure, FIRST, now);
            }
        }
        assert_eq!(order(&health, now), "abc");
        for failure in [
            Failure::Status(503),
            Failure::Timeout,
            Failure::Auth { reason: "down".to_owned(), refused: false, wrong_password: false },
        ] {
            health.bad(&registry("a.lan"), Stage::Answer, &failure, FIRST, now);
        }
        assert_eq!(order(&health, now), "bca");
    }

    #[test]
    fn u3_answers_do_not_make_up_for_bodies_that_stall() {
        let health = Health::new(Arc::default());
        let now = Instant::now();
        for _ in 0..3 {
            health.good(&registry("a.lan"), Stage::Answer);
            health.bad(&registry("a.lan"), Stage::Body, &Failure::Timeout, FIRST, now);
        }
        assert_eq!(order(&health, now), "bca");
        health.good(&registry("a.lan"), Stage::Answer);
        assert_eq!(order(&health, now), "bca");
        health.good(&registry("a.lan"), Stage::Body);
        assert_eq!(order(&health, now), "abc");
    }
}
