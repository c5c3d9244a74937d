//! The list of a configuration, indexed, and the decision.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use tidegate_sdk::pattern::{self, Pattern};
use tidegate_sdk::{File, Reference, Request, Verdict, name};
use toml::Spanned;

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lists {
    allow: Option<Spanned<Vec<Spanned<String>>>>,
    block: Option<Spanned<Vec<Spanned<String>>>>,
}

/// An allow list or a block list.
#[derive(Debug)]
pub struct Rules {
    /// The file that it stands in.
    file: String,
    list: List,
    count: usize,
    /// By registry (a name, `*.example.com`, `*`), then by what is covered of it, as in [`Pattern::path`].
    registries: HashMap<String, HashMap<String, Vec<Rule>>>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum List {
    Allow,
    Block,
}

/// What is said about one path.
#[derive(Clone, Debug)]
struct Rule {
    /// As the operator wrote it.
    text: Box<str>,
    tag: Option<Box<str>>,
}

impl Rules {
    /// Parses a configuration file.
    ///
    /// # Errors
    /// The file, the line, the reason and the way out.
    pub fn parse(file: &File) -> Result<Self, String> {
        let lists: Lists = file.toml()?;
        let (list, key, patterns) = match (lists.allow, lists.block) {
            (Some(allow), None) => (List::Allow, "allow", allow),
            (None, Some(block)) => (List::Block, "block", block),
            (Some(allow), Some(block)) => {
                let at = allow.span().start.max(block.span().start);
                return Err(file.refuse(at, "\"allow\" and \"block\" are both there: keep one of the two"));
            }
            (None, None) => {
                return Err(format!(
                    "{}: neither \"allow\" nor \"block\" is there: write block = [\"docker.io/library/redis\"], or \
                     allow = [...] with all that may be pulled",
                    file.name
                ));
            }
        };
        if patterns.get_ref().is_empty() {
            let way_out = "write a pattern, \"*\" for everything, or remove the plugin";
            return Err(file.refuse(patterns.span().start, format_args!("\"{key}\" is empty: {way_out}")));
        }
        let count = patterns.get_ref().len();
        let mut rules = Self { file: file.name.clone(), list, count, registries: HashMap::new() };
        for text in patterns.into_inner() {
            let pattern = parse(text.get_ref()).map_err(|reason| {
                file.refuse(text.span().start, format_args!("bad pattern \"{}\": {reason}", text.get_ref()))
            })?;
            rules.insert(pattern);
        }
        Ok(rules)
    }

    fn insert(&mut self, Pattern { text, registry, path, tag, .. }: Pattern) {
        let rule = Rule { text: text.into(), tag: tag.map(Into::into) };
        if registry == "*" && !path.is_empty() && !path.contains('/') {
            // `*/redis` on Docker Hub is `library/redis`.
            self.insert_at(name::DOCKER_HUB.to_owned(), format!("library/{path}"), rule.clone());
        }
        self.insert_at(registry, path, rule);
    }

    fn insert_at(&mut self, registry: String, path: String, rule: Rule) {
        let paths = self.registries.entry(registry).or_default();
        // Nearly every path has one rule, and a list may have thousands of paths.
        paths.entry(path).or_insert_with(|| Vec::with_capacity(1)).push(rule);
    }

    /// Decides about one request.
    pub fn admit(&self, request: &Request) -> Verdict {
        match self.list {
            List::Allow => self.admit_allowed(request),
            List::Block => self.admit_unless_blocked(request),
        }
    }

    fn admit_unless_blocked(&self, request: &Request) -> Verdict {
        let blocks = |rule: &&Rule| match (&rule.tag, request.tag()) {
            (None, _) => true,
            (Some(pattern), Some(tag)) => pattern::covers_tag(pattern, tag),
            // The digest of a tag cannot be told from the digests of other tags.
            (Some(_), None) => false,
        };
        let Some(rule) = self.covering(request).find(blocks) else {
            return Verdict::Allow;
        };
        let image = image(request, rule.tag.is_some());
        Verdict::deny(format!("{image} is blocked by rule \"{}\" of {}", rule.text, self.file))
    }

