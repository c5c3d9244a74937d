//! A machine on which generated files lie where clients look for them: the clients run in a mount namespace, with these
//! files laid over /etc. The way out is a proxy that lets nobody out and remembers who wanted to go where.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::HANG;
use crate::forward::Forward;
use crate::process::{Process, offline, run};

/// Lays the tree `$1` over /etc; what is written there goes to memory. Then becomes the program behind the two folders.
const OVERLAY: &str = "tree=$1; scratch=$2; shift 2; mkdir -p \"$tree/etc\" \"$scratch/etc\"; \
    mount -t tmpfs none \"$scratch/etc\"; mkdir \"$scratch/etc/upper\" \"$scratch/etc/work\"; \
    mount -t overlay overlay -o \"lowerdir=$tree/etc:/etc,upperdir=$scratch/etc/upper,workdir=$scratch/etc/work\" /etc; \
    exec \"$@\"";

/// Such a machine. Everything that clients keep lies in a folder that goes with it.
#[derive(Debug)]
pub struct Machine {
    tree: PathBuf,
    way_out: Forward,
    // Dropped before the folder.
    dockerd: Option<Process>,
    scratch: TempDir,
}

/// What a client printed: as it was asked, or not.
pub type Printed = Result<String, String>;

impl Machine {
    /// The tree has a folder `etc`, if any.
    pub fn new(tree: &Path) -> Self {
        // Nobody knows this password, so nobody is let out.
        let way_out = Forward::start(Some("nobody".to_owned()));
        Self { tree: tree.to_owned(), way_out, dockerd: None, scratch: tempfile::tempdir().unwrap() }
    }

    /// The hosts that clients wanted to reach beside loopback, such as `registry-1.docker.io:443`.
    pub fn wanted(&self) -> Vec<String> {
        let host = |line: &str| line.split(' ').nth(1).unwrap_or_default().to_owned();
        self.way_out.seen().iter().map(|asked| host(&asked.line)).collect()
    }

    /// What a drop-in of dockerd's unit puts into its environment.
    fn unit_environment(&self) -> Vec<(String, String)> {
        let drop_in = fs::read_to_string(self.tree.join("etc/systemd/system/docker.service.d/50-tidegate.conf"));
        let drop_in = drop_in.unwrap_or_default();
        let lines = drop_in.lines().filter_map(|line| line.strip_prefix("Environment="));
        let pairs = lines.flat_map(str::split_whitespace).filter_map(|word| word.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn at(&self, name: &str) -> String {
        self.scratch.path().join(name).display().to_string()
    }

    /// A program that finds the tree in /etc.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", OVERLAY, "sh"]).arg(&self.tree).arg(self.scratch.path()).arg(program);
        self.fence(&mut command);
        command
    }

    fn fence(&self, command: &mut Command) {
        let proxy = format!("http://{}", self.way_out.authority());
        offline(command);
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.env(name, &proxy);
        }
    }

    /// `podman pull`.
    pub fn podman(&self, image: &str) -> Printed {
        let mut command = self.command("podman");
        command.args(["--root", &self.at("podman"), "--runroot", &self.at("podman-run")]);
        command.args(["--tmpdir", &self.at("podman-tmp"), "--storage-driver", "vfs"]);
        printed(command.args(["pull", image]))
    }

    /// `buildah pull`.
    pub fn buildah(&self, image: &str) -> Printed {
        let mut command = self.command("buildah");
        command.args(["--root", &self.at("buildah"), "--runroot", &self.at("buildah-run"), "--storage-driver", "vfs"]);
        printed(command.args(["pull", "--retry-delay", "0s", image]))
    }

    /// `skopeo copy` into a folder.
    pub fn skopeo(&self, image: &str) -> Printed {
        let (from, to) = (format!("docker://{image}"), format!("dir:{}", self.at("skopeo")));
        printed(self.command("skopeo").args(["--insecure-policy", "copy", &from, &to]))
    }

    /// `ctr images pull`, by a daemon that is started for it: ctr itself asks the registries.
    pub fn ctr(&self, image: &str) -> Printed {
        let (_daemon, socket) = self.containerd();
        self.ctr_pull(&socket, image)
    }

    /// Pulls an image, and pushes it by another name.
    pub fn ctr_pull_and_push(&self, image: &str, name: &str) -> Printed {
        let (_daemon, socket) = self.containerd();
        self.ctr_pull(&socket, image)?;
        printed(self.command("ctr").args(["--address", &socket, "images", "tag", "--force", image, name]))?;
        let mut command = self.command("ctr");
        command.args(["--address", &socket, "images", "push"]);
        printed(command.args(["--hosts-dir", "/etc/containerd/certs.d", name]))
    }

    fn ctr_pull(&self, socket: &str, image: &str) -> Printed {
        let mut command = self.command("ctr");
        command.args(["--address", socket, "images", "pull", "--snapshotter", "native"]);
        printed(command.args(["--hosts-dir", "/etc/containerd/certs.d", image]))
    }

    /// A daemon, and its socket.
    fn containerd(&self) -> (Process, String) {
        let (config, socket) = (self.at("containerd.toml"), self.at("containerd.sock"));
        let text = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{socket}\"\n",
            self.at("containerd"),
            self.at("containerd-run"),
        );
        fs::write(&config, text).unwrap();
        let daemon = Process::start(offline(&mut Command::new("containerd")).args(["--config", &config]));
        let ready = daemon.err.wait(0, HANG, |line| line.contains("containerd successfully booted").then_some(()));
        assert!(ready.is_some(), "containerd does not come up:\n{}", daemon.log());
        (daemon, socket)
    }

    /// `docker pull`, by a daemon that is started with the first of them.
    pub fn docker(&mut self, image: &str) -> Printed {
        let socket = format!("unix://{}", self.at("docker.sock"));
        if self.dockerd.is_none() {
            let mut command = self.command("dockerd");
            command.envs(self.unit_environment());
            command.args(["--data-root", &self.at("docker"), "--exec-root", &self.at("docker-run")]);
            command.args(["--pidfile", &self.at("docker.pid"), "--host", &socket]);
            command.args(["--storage-driver=vfs", "--bridge=none", "--iptables=false", "--ip6tables=false"]);
            let daemon = Process::start(&mut command);
            let ready = daemon.err.wait(0, HANG, |line| line.contains("API listen on").then_some(()));
            assert!(ready.is_some(), "dockerd does not come up:\n{}", daemon.log());
            self.dockerd = Some(daemon);
        }
        let cli = self.at("docker-cli");
        printed(Command::new("docker").args(["--config", &cli, "--host", &socket, "pull", image]))
    }
}

/// All that a command prints.
fn printed(command: &mut Command) -> Printed {
    let output = run(command);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(text) } else { Err(text) }
}
