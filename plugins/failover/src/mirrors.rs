//! Routing: each candidate that a prefix covers is replaced by its mirrors and itself.

use tidegate_sdk::{Action, Candidate, Request, Routes};

use crate::upstreams::{Place, Source, Upstream, Upstreams};

/// Gives the candidates to try. Those that no prefix covers stay as they are.
pub fn route(upstreams: &Upstreams, request: &Request, candidates: &[Candidate]) -> Routes {
    // A mirror is for pulls; what is written goes to the source.
    if request.action != Action::Pull {
        return Routes::Pass;
    }
    let mut routes: Vec<Candidate> = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let repository = repository(candidate, request);
        let Some((upstream, rest)) = upstreams.find(&candidate.registry, repository) else {
            add(&mut routes, candidate.clone(), request);
            continue;
        };
        if upstream.source == Source::First {
            add(&mut routes, candidate.clone(), request);
        }
        for mirror in &upstream.mirrors {
            add(&mut routes, at_mirror(upstream, mirror, candidate, repository, rest), request);
        }
        if upstream.source == Source::Last {
            add(&mut routes, candidate.clone(), request);
        }
    }
    if routes == candidates { Routes::Pass } else { Routes::To(routes) }
}

/// The same content at a mirror. A mirror without a path has the repository under the name that it has at the source.
fn at_mirror(upstream: &Upstream, mirror: &Place, source: &Candidate, repository: &str, rest: &str) -> Candidate {
    let repository = match (mirror.path.as_str(), rest) {
        ("", _) => repository.to_owned(),
        (path, "") => path.to_owned(),
        (path, rest) => format!("{path}/{rest}"),
    };
    Candidate {
        registry: mirror.registry.clone(),
        repository: Some(repository),
        timeout_ms: upstream.timeout_ms.or(source.timeout_ms),
        hedge_after_ms: upstream.hedge_after_ms.or(source.hedge_after_ms),
        options: source.options.clone(),
    }
}

/// Adds a candidate, unless the same place is there already: the same failure twice helps nobody.
fn add(routes: &mut Vec<Candidate>, candidate: Candidate, request: &Request) {
    let place = |candidate: &Candidate| (candidate.registry.clone(), repository(candidate, request).to_owned());
    if routes.iter().all(|other| place(other) != place(&candidate)) {
        routes.push(candidate);
    }
}

fn repository<'a>(candidate: &'a Candidate, request: &'a Request) -> &'a str {
    candidate.repository.as_deref().unwrap_or(&request.repository)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_sdk::{Content, File, Reference};

    fn upstreams(text: &str) -> Upstreams {
        Upstreams::parse(&File { name: "20-failover.toml".to_owned(), text: text.to_owned() }).expect("a configuration")
    }

    fn request(registry: &str, repository: &str) -> Request {
        Request {
            action: Action::Pull,
            content: Content::Manifest,
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            reference: Reference::Tag("1".to_owned()),
        }
    }

    /// Where each candidate is, as `registry/repository`; none: as they were.
    fn places(text: &str, image: &str, candidates: &[Candidate]) -> Option<Vec<String>> {
        let (registry, repository) = image.split_once('/').expect("a registry");
        let request = request(registry, repository);
        let own = [Candidate::new(registry)];
        let candidates = if candidates.is_empty() { &own } else { candidates };
        match route(&upstreams(text), &request, candidates) {
            Routes::Pass => None,
            Routes::To(routes) => Some(
                routes
                    .iter()
                    .map(|route| format!("{}/{}", route.registry, super::repository(route, &request)))
                    .collect(),
            ),
            Routes::Deny(denial) => panic!("{denial:?}"),
        }
    }

    #[test]
    fn what_is_written_goes_to_the_source() {
        let text = "[[upstream]]\nprefix = \"docker.io\"\nmirrors = [\"mirror.lan\"]\nsource = \"never\"\n";
        for action in [Action::Push, Action::Delete] {
            let request = Request { action, ..request("docker.io", "library/x") };
            assert!(matches!(route(&upstreams(text), &request, &[Candidate::new("docker.io")]), Routes::Pass));
        }
    }

    #[test]
    fn mirrors_come_in_order_around_the_source() {
        let two = "mirrors = [\"mirror-a.lan\", \"mirror-b.lan/hub\"]\n";
        for (text, image, expected) in [
            (
                format!("prefix = \"docker.io\"\n{two}"),
                "docker.io/library/x",
                vec!["mirror-a.lan/library/x", "mirror-b.lan/hub/library/x", "docker.io/library/x"],
            ),
            (
                format!("prefix = \"docker.io\"\n{two}source = \"first\""),
                "docker.io/library/x",
                vec!["docker.io/library/x", "mirror-a.lan/library/x", "mirror-b.lan/hub/library/x"],
            ),
            (
                format!("prefix = \"docker.io\"\n{two}source = \"never\""),
                "docker.io/library/x",
                vec!["mirror-a.lan/library/x", "mirror-b.lan/hub/library/x"],
            ),
            (
                format!("prefix = \"docker.io/library\"\n{two}"),
                "docker.io/library/x",
                vec!["mirror-a.lan/library/x", "mirror-b.lan/hub/x", "docker.io/library/x"],
            ),
            (
                format!("prefix = \"docker.io/library/x\"\n{two}"),
                "docker.io/library/x",
                vec!["mirror-a.lan/library/x", "mirror-b.lan/hub", "docker.io/library/x"],
            ),
            ("prefix = \"docker.io\"\nsource = \"never\"".to_owned(), "docker.io/library/x", vec![]),
        ] {
            let answer = places(&format!("[[upstream]]\n{text}"), image, &[]);
            assert_eq!(answer.expect("new routes"), expected, "{text}");
        }
    }

    #[test]
    fn what_no_prefix_covers_stays() {
        let text = "[[upstream]]\nprefix = \"docker.io\"\nmirrors = [\"m.lan\"]\n[[upstream]]\nprefix = \"quay.io\"";
        assert_eq!(places(text, "ghcr.io/a", &[]), None);
        assert_eq!(places(text, "quay.io/a", &[]), None, "no mirrors, source last");
    }

    #[test]
    fn other_plugins_candidates_are_rewritten_or_kept() {
        let text = "[[upstream]]\nprefix = \"docker.io/library\"\nmirrors = [\"m.lan\"]";
        let before = [
            Candidate::new("near.lan"),
            Candidate::new("docker.io").with_repository("other/x"),
            Candidate::new("docker.io"),
            Candidate::new("m.lan"),
        ];
        let after = places(text, "docker.io/library/x", &before).expect("new routes");
        assert_eq!(after, ["near.lan/library/x", "docker.io/other/x", "m.lan/library/x", "docker.io/library/x"]);
    }

    #[test]
    fn times_are_put_on_mirrors_only() {
        let text = "[[upstream]]\nprefix = \"docker.io\"\nmirrors = [\"m.lan\"]\ntimeout_ms = 700\nhedge_after_ms = 90";
        let source = Candidate { timeout_ms: Some(5000), ..Candidate::new("docker.io") };
        let routes = route(&upstreams(text), &request("docker.io", "library/x"), std::slice::from_ref(&source));
        let mirror = Candidate {
            timeout_ms: Some(700),
            hedge_after_ms: Some(90),
            ..Candidate::new("m.lan").with_repository("library/x")
        };
        assert_eq!(routes, Routes::To(vec![mirror, source]));
    }
}