    fn admit_allowed(&self, request: &Request) -> Verdict {
        let allows = |rule: &Rule| match (&rule.tag, &request.reference) {
            (Some(pattern), Reference::Tag(tag)) => pattern::covers_tag(pattern, tag),
            // A client asks for a tag once, and for all that belongs to it by digest.
            (None, _) | (Some(_), Reference::Digest(_) | Reference::None) => true,
        };
        let mut near = None;
        for rule in self.covering(request) {
            if allows(rule) {
                return Verdict::Allow;
            }
            near.get_or_insert(rule);
        }
        let image = image(request, near.is_some());
        Verdict::deny(match near {
            None => format!("{image} is not allowed: no rule of {} covers it", self.file),
            Some(rule) => {
                format!("{image} is not allowed: rule \"{}\" of {} covers other tags", rule.text, self.file)
            }
        })
    }

    /// The rules whose registry and repository cover the request, the closest first.
    fn covering(&self, request: &Request) -> impl Iterator<Item = &Rule> {
        let repository = request.repository.as_str();
        let above = repository.rmatch_indices('/').map(|(at, _)| &repository[..=at]);
        let paths: Vec<&str> = std::iter::once(repository).chain(above).chain([""]).collect();
        let registries = registry_keys(&request.registry, self.list).into_iter();
        let found = registries.filter_map(|registry| self.registries.get(&registry));
        found.flat_map(move |rules| paths.clone().into_iter().filter_map(|path| rules.get(path))).flatten()
    }
}

/// A pattern of a list: it has no digest, since the digests of a repository cannot be told apart before they are there.
fn parse(text: &str) -> Result<Pattern, String> {
    if let Some((image, _)) = text.split_once('@') {
        return Err(format!("a pattern names tags, not digests: write \"{image}\" for all of that repository"));
    }
    Pattern::parse(text)
}

/// The names under which rules for this registry may stand: its own, `*.` and each end of it, `*`.
///
/// A list that blocks `quay.io` blocks `quay.io:443` too, as nobody shall get round it by a port; a list that allows
/// `quay.io` allows what the operator wrote, and no other port.
fn registry_keys(registry: &str, list: List) -> Vec<String> {
    let mut spellings = vec![registry];
    if let (host, Some(_)) = name::split_port(registry)
        && list == List::Block
    {
        spellings.push(host);
    }
    let ends = |spelling: &str| -> Vec<String> {
        spelling.match_indices('.').map(|(at, _)| format!("*{}", &spelling[at..])).collect()
    };
    let mut keys: Vec<String> = spellings.iter().map(|spelling| (*spelling).to_owned()).collect();
    keys.extend(spellings.into_iter().flat_map(ends));
    keys.push("*".to_owned());
    keys
}

/// What a denial is about: a repository, or one tag of it.
fn image(request: &Request, with_tag: bool) -> String {
    let Request { registry, repository, .. } = request;
    match request.tag() {
        Some(tag) if with_tag => format!("{registry}/{repository}:{tag}"),
        _ => format!("{registry}/{repository}"),
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let patterns = if self.count == 1 { "pattern" } else { "patterns" };
        let verb = match self.list {
            List::Allow => "allows",
            List::Block => "blocks",
        };
        write!(f, "{} {verb} {} {patterns}", self.file, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_sdk::{Action, Content};

    fn rules(text: &str) -> Result<Rules, String> {
        Rules::parse(&File { name: "10-allowlist.toml".to_owned(), text: text.to_owned() })
    }

    /// `docker.io/library/redis`, with `:tag` or `@digest`.
    fn request(image: &str) -> Request {
        let (registry, rest) = image.split_once('/').expect("a registry");
        let (repository, reference) = match (rest.split_once('@'), rest.split_once(':')) {
            (Some((repository, digest)), _) => (repository, Reference::Digest(digest.to_owned())),
            (None, Some((repository, tag))) => (repository, Reference::Tag(tag.to_owned())),
            (None, None) => (rest, Reference::None),
        };
        Request {
            action: Action::Pull,
            content: Content::Manifest,
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            reference,
        }
    }

    /// The message of the denial; none: allowed.
    fn denied(rules: &Rules, image: &str) -> Option<String> {
        match rules.admit(&request(image)) {
            Verdict::Allow => None,
            Verdict::Deny(denial) => {
                assert_eq!((denial.status, denial.code.as_str()), (403, "DENIED"));
                Some(denial.message)
            }
            Verdict::CachedOnly => panic!("never said"),
        }
    }

    #[test]
    fn patterns_cover_what_they_say_in_both_lists() {
        for (pattern, covered, others) in [
            (
                "docker.io/library/redis",
                vec!["docker.io/library/redis:7", "docker.io/library/redis@sha256:00", "docker.io/library/redis"],
                vec!["docker.io/library/redis2:7", "docker.io/library/redis/x:7", "quay.io/library/redis:7"],
            ),
            ("docker.io/redis", vec!["docker.io/library/redis:7"], vec!["docker.io/other/redis:7"]),
            ("quay.io", vec!["quay.io/a:1", "quay.io/a/b/c@sha256:00"], vec!["docker.io/library/a:1", "quay.io.x/a:1"]),
            ("quay.io/*", vec!["quay.io/a:1", "quay.io/a/b/c"], vec!["sub.quay.io/a:1"]),
            (
                "docker.io/library/*",
                vec!["docker.io/library/a:1", "docker.io/library/a/b"],
                vec!["docker.io/library2/a:1", "docker.io/other/library/a"],
            ),
            ("quay.io/a/*", vec!["quay.io/a/b", "quay.io/a/b/c:1"], vec!["quay.io/a:1", "quay.io/ab/c"]),
            (
                "*.example.com",
                vec!["a.example.com/x:1", "a.b.example.com/x/y"],
                vec!["example.com/x:1", "badexample.com/x", "a.example.com.evil.org/x"],
            ),
            ("*", vec!["quay.io/a:1", "localhost:5000/x"], vec![]),
            ("*/redis", vec!["docker.io/library/redis:7", "quay.io/redis"], vec!["docker.io/other/redis:7"]),
            ("quay.io:443", vec!["quay.io:443/a"], vec!["quay.io/a", "quay.io:80/a"]),
        ] {
            let allow = rules(&format!("allow = [\"{pattern}\"]")).expect(pattern);
            let block = rules(&format!("block = [\"{pattern}\"]")).expect(pattern);
            for image in covered {
                assert_eq!(denied(&allow, image), None, "{pattern} allows {image}");
                assert!(denied(&block, image).is_some(), "{pattern} blocks {image}");
            }
            for image in others {
                assert!(denied(&allow, image).is_some(), "{pattern} does not allow {image}");
                assert_eq!(denied(&block, image), None, "{pattern} does not block {image}");
            }
        }
    }

    #[test]
    fn a_port_does_not_get_round_a_block_list() {
        let block = rules("block = [\"quay.io\", \"*.example.com\"]").expect("a list");
        assert!(denied(&block, "quay.io:443/a").is_some());
        assert!(denied(&block, "a.example.com:5000/a").is_some());
        let allow = rules("allow = [\"quay.io\", \"*.example.com\"]").expect("a list");
        assert!(denied(&allow, "quay.io:443/a").is_some());
        assert!(denied(&allow, "a.example.com:5000/a").is_some());
    }

    #[test]
    fn an_allowed_tag_opens_the_digests_of_its_repository() {
        let allow = rules("allow = [\"docker.io/library/nginx:1.2*\"]").expect("a list");
        for image in ["docker.io/library/nginx:1.25", "docker.io/library/nginx@sha256:00", "docker.io/library/nginx"] {
            assert_eq!(denied(&allow, image), None, "{image}");
        }
        assert!(denied(&allow, "docker.io/library/nginx:1.3").is_some());
        assert!(denied(&allow, "docker.io/library/redis@sha256:00").is_some());
    }

    #[test]
    fn a_blocked_tag_leaves_the_digests_of_its_repository() {
        let block = rules("block = [\"docker.io/library/nginx:1.2*\"]").expect("a list");
        assert!(denied(&block, "docker.io/library/nginx:1.25").is_some());
        for image in ["docker.io/library/nginx:1.3", "docker.io/library/nginx@sha256:00", "docker.io/library/nginx"] {
            assert_eq!(denied(&block, image), None, "{image}");
        }
    }

    #[test]
    fn a_denial_names_the_image_and_the_rule() {
        let block = rules("block = [\"docker.io/redis\", \"quay.io/*:v1*\"]").expect("a list");
        let allow = rules("allow = [\"quay.io/a:1\"]").expect("a list");
        for (rules, image, message) in [
            (
                &block,
                "docker.io/library/redis:7",
                "docker.io/library/redis is blocked by rule \"docker.io/redis\" of 10-allowlist.toml",
            ),
            (&block, "quay.io/a:v1.2", "quay.io/a:v1.2 is blocked by rule \"quay.io/*:v1*\" of 10-allowlist.toml"),
            (
                &allow,
                "docker.io/library/redis:7",
                "docker.io/library/redis is not allowed: no rule of 10-allowlist.toml covers it",
            ),
            (
                &allow,
                "quay.io/a:2",
                "quay.io/a:2 is not allowed: rule \"quay.io/a:1\" of 10-allowlist.toml covers other tags",
            ),
        ] {
            assert_eq!(denied(rules, image).as_deref(), Some(message));
        }
    }

    #[test]
    fn what_is_refused_names_file_line_and_way_out() {
        for (text, reason) in [
            ("", "10-allowlist.toml: neither \"allow\" nor \"block\" is there: write block = "),
            ("alow = [\"quay.io\"]", "10-allowlist.toml:1: unknown field `alow`, expected `allow` or `block`"),
            ("block = [\"quay.io\"]\nallow = [\"*\"]", "10-allowlist.toml:2: \"allow\" and \"block\" are both there"),
            ("\nblock = []", "10-allowlist.toml:2: \"block\" is empty: write a pattern"),
            ("allow = []", "10-allowlist.toml:1: \"allow\" is empty: write a pattern"),
            ("block = \"quay.io\"", "10-allowlist.toml:1: invalid type: string \"quay.io\", expected a sequence"),
            ("block = [\n  \"quay.io\",\n  7]", "10-allowlist.toml:3: invalid type: integer `7`, expected a string"),
            (
                "block = [\n  \"quay.io\",\n  \"redis\"]",
                "10-allowlist.toml:3: bad pattern \"redis\": it names no registry: write \"docker.io/library/redis\"",
            ),
            (
                "block = [\"quay.io/x@sha256:00\"]",
                "10-allowlist.toml:1: bad pattern \"quay.io/x@sha256:00\": a pattern names tags, not digests: write \"quay.io/x\"",
            ),
            ("block = [\"quay.io\"", "10-allowlist.toml:1: "),
        ] {
            let refusal = rules(text).expect_err(text);
            assert!(refusal.starts_with(reason), "{text}: {refusal}");
        }
    }

    #[test]
    fn the_example_is_accepted() {
        let rules = rules(include_str!("../allowlist.toml")).expect("the example");
        assert_eq!(rules.to_string(), "10-allowlist.toml blocks 1 pattern");
        assert!(denied(&rules, "docker.io/example/blocked:1").is_some());
    }
}
