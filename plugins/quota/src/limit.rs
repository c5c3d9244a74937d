//! What an upstream still allows, and what is done when that runs low: routes, cached copies, and what follows a 429.

use tidegate_sdk::{
    Action, Attempt, Cached, CachedTag, Candidate, Failure, Pair, Request, Routes, Rule, Step, call, log, metrics,
    state,
};

use crate::rules::{Itself, Low, Mirror, Rules, Upstream};

/// For how long a registry that answered 429 is left alone where it does not say. Units: seconds.
const EXHAUSTED_SECS: u32 = 60;
/// For how long at the most, whatever it says. Units: seconds.
const EXHAUSTED_MAX_SECS: u32 = 3600;

/// Sends what would go to a registry whose limit runs low to its mirrors first.
pub fn route(rules: &Rules, request: &Request, candidates: &[Candidate]) -> Routes {
    // Limits are on pulls, and mirrors for them.
    if request.action != Action::Pull {
        return Routes::Pass;
    }
    let (mut routes, mut last): (Vec<Candidate>, Vec<Candidate>) =
        (Vec::with_capacity(candidates.len() + 1), Vec::new());
    let mut is_low_somewhere = false;
    for candidate in candidates {
        let Some(upstream) = rules.upstream(&candidate.registry).filter(|upstream| is_low(upstream)) else {
            add(&mut routes, candidate.clone(), request);
            continue;
        };
        is_low_somewhere = true;
        for mirror in &upstream.mirrors {
            add(&mut routes, at_mirror(mirror, candidate, request), request);
        }
        if upstream.itself == Itself::Last {
            last.push(candidate.clone());
        }
    }
    if !is_low_somewhere {
        return Routes::Pass;
    }
    for candidate in last {
        add(&mut routes, candidate, request);
    }
    if routes == candidates {
        return Routes::Pass;
    }
    metrics::increment("diverted", &[pair("registry", &request.registry)], 1);
    Routes::To(routes)
}

/// Has a cached copy served without a question where the registry's limit runs low.
pub fn judge(rules: &Rules, request: &Request, cached: Option<&CachedTag>) -> Rule {
    let Some(upstream) = rules.upstream(&request.registry) else { return Rule::Pass };
    if cached.is_none() || !upstream.serve_cached || !is_low(upstream) {
        return Rule::Pass;
    }
    metrics::increment("served_cached", &[pair("registry", &request.registry)], 1);
    Rule::Serve
}

/// After a 429: the cached copy; else a mirror that was not tried; else the host's own rule.
pub fn next_step(rules: &Rules, request: &Request, attempts: &[Attempt], remaining: &[Candidate]) -> Step {
    let Some(latest) = attempts.last().filter(|latest| latest.failure == Failure::Status(429)) else {
        return Step::Pass;
    };
    let Some(upstream) = rules.upstream(&latest.candidate.registry) else {
        return Step::Pass;
    };
    let secs = latest.retry_after_secs.unwrap_or(EXHAUSTED_SECS).clamp(1, EXHAUSTED_MAX_SECS);
    if let Err(error) = state::set(&exhausted_key(&upstream.registry), "429", Some(secs)) {
        log::warn(&format!("that {} answered 429 cannot be kept: {}", upstream.registry, error.name()));
    }
    metrics::increment("refused", &[pair("registry", &upstream.registry)], 1);
    if upstream.serve_cached && request.tag().is_some() && call::cache() != Cached::Absent {
        return Step::ServeStale;
    }
    let is_known = |mirror: &Candidate| {
        let tried = attempts.iter().map(|attempt| &attempt.candidate);
        tried.chain(remaining).any(|other| is_same(other, mirror, request))
    };
    let mirrors = upstream.mirrors.iter().map(|mirror| at_mirror(mirror, &latest.candidate, request));
    match mirrors.into_iter().find(|mirror| !is_known(mirror)) {
        Some(mirror) => Step::Divert(mirror),
        None => Step::Pass,
    }
}

