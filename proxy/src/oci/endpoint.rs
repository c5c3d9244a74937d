//! From the path of a request to the endpoint of the distribution specification.
//!
//! A path is never normalised and never redirected: each segment is percent-decoded once and then must match.

use percent_encoding::percent_decode_str;

use super::digest::Digest;
use super::name::{Reference, Registry, Tag, is_component};

/// An endpoint of the distribution specification, with the repository's name as the client wrote it.
///
/// Source: OCI distribution specification, "Endpoints" (end-1 to end-13).
#[derive(PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// `/v2/`: whether this is a registry (end-1).
    Base,
    /// `/v2/<name>/manifests/<reference>` (end-3).
    Manifest(Segments, Reference),
    /// `/v2/<name>/blobs/<digest>` (end-2).
    Blob(Segments, Digest),
    /// `/v2/<name>/tags/list` (end-8).
    Tags(Segments),
    /// `/v2/<name>/referrers/<digest>` (end-12).
    Referrers(Segments, Digest),
    /// `/v2/<name>/blobs/uploads/` (end-4, end-11).
    Uploads(Segments),
    /// An upload, at `/v2/<name>/blobs/uploads/<reference>` (end-5, end-6, end-13).
    Upload(Segments, String),
    /// `/v2/_catalog`, which is no part of the specification.
    Catalog,
}

/// The segments of a name: a repository, with its registry before it where the client put one there.
#[derive(PartialEq, Eq, Debug)]
pub struct Segments(Vec<String>);

impl Segments {
    /// The first segment, where it is meant as a registry, and what follows it.
    pub fn split(&self) -> Option<(&str, String)> {
        let (first, rest) = self.0.split_first()?;
        Registry::is_meant_by(first).then(|| (first.as_str(), rest.join("/")))
    }

    /// All of them as one name.
    pub fn whole(&self) -> String {
        self.0.join("/")
    }
}

/// Why a path is no endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoEndpoint {
    /// Nothing of ours.
    #[error("no such path: a registry answers under /v2/")]
    NotFound,
    /// The name cannot be one.
    #[error(
        "a repository name is lower-case letters and digits, separated by `/`, `.`, `_`, `__` or dashes, in at most 255 characters"
    )]
    Name,
    /// The digest cannot be one.
    #[error("a digest is `sha256:` and 64 lower-case hexadecimal digits, or `sha512:` and 128")]
    Digest,
    /// The tag cannot be one.
    #[error("a tag is at most 128 letters, digits, `_`, `.` and `-`, and begins with a letter, a digit or `_`")]
    Tag,
}

/// Parses the path of a request.
pub fn parse(path: &str) -> Result<Endpoint, NoEndpoint> {
    if path == "/v2" || path == "/v2/" {
        return Ok(Endpoint::Base);
    }
    let rest = path.strip_prefix("/v2/").ok_or(NoEndpoint::NotFound)?;
    if rest == "_catalog" {
        return Ok(Endpoint::Catalog);
    }
    let mut segments = Vec::new();
    for segment in rest.split('/') {
        segments.push(percent_decode_str(segment).decode_utf8().map_err(|_| NoEndpoint::Name)?.into_owned());
    }
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (kind, last, length) = match words.as_slice() {
        [.., "blobs", "uploads"] => ("uploads", String::new(), words.len() - 2),
        [.., "blobs", "uploads", last] => ("uploads", (*last).to_owned(), words.len() - 3),
        [.., "tags", "list"] => ("tags", String::new(), words.len() - 2),
        [.., kind @ ("manifests" | "blobs" | "referrers"), last] => (*kind, (*last).to_owned(), words.len() - 2),
        words if words.iter().all(|word| is_component(word)) => return Err(NoEndpoint::NotFound),
        // A colon has no place in a name behind its registry: what has one is meant as a digest, and has slashes in it.
        words
            if words
                .windows(2)
                .any(|pair| matches!(pair[0], "manifests" | "blobs" | "referrers") && pair[1].contains(':')) =>
        {
            return Err(NoEndpoint::Digest);
        }
        _ => return Err(NoEndpoint::Name),
    };
    let kind = kind.to_owned();
    segments.truncate(length);
    let name = parse_name(segments)?;
    match kind.as_str() {
        "tags" => Ok(Endpoint::Tags(name)),
        "uploads" if last.is_empty() => Ok(Endpoint::Uploads(name)),
        "uploads" => Ok(Endpoint::Upload(name, last)),
        "blobs" => Ok(Endpoint::Blob(name, last.parse().map_err(|_| NoEndpoint::Digest)?)),
        "referrers" => Ok(Endpoint::Referrers(name, last.parse().map_err(|_| NoEndpoint::Digest)?)),
        _ if last.contains(':') => {
            Ok(Endpoint::Manifest(name, Reference::Digest(last.parse().map_err(|_| NoEndpoint::Digest)?)))
        }
        _ => Ok(Endpoint::Manifest(name, Reference::Tag(Tag::parse(&last).ok_or(NoEndpoint::Tag)?))),
    }
}

