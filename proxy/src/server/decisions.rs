//! What was decided: the line that a request leaves behind, and the last ones for an operator who asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use url::form_urlencoded;

use super::admin::text;
use super::cache::parse_target;
use super::watched::Record;
use crate::body::Body;
use crate::cache::Target;
use crate::oci::{Content, Pull, Reference, Registry};
use crate::plugin::Facts;
use crate::pull::Source;
use crate::record::{Journal, Line};

/// Lines of one answer, where nothing else is said.
const LIMIT: usize = 100;

/// The line about a request that is over.
pub(super) fn line(record: &Record, began: SystemTime, pull: &Pull, facts: &Facts) -> Line {
    let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in &facts.headers {
        headers.entry(name.clone()).or_default().push(value.clone());
    }
    Line {
        time: humantime::format_rfc3339_millis(began).to_string(),
        request: record.id.clone(),
        client: facts.client,
        identity: None,
        user_agent: facts.user_agent.clone(),
        method: pull.method.as_str().to_owned(),
        addressing: pull.addressing.as_str().to_owned(),
        action: "pull".to_owned(),
        content: pull.content.kind().to_owned(),
        registry: pull.place.registry.to_string(),
        repository: pull.place.repository.to_string(),
        reference: reference(&pull.content),
        accept: facts.accept.clone(),
        headers,
        attributes: BTreeMap::new(),
        cache: None,
        generation: 0,
        decision: record.decision.map(str::to_owned),
        policy: record.policy.clone(),
        decisions: Vec::new(),
        routes: None,
        upstreams: Vec::new(),
        source: record.source.map(Source::as_str).map(str::to_owned),
        status: record.status,
        digest: record.digest.map(|digest| digest.to_string()),
        sent_bytes: record.sent(),
        elapsed_ms: record.elapsed_ms(),
        warnings: record.warnings.clone(),
        reason: record.reason.clone(),
        broken: record.broken().map(str::to_owned),
    }
}

fn reference(content: &Content) -> Option<String> {
    match content {
        Content::Manifest(Reference::Tag(tag)) => Some(tag.to_string()),
        Content::Manifest(Reference::Digest(digest)) | Content::Blob(digest) | Content::Referrers(digest) => {
            Some(digest.to_string())
        }
        Content::Tags => None,
    }
}

/// Answers `/decisions`: the last ones, the latest first.
pub(super) fn decisions<B>(journal: &Journal, default: &Registry, request: &Request<B>) -> Response<Body> {
    let query = request.uri().query().unwrap_or_default();
    let wanted = match Wanted::parse(query, default) {
        Ok(wanted) => wanted,
        Err(reason) => return text(StatusCode::BAD_REQUEST, reason + "\n"),
    };
    let lines: Vec<Arc<Line>> = journal.last(wanted.limit, |line| wanted.holds(line));
    let lines: Vec<&Line> = lines.iter().map(Arc::as_ref).collect();
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
                    && line.reference == self::reference(&Content::Manifest(reference.clone()))
            }
        };
        let plugin = self.plugin.as_ref().is_none_or(|plugin| {
            line.policy.as_ref() == Some(plugin) || line.decisions.iter().any(|decided| &decided.plugin == plugin)
        });
        of && plugin && self.decision.as_ref().is_none_or(|decision| line.decision.as_ref() == Some(decision))
    }
}
