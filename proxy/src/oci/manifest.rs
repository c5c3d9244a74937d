//! What the core needs to know of a manifest: its media types, and what it refers to.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer};

use super::digest::Digest;

/// Largest manifest that is taken. Units: bytes.
///
/// Source: OCI distribution specification, "Pushing Manifests": registries should take at least 4 MiB.
pub const MANIFEST_MAX: usize = 4 << 20;

/// The media types that a client negotiates over, in the order in which we ask for them.
pub const MEDIA_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Which of [`MEDIA_TYPES`] a client takes: what was negotiated for a tag is part of its key in the cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Negotiated(u8);

impl Negotiated {
    /// Every type.
    pub const ALL: Self = Self(0b1111);

    /// Reads the values of `Accept`. A client that names none of the types (or all, by `*/*`) takes every one.
    pub fn parse<'a>(media_types: impl Iterator<Item = &'a str>) -> Self {
        let mut bits = 0;
        for media_type in media_types {
            if matches!(media_type, "*/*" | "application/*") {
                return Self::ALL;
            }
            if let Some(at) = MEDIA_TYPES.iter().position(|known| known.eq_ignore_ascii_case(media_type)) {
                bits |= 1 << at;
            }
        }
        if bits == 0 { Self::ALL } else { Self(bits) }
    }

    /// The header `Accept` that asks a registry for exactly these.
    pub fn accept(self) -> String {
        let named = MEDIA_TYPES.iter().enumerate().filter(|(at, _)| self.0 & 1 << at != 0);
        named.map(|(_, media_type)| *media_type).collect::<Vec<_>>().join(", ")
    }

    /// A short key, for the name of a file.
    pub fn key(self) -> String {
        format!("{:x}", self.0)
    }
}

/// What a manifest says of a piece of content.
///
/// Source: OCI image specification, "Content Descriptors".
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Empty where it has none.
    #[serde(default)]
    pub media_type: String,
    /// What the content hashes to.
    pub digest: Digest,
    /// Units: bytes.
    #[serde(default)]
    pub size: u64,
    /// Of an artifact.
    pub artifact_type: Option<String>,
    /// Of an entry of an index.
    pub platform: Option<Platform>,
    /// Key and value.
    #[serde(default, deserialize_with = "null_is_none")]
    pub annotations: BTreeMap<String, String>,
}

/// Where an image runs.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Platform {
    architecture: String,
    os: String,
    variant: Option<String>,
}

/// `linux/arm64/v8`
impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_deref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// What the core needs to know of a manifest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Parts {
    media_type: Option<String>,
    config: Option<Named>,
    #[serde(default, deserialize_with = "null_is_none")]
    layers: Vec<Named>,
    manifests: Option<Vec<Named>>,
}

#[derive(Deserialize)]
struct Named {
    digest: Digest,
}

/// All that a manifest or an index says.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Contents {
    /// Of an artifact.
    pub artifact_type: Option<String>,
    /// What this is a signature, an attestation or an SBOM of.
    pub subject: Option<Descriptor>,
    /// An index has none.
    pub config: Option<Descriptor>,
    /// In order.
    #[serde(default, deserialize_with = "null_is_none")]
    pub layers: Vec<Descriptor>,
    /// Of an index, in order.
    #[serde(default, deserialize_with = "null_is_none")]
    pub manifests: Vec<Descriptor>,
    /// Key and value.
    #[serde(default, deserialize_with = "null_is_none")]
    pub annotations: BTreeMap<String, String>,
}

impl Contents {
    /// Reads a manifest or an index.
    ///
    /// # Errors
    /// What of it is of no shape that a manifest has.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidManifest> {
        Ok(serde_json::from_str(std::str::from_utf8(bytes)?)?)
    }

    /// Whether one of its layers is a part of a container's file system, or a program by itself: only a manifest
    /// without such a one can be nothing but a signature, an attestation or an SBOM.
    pub fn holds_a_program(&self) -> bool {
        const KINDS: [&str; 4] = [
            "application/vnd.oci.image.layer.",
            "application/vnd.docker.image.rootfs.",
            "application/wasm",
            "application/vnd.wasm.",
        ];
        self.layers.iter().any(|layer| {
            let kind = layer.media_type.to_ascii_lowercase();
            kind.is_empty() || kind.contains("tar") || KINDS.iter().any(|known| kind.starts_with(known))
        })
    }
}

/// Many programs write `null` for what is empty.
fn null_is_none<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(value: D) -> Result<T, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}

