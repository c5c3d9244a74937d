//! Files of which a plugin gets its own part only: beside mirrors they may hold passwords, and no secret reaches a plugin;
//! and what a plugin refuses was taken out of them.

use std::fmt::Write as _;

use serde_json::json;
use tidegate_formats::{
    Capabilities, Content, Document, Host, HostsToml, RegistryTables, Requirement, RequirementKind, SignaturePolicy,
    TablesOf,
};

/// What a plugin gets of a file with one such document, of which something was taken out since it was read; none: the
/// file as it is.
pub(super) fn rebuilt(document: &Document, read: &Document) -> Option<String> {
    match &document.content {
        Content::DaemonJson(daemon) => {
            let texts =
                |texts: &[tidegate_formats::Text]| texts.iter().map(|text| text.value.clone()).collect::<Vec<_>>();
            let value = json!({
                "registry-mirrors": texts(&daemon.registry_mirrors),
                "insecure-registries": texts(&daemon.insecure_registries),
            });
            Some(format!("{value:#}\n"))
        }
        Content::RegistryTables(tables) => Some(registry_tables(tables)),
        Content::HostsToml(hosts) if has_headers(hosts) || document != read => Some(hosts_toml(hosts)),
        Content::SignaturePolicy(policy) if document != read => Some(signature_policy(policy)),
        _ => None,
    }
}

fn has_headers(hosts: &HostsToml) -> bool {
    hosts.hosts.iter().chain([&hosts.server]).any(|host| !host.headers.is_empty())
}

/// In the form of k3s, or as containerd 1.5 and newer have it.
fn registry_tables(tables: &RegistryTables) -> String {
    let is_k3s = tables.of == TablesOf::K3s;
    let mut text = if is_k3s { "mirrors:\n".to_owned() } else { "version = 2\n".to_owned() };
    for mirrors in &tables.mirrors {
        let registry = quoted(&mirrors.registry);
        let endpoints: Vec<_> = mirrors.endpoints.iter().map(|(address, _)| quoted(address)).collect();
        let endpoints = endpoints.join(", ");
        let (table, endpoint, rewrite) = if is_k3s {
            (format!("  {registry}:"), format!("    endpoint: [{endpoints}]"), "    rewrite:".to_owned())
        } else {
            let table = format!("plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.{registry}");
            (format!("[{table}]"), format!("endpoint = [{endpoints}]"), format!("[{table}.rewrite]"))
        };
        let _ = writeln!(text, "{table}\n{endpoint}");
        if !mirrors.rewrite.is_empty() {
            let _ = writeln!(text, "{rewrite}");
        }
        for (from, to) in &mirrors.rewrite {
            let (from, to) = (quoted(from), quoted(to));
            let _ = if is_k3s { writeln!(text, "      {from}: {to}") } else { writeln!(text, "{from} = {to}") };
        }
    }
    text
}

fn hosts_toml(hosts: &HostsToml) -> String {
    let mut text = String::new();
    let address = |host: &Host| host.address.as_ref().map(|(text, _)| quoted(text));
    if let Some(server) = address(&hosts.server) {
        let _ = writeln!(text, "server = {server}");
    }
    text.push_str(&keys(&hosts.server));
    for host in &hosts.hosts {
        let _ = write!(text, "\n[host.{}]\n{}", address(host).unwrap_or_default(), keys(host));
    }
    text
}

fn signature_policy(policy: &SignaturePolicy) -> String {
    let list = |requirements: &[Requirement]| {
        let kind = |requirement: &Requirement| match requirement.kind {
            RequirementKind::Accept => "insecureAcceptAnything",
            RequirementKind::Reject => "reject",
            RequirementKind::SignedBy => "signedBy",
            RequirementKind::SigstoreSigned => "sigstoreSigned",
        };
        requirements.iter().map(|requirement| json!({ "type": kind(requirement) })).collect::<Vec<_>>()
    };
    let scopes = policy.docker.iter().map(|scope| (scope.scope.value.clone(), json!(list(&scope.requirements))));
    let scopes: serde_json::Map<_, _> = scopes.collect();
    let value = json!({ "default": list(&policy.default.value), "transports": { "docker": scopes } });
    format!("{value:#}\n")
}

