//! How a client names an upstream: one function a mode, tried in the order of their precedence.

use url::form_urlencoded;

use crate::oci::endpoint::{self, NoEndpoint, Segments};
use crate::oci::{
    Addressing, Content, Digest, Endpoint, Place, Pull, Push, Registry, Repository, Session, Verb, Write,
};

/// What a request is about.
#[derive(Debug)]
pub enum Request {
    /// Whether this is a registry.
    Base,
    /// A pull, and its query without `ns`.
    Pull(Pull, String),
    /// A push.
    Push(Push),
    /// A method that an endpoint does not have; those that it has, where the registry takes pushes.
    NotAllowed(Registry, &'static str),
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
    /// `digest` or `mount` is missing, given twice, or no digest.
    #[error(
        "the parameter {0} must be one digest: `sha256:` and 64 lower-case hexadecimal digits, or `sha512:` and 128"
    )]
    Digest(&'static str),
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
pub fn resolve(verb: Verb, path: &str, query: &str, naming: Naming<'_>) -> Result<Request, Unaddressed> {
    let endpoint = endpoint::parse(path)?;
    let (Endpoint::Manifest(name, _)
    | Endpoint::Blob(name, _)
    | Endpoint::Tags(name)
    | Endpoint::Referrers(name, _)
    | Endpoint::Uploads(name)
    | Endpoint::Upload(name, _)) = &endpoint
    else {
        return Ok(if endpoint == Endpoint::Base { Request::Base } else { Request::Unsupported });
    };
    let (ns, query) = take_ns(query)?;
    let named = |name: &Segments| {
        let (registry, repository, addressing) = match (naming, &ns) {
            (Naming { intercepted: Some(registry), .. }, _) => by_connection(name, registry),
            (_, Some(ns)) => by_ns(ns, name)?,
            (Naming { virtual_host: Some(registry), .. }, None) => by_virtual_host(name, registry),
            (Naming { default, .. }, None) => by_path(name).unwrap_or_else(|| by_default(name, default)),
        };
        let repository = Repository::parse(&repository).ok_or(NoEndpoint::Name)?.canonical(&registry);
        Ok::<_, Unaddressed>((Place { registry, repository }, addressing))
    };
    let (place, addressing) = named(name)?;
    let Verb::Read(method) = verb else {
        let from = |name: &str| {
            // Another registry's repository is none that this one could take a blob from.
            let (from, _) = named(&endpoint::parse_repository(name)?).ok()?;
            (from.registry == place.registry && from != place).then_some(from.repository)
        };
        return Ok(match write(verb, endpoint, &query, from)? {
            Ok(write) => Request::Push(Push { place, write, addressing }),
            Err(allowed) => Request::NotAllowed(place.registry, allowed),
        });
    };
    let content = match endpoint {
        Endpoint::Manifest(_, reference) => Content::Manifest(reference),
        Endpoint::Blob(_, digest) => Content::Blob(digest),
        Endpoint::Tags(_) => Content::Tags,
        Endpoint::Referrers(_, digest) => Content::Referrers(digest),
        Endpoint::Upload(_, upload) => {
            return Ok(Request::Push(Push { place, write: Write::Look(Session(upload)), addressing }));
        }
        Endpoint::Uploads(_) => return Ok(Request::NotAllowed(place.registry, UPLOADS)),
        Endpoint::Base | Endpoint::Catalog => return Ok(Request::Unsupported),
    };
    let query = if content == Content::Tags { bound_page(&query)? } else { query };
    Ok(Request::Pull(Pull { place, content, method, addressing }, query))
}

/// The methods of the endpoint where uploads begin.
const UPLOADS: &str = "POST";

/// What a method that does not read asks for; else the methods that the endpoint has.
fn write(
    verb: Verb,
    endpoint: Endpoint,
    query: &str,
    from: impl Fn(&str) -> Option<Repository>,
) -> Result<Result<Write, &'static str>, Unaddressed> {
    Ok(match (verb, endpoint) {
        (Verb::Put, Endpoint::Manifest(_, reference)) => Ok(Write::Manifest(reference)),
        (Verb::Delete, Endpoint::Manifest(_, reference)) => Ok(Write::RemoveManifest(reference)),
        (_, Endpoint::Manifest(..)) => Err("GET, HEAD, PUT, DELETE"),
        (Verb::Delete, Endpoint::Blob(_, digest)) => Ok(Write::RemoveBlob(digest)),
        (_, Endpoint::Blob(..)) => Err("GET, HEAD, DELETE"),
        (Verb::Post, Endpoint::Uploads(_)) => Ok(match (parameter(query, "mount")?, source(query)) {
            (Some(mount), Some(source)) => match from(&source) {
                Some(from) => Write::Mount(mount, from),
                None => Write::Begin(None),
            },
            // Whoever does not say from where has the registry look everywhere: where a caller may not read, too.
            (Some(_), None) => Write::Begin(None),
            (None, _) => Write::Begin(parameter(query, "digest")?),
        }),
        (_, Endpoint::Uploads(_)) => Err(UPLOADS),
        (Verb::Patch, Endpoint::Upload(_, upload)) => Ok(Write::Chunk(Session(upload))),
        (Verb::Put, Endpoint::Upload(_, upload)) => {
            let digest = parameter(query, "digest")?.ok_or(Unaddressed::Digest("digest"))?;
            Ok(Write::Finish(Session(upload), digest))
        }
        (Verb::Delete, Endpoint::Upload(_, upload)) => Ok(Write::Cancel(Session(upload))),
        (_, Endpoint::Upload(..)) => Err("GET, PATCH, PUT, DELETE"),
        (_, Endpoint::Base | Endpoint::Catalog | Endpoint::Tags(_) | Endpoint::Referrers(..)) => Err("GET, HEAD"),
    })
}

