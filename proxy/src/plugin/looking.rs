//! What a guest looks up: the manifest under inspection, and the repository that it is of, within a budget.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

use super::bindings::{image, registry, types};
use super::convert;
use super::guest::Guest;
use super::hints::Kind;
use super::image::Image;
use super::lookups::{Lookups, Missing};
use crate::oci::Digest;

/// Look-ups of one call of a hook.
const LOOKUPS_MAX: u32 = 16;
/// What they may bring together. Units: bytes.
const BYTES_MAX: usize = 8 << 20;
/// What a blob may have. Units: bytes.
const BLOB_MAX: usize = 1 << 20;
/// How long they may take together.
pub(super) const TIME_MAX: Duration = Duration::from_secs(10);
/// Indexes that list a manifest of which a plugin is told.
const PARENTS_MAX: usize = 16;

/// What of its look-ups a call has left.
#[derive(Debug)]
pub(super) struct Budget {
    lookups: u32,
    bytes: usize,
    time: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { lookups: LOOKUPS_MAX, bytes: BYTES_MAX, time: TIME_MAX }
    }
}

impl Guest {
    /// Looks something up, on the budget of this call.
    async fn look_up<T, F>(
        &mut self,
        look: impl FnOnce(Arc<dyn Lookups>) -> F,
        size: impl FnOnce(&T) -> usize,
    ) -> Result<T, registry::Error>
    where
        F: Future<Output = Result<T, Missing>>,
    {
        self.uses(Kind::Lookups, "registry");
        let Some(lookups) = self.lookups() else {
            return Err(registry::Error::Unavailable("there is no image in question".to_owned()));
        };
        let Budget { lookups: left, bytes, time } = &mut self.budget;
        if *left == 0 || time.is_zero() {
            return Err(registry::Error::BudgetSpent);
        }
        *left -= 1;
        let begun = Instant::now();
        let found = self.meter.free(tokio::time::timeout(*time, look(lookups))).await;
        *time = time.saturating_sub(begun.elapsed());
        let found = found.map_err(|_| registry::Error::BudgetSpent)?.map_err(registry::Error::from)?;
        let left = bytes.checked_sub(size(&found));
        *bytes = left.unwrap_or(0);
        left.map(|_| found).ok_or(registry::Error::BudgetSpent)
    }

    /// The configuration of the image under inspection, fetched once for all plugins.
    async fn image_config(&mut self) -> Result<Bytes, String> {
        let Some(image) = self.image() else { return Err("there is no image under inspection".to_owned()) };
        let Some(config) = &image.contents.config else {
            return Err("it is no image: it has no configuration".to_owned());
        };
        let digest = config.digest;
        if let Some(config) = image.config.get() {
            return config.clone().map_err(|missing| missing.to_string());
        }
        let fetched = self.look_up(|lookups| async move { lookups.blob(digest, BLOB_MAX).await }, Bytes::len).await;
        match fetched {
            Ok(bytes) => {
                let _ = image.config.set(Ok(bytes.clone()));
                Ok(bytes)
            }
            Err(err) => Err(registry_words(&err)),
        }
    }
}

fn registry_words(err: &registry::Error) -> String {
    match err {
        registry::Error::NotFound => Missing::NotFound.to_string(),
        registry::Error::Denied => Missing::Denied.to_string(),
        registry::Error::TooLarge => Missing::TooLarge.to_string(),
        registry::Error::BudgetSpent => "the look-ups of this call are spent".to_owned(),
        registry::Error::Unavailable(reason) => reason.clone(),
    }
}

impl From<Missing> for registry::Error {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::NotFound => Self::NotFound,
            Missing::Denied => Self::Denied,
            Missing::TooLarge => Self::TooLarge,
            Missing::Unavailable(reason) => Self::Unavailable(reason),
        }
    }
}

impl registry::Host for Guest {
    async fn manifest(&mut self, reference: String) -> Result<Vec<u8>, registry::Error> {
        let Some(reference) = convert::reference(&reference) else {
            return Err(no_such("reference", &reference));
        };
        let found = self.look_up(|lookups| async move { lookups.manifest(reference).await }, Bytes::len).await?;
        Ok(found.into())
    }

