//! `tidegate plugin test FILE CASES`: a table of pulls and of what must be decided, run by the real host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use super::Alike;
use super::cases::{self, Case, Expect};
use crate::cli::EXIT_BAD_INPUT;
use crate::cli::ruled::{self, Asked, Routes, Ruled};
use crate::plugin::{Alone, Facts, Question};

/// A plugin, and a table of cases for it.
#[derive(clap::Args)]
pub(in crate::cli) struct Test {
    #[command(flatten)]
    plugin: Alike,
    /// Cases in TOML: a pull, what is known of it, and what must be decided
    cases: PathBuf,
}

/// What was expected and what came, of one key.
struct Difference {
    key: &'static str,
    expected: String,
    got: String,
}

impl Test {
    /// Runs all cases; exit code 1 where one fails, 2 where there is nothing to run.
    pub async fn run(&self) -> ExitCode {
        let file = self.cases.display();
        let cases = match std::fs::read_to_string(&self.cases) {
            Ok(text) => cases::parse(&text, self.cases.parent().unwrap_or(Path::new("")))
                .map_err(|(line, reason)| format!("{file}:{line}: {reason}")),
            Err(err) => Err(format!("{file} cannot be read: {err}")),
        };
        let cases = match cases {
            Ok(cases) => cases,
            Err(reason) => {
                eprintln!("tidegate: {reason}");
                return ExitCode::from(EXIT_BAD_INPUT);
            }
        };
        let alone = match self.plugin.load_ready(None).await {
            Ok(alone) => alone,
            Err(refused) => return refused,
        };
        let mut failed = 0;
        for case in &cases {
            let differences = run(&alone, case).await;
            println!("{}  {}", if differences.is_empty() { "ok  " } else { "FAIL" }, case.name);
            failed += usize::from(!differences.is_empty());
            for Difference { key, expected, got } in differences {
                println!("      {key:16}  expected  {expected}\n      {:16}  got       {got}", "");
            }
        }
        println!("{} {}, {failed} failed", cases.len(), if cases.len() == 1 { "case" } else { "cases" });
        ExitCode::from(u8::from(failed > 0))
    }
}

async fn run(alone: &Alone, case: &Case) -> Vec<Difference> {
    if !case.keep_state {
        alone.forget_state();
    }
    alone.set_time(case.given.now);
    // What is kept is told behind the clock: it holds from now on.
    for (key, value) in &case.state {
        if let Err(reason) = alone.put_state(key, value) {
            return vec![Difference { key: "state", expected: key.clone(), got: reason }];
        }
    }
    let mut facts =
        Facts::new("test".to_owned(), case.client, case.user_agent.clone(), case.accept.clone(), case.headers.clone());
    facts.asks_anew = true;
    facts.identity.clone_from(&case.identity);
    let question = Question {
        asked: case.pull.clone().into(),
        facts: Arc::new(facts),
        lookups: Arc::new(case.given.clone()),
        image: case.image.clone(),
        dry_run: false,
    };
    let asked = Asked { candidates: case.candidates.clone(), failed: case.failed.clone() };
    let ruled = ruled::rule(&alone.set(), &question, &asked).await;
    compare(&case.expect, &ruled, &alone.state())
}

fn compare(expect: &Expect, ruled: &Ruled, state: &BTreeMap<String, String>) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut differ = |key, expected: &str, got: &str| {
        found.push(Difference { key, expected: expected.to_owned(), got: got.to_owned() });
    };
    let denial = ruled.denial.as_ref();
    let denied = || denial.map_or("no denial".to_owned(), ToString::to_string);
    let not_asked = || denial.map_or("not asked".to_owned(), |denial| format!("not asked, since denied: {denial}"));
    if let Some(expected) = &expect.admission {
        let got = ruled.admission.unwrap_or_default();
        if expected != got {
            let why = denial.filter(|_| got == "deny").map_or(String::new(), |denial| format!(": {denial}"));
            differ("admission", expected, &format!("{got}{why}"));
        }
    }
    if let Some(expected) = &expect.routes {
        let (expected, listed) = match expected {
            cases::Routes::Word(word) => (word.clone(), false),
            cases::Routes::To(places) => (list(places), true),
        };
        match &ruled.routes {
            Some(Routes::Deny) if !listed => {}
            Some(Routes::To(places)) if listed && list(places) == expected => {}
            Some(Routes::Deny) => differ("routes", &expected, &format!("deny: {}", denied())),
            Some(Routes::To(places)) => differ("routes", &expected, &list(places)),
            None => differ("routes", &expected, &not_asked()),
        }
    }
    let words = [
        ("rule", &expect.rule, ruled.rule.as_deref(), "not asked: the case pulls no tag"),
        ("step", &expect.step, ruled.step.as_deref(), "not asked: the case has no `failed`"),
        ("finding", &expect.finding, ruled.finding, "not asked: the case has no `manifest`, `labels` or `annotations`"),
    ];
    for (key, expected, got, why_not) in words {
        let Some(expected) = expected else { continue };
        match got {
            Some(got) if is_word(expected, got) => {}
            Some(got @ ("deny" | "hold")) => differ(key, expected, &format!("{got}: {}", denied())),
            Some(got) => differ(key, expected, got),
            None if denial.is_none() => differ(key, expected, why_not),
            None => differ(key, expected, &not_asked()),
        }
    }
    if let Some(expected) = &expect.message
        && denial.is_none_or(|denial| !denial.message.contains(expected.as_str()))
    {
        differ("message", expected, &denied());
    }
    if let Some(expected) = &expect.code
        && denial.is_none_or(|denial| denial.code.as_str() != expected)
    {
        differ("code", expected, &denial.map_or_else(denied, |denial| denial.code.as_str().to_owned()));
    }
    if let Some(expected) = &expect.status
        && denial.is_none_or(|denial| denial.status != *expected)
    {
        differ("status", &expected.to_string(), &denial.map_or_else(denied, |denial| denial.status.to_string()));
    }
    if let Some(expected) = &expect.retry_after_secs {
        let got = denial.and_then(|denial| denial.retry_after).map(|after| after.as_secs());
        if got != Some(*expected) {
            let got = got.map_or("none".to_owned(), |secs| secs.to_string());
            differ("retry_after_secs", &expected.to_string(), &got);
        }
    }
    if let Some(expected) = &expect.warnings {
        let same = expected.len() == ruled.warnings.len()
            && expected.iter().zip(&ruled.warnings).all(|(part, warning)| warning.contains(part.as_str()));
        if !same {
            differ("warnings", &list(expected), &list(&ruled.warnings));
        }
    }
    for (key, expected) in expect.state.iter().flatten() {
        if state.get(key) != Some(expected) {
            let got = state.get(key).map_or("nothing", String::as_str);
            differ("state", &format!("{key} = {expected}"), &format!("{key} = {got}"));
        }
    }
    found
}

/// Whether an answer is the expected one, or begins with the expected word: `divert` is any diversion.
fn is_word(expected: &str, got: &str) -> bool {
    got == expected || got.strip_prefix(expected).is_some_and(|rest| rest.starts_with(' '))
}

fn list(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}
