//! The objects of an OpenShift cluster, put together and into registries.conf as the cluster does it for its nodes.
//!
//! Source: openshift/runtime-utils, pkg/registries, `EditRegistriesConfig`.

use std::collections::BTreeMap;

use tidegate_formats::{ImageConfig, MirrorSet, MirrorSetKind, PullFromMirror, SourcePolicy};

use crate::containers::{Containers, EntryMirror};
use crate::order;

/// All objects together.
#[derive(Default, Debug)]
pub struct Cluster {
    digests: BTreeMap<String, Source>,
    tags: BTreeMap<String, Source>,
    blocked: Vec<(String, String)>,
    search: Vec<(String, tidegate_formats::Text)>,
}

/// What the objects of one kind say of one source.
#[derive(Default, Debug)]
struct Source {
    /// Where it is named first.
    at: String,
    /// The mirrors of each rule, and the source behind them.
    lists: Vec<Vec<String>>,
    /// Where each mirror is named first.
    mirrors: BTreeMap<String, String>,
    /// Where it says that the source must not be contacted.
    never: Option<String>,
}

impl Cluster {
    pub fn add_mirror_set(&mut self, file: &str, set: &MirrorSet) {
        let sources = if set.kind == MirrorSetKind::Tag { &mut self.tags } else { &mut self.digests };
        for rule in &set.rules {
            let name = rule.source.trim_end_matches('/').to_owned();
            let mirrors: Vec<String> = rule.mirrors.iter().map(|text| text.trim_end_matches('/').to_owned()).collect();
            // A rule without a mirror other than the source says nothing, not even that the source is blocked.
            if mirrors.iter().all(|mirror| *mirror == name) {
                continue;
            }
            let at = format!("{file}:{}", rule.source.line);
            let source = sources.entry(name.clone()).or_default();
            if source.at.is_empty() {
                source.at.clone_from(&at);
            }
            if rule.policy == SourcePolicy::NeverContactSource {
                source.never.get_or_insert(at);
            }
            for (mirror, text) in mirrors.iter().zip(&rule.mirrors) {
                source.mirrors.entry(mirror.clone()).or_insert_with(|| format!("{file}:{}", text.line));
            }
            let mut list = mirrors;
            if !list.contains(&name) {
                list.push(name);
            }
            source.lists.push(list);
        }
    }

    pub fn add_image_config(&mut self, file: &str, config: &ImageConfig) {
        for blocked in config.blocked.iter().flat_map(|blocked| blocked.iter()) {
            self.blocked.push((blocked.trim_end_matches('/').to_owned(), format!("{file}:{}", blocked.line)));
        }
        if !config.search.is_empty() {
            self.search = config.search.iter().map(|registry| (file.to_owned(), registry.clone())).collect();
        }
    }

    /// Edits what registries.conf says.
    pub fn edit(self, containers: &mut Containers) {
        let mut mirrored = Vec::new();
        for (sources, pull) in [(self.digests, PullFromMirror::DigestOnly), (self.tags, PullFromMirror::TagOnly)] {
            for (name, source) in sources {
                let entry = containers.entry(&name, &source.at);
                if let Some(at) = source.never {
                    entry.blocked = Some(at);
                }
                let mut order = order::merge(source.lists.iter().map(Vec::as_slice));
                // At the end it is tried last anyway.
                if order.last() == Some(&name) {
                    order.pop();
                }
                for location in order {
                    let at = source.mirrors.get(&location).unwrap_or(&source.at).clone();
                    entry.mirrors.push(EntryMirror { location, at, pull });
                }
                mirrored.push(name);
            }
        }
        // Only the longest prefix holds for a name: so what is blocked as a whole is blocked in each entry below it.
        for (scope, at) in &self.blocked {
            containers.entry(scope, at);
        }
        for (scope, at) in &self.blocked {
            for entry in &mut containers.entries {
                if is_within(&entry.scope, scope) {
                    entry.blocked.get_or_insert_with(|| at.clone());
                }
            }
        }
        // And what is mirrored as a whole is mirrored in each entry below it that has no mirrors of its own.
        for scope in mirrored {
            let mirrors = containers.entry(&scope, "").mirrors.clone();
            for entry in &mut containers.entries {
                if entry.scope != scope && entry.mirrors.is_empty() && is_within(&entry.scope, &scope) {
                    let rest = &entry.scope[scope.len()..];
                    entry.mirrors = mirrors
                        .iter()
                        .map(|mirror| EntryMirror { location: format!("{}{rest}", mirror.location), ..mirror.clone() })
                        .collect();
                }
            }
        }
        if !self.search.is_empty() {
            containers.search = self.search;
        }
    }
}

/// Whether one scope lies within another: `quay.io/a` in `quay.io`, `*.b.example.com` and `b.example.com/x` in
/// `*.example.com`.
fn is_within(scope: &str, other: &str) -> bool {
    if scope == other || scope.strip_prefix(other).is_some_and(|rest| rest.starts_with('/')) {
        return true;
    }
    let host = scope.split(['/', ':']).next().unwrap_or_default();
    other.strip_prefix('*').is_some_and(|domain| domain.starts_with('.') && host.ends_with(domain))
}

#[cfg(test)]
mod tests {
    use super::is_within;

    #[test]
    fn a_scope_lies_within_another_in_whole_components() {
        for (scope, other, within) in [
            ("quay.io", "quay.io", true),
            ("quay.io/a", "quay.io", true),
            ("quay.iox", "quay.io", false),
            ("quay.io:443", "quay.io", false),
            ("quay.io", "quay.io/a", false),
            ("*.b.example.com", "*.example.com", true),
            ("b.example.com/x", "*.example.com", true),
            ("b.example.com:5000/x", "*.example.com", true),
            ("example.com", "*.example.com", false),
            ("quay.io/b.example.com", "*.example.com", false),
        ] {
            assert_eq!(is_within(scope, other), within, "{scope} in {other}");
        }
    }
}
