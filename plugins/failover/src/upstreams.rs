//! The configuration: what is done for each prefix.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;

use serde::Deserialize;
use tidegate_sdk::{File, name};
use toml::Spanned;

/// The least that makes sense, in one line: what `[[upstream]]` says over several.
pub const EXAMPLE: &str = "upstream = [{ prefix = \"docker.io\", mirrors = [\"mirror.example.com\"] }]";

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    upstream: Vec<WrittenUpstream>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenUpstream {
    prefix: Spanned<String>,
    #[serde(default)]
    mirrors: Vec<Spanned<String>>,
    #[serde(default)]
    source: Source,
    #[serde(default)]
    on: BTreeMap<Spanned<String>, Reaction>,
    timeout_ms: Option<NonZeroU32>,
    hedge_after_ms: Option<NonZeroU32>,
}

/// When the registry that the prefix names is tried itself.
#[derive(Clone, Copy, Default, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Before the mirrors.
    First,
    /// After the mirrors.
    #[default]
    Last,
    /// Not at all.
    Never,
}

/// What to do after a failure.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reaction {
    /// Try the next candidate.
    Next,
    /// Serve the cached copy, however old; without one, the next candidate.
    Stale,
    /// Give up with what the registry said.
    Stop,
    /// Wait and try the same candidate again, then the next one.
    Retry,
    /// Tell the client to come again.
    Later,
}

/// All prefixes, the longest first: the first that covers a name is the one that holds.
#[derive(Debug)]
pub struct Upstreams {
    /// The file that they stand in.
    pub file: String,
    list: Vec<Upstream>,
}

/// What is done for one prefix.
#[derive(Debug, PartialEq)]
pub struct Upstream {
    /// A registry, or a registry and the start of a repository in whole components.
    pub prefix: Place,
    pub mirrors: Vec<Place>,
    pub source: Source,
    /// By the name of the failure; `not-found` is the one name of a 404.
    pub on: BTreeMap<String, Reaction>,
    pub timeout_ms: Option<u32>,
    pub hedge_after_ms: Option<u32>,
}

/// A registry, and the start of a repository in whole components; empty: all of the registry.
#[derive(Debug, PartialEq, Clone)]
pub struct Place {
    pub registry: String,
    pub path: String,
}

impl Upstreams {
    /// Parses a configuration file.
    ///
    /// # Errors
    /// The file, the line, the reason and the way out.
    pub fn parse(file: &File) -> Result<Self, String> {
        let written: Written = file.toml()?;
        if written.upstream.is_empty() {
            return Err(format!("{}: no [[upstream]] is there: write for example {EXAMPLE}", file.name));
        }
        let mut list: Vec<Upstream> = Vec::with_capacity(written.upstream.len());
        for written in written.upstream {
            let at = written.prefix.span().start;
            let upstream = Upstream::parse(file, written)?;
            if list.iter().any(|other| other.prefix == upstream.prefix) {
                let reason = format_args!("prefix \"{}\" is there twice: put both into one", upstream.prefix);
                return Err(file.refuse(at, reason));
            }
            list.push(upstream);
        }
        list.sort_by_key(|upstream| std::cmp::Reverse(upstream.prefix.path.len()));
        Ok(Self { file: file.name.clone(), list })
    }

    /// The upstream with the longest prefix that covers a repository, and what of the repository comes after it.
    pub fn find<'a>(&self, registry: &str, repository: &'a str) -> Option<(&Upstream, &'a str)> {
        self.list.iter().find_map(|upstream| Some((upstream, upstream.prefix.rest(registry, repository)?)))
    }
}

