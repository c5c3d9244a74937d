//! What the operator says of a plugin: `NN-name.settings.toml`. It is the host's; the plugin never sees it.

use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::engine::MEMORY_MAX;
use super::guest::ConfigFile;
use super::scope::Pattern;
use crate::oci::Place;

/// How long a call may take when nothing else is said.
const DEADLINE: Duration = Duration::from_millis(50);
/// Longest deadline that can be set: a client waits for it. Units: milliseconds.
const DEADLINE_MAX_MS: i64 = 10_000;
/// Memory of an instance. Units: bytes.
const MEMORY: usize = 16 << 20;
/// Memory of an instance that brings the runtime of its language along. Units: bytes.
const MEMORY_WITH_RUNTIME: usize = 64 << 20;
/// One page of WebAssembly, below which there is nothing. Units: bytes.
const MEMORY_MIN: usize = 64 << 10;

/// The settings of one plugin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Settings {
    /// What a failed call means; none: each hook's own default.
    pub on_error: Option<OnError>,
    /// For how long a call may run.
    pub deadline: Duration,
    /// Units: bytes.
    pub memory_bytes: usize,
    memory_is_set: bool,
    /// What becomes of an instance after a call.
    pub isolation: Isolation,
    /// Whether what it decides holds.
    pub mode: Mode,
    /// After so many failures in a row its `on_error` answer stands for it until it is replaced; none: never.
    pub give_up_after: Option<u32>,
    /// Where it is asked at all; none: everywhere.
    only: Option<Vec<Pattern>>,
    /// Where it is not asked, although `only` may say so.
    except: Vec<Pattern>,
}

/// What it means when a plugin does not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnError {
    /// The request is denied.
    Deny,
    /// As if the plugin were not there.
    Skip,
}

/// What becomes of an instance after a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Isolation {
    /// It waits for the next call, with what it has in its memory.
    #[default]
    Pooled,
    /// It is dropped: each call has a new one.
    Fresh,
}

/// Whether what a plugin decides holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It holds.
    #[default]
    Enforce,
    /// It is asked, and told of where it would have decided otherwise; nothing comes of it.
    Shadow,
    /// It is not even loaded.
    Off,
}

impl Mode {
    /// The word for it: a label of a metric, and what stands in a log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }
}

/// The file as it is typed.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    on_error: Option<OnError>,
    deadline_ms: Option<Spanned<i64>>,
    memory: Option<Spanned<String>>,
    isolation: Option<Isolation>,
    mode: Option<Mode>,
    only: Option<Spanned<Vec<Spanned<String>>>>,
    except: Option<Vec<Spanned<String>>>,
    give_up_after: Option<Spanned<i64>>,
}

impl Settings {
    /// Reads the settings, where there are any.
    ///
    /// # Errors
    /// A text for the operator: the file, the line, and what to write.
    pub fn parse(file: Option<&ConfigFile>) -> Result<Self, String> {
        let Some(file) = file else { return Self::of(File::default(), &ConfigFile::default()) };
        let typed: File = toml::from_str(&file.text).map_err(|err| {
            let key = err.span().and_then(|span| file.text[..span.start].lines().next_back()?.split_once('='));
            let key = key.map(|(key, _)| format!("{}: ", key.trim())).unwrap_or_default();
            let message = err.message().replace('\n', ", ");
            error(file, err.span().map_or(0, |span| span.start), &format!("{key}{message}"))
        })?;
        Self::of(typed, file)
    }

    fn of(typed: File, file: &ConfigFile) -> Result<Self, String> {
        let deadline = match typed.deadline_ms {
            None => DEADLINE,
            Some(ms) => match u64::try_from(*ms.get_ref()) {
                Ok(good @ 1..) if *ms.get_ref() <= DEADLINE_MAX_MS => Duration::from_millis(good),
                _ => {
                    let reason = format!("deadline_ms: {} is not between 1 and {DEADLINE_MAX_MS}", ms.get_ref());
                    return Err(error(file, ms.span().start, &reason));
                }
            },
        };
        let memory_is_set = typed.memory.is_some();
        let memory_bytes = match typed.memory {
            None => MEMORY,
            Some(size) => memory(size.get_ref()).map_err(|reason| error(file, size.span().start, &reason))?,
        };
        let give_up_after = match typed.give_up_after {
            None => None,
            Some(number) => Some(u32::try_from(*number.get_ref()).ok().filter(|number| *number > 0).ok_or_else(|| {
                let reason = format!(
                    "give_up_after: {} is no number of failures: write one from 1 on, or leave the key away to never give up",
                    number.get_ref()
                );
                error(file, number.span().start, &reason)
            })?),
        };
        let only = match typed.only {
            Some(none) if none.get_ref().is_empty() => {
                let reason = "only: with an empty list it would see nothing: write mode = \"off\" if that is meant";
                return Err(error(file, none.span().start, reason));
            }
            Some(only) => Some(patterns("only", only.get_ref(), file)?),
            None => None,
        };
        Ok(Self {
            on_error: typed.on_error,
            deadline,
            memory_bytes,
            memory_is_set,
            isolation: typed.isolation.unwrap_or_default(),
            mode: typed.mode.unwrap_or_default(),
            give_up_after,
            only,
            except: patterns("except", &typed.except.unwrap_or_default(), file)?,
        })
    }

