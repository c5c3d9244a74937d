//! All that a set of plugins says of one pull, hook by hook, in the order in which a pull asks.

use crate::oci::{Attempt, Candidate, Denial};
use crate::plugin::{Admission, Cached, PluginSet, Question, Rule, Step};

/// What is asked about beside the question itself.
pub(super) struct Asked {
    /// What routing begins with.
    pub candidates: Vec<Candidate>,
    /// Attempts that failed, the latest last; without any, `fallback` is not asked.
    pub failed: Vec<Attempt>,
}

/// What was said. None: it was not asked.
#[derive(Default)]
pub(super) struct Ruled {
    /// `allow`, `cached-only` or `deny`.
    pub admission: Option<&'static str>,
    /// Places, in order.
    pub routes: Option<Routes>,
    /// `pass`, `serve`, `revalidate`, `pin DIGEST` or `deny`.
    pub rule: Option<String>,
    /// `pass`, `next`, `divert PLACE`, `serve-stale`, `wait DURATION`, `stop` or `deny`.
    pub step: Option<String>,
    /// `release`, `hold` or `deny`.
    pub finding: Option<&'static str>,
    /// The denial that ended it.
    pub denial: Option<Denial>,
    /// Texts for the client.
    pub warnings: Vec<String>,
}

/// What came of routing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Routes {
    Deny,
    To(Vec<String>),
}

/// Asks: `inspection` where the question has an image, `freshness` about tags.
pub(super) async fn rule(set: &PluginSet, question: &Question, asked: &Asked) -> Ruled {
    let mut ruled = Ruled::default();
    ruled.denial = decide(set, question, asked, &mut ruled).await.err();
    ruled.warnings = question.facts.take_warnings();
    ruled
}

async fn decide(set: &PluginSet, question: &Question, asked: &Asked, ruled: &mut Ruled) -> Result<(), Denial> {
    ruled.admission = Some("deny");
    ruled.admission = Some(match set.admit(question).await {
        Admission::Allow => "allow",
        Admission::CachedOnly(_) => "cached-only",
        Admission::Deny(denial) => return Err(denial),
    });
    ruled.routes = Some(Routes::Deny);
    let candidates = set.route(question, asked.candidates.clone()).await?;
    ruled.routes = Some(Routes::To(candidates.iter().map(|candidate| candidate.place.to_string()).collect()));
    if question.asked.is_pull_of_tag() {
        judge(set, question, ruled).await?;
    }
    if !asked.failed.is_empty() {
        let tried =
            |candidate: &Candidate| asked.failed.iter().any(|attempt| attempt.candidate.place == candidate.place);
        let remaining: Vec<Candidate> = candidates.into_iter().filter(|candidate| !tried(candidate)).collect();
        let step = set.on_failure(question, &asked.failed, &remaining).await;
        ruled.step = Some(step_in_words(&step));
        if let Step::Deny(denial) = step {
            return Err(denial);
        }
    }
    if question.image.is_some() {
        let found = set.inspect(question).await;
        // Who holds and who denies look the same to a client: what was ruled last tells them apart.
        let rulings = question.facts.decided();
        let held = rulings.iter().rfind(|decided| decided.hook == "inspection").is_some_and(|it| it.ruling == "hold");
        ruled.finding = Some(match (&found, held) {
            (Ok(()), _) => "release",
            (Err(_), true) => "hold",
            (Err(_), false) => "deny",
        });
        return found;
    }
    Ok(())
}

async fn judge(set: &PluginSet, question: &Question, ruled: &mut Ruled) -> Result<(), Denial> {
    let cached = async || match question.lookups.cached().await {
        Cached::Absent => None,
        Cached::Fresh { digest, age } => Some((digest, age.unwrap_or_default())),
        Cached::Stale { digest, age } => Some((digest, age)),
    };
    let rule = set.judge(question, cached).await;
    ruled.rule = Some(match &rule {
        Rule::Pass => "pass".to_owned(),
        Rule::Serve => "serve".to_owned(),
        Rule::Revalidate => "revalidate".to_owned(),
        Rule::Pin(digest) => format!("pin {digest}"),
        Rule::Deny(_) => "deny".to_owned(),
    });
    match rule {
        Rule::Deny(denial) => Err(denial),
        _ => Ok(()),
    }
}

fn step_in_words(step: &Step) -> String {
    match step {
        Step::Pass => "pass".to_owned(),
        Step::Next => "next".to_owned(),
        Step::Divert(to) => format!("divert {}", to.place),
        Step::ServeStale => "serve-stale".to_owned(),
        Step::Wait(wait) => format!("wait {}", humantime::format_duration(*wait)),
        Step::Stop => "stop".to_owned(),
        Step::Deny(_) => "deny".to_owned(),
    }
}
