//! `tidegate ca`: the private authority that vouches for intercepted registries.

mod init;
mod trust;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

use super::EXIT_BAD_INPUT;
use crate::config::{Authority, DEFAULT_FILES, Wanted};

#[derive(Subcommand)]
pub(super) enum Verb {
    /// Make an authority: a key that stays here, and a certificate that clients are to trust
    Init {
        /// Its folder [default: `ca_dir` of [intercept], else /var/lib/tidegate/ca]
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Let it vouch for nothing but the `registries` of [intercept]: others need another authority then
        #[arg(long)]
        constrain: bool,
    },
    /// Print where the authority is, its fingerprint, and when it ends
    Show {
        /// Its folder [default: `ca_dir` of [intercept], else /var/lib/tidegate/ca]
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Make a client of this machine trust it
    Trust(trust::Trust),
}

impl Verb {
    /// `config`: the file that was named.
    pub fn run(&self, config: Option<&Path>) -> ExitCode {
        let file =
            config.map(Path::to_owned).or_else(|| DEFAULT_FILES.iter().map(PathBuf::from).find(|file| file.exists()));
        let wanted = match file.as_deref().map(Wanted::open).transpose() {
            Ok(wanted) => wanted.unwrap_or_default(),
            Err(err) => {
                eprintln!("tidegate: {err}");
                return ExitCode::from(EXIT_BAD_INPUT);
            }
        };
        let of = |dir: &Option<PathBuf>| dir.clone().unwrap_or_else(|| wanted.ca_dir.clone());
        let done = match self {
            Self::Init { dir, constrain } => init::init(&of(dir), constrain.then_some(wanted.registries.as_slice())),
            Self::Show { dir } => show(&of(dir)),
            Self::Trust(trust) => trust.install(&wanted),
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(err) => {
                eprintln!("tidegate: {err:#}");
                ExitCode::FAILURE
            }
        }
    }
}

fn show(dir: &Path) -> anyhow::Result<()> {
    let authority = Authority::open(dir).map_err(anyhow::Error::msg)?;
    println!("certificate  {}", authority.file.display());
    println!("fingerprint  SHA-256 {}", fingerprint(&authority.file)?);
    println!("ends         {}", humantime::format_rfc3339_seconds(authority.expires));
    Ok(())
}

/// As browsers and openssl print it.
fn fingerprint(file: &Path) -> anyhow::Result<String> {
    let certificate = CertificateDer::from_pem_file(file);
    let certificate = certificate.with_context(|| format!("{} holds no certificate", file.display()))?;
    let hash = Sha256::digest(&certificate);
    Ok(hash.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":"))
}