impl Upstream {
    fn parse(file: &File, written: WrittenUpstream) -> Result<Self, String> {
        let prefix = Place::parse_source(written.prefix.get_ref()).map_err(|reason| {
            let reason = format_args!("bad prefix \"{}\": {reason}", written.prefix.get_ref());
            file.refuse(written.prefix.span().start, reason)
        })?;
        let mut mirrors = Vec::with_capacity(written.mirrors.len());
        for text in &written.mirrors {
            let refuse = |reason: String| {
                file.refuse(text.span().start, format_args!("bad mirror \"{}\": {reason}", text.get_ref()))
            };
            let mirror = Place::parse(text.get_ref()).map_err(refuse)?;
            if mirrors.contains(&mirror) {
                return Err(refuse("it is there twice: remove one".to_owned()));
            }
            let is_source = mirror.path.is_empty() || mirror.path == prefix.path;
            if mirror.registry == prefix.registry && is_source {
                return Err(refuse(
                    "that is the source itself: say when it is tried with source = \"last\"".to_owned(),
                ));
            }
            mirrors.push(mirror);
        }
        let mut on = BTreeMap::new();
        for (key, reaction) in written.on {
            let Some(failure) = parse_failure(key.get_ref()) else {
                let reason = format_args!("unknown failure \"{}\": write one of {FAILURES}", key.get_ref());
                return Err(file.refuse(key.span().start, reason));
            };
            if on.insert(failure.to_owned(), reaction).is_some() {
                let reason = "\"not-found\" and \"status-404\" are the same: keep one of the two";
                return Err(file.refuse(key.span().start, reason));
            }
        }
        Ok(Self {
            prefix,
            mirrors,
            source: written.source,
            on,
            timeout_ms: written.timeout_ms.map(NonZeroU32::get),
            hedge_after_ms: written.hedge_after_ms.map(NonZeroU32::get),
        })
    }
}

const FAILURES: &str = "timeout, connect, tls, auth, not-found, status-429 (any number), status-4xx, status-5xx, \
                        digest-mismatch, truncated, other, any";

/// The one name of a failure; none for what is none.
fn parse_failure(key: &str) -> Option<&str> {
    match key {
        "status-404" => Some("not-found"),
        "timeout" | "connect" | "tls" | "auth" | "not-found" | "status-3xx" | "status-4xx" | "status-5xx"
        | "digest-mismatch" | "truncated" | "other" | "any" => Some(key),
        _ => {
            let number = key.strip_prefix("status-")?;
            let is_status = number.len() == 3 && (300..=599).contains(&number.parse::<u16>().ok()?);
            is_status.then_some(key)
        }
    }
}

impl Place {
    /// A place that clients name: what they shorten names no registry.
    fn parse_source(text: &str) -> Result<Self, String> {
        let place = Self::parse(text)?;
        if !name::is_registry_meant(&place.registry) {
            return Err(format!("it names no registry: write \"{}/{place}\"", name::DOCKER_HUB));
        }
        Ok(place)
    }

    /// A place as the operator's configuration names it.
    fn parse(text: &str) -> Result<Self, String> {
        if let Some((_, rest)) = text.split_once("://") {
            return Err(format!(
                "it is a registry's name, not an address: write \"{}\", and how it is reached under \
                 [registries.\"...\"] in tidegate.toml",
                rest.trim_end_matches('/')
            ));
        }
        let (first, path) = text.split_once('/').unwrap_or((text, ""));
        let Some(registry) = name::registry(first) else {
            return Err(format!("\"{first}\" is no registry: write HOST or HOST:PORT"));
        };
        if text.ends_with(['/', '*']) {
            let name = text.trim_end_matches(['/', '*']);
            return Err(format!("it stands for all below it already: write \"{name}\""));
        }
        if !path.is_empty() && !name::is_repository(path) {
            return Err(format!("\"{path}\" is no repository: write lower-case names with / between them, and no tag"));
        }
        Ok(Self { registry, path: path.to_owned() })
    }

    /// What of the repository comes after this place: whole components, without the slash between. None: this place
    /// does not cover it.
    fn rest<'a>(&self, registry: &str, repository: &'a str) -> Option<&'a str> {
        if self.registry != registry {
            return None;
        }
        if self.path.is_empty() {
            return Some(repository);
        }
        let rest = repository.strip_prefix(&self.path)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.path.is_empty() { "" } else { "/" };
        write!(f, "{}{slash}{}", self.registry, self.path)
    }
}

