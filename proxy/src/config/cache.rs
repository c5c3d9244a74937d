//! `[cache]`: where it is, how big it may be, how long a tag holds.

use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use super::file;
use super::source::{ConfigError, Source, user_folder};

/// How long one round of the scrub may take, where nothing else is said.
const SCRUB: Duration = Duration::from_hours(7 * 24);

/// `[cache]`
#[derive(Clone, Debug)]
pub struct Cache {
    /// Its folder, which is Tidegate's alone.
    pub dir: PathBuf,
    /// For how long a tag is served without asking its registry.
    pub tag_ttl: Duration,
    /// How big all blobs together may be; none: as big as `min_free` leaves room for. Units: bytes.
    pub max_size: Option<u64>,
    /// What stays free on its file system; none: a twentieth of it, at most 1 GiB. Units: bytes.
    pub min_free: Option<u64>,
    /// In which time all blobs are read once to find what rotted; none: never.
    pub scrub: Option<Duration>,
}

impl Cache {
    /// The defaults, for a folder.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir, tag_ttl: Duration::from_mins(5), max_size: None, min_free: None, scrub: Some(SCRUB) }
    }
}

impl Source<'_> {
    pub fn cache(&self, typed: file::Cache) -> Result<Cache, ConfigError> {
        let dir = match typed.dir {
            Some(dir) => self.absolute(dir, "cache.dir")?,
            None => user_folder("XDG_CACHE_HOME", ".cache", "/var/cache"),
        };
        let mut cache = Cache::at(dir);
        if let Some(ttl) = &typed.tag_ttl {
            cache.tag_ttl = self.duration(ttl, "cache.tag_ttl")?;
        }
        if let Some(size) = &typed.max_size {
            cache.max_size = Some(self.size(size, "cache.max_size")?);
            if cache.max_size == Some(0) {
                let message = "cache.max_size: nothing could be kept; remove the key for no limit";
                return Err(self.error(&size.span(), message));
            }
        }
        if let Some(size) = &typed.min_free {
            cache.min_free = Some(self.size(size, "cache.min_free")?);
        }
        if let Some(scrub) = &typed.scrub {
            cache.scrub = self.scrub(scrub)?;
        }
        Ok(cache)
    }

    fn scrub(&self, typed: &Spanned<String>) -> Result<Option<Duration>, ConfigError> {
        if typed.get_ref() == "off" {
            return Ok(None);
        }
        let scrub = self.duration(typed, "cache.scrub")?;
        if scrub.is_zero() {
            let message = "cache.scrub: no time at all; write \"off\" for no scrub";
            return Err(self.error(&typed.span(), message));
        }
        Ok(Some(scrub))
    }
}
