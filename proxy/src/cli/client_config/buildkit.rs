//! BuildKit: `buildkitd.toml`. It names the registry in `?ns=`, and always asks the registry itself last.

use std::fmt::Write as _;

use super::mirror::Mirror;
use super::tree::{Tree, quoted};

const CA: &str = "etc/buildkit/tidegate-ca.crt";

/// A daemon of its own, or a builder of buildx.
///
/// Keys and types: moby/buildkit, docs/buildkitd.toml.md.
pub(super) fn buildkit(mirror: &Mirror) -> Tree {
    let mut tree = Tree::default();
    let mut text = String::new();
    // A builder that is told of a mirror asks the registry itself where the mirror denies, and cannot be told otherwise.
    if !mirror.enforces() {
        for registry in &mirror.registries {
            let _ =
                write!(text, "[registry.{}]\n  mirrors = [{}]\n\n", quoted(registry.as_str()), quoted(&mirror.host));
        }
    }
    if mirror.plain {
        let _ = write!(text, "[registry.{}]\n  http = true\n", quoted(&mirror.host));
    }
    if let Some(ca) = &mirror.ca {
        let _ = write!(text, "[registry.{}]\n  ca = [{}]\n", quoted(&mirror.host), quoted(&format!("/{CA}")));
        tree.add(CA, ca.clone());
    }
    if !text.is_empty() {
        tree.add("etc/buildkit/buildkitd.toml", text);
    }
    tree.note(
        "buildkitd reads it at its start; for buildx: `docker buildx create --buildkitd-config buildkitd.toml`, which takes \
         the authority along. A builder in dockerd itself has what `tidegate client-config docker` says.",
    );
    let name = format!("FROM {}/{}/NAME", mirror.host, mirror.example());
    if mirror.enforces() {
        tree.note(format!(
            "BuildKit cannot be held to a denial by a mirror: it asks the registry itself then. So no mirror stands here; \
             an image that is named by the mirror is asked of nobody else: `{name}`. A proxy in HTTPS_PROXY of buildkitd \
             that intercepts the registries holds images by their own names."
        ));
    } else {
        tree.note(format!(
            "Where the mirror denies or fails, BuildKit asks the registry itself; it cannot be told otherwise. What is named \
             by the mirror is asked of nobody else: `{name}`."
        ));
    }
    tree
}
