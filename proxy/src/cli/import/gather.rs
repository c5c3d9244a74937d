//! What the files say, taken together: which registries there are, how they are reached, and which plugin reads what.

use std::collections::BTreeMap;

use tidegate_formats::{
    Content, DaemonJson, Document, Endpoint, Hosted, HostsToml, ImageConfig, RegistriesConf, RegistryTables,
    RequirementKind, SignaturePolicy, Text,
};

use super::Left;
use super::fitting::Mirrored;
use super::input::{Found, Kind, entry, text};
use super::logins::Logins;
use super::outcome::CONFIG;
use super::reach::{At, Named, Path, Reach, Said};
use super::rebuilt::rebuilt;
use super::trust::Certificate;
use crate::oci::Registry;

/// The folder of the plugin that says from where images come, and of the one that says which.
const MIRRORS: &str = "20-mirrors.d";
const ALLOWLIST: &str = "10-allowlist.d";

/// All of it.
#[derive(Default)]
pub(super) struct Gathered {
    pub reach: Reach,
    pub logins: Logins,
    pub certificates: Vec<Certificate>,
    /// Names of the config maps that were given, and of those that are wanted, with where.
    pub config_maps: Vec<String>,
    wanted_maps: Vec<(String, Text)>,
    /// Registries of which files of hosts were written, and what they say.
    pub mirrored: BTreeMap<String, Mirrored>,
    /// Files for plugins: below plugins.d, and what is in them.
    pub plugin_files: Vec<(String, String)>,
    /// From where, and to where.
    pub carried: Vec<(String, String)>,
    pub left: Vec<Left>,
}

impl Gathered {
    /// Takes a file.
    pub fn take(&mut self, found: &Found) -> Result<(), String> {
        match &found.kind {
            Kind::Certificate(registry) => self.certificate(found, &registry.clone()),
            Kind::Logins => self.logins(&found.file(), &found.text, 1),
            Kind::Objects(nodes) => {
                for node in nodes {
                    match entry(node, "kind").and_then(|(_, kind)| text(kind)) {
                        Some("Secret") => self.secret(found, node),
                        _ => self.config_map(found, node),
                    }
                }
            }
            Kind::Documents(documents) => {
                for document in documents {
                    self.document(found, document)?;
                }
            }
            Kind::Nothing => self.carried.push((found.file(), "nowhere: it says nothing".to_owned())),
            Kind::Unknown(line, why) => {
                let key = found.name.clone();
                self.left.push(Left { file: found.file(), line: *line, key, why: why.clone() });
            }
        }
        Ok(())
    }

    /// What can be said only when all files are read.
    pub fn settle(&mut self) {
        for (file, name) in std::mem::take(&mut self.wanted_maps) {
            if !self.config_maps.contains(&name.value) {
                let why = format!(
                    "the config map {0} was not among the files: give what `oc get configmap {0} -n openshift-config -o yaml` prints",
                    name.value
                );
                self.leave(&file, name.line, "spec.additionalTrustedCA.name", &why);
            }
        }
        self.reach.settle(&mut self.left);
    }

    pub fn named(&mut self, registry: &Registry) -> &mut Named {
        self.reach.registries.entry(registry.clone()).or_default()
    }

    pub fn leave(&mut self, file: &str, line: usize, key: &str, why: &str) {
        let line = Some(line);
        self.left.push(Left { file: file.to_owned(), line, key: key.to_owned(), why: why.to_owned() });
    }

