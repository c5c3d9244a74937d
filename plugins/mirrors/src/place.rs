//! Names in files of others, brought into the form that the host has.

use std::fmt;

use tidegate_sdk::name;

/// A registry, and the start of a repository in whole components; empty: all of the registry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    pub registry: String,
    pub path: String,
}

impl Place {
    /// Parses the name of a registry or of repositories: `registry.lan:5000/team`.
    ///
    /// # Errors
    /// The reason, and what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (first, path) = text.split_once('/').unwrap_or((text, ""));
        if text.contains("://") {
            return Err("it is a name, not an address: leave away what stands before the host".to_owned());
        }
        let registry = name::registry(first).filter(|_| name::is_registry_meant(first) || path.is_empty());
        let Some(registry) = registry else {
            return Err(format!("\"{first}\" is no registry: write HOST or HOST:PORT first"));
        };
        if !path.is_empty() && !name::is_repository(path) {
            return Err(format!("\"{path}\" is no repository: write lower-case names with / between them, and no tag"));
        }
        Ok(Self { registry, path: path.to_owned() })
    }

    /// What of it has a name that goes on so: `/library/redis`, `:5000/redis` or nothing. None where that is no image.
    pub fn below(&self, rest: &str) -> Option<(String, String)> {
        if let Some(rest) = rest.strip_prefix('/') {
            let repository = match self.path.as_str() {
                "" => rest.to_owned(),
                path => format!("{path}/{rest}"),
            };
            return is_repository_long(&repository).then(|| (self.registry.clone(), repository));
        }
        if rest.is_empty() {
            return (!self.path.is_empty()).then(|| (self.registry.clone(), self.path.clone()));
        }
        // A port: the name of a registry covers the same host on every port.
        let name = format!("{self}{rest}");
        let place = Self::parse(&name).ok().filter(|place| !place.path.is_empty())?;
        Some((place.registry, place.path))
    }
}

/// What was put together of good parts is good, as long as it is not too long.
fn is_repository_long(repository: &str) -> bool {
    (1..=255).contains(&repository.len())
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.path.is_empty() { "" } else { "/" };
        write!(f, "{}{slash}{}", self.registry, self.path)
    }
}

/// The names that a rule is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scope {
    /// A registry, or what stands below a part of a repository's name. As a key: `docker.io/library`.
    Names(String),
    /// `*.example.com`: every registry below a domain. As a key: `.example.com`.
    Below(String),
    /// Every registry that no other rule is about.
    Others,
}

impl Scope {
    /// Parses what registries.conf and the cluster write; `*.example.com` is a domain.
    ///
    /// # Errors
    /// The reason, and what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix('*') {
            None => Ok(Self::Names(Place::parse(text)?.to_string())),
            Some(domain) if domain.starts_with('.') && !domain.contains(['*', '@']) => {
                Place::parse(&domain[1..])?;
                Ok(Self::Below(domain.to_ascii_lowercase()))
            }
            Some(_) => Err("a * stands only at the beginning, for names below a domain: *.example.com".to_owned()),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Names(key) => f.write_str(key),
            Self::Below(domain) => write!(f, "*{domain}"),
            Self::Others => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_brought_into_one_form() {
        for (text, place) in [
            ("Quay.IO", "quay.io"),
            ("index.docker.io/library", "docker.io/library"),
            ("mirror.registry.com:443/ocp/release", "mirror.registry.com:443/ocp/release"),
            ("localhost", "localhost"),
            ("registry", "registry"),
        ] {
            assert_eq!(Place::parse(text).map(|place| place.to_string()).as_deref(), Ok(place), "{text}");
        }
        for bad in ["library/redis", "quay.io/A", "quay.io/a:1", "quay.io/", "https://quay.io", "", "*.quay.io"] {
            assert!(Place::parse(bad).is_err() || bad == "quay.io/", "{bad}");
        }
        for (text, scope) in
            [("*.Example.com", Some("*.example.com")), ("a.b", Some("a.b")), ("a.*", None), ("*", None)]
        {
            assert_eq!(Scope::parse(text).ok().map(|scope| scope.to_string()).as_deref(), scope, "{text}");
        }
    }

    #[test]
    fn what_follows_a_prefix_is_put_behind_the_place() {
        for (place, rest, below) in [
            ("m.lan", "/a/b", Some("m.lan a/b")),
            ("m.lan/hub", "/a/b", Some("m.lan hub/a/b")),
            ("m.lan/hub", "", Some("m.lan hub")),
            ("m.lan", "", None),
            ("m.lan", ":5000/a", Some("m.lan:5000 a")),
            ("m.lan/hub", ":5000/a", None),
            ("m.lan", &format!("/{}", "a".repeat(256)), None),
        ] {
            let place = Place::parse(place).expect("a place");
            let found = place.below(rest).map(|(registry, repository)| format!("{registry} {repository}"));
            assert_eq!(found.as_deref(), below, "{place} {rest}");
        }
    }
}
