//! Which registries and repositories a plugin sees at all, as its settings name them.

use crate::oci::{Place, Registry, Repository};

/// `docker.io`, `quay.io/org/*`, `quay.io/org/app`, `*.example.com`, `*/app`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Pattern {
    registry: Registries,
    repositories: Repositories,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Registries {
    All,
    /// All below a host: `.example.com`.
    Below(String),
    One(Registry),
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Repositories {
    All,
    /// All below a name: `library/`.
    Below(String),
    One(Repository),
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
            return Err(format!("a pattern names no digests: write \"{image}\""));
        }
        let (first, rest) = match text.split_once('/') {
            Some((first, rest)) => (first, Some(rest)),
            None => (text, None),
        };
        let registry = Registries::parse(first, rest)?;
        let repositories = match rest {
            None | Some("*") => Repositories::All,
            Some(rest) => Repositories::parse(rest, first, &registry)?,
        };
        Ok(Self { registry, repositories })
    }

    /// Whether a place is one of those that are meant.
    pub fn covers(&self, place: &Place) -> bool {
        let registry = match &self.registry {
            Registries::All => true,
            Registries::Below(end) => place.registry.as_str().ends_with(end),
            Registries::One(one) => *one == place.registry,
        };
        registry
            && match &self.repositories {
                Repositories::All => true,
                Repositories::Below(start) => place.repository.as_str().starts_with(start),
                Repositories::One(one) => *one == place.repository,
            }
    }
}

impl Registries {
    /// `first`: up to the first slash. `rest`: what follows it.
    fn parse(first: &str, rest: Option<&str>) -> Result<Self, String> {
        if first == "*" {
            return Ok(Self::All);
        }
        if let Some(host) = first.strip_prefix("*.") {
            return match Registry::parse(host) {
                Some(hub) if hub.as_str() == Registry::DOCKER_HUB => {
                    Err(format!("Docker Hub is one registry: write \"{hub}\""))
                }
                Some(host) if !host.as_str().starts_with('[') => Ok(Self::Below(format!(".{host}"))),
                _ => Err(format!("\"{host}\" is no host: write \"*.example.com\"")),
            };
        }
        if first.contains('*') {
            return Err("a registry is a name, \"*.example.com\" (all below that host) or \"*\" (all)".to_owned());
        }
        match (Registry::parse(first), rest) {
            // A registry without a dot or a port, `mirror/app`, is one only if it is followed by something.
            (_, Some(rest)) if !Registry::is_meant_by(first) => {
                Err(format!("it names no registry: write \"docker.io/{first}/{rest}\""))
            }
            (_, None) if !Registry::is_meant_by(first) => {
                Err(format!("it names no registry: write \"docker.io/library/{first}\""))
            }
            (Some(registry), _) => Ok(Self::One(registry)),
            (None, None) if first.contains(':') => {
                let (host, _) = first.split_once(':').unwrap_or_default();
                Err(format!("\"{first}\" is no registry: write HOST or HOST:PORT, such as \"{host}:5000\", and no tag"))
            }
            (None, _) => Err(format!("\"{first}\" is no registry: write HOST or HOST:PORT")),
        }
    }
}

