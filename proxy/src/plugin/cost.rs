//! What calls of a plugin cost: each hook, one call after the other, as a pull makes them; and answers that are
//! remembered.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::facts::Question;
use super::set::PluginSet;
use crate::oci::{Attempt, Candidate, Digest, Failure};

/// Calls of a hook that are measured, where they end in time.
const CALLS: usize = 10_000;
/// How long one hook is measured at the most.
const TIME: Duration = Duration::from_secs(3);

/// What a hook costs.
#[derive(Clone, Debug)]
pub struct Cost {
    /// Which hook.
    pub hook: &'static str,
    /// Whether the answer was remembered, and the plugin not called.
    pub remembered: bool,
    /// How many calls were measured.
    pub calls: usize,
    /// Of all calls, the one in the middle.
    pub median: Duration,
    /// What one of a hundred exceeds.
    pub p99: Duration,
    /// Calls that one task makes in a second.
    pub per_second: f64,
}

/// Measures each hook that the set has, with one and the same question.
pub async fn measure(set: &PluginSet, question: &Question) -> Vec<Cost> {
    let again = question;
    let question = &Question { facts: Arc::new(question.facts.anew()), ..question.clone() };
    let candidates = vec![Candidate::plain(question.asked.place().clone())];
    let failed = [Attempt {
        candidate: candidates[0].clone(),
        failure: Failure::Status(503),
        duration: Duration::from_millis(40),
        bytes: 0,
        retry_after: None,
        rate_limit: Vec::new(),
    }];
    let has = |hook: &'static str| set.plugins.iter().any(|plugin| plugin.hooks.has(hook));
    let mut costs = Vec::new();
    if has("admission") {
        costs.push(hook("admission", async || drop(set.admit(question).await)).await);
    }
    if has("routing") {
        costs.push(hook("routing", async || drop(set.route(question, candidates.clone()).await)).await);
    }
    costs.extend(remembered(set, again, &candidates).await);
    if has("freshness") {
        let cached = Some((Digest::sha256_of(b"alpine"), Duration::from_mins(3)));
        costs.push(hook("freshness", async || drop(set.judge(question, || std::future::ready(cached)).await)).await);
    }
    if has("inspection") && question.image.is_some() {
        costs.push(hook("inspection", async || drop(set.inspect(question).await)).await);
    }
    if has("fallback") {
        costs.push(hook("fallback", async || drop(set.on_failure(question, &failed, &candidates).await)).await);
    }
    costs
}

/// The same of answers that are remembered, where they are.
async fn remembered(set: &PluginSet, question: &Question, candidates: &[Candidate]) -> Vec<Cost> {
    // A manifest under inspection is no matter of these hooks.
    let question = &Question { image: None, ..question.clone() };
    let mut costs = Vec::new();
    let has = |hook: &'static str| set.plugins.iter().any(|plugin| plugin.hooks.has(hook) && plugin.memory().is_some());
    if has("admission") {
        costs.push(hook("admission", async || drop(set.admit(question).await)).await);
    }
    if has("routing") {
        costs.push(hook("routing", async || drop(set.route(question, candidates.to_vec()).await)).await);
    }
    // What used more than was declared was called all the same.
    let called = !question.facts.is_repeatable();
    costs.retain(|_| !called);
    costs.into_iter().map(|cost| Cost { remembered: true, ..cost }).collect()
}

/// A tenth of the calls goes before: what is only slow the first time is no price of a call.
async fn hook<F: Future<Output = ()>>(hook: &'static str, call: impl Fn() -> F) -> Cost {
    let began = Instant::now();
    for _ in 0..CALLS / 10 {
        call().await;
        if began.elapsed() > TIME / 10 {
            break;
        }
    }
    let (began, mut times) = (Instant::now(), Vec::with_capacity(CALLS));
    while times.len() < CALLS && (times.is_empty() || began.elapsed() < TIME) {
        let started = Instant::now();
        call().await;
        times.push(started.elapsed());
    }
    let elapsed = began.elapsed();
    times.sort_unstable();
    let calls = times.len();
    let per_second = 1.0 / (elapsed / u32::try_from(calls).unwrap_or(u32::MAX)).as_secs_f64();
    Cost { hook, remembered: false, calls, median: times[calls / 2], p99: times[calls * 99 / 100], per_second }
}
