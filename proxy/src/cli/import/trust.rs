//! Authorities and client certificates, each for its host: what becomes the certs.d folder.

use std::fs;
use std::path::{Path, PathBuf};

use tidegate_formats::{Node, Text};

use super::gather::Gathered;
use super::input::{Found, entries, entry, host, text};
use crate::oci::Registry;

/// A file of certs.d.
pub(super) struct Certificate {
    /// Below the folder.
    pub path: PathBuf,
    pub bytes: Vec<u8>,
    /// Whether it holds a key, so that others must not read it.
    pub is_key: bool,
}

impl Gathered {
    /// A file of a folder by host.
    pub(super) fn certificate(&mut self, found: &Found, registry: &Registry) {
        let name = found.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let is_key = found.text.contains("PRIVATE KEY");
        self.put_certificate(registry, &name, found.text.clone().into_bytes(), is_key, &found.file());
    }

    fn put_certificate(&mut self, registry: &Registry, name: &str, bytes: Vec<u8>, is_key: bool, from: &str) {
        let (stem, extension) = name.rsplit_once('.').unwrap_or((name, "crt"));
        let mut path = PathBuf::from(registry.as_str()).join(name);
        let mut number = 1;
        // Two of one name, from two folders: both hold.
        while let Some(there) = self.certificates.iter().find(|there| there.path == path) {
            if there.bytes == bytes {
                return;
            }
            number += 1;
            path = PathBuf::from(registry.as_str()).join(format!("{stem}-{number}.{extension}"));
        }
        self.named(registry);
        self.carried.push((from.to_owned(), format!("certs.d/{}", path.display())));
        self.certificates.push(Certificate { path, bytes, is_key });
    }

    /// Files that another file names, for the trust of a host.
    pub(super) fn named_certificate(&mut self, found: &Found, of: &str, file: &Text, name: &str) {
        let path = found.path.parent().unwrap_or(Path::new("")).join(file.as_str());
        let registry = Registry::parse(of);
        match (fs::read(&path), registry) {
            (Ok(bytes), Some(registry)) => {
                let is_key = name == "client.key";
                self.put_certificate(&registry, name, bytes, is_key, &path.display().to_string());
            }
            (Err(err), _) => {
                let why = format!("{} cannot be read: {err}; put it into certs.d/{of}/{name}", path.display());
                self.leave(&found.file(), file.line, name, &why);
            }
            (_, None) => self.leave(&found.file(), file.line, name, "it is of no host"),
        }
    }

    /// A config map of `additionalTrustedCA`.
    pub(super) fn config_map(&mut self, found: &Found, node: &Node) {
        let metadata = entry(node, "metadata").and_then(|(_, metadata)| entry(metadata, "name"));
        if let Some(name) = metadata.and_then(|(_, name)| text(name)) {
            self.config_maps.push(name.to_owned());
        }
        for (key, line, value) in entries(node) {
            match key {
                "apiVersion" | "kind" | "metadata" => {}
                "data" => {
                    for (name, line, value) in entries(value) {
                        let key = format!("data.\"{name}\"");
                        let pem = text(value).filter(|pem| pem.contains("-----BEGIN CERTIFICATE-----"));
                        match (host(name), pem) {
                            (Some(registry), Some(pem)) if name.contains(['.', ':']) || name == "localhost" => {
                                let bytes = pem.as_bytes().to_vec();
                                self.put_certificate(&registry, "ca.crt", bytes, false, &found.file());
                            }
                            (_, None) => self.leave(&found.file(), line, &key, "it holds no certificate in PEM"),
                            _ => self.leave(&found.file(), line, &key, "it names no host of a registry"),
                        }
                    }
                }
                other => self.leave(&found.file(), line, other, "nothing here reads it"),
            }
        }
    }
}
