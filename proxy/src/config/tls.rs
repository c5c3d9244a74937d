//! `[tls]`, and the like of `[[virtual_hosts]]`: a certificate that the listener shows, read and found to match its key.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use toml::Spanned;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::file;
use super::source::{ConfigError, Source};
use super::watch::Read;

/// `[tls]`
#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificate, and those that vouch for it, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
    /// What was read from both. Its Debug shows no key.
    pub identity: Arc<CertifiedKey>,
    /// Both, as they were when they were read.
    pub(super) files: [Read; 2],
    /// When the first of the certificates ends.
    pub expires: SystemTime,
}

impl Source<'_> {
    pub fn tls(&self, typed: file::Tls) -> Result<Option<Tls>, ConfigError> {
        self.pair(typed.certificate, typed.key, "tls")
    }

    /// `certificate` and `key` of a table.
    pub fn pair(
        &self,
        certificate: Option<Spanned<PathBuf>>,
        key: Option<Spanned<PathBuf>>,
        table: &str,
    ) -> Result<Option<Tls>, ConfigError> {
        let (named, keyed) = (format!("{table}.certificate"), format!("{table}.key"));
        let (certificate, key) = match (certificate, key) {
            (Some(certificate), Some(key)) => (certificate, key),
            (None, None) => return Ok(None),
            (Some(one), None) => return Err(self.error(&one.span(), &format!("{named}: needs {keyed} beside it"))),
            (None, Some(one)) => return Err(self.error(&one.span(), &format!("{keyed}: needs {named} beside it"))),
        };
        let (certificate_span, key_span) = (certificate.span(), key.span());
        let certificate = self.absolute(certificate, &named)?;
        let key = self.absolute(key, &keyed)?;
        let files = [Read::before(certificate.clone()), Read::before(key.clone())];
        let of_certificate =
            |reason: &str| self.error(&certificate_span, &format!("{named}: {} {reason}", certificate.display()));
        let of_key = |reason: &str| self.error(&key_span, &format!("{keyed}: {} {reason}", key.display()));
        let chain = std::fs::read(&certificate).map_err(|err| of_certificate(&format!("cannot be read: {err}")))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
        let chain = chain.map_err(|err| of_certificate(&format!("is no PEM file: {err}")))?;
        if chain.is_empty() {
            return Err(of_certificate("has no certificate in it (-----BEGIN CERTIFICATE-----)"));
        }
        let expires = chain.iter().map(expires).min().flatten();
        let expires = expires.ok_or_else(|| of_certificate("has a certificate in it that cannot be read"))?;
        let secret = std::fs::read(&key).map_err(|err| of_key(&format!("cannot be read: {err}")))?;
        // What is wrong with the text of a key is not told: it would quote it.
        let secret = PrivateKeyDer::from_pem_slice(&secret)
            .map_err(|_| of_key("has no private key in it (-----BEGIN PRIVATE KEY-----)"))?;
        let identity = CertifiedKey::from_der(chain, secret, &rustls::crypto::ring::default_provider());
        let identity = identity.map_err(|err| match err {
            rustls::Error::InconsistentKeys(_) => {
                of_key(&format!("is not the key of the certificate in {}", certificate.display()))
            }
            err => of_key(&format!("cannot be used: {err}")),
        })?;
        Ok(Some(Tls { certificate, key, identity: Arc::new(identity), files, expires }))
    }
}

fn expires(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let certificate = Certificate::from_der(certificate).ok()?;
    Some(certificate.tbs_certificate.validity.not_after.to_system_time())
}
