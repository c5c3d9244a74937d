//! The files that were named, and those of folders; what each of them is, by its content.

use std::fs;
use std::path::{Path, PathBuf};

use tidegate_formats::{Content, Document, Node, Value};

use crate::oci::Registry;

/// Largest file that is read, as the proxy takes it for a plugin too. Units: bytes.
const FILE_MAX: u64 = 1 << 20;

/// How deep folders are looked into: certs.d/HOST/FILE is two.
const DEPTH_MAX: usize = 3;

/// How a folder of drop-ins ends.
const DROP_INS: &str = ".conf.d";

/// What drop-ins belong to.
const REGISTRIES_CONF: &str = "registries.conf";

/// A file.
pub(super) struct Found {
    /// As the operator named it.
    pub path: PathBuf,
    /// As it is called among the files of a plugin.
    pub name: String,
    /// Its bytes as text.
    pub text: String,
    /// What it is.
    pub kind: Kind,
}

/// What a file is.
pub(super) enum Kind {
    /// Of a folder by host: authorities, or a client certificate or its key.
    Certificate(Registry),
    /// docker's config.json, or a pull secret as a file.
    Logins,
    /// Config maps and secrets.
    Objects(Vec<Node>),
    /// What says where images come from, or what may be pulled.
    Documents(Vec<Document>),
    /// Comments, or an object without keys.
    Nothing,
    /// Nothing that is known, and why. Only in folders: what is named must be known.
    Unknown(Option<usize>, String),
}

impl Found {
    /// For messages.
    pub fn file(&self) -> String {
        self.path.display().to_string()
    }
}

/// The file, or those of a folder in the order of their names.
pub(super) fn find(path: &Path) -> Result<Vec<Found>, String> {
    if !path.is_dir() {
        let parent = path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        let own = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // The folder says whose hosts.toml it is.
        let name = match parent {
            Some(parent) if own == "hosts.toml" || parent.ends_with(DROP_INS) => format!("{parent}/{own}"),
            _ => own,
        };
        let found = read(path, name)?;
        return match found.kind {
            Kind::Unknown(Some(line), why) => Err(format!("{}:{line}: {why}", path.display())),
            Kind::Unknown(None, why) => Err(format!("{}: {why}", path.display())),
            _ => Ok(vec![found]),
        };
    }
    let mut paths = Vec::new();
    walk(path, 0, &mut paths)?;
    if paths.is_empty() {
        return Err(format!("{}: there is no file in it", path.display()));
    }
    // Drop-ins keep the name of their folder, so that they stand behind the file that they belong to.
    let folder = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut found = Vec::new();
    for file in paths {
        let below = file.strip_prefix(path).unwrap_or(&file).display().to_string();
        let name = if folder.ends_with(DROP_INS) { format!("{folder}/{below}") } else { below };
        found.push(read(&file, name)?);
    }
    Ok(found)
}

/// Names files so that drop-ins stand behind the registries.conf that they belong to, however they were given.
pub(super) fn put_in_order(found: &mut [Found]) {
    let is_conf = |found: &&mut Found| match &found.kind {
        Kind::Documents(documents) => documents.iter().any(|one| matches!(one.content, Content::RegistriesConf(_))),
        _ => false,
    };
    let (mut whole, mut parts): (Vec<_>, Vec<_>) =
        found.iter_mut().filter(is_conf).partition(|found| !found.name.contains('/'));
    if whole.iter().any(|found| found.name == REGISTRIES_CONF) {
        whole.retain(|found| found.name != REGISTRIES_CONF);
        for found in whole {
            found.name = format!("{REGISTRIES_CONF}.d/{}", found.name);
        }
    } else if let ([one], false) = (whole.as_mut_slice(), parts.is_empty()) {
        REGISTRIES_CONF.clone_into(&mut one.name);
    }
    for part in &mut parts {
        // A folder of another name would stand elsewhere.
        if let Some((folder, name)) = part.name.split_once('/')
            && folder.ends_with(DROP_INS)
        {
            part.name = format!("{REGISTRIES_CONF}.d/{name}");
        }
    }
}

