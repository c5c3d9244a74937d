//! `tidegate plugin VERB`: for authors and operators of plugins, one file a verb.

mod check;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use super::{EXIT_BAD_INPUT, OWN_PROGRAM};
use crate::plugin::{Alone, Files};

/// What can be done with plugins.
#[derive(Subcommand)]
pub(super) enum Verb {
    /// Say what a plugin file exports, imports and costs, and whether the proxy would load it: exit code 0, or 2
    Check(Alike),
}

/// A plugin by itself.
#[derive(clap::Args)]
pub(super) struct Alike {
    /// The plugin: a component, or a core module that carries the type of one
    #[arg(value_name = "PLUGIN.wasm")]
    file: PathBuf,
    /// What it gets as its configuration; of a folder, the files in it
    #[arg(long, value_name = "FILE", num_args = 1..)]
    config_files: Vec<PathBuf>,
}

impl Verb {
    /// Does what needs no configuration of a proxy.
    pub async fn run(&self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check(given) => Ok(check::check(given).await),
        }
    }
}

impl Alike {
    async fn load(&self) -> Result<Alone, ExitCode> {
        let (wasm, config, program) = (self.file.clone(), self.config_files.clone(), PathBuf::from(OWN_PROGRAM));
        Alone::load(Files { wasm, config, settings: None, program }).await.map_err(|reason| self.refuse(&reason))
    }

    fn refuse(&self, reason: &str) -> ExitCode {
        eprintln!("tidegate: {}: {reason}", self.file.display());
        ExitCode::from(EXIT_BAD_INPUT)
    }
}
