//! All that the files say, in one form, whatever they were written in: where each name is to be had.

use std::collections::HashMap;
use std::fmt;

use crate::place::{Place, Scope};

/// The rules, by the names that they are about.
#[derive(Default, Debug)]
pub struct Rules {
    list: Vec<Rule>,
    names: HashMap<String, usize>,
    domains: HashMap<String, usize>,
    others: Option<usize>,
    has_blocked: bool,
    /// How names without a registry are completed.
    pub short_names: ShortNames,
    /// What the operator may want to know of the files.
    pub notes: Vec<String>,
    /// How many files they stand in.
    pub files: usize,
}

/// What is done for one scope.
#[derive(Clone, PartialEq, Debug)]
pub struct Rule {
    pub scope: Scope,
    /// Where it is written: `20-mirrors.d/idms.yaml:9`.
    pub at: String,
    /// In the order in which they are tried.
    pub targets: Vec<Target>,
    /// The names themselves must not be asked for, nor written to; where it is written.
    pub blocked: Option<String>,
}

/// A place to try.
#[derive(Clone, PartialEq, Debug)]
pub struct Target {
    /// What stands in the place of the scope; none: the name itself.
    pub place: Option<Place>,
    /// Whether it is for pulls by tag.
    pub tags: bool,
    /// Whether it is for pulls by digest.
    pub digests: bool,
}

/// How names that arrive without a registry are completed.
#[derive(Default, Debug)]
pub struct ShortNames {
    /// Registries, in the order in which they are tried. Empty: there is only the proxy's default.
    pub search: Vec<Place>,
    /// Short name -> registry and repository.
    pub aliases: HashMap<String, (String, String)>,
}

impl ShortNames {
    pub fn is_empty(&self) -> bool {
        self.search.is_empty() && self.aliases.is_empty()
    }
}

impl Target {
    /// The name itself, for every pull.
    pub const SOURCE: Self = Self { place: None, tags: true, digests: true };
}

impl Rules {
    /// Adds a rule.
    ///
    /// # Errors
    /// Where the rule that is there for its scope already says something else.
    pub fn add(&mut self, rule: Rule) -> Result<(), String> {
        let next = self.list.len();
        let slot = match &rule.scope {
            Scope::Names(key) => self.names.entry(key.clone()).or_insert(next),
            Scope::Below(domain) => self.domains.entry(domain.clone()).or_insert(next),
            Scope::Others => self.others.get_or_insert(next),
        };
        if *slot != next {
            let other = &self.list[*slot];
            if other.targets == rule.targets && other.blocked.is_some() == rule.blocked.is_some() {
                return Ok(());
            }
            return Err(format!(
                "{}: {} is mirrored in another way by {}: keep one of the two",
                rule.at, rule.scope, other.at
            ));
        }
        self.has_blocked |= rule.blocked.is_some();
        self.list.push(rule);
        Ok(())
    }

