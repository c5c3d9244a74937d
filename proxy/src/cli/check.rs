//! `tidegate check`: reads configuration and plugins as `serve` would, and listens nowhere.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use super::{EXIT_BAD_INPUT, OWN_PROGRAM};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::plugin::Plugins;

pub(super) async fn check(config: &Config, file: Option<&Path>) -> anyhow::Result<ExitCode> {
    // The configuration was opened before; what is wrong with it was said there.
    for warning in config.warnings() {
        eprintln!("tidegate: warning: {warning}");
    }
    let plugins = match Plugins::load(&config.plugins, PathBuf::from(OWN_PROGRAM), &Arc::new(Metrics::default())).await
    {
        Ok(plugins) => plugins,
        Err(err) => {
            eprintln!("tidegate: {err}");
            return Ok(ExitCode::from(EXIT_BAD_INPUT));
        }
    };
    let set = plugins.current();
    let names = set.names().collect::<Vec<_>>();
    let file = file.map_or_else(|| config.source.clone(), |path| path.display().to_string());
    match (&config.plugins.dir, names.as_slice()) {
        (None, _) => println!("{file} is good; there is no plugin folder"),
        (Some(dir), []) => println!("{file} is good; there are no plugins in {}", dir.display()),
        (Some(dir), names) => println!("{file} is good; plugins in {}, in order: {}", dir.display(), names.join(", ")),
    }
    Ok(ExitCode::SUCCESS)
}
