//! Counters and gauges of plugins, whose names only they know.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Series of one plugin that are kept.
const SERIES_MAX: usize = 1000;
/// Labels of one series, beside the plugin's name.
const LABELS_MAX: usize = 8;
/// Longest name, and longest key of a label. Units: bytes.
const NAME_MAX: usize = 64;
/// Longest value of a label. Units: bytes.
const VALUE_MAX: usize = 128;

/// Labels of a series, sorted by key.
type Labels = Vec<(String, String)>;

/// What a plugin gives.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Value {
    /// Added to a counter.
    Increment(u32),
    /// The value of a gauge.
    Gauge(f64),
}

#[derive(Debug)]
enum Metric {
    Counter(BTreeMap<Labels, u64>),
    Gauge(BTreeMap<Labels, f64>),
}

impl Metric {
    fn len(&self) -> usize {
        match self {
            Self::Counter(series) => series.len(),
            Self::Gauge(series) => series.len(),
        }
    }
}

type ByName = BTreeMap<String, Metric>;

/// The counters and gauges of all plugins. Cheap to share.
#[derive(Clone, Default, Debug)]
pub struct Series(Arc<Mutex<BTreeMap<String, ByName>>>);

impl Series {
    /// Takes what a plugin gives. False: it breaks a limit, and was dropped.
    pub fn take(&self, plugin: &str, name: &str, labels: Vec<(String, String)>, value: Value) -> bool {
        let Some(labels) = check(name, labels) else { return false };
        let mut all = self.lock();
        let own = all.entry(plugin.to_owned()).or_default();
        let room = own.values().map(Metric::len).sum::<usize>() < SERIES_MAX;
        let empty = || match value {
            Value::Increment(_) => Metric::Counter(BTreeMap::new()),
            Value::Gauge(_) => Metric::Gauge(BTreeMap::new()),
        };
        if !room && !own.contains_key(name) {
            return false;
        }
        match (own.entry(name.to_owned()).or_insert_with(empty), value) {
            (Metric::Counter(series), Value::Increment(by)) if room || series.contains_key(&labels) => {
                *series.entry(labels).or_default() += u64::from(by);
            }
            (Metric::Gauge(series), Value::Gauge(value)) if room || series.contains_key(&labels) => {
                series.insert(labels, value);
            }
            _ => return false,
        }
        true
    }

    /// Forgets a plugin that is gone: what it last said holds no more.
    pub fn forget(&self, plugin: &str) {
        self.lock().remove(plugin);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, ByName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The labels in order, where name and labels are within their limits.
fn check(name: &str, mut labels: Vec<(String, String)>) -> Option<Labels> {
    let word = |text: &str| {
        text.len() <= NAME_MAX
            && text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    labels.sort();
    let good = word(name)
        && labels.len() <= LABELS_MAX
        && labels.iter().all(|(key, value)| word(key) && key != "plugin" && value.len() <= VALUE_MAX)
        && labels.windows(2).all(|pair| pair[0].0 != pair[1].0);
    good.then_some(labels)
}

impl Collector for Series {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let all = self.lock();
        // Names that differ in a dash only share a family, and are told apart by the label.
        let mut families: BTreeMap<String, Vec<(&str, &Metric)>> = BTreeMap::new();
        for (plugin, own) in all.iter() {
            for (name, metric) in own {
                let family = format!("policy_{}_{name}", plugin.replace(['-', '.'], "_"));
                families.entry(family).or_default().push((plugin, metric));
            }
        }
        for (family, metrics) in families {
            let counts = matches!(metrics[0].1, Metric::Counter(_));
            let kind = if counts { MetricType::Counter } else { MetricType::Gauge };
            let help = format!("What the plugin {} says", metrics[0].0);
            let mut encoder = encoder.encode_descriptor(&family, &help, None, kind)?;
            for (plugin, metric) in metrics {
                let with = |labels: &Labels| {
                    let own = labels.iter().cloned();
                    own.chain([("plugin".to_owned(), plugin.to_owned())]).collect::<Labels>()
                };
                match metric {
                    Metric::Counter(series) if counts => {
                        for (labels, value) in series {
                            encoder.encode_family(&with(labels))?.encode_counter::<NoLabelSet, _, u64>(value, None)?;
                        }
                    }
                    Metric::Gauge(series) if !counts => {
                        for (labels, value) in series {
                            encoder.encode_family(&with(labels))?.encode_gauge(value)?;
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn labels(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_plugin_counts_under_its_name() {
        let metrics = Metrics::default();
        let series = &metrics.plugin_series;
        assert!(series.take("tag-guard", "moved", labels(&[("to", "a\"b\n"), ("by", "x")]), Value::Increment(2)));
        assert!(series.take("tag-guard", "moved", labels(&[("by", "x"), ("to", "a\"b\n")]), Value::Increment(1)));
        assert!(series.take("quota", "left", Vec::new(), Value::Gauge(0.5)));
        assert!(!series.take("quota", "left", Vec::new(), Value::Increment(1)), "a gauge stays one");
        let text = metrics.render();
        let counter = r#"tidegate_policy_tag_guard_moved_total{by="x",to="a\"b\n",plugin="tag-guard"} 3"#;
        assert!(text.contains(counter), "{text}");
        assert!(text.contains("# TYPE tidegate_policy_quota_left gauge"), "{text}");
        assert!(text.contains(r#"tidegate_policy_quota_left{plugin="quota"} 0.5"#), "{text}");
        series.forget("quota");
        assert!(!metrics.render().contains("quota"));
    }

    #[test]
    fn p3_series_of_a_plugin_are_bounded() {
        let series = Series::default();
        for at in 0..SERIES_MAX {
            assert!(series.take("p", "n", labels(&[("at", &at.to_string())]), Value::Increment(1)));
        }
        assert!(!series.take("p", "n", labels(&[("at", "one more")]), Value::Increment(1)));
        assert!(!series.take("p", "m", Vec::new(), Value::Gauge(1.0)));
        assert!(series.take("p", "n", labels(&[("at", "7")]), Value::Increment(1)), "what is there goes on");
        assert!(series.take("q", "n", Vec::new(), Value::Increment(1)), "each plugin has its own");
        for name in ["", "1a", "a b", "a\n", &"a".repeat(65)] {
            assert!(!series.take("q", name, Vec::new(), Value::Increment(1)), "{name:?}");
        }
        for bad in [&[("plugin", "x")][..], &[("a", "1"), ("a", "2")], &[("a", &"v".repeat(129))], &[("a-b", "")]] {
            assert!(!series.take("q", "n", labels(bad), Value::Increment(1)), "{bad:?}");
        }
    }
}