/// Why a body is not the manifest that it says it is.
#[derive(Debug, thiserror::Error)]
pub enum InvalidManifest {
    /// It is no JSON object of a manifest's shape.
    #[error("not a manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// It is no UTF-8, as all JSON is (RFC 8259, section 8.1).
    #[error("not UTF-8 text")]
    Text(#[from] std::str::Utf8Error),
    /// It is an index and an image manifest at once (CVE-2021-41190).
    #[error("it has both `layers` and `manifests`")]
    Ambiguous,
    /// Its own media type is not the one of the answer's header.
    #[error("its mediaType is {0}, its Content-Type {1}")]
    MediaType(String, String),
}

/// Checks that a manifest is one, of the media type that it came with, and gives the blobs that it refers to:
/// configuration and layers of an image, none for an index.
pub fn parse_blobs(bytes: &[u8], content_type: &str) -> Result<Vec<Digest>, InvalidManifest> {
    let parts: Parts = serde_json::from_str(std::str::from_utf8(bytes)?)?;
    if parts.manifests.is_some() && (!parts.layers.is_empty() || parts.config.is_some()) {
        return Err(InvalidManifest::Ambiguous);
    }
    if let Some(media_type) = parts.media_type
        && MEDIA_TYPES.contains(&media_type.as_str())
        && MEDIA_TYPES.contains(&content_type)
        && media_type != content_type
    {
        return Err(InvalidManifest::MediaType(media_type, content_type.to_owned()));
    }
    Ok(parts.config.into_iter().chain(parts.layers).map(|descriptor| descriptor.digest).collect())
}

/// Whether a media type is that of an index.
pub fn is_index(media_type: &str) -> bool {
    media_type == MEDIA_TYPES[0] || media_type == MEDIA_TYPES[2]
}

/// Every digest that a manifest or an index refers to; none where it is neither.
pub fn parse_references(bytes: &[u8]) -> Vec<Digest> {
    let Ok(parts) = serde_json::from_slice::<Parts>(bytes) else { return Vec::new() };
    let all = parts.config.into_iter().chain(parts.layers).chain(parts.manifests.unwrap_or_default());
    all.map(|descriptor| descriptor.digest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negotiation_knows_four_types() {
        assert_eq!(Negotiated::parse(["*/*"].into_iter()), Negotiated::ALL);
        assert_eq!(Negotiated::parse([].into_iter()), Negotiated::ALL);
        assert_eq!(Negotiated::parse(["text/html"].into_iter()), Negotiated::ALL);
        let one = Negotiated::parse(["application/vnd.docker.distribution.manifest.v2+json"].into_iter());
        assert_eq!(one.accept(), "application/vnd.docker.distribution.manifest.v2+json");
        assert_ne!(one.key(), Negotiated::ALL.key());
    }

    #[test]
    fn a_manifest_tells_what_is_in_it() {
        let digest = Digest::sha256_of(b"");
        let layer = |media_type: &str| {
            let text = format!(
                r#"{{"layers":[{{"mediaType":"{media_type}","digest":"{digest}","size":3}}],"annotations":null}}"#
            );
            Contents::parse(text.as_bytes()).expect("a manifest")
        };
        assert!(layer("application/vnd.oci.image.layer.v1.tar+gzip").holds_a_program());
        assert!(layer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip").holds_a_program());
        assert!(layer("").holds_a_program());
        assert!(!layer("application/vnd.dev.cosign.simplesigning.v1+json").holds_a_program());
        let index = format!(
            r#"{{"manifests":[{{"digest":"{digest}","platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}}],"layers":null}}"#
        );
        let index = Contents::parse(index.as_bytes()).expect("an index");
        assert_eq!(index.manifests[0].platform.as_ref().map(ToString::to_string).as_deref(), Some("linux/arm64/v8"));
        assert!(parse_blobs(br#"{"layers":null}"#, MEDIA_TYPES[1]).is_ok());
        assert!(Contents::parse(br#"{"annotations":{"a":1}}"#).is_err());
    }

    #[test]
    fn a_manifest_is_one_thing_only() {
        let oci = MEDIA_TYPES[1];
        let digest = Digest::sha256_of(b"");
        let image =
            format!(r#"{{"mediaType":"{oci}","config":{{"digest":"{digest}"}},"layers":[{{"digest":"{digest}"}}]}}"#);
        assert_eq!(parse_blobs(image.as_bytes(), oci).expect("a manifest").len(), 2);
        assert!(parse_blobs(image.as_bytes(), MEDIA_TYPES[3]).is_err());
        let both = format!(r#"{{"layers":[{{"digest":"{digest}"}}],"manifests":[]}}"#);
        assert!(matches!(parse_blobs(both.as_bytes(), oci), Err(InvalidManifest::Ambiguous)));
        assert!(parse_blobs(b"<html>", oci).is_err());
        let deep = "[".repeat(100_000);
        assert!(parse_blobs(deep.as_bytes(), oci).is_err());
        assert!(parse_blobs(b"\xff\xfe", oci).is_err());
    }
}
