//! From the operator's files to rules: what each file is, what those of one system make together, and that those of
//! different systems do not contradict each other.

use tidegate_formats::{Content, Text};
use tidegate_sdk::{File, name};

use crate::cluster::Cluster;
use crate::containers::Containers;
use crate::hosts;
use crate::place::Place;
use crate::rules::{Rule, Rules};

/// Most places that one name may lead to: the host takes no more candidates.
const TARGETS_MAX: usize = 60;

/// Reads all files.
///
/// # Errors
/// The file, the line, the reason and the way out.
pub fn load(files: &[File]) -> Result<Rules, String> {
    if files.is_empty() {
        return Err(
            "no configuration: put your registries.conf, mirror sets, hosts.toml or daemon.json into the folder \
                    of the plugin's own stem (20-mirrors.d beside 20-mirrors.wasm), or one of them beside it \
                    (20-mirrors.yaml)"
                .to_owned(),
        );
    }
    let (mut containers, mut cluster) = (Containers::default(), Cluster::default());
    let mut by_host: Vec<Rule> = Vec::new();
    let mut notes = Vec::new();
    for file in in_order(files) {
        for document in tidegate_formats::read(&file.name, &file.text).map_err(|refusal| refusal.to_string())? {
            match &document.content {
                Content::RegistriesConf(conf) => containers.add(&file.name, conf)?,
                Content::MirrorSet(set) => cluster.add_mirror_set(&file.name, set),
                Content::ImageConfig(config) => {
                    cluster.add_image_config(&file.name, config);
                    if let Some(allowed) = &config.allowed {
                        notes.push(format!(
                            "{}:{}: allowedRegistries are not held here: give this file to the plugin allowlist too",
                            file.name, allowed.line
                        ));
                    }
                }
                Content::HostsToml(toml) => by_host.push(hosts::of_hosts_toml(&file.name, document.line, toml)?),
                Content::RegistryTables(tables) => by_host.extend(hosts::of_tables(&file.name, tables)?),
                Content::DaemonJson(daemon) => by_host.extend(hosts::of_daemon_json(&file.name, daemon)?),
                other => {
                    return Err(format!(
                        "{}:{}: {} says what may be pulled, not from where: it is read by the plugin allowlist",
                        file.name,
                        document.line,
                        other.name()
                    ));
                }
            }
            // Of files that say much else, what is not about registries is nobody's concern here.
            if matches!(document.content, Content::RegistriesConf(_) | Content::MirrorSet(_) | Content::HostsToml(_)) {
                let unread = document.unread.iter();
                notes.extend(unread.map(|key| format!("{}:{}: {} is not known here", file.name, key.line, key.key)));
            }
        }
    }
    cluster.edit(&mut containers);
    let mut rules = Rules::default();
    rules.files = files.len();
    rules.notes = notes;
    rules.notes.append(&mut containers.notes);
    for entry in &containers.entries {
        if entry.is_one_image() {
            rules.notes.push(format!(
                "{}: {} names one tag or digest, of which containers tools take no notice either: the plugin allowlist \
                 holds it",
                entry.at, entry.scope
            ));
            continue;
        }
        rules.add_checked(entry.rule()?)?;
    }
    for rule in by_host {
        rules.add_checked(rule)?;
    }
    short_names(&containers, &mut rules)?;
    if rules.is_empty() {
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        let verb = if names.len() == 1 { "says" } else { "say" };
        return Err(format!(
            "{} {verb} nothing of where images come from: name a mirror, or remove the plugin",
            names.join(", ")
        ));
    }
    Ok(rules)
}

/// As containers tools read them: registries.conf itself before its drop-ins, whatever their names are.
fn in_order(files: &[File]) -> Vec<&File> {
    let is_drop_in = |file: &&File| file.name.rsplit('/').next() != Some("registries.conf");
    let mut ordered: Vec<&File> = files.iter().collect();
    ordered.sort_by_key(is_drop_in);
    ordered
}

fn short_names(containers: &Containers, rules: &mut Rules) -> Result<(), String> {
    let refuse = |(file, text): &(String, Text), reason: String| {
        format!("{file}:{}: bad registry \"{}\": {reason}", text.line, text.value)
    };
    for search in &containers.search {
        let place = Place::parse(search.1.trim_end_matches('/')).map_err(|reason| refuse(search, reason))?;
        rules.short_names.search.push(place);
    }
    for (short, target) in &containers.aliases {
        let place = Place::parse(&target.1).map_err(|reason| refuse(target, reason))?;
        if !name::is_repository(short) || place.path.is_empty() {
            let (file, text) = target;
            let reason = "write a short name without a registry, and a registry with a repository";
            return Err(format!("{file}:{}: bad alias \"{short}\" = \"{}\": {reason}", text.line, text.value));
        }
        rules.short_names.aliases.insert(short.clone(), (place.registry, place.path));
    }
    Ok(())
}

impl Rules {
    fn add_checked(&mut self, rule: Rule) -> Result<(), String> {
        if rule.targets.len() > TARGETS_MAX {
            let count = rule.targets.len();
            return Err(format!("{}: {} has {count} places to try, {TARGETS_MAX} at most", rule.at, rule.scope));
        }
        self.add(rule)
    }
}
