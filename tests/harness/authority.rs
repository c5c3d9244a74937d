//! A certificate authority, and what it vouches for: made with openssl, thrown away with the test.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::run;

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// An authority of its own.
#[derive(Debug)]
pub struct Authority {
    folder: TempDir,
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes one.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Self { folder };
        // Two of one name would be taken for one another.
        let name = authority.folder.path().file_name().expect("it has a name").to_string_lossy().into_owned();
        authority.openssl(&format!("req -x509 {KEY} -keyout ca.key -out ca.pem -subj /CN={name} -days 2"));
        authority
    }

    /// Its own certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for a server at an address.
    pub fn server(&self, host: IpAddr) -> Pair {
        self.issue(&format!("server-{host}").replace(':', "_"), &format!("subjectAltName=IP:{host}"), 2)
    }

    /// A certificate for a server under several names, such as `["DNS:mirror.lan", "IP:127.0.0.1"]`.
    pub fn server_named(&self, names: &[&str]) -> Pair {
        let file = names.join("-").replace([':', '*'], "_");
        self.issue(&file, &format!("subjectAltName={}", names.join(",")), 2)
    }

    /// One for a server whose time is over.
    pub fn expired(&self, host: IpAddr) -> Pair {
        self.issue("expired", &format!("subjectAltName=IP:{host}"), -1)
    }

    /// One that says who a client is.
    pub fn client(&self, name: &str) -> Pair {
        self.issue(name, "extendedKeyUsage=clientAuth", 2)
    }

    fn issue(&self, name: &str, extension: &str, days: i32) -> Pair {
        let extensions = format!("basicConstraints=CA:FALSE\n{extension}\n");
        fs::write(self.folder.path().join(format!("{name}.ext")), extensions).unwrap();
        self.openssl(&format!("req {KEY} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} -extfile {name}.ext -out {name}.pem"
        ));
        let path = |extension: &str| self.folder.path().join(format!("{name}.{extension}"));
        Pair { cert: path("pem"), key: path("key") }
    }

    fn openssl(&self, arguments: &str) {
        let output = run(Command::new("openssl").args(arguments.split(' ')).current_dir(self.folder.path()));
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Pair {
    /// Copies both under other names.
    pub fn copy(&self, cert: &Path, key: &Path) {
        fs::copy(&self.cert, cert).unwrap();
        fs::copy(&self.key, key).unwrap();
    }
}
