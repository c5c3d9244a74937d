//! The configuration: what becomes of which tags when they move.

use std::fmt;

use serde::Deserialize;
use tidegate_sdk::pattern::covers_tag;
use tidegate_sdk::{File, Pattern, Request};
use toml::Spanned;

/// Tags that are meant to move, where the configuration names none.
const MUTABLE: [&str; 14] = [
    "latest",
    "*-latest",
    "nightly",
    "*-nightly",
    "nightly-*",
    "edge",
    "*-edge",
    "main",
    "master",
    "dev",
    "develop",
    "canary",
    "unstable",
    "rolling",
];

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    moved: Moved,
    mutable: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    accept: Vec<Spanned<String>>,
    #[serde(default)]
    when_full: WhenFull,
    #[serde(default)]
    rule: Vec<WrittenRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    images: Spanned<Vec<Spanned<String>>>,
    moved: Moved,
}

/// What becomes of a tag that moved.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Moved {
    /// It is denied.
    Deny,
    /// It is served with a warning.
    Warn,
    /// The first digest is served, wherever the tag points now.
    Pin,
    /// It may move.
    Allow,
}

/// What becomes of a tag that is new when no more can be taken down.
#[derive(Clone, Copy, Default, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    Deny,
    #[default]
    Release,
}

/// What becomes of which tags.
#[derive(Debug)]
pub struct Rules {
    /// The file that they stand in.
    pub file: String,
    pub when_full: WhenFull,
    default: Moved,
    mutable: Vec<String>,
    accept: Vec<Pattern>,
    list: Vec<(Vec<Pattern>, Moved)>,
}

impl Rules {
    /// Parses a configuration file.
    ///
    /// # Errors
    /// The file, the line, the reason and the way out.
    pub fn parse(file: &File) -> Result<Self, String> {
        let written: Written = file.toml()?;
        let mutable = match written.mutable {
            None => MUTABLE.iter().map(|&tag| tag.to_owned()).collect(),
            Some(tags) => tags.into_iter().map(|tag| parse_tag(file, tag)).collect::<Result<_, _>>()?,
        };
        let accept = file.patterns(&written.accept)?;
        for (pattern, text) in accept.iter().zip(&written.accept) {
            // What accepts more than one digest of one tag would accept each move.
            if pattern.tag.as_ref().is_none_or(|tag| tag.contains('*')) || pattern.digest.is_none() {
                let way_out = "write the tag and the digest that it may have: \"docker.io/library/redis:7@sha256:...\"";
                return Err(file.refuse(text.span().start, format_args!("bad \"{pattern}\" in \"accept\": {way_out}")));
            }
        }
        let mut list = Vec::with_capacity(written.rule.len());
        for rule in written.rule {
            let (texts, at) = (rule.images.get_ref(), rule.images.span().start);
            if texts.is_empty() {
                let way_out = "write a pattern, \"*\" for everything, or remove this rule";
                return Err(file.refuse(at, format_args!("\"images\" is empty: {way_out}")));
            }
            let patterns = file.patterns(texts)?;
            if let Some(at) = patterns.iter().position(|pattern| pattern.digest.is_some()) {
                let reason = format_args!("bad pattern \"{}\": a rule is about tags: write no digest", patterns[at]);
                return Err(file.refuse(texts[at].span().start, reason));
            }
            list.push((patterns, rule.moved));
        }
        let (when_full, default) = (written.when_full, written.moved);
        Ok(Self { file: file.name.clone(), when_full, default, mutable, accept, list })
    }

    /// What becomes of a tag when it moves. The first rule that covers it holds; one that names no tags leaves those
    /// alone that are meant to move.
    pub fn moved(&self, request: &Request) -> Moved {
        let Some(tag) = request.tag() else { return Moved::Allow };
        let is_mutable = self.mutable.iter().any(|pattern| covers_tag(pattern, tag));
        let covers =
            |pattern: &Pattern| (pattern.tag.is_some() || !is_mutable) && pattern.covers_on_any_port(request, None);
        let rule = self.list.iter().find(|(images, _)| images.iter().any(covers));
        match rule {
            Some((_, moved)) => *moved,
            None if is_mutable => Moved::Allow,
            None => self.default,
        }
    }

    /// The digests that the operator accepts for a tag, the latest last.
    pub fn accepted<'a>(&'a self, request: &'a Request) -> impl DoubleEndedIterator<Item = &'a str> {
        let digest = |pattern: &'a Pattern| {
            let digest = pattern.digest.as_deref()?;
            pattern.covers(request, Some(digest)).then_some(digest)
        };
        self.accept.iter().filter_map(digest)
    }
}

