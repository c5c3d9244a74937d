//! Podman, Buildah, Skopeo and CRI-O: a drop-in of registries.conf, and the authority in certs.d.

use std::fmt::Write as _;

use super::mirror::Mirror;
use super::tree::{Tree, quoted};

/// Podman, and Buildah with it.
pub(super) fn podman(mirror: &Mirror) -> Tree {
    let mut tree = registries_conf(mirror);
    tree.note("It holds for the next pull of Podman and Buildah. A user without root has ~/.config/containers in place of /etc/containers.");
    tree
}

/// Skopeo, which can name the mirror too.
pub(super) fn skopeo(mirror: &Mirror) -> Tree {
    let mut tree = registries_conf(mirror);
    let verify = if mirror.plain { " --src-tls-verify=false" } else { "" };
    tree.note(format!(
        "It holds for the next command. Without it: `skopeo copy{verify} docker://{}/{}/NAME oci:NAME`, where nobody else \
         is asked.",
        mirror.host,
        mirror.example()
    ));
    if mirror.enforces() {
        tree.note(
            "Skopeo takes lists of tags from no mirror, and a blocked registry gives none: `inspect` needs `--no-tags`, and \
             `list-tags` fails, unless the image is named by the mirror.",
        );
    }
    tree
}

/// CRI-O.
pub(super) fn cri_o(mirror: &Mirror) -> Tree {
    let mut tree = registries_conf(mirror);
    tree.note("`systemctl reload crio` makes it hold; nothing is restarted.");
    tree
}

/// Keys and types: containers-registries.conf(5) and containers-certs.d(5), of any version that reads version 2 of the
/// format; `pull-from-mirror` (containers/image 5.22) is left at `all`, its default.
fn registries_conf(mirror: &Mirror) -> Tree {
    let mut tree = Tree::default();
    let mut text = String::new();
    for registry in &mirror.registries {
        let Some(location) = mirror.path(registry) else { continue };
        let name = quoted(registry.as_str());
        let _ = write!(text, "[[registry]]\nprefix = {name}\nlocation = {name}\n");
        if mirror.enforces() {
            text.push_str("blocked = true\n");
        }
        let _ = write!(text, "\n[[registry.mirror]]\nlocation = {}\n", quoted(&location));
        if mirror.plain {
            text.push_str("insecure = true\n");
        }
        text.push('\n');
    }
    tree.add("etc/containers/registries.conf.d/50-tidegate.conf", format!("{}\n", text.trim_end()));
    if let Some(ca) = &mirror.ca {
        tree.add(format!("etc/containers/certs.d/{}/ca.crt", mirror.host), ca.clone());
    }
    say(&mut tree, mirror);
    tree
}

fn say(tree: &mut Tree, mirror: &Mirror) {
    if mirror.enforces() {
        tree.note(
            "`blocked` beside a mirror means that only the mirror is asked, and that pushes to these registries are refused. \
             Another [[registry]] for a longer prefix, or for the same in a file that sorts behind this one, goes before \
             it.",
        );
    } else {
        tree.note("Where the mirror denies or fails, these clients ask the registry itself. For a denial that sticks: --enforce.");
    }
    let with_port = mirror.with_port();
    if !with_port.is_empty() {
        tree.note(format!(
            "Not in it: {}. These clients take no port inside a name: give such a registry a name without one, with its \
             address in `url`.",
            with_port.join(", ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client_config::mirror::Source;
    use crate::cli::client_config::mirror::tests::mirror;

    #[test]
    fn a_registry_with_a_port_is_named_not_forgotten() {
        let tree = registries_conf(&mirror("http://m.lan:5000", Source::Never, &["quay.io", "registry.lan:5000"]));
        assert!(tree.notes.iter().any(|note| note.contains("registry.lan:5000")), "{:?}", tree.notes);
    }
}
