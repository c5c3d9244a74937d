//! What containerd and docker say, host by host: the mirrors of whole registries.

use tidegate_formats::{DaemonJson, Endpoint, Host, Hosted, HostsToml, RegistryTables, TablesOf, Text};
use tidegate_sdk::name;

use crate::place::{Place, Scope};
use crate::rules::{Rule, Target};

/// How the path of an address leads to repositories.
enum Api {
    /// The API is below the path, which ends in `/v2` or is given one.
    Below,
    /// The path is all of the API's, as written.
    Whole,
}

/// The rule of a hosts.toml.
///
/// Source: containerd, docs/hosts.md: the hosts in the order of the file, then the server; what resolves tags and what
/// gives content by digest is said by their capabilities.
pub fn of_hosts_toml(file: &str, line: usize, hosts: &HostsToml) -> Result<Rule, String> {
    let scope = match &hosts.of {
        Hosted::Registry(registry) => registry_scope(registry).ok_or_else(|| {
            format!("{file}: \"{registry}\" in its name is no registry: name it docker.io.hosts.toml")
        })?,
        Hosted::Others => Scope::Others,
        Hosted::Unknown => {
            return Err(format!(
                "{file}: this is a hosts.toml, and its name does not say for which registry: call it \
                 docker.io.hosts.toml, or docker.io/hosts.toml, in the plugin's folder"
            ));
        }
    };
    let mut targets = Vec::with_capacity(hosts.hosts.len() + 1);
    for host in hosts.hosts.iter().chain([&hosts.server]) {
        targets.extend(target_of_host(file, &scope, host)?);
    }
    Ok(Rule { scope, at: format!("{file}:{line}"), targets, blocked: None })
}

fn target_of_host(file: &str, scope: &Scope, host: &Host) -> Result<Option<Target>, String> {
    let (tags, digests) = (host.capabilities.resolve, host.capabilities.pull);
    if !tags && !digests {
        return Ok(None);
    }
    let place = match &host.address {
        // Without an address it is the registry itself, with all capabilities.
        None => return Ok(Some(Target::SOURCE)),
        Some((text, endpoint)) => {
            let api = if host.override_path { Api::Whole } else { Api::Below };
            place(file, text, endpoint, &api)?
        }
    };
    Ok(Some(Target { place: unless_itself(scope, place), tags, digests }))
}

/// The rules of the tables of config.toml or registries.yaml: the endpoints of each registry, then the registry itself.
pub fn of_tables(file: &str, tables: &RegistryTables) -> Result<Vec<Rule>, String> {
    if let Some(path) = tables.config_path.as_ref().filter(|_| tables.mirrors.is_empty()) {
        return Err(format!(
            "{file}:{}: this config.toml names no mirrors, but the folder of hosts.toml files {}: copy that folder into \
             this plugin's instead",
            path.line, path.value
        ));
    }
    let mut rules = Vec::with_capacity(tables.mirrors.len());
    for mirrors in &tables.mirrors {
        let registry = mirrors.registry.trim_matches('"');
        let at = format!("{file}:{}", mirrors.registry.line);
        let scope = if registry == "*" { Some(Scope::Others) } else { registry_scope(registry) };
        let scope = scope.ok_or_else(|| format!("{at}: \"{registry}\" is no registry: write HOST, HOST:PORT or *"))?;
        if let Some((from, _)) = mirrors.rewrite.first() {
            return Err(format!(
                "{file}:{}: rewrite \"{}\" is a regular expression, which is not done here: say it with a prefix and a \
                 location in registries.conf",
                from.line, from.value
            ));
        }
        let mut targets = Vec::with_capacity(mirrors.endpoints.len() + 1);
        for (text, endpoint) in &mirrors.endpoints {
            // An endpoint without a path gets /v2; k3s adds it to every path.
            let api = if tables.of == TablesOf::K3s || endpoint.path.is_empty() { Api::Below } else { Api::Whole };
            let place = unless_itself(&scope, place(file, text, endpoint, &api)?);
            targets.push(Target { place, ..Target::SOURCE });
        }
        if targets.iter().all(|target| target.place.is_some()) {
            targets.push(Target::SOURCE);
        }
        rules.push(Rule { scope, at, targets, blocked: None });
    }
    Ok(rules)
}

/// The rule of a daemon.json: the mirrors of Docker Hub, then Docker Hub. None: it names no mirror.
pub fn of_daemon_json(file: &str, daemon: &DaemonJson) -> Result<Option<Rule>, String> {
    let Some(first) = daemon.registry_mirrors.first() else { return Ok(None) };
    let mut targets = Vec::with_capacity(daemon.registry_mirrors.len() + 1);
    for text in &daemon.registry_mirrors {
        let refuse = |reason| format!("{file}:{}: bad mirror \"{}\": {reason}", text.line, text.value);
        let endpoint = Endpoint::parse(text).map_err(refuse)?;
        targets.push(Target { place: Some(place(file, text, &endpoint, &Api::Below)?), ..Target::SOURCE });
    }
    targets.push(Target::SOURCE);
    let scope = Scope::Names(name::DOCKER_HUB.to_owned());
    Ok(Some(Rule { scope, at: format!("{file}:{}", first.line), targets, blocked: None }))
}

fn registry_scope(text: &str) -> Option<Scope> {
    name::registry(text).map(Scope::Names)
}

/// Docker Hub's own address, say, in the hosts of docker.io: the name itself.
fn unless_itself(scope: &Scope, place: Place) -> Option<Place> {
    (*scope != Scope::Names(place.to_string())).then_some(place)
}

/// The registry at an address, and the repositories that its path leads to.
fn place(file: &str, text: &Text, endpoint: &Endpoint, api: &Api) -> Result<Place, String> {
    let refuse = |reason: String| format!("{file}:{}: bad address \"{}\": {reason}", text.line, text.value);
    let Some(registry) = name::registry(&endpoint.host) else {
        return Err(refuse(format!("\"{}\" is no HOST or HOST:PORT", endpoint.host)));
    };
    let path = endpoint.path.as_str();
    let below = match api {
        Api::Below => matches!(path, "" | "/v2").then_some(""),
        Api::Whole => path.strip_prefix("/v2").filter(|rest| rest.is_empty() || rest.starts_with('/')),
    };
    let Some(below) = below else {
        let asked = match api {
            Api::Below => format!("{path}/v2"),
            Api::Whole if path.is_empty() => "/".to_owned(),
            Api::Whole => path.to_owned(),
        };
        return Err(refuse(format!(
            "its API would be at {asked}, and this proxy asks registries at /v2 of their host only: name a host for it \
             that has it there"
        )));
    };
    let path = below.trim_start_matches('/');
    if !path.is_empty() && !name::is_repository(path) {
        return Err(refuse(format!("\"{path}\" is no beginning of a repository")));
    }
    Ok(Place { registry, path: path.to_owned() })
}