fn parse_tag(file: &File, tag: Spanned<String>) -> Result<String, String> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-*".contains(&byte);
    let text = tag.get_ref();
    if (1..=128).contains(&text.len()) && text.bytes().all(is_word) {
        return Ok(tag.into_inner());
    }
    let way_out = "write a tag such as \"latest\", with * for any number of characters; images go into a [[rule]]";
    Err(file.refuse(tag.span().start, format_args!("bad tag \"{text}\": {way_out}")))
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deny => "denied",
            Self::Warn => "warned of",
            Self::Pin => "pinned",
            Self::Allow => "allowed",
        })
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, default, list, mutable, accept, .. } = self;
        let (rules, mutable, accept) = (list.len(), mutable.len(), accept.len());
        write!(
            f,
            "{file}: tags that move are {default}, with {rules} rules, {mutable} that may move, {accept} accepted"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_sdk::testing::request;

    fn rules(text: &str) -> Result<Rules, String> {
        Rules::parse(&File { name: "50-tag-guard.toml".to_owned(), text: text.to_owned() })
    }

    #[test]
    fn the_first_rule_that_covers_a_tag_holds() {
        let text = "moved = \"deny\"\n[[rule]]\nimages = [\"quay.io/team/*\", \"quay.io/ops:latest\"]\nmoved = \"pin\"\n\
                    [[rule]]\nimages = [\"quay.io\"]\nmoved = \"warn\"";
        let rules = rules(text).expect("a configuration");
        for (image, moved) in [
            ("quay.io/team/app:1", Moved::Pin),
            ("quay.io:443/team/app:1", Moved::Pin),
            ("quay.io/team/app:latest", Moved::Allow),
            ("quay.io/team/app:1-nightly", Moved::Allow),
            ("quay.io/ops:latest", Moved::Pin),
            ("quay.io/other:1", Moved::Warn),
            ("docker.io/library/a:1", Moved::Deny),
            ("docker.io/library/a:latest", Moved::Allow),
            ("docker.io/library/a@sha256:00", Moved::Allow),
        ] {
            assert_eq!(rules.moved(&request(image)), moved, "{image}");
        }
    }

    #[test]
    fn tags_that_may_move_are_the_configurations_own() {
        let rules = rules("moved = \"deny\"\nmutable = [\"v*\"]").expect("a configuration");
        assert_eq!(rules.moved(&request("quay.io/a:v1")), Moved::Allow);
        assert_eq!(rules.moved(&request("quay.io/a:latest")), Moved::Deny);
    }

    #[test]
    fn what_is_refused_names_file_line_and_way_out() {
        let digest = format!("sha256:{}", "1".repeat(64));
        for (text, line, reason) in [
            (String::new(), ":1: ", "missing field `moved`"),
            ("moved = \"block\"".to_owned(), ":1: ", "expected one of `deny`, `warn`, `pin`, `allow`"),
            ("moved = \"deny\"\nacept = []".to_owned(), ":2: ", "unknown field `acept`, expected one of"),
            (
                "moved = \"deny\"\naccept = [\n\"quay.io/a:1\"]".to_owned(),
                ":3: ",
                "write the tag and the digest that it may have",
            ),
            (format!("moved = \"deny\"\naccept = [\"quay.io/a@{digest}\"]"), ":2: ", "write the tag and the digest"),
            (format!("moved = \"deny\"\naccept = [\"quay.io/a:1*@{digest}\"]"), ":2: ", "write the tag and the digest"),
            ("moved = \"deny\"\nmutable = [\"quay.io/a:1\"]".to_owned(), ":2: ", "write a tag such as \"latest\""),
            ("moved = \"deny\"\nmutable = [\"\"]".to_owned(), ":2: ", "write a tag such as \"latest\""),
            ("moved = \"deny\"\n[[rule]]\nimages = []\nmoved = \"pin\"".to_owned(), ":3: ", "\"images\" is empty"),
            (
                format!("moved = \"deny\"\n[[rule]]\nimages = [\n\"quay.io/a@{digest}\"]\nmoved = \"pin\""),
                ":4: ",
                "a rule is about tags: write no digest",
            ),
            (
                "moved = \"deny\"\n[[rule]]\nimages = [\"a\"]\nmoved = \"pin\"".to_owned(),
                ":3: ",
                "it names no registry",
            ),
        ] {
            let refusal = rules(&text).expect_err(&text);
            assert!(refusal.starts_with(&format!("50-tag-guard.toml{line}")), "{text}: {refusal}");
            assert!(refusal.contains(reason), "{text}: {refusal}");
        }
    }

    #[test]
    fn the_example_is_accepted() {
        let rules = rules(include_str!("../tag-guard.toml")).expect("the example");
        assert_eq!(rules.moved(&request("docker.io/library/redis:7")), Moved::Warn);
    }
}
