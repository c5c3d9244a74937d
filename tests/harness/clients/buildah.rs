//! Buildah, as far as it pushes: it names the registry and the repository.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::output;
use crate::process::offline;

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
