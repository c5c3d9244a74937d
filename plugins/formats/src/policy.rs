//! containers' policy.json. Source: containers-policy.json(5). Read strictly, as they read it.

use crate::table::Table;
use crate::tree::{Node, Value};
use crate::{Located, Refusal, Text};

/// What must hold of an image before it is used.
#[derive(Clone, PartialEq, Debug)]
pub struct SignaturePolicy {
    /// Of images that no scope covers.
    pub default: Located<Vec<Requirement>>,
    /// Of images of registries (transport `docker`), by scope; an empty scope is that transport's default.
    pub docker: Vec<Scope>,
    /// The other transports that are there, of which a registry knows nothing.
    pub other_transports: Vec<Text>,
}

/// What must hold of some images.
#[derive(Clone, PartialEq, Debug)]
pub struct Scope {
    /// A registry, the beginning of a repository in whole components, an image with tag or digest, or `*.example.com`.
    pub scope: Text,
    /// All of them must hold.
    pub requirements: Vec<Requirement>,
}

/// One requirement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Requirement {
    /// What it asks.
    pub kind: RequirementKind,
    /// Where it stands.
    pub line: usize,
}

/// `type` of a requirement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequirementKind {
    /// `insecureAcceptAnything`
    Accept,
    /// `reject`
    Reject,
    /// `signedBy`, `signedBaseLayer`: by a key of GnuPG.
    SignedBy,
    /// `sigstoreSigned`
    SigstoreSigned,
}

pub fn is_one(keys: &[&str]) -> bool {
    keys.contains(&"default") && keys.iter().all(|key| matches!(*key, "default" | "transports"))
}

pub fn read(mut file: Table<'_>) -> Result<SignaturePolicy, Refusal> {
    let line = file.line;
    let default = match file.take("default") {
        Some(node) => Located { line: node.line, value: requirements(&file, "default", node)? },
        None => return Err(file.refuse(line, "default is missing: write [{\"type\": \"reject\"}] or another")),
    };
    let mut policy = SignaturePolicy { default, docker: Vec::new(), other_transports: Vec::new() };
    if let Some(mut transports) = file.table("transports")? {
        for entry in transports.take_rest() {
            let name = Located { value: entry.key, line: entry.line };
            if name.as_str() != "docker" {
                policy.other_transports.push(name);
                continue;
            }
            let Value::Table(scopes) = entry.node.value else {
                return Err(file.refuse(name.line, "transports.docker must be a table of scopes"));
            };
            for scope in scopes {
                let requirements = requirements(&file, &format!("transports.docker.\"{}\"", scope.key), scope.node)?;
                if policy.docker.iter().any(|other| other.scope.value == scope.key) {
                    return Err(file.refuse(scope.line, format!("scope \"{}\" is there twice", scope.key)));
                }
                let scope = Located { value: scope.key, line: scope.line };
                policy.docker.push(Scope { scope, requirements });
            }
        }
    }
    file.finish();
    Ok(policy)
}

fn requirements(file: &Table<'_>, key: &str, node: Node) -> Result<Vec<Requirement>, Refusal> {
    let line = node.line;
    let Value::List(items) = node.value else {
        return Err(file.refuse(line, format!("{key} must be a list of requirements")));
    };
    if items.is_empty() {
        let reason = format!("{key} has no requirement: write {{\"type\": \"insecureAcceptAnything\"}} or another");
        return Err(file.refuse(line, reason));
    }
    let mut requirements = Vec::with_capacity(items.len());
    for item in items {
        let Value::Table(fields) = &item.value else {
            return Err(file.refuse(item.line, format!("a requirement of {key} must be a table with a type")));
        };
        let kind = fields.iter().find(|field| field.key == "type").map(|field| &field.node.value);
        let kind = match kind {
            Some(Value::Text(text)) => match text.as_str() {
                "insecureAcceptAnything" => RequirementKind::Accept,
                "reject" => RequirementKind::Reject,
                "signedBy" | "signedBaseLayer" => RequirementKind::SignedBy,
                "sigstoreSigned" => RequirementKind::SigstoreSigned,
                other => {
                    let known = "known are insecureAcceptAnything, reject, signedBy and sigstoreSigned";
                    return Err(
                        file.refuse(item.line, format!("unknown type \"{other}\" of a requirement of {key}: {known}"))
                    );
                }
            },
            _ => return Err(file.refuse(item.line, format!("a requirement of {key} has no type"))),
        };
        let is_plain = matches!(kind, RequirementKind::Accept | RequirementKind::Reject);
        if is_plain && let Some(other) = fields.iter().find(|field| field.key != "type") {
            return Err(file.refuse(other.line, format!("unknown key \"{}\" in a requirement of {key}", other.key)));
        }
        requirements.push(Requirement { kind, line: item.line });
    }
    Ok(requirements)
}
