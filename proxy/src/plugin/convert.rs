//! Between the words of the WIT and those of `oci`. What a plugin gives is not trusted: a word that cannot be is an error.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::bindings::{admission, fallback, freshness, inspection, routing, types};
use super::ruling::{Finding, Routes, Rule, Step, Verdict};
use crate::oci::manifest::Descriptor;
use crate::oci::{
    Action, Asked, Attempt, Candidate, Code, Content, Denial, Digest, Failure, Place, Reference, Registry, Repository,
    Tag, Write,
};

/// Longest `Retry-After` that a plugin may ask for.
const RETRY_AFTER_MAX_SECS: u32 = 86_400;
/// Longest text of a denial. Units: bytes.
const MESSAGE_MAX: usize = 2048;
/// Candidates that a plugin may give.
const CANDIDATES_MAX: usize = 64;

pub(super) fn request(asked: &Asked) -> Arc<types::Request> {
    let content = match asked {
        Asked::Pull(pull) => match &pull.content {
            Content::Manifest(_) => types::Content::Manifest,
            Content::Blob(_) => types::Content::Blob,
            Content::Tags => types::Content::TagList,
            Content::Referrers(_) => types::Content::Referrers,
        },
        Asked::Push(push) => match &push.write {
            Write::Manifest(_) | Write::RemoveManifest(_) => types::Content::Manifest,
            _ => types::Content::Blob,
        },
    };
    let place = asked.place();
    Arc::new(types::Request {
        action: match asked.action() {
            Action::Pull => types::Action::Pull,
            Action::Push => types::Action::Push,
            Action::Delete => types::Action::Delete,
        },
        content,
        registry: place.registry.as_str().to_owned(),
        repository: place.repository.as_str().to_owned(),
        reference: match asked.reference() {
            None => types::Reference::None,
            Some(Reference::Tag(tag)) => types::Reference::Tag(tag.as_str().to_owned()),
            Some(Reference::Digest(digest)) => types::Reference::Digest(digest.to_string()),
        },
    })
}

pub(super) fn candidate(candidate: &Candidate) -> types::Candidate {
    let ms =
        |duration: Option<Duration>| duration.map(|duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX));
    types::Candidate {
        registry: candidate.place.registry.as_str().to_owned(),
        repository: Some(candidate.place.repository.as_str().to_owned()),
        timeout_ms: ms(candidate.timeout),
        hedge_after_ms: ms(candidate.hedge_after),
        options: pairs(&candidate.options),
    }
}

fn pairs(pairs: &[(String, String)]) -> Vec<types::Pair> {
    pairs.iter().map(|(key, value)| types::Pair { key: key.clone(), value: value.clone() }).collect()
}

pub(super) fn attempt(attempt: &Attempt) -> types::Attempt {
    let failure = match &attempt.failure {
        Failure::Connect(reason) => types::Failure::Connect(reason.clone()),
        Failure::Tls(reason) => types::Failure::Tls(reason.clone()),
        Failure::Timeout => types::Failure::Timeout,
        Failure::Status(status) => types::Failure::Status(*status),
        Failure::Auth { reason, .. } => types::Failure::Auth(reason.clone()),
        Failure::DigestMismatch => types::Failure::DigestMismatch,
        Failure::Truncated => types::Failure::Truncated,
        Failure::Other(reason) => types::Failure::Other(reason.clone()),
    };
    types::Attempt {
        candidate: candidate(&attempt.candidate),
        failure,
        duration_ms: u32::try_from(attempt.duration.as_millis()).unwrap_or(u32::MAX),
        bytes: attempt.bytes,
        retry_after_secs: attempt.retry_after.map(|after| u32::try_from(after.as_secs()).unwrap_or(u32::MAX)),
        rate_limit: pairs(&attempt.rate_limit),
    }
}

