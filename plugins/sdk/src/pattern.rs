//! A pattern over registry, repository, tag and digest, as an operator writes it.

use std::fmt;

use toml::Spanned;

use crate::{File, Request, name};

/// `docker.io/library/redis`, `quay.io/*`, `*.example.com`, `docker.io/library/nginx:1.2*`,
/// `docker.io/library/redis:7@sha256:...`, `*@sha256:...`.
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern {
    /// As the operator wrote it.
    pub text: String,
    /// A registry in canonical form, `*.` and the end of its host, or `*`.
    pub registry: String,
    /// What it covers of the registry, as a key: empty: all of it; `library/`: all below; `library/redis`: that one.
    pub path: String,
    /// What the tag must look like; none: any tag, and every digest.
    pub tag: Option<String>,
    /// The one digest that it covers; none: any.
    pub digest: Option<String>,
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// The reason, and what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some((_, rest)) = text.split_once("://") {
            return Err(format!("a pattern has no scheme: write \"{rest}\""));
        }
        let (image, digest) = match text.split_once('@') {
            Some((image, digest)) => (image, Some(parse_digest(digest)?)),
            None => (text, None),
        };
        let (first, rest) = match image.split_once('/') {
            Some((first, rest)) => (first, Some(rest)),
            None => (image, None),
        };
        let pattern = |registry, path, tag| Self { text: text.to_owned(), registry, path, tag, digest };
        let registry = parse_registry(first, rest)?;
        let Some(rest) = rest else {
            return Ok(pattern(registry, String::new(), None));
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(parse_tag(tag, first, repository)?)),
            None => (rest, None),
        };
        let path = parse_path(repository, &registry)?;
        Ok(pattern(registry, path, tag))
    }

    /// Whether it covers what is asked for. `digest`: of the manifest in question, where it is known; else a pattern
    /// with a digest covers only requests by that digest.
    ///
    /// A port counts: `quay.io` does not cover `quay.io:443`. That is right for what a pattern opens.
    pub fn covers(&self, request: &Request, digest: Option<&str>) -> bool {
        self.covers_at(&request.registry, request, digest)
    }

    /// The same on whatever port: `quay.io` covers `quay.io:443` too. That is right for what a pattern restricts, as
    /// nobody shall get round it by a port.
    pub fn covers_on_any_port(&self, request: &Request, digest: Option<&str>) -> bool {
        self.covers(request, digest) || self.covers_at(name::split_port(&request.registry).0, request, digest)
    }

    fn covers_at(&self, registry: &str, request: &Request, digest: Option<&str>) -> bool {
        let tag = |pattern| request.tag().is_some_and(|tag| covers_tag(pattern, tag));
        let digest = digest.or(request.digest());
        self.covers_registry(registry)
            && self.covers_repository(registry, &request.repository)
            && self.tag.as_deref().is_none_or(tag)
            && self.digest.as_deref().is_none_or(|pattern| digest == Some(pattern))
    }

    fn covers_registry(&self, registry: &str) -> bool {
        match self.registry.strip_prefix('*') {
            None => self.registry == registry,
            Some("") => true,
            Some(end) => registry.len() > end.len() && registry.ends_with(end),
        }
    }

    fn covers_repository(&self, registry: &str, repository: &str) -> bool {
        if self.path.is_empty() || self.path == repository {
            return true;
        }
        if self.path.ends_with('/') {
            return repository.starts_with(&self.path);
        }
        // `*/redis` on Docker Hub is `library/redis`.
        self.registry == "*"
            && registry == name::DOCKER_HUB
            && repository.strip_prefix("library/").is_some_and(|name| name == self.path)
    }
}

/// As the operator wrote it.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl File {
    /// Reads the patterns of a list.
    ///
    /// # Errors
    /// A text that names the file, the line of the pattern that is none, and what to write instead.
    pub fn patterns(&self, texts: &[Spanned<String>]) -> Result<Vec<Pattern>, String> {
        let parse = |text: &Spanned<String>| {
            Pattern::parse(text.get_ref()).map_err(|reason| {
                self.refuse(text.span().start, format_args!("bad pattern \"{}\": {reason}", text.get_ref()))
            })
        };
        texts.iter().map(parse).collect()
    }
}