    fn document(&mut self, found: &Found, document: &Document) -> Result<(), String> {
        let file = found.file();
        for unread in &document.unread {
            let why = match document.content {
                Content::DaemonJson(_) | Content::RegistryTables(_) => "it is not about where images come from",
                _ => "nothing here reads it",
            };
            self.leave(&file, unread.line, &unread.key, why);
        }
        let fitted = self.fit(&file, document);
        let mut folder = MIRRORS;
        match &fitted.document.content {
            Content::RegistriesConf(conf) => self.registries_conf(&file, conf),
            Content::MirrorSet(set) => {
                for rule in &set.rules {
                    self.name(&file, "source", &rule.source);
                    for mirror in &rule.mirrors {
                        self.place(&file, "mirrors", mirror, Said::Nothing);
                    }
                }
            }
            Content::ImageConfig(config) => self.image_config(found, document.line, config)?,
            Content::HostsToml(hosts) => self.hosts_toml(found, hosts),
            Content::RegistryTables(tables) => self.tables(found, tables),
            Content::DaemonJson(daemon) => self.daemon_json(&file, daemon)?,
            Content::SignaturePolicy(policy) => {
                self.policy(&file, policy);
                folder = ALLOWLIST;
            }
            other => self.leave(&file, document.line, other.name(), "this version does not know what to do with it"),
        }
        if !fitted.is_for_plugin {
            return Ok(());
        }
        // As it is, or the plugin's part of it. Only objects of Kubernetes come several in a file: these stay as they are.
        let text = rebuilt(&fitted.document, document).unwrap_or_else(|| found.text.clone());
        self.hand_text(found, folder, text)
    }

    fn hand_text(&mut self, found: &Found, folder: &str, text: String) -> Result<(), String> {
        let mut path = format!("{folder}/{}", found.name);
        let mut number = 1;
        while let Some((_, there)) = self.plugin_files.iter().find(|(taken, _)| *taken == path) {
            if *there == text {
                return Ok(());
            }
            if found.name.ends_with("hosts.toml") {
                return Err(format!("{}: another file is for the same registry: give one of them", found.file()));
            }
            number += 1;
            // Behind the other, and behind registries.conf: the order of names is the order in which they hold.
            path = format!("{folder}/{}-{number}", found.name);
        }
        self.carried.push((found.file(), format!("plugins.d/{path}")));
        self.plugin_files.push((path, text));
        Ok(())
    }

    /// A registry that is named, to be reached at all.
    fn name(&mut self, file: &str, key: &'static str, name: &Text) {
        if let Err(why) = self.reach.name(name).map(drop) {
            self.leave(file, name.line, &format!("{key} = \"{}\"", name.value), &why);
        }
    }

    /// A place to pull from.
    fn place(&mut self, file: &str, key: &'static str, place: &Text, said: Said) {
        let at = At { file: file.to_owned(), line: place.line, key };
        match self.reach.name(place) {
            Ok(named) => named.place(at, Path::of(place), said),
            Err(why) => self.leave(file, place.line, &format!("{key} = \"{}\"", place.value), &why),
        }
    }

    fn endpoint(&mut self, file: &str, key: &'static str, (text, endpoint): &(Text, Endpoint)) {
        let at = At { file: file.to_owned(), line: text.line, key };
        match self.reach.name(&endpoint.host) {
            Ok(named) => named.address(at, endpoint.scheme),
            Err(why) => self.leave(file, text.line, &format!("{key} = \"{}\"", text.value), &why),
        }
    }

    fn registries_conf(&mut self, file: &str, conf: &RegistriesConf) {
        for registry in &conf.registries {
            // What is blocked without a mirror is asked of nobody.
            if registry.blocked && registry.mirrors.is_empty() {
                continue;
            }
            match &registry.location {
                Some(location) if registry.blocked => self.name(file, "location", location),
                Some(location) => self.place(file, "location", location, Said::of(registry.insecure)),
                None => {}
            }
            if registry.insecure && (registry.blocked || registry.location.is_none()) {
                let why = "nothing is pulled from there, or it is not told where that is";
                self.leave(file, registry.line, "registry.insecure", why);
            }
            if let Some(prefix) = &registry.prefix {
                self.name(file, "prefix", prefix);
            }
            for mirror in &registry.mirrors {
                self.place(file, "mirror.location", &mirror.location, Said::of(mirror.insecure));
            }
        }
        for search in conf.unqualified_search.iter().flat_map(|list| &list.value) {
            self.name(file, "unqualified-search-registries", search);
        }
        for alias in &conf.aliases {
            self.name(file, "aliases", &alias.target);
        }
        if let Some(helper) = conf.credential_helpers.first() {
            let why =
                "logins are read from docker's or Podman's file, or from helpers that it names: write `docker_config`";
            self.leave(file, helper.line, "credential-helpers", why);
        }
        if let Some(mode) = &conf.short_name_mode {
            self.leave(
                file,
                mode.line,
                "short-name-mode",
                "nobody can be asked here: a short name is looked for in order",
            );
        }
    }