    async fn referrers(
        &mut self,
        digest: String,
        artifact_type: Option<String>,
    ) -> Result<Vec<types::Descriptor>, registry::Error> {
        let Ok(digest) = digest.parse::<Digest>() else { return Err(no_such("digest", &digest)) };
        let size = |found: &Vec<_>| found.len() * size_of::<types::Descriptor>();
        let found = self.look_up(|lookups| async move { lookups.referrers(digest).await }, size).await?;
        let wanted = |found: &&_| {
            let found: &crate::oci::manifest::Descriptor = found;
            artifact_type.is_none() || found.artifact_type == artifact_type
        };
        Ok(found.iter().filter(wanted).map(convert::descriptor).collect())
    }

    async fn blob(&mut self, digest: String) -> Result<Vec<u8>, registry::Error> {
        let Ok(digest) = digest.parse::<Digest>() else { return Err(no_such("digest", &digest)) };
        let found = self.look_up(|lookups| async move { lookups.blob(digest, BLOB_MAX).await }, Bytes::len).await?;
        Ok(found.into())
    }
}

fn no_such(what: &str, text: &str) -> registry::Error {
    let text = &text[..text.floor_char_boundary(128)];
    registry::Error::Unavailable(format!("`{}` is no {what}", text.escape_debug()))
}

impl image::Host for Guest {
    fn target(&mut self) -> Option<types::Descriptor> {
        let image = self.image()?;
        Some(types::Descriptor {
            media_type: image.media_type.clone(),
            digest: image.digest.to_string(),
            size: image.bytes.len() as u64,
            artifact_type: image.contents.artifact_type.clone(),
            platform: None,
            annotations: Vec::new(),
        })
    }

    fn raw(&mut self) -> Vec<u8> {
        self.image().map(|image| image.bytes.to_vec()).unwrap_or_default()
    }

    fn artifact_type(&mut self) -> Option<String> {
        self.image()?.contents.artifact_type.clone()
    }

    fn subject(&mut self) -> Option<types::Descriptor> {
        self.image()?.contents.subject.as_ref().map(convert::descriptor)
    }

    fn layers(&mut self) -> Vec<types::Descriptor> {
        let Some(image) = self.image() else { return Vec::new() };
        let contents = &image.contents;
        contents.layers.iter().chain(&contents.manifests).map(convert::descriptor).collect()
    }

    fn annotations(&mut self) -> Vec<types::Pair> {
        self.image().map(|image| convert::annotations(&image.contents.annotations)).unwrap_or_default()
    }

    fn annotation(&mut self, key: String) -> Option<String> {
        self.image()?.contents.annotations.get(&key).cloned()
    }

    async fn config(&mut self) -> Result<Vec<u8>, String> {
        self.image_config().await.map(Into::into)
    }

    async fn label(&mut self, key: String) -> Result<Option<String>, String> {
        let config = self.image_config().await?;
        label(&config, &key)
    }

    async fn parents(&mut self) -> Vec<String> {
        let (Some(image), Some(lookups)) = (self.image(), self.lookups()) else { return Vec::new() };
        let digest = image.digest;
        let parents = self.meter.free(async move { lookups.parents(digest).await }).await;
        parents.iter().take(PARENTS_MAX).map(ToString::to_string).collect()
    }
}

/// A label of an image's configuration.
///
/// Source: OCI image specification, "Image Configuration": `config.Labels`.
fn label(config: &[u8], key: &str) -> Result<Option<String>, String> {
    let config: Value =
        serde_json::from_slice(config).map_err(|err| format!("the image's configuration is no JSON: {err}"))?;
    Ok(config.get("config").and_then(|inner| inner.get("Labels")?.get(key)?.as_str()).map(str::to_owned))
}

impl Guest {
    fn image(&mut self) -> Option<Arc<Image>> {
        self.uses(Kind::Lookups, "image");
        self.question.as_ref()?.image.clone()
    }

    fn lookups(&self) -> Option<Arc<dyn Lookups>> {
        Some(self.question.as_ref()?.lookups.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_read_from_a_configuration() {
        let config = br#"{"config":{"Labels":{"a":"1"}}}"#;
        assert_eq!(label(config, "a"), Ok(Some("1".to_owned())));
        assert_eq!(label(config, "b"), Ok(None));
        assert_eq!(label(br#"{"config":{"Labels":null}}"#, "a"), Ok(None));
        assert_eq!(label(b"{}", "a"), Ok(None));
        assert!(label(b"<html>", "a").is_err());
    }
}
