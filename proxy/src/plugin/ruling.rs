//! What a plugin is asked, and what it rules, in the words of the program.

use std::sync::Arc;
use std::time::Duration;

use super::bindings::{freshness, hints, types};
use crate::oci::{Candidate, Code, Denial, Digest, Place};

/// A call of a hook, with what it is given.
#[derive(Clone)]
pub(super) enum Ask {
    Check,
    /// What its answers depend on.
    Hints,
    Admit(Arc<types::Request>),
    Route(Arc<types::Request>, Vec<types::Candidate>),
    OnFailure(Arc<types::Request>, Vec<types::Attempt>, Vec<types::Candidate>),
    Inspect(Arc<types::Request>),
    Judge(Arc<types::Request>, Option<freshness::CachedTag>),
}

impl Ask {
    /// How many hooks there are.
    pub const HOOKS: usize = 7;

    /// The hook's place among them.
    pub fn number(&self) -> usize {
        match self {
            Self::Check => 0,
            Self::Admit(_) => 1,
            Self::Route(..) => 2,
            Self::OnFailure(..) => 3,
            Self::Inspect(_) => 4,
            Self::Judge(..) => 5,
            Self::Hints => 6,
        }
    }

    /// Place and name of the hook `admission`.
    pub const ADMISSION: (usize, &'static str) = (1, "admission");
    /// Place and name of the hook `routing`.
    pub const ROUTING: (usize, &'static str) = (2, "routing");

    /// The hook's name.
    pub fn hook(&self) -> &'static str {
        match self {
            Self::Check => "lifecycle",
            Self::Hints => "hints",
            Self::Admit(_) => "admission",
            Self::Route(..) => "routing",
            Self::OnFailure(..) => "fallback",
            Self::Inspect(_) => "inspection",
            Self::Judge(..) => "freshness",
        }
    }

    /// What stands for a call that failed, where the operator does not say: a policy that does not answer is not no
    /// policy. Only `fallback` has a rule of the host behind it.
    pub fn fails_closed(&self) -> bool {
        !matches!(self, Self::OnFailure(..))
    }

    /// As if the plugin had nothing to say.
    pub fn neutral(&self) -> Ruling {
        match self {
            Self::Check => Ruling::Accepted(Ok(())),
            Self::Hints => Ruling::Depends(hints::Facts::all()),
            Self::Admit(_) => Ruling::Verdict(Verdict::Allow),
            Self::Route(..) => Ruling::Routes(Routes::Pass),
            Self::OnFailure(..) => Ruling::Step(Step::Pass),
            Self::Inspect(_) => Ruling::Finding(Finding::Release),
            Self::Judge(..) => Ruling::Rule(Rule::Pass),
        }
    }

    /// As if the plugin had denied.
    pub fn denied(&self, denial: Denial) -> Ruling {
        match self {
            Self::Check => Ruling::Accepted(Err(denial.message)),
            Self::Hints => Ruling::Depends(hints::Facts::all()),
            Self::Admit(_) => Ruling::Verdict(Verdict::Deny(denial)),
            Self::Route(..) => Ruling::Routes(Routes::Deny(denial)),
            Self::OnFailure(..) => Ruling::Step(Step::Deny(denial)),
            Self::Inspect(_) => Ruling::Finding(Finding::Deny(denial)),
            Self::Judge(..) => Ruling::Rule(Rule::Deny(denial)),
        }
    }
}

/// What a hook gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Ruling {
    Accepted(Result<(), String>),
    Depends(hints::Facts),
    Verdict(Verdict),
    Routes(Routes),
    Step(Step),
    Finding(Finding),
    Rule(Rule),
}

/// What an admission plugin decides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Go on.
    Allow,
    /// Only what the cache holds.
    CachedOnly,
    /// No.
    Deny(Denial),
}

/// What a routing plugin decides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Routes {
    /// As they are.
    Pass,
    /// These.
    To(Vec<Candidate>),
    /// No.
    Deny(Denial),
}

