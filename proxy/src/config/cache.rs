//! `[cache]`: where it is, how big it may be, how long a tag holds.

use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use super::file;
use super::source::{ConfigError, Source, user_folder};

/// `[cache]`
#[derive(Clone, Debug)]
pub struct Cache {
    /// Its folder, which is Tidegate's alone.
    pub dir: PathBuf,
    /// How long tags hold, where their registry's own table does not say otherwise.
    pub tags: TagTimes,
    /// For how long a registry is not asked again for what it was seen not to hold.
    pub miss_ttl: Duration,
}

/// How long a tag holds.
#[derive(Clone, Copy, Debug)]
pub struct TagTimes {
    /// For how long it is served without asking its registry.
    pub ttl: Duration,
    /// How old it may be to be served while every upstream fails; none: however old.
    pub max_stale: Option<Duration>,
}

impl Source<'_> {
    pub fn cache(&self, typed: file::Cache) -> Result<Cache, ConfigError> {
        let dir = match typed.dir {
            Some(dir) => self.absolute(dir, "cache.dir")?,
            None => user_folder("XDG_CACHE_HOME", ".cache", "/var/cache"),
        };
        let unsaid = TagTimes { ttl: Duration::from_mins(5), max_stale: None };
        let tags = self.tag_times(typed.tag_ttl.as_ref(), typed.max_stale.as_ref(), "cache", unsaid)?;
        let miss_ttl = match typed.miss_ttl {
            Some(ttl) => self.duration(&ttl, "cache.miss_ttl")?,
            None => Duration::from_secs(10),
        };
        Ok(Cache { dir, tags, miss_ttl })
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
