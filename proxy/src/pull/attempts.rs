//! The attempts of one pull at its candidates: which is next, what the fallback plugins say after each failure, and
//! when it is enough.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};

use super::changes::Of;
use super::routed::Routed;
use crate::oci::{Attempt, Candidate, Denial, Failure, Method, Place};
use crate::plugin::{self, Step};
use crate::trace;
use crate::upstream::{Answer, As, Ask, Refused};

/// Attempts beyond one at each candidate: waits that a plugin asks for, diversions, resumptions that brought little.
const EXTRA_MAX: u32 = 3;
/// A broken transfer that brought so much costs none of them. Units: bytes.
const WORTH_IT: u64 = 1 << 20;
/// Longest wait that a plugin or a registry may ask for.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How long to wait before the last candidate is asked once more, each time that it brought little: so a registry that
/// is started anew is found again. Each is shortened by up to half, so that not all come at once. The last is for blobs
/// alone: a client that stays with the mirror that gave it the manifest fails on an error for one.
const WAITS: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(4)];
/// How long to wait for a registry that has had enough, and does not say for how long.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// What is asked of each candidate.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub resource: &'a str,
    pub query: &'a str,
    pub method: Method,
    pub accept: &'a str,
    /// Units: bytes.
    pub from: u64,
    /// To before this byte; none: to the end. Units: bytes.
    pub until: Option<u64>,
}

impl<'a> Wanted<'a> {
    /// The whole of a resource.
    pub fn whole(method: Method, resource: &'a str, accept: &'a str) -> Self {
        Self { resource, query: "", method, accept, from: 0, until: None }
    }
}

/// One attempt, under way or done.
pub(super) struct Tried {
    pub candidate: Candidate,
    pub started: Instant,
    pub result: Result<Answer, Refused>,
}

/// What comes after a failure.
pub(super) enum After {
    Try(Candidate),
    End(Ending),
}

/// How the attempts end without an answer.
#[derive(Debug)]
pub(super) enum Ending {
    /// All candidates have failed.
    Exhausted,
    /// A plugin wants the cached copy served, and there is one.
    Stale,
    /// A plugin gives up.
    Stop,
    /// A plugin denies.
    Denied(Denial),
}

pub(super) struct Attempts<'a> {
    routed: &'a Routed,
    remaining: VecDeque<Candidate>,
    failed: Vec<Attempt>,
    extra_left: u32,
    waits: &'static [Duration],
    /// Bytes of a body have come: the client may have its headers, and nobody else can help it.
    begun: bool,
    deadline: Instant,
    has_stale: bool,
    /// What the registry that failed last told of its limits.
    rate_limit: Vec<(String, String)>,
}

impl<'a> Attempts<'a> {
    /// `has_stale`: whether there is a cached copy for a plugin to fall back to.
    pub fn new(routed: &'a Routed, has_stale: bool) -> Self {
        Self {
            routed,
            remaining: routed.live().upstreams.order(routed.candidates().to_vec()).into(),
            failed: Vec::new(),
            extra_left: EXTRA_MAX,
            waits: &WAITS[..2],
            begun: false,
            deadline: Instant::now() + routed.live().config.limits.upstream_attempts,
            has_stale,
            rate_limit: Vec::new(),
        }
    }

    /// The same for a blob.
    pub fn of_blob(routed: &'a Routed) -> Self {
        Self { waits: &WAITS, ..Self::new(routed, false) }
    }

    /// The first candidate; none where there is none at all.
    pub fn first(&mut self) -> Option<Candidate> {
        self.remaining.pop_front()
    }

    /// Whether there is no other candidate left.
    pub fn is_last(&self) -> bool {
        self.remaining.is_empty()
    }

    /// All that have failed so far.
    pub fn failed(self) -> Vec<Attempt> {
        self.failed
    }

    /// Asks a candidate; where it wants to be hedged, the next one beside it after a while. The first good answer
    /// wins, and the other is dropped.
    pub async fn fetch(&mut self, candidate: Candidate, wanted: Wanted<'_>) -> Tried {
        let tried = self.fetch_hedged(candidate, wanted).await;
        self.rate_limit = tried.result.as_ref().map_or_else(|refused| refused.rate_limit.clone(), |_| Vec::new());
        if tried.result.is_ok() {
            let place = tried.candidate.place.clone();
            let took = tried.started.elapsed();
            self.routed.question().facts.tried(plugin::Tried {
                place,
                outcome: "ok",
                failure: None,
                retry_after: None,
                rate_limit: Vec::new(),
                took,
                bytes: 0,
            });
        }
        tried
    }