/// Whether a registry has said that it allows few more pulls, or refused one a short time ago.
fn is_low(upstream: &Upstream) -> bool {
    let registry = &upstream.registry;
    if state::get(&exhausted_key(registry)).is_ok_and(|value| value.is_some()) {
        return true;
    }
    let number = |what: &str| call::attribute(&format!("ratelimit.{registry}.{what}"))?.parse::<u64>().ok();
    let Some(remaining) = number("remaining") else { return false };
    #[allow(clippy::cast_precision_loss, reason = "pulls are far fewer than 2^52")]
    metrics::set("remaining", &[pair("registry", registry)], remaining as f64);
    match upstream.low {
        Low::Pulls(pulls) => remaining <= pulls,
        Low::Share(percent) => number("limit").is_some_and(|limit| remaining * 100 <= limit * percent),
    }
}

fn exhausted_key(registry: &str) -> String {
    format!("exhausted {registry}")
}

fn at_mirror(mirror: &Mirror, candidate: &Candidate, request: &Request) -> Candidate {
    let repository = repository(candidate, request);
    let repository = match mirror.path.as_str() {
        "" => repository.to_owned(),
        path => format!("{path}/{repository}"),
    };
    Candidate { registry: mirror.registry.clone(), repository: Some(repository), ..candidate.clone() }
}

/// Adds a candidate, unless the same place is there already.
fn add(routes: &mut Vec<Candidate>, candidate: Candidate, request: &Request) {
    if !routes.iter().any(|other| is_same(other, &candidate, request)) {
        routes.push(candidate);
    }
}

fn is_same(one: &Candidate, other: &Candidate, request: &Request) -> bool {
    one.registry == other.registry && repository(one, request) == repository(other, request)
}

fn repository<'a>(candidate: &'a Candidate, request: &'a Request) -> &'a str {
    candidate.repository.as_deref().unwrap_or(&request.repository)
}