/// A digest that stands in a query, once or not at all.
fn parameter(query: &str, name: &'static str) -> Result<Option<Digest>, Unaddressed> {
    let mut found = None;
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        if key == name && found.replace(value.parse().map_err(|_| Unaddressed::Digest(name))?).is_some() {
            return Err(Unaddressed::Digest(name));
        }
    }
    Ok(found)
}

/// The repository that a blob is to be taken from.
fn source(query: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "from").map(|(_, value)| value.into_owned())
}

type Named = (Registry, String, Addressing);

/// The way of those who know of no mirror: whatever they ask for is the registry's that they believe to talk to.
fn by_connection(name: &Segments, registry: &Registry) -> Named {
    (registry.clone(), name.whole(), Addressing::Intercepted)
}

/// containerd's way: the registry is a parameter, the whole path is the repository's. Where containerd is told of the mirror
/// by an address that ends in the registry, for its pushes, it names the registry in both.
fn by_ns(ns: &str, name: &Segments) -> Result<Named, Unaddressed> {
    let registry = Registry::parse(ns).ok_or(Unaddressed::Ns)?;
    let repository = match by_path(name) {
        Some((named, repository, _)) if named == registry => repository,
        _ => name.whole(),
    };
    Ok((registry, repository, Addressing::Ns))
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
    use crate::oci::Method;

    type Resolved = Result<(String, &'static str, String), Unaddressed>;

    fn registry(name: &str) -> Registry {
        Registry::parse(name).expect("a registry")
    }

    fn named(path: &str, query: &str, naming: Naming<'_>) -> Resolved {
        match resolve(Verb::Read(Method::Get), path, query, naming)? {
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
        assert_eq!(resolved("/v2/docker.io/library/alpine/manifests/3.20", "ns=docker.io"), alpine("ns"));
        let other = resolved("/v2/docker.io/a/manifests/x", "ns=quay.io").expect("a pull");
        assert_eq!(other.0, "quay.io/docker.io/a:x");
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

    #[test]
    fn pushes_are_named_as_pulls_are() {
        let hex = "a".repeat(64);
        let digest = format!("sha256:{hex}");
        let default = Registry::parse("registry.lan").expect("a registry");
        let naming = Naming { intercepted: None, virtual_host: None, default: &default };
        let asked = |verb, path: &str, query: &str| {
            let path = path.replace("DIGEST", &digest);
            let query = query.replace("DIGEST", &digest);
            match resolve(verb, &format!("/v2/{path}"), &query, naming) {
                Ok(Request::Push(push)) => {
                    let name = format!("{:?}", push.write);
                    let name = name.split(['(', ' ']).next().unwrap_or_default();
                    format!("{} {push} {}", name, push.addressing.as_str())
                }
                Ok(Request::NotAllowed(registry, allowed)) => format!("{registry} {allowed}"),
                Ok(other) => format!("{other:?}"),
                Err(err) => err.to_string().split(" must").next().unwrap_or_default().to_owned(),
            }
        };
        let upload = "an upload to registry.lan/a default";
        let blob = format!("blob {digest} of registry.lan/a default");
        for (verb, path, query, came) in [
            (Verb::Post, "a/blobs/uploads/", "", format!("Begin {upload}")),
            (Verb::Post, "a/blobs/uploads", "", format!("Begin {upload}")),
            (Verb::Post, "quay.io/a/b/blobs/uploads/", "", "Begin an upload to quay.io/a/b path".to_owned()),
            (Verb::Post, "a/blobs/uploads/", "ns=quay.io", "Begin an upload to quay.io/a ns".to_owned()),
            (Verb::Post, "a/blobs/uploads/", "digest=DIGEST", format!("Begin {blob}")),
            (Verb::Post, "a/blobs/uploads/", "mount=DIGEST&from=b/c", format!("Mount {blob}")),
            (Verb::Post, "a/blobs/uploads/", "mount=DIGEST&from=registry.lan/b", format!("Mount {blob}")),
            (Verb::Post, "a/blobs/uploads/", "mount=DIGEST&from=quay.io/b", format!("Begin {upload}")),
            (Verb::Post, "a/blobs/uploads/", "mount=DIGEST&from=../b", format!("Begin {upload}")),
            (Verb::Post, "a/blobs/uploads/", "mount=DIGEST&from=a", format!("Begin {upload}")),
            (Verb::Post, "a/blobs/uploads/", "mount=DIGEST", format!("Begin {upload}")),
            (Verb::Post, "a/blobs/uploads/", "mount=x&from=b", "the parameter mount".to_owned()),
            (Verb::Post, "a/blobs/uploads/", "digest=DIGEST&digest=DIGEST", "the parameter digest".to_owned()),
            (Verb::Patch, "a/blobs/uploads/x", "", format!("Chunk {upload}")),
            (Verb::Put, "a/blobs/uploads/x", "digest=DIGEST", format!("Finish {blob}")),
            (Verb::Put, "a/blobs/uploads/x", "", "the parameter digest".to_owned()),
            (Verb::Delete, "a/blobs/uploads/x", "", format!("Cancel {upload}")),
            (Verb::Read(Method::Get), "a/blobs/uploads/x", "", format!("Look {upload}")),
            (Verb::Put, "a/manifests/1", "", "Manifest registry.lan/a:1 default".to_owned()),
            (Verb::Put, "a/manifests/DIGEST", "", format!("Manifest registry.lan/a@{digest} default")),
            (Verb::Delete, "a/manifests/1", "", "RemoveManifest registry.lan/a:1 default".to_owned()),
            (Verb::Delete, "a/blobs/DIGEST", "", format!("RemoveBlob {blob}")),
            (Verb::Put, "a/blobs/DIGEST", "", "registry.lan GET, HEAD, DELETE".to_owned()),
            (Verb::Patch, "a/manifests/1", "", "registry.lan GET, HEAD, PUT, DELETE".to_owned()),
            (Verb::Post, "a/tags/list", "", "registry.lan GET, HEAD".to_owned()),
            (Verb::Put, "a/blobs/uploads/", "", "registry.lan POST".to_owned()),
            (Verb::Post, "a/blobs/uploads/x", "", "registry.lan GET, PATCH, PUT, DELETE".to_owned()),
        ] {
            assert_eq!(asked(verb, path, query), came, "{verb:?} {path} {query}");
        }
    }
}