    fn image_config(&mut self, found: &Found, line: usize, config: &ImageConfig) -> Result<(), String> {
        let file = found.file();
        for allowed in config.allowed.iter().flat_map(|list| &list.value) {
            // What is allowed must be reachable; a tag may stand behind a repository, never behind a registry alone.
            self.name(&file, "spec.registrySources.allowedRegistries", allowed);
        }
        for insecure in &config.insecure {
            self.place(&file, "spec.registrySources.insecureRegistries", insecure, Said::Insecure);
        }
        for search in &config.search {
            self.name(&file, "spec.registrySources.containerRuntimeSearchRegistries", search);
        }
        for import in &config.allowed_for_import {
            let why = "it is about who may import image streams, which the cluster asks by itself";
            self.leave(&file, import.domain.line, "spec.allowedRegistriesForImport", why);
        }
        for name in &config.external_registry_hostnames {
            let why = "it is how the cluster's own registry is called from outside";
            self.leave(&file, name.line, "spec.externalRegistryHostnames", why);
        }
        if let Some(name) = &config.internal_registry_hostname {
            let why = "it is how the cluster's own registry is called inside; its images do not come through here";
            self.leave(&file, name.line, "status.internalRegistryHostname", why);
        }
        self.wanted_maps.extend(config.additional_trusted_ca.clone().map(|name| (file.clone(), name)));
        // What is blocked may still come from a mirror: that is told of where images come from, not of what may be pulled.
        if config.allowed.is_some() {
            // The plugin takes no mirror sets, which may stand beside it.
            match alone(&found.name, &found.text, line) {
                Some(text) => self.hand_text(found, ALLOWLIST, text.to_owned())?,
                None => self.leave(&file, line, "spec.registrySources", "give this object a file of its own"),
            }
        }
        Ok(())
    }

    fn hosts_toml(&mut self, found: &Found, hosts: &HostsToml) {
        let file = found.file();
        match &hosts.of {
            Hosted::Registry(name) => self.name(&file, "folder", &Text { value: name.clone(), line: 1 }),
            Hosted::Others => {
                let why = "registries without a folder of their own: add [registries.\"NAME\"] for each that is not well known";
                self.leave(&file, 1, "_default", why);
            }
            Hosted::Unknown => self.leave(&file, 1, "hosts.toml", "its folder does not say which registry it is for"),
        }
        for host in hosts.hosts.iter().chain([&hosts.server]) {
            let Some((address, endpoint)) = &host.address else { continue };
            self.endpoint(&file, "host", &(address.clone(), endpoint.clone()));
            if host.skip_verify {
                let of = Text { value: endpoint.host.clone(), line: address.line };
                self.place(&file, "skip_verify", &of, Said::Insecure);
            }
            for (number, ca) in host.ca.iter().enumerate() {
                let name = if number == 0 { "ca.crt".to_owned() } else { format!("ca-{}.crt", number + 1) };
                self.named_certificate(found, &endpoint.host, ca, &name);
            }
            for pair in &host.client {
                self.named_certificate(found, &endpoint.host, &pair.certificate, "client.cert");
                self.named_certificate(
                    found,
                    &endpoint.host,
                    pair.key.as_ref().unwrap_or(&pair.certificate),
                    "client.key",
                );
            }
            for header in &host.headers {
                self.leave(
                    &file,
                    header.line,
                    &format!("header.{}", header.value),
                    "no headers are added to what goes out",
                );
            }
            if let Some(timeout) = &host.dial_timeout {
                self.leave(&file, timeout.line, "dial_timeout", "it is one for all: `[limits] upstream_connect`");
            }
        }
    }

