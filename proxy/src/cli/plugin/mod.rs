//! `tidegate plugin VERB`: for authors and operators of plugins, one file a verb.

mod bench;
mod build;
mod carried;
mod cases;
mod check;
mod content;
mod language;
mod ls;
mod module;
mod new;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;

use super::{EXIT_BAD_INPUT, OWN_PROGRAM};
use crate::config::{Config, default_state_dir};
use crate::plugin::{Alone, Files};
use language::Language;

/// What can be done with plugins.
#[derive(Subcommand)]
pub(super) enum Verb {
    /// Write a small plugin to begin with: it builds, decides, and has tests
    New {
        /// Where to: a folder that is empty or not there; its last part is the plugin's name
        path: PathBuf,
        /// In which language
        #[arg(long, value_enum)]
        lang: Language,
    },
    /// Build the plugin in a folder, whatever its language, into NAME.wasm in it
    Build {
        /// The plugin's folder
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Say what a plugin file exports, imports and costs, and whether the proxy would load it: exit code 0, or 2
    Check(Alike),
    /// Run a table of cases, each a pull and what must be decided: exit code 0, 1 where one fails, or 2
    Test(test::Test),
    /// Measure what one call of each hook costs, with warm instances and with a fresh one for each call
    Bench(Alike),
    /// List the plugins of the running proxy, how they fare, and the files that are not loaded
    Ls {
        /// As JSON, as `/plugins` on the admin listener answers
        #[arg(long)]
        json: bool,
    },
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
    /// Does it. `config`: the file that was named.
    pub async fn run(&self, config: Option<&Path>) -> anyhow::Result<ExitCode> {
        match self {
            // Who asks a proxy must know where it listens; all else needs no configuration of one.
            Self::Ls { json } => match Config::open(config) {
                Ok(config) => ls::ls(&config, *json).await,
                Err(err) => Ok(super::refuse(&err)),
            },
            Self::New { path, lang } => new::new(path, *lang),
            Self::Build { dir } => build::build(dir),
            Self::Check(given) => Ok(check::check(given).await),
            Self::Bench(given) => Ok(bench::bench(given).await),
            Self::Test(given) => Ok(given.run().await),
        }
    }
}

impl Alike {
    /// The files, to be compiled anew.
    fn files(&self) -> Files {
        Files {
            wasm: self.file.clone(),
            config: self.config_files.clone(),
            settings: None,
            program: PathBuf::from(OWN_PROGRAM),
            state_dir: None,
        }
    }

    async fn load(&self, files: Files) -> Result<Alone, ExitCode> {
        Alone::load(files).await.map_err(|reason| self.refuse(&reason))
    }

    /// Loads it with code that was compiled before, where there is some; it must accept its configuration.
    async fn load_ready(&self, settings: Option<String>) -> Result<Alone, ExitCode> {
        let alone = self.load(Files { settings, state_dir: Some(default_state_dir()), ..self.files() }).await?;
        match &alone.about.accepts {
            Ok(()) => Ok(alone),
            Err(reason) if self.config_files.is_empty() => {
                Err(self.refuse(&format!("it needs a configuration, with --config-files: {reason}")))
            }
            Err(reason) => Err(self.refuse(&format!("it refuses its configuration: {reason}"))),
        }
    }

    fn refuse(&self, reason: &str) -> ExitCode {
        eprintln!("tidegate: {}: {reason}", self.file.display());
        ExitCode::from(EXIT_BAD_INPUT)
    }
}
