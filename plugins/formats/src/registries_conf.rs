//! containers' registries.conf, version 2. Source: containers-registries.conf(5).

use crate::table::Table;
use crate::tree::Value;
use crate::{Located, Refusal, Text};

/// registries.conf, or a file of registries.conf.d.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct RegistriesConf {
    /// Where names without a registry are looked for; an empty list says: nowhere.
    pub unqualified_search: Option<Located<Vec<Text>>>,
    /// `enforcing`, `permissive`, `disabled`.
    pub short_name_mode: Option<Text>,
    /// Names of programs, or `containers-auth.json`.
    pub credential_helpers: Vec<Text>,
    /// Each `[[registry]]`.
    pub registries: Vec<Registry>,
    /// `[aliases]`.
    pub aliases: Vec<Alias>,
}

/// One `[[registry]]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Registry {
    /// Where it begins.
    pub line: usize,
    /// Which names it is about; none: those of its location.
    pub prefix: Option<Text>,
    /// Where they are; none (with a prefix `*.example.com`): where they say.
    pub location: Option<Text>,
    /// Whether it is spoken to without trust.
    pub insecure: bool,
    /// Whether it is kept from being asked itself.
    pub blocked: bool,
    /// Whether its mirrors are for pulls by digest only.
    pub mirror_by_digest_only: bool,
    /// In the order in which they are tried.
    pub mirrors: Vec<Mirror>,
}

/// One `[[registry.mirror]]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Mirror {
    /// What stands in the place of the prefix.
    pub location: Text,
    /// Whether it is spoken to without trust.
    pub insecure: bool,
    /// Which pulls it is for.
    pub pull: PullFromMirror,
}

/// `pull-from-mirror`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum PullFromMirror {
    /// Every pull.
    #[default]
    All,
    /// Pulls by digest.
    DigestOnly,
    /// Pulls by tag.
    TagOnly,
}

/// A short name, and what it stands for.
#[derive(Clone, PartialEq, Debug)]
pub struct Alias {
    /// `fedora`
    pub name: Text,
    /// `registry.fedoraproject.org/fedora`; empty takes away what a file before said.
    pub target: Text,
}

impl Registry {
    /// The names that it is about: a registry, the beginning of a repository, or `*.example.com`.
    pub fn scope(&self) -> &Text {
        let prefix = self.prefix.as_ref().filter(|prefix| !prefix.is_empty());
        prefix.or(self.location.as_ref()).expect("one of the two is there: it was read so")
    }
}

pub fn is_one(keys: &[&str]) -> bool {
    const KEYS: [&str; 6] = [
        "registry",
        "unqualified-search-registries",
        "aliases",
        "short-name-mode",
        "credential-helpers",
        "additional-layer-store-auth-helper",
    ];
    keys.iter().any(|key| KEYS.contains(key))
}

pub fn read(mut file: Table<'_>) -> Result<RegistriesConf, Refusal> {
    let unqualified_search = file.take("unqualified-search-registries").map(|node| (node.line, node));
    let unqualified_search = match unqualified_search {
        None => None,
        Some((line, node)) => match node.value {
            Value::List(items) => {
                let mut value = Vec::with_capacity(items.len());
                for item in items {
                    match item.value {
                        Value::Text(text) => value.push(Located { value: text, line: item.line }),
                        _ => {
                            return Err(file.refuse(item.line, "unqualified-search-registries must be a list of texts"));
                        }
                    }
                }
                Some(Located { value, line })
            }
            _ => return Err(file.refuse(line, "unqualified-search-registries must be a list of texts")),
        },
    };
    let mut conf = RegistriesConf {
        unqualified_search,
        short_name_mode: file.text("short-name-mode")?,
        credential_helpers: file.texts("credential-helpers")?.unwrap_or_default(),
        ..RegistriesConf::default()
    };
    for registry in file.tables("registry")? {
        conf.registries.push(read_registry(registry)?);
    }
    if let Some(mut aliases) = file.table("aliases")? {
        for entry in aliases.take_rest() {
            let Value::Text(target) = entry.node.value else {
                return Err(file.refuse(entry.line, format!("the alias \"{}\" must be a text", entry.key)));
            };
            let target = Located { value: target, line: entry.node.line };
            conf.aliases.push(Alias { name: Located { value: entry.key, line: entry.line }, target });
        }
    }
    file.finish();
    Ok(conf)
}

fn read_registry(mut table: Table<'_>) -> Result<Registry, Refusal> {
    let line = table.line;
    let mut registry = Registry {
        line,
        prefix: location(&mut table, "prefix")?,
        location: location(&mut table, "location")?,
        insecure: table.flag("insecure")?,
        blocked: table.flag("blocked")?,
        mirror_by_digest_only: table.flag("mirror-by-digest-only")?,
        mirrors: Vec::new(),
    };
    match (&registry.prefix, &registry.location) {
        (None, None) => return Err(table.refuse(line, "a [[registry]] has neither prefix nor location: write one")),
        (Some(prefix), None) if !prefix.starts_with("*.") => {
            return Err(table.refuse(
                prefix.line,
                format!("prefix \"{0}\" has no location: write location = \"{0}\"", prefix.value),
            ));
        }
        _ => {}
    }
    if let Some(text) = table.text("pull-from-mirror")?.filter(|text| !text.is_empty()) {
        let reason = "pull-from-mirror belongs into a [[registry.mirror]], not into the [[registry]] itself";
        return Err(table.refuse(text.line, reason));
    }
    for mut mirror in table.tables("mirror")? {
        let Some(location) = location(&mut mirror, "location")? else {
            return Err(mirror.refuse(mirror.line, "a [[registry.mirror]] has no location: write one"));
        };
        let written = mirror.text("pull-from-mirror")?;
        let pull = match written.as_ref().map(|text| text.as_str()) {
            None | Some("" | "all") => PullFromMirror::All,
            Some("digest-only") => PullFromMirror::DigestOnly,
            Some("tag-only") => PullFromMirror::TagOnly,
            Some(other) => {
                let line = written.as_ref().map_or(mirror.line, |text| text.line);
                let reason = format!("pull-from-mirror \"{other}\" is none: write all, digest-only or tag-only");
                return Err(mirror.refuse(line, reason));
            }
        };
        if registry.mirror_by_digest_only
            && let Some(text) = written.filter(|text| !text.is_empty())
        {
            let reason =
                "pull-from-mirror and the registry's mirror-by-digest-only are both there: keep one of the two";
            return Err(mirror.refuse(text.line, reason));
        }
        registry.mirrors.push(Mirror { location, insecure: mirror.flag("insecure")?, pull });
        mirror.finish();
    }
    table.finish();
    Ok(registry)
}

/// A name of registries or repositories; slashes at its end say nothing. An empty one is none.
fn location(table: &mut Table<'_>, key: &str) -> Result<Option<Text>, Refusal> {
    let Some(text) = table.text(key)? else { return Ok(None) };
    let value = text.trim_end_matches('/');
    if value.contains("://") {
        let name = value.split_once("://").map_or(value, |(_, name)| name);
        return Err(table.refuse(text.line, format!("{} is a name, not an address: write \"{name}\"", table.name(key))));
    }
    Ok((!value.is_empty()).then(|| Located { value: value.to_owned(), line: text.line }))
}
