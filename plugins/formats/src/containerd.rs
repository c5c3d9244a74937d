//! containerd: hosts.toml, the tables of registries in config.toml, and k3s' registries.yaml, which has the same.

use crate::table::Table;
use crate::tree::{Entry, Value};
use crate::{Endpoint, Located, Refusal, Text};

/// A hosts.toml.
#[derive(Clone, PartialEq, Debug)]
pub struct HostsToml {
    /// Whose hosts these are, by the name of the file or its folder.
    pub of: Hosted,
    /// In the order in which they are tried.
    pub hosts: Vec<Host>,
    /// What is tried after them; without an address, the registry itself.
    pub server: Host,
}

/// Whose hosts a hosts.toml has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hosted {
    /// `HOST[:PORT]`
    Registry(String),
    /// `_default`: every registry that has no folder of its own.
    Others,
    /// The name of the file does not say.
    Unknown,
}

/// One host of a hosts.toml.
#[derive(Clone, PartialEq, Debug)]
pub struct Host {
    /// As it is written, and what it means; none: a server that is not written.
    pub address: Option<(Text, Endpoint)>,
    /// What it is asked for.
    pub capabilities: Capabilities,
    /// Whether the path of the address is the whole path of the API.
    pub override_path: bool,
    /// Files of authorities.
    pub ca: Vec<Text>,
    /// Client certificates.
    pub client: Vec<Client>,
    /// Whether its certificate is believed unseen.
    pub skip_verify: bool,
    /// Whether headers are sent to it: they may be secrets, so that they are not told here.
    pub headers: Vec<Text>,
    /// As it is written: `5s`.
    pub dial_timeout: Option<Text>,
}

/// A client certificate.
#[derive(Clone, PartialEq, Debug)]
pub struct Client {
    /// A file.
    pub certificate: Text,
    /// A file; none: the key is in the file of the certificate.
    pub key: Option<Text>,
}

/// What a host is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Content by digest.
    pub pull: bool,
    /// What a tag stands for.
    pub resolve: bool,
    /// Uploads.
    pub push: bool,
}

/// The tables of registries of containerd's config.toml or of k3s' registries.yaml.
#[derive(Clone, PartialEq, Debug)]
pub struct RegistryTables {
    /// Of which of the two.
    pub of: TablesOf,
    /// The folder of hosts.toml files, where containerd reads those instead.
    pub config_path: Option<Text>,
    /// By registry.
    pub mirrors: Vec<RegistryMirrors>,
    /// By host.
    pub tls: Vec<RegistryTls>,
    /// Hosts that have credentials here; the secrets are not told.
    pub auth: Vec<Text>,
}

/// Where tables of registries come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TablesOf {
    /// containerd's config.toml.
    Containerd,
    /// k3s' and RKE2's registries.yaml.
    K3s,
}

/// The endpoints of one registry.
#[derive(Clone, PartialEq, Debug)]
pub struct RegistryMirrors {
    /// `docker.io`, or `*` for all that are not named.
    pub registry: Text,
    /// As they are written, in the order in which they are tried.
    pub endpoints: Vec<(Text, Endpoint)>,
    /// k3s' `rewrite`: regular expressions over repositories.
    pub rewrite: Vec<(Text, Text)>,
}

/// How one host is trusted.
#[derive(Clone, PartialEq, Debug)]
pub struct RegistryTls {
    /// `HOST[:PORT]`
    pub host: Text,
    /// A file of authorities.
    pub ca_file: Option<Text>,
    /// A file with the client's certificate.
    pub cert_file: Option<Text>,
    /// A file with its key.
    pub key_file: Option<Text>,
    /// Whether its certificate is believed unseen.
    pub insecure_skip_verify: bool,
}