    async fn fetch_hedged(&mut self, candidate: Candidate, wanted: Wanted<'_>) -> Tried {
        let Some(after) = candidate.hedge_after.filter(|_| !self.remaining.is_empty()) else {
            return self.fetch_one(candidate, wanted).await;
        };
        let routed = self.routed;
        let deadline = self.deadline;
        let first = std::pin::pin!(fetch_one(routed, deadline, candidate, wanted));
        let first = match select(first, std::pin::pin!(tokio::time::sleep(after))).await {
            Either::Left((tried, _)) => return tried,
            Either::Right(((), first)) => first,
        };
        let Some(next) = self.remaining.pop_front() else { return first.await };
        let second = std::pin::pin!(fetch_one(routed, deadline, next, wanted));
        let (tried, other) = match select(first, second).await {
            Either::Left((tried, second)) => (tried, Either::Left(second)),
            Either::Right((tried, first)) => (tried, Either::Right(first)),
        };
        match &tried.result {
            Ok(_) => tried,
            Err(refused) => {
                self.rate_limit.clone_from(&refused.rate_limit);
                self.note(&tried.candidate, refused.failure.clone(), tried.started, 0, refused.retry_after);
                match other {
                    Either::Left(second) => second.await,
                    Either::Right(first) => first.await,
                }
            }
        }
    }

    async fn fetch_one(&self, candidate: Candidate, wanted: Wanted<'_>) -> Tried {
        fetch_one(self.routed, self.deadline, candidate, wanted).await
    }

    /// Takes note of a failure, asks the fallback plugins, and says what comes next. `bytes`: what the attempt
    /// brought of a body.
    pub async fn after(
        &mut self,
        tried: (Candidate, Instant),
        failure: Failure,
        bytes: u64,
        retry_after: Option<Duration>,
    ) -> After {
        let (candidate, started) = tried;
        self.note(&candidate, failure, started, bytes, retry_after);
        self.begun |= bytes > 0;
        if bytes > 0 {
            // The time runs until headers come; a transfer that had begun has had its own.
            self.deadline = Instant::now() + self.routed.live().config.limits.upstream_attempts;
        }
        if bytes >= WORTH_IT {
            self.extra_left = EXTRA_MAX;
        }
        let remaining: Vec<Candidate> = self.remaining.iter().cloned().collect();
        let routed = self.routed;
        let question = routed.question_after_failure();
        match routed.plugins().on_failure(&question, &self.failed, &remaining).await {
            Step::ServeStale if self.has_stale => After::End(Ending::Stale),
            Step::Divert(to) if routed.reaches(&to) && self.spend_extra(&to) => After::Try(to),
            Step::Pass | Step::Next | Step::ServeStale | Step::Divert(_) => self.next(candidate).await,
            Step::Wait(wait) => {
                let wait = wait.min(WAIT_MAX);
                if Instant::now() + wait >= self.deadline || !self.spend_extra(&candidate) {
                    return self.next(candidate).await;
                }
                tokio::time::sleep(wait).await;
                After::Try(candidate)
            }
            Step::Stop => After::End(Ending::Stop),
            Step::Deny(denial) => After::End(Ending::Denied(denial)),
        }
    }

    /// The host's own rule: the next candidate; with none left, the same one where that may mend it.
    async fn next(&mut self, candidate: Candidate) -> After {
        if Instant::now() >= self.deadline {
            return After::End(Ending::Exhausted);
        }
        if let Some(next) = self.remaining.pop_front() {
            return After::Try(next);
        }
        let Some(wait) = self.mends_after().filter(|wait| Instant::now() + *wait < self.deadline) else {
            return After::End(Ending::Exhausted);
        };
        if !self.spend_extra(&candidate) {
            return After::End(Ending::Exhausted);
        }
        tokio::time::sleep(wait).await;
        After::Try(candidate)
    }

    /// When the last failure may have mended itself: a transfer that broke is resumed where it broke, a registry that
    /// is not there or in trouble may be so for a moment, and one that asks for a short wait gets it, since clients
    /// would come again at once. None: trying again is of no use, or a copy serves meanwhile.
    fn mends_after(&self) -> Option<Duration> {
        let last = self.failed.last()?;
        match &last.failure {
            Failure::DigestMismatch => None,
            Failure::Truncated => self.wait(),
            Failure::Status(429) if !self.has_stale => {
                Some(last.retry_after.unwrap_or(BUSY_WAIT)).filter(|wait| *wait <= WAIT_MAX)
            }
            Failure::Connect(_) | Failure::Status(500 | 502..=504) if !self.has_stale => {
                let wait = self.wait()?;
                Some(last.retry_after.map_or(wait, |asked| asked.max(wait))).filter(|wait| *wait <= WAIT_MAX)
            }
            Failure::Connect(_)
            | Failure::Tls(_)
            | Failure::Timeout
            | Failure::Status(_)
            | Failure::Auth { .. }
            | Failure::Other(_) => self.wait().filter(|_| self.begun),
        }
    }

