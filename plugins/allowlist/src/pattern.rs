//! A pattern over registry, repository and tag, as an operator writes it.

use tidegate_sdk::name;

/// `docker.io/library/redis`, `quay.io/*`, `*.example.com`, `docker.io/library/nginx:1.2*`.
#[derive(Debug, PartialEq)]
pub struct Pattern {
    /// A registry in canonical form, `*.` and the end of its host, or `*`.
    pub registry: String,
    /// What it covers of the registry, as a key: empty: all of it; `library/`: all below; `library/redis`: that one.
    pub path: String,
    /// What the tag must look like; none: the whole repository.
    pub tag: Option<String>,
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
        if let Some((image, _)) = text.split_once('@') {
            return Err(format!("a pattern names tags, not digests: write \"{image}\" for all of that repository"));
        }
        let (first, rest) = match text.split_once('/') {
            Some((first, rest)) => (first, Some(rest)),
            None => (text, None),
        };
        let registry = parse_registry(first, rest)?;
        let Some(rest) = rest else {
            return Ok(Self { registry, path: String::new(), tag: None });
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(parse_tag(tag, first, repository)?)),
            None => (rest, None),
        };
        let path = parse_path(repository, &registry)?;
        Ok(Self { registry, path, tag })
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
            let pattern = Pattern { registry: registry.to_owned(), path: path.to_owned(), tag: tag.map(str::to_owned) };
            assert_eq!(Pattern::parse(text), Ok(pattern), "{text}");
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
            ("quay.io/x@sha256:00", "write \"quay.io/x\""),
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
}
