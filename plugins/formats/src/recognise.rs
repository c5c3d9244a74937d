//! What a file is, told from what is in it.

use crate::table::Reading;
use crate::tree::{Node, Value};
use crate::{Content, Document, Refusal, cluster, containerd, docker, json, policy, registries_conf, toml_text, yaml};

const KNOWN: &str = "registries.conf, ImageDigestMirrorSet, ImageTagMirrorSet, ImageContentSourcePolicy, \
                     image.config.openshift.io, hosts.toml, containerd's config.toml, k3s' registries.yaml, daemon.json \
                     and policy.json";

/// Reads a file: one document, or all of a file with several.
///
/// `file`: its name, for messages; a hosts.toml says by it which registry it is for (see [`crate::hosts_toml_of`]).
///
/// # Errors
/// The file, the line, the reason and the way out.
pub fn read(file: &str, text: &str) -> Result<Vec<Document>, Refusal> {
    let text = text.trim_start_matches('\u{feff}');
    let mut documents = Vec::new();
    match syntax(text) {
        Some(Syntax::Json) => read_tree(file, json::parse(file, text)?, Syntax::Json, &mut documents)?,
        Some(Syntax::Toml) => read_tree(file, toml_text::parse(file, text)?, Syntax::Toml, &mut documents)?,
        Some(Syntax::Yaml) => {
            for node in yaml::parse(file, text)? {
                read_tree(file, node, Syntax::Yaml, &mut documents)?;
            }
        }
        None => {}
    }
    Ok(documents)
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Syntax {
    Json,
    Toml,
    Yaml,
}

/// Told from the first line that says something; none where no line does.
fn syntax(text: &str) -> Option<Syntax> {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))?;
    if line.starts_with('{') {
        return Some(Syntax::Json);
    }
    let assigns = line.split_once('=').is_some_and(|(key, _)| !key.contains(':'));
    Some(if line.starts_with('[') || assigns { Syntax::Toml } else { Syntax::Yaml })
}

fn read_tree(file: &str, node: Node, syntax: Syntax, documents: &mut Vec<Document>) -> Result<(), Refusal> {
    let line = node.line;
    let is_object = keys(&node).any(|key| key == "kind") && keys(&node).any(|key| key == "apiVersion");
    if is_object {
        return read_object(file, node, documents);
    }
    let reading = Reading::new(file);
    let content = match (syntax, keys(&node).collect::<Vec<_>>()) {
        (Syntax::Toml, keys) if keys.contains(&"registries") => {
            let at = line_of(&node, "registries");
            return Err(reading.refuse(
                at,
                "this is registries.conf in version 1 ([registries.search], [registries.insecure], [registries.block]), \
                 which containers tools have given up: write unqualified-search-registries = [...] and a [[registry]] \
                 with insecure = true or blocked = true for each of the others",
            ));
        }
        (Syntax::Toml, keys) if registries_conf::is_one(&keys) => {
            Content::RegistriesConf(registries_conf::read(reading.table(node)?)?)
        }
        (Syntax::Toml, keys) if containerd::is_config(&keys) => {
            Content::RegistryTables(containerd::read_config(reading.table(node)?)?)
        }
        (Syntax::Toml, keys) if containerd::is_hosts(&keys) => {
            Content::HostsToml(containerd::read_hosts(file, reading.table(node)?)?)
        }
        (Syntax::Json | Syntax::Yaml, keys) if policy::is_one(&keys) => {
            Content::SignaturePolicy(policy::read(reading.table(node)?)?)
        }
        (Syntax::Json, keys) if docker::is_one(&keys) => Content::DaemonJson(docker::read(reading.table(node)?)?),
        (Syntax::Yaml | Syntax::Json, keys) if containerd::is_k3s(&keys) => {
            Content::RegistryTables(containerd::read_k3s(reading.table(node)?)?)
        }
        (_, keys) => {
            let found = match keys.as_slice() {
                [] => "it has no keys".to_owned(),
                keys => format!("its keys are {}", keys.iter().take(5).copied().collect::<Vec<_>>().join(", ")),
            };
            return Err(reading.refuse(line, format!("this is no file that is known here: {found}; known are {KNOWN}")));
        }
    };
    documents.push(Document { file: file.to_owned(), line, content, unread: reading.finish() });
    Ok(())
}

/// An object of Kubernetes, or a list of them.
fn read_object(file: &str, node: Node, documents: &mut Vec<Document>) -> Result<(), Refusal> {
    let line = node.line;
    let reading = Reading::new(file);
    let mut table = reading.table(node)?;
    let kind = table.needed_text("kind")?;
    let version = table.needed_text("apiVersion")?;
    if kind.as_str() == "List" || kind.ends_with("List") && table.has("items") {
        for item in table.list("items")?.unwrap_or_default() {
            read_tree(file, item, Syntax::Yaml, documents)?;
        }
        return Ok(());
    }
    let content = cluster::read(table, &kind, &version)?;
    documents.push(Document { file: file.to_owned(), line, content, unread: reading.finish() });
    Ok(())
}

fn keys(node: &Node) -> impl Iterator<Item = &str> {
    let entries = match &node.value {
        Value::Table(entries) => entries.as_slice(),
        _ => &[],
    };
    entries.iter().map(|entry| entry.key.as_str())
}

fn line_of(node: &Node, key: &str) -> usize {
    match &node.value {
        Value::Table(entries) => entries.iter().find(|entry| entry.key == key).map_or(node.line, |entry| entry.line),
        _ => node.line,
    }
}

#[cfg(test)]
#[path = "recognise_tests.rs"]
mod tests;
