//! registries.conf and its drop-in files, as containers/image puts them together.

use std::collections::{BTreeMap, HashMap};

use tidegate_formats::{PullFromMirror, RegistriesConf, Registry, Text};

use crate::place::{Place, Scope};
use crate::rules::{Rule, Target};

/// All files of registries.conf together, before what the cluster adds.
#[derive(Default, Debug)]
pub struct Containers {
    /// In the order in which they are looked through.
    pub entries: Vec<Entry>,
    pub search: Vec<(String, Text)>,
    pub aliases: BTreeMap<String, (String, Text)>,
    pub notes: Vec<String>,
}

/// One `[[registry]]`, however it came about.
#[derive(Clone, Debug)]
pub struct Entry {
    /// As it is written.
    pub scope: String,
    /// Where it is written.
    pub at: String,
    pub location: Option<String>,
    /// Where it says so.
    pub blocked: Option<String>,
    pub by_digest_only: bool,
    pub mirrors: Vec<EntryMirror>,
}

/// One `[[registry.mirror]]`.
#[derive(Clone, PartialEq, Debug)]
pub struct EntryMirror {
    pub location: String,
    pub at: String,
    pub pull: PullFromMirror,
}

impl Containers {
    /// Adds a file. What it says of a prefix replaces what files before it said.
    pub fn add(&mut self, file: &str, conf: &RegistriesConf) -> Result<(), String> {
        let mut added: Vec<Entry> = Vec::new();
        let mut by_scope: HashMap<String, usize> = HashMap::new();
        for registry in &conf.registries {
            let entry = Entry::new(file, registry);
            let Some(other) = by_scope.get(&entry.scope).map(|at| &added[*at]) else {
                by_scope.insert(entry.scope.clone(), added.len());
                added.push(entry);
                continue;
            };
            if other.location == entry.location && other.blocked.is_some() != entry.blocked.is_some() {
                return Err(format!(
                    "{}: {} is blocked in one of two entries and not in the other ({}): put both into one",
                    entry.at, entry.scope, other.at
                ));
            }
            self.notes.push(format!(
                "{}: {} has an entry before this one ({}), which holds: containers tools pass this one over too",
                entry.at, entry.scope, other.at
            ));
        }
        for before in self.entries.extract_if(.., |entry| by_scope.contains_key(&entry.scope)) {
            let entry = &added[by_scope[&before.scope]];
            self.notes.push(format!("{}: {} holds instead of {}", entry.at, entry.scope, before.at));
        }
        self.entries.append(&mut added);
        if let Some(search) = &conf.unqualified_search {
            self.search = search.iter().map(|registry| (file.to_owned(), registry.clone())).collect();
        }
        for alias in &conf.aliases {
            if alias.target.is_empty() {
                self.aliases.remove(alias.name.as_str());
            } else {
                self.aliases.insert(alias.name.value.clone(), (file.to_owned(), alias.target.clone()));
            }
        }
        Ok(())
    }

    /// The entry of a scope, made where there is none.
    pub fn entry(&mut self, scope: &str, at: &str) -> &mut Entry {
        let index = self.entries.iter().position(|entry| entry.scope == scope).unwrap_or_else(|| {
            self.entries.push(Entry {
                scope: scope.to_owned(),
                at: at.to_owned(),
                location: (!scope.starts_with("*.")).then(|| scope.to_owned()),
                blocked: None,
                by_digest_only: false,
                mirrors: Vec::new(),
            });
            self.entries.len() - 1
        });
        &mut self.entries[index]
    }
}

impl Entry {
    fn new(file: &str, registry: &Registry) -> Self {
        let at = format!("{file}:{}", registry.line);
        let mirrors = registry.mirrors.iter().map(|mirror| EntryMirror {
            location: mirror.location.value.clone(),
            at: format!("{file}:{}", mirror.location.line),
            pull: mirror.pull,
        });
        Self {
            scope: registry.scope().value.clone(),
            location: registry.location.as_ref().map(|location| location.value.clone()),
            blocked: registry.blocked.then(|| at.clone()),
            by_digest_only: registry.mirror_by_digest_only,
            mirrors: mirrors.collect(),
            at,
        }
    }

    /// Whether it is about a single tag or digest. containers tools look for the name without either, so that it is about
    /// nothing.
    pub fn is_one_image(&self) -> bool {
        self.scope.split_once('/').is_some_and(|(_, path)| path.contains([':', '@']))
    }

    /// The entry as a rule.
    ///
    /// # Errors
    /// The file, the line, the reason and the way out.
    pub fn rule(&self) -> Result<Rule, String> {
        let refuse =
            |at: &str, what: &str, text: &str, reason: String| format!("{at}: bad {what} \"{text}\": {reason}");
        let scope = Scope::parse(&self.scope).map_err(|reason| refuse(&self.at, "prefix", &self.scope, reason))?;
        let mut targets = Vec::with_capacity(self.mirrors.len() + 1);
        for mirror in &self.mirrors {
            if self.by_digest_only && mirror.pull != PullFromMirror::All {
                return Err(format!(
                    "{}: {} has mirror-by-digest-only ({}), which allows no rule of its own for a mirror: remove it there",
                    mirror.at, self.scope, self.at
                ));
            }
            let place = Place::parse(&mirror.location)
                .map_err(|reason| refuse(&mirror.at, "mirror", &mirror.location, reason))?;
            targets.push(Target {
                place: Some(place),
                tags: !self.by_digest_only && mirror.pull != PullFromMirror::DigestOnly,
                digests: mirror.pull != PullFromMirror::TagOnly,
            });
        }
        let location = self.location.as_deref().map(Place::parse).transpose();
        let location =
            location.map_err(|reason| refuse(&self.at, "location", self.location.as_deref().unwrap_or(""), reason))?;
        if self.blocked.is_none() {
            let place = location.filter(|location| location.to_string() != scope.to_string());
            targets.push(Target { place, ..Target::SOURCE });
        }
        Ok(Rule { scope, at: self.at.clone(), targets, blocked: self.blocked.clone() })
    }
}