/// Which registry a hosts.toml is for: `docker.io/hosts.toml`, `docker.io.hosts.toml`, `docker.io_hosts.toml`. A port
/// may be written as containerd's folders have it: `registry.lan:5000` or `registry.lan_5000_`.
pub fn hosts_toml_of(file: &str) -> Hosted {
    let name = match file.rsplit_once('/') {
        Some((folder, "hosts.toml")) => folder.rsplit_once('/').map_or(folder, |(_, name)| name),
        Some((_, name)) => name,
        None => file,
    };
    let name = name.strip_suffix(".toml").unwrap_or(name);
    let stripped = name.strip_suffix(".hosts").or_else(|| name.strip_suffix("_hosts"));
    let name = match stripped {
        Some(name) => name,
        None if file.ends_with("/hosts.toml") => name,
        None => return Hosted::Unknown,
    };
    if name == "_default" {
        return Hosted::Others;
    }
    let with_port = name.strip_suffix('_').and_then(|name| name.rsplit_once('_'));
    match with_port {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Hosted::Registry(format!("{host}:{port}"))
        }
        _ => Hosted::Registry(name.to_owned()),
    }
}

pub fn is_hosts(keys: &[&str]) -> bool {
    const KEYS: [&str; 8] =
        ["server", "host", "capabilities", "ca", "client", "skip_verify", "override_path", "dial_timeout"];
    keys.iter().any(|key| KEYS.contains(key))
}

pub fn is_config(keys: &[&str]) -> bool {
    keys.contains(&"plugins") || keys.contains(&"version")
}

pub fn is_k3s(keys: &[&str]) -> bool {
    !keys.is_empty() && keys.iter().all(|key| matches!(*key, "mirrors" | "configs" | "auths"))
}

pub fn read_hosts(file: &str, mut table: Table<'_>) -> Result<HostsToml, Refusal> {
    let server = table.text("server")?.filter(|server| !server.is_empty());
    let mut hosts = Vec::new();
    if let Some(mut by_address) = table.table("host")? {
        for (address, mut host) in by_address.take_tables()? {
            hosts.push(read_host(&mut host, Some(address))?);
            host.finish();
        }
    }
    let server = read_host(&mut table, server)?;
    table.finish();
    Ok(HostsToml { of: hosts_toml_of(file), hosts, server })
}

fn read_host(table: &mut Table<'_>, address: Option<Text>) -> Result<Host, Refusal> {
    let address = match address {
        None => None,
        Some(text) => Some(endpoint(table, text)?),
    };
    let mut capabilities = Capabilities { pull: false, resolve: false, push: false };
    let listed = table.texts("capabilities")?.unwrap_or_default();
    if listed.is_empty() {
        capabilities = Capabilities { pull: true, resolve: true, push: true };
    }
    for text in listed {
        match text.to_ascii_lowercase().as_str() {
            "pull" => capabilities.pull = true,
            "resolve" => capabilities.resolve = true,
            "push" => capabilities.push = true,
            // Newer versions have it; a mirror that has none answers so.
            "referrers" => {}
            other => {
                let reason = format!("unknown capability \"{other}\": write pull, resolve or push");
                return Err(table.refuse(text.line, reason));
            }
        }
    }
    Ok(Host {
        address,
        capabilities,
        override_path: table.flag("override_path")?,
        ca: table.text_or_texts("ca")?,
        client: clients(table)?,
        skip_verify: table.flag("skip_verify")?,
        headers: headers(table)?,
        dial_timeout: table.text("dial_timeout")?,
    })
}

/// A file, files, or pairs of files.
fn clients(table: &mut Table<'_>) -> Result<Vec<Client>, Refusal> {
    let Some(node) = table.take("client") else { return Ok(Vec::new()) };
    let bad = |line| table.refuse(line, "client must be a file, a list of files, or a list of pairs of files");
    let items = match node.value {
        Value::List(items) => items,
        _ => vec![node],
    };
    let mut clients = Vec::with_capacity(items.len());
    for item in items {
        let line = item.line;
        let text = |value: String| Located { value, line };
        clients.push(match item.value {
            Value::Text(certificate) => Client { certificate: text(certificate), key: None },
            Value::List(pair) => match <[_; 2]>::try_from(pair).map(|pair| pair.map(|file| file.value)) {
                Ok([Value::Text(certificate), Value::Text(key)]) => {
                    let key = (!key.is_empty()).then(|| text(key));
                    Client { certificate: text(certificate), key }
                }
                _ => return Err(bad(line)),
            },
            _ => return Err(bad(line)),
        });
    }
    Ok(clients)
}

