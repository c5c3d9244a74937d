//! containerd: a folder with a `hosts.toml` for each registry. containerd itself names the registry, in `?ns=`.

use super::mirror::Mirror;
use super::tree::{Tree, quoted};
use crate::oci::Registry;

/// Where the folders lie.
pub(super) const CERTS_DIR: &str = "etc/containerd/certs.d";

/// The authority, beside the folders: containerd reads a relative path from the folder of the `hosts.toml`.
const CA: &str = "tidegate-ca.crt";

/// containerd, for CRI, ctr and nerdctl.
pub(super) fn containerd(mirror: &Mirror) -> Tree {
    let mut tree = Tree::default();
    hosts(&mut tree, mirror);
    tree.note(
        "A change holds for the next pull; nothing is restarted. CRI reads the folder where config.toml says so: \
         `config_path = \"/etc/containerd/certs.d\"` in [plugins.\"io.containerd.grpc.v1.cri\".registry] (containerd 1.5 \
         to 1.7) or [plugins.\"io.containerd.cri.v1.images\".registry] (2.x). ctr: `--hosts-dir /etc/containerd/certs.d`.",
    );
    say(&mut tree, mirror);
    tree
}

/// The folders.
pub(super) fn hosts(tree: &mut Tree, mirror: &Mirror) {
    for registry in &mirror.registries {
        tree.add(format!("{CERTS_DIR}/{registry}/hosts.toml"), hosts_toml(mirror, registry));
    }
    if let Some(ca) = &mirror.ca {
        tree.add(format!("{CERTS_DIR}/{CA}"), ca.clone());
    }
}

/// What a denial means.
pub(super) fn say(tree: &mut Tree, mirror: &Mirror) {
    if mirror.enforces() {
        tree.note(
            "`server` is the mirror, with the registry in its path, since containerd names none when it pushes: nobody else is \
             asked, for pulls and for pushes. Registries without a folder are still asked directly.",
        );
    } else {
        tree.note("Where the mirror denies or fails, containerd asks the registry itself. For a denial that sticks: --enforce.");
    }
}

/// Keys and types: containerd, docs/hosts.md. A file without a `[host]` table is refused by containerd 1.6, so the mirror
/// is host and server both. In a push containerd sends no `ns`, so a server that is the mirror has the registry in its path.
fn hosts_toml(mirror: &Mirror, registry: &Registry) -> String {
    let ca = mirror.ca.as_ref().map(|_| format!("ca = {}\n", quoted(&format!("../{CA}"))));
    let ca = ca.unwrap_or_default();
    let (server, more) = if mirror.enforces() {
        (format!("{}/v2/{registry}", mirror.url), format!("override_path = true\n{ca}"))
    } else {
        (source(registry), String::new())
    };
    let indented = if ca.is_empty() { String::new() } else { format!("  {ca}") };
    format!(
        "server = {}\n{more}\n[host.{}]\n  capabilities = [\"pull\", \"resolve\"]\n{indented}",
        quoted(&server),
        quoted(&mirror.url)
    )
}

/// Where containerd goes without any file.
fn source(registry: &Registry) -> String {
    match registry.as_str() {
        Registry::DOCKER_HUB => "https://registry-1.docker.io".to_owned(),
        name => format!("https://{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client_config::mirror::Source;
    use crate::cli::client_config::mirror::tests::mirror;

    #[test]
    fn the_source_is_asked_last_or_never() {
        for (address, source, registry, text) in [
            (
                "http://m:5000",
                Source::Last,
                "docker.io",
                "server = \"https://registry-1.docker.io\"\n\n[host.\"http://m:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
            ),
            (
                "https://m:5000",
                Source::Never,
                "quay.io",
                "server = \"https://m:5000/v2/quay.io\"\noverride_path = true\nca = \"../tidegate-ca.crt\"\n\n[host.\"https://m:5000\"]\n  \
                 capabilities = [\"pull\", \"resolve\"]\n  ca = \"../tidegate-ca.crt\"\n",
            ),
        ] {
            let mirror = mirror(address, source, &[registry]);
            assert_eq!(hosts_toml(&mirror, &mirror.registries[0]), text);
        }
    }
}
