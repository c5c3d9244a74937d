//! The decision about one request.

use std::borrow::Cow;

use tidegate_sdk::{Action, Candidate, Content, Request, Routes, Verdict, call, name};

use crate::rules::{Rule, Rules, Target};

/// What a request asks for, as far as mirrors care.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Asked {
    /// What a tag stands for, or which tags there are.
    Tag,
    /// A manifest by its digest, or what refers to it.
    Digest,
    /// A part of an image: whoever gave its manifest has it, be that a mirror for tags or for digests.
    Blob,
}

/// Denies what is blocked and has no mirror to come from.
pub fn admit(rules: &Rules, request: &Request) -> Verdict {
    let mut denial = None;
    for (registry, repository) in names(rules, request) {
        let name = format!("{registry}/{repository}");
        let Some((rule, rest)) = rules.find(&name) else { return Verdict::Allow };
        if let (Some(at), true) = (&rule.blocked, request.action != Action::Pull) {
            // Uploads and removals go to the source itself, never to a mirror.
            denial.get_or_insert_with(|| format!("{name} is blocked by {} of {at}", rule.scope));
        } else if request.action != Action::Pull || !places(rules, rule, rest, asked(request), &name).is_empty() {
            return Verdict::Allow;
        } else {
            denial.get_or_insert_with(|| nowhere(rule, request, &name));
        }
    }
    denial.map_or(Verdict::Allow, Verdict::deny)
}

/// Why a name leads nowhere.
fn nowhere(rule: &Rule, request: &Request, name: &str) -> String {
    let others = rule.targets.iter().any(|target| target.place.is_some());
    let by = if request.digest().is_some() { "digest" } else { "tag" };
    match (&rule.blocked, others) {
        (Some(at), false) => format!("{name} is blocked by {} of {at}", rule.scope),
        (Some(at), true) => {
            format!("{name} is blocked by {} of {at}, and none of its mirrors is for pulls by {by}", rule.scope)
        }
        (None, _) => format!("{name} has no host for pulls by {by} in {}", rule.at),
    }
}

/// Gives the candidates to try: each candidate that a rule is about is replaced by its mirrors and itself.
pub fn route(rules: &Rules, request: &Request, candidates: &[Candidate]) -> Routes {
    // containers tools push to the source, and so does everything that comes through here.
    if request.action != Action::Pull {
        return Routes::Pass;
    }
    let asked = asked(request);
    let mut routes: Vec<Candidate> = Vec::with_capacity(8);
    for candidate in candidates {
        let repository = candidate.repository.as_deref().unwrap_or(&request.repository);
        let is_named = candidate.registry == request.registry && repository == request.repository;
        if !is_named || rules.short_names.is_empty() {
            add_candidate(rules, asked, candidate, &candidate.registry, repository, &mut routes);
            continue;
        }
        for (registry, repository) in names(rules, request) {
            add_candidate(rules, asked, candidate, &registry, &repository, &mut routes);
        }
    }
    if routes == candidates { Routes::Pass } else { Routes::To(routes) }
}

/// Adds where one name leads to.
fn add_candidate(
    rules: &Rules,
    asked: Asked,
    like: &Candidate,
    registry: &str,
    repository: &str,
    routes: &mut Vec<Candidate>,
) {
    let name = format!("{registry}/{repository}");
    let mut add = |registry: String, repository: String| {
        let there = routes
            .iter()
            .any(|other| other.registry == registry && other.repository.as_deref() == Some(repository.as_str()));
        // The same failure twice helps nobody.
        if !there {
            routes.push(Candidate { registry, repository: Some(repository), ..like.clone() });
        }
    };
    match rules.find(&name) {
        None => add(registry.to_owned(), repository.to_owned()),
        Some((rule, rest)) => {
            for (registry, repository) in places(rules, rule, rest, asked, &name) {
                add(registry, repository);
            }
        }
    }
}

/// Where a name leads to by its rule: registry and repository.
///
/// What a manifest lists is had where the manifest was had, as containers tools have it: they stay with the mirror that
/// served them. And a digest that a tag stood for there may come from there, be that a mirror for tags only: many
/// clients ask for a tag's digest, and then for that.
fn places(rules: &Rules, rule: &Rule, rest: &str, asked: Asked, name: &str) -> Vec<(String, String)> {
    let place = |target: &Target| match &target.place {
        None => name.split_once('/').map(|(registry, path)| (registry.to_owned(), path.to_owned())),
        Some(place) => {
            let (registry, repository) = place.below(rest)?;
            // A mirror may lie in what another rule blocks.
            let blocked = rules.has_blocked() && rules.is_blocked(&format!("{registry}/{repository}"));
            (!blocked).then_some((registry, repository))
        }
    };
    let serves = |target: &&Target| match asked {
        Asked::Tag => target.tags,
        Asked::Digest => target.digests,
        Asked::Blob => true,
    };
    let mut places: Vec<_> = rule.targets.iter().filter(serves).filter_map(place).collect();
    let is_one_for_all = matches!(rule.targets.as_slice(), [] | [Target { tags: true, digests: true, .. }]);
    if asked == Asked::Tag || is_one_for_all {
        return places;
    }
    let may_give = |gave: &str| {
        rule.targets.iter().filter_map(place).find(|(registry, repository)| {
            gave.strip_prefix(registry.as_str()).and_then(|rest| rest.strip_prefix('/')) == Some(repository)
        })
    };
    for listed in call::attribute("listed-at").iter().flat_map(|places| places.rsplit(' ')).filter_map(may_give) {
        places.retain(|place| *place != listed);
        places.insert(0, listed);
    }
    if asked == Asked::Digest {
        let tagged = call::attribute("tagged-at");
        for tagged in tagged.iter().flat_map(|places| places.split(' ')).filter_map(may_give) {
            if !places.contains(&tagged) {
                places.push(tagged);
            }
        }
    }
    places
}

fn asked(request: &Request) -> Asked {
    match (&request.content, request.digest()) {
        (Content::Blob, _) => Asked::Blob,
        (_, Some(_)) => Asked::Digest,
        (_, None) => Asked::Tag,
    }
}

type Name<'a> = (Cow<'a, str>, Cow<'a, str>);

/// The names that a request stands for: the one that the client gave, or where it gave no registry, what aliases and
/// search registries make of it.
///
/// docker writes `library/redis` for `redis`. So the short name is what stands behind `library/`; and only Docker Hub
/// is asked for it with that in front.
fn names<'a>(rules: &'a Rules, request: &'a Request) -> Vec<Name<'a>> {
    let itself = || vec![(Cow::from(request.registry.as_str()), Cow::from(request.repository.as_str()))];
    let short_names = &rules.short_names;
    if short_names.is_empty() || call::attribute("addressing").as_deref() != Some("default") {
        return itself();
    }
    let repository = request.repository.as_str();
    let short = repository.strip_prefix("library/").filter(|rest| !rest.contains('/')).unwrap_or(repository);
    if let Some((registry, repository)) = short_names.aliases.get(short) {
        return vec![(Cow::from(registry.as_str()), Cow::from(repository.as_str()))];
    }
    if short_names.search.is_empty() {
        return itself();
    }
    let found = short_names.search.iter().filter_map(|place| {
        let is_hub = place.registry == name::DOCKER_HUB && place.path.is_empty();
        let rest = if is_hub && !short.contains('/') { format!("/library/{short}") } else { format!("/{short}") };
        place.below(&rest).map(|(registry, repository)| (Cow::from(registry), Cow::from(repository)))
    });
    found.collect()
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
