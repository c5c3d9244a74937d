//! `tidegate import FILE...`: the files with which people already say where images come from, turned into a
//! configuration of this proxy. What cannot be carried over is told, with its line; nothing is lost silently.
//!
//! `input` finds files and says what each is, `gather` takes from them what concerns connections, `logins` and `trust`
//! what concerns secrets and certificates, `fitting` takes out what plugins refuse, `rebuilt` is what they get of the rest and
//! of files with secrets, `outcome` writes it all.

// Names of products are no code.
#![allow(clippy::doc_markdown)]

mod fitting;
mod gather;
mod input;
mod logins;
mod outcome;
mod reach;
mod rebuilt;
mod trust;

use std::path::PathBuf;
use std::process::ExitCode;

use super::EXIT_BAD_INPUT;
use crate::config::Config;
use gather::Gathered;

/// Words behind `tidegate import`.
#[derive(clap::Args)]
pub(super) struct Import {
    /// Files, or folders of them: registries.conf(.d), mirror sets, image.config, hosts.toml folders, containerd's
    /// config.toml, registries.yaml, daemon.json, policy.json, docker's config.json, certs.d folders, config maps of
    /// authorities, pull secrets
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where it is written: a folder that is not there yet, or empty
    #[arg(long, value_name = "DIR", default_value = "tidegate-import")]
    dir: PathBuf,
}

/// Something that was not carried over.
struct Left {
    /// Where it stands.
    file: String,
    line: Option<usize>,
    /// What, with the keys that it stands under.
    key: String,
    /// Why, and what to do.
    why: String,
}

impl Import {
    pub(super) fn run(&self) -> ExitCode {
        match self.import() {
            Ok(code) => code,
            Err(reason) => {
                eprintln!("tidegate: {reason}");
                ExitCode::from(EXIT_BAD_INPUT)
            }
        }
    }

    fn import(&self) -> Result<ExitCode, String> {
        let dir = std::path::absolute(&self.dir).map_err(|err| format!("{}: {err}", self.dir.display()))?;
        outcome::free(&dir)?;
        let mut files = Vec::new();
        for file in &self.files {
            files.append(&mut input::find(file)?);
        }
        input::put_in_order(&mut files);
        let mut gathered = Gathered::default();
        for found in &files {
            gathered.take(found)?;
        }
        gathered.settle();
        outcome::write(&gathered, &dir)?;
        // What was written here is ours to be right.
        Config::open(Some(&dir.join(outcome::CONFIG)))
            .map_err(|err| format!("what was written cannot be used: {err}"))?;
        outcome::tell(&gathered, &dir);
        Ok(if gathered.left.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(LEFT) })
    }
}

/// Something was left.
const LEFT: u8 = 1;
