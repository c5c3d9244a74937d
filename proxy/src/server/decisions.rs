//! What was decided: the line that a request leaves behind, and the last ones for an operator who asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use tokio::runtime::Handle;
use url::form_urlencoded;

use super::admin::text;
use super::cache::parse_target;
use crate::body::Body;
use crate::cache::Target;
use crate::oci::{Asked, Digest, Failure, Place, Registry};
use crate::plugin::{Cached, Decided, Facts, Identity, Mode, Tried};
use crate::pull::{Explained, Source};
use crate::record::{self, Copy, Journal, Line, Route, Tells};

/// Lines of one answer, where nothing else is said.
const LIMIT: usize = 100;

/// What became of a request that is over.
#[derive(Clone, Debug)]
pub(super) struct Over {
    pub asked: Asked,
    pub facts: Arc<Facts>,
    pub began: SystemTime,
    pub decision: Option<&'static str>,
    pub policy: Option<String>,
    pub source: Option<Source>,
    pub status: u16,
    pub digest: Option<Digest>,
    pub sent: u64,
    pub received: u64,
    pub elapsed_ms: u64,
    pub warnings: Vec<String>,
    pub reason: Option<String>,
    pub broken: Option<String>,
}

impl Tells for Over {
    fn line(&self) -> Line {
        Line {
            decision: self.decision.map(str::to_owned),
            policy: self.policy.clone(),
            source: self.source.map(Source::as_str).map(str::to_owned),
            status: self.status,
            digest: self.digest.map(|digest| digest.to_string()),
            sent_bytes: self.sent,
            received_bytes: self.received,
            elapsed_ms: self.elapsed_ms,
            warnings: self.warnings.clone(),
            reason: self.reason.clone(),
            broken: self.broken.clone(),
            ..asked(&self.asked, &self.facts, self.began)
        }
    }
}

/// What a line has of the question, and of what was decided about it.
fn asked(request: &Asked, facts: &Facts, began: SystemTime) -> Line {
    let seen = facts.seen();
    let decided = facts.decided();
    let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in &facts.headers {
        headers.entry(name.clone()).or_default().push(value.clone());
    }
    Line {
        time: humantime::format_rfc3339_millis(began).to_string(),
        request: facts.id.clone(),
        client: facts.client,
        identity: facts.identity.as_ref().map(|Identity { subject, issuer, groups }| record::Identity {
            subject: subject.clone(),
            issuer: issuer.clone(),
            groups: groups.clone(),
        }),
        user_agent: facts.user_agent.clone(),
        method: request.method().to_owned(),
        addressing: request.addressing().as_str().to_owned(),
        action: request.action().as_str().to_owned(),
        content: request.kind().to_owned(),
        registry: request.place().registry.to_string(),
        repository: request.place().repository.to_string(),
        reference: request.reference().map(|reference| reference.to_string()),
        accept: facts.accept.clone(),
        headers,
        attributes: seen.attributes,
        cache: seen.cached.map(copy),
        generation: seen.generation,
        inspected: seen.inspected.map(|digest| digest.to_string()),
        decision: None,
        policy: None,
        routes: routes(request.place(), &decided),
        decisions: decided.iter().map(in_record).collect(),
        upstreams: facts.attempts().into_iter().map(tried).collect(),
        source: None,
        status: 0,
        digest: None,
        sent_bytes: 0,
        received_bytes: 0,
        elapsed_ms: 0,
        warnings: Vec::new(),
        reason: None,
        broken: None,
    }
}

/// The line about a request that did not happen: what would have been decided.
pub(super) fn dry_line(request: &Asked, facts: &Facts, explained: &Explained, generation: u64) -> Line {
    let denied = explained.denied.as_ref();
    let restricts = |decided: &&Decided| decided.ruling == "cached-only" && decided.mode == Mode::Enforce;
    let restricted = explained.decided.iter().find(restricts).map(|decided| decided.plugin.to_string());
    let (decision, policy) = match (denied, restricted) {
        (Some(denial), _) => ("deny", Some(denial.plugin.clone())),
        (None, Some(plugin)) => ("cached-only", Some(plugin)),
        (None, None) => ("allow", None),
    };
    let candidates = explained.candidates.as_ref();
    Line {
        cache: Some(copy(explained.cached)),
        generation,
        decision: Some(decision.to_owned()),
        policy,
        routes: candidates.map(|candidates| candidates.iter().map(|(candidate, _)| route(&candidate.place)).collect()),
        warnings: facts.take_warnings(),
        status: denied.map_or(0, |denial| denial.status),
        reason: denied.map(ToString::to_string),
        ..asked(request, facts, SystemTime::now())
    }
}

/// Hands it to the journal, once the plugins in shadow mode have decided too.
pub(super) fn note(journal: &Arc<Journal>, over: Over) {
    let facts = over.facts.clone();
    match Handle::try_current() {
        // It ends with the last of their deadlines.
        Ok(runtime) if facts.has_shadows() => {
            journal.note_after(&runtime, async move { facts.shadows_done().await }, Arc::new(over));
        }
        _ => journal.note(Arc::new(over)),
    }
}

