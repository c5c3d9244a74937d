//! The configuration: limits of upstreams, and budgets of clients.

use std::fmt;
use std::num::NonZeroU32;

use serde::Deserialize;
use tidegate_sdk::{File, Pattern, name};
use toml::Spanned;

/// The least that makes sense, in one line.
pub const EXAMPLE: &str = "upstream = [{ registry = \"docker.io\", low = \"20%\" }]";
/// Longest window. Units: seconds.
const WINDOW_MAX_SECS: u64 = 31 * 86_400;

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    upstream: Vec<WrittenUpstream>,
    #[serde(default)]
    budget: Vec<Spanned<WrittenBudget>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenUpstream {
    registry: Spanned<String>,
    low: Spanned<WrittenLow>,
    #[serde(default)]
    mirrors: Vec<Spanned<String>>,
    #[serde(default)]
    itself: Itself,
    #[serde(default = "yes")]
    serve_cached: bool,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a number of pulls, or a share such as \"20%\"")]
enum WrittenLow {
    Pulls(u32),
    Text(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenBudget {
    name: Option<String>,
    pulls: NonZeroU32,
    window: Spanned<String>,
    #[serde(default)]
    per: Per,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    images: Vec<Spanned<String>>,
    #[serde(default)]
    cached: bool,
}

fn yes() -> bool {
    true
}

/// When a registry whose limit runs low is tried itself.
#[derive(Clone, Copy, Default, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Itself {
    /// After its mirrors and all other candidates.
    #[default]
    Last,
    /// Not at all.
    Never,
}

/// Who shares a budget.
#[derive(Clone, Copy, Default, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// Each client has one of its own.
    #[default]
    Client,
    /// Each group has one.
    Group,
    /// All have one together.
    All,
}

/// What is low.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Low {
    /// So many pulls are left, or fewer.
    Pulls(u64),
    /// So much of the limit is left, or less. Units: percent.
    Share(u64),
}

/// What is done when a registry's limit runs low.
#[derive(Debug, PartialEq)]
pub struct Upstream {
    pub registry: String,
    pub low: Low,
    pub mirrors: Vec<Mirror>,
    pub itself: Itself,
    /// Whether cached copies of tags are served without a question, whatever their age.
    pub serve_cached: bool,
}

/// Another place for all of a registry.
#[derive(Debug, PartialEq)]
pub struct Mirror {
    pub registry: String,
    /// What stands before the repository there; empty: nothing.
    pub path: String,
}

/// How many pulls somebody has in a window.
#[derive(Debug)]
pub struct Budget {
    pub name: String,
    pub pulls: u32,
    pub window_secs: u32,
    /// As written: `6h`.
    pub window: String,
    pub per: Per,
    /// Those whose members it binds; empty: everybody.
    pub groups: Vec<String>,
    /// What it counts; empty: everything.
    pub images: Vec<Pattern>,
    /// Whether what the cache holds counts too.
    pub cached: bool,
}

/// Limits and budgets.
#[derive(Debug)]
pub struct Rules {
    /// The file that they stand in.
    pub file: String,
    pub upstreams: Vec<Upstream>,
    pub budgets: Vec<Budget>,
}

impl Rules {
    /// Parses a configuration file.
    ///
    /// # Errors
    /// The file, the line, the reason and the way out.
    pub fn parse(file: &File) -> Result<Self, String> {
        let written: Written = file.toml()?;
        if written.upstream.is_empty() && written.budget.is_empty() {
            let way_out = format!("write for example {EXAMPLE}");
            return Err(format!("{}: neither [[upstream]] nor [[budget]] is there: {way_out}", file.name));
        }
        let mut upstreams: Vec<Upstream> = Vec::with_capacity(written.upstream.len());
        for written in written.upstream {
            let at = written.registry.span().start;
            let upstream = Upstream::parse(file, &written)?;
            if upstreams.iter().any(|other| other.registry == upstream.registry) {
                let reason = format_args!("registry \"{}\" is there twice: put both into one", upstream.registry);
                return Err(file.refuse(at, reason));
            }
            upstreams.push(upstream);
        }
        let mut budgets: Vec<Budget> = Vec::with_capacity(written.budget.len());
        for (number, written) in written.budget.into_iter().enumerate() {
            let at = written.span().start;
            let budget = Budget::parse(file, number + 1, written.into_inner())?;
            if budgets.iter().any(|other| other.name == budget.name) {
                let reason = format_args!("budget \"{}\" is there twice: they would share one count", budget.name);
                return Err(file.refuse(at, reason));
            }
            budgets.push(budget);
        }
        Ok(Self { file: file.name.clone(), upstreams, budgets })
    }

