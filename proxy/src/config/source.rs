//! The text of a configuration file, and how what stands in it is read: errors name file, line and key.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Component, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use toml::Spanned;

use crate::oci::Registry;

/// Longest time that a key may name; a longer one is a slip of the finger.
const DURATION_MAX: Duration = Duration::from_hours(10 * 365 * 24);

/// Largest size that a key may name; the reader of sizes takes whatever is too big for a number as the biggest one.
/// Units: bytes.
const SIZE_MAX: u64 = 1 << 60;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}{}: {message}", line.map(|line| format!(":{line}")).unwrap_or_default())]
pub struct ConfigError {
    pub(super) file: String,
    pub(super) line: Option<usize>,
    pub(super) message: String,
}

/// The number of the line that begins or goes on behind `before`.
pub(super) fn lines_in(before: &[u8]) -> usize {
    before.split(|byte| *byte == b'\n').count()
}

/// A text that may quote what was typed, with every control character escaped: a file must not write to a terminal.
fn printable(text: &str) -> String {
    let escaped = |sign: char| if sign.is_control() { sign.escape_default().to_string() } else { sign.to_string() };
    text.chars().map(escaped).collect()
}

/// The text of a file, to tell lines from.
pub(super) struct Source<'a> {
    pub text: &'a str,
    pub name: &'a str,
}

impl Source<'_> {
    pub fn line(&self, span: &Range<usize>) -> usize {
        lines_in(&self.text.as_bytes()[..span.start.min(self.text.len())])
    }

    /// Where a text stands, for errors about a table as a whole.
    pub fn span_of(&self, text: &str) -> Range<usize> {
        self.text.find(text).map_or(0..0, |at| at..at + text.len())
    }

    pub fn error(&self, span: &Range<usize>, message: &str) -> ConfigError {
        ConfigError { file: self.name.to_owned(), line: Some(self.line(span)), message: printable(message) }
    }

    /// An error of the TOML reader. Its own rendering quotes the line, in which a secret may stand: only the key is named.
    pub fn syntax(&self, err: &toml::de::Error) -> ConfigError {
        let line = err.span().map(|span| self.line(&span));
        let key = line.and_then(|line| self.text.lines().nth(line - 1)?.split_once('='));
        let mut message = err.message().replace('\n', ", ");
        let table = line.and_then(|line| self.text.lines().nth(line - 1)).map_or("", str::trim);
        if table.starts_with("[registries.") && !table.contains(['"', '\'']) {
            message = format!("{message}; a name with a dot in it stands in quotes: [registries.\"docker.io\"]");
        }
        let message = match key {
            Some((key, _)) => format!("{}: {message}", key.trim()),
            None if table.starts_with('[') && table.ends_with(']') => format!("{table}: {message}"),
            None => message,
        };
        ConfigError { file: self.name.to_owned(), line, message: printable(&message) }
    }

    pub fn address(&self, typed: Option<&Spanned<String>>, key: &str) -> Result<Option<SocketAddr>, ConfigError> {
        let parse = |typed: &Spanned<String>| {
            typed.get_ref().parse().map_err(|_| {
                let message =
                    format!("{key}: `{}` is no address and port, such as 127.0.0.1:5000 or [::]:5000", typed.get_ref());
                self.error(&typed.span(), &message)
            })
        };
        typed.map(parse).transpose()
    }

    pub fn registry(&self, typed: &Spanned<String>, key: &str) -> Result<Registry, ConfigError> {
        Registry::parse(typed.get_ref()).ok_or_else(|| {
            let message = format!("{key}: `{}` is no registry name: write its host, and its port where it has one, such as quay.io or registry.lan:5000", typed.get_ref().escape_debug());
            self.error(&typed.span(), &message)
        })
    }

    pub fn duration(&self, typed: &Spanned<String>, key: &str) -> Result<Duration, ConfigError> {
        let fail = |reason: &str| {
            let message = format!("{key}: `{}` is no duration such as 30s, 5m or 12h: {reason}", typed.get_ref());
            self.error(&typed.span(), &message)
        };
        let duration = humantime::parse_duration(typed.get_ref()).map_err(|err| fail(&err.to_string()))?;
        if duration > DURATION_MAX {
            return Err(fail("longer than ten years"));
        }
        Ok(duration)
    }

    /// A number of bytes, such as `512MiB`.
    pub fn size(&self, typed: &Spanned<String>, key: &str) -> Result<u64, ConfigError> {
        let fail = |reason: &str| {
            let message = format!("{key}: `{}` is no size such as 512MiB or 100GB: {reason}", typed.get_ref());
            self.error(&typed.span(), &message)
        };
        let size = typed.get_ref().parse::<ByteSize>().map_err(|err| fail(&err))?.as_u64();
        if size > SIZE_MAX { Err(fail("more than 1 EiB")) } else { Ok(size) }
    }

    pub fn absolute(&self, typed: Spanned<PathBuf>, key: &str) -> Result<PathBuf, ConfigError> {
        if typed.get_ref().components().any(|part| part == Component::ParentDir) {
            return Err(self.error(&typed.span(), &format!("{key}: write the path without `..`")));
        }
        if typed.get_ref().is_absolute() {
            return Ok(typed.into_inner());
        }
        let message = format!(
            "{key}: `{}` is a relative path; write it from the root, so that it means the same wherever Tidegate starts",
            typed.get_ref().display()
        );
        Err(self.error(&typed.span(), &message))
    }
}

/// `$VARIABLE/tidegate`, `~/HOME_FOLDER/tidegate`, or `SYSTEM_FOLDER/tidegate` for a process without a home.
pub(super) fn user_folder(variable: &str, home_folder: &str, system_folder: &str) -> PathBuf {
    let absolute = |path: std::ffi::OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let base = std::env::var_os(variable).and_then(absolute);
    let home = || std::env::var_os("HOME").and_then(absolute).map(|home| home.join(home_folder));
    base.or_else(home).unwrap_or_else(|| PathBuf::from(system_folder)).join("tidegate")
}
