//! `[decisions]`: where what is decided is written, and how many decisions are kept to be looked at.

use std::path::{Path, PathBuf};

use super::file;
use super::source::{ConfigError, Source};

/// Decisions that are kept when nothing else is said.
const KEEP: usize = 1000;
/// Decisions that may be kept: about 1 KiB each.
const KEEP_MAX: usize = 100_000;

/// `[decisions]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decisions {
    /// The file that gets a line for each request; `-` is standard output; none: no line is written.
    pub file: Option<PathBuf>,
    /// The last requests of which is remembered what was decided.
    pub keep: usize,
}

impl Source<'_> {
    pub fn decisions(&self, typed: file::Decisions, cache: &Path) -> Result<Decisions, ConfigError> {
        let keep = match &typed.keep {
            Some(keep) if *keep.get_ref() > KEEP_MAX => {
                let message = format!("decisions.keep: more than {KEEP_MAX}; all of them belong into decisions.file");
                return Err(self.error(&keep.span(), &message));
            }
            keep => keep.as_ref().map_or(KEEP, |keep| *keep.get_ref()),
        };
        let file = match typed.file {
            Some(file) if file.get_ref() == Path::new("-") => Some(file.into_inner()),
            Some(file) => {
                let span = file.span();
                let file = self.absolute(file, "decisions.file")?;
                if file.starts_with(cache) {
                    let message = "decisions.file: lies in the cache folder, which Tidegate cleans; move it out";
                    return Err(self.error(&span, message));
                }
                Some(file)
            }
            None => None,
        };
        Ok(Decisions { file, keep })
    }
}