fn parse_digest(digest: &str) -> Result<String, String> {
    let is_hex = |hex: &str, len| {
        hex.len() == len && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    match digest.split_once(':') {
        Some(("sha256", hex)) if is_hex(hex, 64) => Ok(digest.to_owned()),
        Some(("sha512", hex)) if is_hex(hex, 128) => Ok(digest.to_owned()),
        _ => Err(format!("\"{digest}\" is no digest: write sha256: and 64 digits, or sha512: and 128")),
    }
}

/// `first`: up to the first slash. `rest`: what follows it.
fn parse_registry(first: &str, rest: Option<&str>) -> Result<String, String> {
    if first == "*" {
        return Ok(first.to_owned());
    }
    if let Some(host) = first.strip_prefix("*.") {
        return match name::registry(host).as_deref() {
            Some(name::DOCKER_HUB) => Err(format!("Docker Hub is one registry: write \"{}\"", name::DOCKER_HUB)),
            Some(host) => Ok(format!("*.{host}")),
            None => Err(format!("\"{host}\" is no host: write \"*.example.com\"")),
        };
    }
    if first.contains('*') {
        return Err("a registry is a name, \"*.example.com\" (all below that host) or \"*\" (all)".to_owned());
    }
    let (host, port) = name::split_port(first);
    let is_number = port.is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    match rest {
        // What people shorten to `library/redis`, and in one word to `redis` or `redis:7`.
        Some(rest) if !name::is_registry_meant(first) => {
            Err(format!("it names no registry: write \"docker.io/{first}/{rest}\""))
        }
        None if !name::is_registry_meant(host) && !host.starts_with('[') => {
            Err(format!("it names no registry: write \"docker.io/library/{first}\", or \"{first}/*\" for a registry"))
        }
        None if port.is_some() && !is_number => {
            let tag = port.unwrap_or_default();
            Err(format!("a tag stands after a repository: write \"{host}/*:{tag}\""))
        }
        _ => name::registry(first).ok_or_else(|| format!("\"{first}\" is no registry: write HOST or HOST:PORT")),
    }
}

fn parse_path(repository: &str, registry: &str) -> Result<String, String> {
    if repository == "*" {
        return Ok(String::new());
    }
    let (name, is_below) = match repository.strip_suffix("/*") {
        Some(name) => (name, true),
        None => (repository, false),
    };
    if name.contains('*') {
        return Err("\"*\" stands only for a registry, for all below a repository (\"/*\" at its end) or in a tag: \
                    write \"docker.io/library/*\""
            .to_owned());
    }
    if name.is_empty() || name.ends_with('/') {
        let name = name.trim_end_matches('/');
        let slash = if name.is_empty() { "" } else { "/" };
        return Err(format!("it ends in a slash: write \"{registry}/{name}{slash}*\" for all below"));
    }
    let lower = name.to_ascii_lowercase();
    if lower != name {
        return Err(format!("a repository is in lower case: write \"{registry}/{lower}\""));
    }
    if !name::is_repository(name) {
        return Err(format!("\"{name}\" is no repository: it has letters, digits, and between them . _ __ - or /"));
    }
    match (is_below, registry) {
        (true, _) => Ok(format!("{name}/")),
        (false, name::DOCKER_HUB) if name == "library" => {
            Err("\"docker.io/library\" is no image: write \"docker.io/library/*\" for all of them".to_owned())
        }
        (false, name::DOCKER_HUB) if !name.contains('/') => Ok(format!("library/{name}")),
        (false, _) => Ok(name.to_owned()),
    }
}

fn parse_tag(tag: &str, registry: &str, repository: &str) -> Result<String, String> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-*".contains(&byte);
    if tag.is_empty() || tag.bytes().all(|byte| byte == b'*') {
        return Err(format!("for all tags leave the tag away: write \"{registry}/{repository}\""));
    }
    if tag.len() > 128 || tag.starts_with(['.', '-']) || !tag.bytes().all(is_word) {
        return Err(format!("\"{tag}\" is no tag: it has letters, digits, _ . - and * for any number of them"));
    }
    Ok(tag.to_owned())
}

