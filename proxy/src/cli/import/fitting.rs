//! What the plugins `mirrors` and `allowlist` refuse is taken out of a document, and named: what remains, they take.

use tidegate_formats::{
    Content, DaemonJson, Document, Endpoint, Host, Hosted, HostsToml, ImageConfig, RegistriesConf, RegistryMirrors,
    RegistryTables, Requirement, RequirementKind, SignaturePolicy, TablesOf, Text,
};

use super::gather::Gathered;
use crate::oci::{Registry, Repository};

/// A document, as its plugin takes it.
pub(super) struct Fitted {
    pub document: Document,
    /// Whether enough of it is left for the plugin.
    pub is_for_plugin: bool,
}

/// The hosts of a registry, as one file names them.
pub(super) struct Mirrored {
    at: String,
    targets: Vec<Target>,
}

/// A host to try.
#[derive(PartialEq)]
struct Target {
    /// The registry, and what its path leads to; none: the registry that is mirrored.
    place: Option<String>,
    tags: bool,
    digests: bool,
}

const SOURCE: Target = Target { place: None, tags: true, digests: true };

/// What a file of hosts says of registries that it does not name.
const OTHERS: &str = "*";

/// How the path of an address leads to repositories.
#[derive(Clone, Copy)]
enum Api {
    /// `/v2` is put behind it, unless it is there.
    Below,
    /// As it is written.
    Whole,
}

impl Gathered {
    /// Takes out of a document what its plugin refuses.
    pub fn fit(&mut self, file: &str, document: &Document) -> Fitted {
        let mut document = document.clone();
        let line = document.line;
        let is_for_plugin = match &mut document.content {
            Content::RegistriesConf(conf) => says_where(conf),
            Content::ImageConfig(config) => self.fit_image_config(file, config),
            Content::HostsToml(hosts) => self.fit_hosts(file, line, hosts),
            Content::RegistryTables(tables) => self.fit_tables(file, tables),
            Content::DaemonJson(daemon) => self.fit_daemon_json(file, daemon),
            Content::SignaturePolicy(policy) => {
                self.fit_policy(file, policy);
                // The plugin takes no key that it does not know; these were named.
                document.unread.clear();
                true
            }
            _ => true,
        };
        Fitted { document, is_for_plugin }
    }

    fn fit_image_config(&mut self, file: &str, config: &ImageConfig) -> bool {
        let mut blocks = false;
        for blocked in config.blocked.iter().flat_map(|list| &list.value) {
            if blocked.split_once('/').is_some_and(|(_, path)| path.contains([':', '@'])) {
                let why = format!(
                    "{} is one image, and where images come from is told of repositories: block its tag with the plugin \
                     allowlist",
                    blocked.value
                );
                self.leave(file, blocked.line, "spec.registrySources.blockedRegistries", &why);
            } else {
                blocks = true;
            }
        }
        blocks || !config.search.is_empty()
    }

    fn fit_hosts(&mut self, file: &str, line: usize, hosts: &mut HostsToml) -> bool {
        let scope = match &hosts.of {
            Hosted::Registry(name) => Registry::parse(name).map(|registry| registry.to_string()),
            Hosted::Others => Some(OTHERS.to_owned()),
            Hosted::Unknown => None,
        };
        let Some(scope) = scope else { return false };
        let count = hosts.hosts.len();
        hosts.hosts.retain(|host| self.fits_host(file, "host", host));
        let is_server_known = self.fits_host(file, "server", &hosts.server);
        if !is_server_known {
            // Without an address it would be the registry itself, of which the file says nothing.
            hosts.server.address = None;
            hosts.server.capabilities.pull = false;
            hosts.server.capabilities.resolve = false;
        }
        let targets: Vec<_> =
            hosts.hosts.iter().chain([&hosts.server]).filter_map(|host| target_of_host(&scope, host)).collect();
        let is_whole = is_server_known && hosts.hosts.len() == count;
        if targets.is_empty() && !is_whole {
            return false;
        }
        self.is_agreed(file, line, &scope, targets)
    }

    fn fits_host(&mut self, file: &str, key: &str, host: &Host) -> bool {
        let Some((text, endpoint)) = &host.address else { return true };
        let api = if host.override_path { Api::Whole } else { Api::Below };
        self.fits(file, key, text, place(endpoint, api))
    }

    fn fits(&mut self, file: &str, key: &str, text: &Text, place: Result<String, String>) -> bool {
        let Err(why) = place else { return true };
        self.leave(file, text.line, &format!("{key} \"{}\"", text.value), &why);
        false
    }

    fn fit_tables(&mut self, file: &str, tables: &mut RegistryTables) -> bool {
        let of = tables.of;
        tables.mirrors.retain_mut(|mirrors| self.fit_mirrors(file, of, mirrors));
        !tables.mirrors.is_empty()
    }

