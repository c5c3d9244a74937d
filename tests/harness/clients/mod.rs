//! The clients that people use, each with folders of its own.

mod buildah;
mod containerd;
mod docker;
mod podman;
mod skopeo;

use std::fs;
use std::process::Command;

use tempfile::TempDir;

pub use buildah::Buildah;
pub use containerd::Containerd;
pub use docker::Docker;
pub use podman::Podman;
pub use skopeo::Skopeo;

use crate::process::run;

/// A client that pulls images of docker.io through a mirror.
pub trait Client: Send + Sync {
    /// What people call it.
    fn name(&self) -> &'static str;

    /// Pulls an image such as `library/alpine:3`. Gives the digest of its manifest, else what the client printed.
    fn pull(&self, image: &str) -> Result<String, String>;

    /// Forgets an image and all its content, so that the next pull is a real one.
    fn remove(&self, image: &str);
}

/// Sets up a client for a mirror (host and port).
pub type SetUp = fn(&str) -> Box<dyn Client>;

/// Docker, containerd, Podman, Skopeo and Buildah.
pub const ALL: [SetUp; 5] = [
    |mirror| Box::new(Docker::start(mirror)),
    |mirror| Box::new(Containerd::start(mirror)),
    |mirror| Box::new(Podman::new(mirror)),
    |mirror| Box::new(Skopeo::new(mirror)),
    |mirror| Box::new(Buildah::new(mirror)),
];

/// All of them, pointed at one mirror.
pub fn all(mirror: &str) -> Vec<Box<dyn Client>> {
    ALL.iter().map(|set_up| set_up(mirror)).collect()
}

/// A folder with a `registries.conf` and a `policy.json`: docker.io is to be had from the mirror alone, so that what the
/// mirror denies is denied.
fn only_mirror(mirror: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let registries = format!(
        "unqualified-search-registries = []\n[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n\
         blocked = true\n[[registry.mirror]]\nlocation = \"{mirror}/docker.io\"\ninsecure = true\n"
    );
    fs::write(folder.path().join("registries.conf"), registries).unwrap();
    let policy = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;
    fs::write(folder.path().join("policy.json"), policy).unwrap();
    folder
}

/// Runs a command. Gives its standard output, or everything that it printed when it failed.
fn output(command: &mut Command) -> Result<String, String> {
    let output = run(command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{}\n{}", text(&output.stdout), text(&output.stderr)))
    }
}

/// The digest in a text such as `docker.io/library/alpine@sha256:...`.
fn digest(text: &str) -> Result<String, String> {
    let start = text.find("sha256:").ok_or_else(|| format!("no digest in {text:?}"))?;
    Ok(text[start..].chars().take_while(|sign| *sign == ':' || sign.is_ascii_alphanumeric()).collect())
}