impl Repositories {
    fn parse(rest: &str, first: &str, registry: &Registries) -> Result<Self, String> {
        if let Some((repository, _)) = rest.split_once(':') {
            return Err(format!("a pattern names no tags: write \"{first}/{repository}\""));
        }
        let (name, is_below) = match rest.strip_suffix("/*") {
            Some(name) => (name, true),
            None => (rest, false),
        };
        if name.contains('*') {
            let wanted = "\"*\" stands only for a registry, or for all below a repository";
            return Err(format!("{wanted}: write \"{first}/library/*\""));
        }
        if name.is_empty() || name.ends_with('/') {
            let name = name.trim_end_matches('/');
            let slash = if name.is_empty() { "" } else { "/" };
            return Err(format!("it ends in a slash: write \"{first}/{name}{slash}*\" for all below"));
        }
        let lower = name.to_ascii_lowercase();
        if lower != name {
            let below = if is_below { "/*" } else { "" };
            return Err(format!("a repository is in lower case: write \"{first}/{lower}{below}\""));
        }
        let Some(repository) = Repository::parse(name) else {
            return Err(format!("\"{name}\" is no repository: it has letters, digits, and between them . _ __ - or /"));
        };
        match registry {
            _ if is_below => Ok(Self::Below(format!("{name}/"))),
            Registries::One(hub) if hub.as_str() == Registry::DOCKER_HUB && name == "library" => {
                Err(format!("\"{first}/library\" is no image: write \"{first}/library/*\" for all of them"))
            }
            Registries::One(registry) => Ok(Self::One(repository.canonical(registry))),
            Registries::All | Registries::Below(_) => Ok(Self::One(repository)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(registry: &str, repository: &str) -> Place {
        Place {
            registry: Registry::parse(registry).expect("a registry"),
            repository: Repository::parse(repository).expect("a repository"),
        }
    }

    #[test]
    fn a_pattern_covers_what_it_names_and_nothing_beside_it() {
        for (pattern, covered, beside) in [
            ("docker.io", ("docker.io", "library/redis"), ("quay.io", "library/redis")),
            ("Index.docker.io", ("docker.io", "library/redis"), ("index.example.com", "library/redis")),
            ("quay.io/*", ("quay.io", "org/app"), ("quay.io:443", "org/app")),
            ("quay.io/org/*", ("quay.io", "org/team/app"), ("quay.io", "organic/app")),
            ("quay.io/org/*", ("quay.io", "org/app"), ("quay.io", "org")),
            ("quay.io/org/app", ("quay.io", "org/app"), ("quay.io", "org/app/more")),
            ("docker.io/redis", ("docker.io", "library/redis"), ("docker.io", "other/redis")),
            ("*.example.com", ("a.b.example.com", "x"), ("example.com", "x")),
            ("*.example.com", ("a.example.com", "x"), ("notexample.com", "x")),
            ("*.example.com:5000/x", ("a.example.com:5000", "x"), ("a.example.com", "x")),
            ("*", ("quay.io", "a"), ("", "")),
            ("*/app", ("quay.io", "app"), ("quay.io", "org/app")),
            ("localhost:5000/x", ("localhost:5000", "x"), ("localhost", "x")),
            ("[::1]:5000", ("[::1]:5000", "x"), ("[::2]:5000", "x")),
        ] {
            let parsed = Pattern::parse(pattern).expect(pattern);
            assert!(parsed.covers(&place(covered.0, covered.1)), "{pattern} covers {covered:?}");
            assert!(beside.0.is_empty() || !parsed.covers(&place(beside.0, beside.1)), "{pattern} covers {beside:?}");
        }
    }

    #[test]
    fn what_is_no_pattern_says_what_to_write() {
        for (text, way_out) in [
            ("redis", "write \"docker.io/library/redis\""),
            ("library/redis", "write \"docker.io/library/redis\""),
            ("https://quay.io/x", "write \"quay.io/x\""),
            ("quay.io/x@sha256:00", "write \"quay.io/x\""),
            ("quay.io/x:1", "write \"quay.io/x\""),
            ("quay.io:latest", "\"quay.io:5000\", and no tag"),
            ("quay.io/", "write \"quay.io/*\""),
            ("quay.io/a/", "write \"quay.io/a/*\""),
            ("quay.io//a", "is no repository"),
            ("quay.io/A/*", "write \"quay.io/a/*\""),
            ("quay.io/a*", "write \"quay.io/library/*\""),
            ("quay.io/**", "write \"quay.io/library/*\""),
            ("docker.io/library", "write \"docker.io/library/*\""),
            ("quay.*", "\"*.example.com\""),
            ("*.docker.io", "write \"docker.io\""),
            ("*.", "write \"*.example.com\""),
            ("", "it names no registry"),
            (" quay.io", "write HOST or HOST:PORT"),
            ("/a", "names no registry"),
        ] {
            let reason = Pattern::parse(text).expect_err(text);
            assert!(reason.contains(way_out), "{text}: {reason}");
        }
    }
}
