//! `tidegate check`: reads configuration and plugins as `serve` would, and listens nowhere.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;

use super::{EXIT_BAD_INPUT, OWN_PROGRAM};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::plugin::{Plugins, strays};

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
    if let Some(dir) = &config.plugins.dir {
        // A policy without its plugin is not in effect: nobody shall read that it is good.
        let strays = strays(dir).with_context(|| format!("the plugin folder {} cannot be read", dir.display()))?;
        for stray in &strays {
            let file = dir.join(stray);
            eprintln!(
                "tidegate: {} belongs to no plugin: a configuration has the stem of its .wasm, which must lie beside it",
                file.display()
            );
        }
        if !strays.is_empty() {
            return Ok(ExitCode::from(EXIT_BAD_INPUT));
        }
    }
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