/// A text of a guest on one line, without what could write lines of its own or move a terminal's cursor.
pub(super) fn printable(text: &str) -> String {
    text.trim().chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

fn denial(denial: &types::Denial, plugin: &str) -> Denial {
    let message = printable(&denial.message);
    let message = match message.as_str() {
        "" => "denied",
        text => &text[..text.floor_char_boundary(MESSAGE_MAX)],
    };
    Denial {
        status: if (400..=599).contains(&denial.status) { denial.status } else { 403 },
        code: Code::parse(&denial.code).unwrap_or(Code::Denied),
        plugin: plugin.to_owned(),
        message: message.to_owned(),
        retry_after: denial.retry_after_secs.map(|secs| Duration::from_secs(secs.min(RETRY_AFTER_MAX_SECS).into())),
    }
}

pub(super) fn verdict(verdict: admission::Verdict, plugin: &str) -> Verdict {
    match verdict {
        admission::Verdict::Allow => Verdict::Allow,
        admission::Verdict::CachedOnly => Verdict::CachedOnly,
        admission::Verdict::Deny(it) => Verdict::Deny(denial(&it, plugin)),
    }
}

pub(super) fn routes(routes: routing::Routes, plugin: &str, place: &Place) -> Result<Routes, String> {
    match routes {
        routing::Routes::Pass => Ok(Routes::Pass),
        routing::Routes::Deny(it) => Ok(Routes::Deny(denial(&it, plugin))),
        routing::Routes::To(list) if list.len() > CANDIDATES_MAX => {
            Err(format!("it gives {} candidates; at most {CANDIDATES_MAX} are tried", list.len()))
        }
        routing::Routes::To(list) => {
            list.into_iter().map(|it| parse_candidate(it, plugin, place)).collect::<Result<_, _>>().map(Routes::To)
        }
    }
}

pub(super) fn step(step: fallback::Step, plugin: &str, place: &Place) -> Result<Step, String> {
    Ok(match step {
        fallback::Step::Pass => Step::Pass,
        fallback::Step::Next => Step::Next,
        fallback::Step::Divert(it) => Step::Divert(parse_candidate(it, plugin, place)?),
        fallback::Step::ServeStale => Step::ServeStale,
        fallback::Step::WaitMs(ms) => Step::Wait(Duration::from_millis(ms.into())),
        fallback::Step::Stop => Step::Stop,
        fallback::Step::Deny(it) => Step::Deny(denial(&it, plugin)),
    })
}

pub(super) fn finding(finding: inspection::Finding, plugin: &str) -> Finding {
    match finding {
        inspection::Finding::Release => Finding::Release,
        inspection::Finding::Deny(it) => Finding::Deny(denial(&it, plugin)),
        inspection::Finding::Hold(inspection::Hold { for_secs, message }) => {
            let it = types::Denial { status: 403, code: String::new(), message, retry_after_secs: Some(for_secs) };
            Finding::Hold(denial(&it, plugin))
        }
    }
}

pub(super) fn rule(rule: freshness::Rule) -> Result<Rule, String> {
    Ok(match rule {
        freshness::Rule::Pass => Rule::Pass,
        freshness::Rule::Serve => Rule::Serve,
        freshness::Rule::Revalidate => Rule::Revalidate,
        freshness::Rule::Pin(digest) => Rule::Pin(
            digest.parse().map_err(|_| format!("it pins the digest `{}`, which is none", digest.escape_debug()))?,
        ),
    })
}

pub(super) fn cached_tag(cached: Option<(Digest, Duration)>) -> Option<freshness::CachedTag> {
    cached.map(|(digest, age)| freshness::CachedTag {
        digest: digest.to_string(),
        age_secs: u32::try_from(age.as_secs()).unwrap_or(u32::MAX),
    })
}

pub(super) fn descriptor(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: descriptor.size,
        artifact_type: descriptor.artifact_type.clone(),
        platform: descriptor.platform.as_ref().map(ToString::to_string),
        annotations: annotations(&descriptor.annotations),
    }
}

pub(super) fn annotations(annotations: &BTreeMap<String, String>) -> Vec<types::Pair> {
    annotations.iter().map(|(key, value)| types::Pair { key: key.clone(), value: value.clone() }).collect()
}

/// A tag or a digest as a plugin writes it.
pub(super) fn reference(text: &str) -> Option<Reference> {
    match text.parse() {
        Ok(digest) => Some(Reference::Digest(digest)),
        Err(_) => Tag::parse(text).map(Reference::Tag),
    }
}

fn parse_candidate(it: types::Candidate, plugin: &str, place: &Place) -> Result<Candidate, String> {
    let registry = Registry::parse(&it.registry)
        .ok_or_else(|| format!("it gives the candidate `{}`, which is no registry name", it.registry.escape_debug()))?;
    let repository = match it.repository {
        None => place.repository.clone(),
        Some(name) => Repository::parse(&name)
            .ok_or_else(|| format!("it gives the repository `{}`, which is no repository name", name.escape_debug()))?,
    };
    for option in &it.options {
        tracing::debug!(plugin, option = option.key, "a candidate has an option that is not known here: ignored");
    }
    let duration = |ms: Option<u32>| ms.map(|ms| Duration::from_millis(ms.into()));
    Ok(Candidate {
        place: Place { repository: repository.canonical(&registry), registry },
        timeout: duration(it.timeout_ms),
        hedge_after: duration(it.hedge_after_ms),
        options: it.options.into_iter().map(|pair| (pair.key, pair.value)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p2_what_a_plugin_says_is_not_trusted() {
        let said = |status, code: &str, message: &str| {
            let it = types::Denial {
                status,
                code: code.to_owned(),
                message: message.to_owned(),
                retry_after_secs: Some(u32::MAX),
            };
            denial(&it, "p")
        };
        for status in [0, 200, 399, 600, 999] {
            assert_eq!(said(status, "DENIED", "no").status, 403);
        }
        assert_eq!(said(429, "TOOMANYREQUESTS", "no").code, Code::TooManyRequests);
        assert_eq!(said(403, "TEAPOT", "no").code, Code::Denied);
        assert_eq!(said(403, "", "no\r\nSet-Cookie: x").message, "no  Set-Cookie: x");
        assert!(said(403, "", &"é".repeat(5000)).message.len() <= MESSAGE_MAX);
        assert_eq!(said(403, "", "").retry_after, Some(Duration::from_hours(24)));
        let named = Place {
            registry: Registry::parse("docker.io").expect("a registry"),
            repository: Repository::parse("library/a").expect("a repository"),
        };
        let place = |registry: &str, repository: Option<&str>| {
            let it = types::Candidate {
                registry: registry.to_owned(),
                repository: repository.map(str::to_owned),
                timeout_ms: None,
                hedge_after_ms: None,
                options: Vec::new(),
            };
            parse_candidate(it, "p", &named).map(|candidate| candidate.place.to_string())
        };
        assert_eq!(place("mirror.lan", None).as_deref(), Ok("mirror.lan/library/a"));
        assert_eq!(place("index.docker.io", Some("a")).as_deref(), Ok("docker.io/library/a"));
        assert!(place("http://mirror.lan", None).is_err());
        assert!(place("mirror.lan", Some("../a")).is_err());
    }
}
