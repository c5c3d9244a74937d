//! Whom we believe that a host is itself, and who we say that we are: authorities and client certificates, in PEM.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use toml::Spanned;

use super::source::{ConfigError, Source};

/// Where authorities and client certificates are looked for, by host.
const DEFAULT_CERTS_DIR: &str = "/etc/tidegate/certs.d";

/// What is believed of one registry, beside what the system and the folders by host say.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Trust {
    /// Authorities beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Who we say that we are.
    pub client: Option<ClientPair>,
    /// Anybody is believed.
    pub insecure: bool,
}

/// A client certificate and its key.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClientPair {
    /// The certificate, and those that it follows from.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Reads the certificates of a PEM file, at least one.
///
/// # Errors
/// What is wrong with it, without the file's name.
pub fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => {
            Err("holds no certificate: it must be PEM, with -----BEGIN CERTIFICATE-----".to_owned())
        }
        Ok(found) => Ok(found),
        Err(err) => Err(format!("cannot be read: {}", told(&err))),
    }
}

/// Reads the private key of a PEM file.
///
/// # Errors
/// What is wrong with it, without the file's name.
pub fn read_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    use rustls::pki_types::pem::Error;
    PrivateKeyDer::from_pem_file(file).map_err(|err| match err {
        Error::NoItemsFound => "holds no private key: it must be PEM, without a passphrase".to_owned(),
        err => format!("cannot be read: {}", told(&err)),
    })
}

/// An error of the PEM reader, without the line that it quotes: a key may stand in it.
fn told(err: &rustls::pki_types::pem::Error) -> String {
    use rustls::pki_types::pem::Error;
    match err {
        Error::Io(err) => err.to_string(),
        Error::NoItemsFound => "nothing is in it".to_owned(),
        _ => "it is no right PEM".to_owned(),
    }
}

impl Source<'_> {
    pub fn certs_dirs(&self, typed: Option<Vec<Spanned<PathBuf>>>) -> Result<Vec<PathBuf>, ConfigError> {
        match typed {
            None => Ok(vec![PathBuf::from(DEFAULT_CERTS_DIR)]),
            Some(dirs) => dirs.into_iter().map(|dir| self.absolute(dir, "certs_dirs")).collect(),
        }
    }

    pub fn trust(
        &self,
        ca_file: Option<Spanned<PathBuf>>,
        cert: Option<Spanned<PathBuf>>,
        key: Option<Spanned<PathBuf>>,
        insecure: bool,
        table: &str,
    ) -> Result<Trust, ConfigError> {
        let name = |key: &str| format!("{table}.{key}");
        let ca_file = match ca_file {
            Some(file) => Some(self.pem(file, &name("ca_file"), |file| read_certificates(file).map(drop))?),
            None => None,
        };
        let client = match (cert, key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some(ClientPair {
                cert: self.pem(cert, &name("client_cert"), |file| read_certificates(file).map(drop))?,
                key: self.pem(key, &name("client_key"), |file| read_key(file).map(drop))?,
            }),
            (Some(cert), None) => {
                let message = format!("{}: needs {} beside it", name("client_cert"), name("client_key"));
                return Err(self.error(&cert.span(), &message));
            }
            (None, Some(key)) => {
                let message = format!("{}: needs {} beside it", name("client_key"), name("client_cert"));
                return Err(self.error(&key.span(), &message));
            }
        };
        Ok(Trust { ca_file, client, insecure })
    }

    fn pem(
        &self,
        typed: Spanned<PathBuf>,
        key: &str,
        read: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<PathBuf, ConfigError> {
        let span = typed.span();
        let file = self.absolute(typed, key)?;
        match read(&file) {
            Ok(()) => Ok(file),
            Err(reason) => Err(self.error(&span, &format!("{key}: {} {reason}", file.display()))),
        }
    }
}
