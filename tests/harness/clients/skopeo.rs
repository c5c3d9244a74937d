//! Skopeo, which copies an image to a folder: it names the mirror, and the registry in the path.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::{Client, output};
use crate::process::offline;

/// A folder of its own; there is no daemon.
#[derive(Debug)]
pub struct Skopeo {
    mirror: String,
    folder: TempDir,
}

impl Skopeo {
    /// Makes the folder.
    pub fn new(mirror: &str) -> Self {
        Self { mirror: mirror.to_owned(), folder: tempfile::tempdir().unwrap() }
    }
}

/// Copies an image layout's image to a registry, under a name of it.
pub fn copy(layout: &Path, name: &str) -> Result<String, String> {
    output(
        offline(&mut Command::new("skopeo"))
            .args(["--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:image", layout.display()))
            .arg(format!("docker://{name}")),
    )
}

impl Client for Skopeo {
    fn name(&self) -> &'static str {
        "skopeo"
    }

    fn pull(&self, image: &str) -> Result<String, String> {
        let layout = self.folder.path().join("layout");
        output(
            offline(&mut Command::new("skopeo"))
                .args(["--insecure-policy", "copy", "--preserve-digests", "--src-tls-verify=false"])
                .arg(format!("docker://{}/docker.io/{image}", self.mirror))
                .arg(format!("oci:{}:image", layout.display())),
        )?;
        let index = fs::read(layout.join("index.json")).map_err(|error| error.to_string())?;
        let index: Value = serde_json::from_slice(&index).map_err(|error| error.to_string())?;
        let digest = index["manifests"][0]["digest"].as_str();
        digest.map(str::to_owned).ok_or_else(|| format!("no digest in {index}"))
    }

    fn remove(&self, _image: &str) {
        fs::remove_dir_all(self.folder.path().join("layout")).unwrap();
    }
}
