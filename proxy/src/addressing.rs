//! How a client names an upstream: one function a mode, tried in the order of their precedence.

use url::form_urlencoded;

use crate::oci::endpoint::{self, NoEndpoint, Segments};
use crate::oci::{Addressing, Content, Endpoint, Method, Place, Pull, Registry, Repository};

/// What a request is about.
#[derive(Debug)]
pub enum Request {
    /// Whether this is a registry.
    Base,
    /// A pull, and its query without `ns`.
    Pull(Pull, String),
    /// Something that a registry may offer, and a mirror does not.
    Unsupported,
}

/// Why a request names nothing that can be asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unaddressed {
    /// The path is none of ours.
    #[error(transparent)]
    Path(#[from] NoEndpoint),
    /// `ns` is given twice, or is no registry.
    #[error("the parameter ns must be one registry name, such as docker.io")]
    Ns,
    /// `n` is given twice, or is no number.
    #[error("the parameter n must be one whole number, from 0 on")]
    Page,
}

/// What names a registry beside path and query.
#[derive(Clone, Copy, Debug)]
pub struct Naming<'a> {
    /// The registry that the connection itself stands for: then nothing inside it names another.
    pub intercepted: Option<&'a Registry>,
    /// The registry of the host that the request is for, where that is a virtual one.
    pub virtual_host: Option<&'a Registry>,
    /// The registry of those who name none.
    pub default: &'a Registry,
}

/// Most tags that a registry is asked for at once: some refuse to give more. Its `Link` leads to the rest.
const PAGE_MAX: u64 = 1000;

/// Resolves path and query of a request.
pub fn resolve(method: Method, path: &str, query: &str, naming: Naming<'_>) -> Result<Request, Unaddressed> {
    let (name, content) = match endpoint::parse(path)? {
        Endpoint::Base => return Ok(Request::Base),
        Endpoint::Upload | Endpoint::Catalog => return Ok(Request::Unsupported),
        Endpoint::Manifest(name, reference) => (name, Content::Manifest(reference)),
        Endpoint::Blob(name, digest) => (name, Content::Blob(digest)),
        Endpoint::Tags(name) => (name, Content::Tags),
        Endpoint::Referrers(name, digest) => (name, Content::Referrers(digest)),
    };
    let (ns, mut query) = take_ns(query)?;
    if content == Content::Tags {
        query = bound_page(&query)?;
    }
    let (registry, repository, addressing) = match (naming, ns) {
        (Naming { intercepted: Some(registry), .. }, _) => by_connection(&name, registry),
        (_, Some(ns)) => by_ns(&ns, &name)?,
        (Naming { virtual_host: Some(registry), .. }, None) => by_virtual_host(&name, registry),
        (Naming { default, .. }, None) => by_path(&name).unwrap_or_else(|| by_default(&name, default)),
    };
    let repository = Repository::parse(&repository).ok_or(NoEndpoint::Name)?.canonical(&registry);
    Ok(Request::Pull(Pull { place: Place { registry, repository }, content, method, addressing }, query))
}

type Named = (Registry, String, Addressing);

/// The way of those who know of no mirror: whatever they ask for is the registry's that they believe to talk to.
fn by_connection(name: &Segments, registry: &Registry) -> Named {
    (registry.clone(), name.whole(), Addressing::Intercepted)
}

/// containerd's way: the registry is a parameter, the whole path is the repository's.
fn by_ns(ns: &str, name: &Segments) -> Result<Named, Unaddressed> {
    let registry = Registry::parse(ns).ok_or(Unaddressed::Ns)?;
    Ok((registry, name.whole(), Addressing::Ns))
}

/// The way of those who are given a name of the mirror's own for each registry: the whole path is the repository's.
fn by_virtual_host(name: &Segments, registry: &Registry) -> Named {
    (registry.clone(), name.whole(), Addressing::VirtualHost)
}

