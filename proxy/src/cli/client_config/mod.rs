//! `tidegate client-config CLIENT`: the files that point a client at this proxy, printed or written.
//!
//! Each client has a file; `mirror` is the proxy as clients see it, `tree` the files, and how they are written.

// Names of products are no code.
#![allow(clippy::doc_markdown)]

mod buildkit;
mod containerd;
mod containers;
mod docker;
mod helm;
mod k3s;
mod kind;
mod mirror;
mod openshift;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;

use super::EXIT_BAD_INPUT;
use crate::config::Config;
use mirror::Mirror;
use tree::Tree;

/// Words behind `tidegate client-config`.
#[derive(clap::Args)]
pub(super) struct ClientConfig {
    /// For whom
    client: Client,
    /// So that what the mirror denies is denied: nobody else is asked. Says where a client cannot be held to it
    #[arg(long)]
    enforce: bool,
    /// How clients reach the proxy: HOST, HOST:PORT or an address with http:// or https:// [default: `listen`]
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// The authority that vouches for the proxy's certificate, in PEM [default: what `[tls] certificate` ends in]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Only for this registry; may be repeated [default: all that the proxy serves]
    #[arg(long = "registry", value_name = "NAME")]
    registries: Vec<String>,
    /// Write the files below this folder, as they lie on the client's machine
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// Write over files that have other content
    #[arg(long, requires = "write")]
    force: bool,
}

/// The clients that there are files for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Client {
    Docker,
    DockerDesktop,
    Containerd,
    K3s,
    Kind,
    #[value(name = "cri-o")]
    CriO,
    Podman,
    Openshift,
    Buildkit,
    Skopeo,
    Helm,
}

impl Client {
    /// Whether its files cannot name a mirror by an IPv6 address: containers/image takes none in a location, and containerd
    /// no brackets in the name of a table (containerd/containerd#10055).
    fn takes_no_ipv6_address(self) -> bool {
        match self {
            Self::Containerd | Self::K3s | Self::Kind | Self::CriO | Self::Podman | Self::Openshift | Self::Skopeo => {
                true
            }
            Self::Docker | Self::DockerDesktop | Self::Buildkit | Self::Helm => false,
        }
    }
}

impl ClientConfig {
    pub(super) fn run(&self, config: &Config) -> ExitCode {
        let mirror = match Mirror::of(config, self) {
            Ok(mirror) => mirror,
            Err(reason) => return refuse(&reason),
        };
        let mut tree = self.tree(&mirror);
        tree.notes.extend(mirror.notes());
        let Some(dir) = &self.write else {
            tree.print();
            return ExitCode::SUCCESS;
        };
        match tree.write(dir, self.force) {
            Ok(()) => ExitCode::SUCCESS,
            Err(reason) => refuse(&reason),
        }
    }

    fn tree(&self, mirror: &Mirror) -> Tree {
        match self.client {
            Client::Docker => docker::engine(mirror),
            Client::DockerDesktop => docker::desktop(mirror),
            Client::Containerd => containerd::containerd(mirror),
            Client::K3s => k3s::k3s(mirror),
            Client::Kind => kind::kind(mirror, self.write.as_deref()),
            Client::CriO => containers::cri_o(mirror),
            Client::Podman => containers::podman(mirror),
            Client::Openshift => openshift::openshift(mirror),
            Client::Buildkit => buildkit::buildkit(mirror),
            Client::Skopeo => containers::skopeo(mirror),
            Client::Helm => helm::helm(mirror),
        }
    }
}

fn refuse(reason: &str) -> ExitCode {
    eprintln!("tidegate: {reason}");
    ExitCode::from(EXIT_BAD_INPUT)
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod schema_tests;