/// The names of the headers only.
fn headers(table: &mut Table<'_>) -> Result<Vec<Text>, Refusal> {
    let Some(mut headers) = table.table("header")? else { return Ok(Vec::new()) };
    let name = |entry: Entry| Located { value: entry.key, line: entry.line };
    Ok(headers.take_rest().into_iter().map(name).collect())
}

fn endpoint(table: &Table<'_>, text: Text) -> Result<(Text, Endpoint), Refusal> {
    let bad = |reason| table.refuse(text.line, format!("bad address \"{}\": {reason}", text.value));
    let endpoint = Endpoint::parse(&text).map_err(bad)?;
    Ok((text, endpoint))
}

pub fn read_config(mut file: Table<'_>) -> Result<RegistryTables, Refusal> {
    let mut tables = empty(TablesOf::Containerd);
    if let Some(mut plugins) = file.table("plugins")? {
        // Version 2 of the file, version 3, and version 1.
        for plugin in ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "cri"] {
            let Some(mut cri) = plugins.table(plugin)? else { continue };
            if let Some(mut registry) = cri.table("registry")? {
                let config_path = registry.text("config_path")?.filter(|path| !path.is_empty());
                tables.config_path = config_path.or(tables.config_path);
                read_mirrors(&mut registry, &mut tables)?;
                read_configs(&mut registry, &mut tables)?;
                registry.finish();
            }
            cri.finish();
        }
        plugins.finish();
    }
    file.finish();
    Ok(tables)
}

pub fn read_k3s(mut file: Table<'_>) -> Result<RegistryTables, Refusal> {
    let mut tables = empty(TablesOf::K3s);
    read_mirrors(&mut file, &mut tables)?;
    read_configs(&mut file, &mut tables)?;
    file.finish();
    Ok(tables)
}

fn empty(of: TablesOf) -> RegistryTables {
    RegistryTables { of, config_path: None, mirrors: Vec::new(), tls: Vec::new(), auth: Vec::new() }
}

fn read_mirrors(table: &mut Table<'_>, tables: &mut RegistryTables) -> Result<(), Refusal> {
    let Some(mut mirrors) = table.table("mirrors")? else { return Ok(()) };
    for (registry, mut mirror) in mirrors.take_tables()? {
        let mut endpoints = Vec::new();
        for text in mirror.texts("endpoint")?.unwrap_or_default() {
            endpoints.push(endpoint(&mirror, text)?);
        }
        let mut rewrite = Vec::new();
        if let Some(mut rules) = mirror.table("rewrite")? {
            for entry in rules.take_rest() {
                let Value::Text(to) = entry.node.value else {
                    return Err(mirror.refuse(entry.line, format!("the rewrite \"{}\" must be a text", entry.key)));
                };
                let from = Located { value: entry.key, line: entry.line };
                rewrite.push((from, Located { value: to, line: entry.node.line }));
            }
        }
        tables.mirrors.push(RegistryMirrors { registry, endpoints, rewrite });
        mirror.finish();
    }
    Ok(())
}

/// `configs` (with `tls` and `auth` by host), and containerd's older `auths`.
fn read_configs(table: &mut Table<'_>, tables: &mut RegistryTables) -> Result<(), Refusal> {
    if let Some(mut auths) = table.table("auths")? {
        tables.auth.extend(auths.take_tables()?.into_iter().map(|(host, _)| host));
    }
    let Some(mut configs) = table.table("configs")? else { return Ok(()) };
    for (host, mut config) in configs.take_tables()? {
        if config.take("auth").is_some() {
            tables.auth.push(host.clone());
        }
        if let Some(mut tls) = config.table("tls")? {
            tables.tls.push(RegistryTls {
                host,
                ca_file: tls.text("ca_file")?,
                cert_file: tls.text("cert_file")?,
                key_file: tls.text("key_file")?,
                insecure_skip_verify: tls.flag("insecure_skip_verify")?,
            });
            tls.finish();
        }
        config.finish();
    }
    Ok(())
}
