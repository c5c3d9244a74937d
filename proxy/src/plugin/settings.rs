//! What the operator says of a plugin: `NN-name.settings.toml`. It is the host's; the plugin never sees it.

use std::time::Duration;

use serde::Deserialize;

use super::guest::ConfigFile;

/// How long a call may take when nothing else is said.
const DEADLINE: Duration = Duration::from_millis(50);
/// Memory of an instance. Units: bytes.
const MEMORY: usize = 16 << 20;

/// The settings of one plugin.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// What a failed call means; none: each hook's own default.
    pub on_error: Option<OnError>,
    /// For how long a call may run.
    pub deadline: Duration,
    /// Units: bytes.
    pub memory_bytes: usize,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    on_error: Option<OnError>,
    deadline_ms: Option<u32>,
}

impl Settings {
    /// Reads the settings, where there are any.
    ///
    /// # Errors
    /// A text for the operator.
    pub fn parse(file: Option<&ConfigFile>) -> Result<Self, String> {
        let default = Self { on_error: None, deadline: DEADLINE, memory_bytes: MEMORY };
        let Some(file) = file else { return Ok(default) };
        let typed: File = toml::from_str(&file.text).map_err(|err| {
            let before = &file.text[..err.span().map_or(0, |span| span.start)];
            format!("{}:{}: {}", file.name, before.split('\n').count(), err.message().replace('\n', ", "))
        })?;
        let deadline = match typed.deadline_ms {
            None => DEADLINE,
            Some(ms @ 1..=10_000) => Duration::from_millis(ms.into()),
            Some(ms) => return Err(format!("{}: deadline_ms: {ms} is not between 1 and 10000", file.name)),
        };
        Ok(Self { on_error: typed.on_error, deadline, ..default })
    }
}
