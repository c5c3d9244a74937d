//! Which indexes list a manifest: what a plugin knows of an index holds of its children.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::cache::Cache;
use crate::oci::{Digest, Place};

/// Repositories that are remembered at once; the cache knows the others.
const PLACES_MAX: usize = 1024;

type Listed = HashMap<Digest, Vec<Digest>>;

/// What is known of the indexes of each repository: child and parents.
#[derive(Default)]
pub(super) struct Parents(Mutex<HashMap<Place, Listed>>);

impl Parents {
    /// Takes note of an index and of what it lists.
    pub async fn learn(&self, cache: &Cache, place: &Place, index: Digest, children: impl Iterator<Item = Digest>) {
        self.load(cache, place).await;
        if let Some(listed) = self.lock().get_mut(place) {
            add(listed, index, children);
        }
    }

    /// The indexes of a repository that list a manifest.
    pub async fn of(&self, cache: &Cache, place: &Place, child: Digest) -> Vec<Digest> {
        self.load(cache, place).await;
        self.lock().get(place).and_then(|listed| listed.get(&child)).cloned().unwrap_or_default()
    }

    /// Reads the indexes of a repository that is not known yet from the cache.
    async fn load(&self, cache: &Cache, place: &Place) {
        if self.lock().contains_key(place) {
            return;
        }
        let mut listed = Listed::new();
        for (index, children) in cache.indexes(place).await {
            add(&mut listed, index, children.into_iter());
        }
        let mut known = self.lock();
        if known.len() >= PLACES_MAX {
            known.clear();
        }
        let loaded = known.entry(place.clone()).or_default();
        for (child, parents) in listed {
            for parent in parents {
                add(loaded, parent, std::iter::once(child));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Place, Listed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add(listed: &mut Listed, index: Digest, children: impl Iterator<Item = Digest>) {
    for child in children {
        let parents = listed.entry(child).or_default();
        if !parents.contains(&index) {
            // The newest first: those that are told are few.
            parents.insert(0, index);
        }
    }
}
