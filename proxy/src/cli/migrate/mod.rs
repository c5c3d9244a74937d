//! `tidegate migrate`: files of one kind turned into files of the kind that follows it.

mod icsp;
mod policy;

use std::path::PathBuf;
use std::process::ExitCode;

pub use policy::{MirrorSet, Refused, to_digest_mirror_set};

/// What is turned into what.
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Turn files of `ImageContentSourcePolicy` into files of `ImageDigestMirrorSet`
    Icsp {
        /// YAML, one document or several
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Where they are written; made where it is missing [default: the current folder]
        #[arg(long, value_name = "DIR")]
        dest_dir: Option<PathBuf>,
    },
}

impl Verb {
    pub(super) fn run(&self) -> ExitCode {
        match self {
            Self::Icsp { files, dest_dir } => icsp::icsp(files, dest_dir.as_deref()),
        }
    }
}
