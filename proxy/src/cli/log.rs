//! The log of the process, whose level and format may change while it runs.

use std::io::IsTerminal;

use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt};

use crate::config::{self, LogFormat};

type Lines = Box<dyn Layer<Registry> + Send + Sync>;
type Filtered = tracing_subscriber::layer::Layered<reload::Layer<Lines, Registry>, Registry>;

/// The log, once it has started.
pub(super) struct Log {
    levels: Handle<EnvFilter, Filtered>,
    lines: Handle<Lines, Registry>,
}

impl Log {
    /// Starts the log.
    pub fn start(config: &config::Log) -> Self {
        let (lines, set_lines) = reload::Layer::new(lines(config.format));
        let (levels, set_levels) = reload::Layer::new(levels(config));
        tracing_subscriber::registry().with(lines).with(levels).init();
        Self { levels: set_levels, lines: set_lines }
    }

    /// Puts level and format into effect.
    pub fn set(&self, config: &config::Log) {
        // An error would say that there is no log any more, which nobody could be told.
        let _ = self.levels.reload(levels(config));
        let _ = self.lines.reload(lines(config.format));
    }
}

fn levels(config: &config::Log) -> EnvFilter {
    // RUST_LOG wins, for those who look for a fault.
    EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("warn,tidegate={}", config.level.as_str())))
}

fn lines(format: LogFormat) -> Lines {
    let log = fmt::layer().with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Json => log.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).boxed(),
    }
}
