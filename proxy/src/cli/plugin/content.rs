//! What a case knows of manifests: the one that is pulled, and what the repository holds beside it.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use toml::Spanned;

use super::cases::{Read, wrong};
use crate::oci::manifest::{Contents, Descriptor, MANIFEST_MAX, MEDIA_TYPES};
use crate::oci::{Digest, Reference, Tag};
use crate::plugin::{Given, Image};

/// `[case.registry]`: contents are files beside the table, or JSON in place.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Registry {
    /// By tag or digest.
    #[serde(default)]
    manifests: BTreeMap<Spanned<String>, Spanned<String>>,
    #[serde(default)]
    blobs: Vec<Spanned<String>>,
    /// Manifests that refer to a digest.
    #[serde(default)]
    referrers: BTreeMap<Spanned<String>, Vec<Spanned<String>>>,
}

/// What is said of the manifest that is pulled.
pub(super) struct Pulled<'a> {
    pub manifest: Option<&'a Spanned<String>>,
    pub config: Option<&'a Spanned<String>>,
    pub labels: &'a BTreeMap<String, String>,
    pub annotations: &'a BTreeMap<String, String>,
    pub parents: &'a [Spanned<String>],
}

impl Pulled<'_> {
    /// The manifest as it is inspected; none where the case says nothing of it. What belongs to it can be looked up.
    pub fn image(&self, dir: &Path, given: &mut Given) -> Read<Option<Image>> {
        let config = match (self.config, self.labels.is_empty()) {
            (Some(config), true) => Some(content(config, dir)?),
            (Some(config), false) => return wrong(config, "a case has `config` or `labels`, not both"),
            (None, false) => Some(Bytes::from(json!({ "config": { "Labels": self.labels } }).to_string())),
            (None, true) => None,
        };
        given.parents = self.parents.iter().map(digest).collect::<Read<_>>()?;
        if let Some(config) = &config {
            given.blobs.insert(Digest::sha256_of(config), config.clone());
        }
        let bytes = match (self.manifest, &config) {
            (Some(manifest), _) if !self.annotations.is_empty() => {
                return wrong(manifest, "the manifest has its annotations: leave `annotations` out");
            }
            (Some(manifest), _) => content(manifest, dir)?,
            (None, None) if self.annotations.is_empty() => return Ok(None),
            (None, config) => self.made_up(config.clone().unwrap_or_else(|| Bytes::from_static(b"{}")), given),
        };
        let (digest, media_type) = (Digest::sha256_of(&bytes), media_type(&bytes));
        given.manifests.insert(digest.to_string(), bytes.clone());
        match Image::parse(digest, &media_type, bytes) {
            Ok(image) => Ok(Some(image)),
            Err(err) => match self.manifest {
                Some(manifest) => wrong(manifest, format!("is no manifest: {err}")),
                None => Ok(None),
            },
        }
    }

    /// A manifest with one layer, for a case to which only labels or annotations matter.
    fn made_up(&self, config: Bytes, given: &mut Given) -> Bytes {
        let descriptor = |media_type: &str, content: &[u8]| json!({ "mediaType": media_type, "digest": Digest::sha256_of(content).to_string(), "size": content.len() });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPES[1],
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", b"")],
            "annotations": self.annotations,
        });
        given.blobs.insert(Digest::sha256_of(&config), config);
        Bytes::from(manifest.to_string())
    }
}

impl Registry {
    /// Puts everything where it can be looked up.
    pub fn tell(&self, dir: &Path, given: &mut Given) -> Read<()> {
        for (name, manifest) in &self.manifests {
            let bytes = content(manifest, dir)?;
            let found = Digest::sha256_of(&bytes);
            match reference(name)? {
                Reference::Digest(wanted) if wanted.to_string().starts_with("sha256:") && wanted != found => {
                    return wrong(name, format!("the manifest's digest is {found}"));
                }
                _ => {}
            }
            given.manifests.insert(found.to_string(), bytes.clone());
            given.manifests.insert(name.get_ref().clone(), bytes);
        }
        for blob in &self.blobs {
            let bytes = content(blob, dir)?;
            given.blobs.insert(Digest::sha256_of(&bytes), bytes);
        }
        for (subject, manifests) in &self.referrers {
            let mut found = Vec::new();
            for manifest in manifests {
                let bytes = content(manifest, dir)?;
                let contents =
                    Contents::parse(&bytes).or_else(|err| wrong(manifest, format!("is no manifest: {err}")))?;
                found.push(Descriptor {
                    media_type: media_type(&bytes),
                    digest: Digest::sha256_of(&bytes),
                    size: bytes.len() as u64,
                    artifact_type: contents.artifact_type,
                    platform: None,
                    annotations: contents.annotations,
                });
                given.manifests.insert(Digest::sha256_of(&bytes).to_string(), bytes);
            }
            given.referrers.insert(digest(subject)?, found);
        }
        Ok(())
    }
}

/// JSON in place, or the contents of a file that is named from the folder of the table.
fn content(given: &Spanned<String>, dir: &Path) -> Read<Bytes> {
    let text = given.get_ref();
    if text.trim_start().starts_with('{') {
        return Ok(Bytes::from(text.clone()));
    }
    let path = dir.join(text);
    match std::fs::read(&path) {
        Ok(bytes) if bytes.len() > MANIFEST_MAX => wrong(given, format!("{} is larger than 4 MiB", path.display())),
        Ok(bytes) => Ok(bytes.into()),
        Err(err) => wrong(given, format!("{} cannot be read: {err}", path.display())),
    }
}

fn media_type(manifest: &[u8]) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(manifest).ok();
    let named = parsed.and_then(|parsed| parsed.get("mediaType")?.as_str().map(str::to_owned));
    named.unwrap_or_else(|| MEDIA_TYPES[1].to_owned())
}

/// Reads a digest.
pub(super) fn digest(given: &Spanned<String>) -> Read<Digest> {
    given.get_ref().parse().or_else(|_| wrong(given, format!("`{}` is no digest such as sha256:...", given.get_ref())))
}

fn reference(given: &Spanned<String>) -> Read<Reference> {
    if given.get_ref().contains(':') {
        return digest(given).map(Reference::Digest);
    }
    match Tag::parse(given.get_ref()) {
        Some(tag) => Ok(Reference::Tag(tag)),
        None => wrong(given, format!("`{}` is neither a tag nor a digest", given.get_ref())),
    }
}
