//! Docker Engine, with the classic image store: `registry-mirrors`, so neither `ns` nor a host in the path.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::{Client, digest, output};
use crate::HANG;
use crate::process::{Process, offline};

/// How long the log of a failed pull is waited for.
const SOON: Duration = Duration::from_secs(5);

/// Keeps layers anywhere.
const VFS: &str = "--storage-driver=vfs";

/// A daemon of its own, which starts a containerd of its own.
#[derive(Debug)]
pub struct Docker {
    daemon: Process,
    folder: TempDir,
}

impl Docker {
    /// Starts the daemon.
    pub fn start(mirror: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mirror = format!("--registry-mirror=http://{mirror}");
        Self::launch(folder, offline(&mut Command::new("dockerd")), &[VFS, &mirror])
    }

    /// Starts one that keeps layers as people's does, where the folders for temporary files can hold such.
    pub fn on_overlay() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::launch(folder, offline(&mut Command::new("dockerd")), &["--storage-driver=overlay2"])
    }

    /// Starts the daemon as it is, with a proxy on its way out, on a machine of which it sees other folders in `/etc`:
    /// first `install`, lines of shell, is run there.
    pub fn behind(proxy: &str, install: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let own = |name: &str, place: &str| {
            let copy = folder.path().join(name).display().to_string();
            format!("mkdir -p {place} {copy}; cp -a {place}/. {copy}; mount --bind {copy} {place}\n")
        };
        let machine = [
            own("docker", "/etc/docker"),
            own("certs", "/etc/ssl/certs"),
            own("local", "/usr/local/share/ca-certificates"),
        ];
        let script = format!("{}{install}\nexec dockerd \"$@\"", machine.concat());
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", &script, "sh"]);
        for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"] {
            command.env(name, proxy);
        }
        Self::launch(folder, command.env("NO_PROXY", "").env("no_proxy", ""), &[VFS])
    }

    fn launch(folder: TempDir, command: &mut Command, more: &[&str]) -> Self {
        let at = |name: &str| folder.path().join(name).display().to_string();
        // Not the machine's own configuration.
        fs::write(at("daemon.json"), "{}").unwrap();
        let daemon = Process::start(
            command
                .args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")])
                .args(["--config-file", &at("daemon.json"), "--host", &format!("unix://{}", at("socket"))])
                .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
                .args(more),
        );
        let ready = daemon.err.wait(0, HANG, |line| line.contains("API listen on").then_some(()));
        assert!(ready.is_some(), "dockerd does not come up:\n{}", daemon.log());
        Self { daemon, folder }
    }

    /// What the daemon logs: the answers of a mirror stand only there.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// Makes an image of an archive, under a name of a registry, and pushes it there.
    pub fn import_and_push(&self, archive: &Path, name: &str) -> Result<String, String> {
        self.docker(&["import", &archive.display().to_string(), name])?;
        digest(&self.docker(&["push", name])?)
    }

    /// Runs a command of it. Gives what it printed.
    pub fn docker(&self, arguments: &[&str]) -> Result<String, String> {
        let socket = format!("unix://{}", self.folder.path().join("socket").display());
        let configuration = self.folder.path().join("cli");
        output(Command::new("docker").arg("--config").arg(configuration).args(["--host", &socket]).args(arguments))
    }
}

impl Client for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn pull(&self, image: &str) -> Result<String, String> {
        let before = self.daemon.err.count();
        self.docker(&["pull", image]).map_err(|text| {
            // The daemon's word on the mirror is in its log, and comes to us by another way than its answer.
            let _ = self.daemon.err.wait(before, SOON, |line| line.contains("level=").then_some(()));
            format!("{text}\n{}", self.log())
        })?;
        digest(&self.docker(&["image", "inspect", "--format", "{{index .RepoDigests 0}}", image])?)
    }

    fn remove(&self, image: &str) {
        self.docker(&["image", "rm", "--force", image]).unwrap_or_else(|error| panic!("{error}"));
    }
}
