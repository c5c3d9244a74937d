//! `[plugins]`: their folder, their state, what they may see.

use std::path::{Path, PathBuf};

use super::file::{self, OnLoadError};
use super::source::{ConfigError, Source, user_folder};

/// The plugin folder that is used when the configuration names none and it is there.
const DEFAULT_DIR: &str = "./plugins.d";

/// `[plugins]`
#[derive(Clone, Debug)]
pub struct Plugins {
    /// The folder that is watched; none: no plugins.
    pub dir: Option<PathBuf>,
    /// Where the last good version of every plugin is kept.
    pub state_dir: PathBuf,
    /// What a plugin means that cannot be loaded at start.
    pub on_load_error: OnLoadError,
    /// Request headers that plugins may read, in lower case.
    pub headers: Vec<String>,
}

/// The state folder where the configuration names none.
pub fn default_state_dir() -> PathBuf {
    user_folder("XDG_STATE_HOME", ".local/state", "/var/lib")
}

impl Source<'_> {
    pub fn plugins(&self, typed: file::Plugins, cache: &Path) -> Result<Plugins, ConfigError> {
        let dir = match typed.dir {
            Some(dir) => {
                let span = dir.span();
                let dir = self.absolute(dir, "plugins.dir")?;
                if !dir.is_dir() {
                    let message = format!(
                        "plugins.dir: {} is no folder; make it, or remove the key to run without plugins",
                        dir.display()
                    );
                    return Err(self.error(&span, &message));
                }
                if dir.starts_with(cache) {
                    return Err(
                        self.error(&span, "plugins.dir: lies in the cache folder, which Tidegate cleans; move it out")
                    );
                }
                Some(dir)
            }
            None => std::path::absolute(DEFAULT_DIR).ok().filter(|dir| dir.is_dir()),
        };
        let state_dir = match typed.state_dir {
            Some(dir) => {
                let span = dir.span();
                let dir = self.absolute(dir, "plugins.state_dir")?;
                if dir.starts_with(cache) {
                    return Err(self.error(
                        &span,
                        "plugins.state_dir: lies in the cache folder, which may be emptied at any time; move it out",
                    ));
                }
                dir
            }
            None => default_state_dir(),
        };
        for header in &typed.headers {
            let word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if header.get_ref().is_empty() || !header.get_ref().bytes().all(word) {
                let message = format!("plugins.headers: `{}` is no header's name", header.get_ref().escape_debug());
                return Err(self.error(&header.span(), &message));
            }
            if ["authorization", "cookie", "proxy-authorization"]
                .contains(&header.get_ref().to_ascii_lowercase().as_str())
            {
                let message = format!("plugins.headers: {} carries secrets, which plugins never see", header.get_ref());
                return Err(self.error(&header.span(), &message));
            }
        }
        let headers = typed.headers.into_iter().map(|header| header.into_inner().to_ascii_lowercase()).collect();
        Ok(Plugins { dir, state_dir, on_load_error: typed.on_load_error.unwrap_or_default(), headers })
    }
}