    /// What is said about a registry.
    pub fn upstream(&self, registry: &str) -> Option<&Upstream> {
        self.upstreams.iter().find(|upstream| upstream.registry == registry)
    }
}

impl Upstream {
    fn parse(file: &File, written: &WrittenUpstream) -> Result<Self, String> {
        let refuse = |text: &Spanned<String>, what: &str, reason: &str| {
            file.refuse(text.span().start, format_args!("bad {what} \"{}\": {reason}", text.get_ref()))
        };
        let registry = name::registry(written.registry.get_ref())
            .ok_or_else(|| refuse(&written.registry, "registry", "write HOST or HOST:PORT, such as \"docker.io\""))?;
        let low = written.low.get_ref().parse().map_err(|reason| file.refuse(written.low.span().start, reason))?;
        let mut mirrors: Vec<Mirror> = Vec::with_capacity(written.mirrors.len());
        for text in &written.mirrors {
            let mirror = Mirror::parse(text.get_ref()).ok_or_else(|| {
                let way_out = "write HOST or HOST:PORT, and a path where the mirror has one (\"mirror.lan/hub\"); how it is \
                               reached is said under [registries.\"...\"] in tidegate.toml";
                refuse(text, "mirror", way_out)
            })?;
            if mirror.registry == registry {
                return Err(refuse(text, "mirror", "that is the registry itself: its limit runs low there too"));
            }
            if mirrors.contains(&mirror) {
                return Err(refuse(text, "mirror", "it is there twice: remove one"));
            }
            mirrors.push(mirror);
        }
        Ok(Self { registry, low, mirrors, itself: written.itself, serve_cached: written.serve_cached })
    }
}

impl WrittenLow {
    fn parse(&self) -> Result<Low, String> {
        match self {
            Self::Pulls(pulls) => Ok(Low::Pulls((*pulls).into())),
            Self::Text(text) => {
                let share = text.strip_suffix('%').and_then(|share| share.trim_end().parse().ok());
                share.filter(|share| *share <= 100).map(Low::Share).ok_or_else(|| {
                    format!("low = \"{text}\" says nothing: write a number of pulls (20), or a share (\"20%\")")
                })
            }
        }
    }
}

impl Mirror {
    fn parse(text: &str) -> Option<Self> {
        let (registry, path) = text.split_once('/').unwrap_or((text, ""));
        if text.ends_with('/') || !(path.is_empty() || name::is_repository(path)) {
            return None;
        }
        Some(Self { registry: name::registry(registry)?, path: path.to_owned() })
    }
}

impl Budget {
    fn parse(file: &File, number: usize, written: WrittenBudget) -> Result<Self, String> {
        let text = written.window.get_ref();
        let window_secs = parse_window(text).ok_or_else(|| {
            let reason =
                format_args!("window = \"{text}\" says nothing: write \"30m\", \"6h\" or \"1d\", 31 days at most");
            file.refuse(written.window.span().start, reason)
        })?;
        Ok(Self {
            name: written.name.unwrap_or_else(|| number.to_string()),
            pulls: written.pulls.get(),
            window_secs,
            window: text.clone(),
            per: written.per,
            groups: written.groups,
            images: file.patterns(&written.images)?,
            cached: written.cached,
        })
    }
}