fn pair(key: &str, value: &str) -> Pair {
    Pair { key: key.to_owned(), value: value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_sdk::File;
    use tidegate_sdk::testing::{self, host};

    const APP: &str = "docker.io/library/app:1";

    fn rules(lines: &str) -> Rules {
        let text = format!("[[upstream]]\nregistry = \"docker.io\"\n{lines}");
        Rules::parse(&File { name: "60-quota.toml".to_owned(), text }).expect("a configuration")
    }

    fn remains(remaining: u64, limit: Option<u64>) {
        host(|host| {
            host.attributes.insert("ratelimit.docker.io.remaining".to_owned(), remaining.to_string());
            host.attributes.remove("ratelimit.docker.io.limit");
            limit.map(|limit| host.attributes.insert("ratelimit.docker.io.limit".to_owned(), limit.to_string()));
        });
    }

    fn places(rules: &Rules, candidates: &[Candidate]) -> Option<Vec<String>> {
        let request = testing::request(APP);
        match route(rules, &request, candidates) {
            Routes::Pass => None,
            Routes::To(routes) => {
                Some(routes.iter().map(|to| format!("{}/{}", to.registry, repository(to, &request))).collect())
            }
            Routes::Deny(denial) => panic!("{denial:?}"),
        }
    }

    #[test]
    fn thresholds_are_pulls_or_a_share() {
        let (pulls, share) = (rules("low = 20\nmirrors = [\"m.lan\"]"), rules("low = \"10%\"\nmirrors = [\"m.lan\"]"));
        let own = [Candidate::new("docker.io")];
        assert_eq!(places(&pulls, &own), None, "a registry that has said nothing");
        for (remaining, limit, by_pulls, by_share) in [
            (21, Some(100), false, false),
            (20, Some(100), true, false),
            (11, Some(100), true, false),
            (10, Some(100), true, true),
            (30, Some(300), false, true),
            (0, Some(0), true, true),
            (0, None, true, false),
        ] {
            remains(remaining, limit);
            assert_eq!(places(&pulls, &own).is_some(), by_pulls, "{remaining} of {limit:?}");
            assert_eq!(places(&share, &own).is_some(), by_share, "{remaining} of {limit:?}");
        }
        assert_eq!(host(|host| host.metric("remaining{registry=\"docker.io\"}")).as_deref(), Some("0"));
    }

    #[test]
    fn routes_go_to_the_mirrors_and_to_the_registry_last_or_never() {
        remains(0, None);
        let two = "low = 0\nmirrors = [\"m.lan\", \"n.lan/hub\"]\n";
        let own = [Candidate::new("docker.io")];
        let all = ["m.lan/library/app", "n.lan/hub/library/app", "docker.io/library/app"];
        assert_eq!(places(&rules(two), &own).expect("routes"), all);
        assert_eq!(places(&rules(&format!("{two}itself = \"never\"")), &own).expect("routes"), all[..2]);
        assert_eq!(places(&rules("low = 0\nitself = \"never\""), &own).expect("only the cache"), Vec::<String>::new());
        assert_eq!(places(&rules("low = 0"), &own), None, "there is nowhere else");
        let push = Request { action: Action::Push, ..testing::request(APP) };
        assert_eq!(route(&rules(two), &push, &own), Routes::Pass, "what is written goes where it was to go");
        let before = [Candidate::new("docker.io"), Candidate::new("near.lan"), Candidate::new("m.lan")];
        let after = ["m.lan/library/app", "n.lan/hub/library/app", "near.lan/library/app", "docker.io/library/app"];
        assert_eq!(places(&rules(two), &before).expect("routes"), after);
        assert_eq!(places(&rules("low = 0"), &before).expect("routes").last().expect("one"), "docker.io/library/app");
    }

    #[test]
    fn cached_copies_are_served_while_the_limit_is_low() {
        let (serving, asking) = (rules("low = 10"), rules("low = 10\nserve_cached = false"));
        let copy = CachedTag { digest: "sha256:1".to_owned(), age_secs: 100_000 };
        let request = testing::request(APP);
        remains(11, None);
        assert_eq!(judge(&serving, &request, Some(&copy)), Rule::Pass);
        remains(10, None);
        assert_eq!(judge(&serving, &request, Some(&copy)), Rule::Serve);
        assert_eq!(judge(&serving, &request, None), Rule::Pass);
        assert_eq!(judge(&asking, &request, Some(&copy)), Rule::Pass);
        assert_eq!(judge(&serving, &testing::request("quay.io/a:1"), Some(&copy)), Rule::Pass);
    }

    fn failed(registry: &str, failure: Failure, retry_after_secs: Option<u32>) -> Attempt {
        let (candidate, rate_limit) = (Candidate::new(registry), Vec::new());
        Attempt { candidate, failure, duration_ms: 1, bytes: 0, retry_after_secs, rate_limit }
    }

    #[test]
    fn a_429_is_answered_from_the_cache_or_by_a_mirror() {
        let rules = rules("low = 0\nmirrors = [\"m.lan\", \"n.lan/hub\"]");
        let request = testing::request(APP);
        let refused = failed("docker.io", Failure::Status(429), Some(7));
        let step = |attempts: &[Attempt], remaining: &[Candidate]| next_step(&rules, &request, attempts, remaining);
        for other in [Failure::Status(503), Failure::Timeout, Failure::Status(404)] {
            assert_eq!(step(&[failed("docker.io", other.clone(), None)], &[]), Step::Pass, "{other:?}");
        }
        assert_eq!(step(&[failed("other.lan", Failure::Status(429), None)], &[]), Step::Pass);
        let first = Candidate::new("m.lan").with_repository("library/app");
        let second = Candidate::new("n.lan").with_repository("hub/library/app");
        assert_eq!(step(std::slice::from_ref(&refused), &[]), Step::Divert(first.clone()));
        assert_eq!(step(std::slice::from_ref(&refused), std::slice::from_ref(&first)), Step::Divert(second.clone()));
        let tried = [failed("m.lan", Failure::Timeout, None), refused.clone()];
        assert_eq!(step(&tried, &[]), Step::Divert(second.clone()));
        assert_eq!(step(&tried, std::slice::from_ref(&second)), Step::Pass, "the host goes on by itself");
        host(|host| host.cached = Cached::Stale);
        assert_eq!(step(std::slice::from_ref(&refused), &[]), Step::ServeStale);
    }

    #[test]
    fn after_a_429_the_registry_is_left_alone_for_as_long_as_it_asks() {
        let rules = rules("low = 0\nmirrors = [\"m.lan\"]");
        let own = [Candidate::new("docker.io")];
        let request = testing::request(APP);
        for (asked, secs) in [(Some(7), 7), (None, 60), (Some(u32::MAX), 3600), (Some(0), 1)] {
            next_step(&rules, &request, &[failed("docker.io", Failure::Status(429), asked)], &[]);
            assert!(places(&rules, &own).is_some(), "{asked:?}");
            host(|host| host.now_ms += secs * 1000 - 1);
            assert!(places(&rules, &own).is_some(), "{asked:?}");
            host(|host| host.now_ms += 1);
            assert_eq!(places(&rules, &own), None, "{asked:?}");
        }
    }
}
