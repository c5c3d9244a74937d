//! OpenShift: the mirror sets, and what the cluster's image configuration must know of the mirror.

use std::fmt::Write as _;

use super::mirror::Mirror;
use super::tree::{Tree, quoted};

const NAME: &str = "tidegate";

/// OpenShift 4.13 and newer.
///
/// Keys and types: the API reference of config.openshift.io/v1, `ImageDigestMirrorSet`, `ImageTagMirrorSet`, Image.
pub(super) fn openshift(mirror: &Mirror) -> Tree {
    let mut tree = Tree::default();
    tree.add("openshift/imagedigestmirrorset.yaml", mirror_set(mirror, "ImageDigestMirrorSet", "imageDigestMirrors"));
    tree.add("openshift/imagetagmirrorset.yaml", mirror_set(mirror, "ImageTagMirrorSet", "imageTagMirrors"));
    if let Some(ca) = &mirror.ca {
        tree.add("openshift/configmap.yaml", config_map(mirror, ca));
    }
    let patch = image_patch(mirror);
    if !patch.is_empty() {
        tree.add("openshift/image-patch.yaml", format!("spec:\n{patch}"));
        tree.note(
            "`oc patch image.config.openshift.io/cluster --type merge --patch-file openshift/image-patch.yaml`: it replaces \
             a list or a config map that is named there already; add to those what stands here.",
        );
    }
    tree.note(
        "`oc apply -f` the mirror sets (and before them the config map). The machine config operator brings them to the \
         nodes; to change or delete a set later drains nodes.",
    );
    if mirror.enforces() {
        tree.note(
            "NeverContactSource blocks these registries beside the mirror, on every node. The cluster's own images come \
             through the mirror then too: apply it where the mirror runs outside of the cluster.",
        );
    } else {
        tree.note(
            "Where the mirror denies or fails, nodes ask the registry itself. For a denial that sticks: --enforce.",
        );
    }
    let with_port = mirror.with_port();
    if !with_port.is_empty() {
        tree.note(format!("Not in it: {}, since no port can stand inside a name.", with_port.join(", ")));
    }
    tree
}

fn mirror_set(mirror: &Mirror, kind: &str, key: &str) -> String {
    let policy = if mirror.enforces() { "NeverContactSource" } else { "AllowContactingSource" };
    let mut text =
        format!("apiVersion: config.openshift.io/v1\nkind: {kind}\nmetadata:\n  name: {NAME}\nspec:\n  {key}:\n");
    for registry in &mirror.registries {
        let Some(location) = mirror.path(registry) else { continue };
        let _ = write!(
            text,
            "    - source: {}\n      mirrors:\n        - {}\n      mirrorSourcePolicy: {policy}\n",
            quoted(registry.as_str()),
            quoted(&location)
        );
    }
    text
}

/// Its key is the mirror's host; a port stands behind two dots, since a key takes no colon.
fn config_map(mirror: &Mirror, ca: &str) -> String {
    let key = mirror.host.replacen(':', "..", 1);
    let mut text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {NAME}-ca\n  namespace: openshift-config\ndata:\n  {}: |\n",
        quoted(&key)
    );
    for line in ca.lines() {
        let _ = writeln!(text, "    {line}");
    }
    text
}

fn image_patch(mirror: &Mirror) -> String {
    let mut text = String::new();
    if mirror.ca.is_some() {
        let _ = write!(text, "  additionalTrustedCA:\n    name: {NAME}-ca\n");
    }
    if mirror.plain {
        let _ = write!(text, "  registrySources:\n    insecureRegistries:\n      - {}\n", quoted(&mirror.host));
    }
    text
}
