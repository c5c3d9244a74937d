//! What registries were just seen not to hold: who asks again at once is told so without asking them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::attempts::Wanted;
use crate::oci::Place;

/// Misses that are remembered; past it those that are over are dropped, and if there are none, all.
const MISSES_MAX: usize = 10_000;

#[derive(Default)]
pub(super) struct Misses(Mutex<HashMap<(Place, String), Instant>>);

impl Misses {
    /// Whether a place was seen not to hold something within `ttl`.
    pub fn knows(&self, place: &Place, wanted: &Wanted<'_>, ttl: Duration) -> bool {
        let misses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !misses.is_empty() && misses.get(&key(place, wanted)).is_some_and(|since| since.elapsed() < ttl)
    }

    /// Forgets what a place was seen not to hold: something was written there.
    pub fn forget(&self, place: &Place) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _), _| of != place);
    }

    /// Remembers that a place does not hold something.
    pub fn remember(&self, place: &Place, wanted: &Wanted<'_>, ttl: Duration) {
        if ttl.is_zero() {
            return;
        }
        let mut misses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if misses.len() >= MISSES_MAX {
            misses.retain(|_, since| since.elapsed() < ttl);
            if misses.len() >= MISSES_MAX {
                misses.clear();
            }
        }
        misses.insert(key(place, wanted), Instant::now());
    }
}

/// What a registry answers 404 to may depend on what is accepted, and on the page of a list.
fn key(place: &Place, wanted: &Wanted<'_>) -> (Place, String) {
    (place.clone(), [wanted.resource, wanted.query, wanted.accept].join("\n"))
}
