//! Helm: it knows no mirrors, so charts are named by the mirror.

use super::mirror::Mirror;
use super::tree::Tree;

const CA: &str = "usr/local/share/ca-certificates/tidegate.crt";

/// Helm 3.8 and newer, for charts in registries.
pub(super) fn helm(mirror: &Mirror) -> Tree {
    let mut tree = Tree::default();
    let trust = if mirror.plain {
        tree.note("`--plain-http` is known from Helm 3.13 on.");
        " --plain-http".to_owned()
    } else if let Some(ca) = &mirror.ca {
        tree.add(CA, ca.clone());
        tree.note("`update-ca-certificates` (Debian) makes the system trust the file; `--ca-file` (Helm 3.12) needs no such step.");
        format!(" --ca-file /{CA}")
    } else {
        String::new()
    };
    tree.note(format!(
        "Helm has no mirrors: a chart is named by the mirror, `helm pull oci://{}/{}/CHART --version VERSION{trust}`, and so \
         are dependencies in Chart.yaml and images in values.",
        mirror.host,
        mirror.example()
    ));
    if mirror.enforces() {
        tree.note(
            "What is named by the mirror is asked of nobody else. A chart that is named by its own registry passes by the \
             mirror, and Helm cannot be told otherwise; a proxy in HTTPS_PROXY that intercepts the registries sees it.",
        );
    } else {
        tree.note("A chart that is named by its own registry passes by the mirror, whatever the mirror would say.");
    }
    tree
}