    fn fit_mirrors(&mut self, file: &str, of: TablesOf, mirrors: &mut RegistryMirrors) -> bool {
        let name = mirrors.registry.trim_matches('"');
        let key = format!("mirrors.\"{name}\"");
        let line = mirrors.registry.line;
        let scope = Registry::parse(name).map(|registry| registry.to_string());
        let Some(scope) = scope.or_else(|| (name == OTHERS).then(|| OTHERS.to_owned())) else {
            self.leave(file, line, &key, "it is no registry: write HOST, HOST:PORT or *");
            return false;
        };
        if let Some((from, _)) = mirrors.rewrite.first() {
            let why = format!(
                "a regular expression is not done here, and without it its mirrors are asked for other names: say \
                 {name} with a prefix and a location in registries.conf"
            );
            self.leave(file, from.line, &format!("{key}.rewrite \"{}\"", from.value), &why);
            return false;
        }
        let api = |endpoint: &Endpoint| {
            if of == TablesOf::K3s || endpoint.path.is_empty() { Api::Below } else { Api::Whole }
        };
        let count = mirrors.endpoints.len();
        mirrors.endpoints.retain(|(text, endpoint)| self.fits(file, "endpoint", text, place(endpoint, api(endpoint))));
        if mirrors.endpoints.is_empty() && count > 0 {
            return false;
        }
        let mut targets: Vec<_> = mirrors
            .endpoints
            .iter()
            .filter_map(|(_, endpoint)| place(endpoint, api(endpoint)).ok())
            .map(|place| Target { place: (place != scope).then_some(place), ..SOURCE })
            .collect();
        if targets.iter().all(|target| target.place.is_some()) {
            targets.push(SOURCE);
        }
        self.is_agreed(file, line, &scope, targets)
    }

    fn fit_daemon_json(&mut self, file: &str, daemon: &mut DaemonJson) -> bool {
        let mut targets = Vec::new();
        daemon.registry_mirrors.retain(|text| {
            // An address that is none stops everything, when it is read.
            let Ok(endpoint) = Endpoint::parse(text) else { return true };
            let place = place(&endpoint, Api::Below);
            targets.extend(place.clone().ok().map(|place| Target { place: Some(place), ..SOURCE }));
            self.fits(file, "registry-mirrors", text, place)
        });
        targets.push(SOURCE);
        let Some(line) = daemon.registry_mirrors.first().map(|text| text.line) else { return false };
        self.is_agreed(file, line, "docker.io", targets)
    }

    /// What asks for a signature is rejected until somebody says who verifies it.
    fn fit_policy(&mut self, file: &str, policy: &mut SignaturePolicy) {
        let scopes = policy.docker.iter_mut().map(|scope| (scope.scope.value.clone(), &mut scope.requirements));
        let default = [("default".to_owned(), &mut policy.default.value)];
        for (scope, requirements) in scopes.chain(default) {
            let is_signed =
                |one: &Requirement| matches!(one.kind, RequirementKind::SignedBy | RequirementKind::SigstoreSigned);
            let Some(line) = requirements.iter().find(|one| is_signed(one)).map(|one| one.line) else { continue };
            for signed in requirements.iter().filter(|one| is_signed(one)) {
                let why = format!(
                    "signatures are the business of the plugin require-signature: give it the key and the images, and \
                     write insecureAcceptAnything for \"{scope}\" in plugins.d/10-allowlist.d, where it is rejected"
                );
                self.leave(file, signed.line, "type", &why);
            }
            *requirements = vec![Requirement { kind: RequirementKind::Reject, line }];
        }
    }

    /// Whether no other file of hosts says something else of a registry.
    fn is_agreed(&mut self, file: &str, line: usize, scope: &str, targets: Vec<Target>) -> bool {
        let Some(there) = self.mirrored.get(scope) else {
            let at = format!("{file}:{line}");
            self.mirrored.insert(scope.to_owned(), Mirrored { at, targets });
            return true;
        };
        let is_same = there.targets == targets;
        if !is_same {
            let why = format!("{} says it in another way, and that is kept: keep one of the two", there.at);
            self.leave(file, line, &format!("mirrors of \"{scope}\""), &why);
        }
        is_same
    }
}

/// Whether it says something of where images come from.
fn says_where(conf: &RegistriesConf) -> bool {
    !conf.registries.is_empty() || conf.unqualified_search.is_some() || !conf.aliases.is_empty()
}

fn target_of_host(scope: &str, host: &Host) -> Option<Target> {
    let (tags, digests) = (host.capabilities.resolve, host.capabilities.pull);
    let Some((_, endpoint)) = &host.address else { return (tags || digests).then_some(SOURCE) };
    let api = if host.override_path { Api::Whole } else { Api::Below };
    let place = place(endpoint, api).ok().filter(|place| place != scope);
    (tags || digests).then_some(Target { place, tags, digests })
}

/// The registry at an address, and the repositories that its path leads to; or why there are none.
fn place(endpoint: &Endpoint, api: Api) -> Result<String, String> {
    let Some(registry) = Registry::parse(&endpoint.host) else {
        return Err(format!("`{}` names no registry", endpoint.host.escape_debug()));
    };
    let path = endpoint.path.as_str();
    let below = match api {
        Api::Below => matches!(path, "" | "/v2").then_some(""),
        Api::Whole => path.strip_prefix("/v2").filter(|rest| rest.is_empty() || rest.starts_with('/')),
    };
    let Some(below) = below else {
        return Err(
            "this proxy asks registries at /v2 of their host only: name a host for it that has its API there, \
                    or, for repositories below one, a prefix and a location in registries.conf"
                .to_owned(),
        );
    };
    match below.trim_start_matches('/') {
        "" => Ok(registry.to_string()),
        path if Repository::parse(path).is_some() => Ok(format!("{registry}/{path}")),
        path => Err(format!("`{}` is no beginning of a repository", path.escape_debug())),
    }
}
