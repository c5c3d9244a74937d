//! Certificates for a listener, made by openssl.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::run;

/// A certificate that vouches for itself, and its key, as texts.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// In PEM.
    pub certificate: String,
    /// In PEM.
    pub key: String,
}

impl Certificate {
    /// One for 127.0.0.1 that ends after so many days.
    pub fn for_loopback(days: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let output = run(Command::new("openssl")
            .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key -out cert".split(' '))
            .args(["-subj", "/CN=mirror", "-addext", "subjectAltName=IP:127.0.0.1", "-days", &days.to_string()])
            .current_dir(folder.path()));
        assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        Self { certificate: read("cert"), key: read("key") }
    }

    /// Writes both into a folder, as `cert.pem` and `key.pem`, each by a rename. Gives their paths.
    pub fn write(&self, folder: &Path) -> [PathBuf; 2] {
        [("cert.pem", &self.certificate), ("key.pem", &self.key)].map(|(name, text)| {
            let (staged, path) = (folder.join(format!("{name}.new")), folder.join(name));
            fs::write(&staged, text).unwrap();
            fs::rename(staged, &path).unwrap();
            path
        })
    }
}
