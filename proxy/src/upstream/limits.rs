//! What registries said last of the pulls that they still allow.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::oci::{RateLimit, Registry};

/// Registries that are remembered at once.
const REGISTRIES_MAX: usize = 4096;

/// The limits of all registries that tell theirs.
#[derive(Default)]
pub(super) struct Limits(Mutex<HashMap<Registry, (RateLimit, Instant)>>);

impl Limits {
    /// Takes note of what an answer says.
    pub fn note(&self, registry: &Registry, headers: &[(String, String)]) {
        let Some(limit) = RateLimit::parse(headers, SystemTime::now()) else { return };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REGISTRIES_MAX && !known.contains_key(registry) {
            known.clear();
        }
        known.insert(registry.clone(), (limit, Instant::now()));
    }

    /// What a registry said, and how long ago; none where its window is over.
    pub fn of(&self, registry: &Registry) -> Option<(RateLimit, Duration)> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (limit, since) = known.get(registry)?;
        let age = since.elapsed();
        (age < limit.window).then_some((*limit, age))
    }
}
