//! `tidegate plugin VERB`: for authors and operators of plugins, one file a verb.

mod build;
mod carried;
mod language;
mod module;
mod new;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

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
}

impl Verb {
    /// Does what needs no configuration of a proxy.
    #[expect(clippy::unused_async, reason = "verbs beside these wait")]
    pub async fn run(&self) -> anyhow::Result<ExitCode> {
        match self {
            Self::New { path, lang } => new::new(path, *lang),
            Self::Build { dir } => build::build(dir),
        }
    }
}