fn copy(cached: Cached) -> Copy {
    let (state, digest, age) = match cached {
        Cached::Absent => ("absent", None, None),
        Cached::Fresh { digest, age } => ("fresh", Some(digest), age),
        Cached::Stale { digest, age } => ("stale", Some(digest), Some(age)),
    };
    Copy {
        state: state.to_owned(),
        digest: digest.map(|digest| digest.to_string()),
        age_secs: age.map(|age| age.as_secs()),
    }
}

/// Where the pull might come from, once all routing plugins have had their say; none where one denied, or none was
/// asked since the pull was denied before.
fn routes(named: &Place, decided: &[Decided]) -> Option<Vec<Route>> {
    let live = || decided.iter().filter(|decided| decided.mode == Mode::Enforce);
    if live().any(|decided| matches!(decided.hook, "admission" | "routing") && decided.ruling == "deny") {
        return None;
    }
    let last = live().filter_map(|decided| decided.candidates.as_ref()).next_back();
    Some(last.map_or_else(|| vec![route(named)], |places| places.iter().map(route).collect()))
}

fn route(place: &Place) -> Route {
    Route { registry: place.registry.to_string(), repository: place.repository.to_string() }
}

/// What a plugin decided, as the record has it.
pub(super) fn in_record(decided: &Decided) -> record::Decided {
    record::Decided {
        plugin: decided.plugin.to_string(),
        hook: decided.hook.to_owned(),
        mode: decided.mode.as_str().to_owned(),
        ruling: decided.ruling.to_owned(),
        detail: decided.detail.clone(),
        candidates: decided.candidates.as_ref().map(|places| places.iter().map(route).collect()),
        failed: decided.failed.clone(),
        us: u64::try_from(decided.took.as_micros()).unwrap_or(u64::MAX),
    }
}

fn tried(tried: Tried) -> record::Tried {
    let status = match &tried.failure {
        Some(Failure::Status(status)) => Some(*status),
        _ => None,
    };
    record::Tried {
        registry: tried.place.registry.to_string(),
        repository: tried.place.repository.to_string(),
        outcome: tried.outcome.to_owned(),
        status,
        reason: tried.failure.map(|failure| failure.to_string()),
        retry_after_secs: tried.retry_after.map(|after| after.as_secs()),
        rate_limit: tried.rate_limit.into_iter().collect(),
        ms: u64::try_from(tried.took.as_millis()).unwrap_or(u64::MAX),
        bytes: tried.bytes,
    }
}

/// Answers `/decisions`: the last ones, the latest first.
pub(super) fn decisions<B>(journal: &Journal, default: &Registry, request: &Request<B>) -> Response<Body> {
    let query = request.uri().query().unwrap_or_default();
    let wanted = match Wanted::parse(query, default) {
        Ok(wanted) => wanted,
        Err(reason) => return text(StatusCode::BAD_REQUEST, reason + "\n"),
    };
    let lines = journal.last(wanted.limit, |line| wanted.holds(line));
    let mut response = Response::new(Body::bytes(serde_json::to_vec(&lines).expect("texts and numbers serialize")));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Which decisions an operator wants to see.
struct Wanted {
    of: Option<Target>,
    plugin: Option<String>,
    decision: Option<String>,
    limit: usize,
}

impl Wanted {
    fn parse(query: &str, default: &Registry) -> Result<Self, String> {
        let mut wanted = Self { of: None, plugin: None, decision: None, limit: LIMIT };
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "image" => wanted.of = Some(parse_target(&value, default)?),
                "plugin" => wanted.plugin = Some(value.into_owned()),
                "decision" if ["allow", "cached-only", "deny"].contains(&&*value) => {
                    wanted.decision = Some(value.into_owned());
                }
                "decision" => return Err("decision is allow, cached-only or deny".to_owned()),
                "limit" => wanted.limit = value.parse().map_err(|_| "limit is a number".to_owned())?,
                _ => return Err("there are image=, plugin=, decision= and limit=".to_owned()),
            }
        }
        Ok(wanted)
    }

    fn holds(&self, line: &Line) -> bool {
        let of = match &self.of {
            None => true,
            Some(Target::Digest(digest)) => {
                let digest = Some(digest.to_string());
                line.reference == digest || line.digest == digest
            }
            Some(Target::Repository(place)) => {
                line.registry == place.registry.as_str() && line.repository == place.repository.as_str()
            }
            Some(Target::Image(place, reference)) => {
                line.registry == place.registry.as_str()
                    && line.repository == place.repository.as_str()
                    && line.reference == Some(reference.to_string())
            }
        };
        let plugin = self.plugin.as_ref().is_none_or(|plugin| {
            line.policy.as_ref() == Some(plugin) || line.decisions.iter().any(|decided| &decided.plugin == plugin)
        });
        of && plugin && self.decision.as_ref().is_none_or(|decision| line.decision.as_ref() == Some(decision))
    }
}