impl fmt::Display for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mirrors: usize = self.list.iter().map(|upstream| upstream.mirrors.len()).sum();
        write!(f, "{}: mirrors {mirrors}, prefixes {}", self.file, self.list.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstreams(text: &str) -> Result<Upstreams, String> {
        Upstreams::parse(&File { name: "20-failover.toml".to_owned(), text: text.to_owned() })
    }

    #[test]
    fn the_longest_prefix_in_whole_components_holds() {
        let upstreams = upstreams(
            "[[upstream]]\nprefix = \"docker.io\"\n[[upstream]]\nprefix = \"docker.io/library/a\"\n[[upstream]]\nprefix \
             = \"index.docker.io/library\"\n[[upstream]]\nprefix = \"localhost:5000/x\"",
        )
        .expect("a configuration");
        for (registry, repository, found) in [
            ("docker.io", "library/a", Some(("docker.io/library/a", ""))),
            ("docker.io", "library/a/b", Some(("docker.io/library/a", "b"))),
            ("docker.io", "library/ab", Some(("docker.io/library", "ab"))),
            ("docker.io", "libraryx/ab", Some(("docker.io", "libraryx/ab"))),
            ("localhost:5000", "x", Some(("localhost:5000/x", ""))),
            ("localhost:5000", "y", None),
            ("docker.io.evil.org", "library/a", None),
        ] {
            let answer = upstreams.find(registry, repository);
            let answer = answer.map(|(upstream, rest)| (upstream.prefix.to_string(), rest));
            let expected = found.map(|(prefix, rest)| (prefix.to_owned(), rest));
            assert_eq!(answer, expected, "{registry}/{repository}");
        }
    }

    #[test]
    fn what_is_left_away_has_a_default() {
        let upstreams = upstreams("[[upstream]]\nprefix = \"quay.io\"").expect("a configuration");
        let (upstream, _) = upstreams.find("quay.io", "a").expect("covered");
        assert_eq!((upstream.source, upstream.mirrors.len(), upstream.on.len()), (Source::Last, 0, 0));
        assert_eq!((upstream.timeout_ms, upstream.hedge_after_ms), (None, None));
    }

    #[test]
    fn what_is_refused_names_file_line_and_way_out() {
        let two = "[[upstream]]\nprefix = \"docker.io\"\n";
        for (text, line, reason) in [
            ("", ": ", "no [[upstream]] is there: write"),
            ("upstreams = 1", ":1: ", "unknown field `upstreams`, expected `upstream`"),
            ("[[upstream]]\nmirrors = []", ":1: ", "missing field `prefix`"),
            (&format!("{two}mirror = []"), ":3: ", "unknown field `mirror`, expected one of `prefix`, `mirrors`"),
            (&format!("{two}source = \"lst\""), ":3: ", "expected one of `first`, `last`, `never`"),
            (&format!("{two}on = {{ timeout = \"nxt\" }}"), ":3: ", "expected one of `next`, `stale`, `stop`, `retry`"),
            (
                &format!("{two}[upstream.on]\ntimeot = \"next\""),
                ":4: ",
                "unknown failure \"timeot\": write one of timeout,",
            ),
            (&format!("{two}on = {{ status-42 = \"next\" }}"), ":3: ", "unknown failure \"status-42\": write one of"),
            (&format!("{two}on = {{ status-200 = \"next\" }}"), ":3: ", "unknown failure \"status-200\": write one of"),
            (
                &format!("{two}on = {{ not-found = \"next\", status-404 = \"stop\" }}"),
                ":3: ",
                "\"not-found\" and \"status-404\" are the same: keep one",
            ),
            (&format!("{two}timeout_ms = 0"), ":3: ", "expected a nonzero u32"),
            (&format!("{two}{two}"), ":4: ", "prefix \"docker.io\" is there twice: put both into one"),
            ("[[upstream]]\nprefix = \"library\"", ":2: ", "write \"docker.io/library\""),
            ("[[upstream]]\nprefix = \"quay.io/*\"", ":2: ", "write \"quay.io\""),
            ("[[upstream]]\nprefix = \"quay.io/a:1\"", ":2: ", "and no tag"),
            (
                &format!("{two}mirrors = [\n\"m.lan\",\n\"https://m.lan/\"]"),
                ":5: ",
                "write \"m.lan\", and how it is reached",
            ),
            (&format!("{two}mirrors = [\"m.lan/hub/\"]"), ":3: ", "write \"m.lan/hub\""),
            (&format!("{two}mirrors = [\"m.lan\", \"M.lan\"]"), ":3: ", "it is there twice: remove one"),
            (&format!("{two}mirrors = [\"docker.io\"]"), ":3: ", "say when it is tried with source = "),
            (&format!("{two}mirrors = [\"m_1.lan\"]"), ":3: ", "write HOST or HOST:PORT"),
        ] {
            let refusal = upstreams(text).expect_err(text);
            assert!(refusal.starts_with(&format!("20-failover.toml{line}")), "{text}: {refusal}");
            assert!(refusal.contains(reason), "{text}: {refusal}");
        }
    }

    #[test]
    fn the_examples_are_accepted() {
        assert!(upstreams(EXAMPLE).is_ok());
        let upstreams = upstreams(include_str!("../failover.toml")).expect("the example");
        let (upstream, _) = upstreams.find("docker.io", "library/a").expect("covered");
        assert_eq!(upstream.on.len(), 3);
    }
}
