//! k3s and RKE2: `registries.yaml`, of which they make containerd's `hosts.toml` files.

use std::fmt::Write as _;

use super::mirror::Mirror;
use super::tree::{Tree, quoted};

const FOLDER: &str = "etc/rancher/k3s";

/// k3s. containerd names the registry in `?ns=`, so that nothing needs to be rewritten.
///
/// Keys and types: docs.k3s.io/installation/private-registry.
pub(super) fn k3s(mirror: &Mirror) -> Tree {
    let mut tree = Tree::default();
    let mut text = "mirrors:\n".to_owned();
    for registry in &mirror.registries {
        let _ = write!(text, "  {}:\n    endpoint:\n      - {}\n", quoted(registry.as_str()), quoted(&mirror.url));
    }
    if let Some(ca) = &mirror.ca {
        let file = format!("{FOLDER}/tidegate-ca.crt");
        let host = quoted(&mirror.host);
        let _ = write!(text, "configs:\n  {host}:\n    tls:\n      ca_file: {}\n", quoted(&format!("/{file}")));
        tree.add(file, ca.clone());
    }
    tree.add(format!("{FOLDER}/registries.yaml"), text);
    if mirror.enforces() {
        let key = "disable-default-registry-endpoint: true\n";
        tree.add(format!("{FOLDER}/config.yaml.d/50-tidegate.yaml"), key);
        tree.note(
            "`disable-default-registry-endpoint` makes it stick, for the registries of this file. k3s knows it from \
             v1.26.13, v1.27.10, v1.28.6 and v1.29.1 on; older ones ask the registry itself where the mirror denies.",
        );
    } else {
        tree.note(
            "Where the mirror denies or fails, k3s asks the registry itself. For a denial that sticks: --enforce.",
        );
    }
    tree.note("Each node needs it, and reads it at its start: `systemctl restart k3s` (agents: k3s-agent).");
    tree.note("RKE2 reads the same files below /etc/rancher/rke2.");
    tree
}