    /// For a guest that brings the runtime of its language along: where nothing else is said, it has more memory.
    pub fn allow_for_runtime(&mut self) {
        if !self.memory_is_set {
            self.memory_bytes = MEMORY_WITH_RUNTIME;
        }
    }

    /// Whether the plugin is asked about what comes from a place.
    pub fn sees(&self, place: &Place) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|pattern| pattern.covers(place)))
            && !self.except.iter().any(|pattern| pattern.covers(place))
    }
}

fn memory(typed: &str) -> Result<usize, String> {
    let max = MEMORY_MAX >> 20;
    let size = typed
        .parse::<ByteSize>()
        .map_err(|err| format!("memory: `{}` is no size such as 16MiB: {err}", typed.escape_debug()))?;
    match usize::try_from(size.as_u64()) {
        Ok(bytes @ MEMORY_MIN..=MEMORY_MAX) => Ok(bytes),
        _ => Err(format!("memory: {typed} is not between 64KiB and {max}MiB")),
    }
}

fn patterns(key: &str, typed: &[Spanned<String>], file: &ConfigFile) -> Result<Vec<Pattern>, String> {
    let parse = |typed: &Spanned<String>| {
        Pattern::parse(typed.get_ref()).map_err(|reason| {
            let reason = format!("{key}: \"{}\": {reason}", typed.get_ref().escape_debug());
            error(file, typed.span().start, &reason)
        })
    };
    typed.iter().map(parse).collect()
}

fn error(file: &ConfigFile, at: usize, reason: &str) -> String {
    let line = file.text[..at].split('\n').count();
    format!("{}:{line}: {reason}", file.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Registry, Repository};

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::parse(Some(&ConfigFile { name: "10-a.settings.toml".to_owned(), text: text.to_owned() }))
    }

    #[test]
    fn what_is_not_said_is_as_it_ever_was() {
        let settings = Settings::parse(None).expect("nothing is fine");
        assert_eq!(parse("").expect("nothing is fine"), settings);
        assert_eq!(settings.on_error, None);
        assert_eq!(settings.deadline, Duration::from_millis(50));
        assert_eq!(settings.memory_bytes, 16 << 20);
        assert_eq!((settings.isolation, settings.mode), (Isolation::Pooled, Mode::Enforce));
        assert_eq!(settings.give_up_after, None);
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
            on_error = "skip"
            deadline_ms = 200
            memory = "32MiB"
            isolation = "fresh"
            mode = "shadow"
            only = ["quay.io", "docker.io/library/*"]
            except = ["quay.io/org/*"]
            give_up_after = 5
        "#;
        let settings = parse(text).expect("all is right");
        assert_eq!(settings.on_error, Some(OnError::Skip));
        assert_eq!(settings.deadline, Duration::from_millis(200));
        assert_eq!(settings.memory_bytes, 32 << 20);
        assert_eq!((settings.isolation, settings.mode), (Isolation::Fresh, Mode::Shadow));
        assert_eq!(settings.give_up_after, Some(5));
        for (registry, repository, seen) in [
            ("quay.io", "a/b", true),
            ("quay.io", "org/b", false),
            ("docker.io", "library/redis", true),
            ("docker.io", "org/redis", false),
            ("ghcr.io", "a/b", false),
        ] {
            let place = Place {
                registry: Registry::parse(registry).expect("a registry"),
                repository: Repository::parse(repository).expect("a repository"),
            };
            assert_eq!(settings.sees(&place), seen, "{place}");
        }
        assert!(parse("mode = \"off\"").is_ok_and(|settings| settings.mode == Mode::Off));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_the_way_out() {
        for (text, line, says) in [
            ("\non_errors = \"deny\"", 2, "expected one of `on_error`"),
            ("on_error = \"maybe\"", 1, "on_error: unknown variant `maybe`, expected `deny` or `skip`"),
            ("on_error", 1, "expected"),
            ("on_error = \"deny\"\non_error = \"skip\"", 2, "duplicate key"),
            ("\n\ndeadline_ms = 0", 3, "deadline_ms: 0 is not between 1 and 10000"),
            ("deadline_ms = 10001", 1, "deadline_ms: 10001"),
            ("deadline_ms = -1", 1, "deadline_ms: -1"),
            ("deadline_ms = \"50ms\"", 1, "deadline_ms: invalid type: string"),
            ("memory = \"65MiB\"", 1, "memory: 65MiB is not between 64KiB and 64MiB"),
            ("memory = \"1B\"", 1, "memory: 1B"),
            ("memory = \"much\"", 1, "memory: `much` is no size such as 16MiB"),
            ("memory = 16", 1, "memory: invalid type: integer"),
            ("isolation = \"none\"", 1, "expected `pooled` or `fresh`"),
            ("mode = \"on\"", 1, "expected one of `enforce`, `shadow`, `off`"),
            ("only = []", 1, "mode = \"off\""),
            ("only = [\n  \"quay.io\",\n  \"redis\",\n]", 3, "only: \"redis\": it names no registry"),
            ("except = [\"quay.io/a:1\"]", 1, "except: \"quay.io/a:1\": a pattern names no tags"),
            ("only = \"quay.io\"", 1, "only: invalid type: string"),
            ("give_up_after = 0", 1, "give_up_after: 0 is no number of failures"),
        ] {
            let reason = parse(text).expect_err(text);
            assert!(reason.starts_with(&format!("10-a.settings.toml:{line}: ")), "{text}: {reason}");
            assert!(reason.contains(says), "{text}: {reason}");
        }
    }
}
