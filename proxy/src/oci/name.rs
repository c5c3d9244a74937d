//! Names: registry, repository, tag, reference. Each has one `parse`, and what it lets through is safe in a path,
//! a header and a log line.

use std::fmt;
use std::net::IpAddr;

use super::digest::Digest;

/// A registry by name: a host, and a port where it has one. Docker Hub's three names are one: `docker.io`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Registry(String);

/// A host by its name or address, in lower case: what a client believes that it talks to. Without a port, without the dot
/// that may end a name, an IPv6 address without its brackets.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(String);

/// A repository inside a registry: `library/alpine`.
///
/// Source: OCI distribution specification, "Pulling manifests": the expression that `<name>` must match.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(String);

/// A tag of a manifest.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

/// How a manifest is named.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Reference {
    /// By a tag, which may move.
    Tag(Tag),
    /// By a digest, which never does.
    Digest(Digest),
}

/// Longest repository name, in bytes; the specification asks that registries take 255 for host and name together.
const REPOSITORY_MAX: usize = 255;
/// Longest DNS name, in bytes. Source: RFC 1035, section 2.3.4.
const HOST_MAX: usize = 253;
/// Longest tag, in bytes. Source: OCI distribution specification, "Pulling manifests".
const TAG_MAX: usize = 128;

impl Registry {
    /// Docker Hub, under the name that people use.
    pub const DOCKER_HUB: &'static str = "docker.io";

    /// Parses `HOST` or `HOST:PORT` and brings it into its canonical form.
    pub fn parse(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let (host, port) = split_port(&lower)?;
        if let Some(port) = port
            && (port.starts_with(['0', '+']) || port.len() > 5 || !port.parse::<u16>().is_ok_and(|port| port > 0))
        {
            return None;
        }
        if !is_host(host) {
            return None;
        }
        match lower.as_str() {
            "index.docker.io" | "registry-1.docker.io" => Some(Self(Self::DOCKER_HUB.to_owned())),
            _ => Some(Self(lower)),
        }
    }

    /// Whether a first path segment is meant as a registry: it has a dot or a colon in it, or is `localhost`.
    pub fn is_meant_by(segment: &str) -> bool {
        segment.contains(['.', ':']) || segment == "localhost"
    }

    /// The name, as configured and as in a log.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its port, where it has one.
    pub fn port(&self) -> Option<u16> {
        split_port(&self.0).and_then(|(_, port)| port?.parse().ok())
    }

    /// The host without its port; an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        let (host, _) = split_port(&self.0).expect("parsed once already");
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl Host {
    /// Parses a name or an address.
    pub fn parse(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let bare = lower.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Some(address) = bare.or(Some(&lower)).filter(|text| text.contains(':')) {
            return address.parse::<IpAddr>().is_ok().then(|| Self(address.to_owned()));
        }
        let name = lower.strip_suffix('.').unwrap_or(&lower);
        is_host(name).then(|| Self(name.to_owned()))
    }

    /// Parses `HOST` or `HOST:PORT`, as they stand in a request. Its port says nothing.
    pub fn of_authority(text: &str) -> Option<Self> {
        let (host, port) = split_port(text)?;
        port.is_none_or(|port| port.bytes().all(|digit| digit.is_ascii_digit())).then(|| Self::parse(host))?
    }

    /// Parses `HOST` or `HOST:PORT`, as they stand where something is to be connected to.
    pub fn with_port(text: &str) -> Option<(Self, Option<u16>)> {
        let (host, port) = split_port(text)?;
        let port = match port {
            None => None,
            Some(port) if port.starts_with('+') => return None,
            Some(port) => Some(port.parse().ok().filter(|port| *port > 0)?),
        };
        Some((Self::parse(host)?, port))
    }

    /// As it stands in an address, where a port may follow.
    pub fn in_address(&self) -> String {
        if self.0.contains(':') { format!("[{}]", self.0) } else { self.0.clone() }
    }

    /// The name or the address.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether its name stands below a domain that begins with a dot.
    pub fn is_below(&self, domain: &str) -> bool {
        self.0.len() > domain.len() && self.0.ends_with(domain)
    }
}

/// Splits `HOST[:PORT]`, where an IPv6 address stands in brackets.
fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        let host = &text[..address.len() + 2];
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(port))),
            None if rest.is_empty() => Some((host, None)),
            None => None,
        };
    }
    match text.split_once(':') {
        Some((host, port)) => Some((host, Some(port))),
        None => Some((text, None)),
    }
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6());
    }
    host.len() <= HOST_MAX
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

