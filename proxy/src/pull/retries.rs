//! What all pulls together may spend on asking a registry again that has just failed: who is in trouble is not helped by
//! every pull trying three times.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::oci::Registry;

/// Retries of one registry that may come at once.
const BURST: f64 = 60.0;
/// How many come back. Units: retries a second.
const REFILL: f64 = 2.0;

/// Registries whose budget is remembered; past it all begin anew.
const REGISTRIES_MAX: usize = 1024;

#[derive(Default)]
pub(super) struct Retries(Mutex<HashMap<Registry, (f64, Instant)>>);

impl Retries {
    /// Whether a registry may be asked once more; if so, it is spent.
    pub fn spend(&self, registry: &Registry) -> bool {
        self.spend_at(registry, Instant::now())
    }

    fn spend_at(&self, registry: &Registry, now: Instant) -> bool {
        let mut budgets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if budgets.len() >= REGISTRIES_MAX && !budgets.contains_key(registry) {
            budgets.clear();
        }
        let (left, since) = budgets.entry(registry.clone()).or_insert((BURST, now));
        let back = now.saturating_duration_since(*since).as_secs_f64() * REFILL;
        *left = (*left + back).min(BURST);
        *since = now;
        let some = *left >= 1.0;
        if some {
            *left -= 1.0;
        }
        some
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn u10_retries_of_a_registry_are_a_budget_of_all_pulls() {
        let registry = |name| Registry::parse(name).expect("a registry");
        let (retries, start) = (Retries::default(), Instant::now());
        let spent = (0..1000).filter(|_| retries.spend_at(&registry("quay.io"), start)).count();
        assert_eq!(spent, 60);
        assert!(retries.spend_at(&registry("ghcr.io"), start), "another has its own");
        let later = start + Duration::from_secs(5);
        assert_eq!((0..1000).filter(|_| retries.spend_at(&registry("quay.io"), later)).count(), 10);
    }
}
