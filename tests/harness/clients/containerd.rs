//! containerd, told by a `hosts.toml`: it names the registry in the query parameter `ns`.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::{Client, digest, output};
use crate::HANG;
use crate::process::{Process, offline};

/// A daemon of its own, driven with `ctr`.
#[derive(Debug)]
pub struct Containerd {
    // Dropped before its folder.
    _daemon: Process,
    folder: TempDir,
}

impl Containerd {
    /// Starts the daemon.
    pub fn start(mirror: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{}\"\n",
            at("root"),
            at("state"),
            at("socket"),
        );
        fs::write(at("config.toml"), config).unwrap();
        fs::create_dir_all(at("hosts/docker.io")).unwrap();
        // The mirror is also the server: what it denies is denied.
        let hosts = format!(
            "server = \"http://{mirror}\"\n[host.\"http://{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::write(at("hosts/docker.io/hosts.toml"), hosts).unwrap();
        let daemon = Process::start(offline(&mut Command::new("containerd")).args(["--config", &at("config.toml")]));
        let ready = daemon.err.wait(0, HANG, |line| line.contains("containerd successfully booted").then_some(()));
        assert!(ready.is_some(), "containerd does not come up:\n{}", daemon.log());
        Self { _daemon: daemon, folder }
    }

    /// Pulls by a whole name as clients do that know of no mirror: `ctr` asks itself, through a proxy, by the folders of
    /// `hosts.toml` that are named.
    pub fn pull_behind(&self, proxy: &str, hosts: &Path, image: &str) -> Result<String, String> {
        let socket = self.folder.path().join("socket");
        let mut command = Command::new("ctr");
        for name in ["HTTPS_PROXY", "https_proxy"] {
            command.env(name, proxy);
        }
        command.env("NO_PROXY", "").env("no_proxy", "").arg("--address").arg(socket);
        output(command.args(["images", "pull", "--snapshotter", "native", "--hosts-dir"]).arg(hosts).arg(image))
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String, String> {
        let socket = self.folder.path().join("socket");
        output(offline(&mut Command::new("ctr")).arg("--address").arg(socket).args(arguments))
    }
}

impl Client for Containerd {
    fn name(&self) -> &'static str {
        "containerd"
    }

    fn pull(&self, image: &str) -> Result<String, String> {
        let name = format!("docker.io/{image}");
        let hosts = self.folder.path().join("hosts").display().to_string();
        self.ctr(&["images", "pull", "--snapshotter", "native", "--hosts-dir", &hosts, &name])?;
        digest(&self.ctr(&["images", "list", &format!("name=={name}")])?)
    }

    fn remove(&self, image: &str) {
        let removed = self.ctr(&["images", "rm", "--sync", &format!("docker.io/{image}")]);
        removed.unwrap_or_else(|error| panic!("{error}"));
        let left = self.ctr(&["content", "list", "--quiet"]).unwrap_or_else(|error| panic!("{error}"));
        assert!(left.is_empty(), "containerd kept {left}");
    }
}
