//! The configuration: how long which images are held.

use std::fmt;

use serde::Deserialize;
use tidegate_sdk::{File, Pattern, Request};
use toml::Spanned;

/// Longest time that makes sense. Units: days.
const DAYS_MAX: f64 = 3650.0;

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    days: Spanned<f64>,
    #[serde(default)]
    except: Vec<Spanned<String>>,
    ask: Option<String>,
    #[serde(default)]
    trust_created: bool,
    #[serde(default)]
    when_full: WhenFull,
    #[serde(default)]
    rule: Vec<WrittenRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    images: Spanned<Vec<Spanned<String>>>,
    days: Spanned<f64>,
}

/// What becomes of a new image when no more can be taken down.
#[derive(Clone, Copy, Default, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    #[default]
    Hold,
    Release,
}

/// How long which images are held.
#[derive(Debug)]
pub struct Rules {
    /// The file that they stand in.
    pub file: String,
    /// Images that are not held at all.
    pub except: Vec<Pattern>,
    /// Who may except an image, in words.
    pub ask: Option<String>,
    /// Whether the date that the image's author gives counts.
    pub trust_created: bool,
    pub when_full: WhenFull,
    default: Term,
    list: Vec<(Vec<Pattern>, Term)>,
}

/// For how long an image is held.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Term {
    days: f64,
}

impl Rules {
    /// Parses a configuration file.
    ///
    /// # Errors
    /// The file, the line, the reason and the way out.
    pub fn parse(file: &File) -> Result<Self, String> {
        let written: Written = file.toml()?;
        let default = Term::parse(file, &written.days)?;
        let mut list = Vec::with_capacity(written.rule.len());
        for rule in written.rule {
            if rule.images.get_ref().is_empty() {
                let way_out = "write a pattern, \"*\" for everything, or remove this rule";
                return Err(file.refuse(rule.images.span().start, format_args!("\"images\" is empty: {way_out}")));
            }
            list.push((file.patterns(rule.images.get_ref())?, Term::parse(file, &rule.days)?));
        }
        let except = file.patterns(&written.except)?;
        let Written { ask, trust_created, when_full, .. } = written;
        Ok(Self { file: file.name.clone(), except, ask, trust_created, when_full, default, list })
    }

    /// For how long an image is held, and by which pattern of a rule; none: by no rule of its own.
    ///
    /// `digest`: of its manifest.
    pub fn term(&self, request: &Request, digest: &str) -> (Term, Option<&Pattern>) {
        let covering = |(images, term): &'_ (Vec<Pattern>, Term)| {
            let at = images.iter().position(|pattern| pattern.covers_on_any_port(request, Some(digest)))?;
            Some((at, *term))
        };
        for rule in &self.list {
            if let Some((at, term)) = covering(rule) {
                return (term, Some(&rule.0[at]));
            }
        }
        (self.default, None)
    }

    /// The longest time for which any image is held. Units: milliseconds.
    pub fn longest_ms(&self) -> u64 {
        self.list.iter().map(|(_, term)| term.ms()).fold(self.default.ms(), u64::max)
    }
}

impl Term {
    fn parse(file: &File, days: &Spanned<f64>) -> Result<Self, String> {
        let it = *days.get_ref();
        if (0.0..=DAYS_MAX).contains(&it) {
            return Ok(Self { days: it });
        }
        Err(file.refuse(days.span().start, format_args!("days = {it} is not between 0 and {DAYS_MAX}")))
    }

    /// Units: milliseconds.
    pub fn ms(self) -> u64 {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 3650 days fit")]
        let ms = (self.days * 86_400_000.0) as u64;
        ms
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ms() == 86_400_000 { f.write_str("1 day") } else { write!(f, "{} days", self.days) }
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, default, list, except, .. } = self;
        write!(f, "{file} holds new images for {default}, with {} rules and {} exceptions", list.len(), except.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_sdk::testing::request;

    fn rules(text: &str) -> Result<Rules, String> {
        Rules::parse(&File { name: "30-cooldown.toml".to_owned(), text: text.to_owned() })
    }

    #[test]
    fn the_first_rule_that_covers_an_image_holds() {
        let text = "days = 7\n[[rule]]\nimages = [\"docker.io/library/*\", \"quay.io/a:rc*\"]\ndays = 1\n\
                    [[rule]]\nimages = [\"docker.io\"]\ndays = 0.5";
        let rules = rules(text).expect("a configuration");
        for (image, term, pattern) in [
            ("docker.io/library/a:1", "1 day", Some("docker.io/library/*")),
            ("docker.io/a/b:1", "0.5 days", Some("docker.io")),
            ("docker.io:443/a/b:1", "0.5 days", Some("docker.io")),
            ("quay.io/a:rc1", "1 day", Some("quay.io/a:rc*")),
            ("quay.io/a:1", "7 days", None),
        ] {
            let (found, by) = rules.term(&request(image), "sha256:00");
            assert_eq!((found.to_string().as_str(), by.map(|by| by.text.as_str())), (term, pattern), "{image}");
        }
        assert_eq!(rules.longest_ms(), 7 * 86_400_000);
        assert_eq!(rules.to_string(), "30-cooldown.toml holds new images for 7 days, with 2 rules and 0 exceptions");
    }

    #[test]
    fn what_is_refused_names_file_line_and_way_out() {
        for (text, line, reason) in [
            ("", ":1: ", "missing field `days`"),
            ("days = \"7\"", ":1: ", "invalid type: string \"7\""),
            ("days = -1", ":1: ", "is not between 0 and 3650"),
            ("days = nan", ":1: ", "is not between 0 and 3650"),
            ("days = 4000", ":1: ", "is not between 0 and 3650"),
            ("days = 7\nexept = []", ":2: ", "unknown field `exept`, expected one of `days`, `except`"),
            ("days = 7\nexcept = [\n\"redis\"]", ":3: ", "bad pattern \"redis\": it names no registry"),
            ("days = 7\nexcept = [\"quay.io/a@sha256:12\"]", ":2: ", "\"sha256:12\" is no digest"),
            ("days = 7\nwhen_full = \"deny\"", ":2: ", "expected `hold` or `release`"),
            ("days = 7\n[[rule]]\nimages = []\ndays = 1", ":3: ", "\"images\" is empty: write a pattern"),
            ("days = 7\n[[rule]]\nimages = [\"*\"]", ":2: ", "missing field `days`"),
        ] {
            let refusal = rules(text).expect_err(text);
            assert!(refusal.starts_with(&format!("30-cooldown.toml{line}")), "{text}: {refusal}");
            assert!(refusal.contains(reason), "{text}: {refusal}");
        }
    }

    #[test]
    fn the_example_is_accepted() {
        let rules = rules(include_str!("../cooldown.toml")).expect("the example");
        assert_eq!(rules.except.len(), 1);
    }
}
