//! A guest for the tests: it denies whoever sends the header `X-Tell`, and tells what the host told it.

use tidegate_sdk::{Admission, Cached, Request, Verdict, call, state};

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

tidegate_sdk::export!(Teller: admission);
