//! The decision about one manifest.

use tidegate_sdk::{Finding, Pair, Pattern, Request, clock, date, image, log, metrics, state};

use crate::ledger;
use crate::rules::{Rules, Term, WhenFull};

/// How long it is remembered that a digest was pulled by a tag that is excepted: a client asks for the tag, and then
/// for what belongs to it by digest. Units: seconds.
const EXCEPTED_SECS: u32 = 86_400;
/// When to come again where the ledger fails. Units: seconds.
const RETRY_AFTER_SECS: u32 = 60;
/// Docker's first release: what says that it is older does not say when it was made. Units: milliseconds.
const EARLIEST_MS: u64 = 1_363_737_600_000;
const CREATED: &str = "org.opencontainers.image.created";

/// Decides about the manifest under inspection.
pub fn inspect(rules: &Rules, request: &Request) -> Finding {
    let Some(target) = image::target() else {
        return Finding::hold(format!("{request} is held: the host shows no manifest to inspect"), RETRY_AFTER_SECS);
    };
    let digest = target.digest.as_str();
    let (term, pattern) = rules.term(request, digest);
    if term.ms() == 0 {
        return Finding::Release;
    }
    if let Some(exception) = rules.except.iter().find(|pattern| pattern.covers(request, Some(digest))) {
        remember(exception, digest);
        return Finding::Release;
    }
    let now_ms = clock::now_ms();
    let old_ms = now_ms.saturating_sub(rules.longest_ms());
    let seen_ms = match first_seen(digest, now_ms, old_ms) {
        Ok(seen_ms) => seen_ms,
        Err(error) => return not_taken_down(rules, request, digest, error),
    };
    // Of a clock that was wrong then, or is now: it counts from now on.
    let seen_ms = seen_ms.min(now_ms);
    if now_ms - seen_ms >= term.ms() || is_excepted(rules, request, digest) {
        return Finding::Release;
    }
    let since_ms = match rules.trust_created.then(created_ms).flatten() {
        Some(created_ms) => seen_ms.min(created_ms),
        None => seen_ms,
    };
    if now_ms - since_ms >= term.ms() {
        return Finding::Release;
    }
    let until_ms = since_ms + term.ms();
    metrics::increment("held", &[], 1);
    let for_secs = u32::try_from((until_ms - now_ms).div_ceil(1000)).unwrap_or(u32::MAX);
    let (since, until) = (date::show(since_ms), date::show(until_ms));
    let (rule, way_out) = (rule(rules, term, pattern), way_out(rules, request, digest));
    let message = format!("{request} is held until {until}: {digest} was first seen on {since}, and {rule}; {way_out}");
    Finding::hold(message, for_secs)
}

/// When the manifest, or an index that lists it, was first seen; now where neither was. Units: milliseconds.
fn first_seen(digest: &str, now_ms: u64, old_ms: u64) -> Result<u64, state::Error> {
    let own_ms = ledger::first_seen(digest, old_ms)?;
    if let Some(own_ms) = own_ms.filter(|own_ms| *own_ms < old_ms) {
        return Ok(own_ms);
    }
    // An index names its children by their digests: who saw it has seen that they are there.
    let mut earliest_ms = own_ms;
    for parent in image::parents() {
        let parent_ms = ledger::first_seen(&parent, old_ms)?;
        earliest_ms = earliest_ms.into_iter().chain(parent_ms).min();
    }
    if let Some(earliest_ms) = earliest_ms {
        return Ok(earliest_ms);
    }
    metrics::increment("first_seen", &[], 1);
    ledger::take_down(digest, now_ms)
}

/// A pull by an excepted tag goes on by digest.
fn remember(exception: &Pattern, digest: &str) {
    if exception.tag.is_none() {
        return;
    }
    let key = excepted_key(digest);
    if state::get(&key).is_ok_and(|text| text.as_deref() == Some(&exception.text)) {
        return;
    }
    if let Err(error) = state::set(&key, &exception.text, Some(EXCEPTED_SECS)) {
        log::warn(&format!("that {digest} is excepted by \"{exception}\" cannot be remembered: {}", error.name()));
    }
}

/// Whether the manifest, or an index that lists it, is excepted by its digest, or was pulled by a tag that still is.
fn is_excepted(rules: &Rules, request: &Request, digest: &str) -> bool {
    std::iter::once(digest.to_owned()).chain(image::parents()).any(|digest| {
        let tag = state::get(&excepted_key(&digest)).ok().flatten();
        rules.except.iter().any(|pattern| {
            let by_digest = pattern.digest.is_some() && pattern.covers(request, Some(&digest));
            by_digest || tag.as_ref() == Some(&pattern.text)
        })
    })
}

fn excepted_key(digest: &str) -> String {
    format!("excepted {digest}")
}

/// When the image was made, as its author says. Units: milliseconds.
fn created_ms() -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Configuration {
        created: Option<String>,
    }
    let of_configuration = || {
        let configuration = image::config().ok().filter(|bytes| !bytes.is_empty())?;
        serde_json::from_slice::<Configuration>(&configuration).ok()?.created
    };
    let text = image::annotation(CREATED).or_else(of_configuration)?;
    date::parse(&text).filter(|ms| *ms >= EARLIEST_MS)
}

fn rule(rules: &Rules, term: Term, pattern: Option<&Pattern>) -> String {
    match pattern {
        Some(pattern) => format!("the rule for \"{pattern}\" of {} asks for {term}", rules.file),
        None => format!("{} asks for {term}", rules.file),
    }
}

/// How it is to be had before that.
fn way_out(rules: &Rules, request: &Request, digest: &str) -> String {
    let exception = format!("\"{}/{}@{digest}\" in \"except\" of {}", request.registry, request.repository, rules.file);
    match &rules.ask {
        Some(ask) => format!("to have it now, ask {ask} for {exception}"),
        None => format!("to have it now, the operator writes {exception}"),
    }
}

fn not_taken_down(rules: &Rules, request: &Request, digest: &str, error: state::Error) -> Finding {
    let is_full = error == state::Error::TooManyKeys;
    let reason = if is_full { "full" } else { "unavailable" };
    metrics::increment("not_taken_down", &[Pair { key: "reason".to_owned(), value: reason.to_owned() }], 1);
    if is_full && rules.when_full == WhenFull::Release {
        log::warn(&format!(
            "{digest} is released though it may be new: the ledger is full (when_full of {})",
            rules.file
        ));
        return Finding::Release;
    }
    let reason = match error {
        state::Error::TooManyKeys => "the ledger of images is full, which its operator has to mend".to_owned(),
        other => format!("the ledger of images cannot be used ({})", other.name()),
    };
    let way_out = way_out(rules, request, digest);
    Finding::hold(
        format!("{request} is held: when {digest} was first seen is not known, since {reason}; {way_out}"),
        RETRY_AFTER_SECS,
    )
}

#[cfg(test)]
#[path = "inspect_tests.rs"]
mod tests;