    fn tables(&mut self, found: &Found, tables: &RegistryTables) {
        let file = found.file();
        if let Some(path) = &tables.config_path {
            let why = format!("give the folder {} too, if its files are not among these", path.value);
            self.leave(&file, path.line, "config_path", &why);
        }
        for mirrors in &tables.mirrors {
            if mirrors.registry.as_str() == "*" {
                let why = "registries that are not named: add [registries.\"NAME\"] for each that is not well known";
                self.leave(&file, mirrors.registry.line, "mirrors.\"*\"", why);
            } else {
                self.name(&file, "mirrors", &mirrors.registry);
            }
            for endpoint in &mirrors.endpoints {
                self.endpoint(&file, "endpoint", endpoint);
            }
        }
        for tls in &tables.tls {
            // It may be an address as well as a host.
            let host = Endpoint::parse(&tls.host).map_or_else(|_| tls.host.value.clone(), |endpoint| endpoint.host);
            let of = Text { value: host.clone(), line: tls.host.line };
            if tls.insecure_skip_verify {
                self.place(&file, "tls.insecure_skip_verify", &of, Said::Insecure);
            }
            for (named, name) in
                [(&tls.ca_file, "ca.crt"), (&tls.cert_file, "client.cert"), (&tls.key_file, "client.key")]
            {
                if let Some(named) = named.as_ref().filter(|named| !named.is_empty()) {
                    self.named_certificate(found, &host, named, name);
                }
            }
        }
        for auth in &tables.auth {
            self.table_login(found, auth);
        }
    }

    fn daemon_json(&mut self, file: &str, daemon: &DaemonJson) -> Result<(), String> {
        for mirror in &daemon.registry_mirrors {
            let endpoint = Endpoint::parse(mirror)
                .map_err(|why| format!("{file}:{}: registry-mirrors: bad address: {why}", mirror.line))?;
            self.endpoint(file, "registry-mirrors", &(mirror.clone(), endpoint));
        }
        if daemon.registry_mirrors.is_empty() && !daemon.insecure_registries.is_empty() {
            self.carried.push((file.to_owned(), CONFIG.to_owned()));
        }
        for insecure in &daemon.insecure_registries {
            let name = insecure.split_once("://").map_or(insecure.as_str(), |(_, name)| name);
            // Networks are written with a length behind a slash.
            if name.split_once('/').is_some_and(|(_, length)| length.parse::<u8>().is_ok()) {
                let why = "networks are not trusted as a whole: write `insecure = true` under each registry in it";
                self.leave(file, insecure.line, &format!("insecure-registries \"{}\"", insecure.value), why);
                continue;
            }
            let name = Text { value: name.to_owned(), line: insecure.line };
            self.place(file, "insecure-registries", &name, Said::Insecure);
        }
        Ok(())
    }

    fn policy(&mut self, file: &str, policy: &SignaturePolicy) {
        for scope in policy.docker.iter().filter(|scope| !scope.scope.is_empty()) {
            let accepts = scope.requirements.iter().all(|one| one.kind == RequirementKind::Accept);
            if accepts {
                self.name(file, "transports.docker", &scope.scope);
            }
        }
        for transport in &policy.other_transports {
            self.leave(file, transport.line, &format!("transports.{}", transport.value), "no registry is asked for it");
        }
    }
}

/// The document that begins in a line, without the others of its file; none where lines of dashes do not part them.
fn alone<'a>(name: &str, text: &'a str, line: usize) -> Option<&'a str> {
    let mut from = 0;
    let mut to = text.len();
    let mut at = 0;
    for (number, one) in text.split_inclusive('\n').enumerate() {
        if one.starts_with("---") && number + 1 < line {
            from = at;
        } else if one.starts_with("---") && number + 1 > line {
            to = at;
            break;
        }
        at += one.len();
    }
    let part = text.get(from..to)?;
    let documents = tidegate_formats::read(name, part).ok()?;
    matches!(documents.as_slice(), [one] if matches!(one.content, Content::ImageConfig(_))).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_configuration_is_taken_out_of_its_file() {
        let image = "apiVersion: config.openshift.io/v1\nkind: Image\nspec: {}\n";
        let set = image.replace("Image", "ImageTagMirrorSet");
        assert_eq!(alone("f", image, 1), Some(image));
        assert_eq!(alone("f", &format!("{set}---\n{image}---\n{set}"), 5), Some(&*format!("---\n{image}")));
        assert_eq!(alone("f", &format!("---\n{image}---\n{set}"), 2), Some(&*format!("---\n{image}")));
        let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: config.openshift.io/v1, kind: Image}\n\
                    - {apiVersion: config.openshift.io/v1, kind: ImageTagMirrorSet}\n";
        assert_eq!(alone("f", list, 4), None);
    }
}
