//! Fallback: what the configuration says about the failure of a candidate.

use tidegate_sdk::{Attempt, Candidate, Denial, Failure, Request, Step, clock};

use crate::upstreams::{Reaction, Upstreams};

/// Waits before the same candidate is tried again: each four times the one before. The host grants three for one
/// request. Units: milliseconds.
const WAITS_MS: [u32; 3] = [250, 1_000, 4_000];
/// The longest wait that the host grants. Units: milliseconds.
const WAIT_MAX_MS: u32 = 10_000;
/// When to come again where no registry said so. Units: seconds.
const RETRY_AFTER_SECS: u32 = 30;
/// No client is sent away for longer than this, whatever a registry asks for. Units: seconds.
const RETRY_AFTER_MAX_SECS: u32 = 3_600;

/// Decides by the rules of the longest prefix that covers what the client asked for.
pub fn next_step(upstreams: &Upstreams, request: &Request, attempts: &[Attempt]) -> Step {
    let (Some((upstream, _)), Some(latest)) = (upstreams.find(&request.registry, &request.repository), attempts.last())
    else {
        return Step::Pass;
    };
    let names = names(&latest.failure);
    let Some((name, reaction)) = names.iter().find_map(|name| upstream.on.get_key_value(name)) else {
        return Step::Pass;
    };
    match reaction {
        Reaction::Next => Step::Next,
        Reaction::Stale => Step::ServeStale,
        Reaction::Stop => Step::Stop,
        Reaction::Retry => retry(attempts, latest),
        Reaction::Later => later(request, latest, &format!("rule \"{name}\" of {}", upstreams.file)),
    }
}

/// The names under which a failure may be configured, the most specific first.
fn names(failure: &Failure) -> Vec<String> {
    let names = match failure {
        Failure::Connect(_) => vec!["connect".to_owned()],
        Failure::Tls(_) => vec!["tls".to_owned()],
        Failure::Timeout => vec!["timeout".to_owned()],
        Failure::Status(404) => vec!["not-found".to_owned(), "status-4xx".to_owned()],
        Failure::Status(status) => vec![format!("status-{status}"), format!("status-{}xx", status / 100)],
        Failure::Auth(_) => vec!["auth".to_owned()],
        Failure::DigestMismatch => vec!["digest-mismatch".to_owned()],
        Failure::Truncated => vec!["truncated".to_owned()],
        Failure::Other(_) => vec!["other".to_owned()],
    };
    names.into_iter().chain(["any".to_owned()]).collect()
}

/// Waits as long as the registry asked for, at least as long as the attempt's turn; the next candidate where that is
/// too long, or the waits of this request are used up.
fn retry(attempts: &[Attempt], latest: &Attempt) -> Step {
    let is_same = |a: &Candidate, b: &Candidate| a.registry == b.registry && a.repository == b.repository;
    let waited = attempts.windows(2).filter(|pair| is_same(&pair[0].candidate, &pair[1].candidate)).count();
    let Some(&wait_ms) = WAITS_MS.get(waited) else {
        return Step::Next;
    };
    let asked_ms = latest.retry_after_secs.unwrap_or(0).saturating_mul(1_000);
    if asked_ms > WAIT_MAX_MS {
        return Step::Next;
    }
    // Up to a quarter more, so that clients that failed together do not come back together.
    let jitter_ms = u32::try_from(clock::monotonic_ns() / 1_000 % u64::from(wait_ms / 4)).unwrap_or(0);
    Step::WaitMs((wait_ms + jitter_ms).max(asked_ms))
}

fn later(request: &Request, latest: &Attempt, rule: &str) -> Step {
    let secs = latest.retry_after_secs.unwrap_or(RETRY_AFTER_SECS).clamp(1, RETRY_AFTER_MAX_SECS);
    let status = if latest.failure == Failure::Status(429) { 429 } else { 503 };
    let registry = &latest.candidate.registry;
    let failure = describe(&latest.failure);
    let message = format!("{request} is not to be had now: {registry} {failure}; try again in {secs} s ({rule})");
    Denial::later(status, message, secs).into()
}

