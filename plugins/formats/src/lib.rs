//! Readers of the files with which people already say where images come from: containers' registries.conf and
//! policy.json, OpenShift's mirror sets and image configuration, containerd's hosts.toml and config.toml, k3s'
//! registries.yaml, docker's daemon.json. Pure: text in, typed documents out. What a file is, its content says.
//!
//! Nothing is lost silently: a key that no reader knows is in [`Document::unread`].

// Names of products are no code.
#![allow(clippy::doc_markdown)]

mod cluster;
mod containerd;
mod docker;
mod endpoint;
mod json;
mod policy;
mod recognise;
mod registries_conf;
mod table;
mod toml_text;
mod tree;
mod yaml;

use std::fmt;
use std::ops::Deref;

pub use cluster::{DomainForImport, ImageConfig, MirrorRule, MirrorSet, MirrorSetKind, SourcePolicy};
pub use containerd::{Capabilities, Client, Host, HostsToml, RegistryMirrors, RegistryTables, RegistryTls, TablesOf};
pub use containerd::{Hosted, hosts_toml_of};
pub use docker::DaemonJson;
pub use endpoint::{Endpoint, Scheme};
pub use json::parse as parse_json;
pub use policy::{Requirement, RequirementKind, Scope, SignaturePolicy};
pub use recognise::{is_toml, read};
pub use registries_conf::{Alias, Mirror, PullFromMirror, RegistriesConf, Registry};
pub use toml_text::parse as parse_toml;
pub use tree::{Entry, Node, Value};
pub use yaml::parse as parse_yaml;

/// One thing that a file says: the file itself, or one object of several in it.
#[derive(Clone, PartialEq, Debug)]
pub struct Document {
    /// The file that it stands in, as the caller called it.
    pub file: String,
    /// Where it begins.
    pub line: usize,
    /// What it says.
    pub content: Content,
    /// Keys that no reader of this crate knows, so that nothing of them is in `content`.
    pub unread: Vec<Unread>,
}

/// What a document says, by what it is.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum Content {
    /// containers' registries.conf, version 2, or a drop-in of it.
    RegistriesConf(RegistriesConf),
    /// OpenShift's `ImageDigestMirrorSet`, `ImageTagMirrorSet` or `ImageContentSourcePolicy`.
    MirrorSet(MirrorSet),
    /// OpenShift's `image.config.openshift.io/cluster`.
    ImageConfig(ImageConfig),
    /// containerd's hosts.toml.
    HostsToml(HostsToml),
    /// The tables of registries in containerd's config.toml, and k3s' registries.yaml.
    RegistryTables(RegistryTables),
    /// docker's daemon.json.
    DaemonJson(DaemonJson),
    /// containers' policy.json.
    SignaturePolicy(SignaturePolicy),
}

impl Content {
    /// What people call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::RegistriesConf(_) => "registries.conf",
            Self::MirrorSet(set) => set.kind.name(),
            Self::ImageConfig(_) => "image.config.openshift.io",
            Self::HostsToml(_) => "hosts.toml",
            Self::RegistryTables(tables) => match tables.of {
                TablesOf::Containerd => "containerd's config.toml",
                TablesOf::K3s => "registries.yaml",
            },
            Self::DaemonJson(_) => "daemon.json",
            Self::SignaturePolicy(_) => "policy.json",
        }
    }
}

/// A key that was passed over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unread {
    /// With the keys that it stands under: `spec.registrySources.other`.
    pub key: String,
    /// Where it stands.
    pub line: usize,
}

/// A value, and the line that it stands in, from 1 on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Its line.
    pub line: usize,
}

/// A text of a file.
pub type Text = Located<String>;

impl<T> Deref for Located<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// Why a file cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The file, as the caller called it.
    pub file: String,
    /// Where, where that is known.
    pub line: Option<usize>,
    /// Why, and the way out.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What the reason quotes of a file must neither end the line nor move a terminal's cursor.
        let reason: String = self.reason.chars().map(|sign| if sign.is_control() { ' ' } else { sign }).collect();
        match self.line {
            Some(line) => write!(f, "{}:{line}: {reason}", self.file),
            None => write!(f, "{}: {reason}", self.file),
        }
    }
}

impl std::error::Error for Refusal {}
