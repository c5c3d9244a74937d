//! Docker Engine and Docker Desktop: `daemon.json`, which knows mirrors of docker.io only.

use serde_json::{Map, Value, json};

use super::mirror::Mirror;
use super::tree::Tree;
use crate::oci::Registry;

/// Docker Engine.
pub(super) fn engine(mirror: &Mirror) -> Tree {
    let mut tree = Tree::default();
    daemon(&mut tree, mirror, "etc/docker");
    let restarts = mirror.enforces() && mirror.intercepted.is_some();
    if !restarts {
        let reloads = tree.files.iter().any(|(path, _)| path.ends_with("daemon.json"));
        let when = if reloads { "`systemctl reload docker` makes it hold" } else { "It holds for the next pull" };
        tree.note(format!("{when}; nothing is restarted."));
    }
    say(&mut tree, mirror);
    if mirror.enforces() {
        intercept(&mut tree, mirror);
    }
    tree
}

/// Docker Desktop, whose engine lies in a machine of its own.
pub(super) fn desktop(mirror: &Mirror) -> Tree {
    let mut tree = Tree::default();
    daemon(&mut tree, mirror, ".docker");
    tree.note("~/.docker is in the user's home, where `--write` is to lead. daemon.json is what the page Docker Engine of the settings shows: `Apply & restart` there, or start Docker Desktop anew.");
    if mirror.ca.is_some() {
        tree.note(
            "On Windows an authority is trusted that is in the machine's own certificate store: import it there.",
        );
    }
    say(&mut tree, mirror);
    if mirror.enforces() {
        tree.note(
            "Docker Desktop passes over `proxies` of daemon.json: a proxy is named on the page Resources, Proxies.",
        );
    }
    tree
}

/// `daemon.json`, and the authority. Keys and types: docs.docker.com/reference/cli/dockerd, "Daemon configuration file".
fn daemon(tree: &mut Tree, mirror: &Mirror, folder: &str) {
    let mut keys = Map::new();
    // An engine that is told of a mirror asks docker.io itself where the mirror denies, and cannot be told otherwise.
    if !mirror.enforces() && serves_hub(mirror) {
        keys.insert("registry-mirrors".to_owned(), json!([mirror.url]));
    }
    if mirror.plain {
        keys.insert("insecure-registries".to_owned(), json!([mirror.host]));
    }
    if !keys.is_empty() {
        let text = serde_json::to_string_pretty(&Value::Object(keys)).unwrap_or_default();
        tree.add(format!("{folder}/daemon.json"), format!("{text}\n"));
    }
    if let Some(ca) = &mirror.ca {
        tree.add(format!("{folder}/certs.d/{}/ca.crt", mirror.host), ca.clone());
    }
}

/// dockerd goes through the proxy, which stands in for the registries: a denial sticks, and names stay what they are.
///
/// Docker Hub is asked with what the system trusts, and nothing else.
fn intercept(tree: &mut Tree, mirror: &Mirror) {
    let Some((registries, ca)) = &mirror.intercepted else {
        tree.note(
            "With `[intercept]` in the proxy's configuration this also writes what leads dockerd through it by HTTPS_PROXY, \
             so that images are held by their own names.",
        );
        return;
    };
    tree.add(
        "etc/systemd/system/docker.service.d/50-tidegate.conf",
        format!(
            "[Service]\nEnvironment=HTTPS_PROXY={} NO_PROXY=localhost,127.0.0.0/8,{}\n",
            mirror.url,
            mirror.host_alone()
        ),
    );
    // The way to a proxy that speaks TLS is trusted as the system trusts, whatever stands in certs.d.
    let mut system = Vec::new();
    if let Some(mirrors) = &mirror.ca {
        tree.add("usr/local/share/ca-certificates/tidegate-mirror.crt", mirrors.clone());
        system.push("the mirror itself, which speaks TLS");
    }
    for registry in registries {
        let file = match registry.as_str() {
            Registry::DOCKER_HUB => {
                system.push("docker.io");
                "usr/local/share/ca-certificates/tidegate.crt".to_owned()
            }
            name => format!("etc/docker/certs.d/{name}/tidegate.crt"),
        };
        tree.add(file, ca.clone());
    }
    let names: Vec<_> = registries.iter().map(Registry::as_str).collect();
    tree.note(format!(
        "By HTTPS_PROXY dockerd reaches {} through the proxy alone, by their own names: `systemctl daemon-reload && \
         systemctl restart docker`.",
        names.join(", ")
    ));
    if !system.is_empty() {
        tree.note(format!(
            "Before that the system must trust the authorities in /usr/local/share/ca-certificates, for {}: \
             `update-ca-certificates` (Debian).",
            system.join(" and ")
        ));
    }
}