/// The way of those who write the registry before the repository.
fn by_path(name: &Segments) -> Option<Named> {
    let (registry, repository) = name.split()?;
    Some((Registry::parse(registry)?, repository, Addressing::Path))
}

/// docker's way: there is only one registry.
fn by_default(name: &Segments, default: &Registry) -> Named {
    (default.clone(), name.whole(), Addressing::Default)
}

/// Takes `ns` out of a query, which goes on without it: some registries answer 400 to it.
fn take_ns(query: &str) -> Result<(Option<String>, String), Unaddressed> {
    if query.is_empty() {
        return Ok((None, String::new()));
    }
    let mut ns = None;
    let mut rest = form_urlencoded::Serializer::new(String::new());
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        if key != "ns" {
            rest.append_pair(&key, &value);
        } else if ns.replace(value.into_owned()).is_some() {
            return Err(Unaddressed::Ns);
        }
    }
    Ok((ns, rest.finish()))
}

/// Makes `n` a number that a registry takes.
///
/// Source: OCI distribution specification, "Listing Tags".
fn bound_page(query: &str) -> Result<String, Unaddressed> {
    if query.is_empty() {
        return Ok(String::new());
    }
    let mut seen = false;
    let mut bounded = form_urlencoded::Serializer::new(String::new());
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        if key != "n" {
            bounded.append_pair(&key, &value);
            continue;
        }
        if std::mem::replace(&mut seen, true) || value.is_empty() || !value.bytes().all(|digit| digit.is_ascii_digit())
        {
            return Err(Unaddressed::Page);
        }
        // What is too big for a number is too big for a page.
        let length = value.parse().unwrap_or(PAGE_MAX).min(PAGE_MAX);
        bounded.append_pair("n", &length.to_string());
    }
    Ok(bounded.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Resolved = Result<(String, &'static str, String), Unaddressed>;

    fn registry(name: &str) -> Registry {
        Registry::parse(name).expect("a registry")
    }

    fn named(path: &str, query: &str, naming: Naming<'_>) -> Resolved {
        match resolve(Method::Get, path, query, naming)? {
            Request::Pull(pull, rest) => Ok((pull.to_string(), pull.addressing.as_str(), rest)),
            other => panic!("{other:?}"),
        }
    }

    fn resolved(path: &str, query: &str) -> Resolved {
        named(path, query, Naming { intercepted: None, virtual_host: None, default: &registry("docker.io") })
    }

    #[test]
    fn each_mode_goes_before_those_behind_it() {
        let (tunnel, host, default) = (registry("ghcr.io"), registry("quay.io"), registry("docker.io"));
        let none = Naming { intercepted: None, virtual_host: None, default: &default };
        let on_host = Naming { virtual_host: Some(&host), ..none };
        let inside = Naming { intercepted: Some(&tunnel), ..on_host };
        for (naming, path, query, image, mode) in [
            (none, "a/b", "", "docker.io/a/b:x", "default"),
            (none, "alpine", "", "docker.io/library/alpine:x", "default"),
            (none, "quay.io/a/b", "", "quay.io/a/b:x", "path"),
            (on_host, "a/b", "", "quay.io/a/b:x", "virtual-host"),
            (on_host, "alpine", "", "quay.io/alpine:x", "virtual-host"),
            // A dot in the first segment is one of a repository there.
            (on_host, "my.team/app", "", "quay.io/my.team/app:x", "virtual-host"),
            (on_host, "a/b", "ns=docker.io", "docker.io/a/b:x", "ns"),
            (inside, "a/b", "", "ghcr.io/a/b:x", "intercept"),
            (inside, "docker.io/a/b", "", "ghcr.io/docker.io/a/b:x", "intercept"),
            (inside, "a/b", "ns=docker.io", "ghcr.io/a/b:x", "intercept"),
        ] {
            let found = named(&format!("/v2/{path}/manifests/x"), query, naming);
            assert_eq!(found, Ok((image.to_owned(), mode, String::new())), "{naming:?} {path} {query}");
        }
        let ported = |naming| named("/v2/registry.lan:5000/a/b/manifests/x", "", naming);
        assert_eq!(ported(none).expect("a pull").0, "registry.lan:5000/a/b:x");
        assert_eq!(ported(on_host), Err(Unaddressed::Path(NoEndpoint::Name)));
        assert_eq!(ported(inside), Err(Unaddressed::Path(NoEndpoint::Name)));
        // Twice is wrong also where it says nothing.
        assert_eq!(named("/v2/a/manifests/x", "ns=a.b&ns=a.b", inside), Err(Unaddressed::Ns));
    }

    #[test]
    fn every_mode_names_the_same_image() {
        let alpine = |mode| Ok(("docker.io/library/alpine:3.20".to_owned(), mode, String::new()));
        assert_eq!(resolved("/v2/library/alpine/manifests/3.20", "ns=docker.io"), alpine("ns"));
        assert_eq!(resolved("/v2/alpine/manifests/3.20", "ns=registry-1.docker.io"), alpine("ns"));
        assert_eq!(resolved("/v2/docker.io/library/alpine/manifests/3.20", ""), alpine("path"));
        assert_eq!(resolved("/v2/docker.io/alpine/manifests/3.20", ""), alpine("path"));
        assert_eq!(resolved("/v2/library/alpine/manifests/3.20", ""), alpine("default"));
        assert_eq!(resolved("/v2/alpine/manifests/3.20", ""), alpine("default"));
        let port = resolved("/v2/127.0.0.1:5000/a/b/manifests/x", "").expect("a pull");
        assert_eq!(port.0, "127.0.0.1:5000/a/b:x");
        let dots = resolved("/v2/my.team/app/manifests/x", "ns=quay.io").expect("a pull");
        assert_eq!(dots.0, "quay.io/my.team/app:x");
        let tags = resolved("/v2/a/b/tags/list", "n=2&ns=quay.io&last=x").expect("a pull");
        assert_eq!((tags.0.as_str(), tags.2.as_str()), ("tags of quay.io/a/b", "n=2&last=x"));
    }

    #[test]
    fn a_page_is_as_long_as_a_registry_lets_it_be() {
        for (query, bounded) in [
            ("", ""),
            ("n=0", "n=0"),
            ("n=007", "n=7"),
            ("last=a&n=1000000000000", "last=a&n=1000"),
            ("last=n", "last=n"),
        ] {
            assert_eq!(resolved("/v2/a/b/tags/list", query).map(|found| found.2), Ok(bounded.to_owned()), "{query}");
        }
        let overflow = format!("n={}", "9".repeat(99));
        assert_eq!(resolved("/v2/a/b/tags/list", &overflow).map(|found| found.2), Ok("n=1000".to_owned()));
        for query in ["n=-1", "n=abc", "n=1e12", "n=", "n=+5", "n=%2B5", "n=1&n=2"] {
            assert_eq!(resolved("/v2/a/b/tags/list", query), Err(Unaddressed::Page), "{query}");
        }
        // Elsewhere the parameter means nothing to us.
        assert!(resolved("/v2/a/b/manifests/x", "n=abc").is_ok());
    }

    #[test]
    fn ns_is_one_registry_or_nothing() {
        for ns in [
            "ns=",
            "ns=user@h",
            "ns=http://h",
            "ns=h:99999",
            "ns=b%C3%BCcher.de",
            "ns=quay.io.",
            "ns=a/b",
            "ns=quay.io&ns=quay.io",
        ] {
            assert_eq!(resolved("/v2/a/manifests/x", ns), Err(Unaddressed::Ns), "{ns}");
        }
        assert_eq!(resolved("/v2/docker.io/manifests/x", ""), Err(Unaddressed::Path(NoEndpoint::Name)));
    }
}