impl Repository {
    /// Parses a repository name.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() <= REPOSITORY_MAX && text.split('/').all(is_component)).then(|| Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is `prefix`, or stands below it: `org/team/app` below `org/team`, never below `org/te`.
    pub fn is_within(&self, prefix: &Self) -> bool {
        self.0.strip_prefix(&prefix.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The same repository under the name that `registry` gives it: a one-segment name of Docker Hub is one of
    /// its `library`.
    #[must_use]
    pub fn canonical(self, registry: &Registry) -> Self {
        if registry.as_str() == Registry::DOCKER_HUB && !self.0.contains('/') {
            return Self(format!("library/{}", self.0));
        }
        self
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
pub(super) fn is_component(component: &str) -> bool {
    let mut bytes = component.bytes().peekable();
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    loop {
        if bytes.next_if(alphanumeric).is_none() {
            return false;
        }
        while bytes.next_if(alphanumeric).is_some() {}
        match bytes.next() {
            None => return true,
            Some(b'.') => {}
            Some(b'_') => _ = bytes.next_if_eq(&b'_'),
            Some(b'-') => while bytes.next_if_eq(&b'-').is_some() {},
            Some(_) => return false,
        }
    }
}

impl Tag {
    /// Parses a tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
    pub fn parse(text: &str) -> Option<Self> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let good = (1..=TAG_MAX).contains(&text.len())
            && word(text.as_bytes()[0])
            && text.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-');
        good.then(|| Self(text.to_owned()))
    }

    /// The tag.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! shows_as_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
shows_as_text!(Registry, Host, Repository, Tag);

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_hosts_with_an_optional_port() {
        for (text, canonical) in [
            ("docker.io", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("Registry-1.Docker.IO", "docker.io"),
            ("localhost", "localhost"),
            ("quay.io:443", "quay.io:443"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(Registry::parse(text).map(|name| name.0).as_deref(), Some(canonical));
        }
        let long = format!("{}.io", "a".repeat(300));
        for bad in [
            "",
            "user@h",
            "http://h",
            "h:99999",
            "h:0",
            "h:",
            "h:080",
            "quay.io.",
            "a..b",
            "-a.io",
            "bücher.de",
            "a_b.io",
            "[::1",
            "[1.2.3.4]",
            "h:1:2",
            "a/b",
            "h:+1",
            &long,
        ] {
            assert!(Registry::parse(bad).is_none(), "{bad} must not parse");
        }
        assert_eq!(Registry::parse("[::1]:5000").expect("a registry").host(), "::1");
    }

    #[test]
    fn a_host_is_the_same_however_it_is_written() {
        for (text, host) in [
            ("Quay.Mirror.LAN", "quay.mirror.lan"),
            ("quay.mirror.lan:5000", "quay.mirror.lan"),
            ("quay.mirror.lan.:443", "quay.mirror.lan"),
            ("quay.mirror.lan:", "quay.mirror.lan"),
            ("registry-1.docker.io", "registry-1.docker.io"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("[::1]:5000", "::1"),
            ("[::1]", "::1"),
        ] {
            assert_eq!(Host::of_authority(text).map(|host| host.0).as_deref(), Some(host), "{text}");
        }
        let target = |text| Host::with_port(text).map(|(host, port)| (host.in_address(), port));
        assert_eq!(target("Quay.io:443"), Some(("quay.io".to_owned(), Some(443))));
        assert_eq!(target("[::1]:8443"), Some(("[::1]".to_owned(), Some(8443))));
        assert_eq!(target("quay.io"), Some(("quay.io".to_owned(), None)));
        for bad in ["quay.io:", "quay.io:0", "quay.io:+1", "quay.io:65536", "user@quay.io:443", "quay.io:443/"] {
            assert_eq!(target(bad), None, "{bad}");
        }
        for bad in ["", ".", "a..b", "user@h", "h:x", "h:1:2", "a/b", "*.lan", "[::1", "[h]", "a_b"] {
            assert!(Host::of_authority(bad).is_none(), "{bad} must not parse");
        }
        assert!(Host::parse("a.x.lan").is_some_and(|host| host.is_below(".x.lan") && !host.is_below(".y.lan")));
    }

    #[test]
    fn repositories_match_the_specification() {
        for good in ["a", "library/alpine", "a.b_c__d---e/f0", "0"] {
            assert!(Repository::parse(good).is_some(), "{good} must parse");
        }
        let long = "a".repeat(256);
        for bad in [
            "",
            "Library/x",
            "-a",
            "a___b",
            "a..b",
            "a/",
            "/a",
            "a//b",
            "é",
            "a b",
            "a\0b",
            "..",
            "a/../b",
            "a:1/b",
            "a-",
            &long,
        ] {
            assert!(Repository::parse(bad).is_none(), "{bad} must not parse");
        }
        let hub = Registry::parse("docker.io").expect("a registry");
        assert_eq!(Repository::parse("alpine").expect("a name").canonical(&hub).as_str(), "library/alpine");
    }

    #[test]
    fn tags_match_the_specification() {
        let longest = "a".repeat(128);
        for good in ["latest", "_x", "1.2-3", &longest] {
            assert!(Tag::parse(good).is_some(), "{good} must parse");
        }
        let long = "a".repeat(129);
        for bad in ["", ".x", "-x", "a b", "a/b", "a:b", &long] {
            assert!(Tag::parse(bad).is_none(), "{bad} must not parse");
        }
    }
}
