//! Podman, told by a `registries.conf`: it names the registry by the first segment of the path.

use std::process::Command;

use tempfile::TempDir;

use super::{Client, digest, only_mirror, output};
use crate::process::offline;

/// Folders of its own; there is no daemon.
#[derive(Debug)]
pub struct Podman {
    folder: TempDir,
}

impl Podman {
    /// Writes its configuration.
    pub fn new(mirror: &str) -> Self {
        Self { folder: only_mirror(mirror) }
    }

    fn podman(&self, arguments: &[&str]) -> Result<String, String> {
        let at = |name: &str| self.folder.path().join(name);
        output(
            offline(&mut Command::new("podman"))
                .env("CONTAINERS_REGISTRIES_CONF", at("registries.conf"))
                .arg("--root")
                .arg(at("root"))
                .arg("--runroot")
                .arg(at("run"))
                .arg("--tmpdir")
                .arg(at("tmp"))
                .args(["--storage-driver", "vfs"])
                .args(arguments),
        )
    }
}

impl Client for Podman {
    fn name(&self) -> &'static str {
        "podman"
    }

    fn pull(&self, image: &str) -> Result<String, String> {
        let name = format!("docker.io/{image}");
        let policy = self.folder.path().join("policy.json").display().to_string();
        self.podman(&["pull", "--signature-policy", &policy, &name])?;
        digest(&self.podman(&["image", "inspect", "--format", "{{.Digest}}", &name])?)
    }

    fn remove(&self, image: &str) {
        let removed = self.podman(&["rmi", "--force", &format!("docker.io/{image}")]);
        removed.unwrap_or_else(|error| panic!("{error}"));
    }
}
