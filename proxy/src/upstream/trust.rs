//! Whom we believe that a host is itself: the system's authorities, those of the configuration, and those of the
//! folders by host that docker and containers use. And who we say that we are.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::config::{ClientPair, Trust, read_certificates, read_key};

/// Files of one host's folder that are looked at.
const FILES_MAX: usize = 256;

/// What the system trusts.
pub(super) struct System {
    roots: RootCertStore,
    plain: Arc<ClientConfig>,
}

/// Where the trust in one host is written down.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Sources {
    /// Of the configuration, for a registry's own host.
    pub trust: Trust,
    /// The folders of this host, that are looked for.
    pub folders: Vec<PathBuf>,
}

/// The files that trust is made of, as they are now: another one means that it is to be made again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Print(Vec<(PathBuf, Option<About>)>);

/// When a file was changed, its length and its inode.
type About = (SystemTime, u64, u64);

impl System {
    /// Reads the system's authorities.
    pub fn load() -> Self {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for err in &found.errors {
            tracing::warn!(error = err.to_string(), "a certificate that the system trusts cannot be read");
        }
        let (good, _) = roots.add_parsable_certificates(found.certs);
        if good == 0 {
            tracing::warn!(
                "the system trusts no certificate authority: no registry can be reached over https; install ca-certificates, or name authorities with `ca_file`"
            );
        }
        let plain = ClientConfig::builder().with_root_certificates(roots.clone()).with_no_client_auth();
        Self { roots, plain: Arc::new(plain) }
    }

    /// What a connection is made with. Blocks on files.
    ///
    /// # Errors
    /// Which file is wrong, and how.
    pub fn config(&self, sources: &Sources, print: &Print) -> Result<Arc<ClientConfig>, String> {
        if print.0.is_empty() && !sources.trust.insecure {
            return Ok(self.plain.clone());
        }
        let mut authorities = Vec::new();
        let mut pairs: Vec<ClientPair> = sources.trust.client.iter().cloned().collect();
        let named = sources.trust.ca_file.as_deref();
        for (file, _) in &print.0 {
            match file.extension().and_then(|extension| extension.to_str()) {
                _ if named == Some(file) || !sources.folders.iter().any(|folder| file.parent() == Some(folder)) => {}
                Some("crt") => authorities.push(file.as_path()),
                Some("cert") => pairs.push(ClientPair { cert: file.clone(), key: file.with_extension("key") }),
                Some("key") if !file.with_extension("cert").exists() => {
                    let cert = file.with_extension("cert");
                    return Err(format!("missing client certificate {} for key {}", cert.display(), file.display()));
                }
                _ => {}
            }
        }
        let mut roots = self.roots.clone();
        for file in named.into_iter().chain(authorities) {
            let found = read_certificates(file).map_err(|reason| format!("{} {reason}", file.display()))?;
            let (good, bad) = roots.add_parsable_certificates(found);
            if good == 0 {
                return Err(format!("{} holds {bad} certificates, and none is right", file.display()));
            }
        }
        let builder = ClientConfig::builder();
        let builder = if sources.trust.insecure {
            let provider = builder.crypto_provider().clone();
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        } else {
            builder.with_root_certificates(roots)
        };
        // One pair is all that a host needs: the configuration's, else the first by name.
        let Some(ClientPair { cert, key }) = pairs.first() else { return Ok(Arc::new(builder.with_no_client_auth())) };
        if !key.exists() {
            return Err(format!(
                "missing key {} for client certificate {}; authorities have the extension .crt",
                key.display(),
                cert.display()
            ));
        }
        let chain = read_certificates(cert).map_err(|reason| format!("{} {reason}", cert.display()))?;
        let secret = read_key(key).map_err(|reason| format!("{} {reason}", key.display()))?;
        let config = builder.with_client_auth_cert(chain, secret);
        config
            .map(Arc::new)
            .map_err(|err| format!("{} and {} do not go together: {err}", cert.display(), key.display()))
    }
}

