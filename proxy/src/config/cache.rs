//! `[cache]`: where it is, how big it may be, how long a tag holds.

use std::path::PathBuf;
use std::time::Duration;

use super::file;
use super::source::{ConfigError, Source, user_folder};

/// `[cache]`
#[derive(Clone, Debug)]
pub struct Cache {
    /// Its folder, which is Tidegate's alone.
    pub dir: PathBuf,
    /// For how long a tag is served without asking its registry.
    pub tag_ttl: Duration,
}

impl Source<'_> {
    pub fn cache(&self, typed: file::Cache) -> Result<Cache, ConfigError> {
        let dir = match typed.dir {
            Some(dir) => self.absolute(dir, "cache.dir")?,
            None => user_folder("XDG_CACHE_HOME", ".cache", "/var/cache"),
        };
        let tag_ttl = match typed.tag_ttl {
            Some(ttl) => self.duration(&ttl, "cache.tag_ttl")?,
            None => Duration::from_mins(5),
        };
        Ok(Cache { dir, tag_ttl })
    }
}
