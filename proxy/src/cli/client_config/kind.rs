//! kind: the cluster's configuration, which mounts containerd's folders into its nodes.

use std::path::Path;

use super::containerd::{self, CERTS_DIR};
use super::mirror::Mirror;
use super::tree::{Tree, quoted};

/// kind. `dir` is where the files will lie.
///
/// Keys and types: kind.sigs.k8s.io/docs/user/configuration, and docs/user/local-registry for the patch, which nodes of
/// kind 0.27 and newer have by default.
pub(super) fn kind(mirror: &Mirror, dir: Option<&Path>) -> Tree {
    let mut tree = Tree::default();
    let folder = dir.map_or_else(|| Path::new("/").join(CERTS_DIR), |dir| dir.join(CERTS_DIR));
    // kind starts anywhere: a path that is relative would mean something else there.
    let folder = std::path::absolute(&folder).unwrap_or(folder).display().to_string();
    let text = format!(
        "kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
containerdConfigPatches:
  - |-
    [plugins.\"io.containerd.grpc.v1.cri\".registry]
      config_path = \"/etc/containerd/certs.d\"
nodes:
  - role: control-plane
    extraMounts:
      - hostPath: {}
        containerPath: /etc/containerd/certs.d
        readOnly: true
",
        quoted(&folder)
    );
    tree.add("kind.yaml", text);
    containerd::hosts(&mut tree, mirror);
    tree.note("`kind create cluster --config kind.yaml`. Every further node needs the same extraMounts.");
    tree.note(
        "A node has a loopback address of its own: the mirror is told by an address that nodes reach, such as the gateway \
         of the docker network `kind`. A change in the folder holds for the next pull.",
    );
    containerd::say(&mut tree, mirror);
    tree
}