fn describe(failure: &Failure) -> String {
    match failure {
        Failure::Connect(reason) => format!("cannot be reached ({reason})"),
        Failure::Tls(reason) => format!("failed in TLS ({reason})"),
        Failure::Timeout => "did not answer in time".to_owned(),
        Failure::Status(status) => format!("answered {status}"),
        Failure::Auth(reason) => format!("refused the credentials ({reason})"),
        Failure::DigestMismatch => "sent wrong bytes".to_owned(),
        Failure::Truncated => "broke off".to_owned(),
        Failure::Other(reason) => format!("failed ({reason})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_sdk::{Action, Content, File, Reference};

    fn step(on: &str, attempts: &[Attempt]) -> Step {
        let text = format!("[[upstream]]\nprefix = \"docker.io\"\non = {{ {on} }}");
        let file = File { name: "20-failover.toml".to_owned(), text };
        let request = Request {
            action: Action::Pull,
            content: Content::Manifest,
            registry: "docker.io".to_owned(),
            repository: "library/x".to_owned(),
            reference: Reference::Tag("1".to_owned()),
        };
        next_step(&Upstreams::parse(&file).expect("a configuration"), &request, attempts)
    }

    fn attempt(registry: &str, failure: Failure, retry_after_secs: Option<u32>) -> Attempt {
        let (candidate, rate_limit) = (Candidate::new(registry), Vec::new());
        Attempt { candidate, failure, duration_ms: 1, bytes: 0, retry_after_secs, rate_limit }
    }

    #[test]
    fn the_most_specific_rule_holds() {
        let rules = "timeout = \"next\", status-429 = \"stale\", status-4xx = \"stop\", any = \"next\"";
        for (on, failure, expected) in [
            (rules, Failure::Timeout, Step::Next),
            (rules, Failure::Status(429), Step::ServeStale),
            (rules, Failure::Status(403), Step::Stop),
            (rules, Failure::Status(404), Step::Stop),
            (rules, Failure::Status(503), Step::Next),
            ("not-found = \"stale\", status-4xx = \"stop\"", Failure::Status(404), Step::ServeStale),
            ("status-404 = \"stale\", status-4xx = \"stop\"", Failure::Status(404), Step::ServeStale),
            ("status-4xx = \"stop\"", Failure::Status(500), Step::Pass),
            ("status-5xx = \"stop\"", Failure::Status(500), Step::Stop),
            ("connect = \"stop\"", Failure::Connect("refused".to_owned()), Step::Stop),
            ("tls = \"stop\"", Failure::Tls(String::new()), Step::Stop),
            ("auth = \"stop\"", Failure::Auth(String::new()), Step::Stop),
            ("digest-mismatch = \"stop\"", Failure::DigestMismatch, Step::Stop),
            ("truncated = \"stop\"", Failure::Truncated, Step::Stop),
            ("other = \"stop\"", Failure::Other(String::new()), Step::Stop),
            ("other = \"stop\"", Failure::Truncated, Step::Pass),
            ("", Failure::Timeout, Step::Pass),
        ] {
            assert_eq!(step(on, &[attempt("m.lan", failure.clone(), None)]), expected, "{on}: {failure:?}");
        }
    }

    #[test]
    fn retry_waits_longer_each_time_and_three_times_at_most() {
        let on = "any = \"retry\"";
        let mut attempts = Vec::new();
        for (from_ms, to_ms) in [(250, 313), (1_000, 1_250), (4_000, 5_000)] {
            attempts.push(attempt("m.lan", Failure::Timeout, None));
            let Step::WaitMs(wait_ms) = step(on, &attempts) else { panic!("no wait") };
            assert!((from_ms..to_ms).contains(&wait_ms), "{wait_ms} is in {from_ms}..{to_ms}");
        }
        attempts.push(attempt("m.lan", Failure::Timeout, None));
        assert_eq!(step(on, &attempts), Step::Next);
        attempts.push(attempt("n.lan", Failure::Timeout, None));
        assert_eq!(step(on, &attempts), Step::Next, "the waits of a request are used up once");
        let fresh = [attempt("m.lan", Failure::Timeout, None), attempt("n.lan", Failure::Timeout, None)];
        assert!(matches!(step(on, &fresh), Step::WaitMs(250..313)), "another candidate is no second try");
    }

    #[test]
    fn retry_waits_as_long_as_the_registry_asks_or_goes_on() {
        let on = "status-429 = \"retry\"";
        assert_eq!(step(on, &[attempt("m.lan", Failure::Status(429), Some(3))]), Step::WaitMs(3_000));
        assert_eq!(step(on, &[attempt("m.lan", Failure::Status(429), Some(11))]), Step::Next);
        assert_eq!(step(on, &[attempt("m.lan", Failure::Status(429), Some(u32::MAX))]), Step::Next);
    }

    #[test]
    fn later_tells_the_client_when_to_come_again() {
        let on = "any = \"later\"";
        for (failure, asked, status, secs) in [
            (Failure::Status(429), Some(7), 429, 7),
            (Failure::Status(429), Some(u32::MAX), 429, 3_600),
            (Failure::Status(429), Some(0), 429, 1),
            (Failure::Timeout, None, 503, 30),
        ] {
            let Step::Deny(denial) = step(on, &[attempt("m.lan", failure, asked)]) else { panic!("no denial") };
            assert_eq!((denial.status, denial.retry_after_secs), (status, Some(secs)));
        }
        let Step::Deny(denial) = step(on, &[attempt("m.lan", Failure::Timeout, None)]) else { panic!("no denial") };
        let message = "docker.io/library/x:1 is not to be had now: m.lan did not answer in time; try again in 30 s \
                       (rule \"any\" of 20-failover.toml)";
        assert_eq!(denial.message, message);
    }
}