fn walk(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> Result<(), String> {
    let fail = |err: std::io::Error| format!("{} cannot be read: {err}", folder.display());
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        entries.push(entry.map_err(fail)?.path());
    }
    entries.sort();
    for path in entries {
        if !path.is_dir() {
            paths.push(path);
        } else if depth < DEPTH_MAX {
            walk(&path, depth + 1, paths)?;
        } else {
            return Err(format!("{}: too deep below what was named", path.display()));
        }
    }
    Ok(())
}

fn read(path: &Path, name: String) -> Result<Found, String> {
    let fail = |reason: &dyn std::fmt::Display| format!("{} cannot be read: {reason}", path.display());
    let about = fs::metadata(path).map_err(|err| fail(&err))?;
    if about.len() > FILE_MAX {
        return Err(fail(&format!("it is larger than {FILE_MAX} bytes")));
    }
    let text = fs::read_to_string(path).map_err(|err| fail(&err))?;
    let kind = match host_of(path) {
        Some(host) => Kind::Certificate(host),
        None => kind(&path.display().to_string(), &name, &text),
    };
    Ok(Found { path: path.to_owned(), name, text, kind })
}

/// Whose certificate a file is, where it lies in a folder by host: `certs.d/registry.lan:5000/ca.crt`.
fn host_of(path: &Path) -> Option<Registry> {
    let extension = path.extension()?.to_str()?;
    if !matches!(extension, "crt" | "cert" | "key") {
        return None;
    }
    host(path.parent()?.file_name()?.to_str()?)
}

/// The host that a folder or a key is named after; a port may stand behind two dots.
pub(super) fn host(name: &str) -> Option<Registry> {
    let name = match name.rsplit_once("..") {
        Some((host, port)) => format!("{host}:{port}"),
        None => name.to_owned(),
    };
    Registry::parse(&name)
}

fn kind(file: &str, name: &str, text: &str) -> Kind {
    let is_json = text.trim_start().starts_with('{');
    if is_json && let Ok(node) = tidegate_formats::parse_json(file, text) {
        if entries(&node).next().is_none() {
            return Kind::Nothing;
        }
        let has = |key: &str| entry(&node, key).is_some();
        if ["auths", "credHelpers", "credsStore"].into_iter().any(has) && !has("kind") {
            return Kind::Logins;
        }
    }
    if text.contains("ConfigMap") || text.contains("Secret") {
        match tidegate_formats::parse_yaml(file, text) {
            Ok(nodes) if !nodes.is_empty() && nodes.iter().all(is_ours) => return Kind::Objects(nodes),
            Ok(nodes) => {
                if let Some(node) = nodes.iter().find(|node| is_ours(node)) {
                    let why = "a config map or secret beside other objects: give it a file of its own";
                    return Kind::Unknown(Some(node.line), why.to_owned());
                }
            }
            Err(_) => {}
        }
    }
    match tidegate_formats::read(name, text) {
        Ok(documents) if documents.is_empty() => Kind::Nothing,
        Ok(documents) => Kind::Documents(documents),
        Err(refusal) => Kind::Unknown(refusal.line, refusal.reason),
    }
}

fn is_ours(node: &Node) -> bool {
    matches!(entry(node, "kind").map(|(_, node)| &node.value), Some(Value::Text(kind)) if kind == "ConfigMap" || kind == "Secret")
}

/// What stands under a key, and in which line the key stands.
pub(super) fn entry<'a>(node: &'a Node, key: &str) -> Option<(usize, &'a Node)> {
    entries(node).find(|(found, ..)| *found == key).map(|(_, line, node)| (line, node))
}

/// Keys, their lines, and what stands under them; nothing where it is no table.
pub(super) fn entries(node: &Node) -> impl Iterator<Item = (&str, usize, &Node)> {
    let entries = match &node.value {
        Value::Table(entries) => entries.as_slice(),
        _ => &[],
    };
    entries.iter().map(|entry| (entry.key.as_str(), entry.line, &entry.node))
}

/// A text; none where it is something else.
pub(super) fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}