    /// The rule with the longest scope that covers a name, and what of the name comes after the scope.
    ///
    /// Source: containers-registries.conf(5), `prefix`: "only the TOML table with the longest match is used". A scope
    /// ends where a `/` or a `:` follows, as containers/image has it. Of two that are of the same length, one with a
    /// wildcard holds, as it comes first in their order.
    pub fn find<'a>(&self, name: &'a str) -> Option<(&Rule, &'a str)> {
        let ends = || std::iter::once(name.len()).chain(name.rmatch_indices(['/', ':']).map(|(at, _)| at));
        let mut found = ends().find_map(|end| Some((end, end, *self.names.get(&name[..end])?)));
        if !self.domains.is_empty() {
            let host_end = name.find('/').unwrap_or(name.len());
            for end in ends() {
                for (dot, _) in name[..end.min(host_end)].match_indices('.') {
                    // The length as it is written: with its asterisk.
                    let length = end - dot + 1;
                    if found.is_none_or(|(longest, ..)| length >= longest)
                        && let Some(rule) = self.domains.get(&name[dot..end])
                    {
                        found = Some((length, end, *rule));
                    }
                }
            }
        }
        if let Some((_, end, rule)) = found {
            return Some((&self.list[rule], &name[end..]));
        }
        let host_end = name.find('/').unwrap_or(name.len());
        self.others.map(|rule| (&self.list[rule], &name[host_end..]))
    }

    /// Whether nothing is said at all.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty() && self.short_names.is_empty()
    }

    /// Whether some rule keeps this name from being asked for.
    pub fn is_blocked(&self, name: &str) -> bool {
        self.has_blocked && self.find(name).is_some_and(|(rule, _)| rule.blocked.is_some())
    }

    /// Whether some rule blocks at all.
    pub fn has_blocked(&self) -> bool {
        self.has_blocked
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mirrors: usize =
            self.list.iter().map(|rule| rule.targets.iter().filter(|target| target.place.is_some()).count()).sum();
        let blocked = self.list.iter().filter(|rule| rule.blocked.is_some()).count();
        write!(f, "files {}, sources {}, mirrors {mirrors}, blocked {blocked}", self.files, self.list.len())?;
        if self.short_names.is_empty() {
            return Ok(());
        }
        let ShortNames { search, aliases } = &self.short_names;
        write!(f, ", search registries {}, aliases {}", search.len(), aliases.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(scopes: &[&str]) -> Rules {
        let mut rules = Rules::default();
        for scope in scopes {
            let scope = if *scope == "*" { Scope::Others } else { Scope::parse(scope).expect("a scope") };
            let rule = Rule { at: scope.to_string(), scope, targets: vec![Target::SOURCE], blocked: None };
            rules.add(rule).expect("a rule");
        }
        rules
    }

    #[test]
    fn the_longest_scope_in_whole_components_holds() {
        let rules = rules(&[
            "docker.io",
            "docker.io/library/a",
            "docker.io/library",
            "localhost:5000/x",
            "*.example.com",
            "*.b.example.com",
            "a.b.example.com",
            "c.example.com/x",
            "registry.lan",
        ]);
        for (name, found) in [
            ("docker.io/library/a", Some("docker.io/library/a ")),
            ("docker.io/library/a/b", Some("docker.io/library/a /b")),
            ("docker.io/library/ab", Some("docker.io/library /ab")),
            ("docker.io/libraryx/ab", Some("docker.io /libraryx/ab")),
            ("localhost:5000/x", Some("localhost:5000/x ")),
            ("localhost:5000/y", None),
            ("docker.io.evil.org/library/a", None),
            ("example.com/a", None),
            ("z.example.com/a/b", Some("*.example.com /a/b")),
            ("z.y.example.com/a", Some("*.example.com /a")),
            ("z.b.example.com/a", Some("*.b.example.com /a")),
            // Both are of the same length as they are written.
            ("a.b.example.com/a", Some("*.b.example.com /a")),
            ("c.example.com/x/y", Some("c.example.com/x /y")),
            ("c.example.com/y", Some("*.example.com /y")),
            ("quay.io/z.example.com/a", None),
            ("registry.lan:5000/a", Some("registry.lan :5000/a")),
            ("z.example.com:5000/a", Some("*.example.com :5000/a")),
        ] {
            let answer = rules.find(name).map(|(rule, rest)| format!("{} {rest}", rule.at));
            assert_eq!(answer.as_deref(), found, "{name}");
        }
    }

    #[test]
    fn others_are_those_that_no_rule_is_about() {
        let rules = rules(&["*", "docker.io"]);
        let found = |name| rules.find(name).map(|(rule, rest)| format!("{} {rest}", rule.at)).expect("covered");
        assert_eq!(found("docker.io/a"), "docker.io /a");
        assert_eq!(found("quay.io/a/b"), "* /a/b");
    }

    #[test]
    fn one_scope_has_one_rule() {
        let mut rules = rules(&["docker.io"]);
        let same = Rule {
            scope: Scope::Names("docker.io".to_owned()),
            at: "b:1".to_owned(),
            targets: vec![Target::SOURCE],
            blocked: None,
        };
        assert_eq!(rules.add(same.clone()), Ok(()));
        let other = Rule { targets: Vec::new(), blocked: Some("b:1".to_owned()), ..same };
        let refusal = rules.add(other).expect_err("a contradiction");
        assert_eq!(refusal, "b:1: docker.io is mirrored in another way by docker.io: keep one of the two");
    }
}
