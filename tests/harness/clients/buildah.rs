//! Buildah, told by a `registries.conf` as Podman is: it names the registry by the first segment of the path.

use std::process::Command;

use tempfile::TempDir;

use super::{Client, digest, only_mirror, output};
use crate::process::offline;

/// Folders of its own; there is no daemon.
#[derive(Debug)]
pub struct Buildah {
    folder: TempDir,
}

impl Buildah {
    /// Writes its configuration.
    pub fn new(mirror: &str) -> Self {
        Self { folder: only_mirror(mirror) }
    }

    fn buildah(&self, arguments: &[&str]) -> Result<String, String> {
        let at = |name: &str| self.folder.path().join(name);
        output(
            offline(&mut Command::new("buildah"))
                .env("CONTAINERS_REGISTRIES_CONF", at("registries.conf"))
                .env("BUILDAH_ISOLATION", "chroot")
                .arg("--root")
                .arg(at("root"))
                .arg("--runroot")
                .arg(at("run"))
                .args(["--storage-driver", "vfs"])
                .args(arguments),
        )
    }
}

impl Client for Buildah {
    fn name(&self) -> &'static str {
        "buildah"
    }

    fn pull(&self, image: &str) -> Result<String, String> {
        let name = format!("docker.io/{image}");
        let policy = self.folder.path().join("policy.json").display().to_string();
        self.buildah(&["pull", "--signature-policy", &policy, &name])?;
        digest(&self.buildah(&["images", "--format", "{{.Digest}}", &name])?)
    }

    fn remove(&self, image: &str) {
        let removed = self.buildah(&["rmi", "--force", &format!("docker.io/{image}")]);
        removed.unwrap_or_else(|error| panic!("{error}"));
    }
}