fn parse_window(text: &str) -> Option<u32> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit_secs = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let secs = number.parse::<u64>().ok()?.checked_mul(unit_secs)?;
    if (1..=WINDOW_MAX_SECS).contains(&secs) { u32::try_from(secs).ok() } else { None }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, upstreams, budgets } = self;
        write!(f, "{file} watches the limits of {} registries and has {} budgets", upstreams.len(), budgets.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Result<Rules, String> {
        Rules::parse(&File { name: "60-quota.toml".to_owned(), text: text.to_owned() })
    }

    #[test]
    fn what_is_left_away_has_a_default() {
        let rules = rules(
            "[[upstream]]\nregistry = \"index.docker.io\"\nlow = 20\nmirrors = [\"m.lan\", \"n.lan:5000/hub\"]\n\
             [[budget]]\npulls = 100\nwindow = \"6h\"",
        )
        .expect("a configuration");
        let mirror = |registry: &str, path: &str| Mirror { registry: registry.to_owned(), path: path.to_owned() };
        let upstream = Upstream {
            registry: "docker.io".to_owned(),
            low: Low::Pulls(20),
            mirrors: vec![mirror("m.lan", ""), mirror("n.lan:5000", "hub")],
            itself: Itself::Last,
            serve_cached: true,
        };
        assert_eq!(rules.upstream("docker.io"), Some(&upstream));
        let budget = &rules.budgets[0];
        assert_eq!((budget.name.as_str(), budget.window_secs, budget.per), ("1", 21_600, Per::Client));
        assert_eq!(rules.to_string(), "60-quota.toml watches the limits of 1 registries and has 1 budgets");
    }

    #[test]
    fn what_is_refused_names_file_line_and_way_out() {
        let (up, budget) = ("[[upstream]]\nregistry = \"docker.io\"\n", "[[budget]]\npulls = 1\n");
        for (text, line, reason) in [
            (String::new(), ": ", "neither [[upstream]] nor [[budget]] is there: write"),
            ("upstreams = []".to_owned(), ":1: ", "unknown field `upstreams`"),
            (up.to_owned(), ":1: ", "missing field `low`"),
            (format!("{up}low = \"20\""), ":3: ", "write a number of pulls (20), or a share (\"20%\")"),
            (format!("{up}low = \"120%\""), ":3: ", "write a number of pulls"),
            (format!("{up}low = -1"), ":3: ", "a number of pulls, or a share"),
            (
                format!("{up}low = 1\nmirrors = [\n\"https://m.lan\"]"),
                ":5: ",
                "bad mirror \"https://m.lan\": write HOST",
            ),
            (format!("{up}low = 1\nmirrors = [\"docker.io/x\"]"), ":4: ", "that is the registry itself"),
            (format!("{up}low = 1\nmirrors = [\"m.lan\", \"M.lan\"]"), ":4: ", "it is there twice: remove one"),
            (format!("{up}low = 1\nitself = \"first\""), ":4: ", "expected `last` or `never`"),
            (format!("{up}low = 1\n{up}low = 1"), ":5: ", "is there twice: put both into one"),
            ("[[upstream]]\nregistry = \"docker io\"\nlow = 1".to_owned(), ":2: ", "bad registry \"docker io\""),
            (budget.to_owned(), ":1: ", "missing field `window`"),
            (format!("{budget}window = \"1w\""), ":3: ", "write \"30m\", \"6h\" or \"1d\""),
            (format!("{budget}window = \"0s\""), ":3: ", "write \"30m\""),
            (format!("{budget}window = \"32d\""), ":3: ", "31 days at most"),
            (format!("{budget}window = \"é\""), ":3: ", "write \"30m\""),
            (format!("{budget}window = \"1h\"\nper = \"user\""), ":4: ", "expected one of `client`, `group`, `all`"),
            (format!("{budget}window = \"1h\"\nimages = [\"a\"]"), ":4: ", "bad pattern \"a\": it names no registry"),
            ("[[budget]]\npulls = 0\nwindow = \"1h\"".to_owned(), ":2: ", "expected a nonzero u32"),
            (
                format!("{budget}name = \"a\"\nwindow = \"1h\"\n{budget}name = \"a\"\nwindow = \"1h\""),
                ":5: ",
                "is there twice: they would share one count",
            ),
        ] {
            let refusal = rules(&text).expect_err(&text);
            assert!(refusal.starts_with(&format!("60-quota.toml{line}")), "{text}: {refusal}");
            assert!(refusal.contains(reason), "{text}: {refusal}");
        }
    }

    #[test]
    fn the_examples_are_accepted() {
        assert!(rules(EXAMPLE).is_ok());
        let rules = rules(include_str!("../quota.toml")).expect("the example");
        assert_eq!((rules.upstreams.len(), rules.budgets.len()), (1, 1));
    }
}
