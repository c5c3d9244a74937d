//! What was written lately: what somebody has asked before that, and gets to know after it, is not kept.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::oci::{Digest, Place, Tag};

/// Places that are shared by all repositories and tags: two that share one only keep a little less.
const COUNTS: usize = 1024;

/// When each repository and each tag was written last, and each digest removed, by a clock that counts writes.
pub(super) struct Changes {
    clock: AtomicU64,
    last: Box<[AtomicU64]>,
    hasher: RandomState,
}

/// What of a repository is written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Of<'a> {
    /// Anything.
    All,
    /// What a tag stands for.
    Tag(&'a Tag),
    /// Whether a digest is there.
    Digest(Digest),
}

/// How many writes there had been at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Moment(u64);

impl Default for Changes {
    fn default() -> Self {
        Self {
            clock: AtomicU64::new(0),
            last: (0..COUNTS).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
        }
    }
}

impl Changes {
    /// Now.
    pub fn now(&self) -> Moment {
        Moment(self.clock.load(Ordering::SeqCst))
    }

    /// When this was written last.
    pub fn last(&self, place: &Place, of: Of<'_>) -> Moment {
        Moment(self.slot(place, of).load(Ordering::SeqCst))
    }

    /// Whether this was written since.
    pub fn since(&self, moment: Moment, place: &Place, of: Of<'_>) -> bool {
        self.last(place, of).0 > moment.0
    }

    /// Takes note that it is written.
    pub fn note(&self, place: &Place, of: Of<'_>) {
        let now = self.clock.fetch_add(1, Ordering::SeqCst) + 1;
        self.slot(place, of).fetch_max(now, Ordering::SeqCst);
    }

    fn slot(&self, place: &Place, of: Of<'_>) -> &AtomicU64 {
        let at = self.hasher.hash_one((place, of)) % COUNTS as u64;
        &self.last[usize::try_from(at).expect("a small number")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Registry, Repository};

    #[test]
    fn a_write_is_known_to_whoever_asked_before_it() {
        let place = |repository: &str| Place {
            registry: Registry::parse("r.lan").expect("a registry"),
            repository: Repository::parse(repository).expect("a repository"),
        };
        let (changes, tag) = (Changes::default(), Tag::parse("1").expect("a tag"));
        let before = changes.now();
        changes.note(&place("a"), Of::Tag(&tag));
        assert!(changes.since(before, &place("a"), Of::Tag(&tag)));
        assert!(!changes.since(changes.now(), &place("a"), Of::Tag(&tag)));
        // By chance two share a place; of so many, most do not.
        let others = (0..100).filter(|at| changes.since(before, &place(&format!("b{at}")), Of::Tag(&tag)));
        assert!(others.count() < 10);
    }
}
