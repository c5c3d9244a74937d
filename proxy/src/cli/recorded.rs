//! A line of the decision record, back in the words of the program; and what was decided then beside what would be now.

use std::time::Duration;

use super::ruled::{Routes, Ruled};
use crate::oci::{
    Addressing, Attempt, Candidate, Content, Denial, Digest, Failure, Method, Place, Pull, Reference, Registry,
    Repository, Tag,
};
use crate::plugin::{Cached, Step};
use crate::record::{Copy, Line, Route, Tried};

/// What was decided.
#[derive(Debug)]
pub(super) struct Before {
    /// `allow`, `cached-only` or `deny`.
    verdict: String,
    /// Who denied, and why.
    denial: Option<String>,
    /// Where it might come from; none: denied before.
    pub routes: Option<Vec<String>>,
    /// What `freshness` said, where it had an opinion.
    rule: Option<String>,
    /// What `fallback` said, where it had one.
    steps: Vec<String>,
    /// How often `fallback` was asked.
    fallbacks: usize,
}

/// What would be decided.
#[derive(Debug)]
pub(super) struct After {
    verdict: String,
    pub denial: Option<Denial>,
    pub routes: Option<Vec<String>>,
    rule: Option<String>,
    steps: Vec<String>,
}

impl Before {
    /// Reads it off a line.
    pub fn of(line: &Line) -> Self {
        let enforced = || line.decisions.iter().filter(|decided| decided.mode == "enforce");
        let denial = enforced().find(|decided| matches!(decided.ruling.as_str(), "deny" | "hold")).map(|decided| {
            let detail = decided.detail.as_deref().unwrap_or_default();
            format!("{} by {}: {detail}", decided.ruling, decided.plugin)
        });
        let is_restricted = enforced().any(|decided| decided.ruling == "cached-only");
        let opinion = |hook| enforced().filter(move |decided| decided.hook == hook && decided.ruling != "pass");
        // The first plugin is asked each time.
        let first = enforced().find(|decided| decided.hook == "fallback").map(|decided| &decided.plugin);
        let in_words = |decided: &crate::record::Decided| match &decided.detail {
            Some(detail) => format!("{} {detail}", decided.ruling),
            None => decided.ruling.clone(),
        };
        Self {
            verdict: match (&denial, is_restricted) {
                (Some(_), _) => "deny",
                (None, true) => "cached-only",
                (None, false) => "allow",
            }
            .to_owned(),
            denial,
            routes: line.routes.as_ref().map(|routes| routes.iter().map(Route::to_string).collect()),
            rule: opinion("freshness").next().map(in_words),
            steps: opinion("fallback").map(in_words).collect(),
            fallbacks: enforced()
                .filter(|decided| decided.hook == "fallback" && Some(&decided.plugin) == first)
                .count(),
        }
    }

    /// Whether `fallback` was asked after each of so many failures, if at all: about one that was hedged it was not.
    pub fn asked_after(&self, failures: usize) -> bool {
        self.fallbacks == 0 || self.fallbacks == failures
    }

    /// In words what changes; none: nothing that a client could see but a text.
    pub fn change(&self, after: &After) -> Option<String> {
        if self.verdict != after.verdict {
            let was = self.denial.as_ref().unwrap_or(&self.verdict);
            let now = match &after.denial {
                Some(denial) => format!("deny by {}: {}", denial.plugin, denial.message),
                None => after.verdict.clone(),
            };
            return Some(format!("{was} -> {now}"));
        }
        if after.denial.is_some() {
            return None;
        }
        let places = |routes: &Option<Vec<String>>| match routes.as_deref() {
            None => "unknown".to_owned(),
            Some([]) => "nowhere".to_owned(),
            Some(places) => places.join(", then "),
        };
        let rule = |rule: &Option<String>| rule.clone().unwrap_or_else(|| "pass".to_owned());
        let steps = |steps: &[String]| if steps.is_empty() { "pass".to_owned() } else { steps.join(", ") };
        if self.routes != after.routes {
            return Some(format!("from {} -> from {}", places(&self.routes), places(&after.routes)));
        }
        if self.rule != after.rule {
            return Some(format!("freshness {} -> {}", rule(&self.rule), rule(&after.rule)));
        }
        (self.steps != after.steps).then(|| format!("after failures {} -> {}", steps(&self.steps), steps(&after.steps)))
    }
}

impl After {
    /// Takes what was ruled.
    pub fn of(ruled: Ruled) -> Self {
        let verdict = if ruled.denial.is_some() { "deny" } else { ruled.admission.unwrap_or("allow") };
        let routes = match ruled.routes {
            Some(Routes::To(places)) => Some(places),
            Some(Routes::Deny) | None => None,
        };
        let rule = ruled.rule.filter(|rule| rule != "pass");
        Self { verdict: verdict.to_owned(), denial: ruled.denial, routes, rule, steps: Vec::new() }
    }