impl Sources {
    /// Looks at the files, without reading them. Blocks.
    pub fn print(&self, further: Option<&Path>) -> Print {
        let trust = &self.trust;
        let pair = trust.client.iter().flat_map(|pair| [pair.cert.clone(), pair.key.clone()]);
        let mut files: Vec<PathBuf> = trust.ca_file.iter().cloned().chain(pair).collect();
        files.extend(further.map(Path::to_owned));
        for folder in &self.folders {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
            let of_trust = |file: &PathBuf| {
                file.extension()
                    .is_some_and(|extension| extension == "crt" || extension == "cert" || extension == "key")
            };
            let mut found: Vec<PathBuf> = entries.filter(of_trust).take(FILES_MAX).collect();
            found.sort_unstable();
            files.extend(found);
        }
        Print(files.into_iter().map(|file| (about(&file), file)).map(|(about, file)| (file, about)).collect())
    }
}

fn about(file: &Path) -> Option<About> {
    use std::os::unix::fs::MetadataExt;
    let about = fs::metadata(file).ok()?;
    Some((about.modified().ok()?, about.len(), about.ino()))
}

/// Folders of a host under one of `certs_dirs`: `HOST:PORT`, `HOST..PORT` where a colon cannot stand in a file's name,
/// and for the port that https has anyway also `HOST`.
pub(super) fn folders(dirs: &[PathBuf], host: &str, port: u16) -> Vec<PathBuf> {
    let mut names = vec![format!("{host}:{port}"), format!("{host}..{port}")];
    if port == 443 {
        names.push(host.to_owned());
    }
    dirs.iter().flat_map(|dir| names.iter().map(move |name| dir.join(name))).collect()
}

/// Believes anybody, for one registry of which the operator says so. What signs must sign right all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_named_as_docker_and_openshift_name_them() {
        let dirs = [PathBuf::from("/a"), PathBuf::from("/b")];
        let names = |host, port| -> Vec<String> {
            folders(&dirs, host, port).iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(names("h.lan", 5000), ["/a/h.lan:5000", "/a/h.lan..5000", "/b/h.lan:5000", "/b/h.lan..5000"]);
        assert!(names("h.lan", 443).contains(&"/b/h.lan".to_owned()));
        assert!(names("[::1]", 5000).contains(&"/a/[::1]:5000".to_owned()));
    }

    #[test]
    fn a_certificate_without_its_key_is_named_as_docker_names_it() {
        super::super::connect::install_cryptography();
        let folder = tempfile::tempdir().expect("a folder");
        let sources = Sources { trust: Trust::default(), folders: vec![folder.path().to_owned()] };
        let system = System {
            roots: RootCertStore::empty(),
            plain: Arc::new(
                ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth(),
            ),
        };
        let refusal = || system.config(&sources, &sources.print(None)).map(drop).expect_err("it is refused");
        let path = |name: &str| folder.path().join(name);
        assert!(system.config(&sources, &sources.print(None)).is_ok(), "an empty folder says nothing");
        fs::write(path("client.cert"), "x").expect("a file");
        assert!(refusal().starts_with("missing key ") && refusal().contains("client.key"), "{}", refusal());
        fs::rename(path("client.cert"), path("client.key")).expect("renamed");
        assert!(refusal().starts_with("missing client certificate "), "{}", refusal());
        fs::rename(path("client.key"), path("ca.crt")).expect("renamed");
        assert!(refusal().contains("ca.crt") && refusal().contains("PEM"), "{}", refusal());
        let before = sources.print(None);
        fs::write(path("ca.crt"), "xy").expect("a file");
        assert_ne!(sources.print(None), before);
        fs::remove_file(path("ca.crt")).expect("removed");
        fs::write(path("README"), "x").expect("a file");
        assert_eq!(sources.print(None), Print::default());
    }
}
