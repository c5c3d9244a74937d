//! Files that are not loaded, for the operator who asks what there is.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// A file that is not loaded.
#[derive(Clone, Debug)]
pub struct Refused {
    /// `10-allowlist.wasm`
    pub file: String,
    /// Of which plugin, as far as that is known.
    pub plugin: String,
    /// Why.
    pub reason: String,
    /// When it was refused.
    pub since: SystemTime,
}

/// All of them, by file.
#[derive(Default)]
pub(super) struct Waiting(Mutex<BTreeMap<String, Refused>>);

impl Waiting {
    /// Takes note of one.
    pub fn add(&self, plugin: &str, file: &str, reason: &str) {
        let (plugin, reason, since) = (plugin.to_owned(), reason.to_owned(), SystemTime::now());
        self.lock().insert(file.to_owned(), Refused { file: file.to_owned(), plugin, reason, since });
    }

    /// Forgets those of which something does not hold any more.
    pub fn keep(&self, holds: impl Fn(&Refused) -> bool) {
        self.lock().retain(|_, refused| holds(refused));
    }

    /// In the order of their files.
    pub fn all(&self) -> Vec<Refused> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Refused>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
