//! What is counted of each decision of one plugin: handles of the metrics, so that a decision looks nothing up.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use super::ruling::Ask;
use crate::metrics::{Metrics, PluginCall};

/// What a hook's answers are counted by.
#[derive(Default)]
struct OfHook {
    calls: OnceLock<(Counter, Counter<f64, AtomicU64>)>,
    remembered: OnceLock<Counter>,
}

/// The counters of one plugin. A series begins with what it counts.
#[derive(Default)]
pub(super) struct Counters([OfHook; Ask::HOOKS]);

impl Counters {
    /// A call that gave an answer.
    pub fn answered(&self, metrics: &Metrics, plugin: &str, ask: &Ask, took: Duration) {
        let (calls, seconds) = self.0[ask.number()].calls.get_or_init(|| {
            let labels = labels(plugin, ask.hook(), "ok");
            let calls = metrics.plugin_calls.get_or_create(&labels).clone();
            (calls, metrics.plugin_seconds.get_or_create(&labels).clone())
        });
        calls.inc();
        seconds.inc_by(took.as_secs_f64());
    }

    /// A call that gave none.
    pub fn failed(metrics: &Metrics, plugin: &str, ask: &Ask, outcome: &'static str, took: Duration) {
        let labels = labels(plugin, ask.hook(), outcome);
        metrics.plugin_calls.get_or_create(&labels).inc();
        metrics.plugin_seconds.get_or_create(&labels).inc_by(took.as_secs_f64());
    }

    /// Counts answers that were remembered. `hook`: its place among the hooks, and its name.
    pub fn remembered(&self, metrics: &Metrics, plugin: &str, (number, hook): (usize, &'static str)) -> &Counter {
        self.0[number]
            .remembered
            .get_or_init(|| metrics.plugin_calls.get_or_create(&labels(plugin, hook, "remembered")).clone())
    }
}

fn labels(plugin: &str, hook: &'static str, outcome: &'static str) -> PluginCall {
    PluginCall { plugin: plugin.to_owned(), hook, outcome }
}