    /// Takes what was said after a failure; whether that ends the pull.
    pub fn step(&mut self, step: Step) -> bool {
        let (text, ends) = match step {
            Step::Pass => return false,
            Step::Next => ("next".to_owned(), false),
            Step::Divert(to) => (format!("divert {}", to.place), false),
            Step::ServeStale => ("serve-stale".to_owned(), false),
            Step::Wait(wait) => (format!("wait {} ms", wait.as_millis()), false),
            Step::Stop => ("stop".to_owned(), true),
            Step::Deny(denial) => {
                "deny".clone_into(&mut self.verdict);
                self.denial = Some(denial);
                return true;
            }
        };
        self.steps.push(text);
        ends
    }
}

fn place(registry: &str, repository: &str) -> Result<Place, String> {
    let registry = Registry::parse(registry).ok_or_else(|| format!("`{registry}` is no registry"))?;
    let repository = Repository::parse(repository).ok_or_else(|| format!("`{repository}` is no repository"))?;
    Ok(Place { registry, repository })
}

fn digest(text: &str) -> Result<Digest, String> {
    text.parse().map_err(|_| format!("`{text}` is no digest"))
}

/// What was asked for.
///
/// # Errors
/// What of the line cannot be.
pub(super) fn pull(line: &Line) -> Result<Pull, String> {
    let reference = line.reference.as_deref();
    let content = match (line.content.as_str(), reference) {
        ("manifest", Some(text)) if text.contains(':') => Content::Manifest(Reference::Digest(digest(text)?)),
        ("manifest", Some(text)) => {
            Content::Manifest(Reference::Tag(Tag::parse(text).ok_or_else(|| format!("`{text}` is no tag"))?))
        }
        ("blob", Some(text)) => Content::Blob(digest(text)?),
        ("referrers", Some(text)) => Content::Referrers(digest(text)?),
        ("tags", None) => Content::Tags,
        (content, _) => return Err(format!("content: there is no `{content}` with this reference")),
    };
    let method = match line.method.as_str() {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        method => return Err(format!("method: `{method}` is neither GET nor HEAD")),
    };
    let addressing = Addressing::parse(&line.addressing).ok_or_else(|| {
        let known = Addressing::ALL.map(Addressing::as_str).join(", ");
        format!("addressing: `{}` is none of {known}", line.addressing)
    })?;
    Ok(Pull { place: place(&line.registry, &line.repository)?, content, method, addressing })
}

/// What the cache held.
pub(super) fn cached(copy: &Copy) -> Result<Cached, String> {
    let age = copy.age_secs.map(Duration::from_secs);
    match (copy.state.as_str(), &copy.digest) {
        ("absent", _) => Ok(Cached::Absent),
        ("fresh", Some(text)) => Ok(Cached::Fresh { digest: digest(text)?, age }),
        ("stale", Some(text)) => Ok(Cached::Stale { digest: digest(text)?, age: age.unwrap_or_default() }),
        (state, _) => Err(format!("cache: there is no `{state}` with this digest")),
    }
}

/// Where routing led.
pub(super) fn candidates(line: &Line) -> Result<Vec<Candidate>, String> {
    let routes = line.routes.iter().flatten();
    routes.map(|route| place(&route.registry, &route.repository).map(Candidate::plain)).collect()
}

/// An attempt that failed.
pub(super) fn attempt(tried: &Tried) -> Result<Attempt, String> {
    // The record has the words of the failure, with what stands before them.
    let reason = || {
        let reason = tried.reason.as_deref().unwrap_or_default();
        ["no connection: ", "TLS failed: ", "authentication failed: "]
            .iter()
            .find_map(|before| reason.strip_prefix(before))
            .unwrap_or(reason)
            .to_owned()
    };
    let failure = match (tried.outcome.as_str(), tried.status) {
        (_, Some(status)) => Failure::Status(status),
        ("connect", _) => Failure::Connect(reason()),
        ("tls", _) => Failure::Tls(reason()),
        ("timeout", _) => Failure::Timeout,
        ("auth", _) => Failure::Auth { reason: reason(), refused: true, wrong_password: false },
        ("digest-mismatch", _) => Failure::DigestMismatch,
        ("truncated", _) => Failure::Truncated,
        ("other", _) => Failure::Other(reason()),
        (outcome, None) => return Err(format!("upstreams: there is no outcome `{outcome}`")),
    };
    Ok(Attempt {
        candidate: Candidate::plain(place(&tried.registry, &tried.repository)?),
        failure,
        duration: Duration::from_millis(tried.ms),
        bytes: tried.bytes,
        retry_after: tried.retry_after_secs.map(Duration::from_secs),
        rate_limit: tried.rate_limit.clone().into_iter().collect(),
    })
}