/// Whether a request that names no registry is one for docker.io, and docker.io is asked for.
fn serves_hub(mirror: &Mirror) -> bool {
    mirror.default_registry.as_str() == Registry::DOCKER_HUB
        && mirror.registries.iter().any(|registry| registry.as_str() == Registry::DOCKER_HUB)
}

fn say(tree: &mut Tree, mirror: &Mirror) {
    if mirror.default_registry.as_str() != Registry::DOCKER_HUB {
        tree.note(format!(
            "No `registry-mirrors`: docker names no registry in what it asks a mirror, and the proxy would take that for \
             {} (`default_registry`).",
            mirror.default_registry
        ));
    }
    let by_name = |registry: &str| format!("docker pull {}/{registry}/NAME", mirror.host);
    if mirror.enforces() {
        let left_out =
            "`registry-mirrors` cannot be held to a denial: docker asks docker.io itself then. So it is left out";
        match (&mirror.intercepted, mirror.not_intercepted()) {
            (None, _) => tree.note(format!(
                "{left_out}, and images are named by the mirror, which is the only one asked: `{}`.",
                by_name(mirror.example())
            )),
            (Some(_), Some(other)) => tree.note(format!(
                "{left_out}, and images of registries that are not intercepted are named by the mirror, which is the only \
                 one asked: `{}`.",
                by_name(other.as_str())
            )),
            (Some(_), None) => tree.note(format!("{left_out}: all of these registries are intercepted.")),
        }
        tree.note("What no policy must be passed by is closed in the network too: the way to registries, for all but the proxy.");
    } else {
        tree.note(format!(
            "`registry-mirrors` is for docker.io alone; any registry by the mirror's name: `{}`.",
            by_name(mirror.example())
        ));
        tree.note(
            "Where the mirror denies or fails, docker asks docker.io itself. For a denial that sticks: --enforce.",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client_config::mirror::Source;
    use crate::cli::client_config::mirror::tests::mirror;

    fn held(address: &str, registries: &[&str], intercepted: &[&str]) -> Tree {
        let mut mirror = mirror(address, Source::Never, registries);
        let intercepted = intercepted.iter().map(|name| Registry::parse(name).expect("a registry")).collect();
        mirror.intercepted = Some((intercepted, "-----BEGIN CERTIFICATE-----\n".to_owned()));
        engine(&mirror)
    }

    #[test]
    fn the_system_trusts_a_proxy_that_speaks_tls() {
        const FILE: &str = "usr/local/share/ca-certificates/tidegate-mirror.crt";
        for (address, trusts) in [("https://m.lan:5000", true), ("http://m.lan:5000", false)] {
            let tree = held(address, &["quay.io"], &["quay.io"]);
            assert_eq!(tree.files.iter().any(|(path, _)| path.ends_with(FILE)), trusts, "{address}");
            assert_eq!(tree.notes.iter().any(|note| note.contains("update-ca-certificates")), trusts, "{address}");
        }
    }

    #[test]
    fn what_is_intercepted_is_not_to_be_named_by_the_mirror() {
        for (registries, named) in [(&["ghcr.io", "quay.io"][..], true), (&["quay.io"], false)] {
            let told = held("http://m.lan:5000", registries, &["quay.io"]).notes.join("\n");
            assert_eq!(told.contains("m.lan:5000/ghcr.io/NAME"), named, "{told}");
            assert!(!told.contains("m.lan:5000/quay.io") && !told.contains("reload docker"), "{told}");
        }
    }
}
