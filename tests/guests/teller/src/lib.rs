//! A guest for the tests: it denies whoever sends the header `X-Tell`, and tells what the host told it.

use tidegate_sdk::{Admission, Attempt, Cached, Candidate, Denial, Fallback, Request, Step, Verdict, call, state};

struct Teller;

impl Admission for Teller {
    fn admit(request: &Request) -> Verdict {
        let told = call::header("x-tell");
        if told.is_empty() {
            return Verdict::Allow;
        }
        let cached = match call::cache() {
            Cached::Absent => "absent",
            Cached::Fresh => "fresh",
            Cached::Stale => "stale",
        };
        let attribute = |name: &str| call::attribute(name).unwrap_or_else(|| "none".to_owned());
        let count = state::add("count", 1, None).map_or_else(|error| format!("{error:?}"), |count| count.to_string());
        call::warn("this was told");
        Verdict::deny(format!(
            "{request} id={} client={} identity={} agent={} accept={} told={} secret={} method={} addressing={} cache={cached} digest={} count={count} left={}",
            call::id(),
            call::client_address(),
            call::client().is_some(),
            call::user_agent(),
            call::accept().join(","),
            told.join(","),
            call::header("authorization").len(),
            attribute("method"),
            attribute("addressing"),
            attribute("cache.digest"),
            call::remaining_ms() > 0,
        ))
    }
}

impl Fallback for Teller {
    fn on_failure(_: &Request, attempts: &[Attempt], remaining: &[Candidate]) -> Step {
        let told = call::header("x-tell-failure");
        let (Some(latest), false) = (attempts.last(), told.is_empty()) else {
            return Step::Pass;
        };
        let limits: Vec<String> = latest.rate_limit.iter().map(|pair| format!("{}={}", pair.key, pair.value)).collect();
        let cached = match call::cache() {
            Cached::Absent => "absent",
            Cached::Fresh => "fresh",
            Cached::Stale => "stale",
        };
        let age = call::attribute("cache.age-secs").is_some_and(|age| age.parse::<u64>().is_ok());
        Step::Deny(Denial::new(format!(
            "failure={:?} after={:?} limits={} cache={cached} age={age} remaining={}",
            latest.failure,
            latest.retry_after_secs,
            limits.join(" "),
            remaining.len(),
        )))
    }
}

tidegate_sdk::export!(Teller: admission, fallback);
