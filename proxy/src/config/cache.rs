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
    /// How long tags hold, where their registry's own table does not say otherwise.
    pub tags: TagTimes,
    /// For how long a registry is not asked again for what it was seen not to hold.
    pub miss_ttl: Duration,
    /// For how long what was read from the disk is served without looking at the disk again.
    pub recheck: Duration,
    /// How big all blobs together may be; none: as big as `min_free` leaves room for. Units: bytes.
    pub max_size: Option<u64>,
    /// What stays free on its file system; none: a twentieth of it, at most 1 GiB. Units: bytes.
    pub min_free: Option<u64>,
    /// In which time all blobs are read once to find what rotted; none: never.
    pub scrub: Option<Duration>,
}

/// How long a tag holds.
#[derive(Clone, Copy, Debug)]
pub struct TagTimes {
    /// For how long it is served without asking its registry.
    pub ttl: Duration,
    /// How old it may be to be served while every upstream fails; none: however old.
    pub max_stale: Option<Duration>,
}

impl Cache {
    /// The defaults, for a folder.
    pub fn at(dir: PathBuf) -> Self {
        let tags = TagTimes { ttl: Duration::from_mins(5), max_stale: None };
        let (miss_ttl, recheck) = (Duration::from_secs(10), Duration::from_secs(1));
        Self { dir, tags, miss_ttl, recheck, max_size: None, min_free: None, scrub: Some(SCRUB) }
    }
}

impl Source<'_> {
    pub fn cache(&self, typed: file::Cache) -> Result<Cache, ConfigError> {
        let span = typed.dir.as_ref().map(Spanned::span);
        let dir = match typed.dir {
            Some(dir) => self.absolute(dir, "cache.dir")?,
            None => user_folder("XDG_CACHE_HOME", ".cache", "/var/cache"),
        };
        if let Some(span) = span
            && dir.exists()
            && !dir.is_dir()
        {
            let message = format!("cache.dir: {} is no folder; name one, or remove the key", dir.display());
            return Err(self.error(&span, &message));
        }
        let mut cache = Cache::at(dir);
        cache.tags = self.tag_times(typed.tag_ttl.as_ref(), typed.max_stale.as_ref(), "cache", cache.tags)?;
        if let Some(ttl) = &typed.miss_ttl {
            cache.miss_ttl = self.duration(ttl, "cache.miss_ttl")?;
        }
        if let Some(recheck) = &typed.recheck {
            cache.recheck = self.duration(recheck, "cache.recheck")?;
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

    /// The keys `tag_ttl` and `max_stale` of a table; where they are not, `unsaid` holds.
    pub fn tag_times(
        &self,
        ttl: Option<&Spanned<String>>,
        max_stale: Option<&Spanned<String>>,
        table: &str,
        unsaid: TagTimes,
    ) -> Result<TagTimes, ConfigError> {
        let ttl = ttl.map(|ttl| self.duration(ttl, &format!("{table}.tag_ttl"))).transpose()?.unwrap_or(unsaid.ttl);
        let Some(max_stale) = max_stale else { return Ok(TagTimes { ttl, ..unsaid }) };
        if max_stale.get_ref() == "unlimited" {
            return Ok(TagTimes { ttl, max_stale: None });
        }
        let key = format!("{table}.max_stale");
        let most = self.duration(max_stale, &key)?;
        if most < ttl {
            let message =
                format!("{key}: shorter than the time of {} that a tag is fresh", humantime::format_duration(ttl));
            return Err(self.error(&max_stale.span(), &message));
        }
        Ok(TagTimes { ttl, max_stale: Some(most) })
    }
}