    fn wait(&self) -> Option<Duration> {
        let spent = usize::try_from(EXTRA_MAX - self.extra_left).expect("a few");
        let wait = self.waits.get(spent)?;
        let jitter = f64::from(u16::try_from(RandomState::new().hash_one(0) >> 48).expect("16 bits")) / 65_536.0;
        Some(wait.mul_f64(1.0 - jitter / 2.0))
    }

    /// Whether a candidate may be asked beyond its turn: by this pull, and by all pulls of its registry together.
    fn spend_extra(&mut self, candidate: &Candidate) -> bool {
        // A transfer that has just brought so much is no burden that has brought nothing.
        let free = self.failed.last().is_some_and(|last| last.bytes >= WORTH_IT);
        let some = self.extra_left > 0 && (free || self.routed.core().retries.spend(&candidate.place.registry));
        self.extra_left = self.extra_left.saturating_sub(1);
        some
    }

    fn note(
        &mut self,
        candidate: &Candidate,
        failure: Failure,
        started: Instant,
        bytes: u64,
        retry_after: Option<Duration>,
    ) {
        let duration = started.elapsed();
        let Place { registry, repository } = &candidate.place;
        let request = self.routed.question().facts.id.as_str();
        let (pull, reason) = (self.routed.pull().to_string(), failure.to_string());
        let elapsed_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        trace::scope().event("upstream attempt failed", "tidegate.reason", format_args!("{registry}: {failure}"));
        // That a mirror does not have something is no fault.
        if failure == Failure::Status(404) {
            tracing::info!(request, %registry, %repository, pull, reason, elapsed_ms, "upstream attempt failed");
        } else {
            tracing::warn!(request, %registry, %repository, pull, reason, bytes, elapsed_ms, "upstream attempt failed");
        }
        let rate_limit = std::mem::take(&mut self.rate_limit);
        let candidate = candidate.clone();
        self.routed.question().facts.tried(plugin::Tried {
            place: candidate.place.clone(),
            outcome: failure.kind(),
            failure: Some(failure.clone()),
            retry_after,
            rate_limit: rate_limit.clone(),
            took: duration,
            bytes,
        });
        self.failed.push(Attempt { candidate, failure, duration, bytes, retry_after, rate_limit });
    }
}

/// Asks a candidate, once and for something that can be done without.
pub(super) async fn fetch_once(routed: &Routed, candidate: Candidate, wanted: Wanted<'_>) -> Tried {
    fetch_one(routed, Instant::now() + routed.live().config.limits.upstream_attempts, candidate, wanted).await
}

async fn fetch_one(routed: &Routed, deadline: Instant, candidate: Candidate, wanted: Wanted<'_>) -> Tried {
    let started = Instant::now();
    let (misses, changes) = (&routed.core().misses, &routed.core().changes);
    let before = changes.now();
    // What a registry says to one caller is not said to all.
    let personal = routed.is_personal(&candidate.place);
    let ttl = if personal { Duration::ZERO } else { routed.live().config.cache.miss_ttl };
    if misses.knows(&candidate.place, &wanted, ttl) {
        let refused = Refused::from(Failure::Status(404));
        return Tried { candidate, started, result: Err(refused) };
    }
    let left = deadline.saturating_duration_since(started);
    let ask = Ask {
        place: &candidate.place,
        resource: wanted.resource,
        query: wanted.query,
        method: wanted.method,
        accept: wanted.accept,
        from: wanted.from,
        until: wanted.until,
        timeout: candidate.timeout.unwrap_or(routed.live().config.limits.upstream_headers).min(left),
        via: &routed.caller().via,
        by: As::Mirror,
        credentials: routed.caller().credentials.as_ref(),
    };
    let result = Box::pin(routed.live().upstreams.fetch(&ask)).await;
    // What was pushed meanwhile may be just that.
    if let Err(Refused { failure: Failure::Status(404), .. }) = &result
        && !changes.since(before, &candidate.place, Of::All)
    {
        misses.remember(&candidate.place, &wanted, ttl);
    }
    Tried { candidate, started, result }
}