/// Parses a name that stands alone, with or without its registry.
pub fn parse_repository(name: &str) -> Option<Segments> {
    parse_name(name.split('/').map(str::to_owned).collect()).ok()
}

/// Each segment must be a component of a repository's name; only the first may be a registry instead.
fn parse_name(segments: Vec<String>) -> Result<Segments, NoEndpoint> {
    let (first, rest) = segments.split_first().ok_or(NoEndpoint::Name)?;
    let registry = Registry::is_meant_by(first) && Registry::parse(first).is_some() && !rest.is_empty();
    let good = (registry || is_component(first)) && rest.iter().all(|segment| is_component(segment));
    let length: usize = segments.iter().map(|segment| segment.len() + 1).sum();
    // The registry before the name has a limit of its own.
    let limit = if registry { 256 + first.len() + 1 } else { 256 };
    if good && length <= limit { Ok(Segments(segments)) } else { Err(NoEndpoint::Name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn endpoints_of_the_specification_parse() {
        assert_eq!(parse("/v2/"), Ok(Endpoint::Base));
        assert_eq!(parse("/v2"), Ok(Endpoint::Base));
        assert_eq!(parse("/v2/_catalog"), Ok(Endpoint::Catalog));
        for path in ["/v2/a/b/blobs/uploads/", "/v2/a/b/blobs/uploads"] {
            assert!(matches!(parse(path), Ok(Endpoint::Uploads(name)) if name.whole() == "a/b"), "{path}");
        }
        let Ok(Endpoint::Upload(name, upload)) = parse("/v2/quay.io/a/blobs/uploads/x_-%3D") else {
            panic!("an upload");
        };
        assert_eq!((name.whole().as_str(), upload.as_str()), ("quay.io/a", "x_-="));
        let Ok(Endpoint::Manifest(name, Reference::Tag(tag))) =
            parse("/v2/docker.io/manifests/manifests/manifests/1.0")
        else {
            panic!("a manifest by tag");
        };
        assert_eq!((name.split(), tag.as_str()), (Some(("docker.io", "manifests/manifests".to_owned())), "1.0"));
        for colon in [":", "%3a", "%3A"] {
            let path = format!("/v2/library/alpine/blobs/sha256{colon}{HEX}");
            assert!(matches!(parse(&path), Ok(Endpoint::Blob(..))), "{path}");
        }
        assert!(matches!(parse("/v2/127.0.0.1:5000/a/tags/list"), Ok(Endpoint::Tags(_))));
        assert!(matches!(parse(&format!("/v2/a/referrers/sha256:{HEX}")), Ok(Endpoint::Referrers(..))));
    }

    #[test]
    fn everything_else_is_refused() {
        for name in [
            "Library/x",
            "-a",
            "a___b",
            "a..b",
            "a/",
            "%C3%A9",
            "a%20b",
            "a%00b",
            "a%2fb",
            "a%5cb",
            "%2e%2e",
            "/a",
            ".",
            "a/b:1",
            &"a".repeat(256),
            &"a".repeat(8000),
        ] {
            assert_eq!(parse(&format!("/v2/{name}/manifests/latest")), Err(NoEndpoint::Name), "{name}");
        }
        assert_eq!(parse("/v2/../../etc/passwd"), Err(NoEndpoint::Name));
        assert_eq!(parse("/v2//"), Err(NoEndpoint::Name));
        for path in ["/", "/v1/_ping", "/v2/a/b", "/v3/"] {
            assert_eq!(parse(path), Err(NoEndpoint::NotFound), "{path}");
        }
        for digest in ["sha256:abc", "md5:00", &format!("sha256:{}", HEX.to_uppercase()), &format!("sha256:{HEX}%00")] {
            assert_eq!(parse(&format!("/v2/a/blobs/{digest}")), Err(NoEndpoint::Digest), "{digest}");
            assert_eq!(parse(&format!("/v2/a/manifests/{digest}")), Err(NoEndpoint::Digest), "{digest}");
        }
        for path in ["/v2/a/blobs/sha256:../..", "/v2/a/referrers/sha256:/x/../y"] {
            assert_eq!(parse(path), Err(NoEndpoint::Digest), "{path}");
        }
        for tag in ["", ".x", "-x", "a%20b", &"a".repeat(129)] {
            assert_eq!(parse(&format!("/v2/a/manifests/{tag}")), Err(NoEndpoint::Tag), "{tag}");
        }
    }
}