fn keys(host: &Host) -> String {
    let Capabilities { pull, resolve, push } = host.capabilities;
    let words = [(pull, "pull"), (resolve, "resolve"), (push, "push")];
    let words: Vec<_> = words.into_iter().filter(|(has, _)| *has).map(|(_, word)| quoted(word)).collect();
    let mut text = format!("capabilities = [{}]\n", words.join(", "));
    if host.override_path {
        text.push_str("override_path = true\n");
    }
    text
}

/// A text in quotes as JSON has them, which TOML and YAML read too.
fn quoted(text: &str) -> String {
    json!(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a plugin reads of a file, and of what is made of it, is the same; and no secret is in the latter.
    #[test]
    fn what_is_rebuilt_says_the_same_and_holds_no_secret() {
        for (file, text) in [
            (
                "daemon.json",
                r#"{"registry-mirrors":["http://a.lan:5000"],"insecure-registries":["b"],"proxies":{"x":"hunter2"}}"#,
            ),
            (
                "registries.yaml",
                "mirrors:\n  \"*\":\n    endpoint: [\"https://a.lan\"]\n  quay.io:\n    endpoint:\n      - http://b.lan/v2\n    \
                 rewrite:\n      \"^(.*)$\": 'x/\"$1\\'\nconfigs:\n  a.lan:\n    auth: {username: u, password: hunter2}\n",
            ),
            (
                "config.toml",
                "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = \
                 [\"https://a.lan\", \"b.lan:5000\"]\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"a.lan\".auth]\n\
                 password = \"hunter2\"\n",
            ),
            (
                "docker.io/hosts.toml",
                "server = \"https://s.lan\"\n[host.\"http://a.lan/v2/x\"]\ncapabilities = [\"pull\"]\noverride_path = true\n\
                 [host.\"http://a.lan/v2/x\".header]\nx = \"hunter2\"\n[host.\"b.lan\"]\n",
            ),
        ] {
            let read = |text: &str| tidegate_formats::read(file, text).unwrap_or_else(|err| panic!("{text}\n{err}"));
            let made = rebuilt(&read(text)[0], &read(text)[0]).expect("it is rebuilt");
            assert!(!made.contains("hunter2"), "{made}");
            assert_eq!(essence(&read(&made)[0]), essence(&read(text)[0]), "{made}");
        }
    }

    /// What says where images come from, without lines.
    fn essence(document: &Document) -> String {
        match &document.content {
            Content::DaemonJson(daemon) => {
                let all = daemon.registry_mirrors.iter().chain(&daemon.insecure_registries);
                all.map(|text| text.value.as_str()).collect::<Vec<_>>().join(" ")
            }
            Content::RegistryTables(tables) => {
                let mut mirrors: Vec<_> = tables
                    .mirrors
                    .iter()
                    .map(|mirrors| {
                        let endpoints: Vec<_> =
                            mirrors.endpoints.iter().map(|(_, endpoint)| endpoint.clone()).collect();
                        let rewrite: Vec<_> =
                            mirrors.rewrite.iter().map(|(a, b)| (a.value.clone(), b.value.clone())).collect();
                        format!("{} {endpoints:?} {rewrite:?}", mirrors.registry.value)
                    })
                    .collect();
                mirrors.sort();
                mirrors.join("\n")
            }
            Content::HostsToml(hosts) => {
                let one = |host: &Host| {
                    let endpoint = host.address.as_ref().map(|(_, endpoint)| endpoint.clone());
                    format!("{endpoint:?} {:?} {}", host.capabilities, host.override_path)
                };
                let hosts: Vec<_> = hosts.hosts.iter().chain([&hosts.server]).map(one).collect();
                hosts.join("\n")
            }
            other => other.name().to_owned(),
        }
    }
}