/// What is to be done after a failed attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// No opinion.
    Pass,
    /// The next candidate.
    Next,
    /// This one now.
    Divert(Candidate),
    /// The cached copy, however old.
    ServeStale,
    /// The same candidate once more, after so long.
    Wait(Duration),
    /// Give up with what the registry said.
    Stop,
    /// Give up with this.
    Deny(Denial),
}

/// What an inspection plugin decides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Finding {
    /// It may be served.
    Release,
    /// Not now.
    Hold(Denial),
    /// No.
    Deny(Denial),
}

/// How fresh a tag must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rule {
    /// No opinion.
    Pass,
    /// The cached copy, however old.
    Serve,
    /// As a registry has it now.
    Revalidate,
    /// This digest.
    Pin(Digest),
    /// The plugin failed, and its failure denies.
    Deny(Denial),
}

impl Ruling {
    /// The word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Accepted(Ok(())) => "accept",
            Self::Accepted(Err(_)) => "refuse",
            Self::Depends(_) => "depends",
            Self::Verdict(Verdict::Allow) => "allow",
            Self::Verdict(Verdict::CachedOnly) => "cached-only",
            Self::Verdict(Verdict::Deny(_))
            | Self::Routes(Routes::Deny(_))
            | Self::Step(Step::Deny(_))
            | Self::Finding(Finding::Deny(_))
            | Self::Rule(Rule::Deny(_)) => "deny",
            Self::Routes(Routes::Pass) | Self::Step(Step::Pass) | Self::Rule(Rule::Pass) => "pass",
            Self::Routes(Routes::To(_)) => "to",
            Self::Step(Step::Next) => "next",
            Self::Step(Step::Divert(_)) => "divert",
            Self::Step(Step::ServeStale) => "serve-stale",
            Self::Step(Step::Wait(_)) => "wait",
            Self::Step(Step::Stop) => "stop",
            Self::Finding(Finding::Release) => "release",
            Self::Finding(Finding::Hold(_)) => "hold",
            Self::Rule(Rule::Serve) => "serve",
            Self::Rule(Rule::Revalidate) => "revalidate",
            Self::Rule(Rule::Pin(_)) => "pin",
        }
    }

    /// What it says of itself: the reason of a denial, the digest of a pin.
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Verdict(Verdict::Deny(denial))
            | Self::Routes(Routes::Deny(denial))
            | Self::Step(Step::Deny(denial))
            | Self::Finding(Finding::Hold(denial) | Finding::Deny(denial))
            | Self::Rule(Rule::Deny(denial)) => Some(match denial.code {
                Code::Denied if denial.status == 403 => denial.message.clone(),
                code => format!("{} ({} {})", denial.message, denial.status, code.as_str()),
            }),
            Self::Step(Step::Divert(candidate)) => Some(candidate.place.to_string()),
            Self::Step(Step::Wait(wait)) => Some(format!("{} ms", wait.as_millis())),
            Self::Rule(Rule::Pin(digest)) => Some(digest.to_string()),
            Self::Accepted(Err(reason)) => Some(reason.clone()),
            _ => None,
        }
    }

    /// Where routing leads.
    pub fn places(&self) -> Option<Vec<Place>> {
        match self {
            Self::Routes(Routes::To(candidates)) => {
                Some(candidates.iter().map(|candidate| candidate.place.clone()).collect())
            }
            _ => None,
        }
    }

    /// Whether a plugin that ruled so would have changed what the live ones decided: `live`, for a routing plugin the
    /// candidates that it was given.
    pub fn would_change(&self, live: &Self) -> bool {
        match (self, live) {
            (Self::Verdict(Verdict::CachedOnly), Self::Verdict(live)) => *live == Verdict::Allow,
            (Self::Verdict(Verdict::Deny(_)), Self::Verdict(live)) => !matches!(live, Verdict::Deny(_)),
            (Self::Finding(Finding::Hold(_) | Finding::Deny(_)), Self::Finding(live)) => *live == Finding::Release,
            (
                Self::Verdict(Verdict::Allow)
                | Self::Finding(Finding::Release)
                | Self::Routes(Routes::Pass)
                | Self::Step(Step::Pass)
                | Self::Rule(Rule::Pass),
                _,
            ) => false,
            (this, live) => this != live,
        }
    }
}