/// Whether `tag` looks like `pattern`, where `*` stands for any number of characters.
pub fn covers_tag(pattern: &str, tag: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == tag;
    };
    let Some(mut tag) = tag.strip_prefix(start) else {
        return false;
    };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    // The first place is as good as any later one: it leaves the most for what follows.
    for part in middle.split('*').filter(|part| !part.is_empty()) {
        match tag.find(part) {
            Some(at) => tag = &tag[at + part.len()..],
            None => return false,
        }
    }
    tag.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_brought_into_canonical_form() {
        for (text, registry, path, tag) in [
            ("docker.io/library/redis", "docker.io", "library/redis", None),
            ("docker.io/redis", "docker.io", "library/redis", None),
            ("index.docker.io/library/redis:7", "docker.io", "library/redis", Some("7")),
            ("Quay.io", "quay.io", "", None),
            ("quay.io/*", "quay.io", "", None),
            ("quay.io/*:v1.*", "quay.io", "", Some("v1.*")),
            ("docker.io/library/*", "docker.io", "library/", None),
            ("docker.io/bitnami/*", "docker.io", "bitnami/", None),
            ("ghcr.io/a/b/c", "ghcr.io", "a/b/c", None),
            ("*.example.com", "*.example.com", "", None),
            ("*.example.com:5000/team/*", "*.example.com:5000", "team/", None),
            ("*", "*", "", None),
            ("*/redis", "*", "redis", None),
            ("localhost", "localhost", "", None),
            ("localhost:5000/x:1", "localhost:5000", "x", Some("1")),
            ("mirror:5000/*", "mirror:5000", "", None),
            ("quay.io:443", "quay.io:443", "", None),
            ("[::1]:5000/x", "[::1]:5000", "x", None),
            ("[::1]", "[::1]", "", None),
            ("docker.io/library/nginx:1.2*", "docker.io", "library/nginx", Some("1.2*")),
        ] {
            let pattern = Pattern::parse(text).expect(text);
            let got = (pattern.registry.as_str(), pattern.path.as_str(), pattern.tag.as_deref(), pattern.digest);
            assert_eq!(got, (registry, path, tag, None), "{text}");
        }
    }

    #[test]
    fn what_is_refused_says_what_to_write() {
        for (text, way_out) in [
            ("redis", "write \"docker.io/library/redis\""),
            ("redis:7", "write \"docker.io/library/redis:7\""),
            ("library/redis", "write \"docker.io/library/redis\""),
            ("bitnami/redis:7", "write \"docker.io/bitnami/redis:7\""),
            ("mirror:5000", "or \"mirror:5000/*\" for a registry"),
            ("https://quay.io/x", "write \"quay.io/x\""),
            ("quay.io/x@sha256:00", "write sha256: and 64 digits"),
            ("quay.io:latest", "write \"quay.io/*:latest\""),
            ("quay.io:99999", "write HOST or HOST:PORT"),
            ("quay.io/", "write \"quay.io/*\""),
            ("quay.io/a/", "write \"quay.io/a/*\""),
            ("quay.io//a", "is no repository"),
            ("quay.io/A", "write \"quay.io/a\""),
            ("quay.io/a*", "write \"docker.io/library/*\""),
            ("quay.io/*/a", "write \"docker.io/library/*\""),
            ("quay.io/**", "write \"docker.io/library/*\""),
            ("docker.io/library", "write \"docker.io/library/*\""),
            ("quay*.io/a", "\"*.example.com\""),
            ("quay.*", "\"*.example.com\""),
            ("*.docker.io", "write \"docker.io\""),
            ("*.", "write \"*.example.com\""),
            ("", "it names no registry"),
            (" quay.io", "write HOST or HOST:PORT"),
            ("quay.io/a b", "is no repository"),
            ("quay.io/a:", "write \"quay.io/a\""),
            ("quay.io/a:*", "write \"quay.io/a\""),
            ("quay.io/a:b/c", "is no tag"),
            ("quay.io/a:.b", "is no tag"),
            ("/a", "names no registry"),
        ] {
            let reason = Pattern::parse(text).expect_err(text);
            assert!(reason.contains(way_out), "{text}: {reason}");
        }
    }

    #[test]
    fn tags_are_covered_by_their_shape() {
        for (pattern, good, bad) in [
            ("1", "1", "10"),
            ("1.2*", "1.2", "1.1"),
            ("1.2*", "1.25-alpine", "11.2"),
            ("*-alpine", "1-alpine", "1-alpine3"),
            ("*-*", "1-x", "1"),
            ("1*alpine*", "1.2-alpine3", "2-alpine"),
            ("a*a", "aa", "a"),
            ("*ab*ab", "abab", "ab"),
            ("1*2*3", "1x2x3", "1x3x2"),
        ] {
            assert!(covers_tag(pattern, good), "{pattern} covers {good}");
            assert!(!covers_tag(pattern, bad), "{pattern} does not cover {bad}");
        }
    }

    #[test]
    fn a_pattern_covers_what_it_says() {
        use crate::{Action, Content, Reference, Request};
        let (one, other) = (format!("sha256:{}", "1".repeat(64)), format!("sha256:{}", "2".repeat(64)));
        let request = |image: &str| {
            let (registry, rest) = image.split_once('/').expect("a registry");
            let (repository, reference) = match (rest.split_once('@'), rest.split_once(':')) {
                (Some((repository, digest)), _) => (repository, Reference::Digest(digest.to_owned())),
                (None, Some((repository, tag))) => (repository, Reference::Tag(tag.to_owned())),
                (None, None) => (rest, Reference::None),
            };
            let (registry, repository) = (registry.to_owned(), repository.to_owned());
            Request { action: Action::Pull, content: Content::Manifest, registry, repository, reference }
        };
        for (pattern, image, covered) in [
            ("quay.io".to_owned(), "quay.io/a/b:1".to_owned(), true),
            ("quay.io".to_owned(), "quay.io.evil.org/a:1".to_owned(), false),
            ("*.example.com".to_owned(), "a.example.com/x:1".to_owned(), true),
            ("*.example.com".to_owned(), "example.com/x:1".to_owned(), false),
            ("*/redis".to_owned(), "docker.io/library/redis:7".to_owned(), true),
            ("*/redis".to_owned(), "docker.io/bitnami/redis:7".to_owned(), false),
            ("quay.io/a/*".to_owned(), "quay.io/a/b:1".to_owned(), true),
            ("quay.io/a/*".to_owned(), "quay.io/ab:1".to_owned(), false),
            ("quay.io/a".to_owned(), format!("quay.io/a@{one}"), true),
            ("quay.io/a:1*".to_owned(), "quay.io/a:12".to_owned(), true),
            ("quay.io/a:1*".to_owned(), format!("quay.io/a@{one}"), false),
            (format!("quay.io/a@{one}"), format!("quay.io/a@{one}"), true),
            (format!("quay.io/a@{one}"), format!("quay.io/a@{other}"), false),
            (format!("quay.io/a@{one}"), "quay.io/a:1".to_owned(), false),
            (format!("*@{one}"), format!("docker.io/library/x@{one}"), true),
        ] {
            let parsed = Pattern::parse(&pattern).expect(&pattern);
            assert_eq!(parsed.covers(&request(&image), None), covered, "{pattern} and {image}");
            assert_eq!(parsed.to_string(), pattern);
        }
        let both = Pattern::parse(&format!("quay.io/a:1@{one}")).expect("tag and digest");
        assert!(both.covers(&request("quay.io/a:1"), Some(&one)));
        assert!(!both.covers(&request("quay.io/a:1"), Some(&other)));
        assert!(!both.covers(&request("quay.io/a:2"), Some(&one)));
        let quay = Pattern::parse("quay.io").expect("a registry");
        assert!(!quay.covers(&request("quay.io:443/a:1"), None));
        assert!(quay.covers_on_any_port(&request("quay.io:443/a:1"), None));
    }
}
