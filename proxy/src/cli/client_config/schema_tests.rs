//! Every generated file against what its reader documents: by the readers of the formats where there is one, else by a table
//! of keys and their types.

use std::path::Path;

use clap::ValueEnum;
use tidegate_formats::{Content, Node, Value};

use super::mirror::Source;
use super::mirror::tests::mirror;
use super::tree::Tree;
use super::{Client, ClientConfig};

/// A file, where its keys are documented, and its keys with their types.
type Schema = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Keys and types of files that no reader here reads; `*` is a name that the user chooses, `[]` an item of a list.
const TABLES: [Schema; 5] = [
    (
        "etc/buildkit/buildkitd.toml",
        "moby/buildkit, docs/buildkitd.toml.md; util/resolver/config RegistryConfig",
        &[("registry.*.mirrors.[]", "a text"), ("registry.*.http", "true or false"), ("registry.*.ca.[]", "a text")],
    ),
    (
        "kind.yaml",
        "kind.sigs.k8s.io/docs/user/configuration, v1alpha4",
        &[
            ("kind", "a text"),
            ("apiVersion", "a text"),
            ("containerdConfigPatches.[]", "a text"),
            ("nodes.[].role", "a text"),
            ("nodes.[].extraMounts.[].hostPath", "a text"),
            ("nodes.[].extraMounts.[].containerPath", "a text"),
            ("nodes.[].extraMounts.[].readOnly", "true or false"),
        ],
    ),
    (
        "etc/rancher/k3s/config.yaml.d/50-tidegate.yaml",
        "docs.k3s.io/installation/private-registry, default endpoint fallback",
        &[("disable-default-registry-endpoint", "true or false")],
    ),
    (
        "openshift/image-patch.yaml",
        "config.openshift.io/v1 Image",
        &[("spec.additionalTrustedCA.name", "a text"), ("spec.registrySources.insecureRegistries.[]", "a text")],
    ),
    (
        "openshift/configmap.yaml",
        "core v1 ConfigMap",
        &[
            ("apiVersion", "a text"),
            ("kind", "a text"),
            ("metadata.name", "a text"),
            ("metadata.namespace", "a text"),
            ("data.*", "a text"),
        ],
    ),
];

fn asked(client: Client) -> ClientConfig {
    ClientConfig { client, enforce: false, address: None, ca: None, registries: Vec::new(), write: None, force: false }
}

fn leaves(node: &Node, path: &str, found: &mut Vec<(String, &'static str)>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match &node.value {
        Value::List(items) => items.iter().for_each(|item| leaves(item, &below("[]"), found)),
        Value::Table(entries) => entries.iter().for_each(|entry| {
            // What stands under these two is named by the user.
            let key = if matches!(path, "registry" | "data") { "*" } else { &*entry.key };
            leaves(&entry.node, &below(key), found);
        }),
        _ => found.push((path.to_owned(), node.kind())),
    }
}

#[test]
fn every_generated_file_is_what_its_reader_documents() {
    let mut files = 0;
    for client in Client::value_variants() {
        for (address, source) in [
            ("http://m.lan:5000", Source::Last),
            ("http://m.lan:5000", Source::Never),
            ("https://m.lan", Source::Last),
            ("https://m.lan", Source::Never),
        ] {
            let tree = asked(*client).tree(&mirror(address, source, &["docker.io", "quay.io"]));
            assert!(!tree.notes.is_empty(), "{client:?} says nothing");
            files += tree.files.len();
            check(&tree, *client);
        }
    }
    assert!(files > 60, "{files} files");
}

fn check(tree: &Tree, client: Client) {
    for (path, text) in &tree.files {
        let name = path.to_str().expect("a text");
        if path.extension().is_some_and(|extension| extension == "crt") {
            assert!(text.starts_with("-----BEGIN CERTIFICATE-----"), "{client:?} {name}");
            continue;
        }
        if let Some((_, source, keys)) = TABLES.iter().find(|(of, ..)| *of == name) {
            let mut found = Vec::new();
            for node in nodes(path, text) {
                leaves(&node, "", &mut found);
            }
            assert!(!found.is_empty(), "{client:?} {name}");
            for (key, kind) in found {
                assert!(keys.contains(&(&key, kind)), "{client:?} {name}: {key} as {kind} is not in {source}");
            }
            continue;
        }
        let documents = tidegate_formats::read(name, text).unwrap_or_else(|err| panic!("{client:?} {err}\n{text}"));
        assert_eq!(documents.len(), 1, "{client:?} {name}");
        let document = &documents[0];
        assert!(document.unread.is_empty(), "{client:?} {name}: {:?}", document.unread);
        let expected = match name.rsplit('/').next().unwrap_or_default() {
            "daemon.json" => matches!(document.content, Content::DaemonJson(_)),
            "hosts.toml" => matches!(&document.content, Content::HostsToml(hosts) if hosts.hosts.len() == 1),
            "50-tidegate.conf" => {
                matches!(&document.content, Content::RegistriesConf(conf) if conf.registries.len() == 2)
            }
            "registries.yaml" => {
                matches!(&document.content, Content::RegistryTables(tables) if tables.mirrors.len() == 2)
            }
            "imagedigestmirrorset.yaml" | "imagetagmirrorset.yaml" => {
                matches!(&document.content, Content::MirrorSet(set) if set.rules.len() == 2)
            }
            other => panic!("{client:?}: nobody checks {other}"),
        };
        assert!(expected, "{client:?} {name}: {}", document.content.name());
    }
}

fn nodes(path: &Path, text: &str) -> Vec<Node> {
    let name = path.display().to_string();
    if path.extension().is_some_and(|extension| extension == "toml") {
        return vec![tidegate_formats::parse_toml(&name, text).unwrap_or_else(|err| panic!("{err}\n{text}"))];
    }
    tidegate_formats::parse_yaml(&name, text).unwrap_or_else(|err| panic!("{err}\n{text}"))
}
