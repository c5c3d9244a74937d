//! Buildah, told by a `registries.conf` as Podman is: it names the registry by the first segment of the path.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

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

    /// Runs a command of it. Gives what it printed.
    pub fn buildah(&self, arguments: &[&str]) -> Result<String, String> {
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

/// Takes an image from a layout and pushes it to a registry, under a name of it.
pub fn push(layout: &Path, name: &str) -> Result<String, String> {
    // It names an image by the folder that it comes from, and a name has no capital letters.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let own = format!("buildah-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let folder = tempfile::Builder::new().prefix(&own).rand_bytes(0).tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    symlink(layout, at("layout")).unwrap();
    fs::write(at("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    let buildah = |verb: &str, arguments: &[&str]| {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(at("root")).arg("--runroot").arg(at("run")).args(["--storage-driver", "vfs", verb]);
        output(offline(&mut command).arg("--signature-policy").arg(at("policy.json")).args(arguments))
    };
    let id = buildah("pull", &["--quiet", &format!("oci:{}:image", at("layout").display())])?;
    buildah("push", &["--tls-verify=false", id.lines().last().unwrap_or_default(), &format!("docker://{name}")])
}
