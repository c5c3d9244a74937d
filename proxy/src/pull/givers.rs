//! Who gave the manifests that clients are just working through: what a manifest lists is had where the manifest was
//! had, whatever a routing plugin would say to the digest alone.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::oci::manifest::parse_references;
use crate::oci::{Digest, Place, Reference};
use crate::plugin::Gave;

use super::manifest::Found;

/// As long as a pull may take from its manifest to its last layer.
const TTL: Duration = Duration::from_mins(15);
/// Digests that are remembered; past it those whose time is over are dropped, and if there are none, all.
const DIGESTS_MAX: usize = 50_000;
/// Places that are remembered of one digest.
const PLACES_MAX: usize = 4;

/// By the repository that clients named, and the digest.
#[derive(Default)]
pub(super) struct Givers(Mutex<HashMap<(Place, Digest), Vec<Giver>>>);

struct Giver {
    place: Place,
    how: Gave,
    since: Instant,
}

impl Givers {
    /// Takes note of a manifest that a client gets.
    pub fn learn(&self, named: &Place, asked: &Reference, found: &Found) {
        let (digest, place) = (found.manifest.digest, &found.place);
        if matches!(asked, Reference::Tag(_)) {
            self.note(named, [digest], place, Gave::Tagged);
        }
        self.note(named, parse_references(&found.manifest.bytes), place, Gave::Listed);
    }

    fn note(&self, named: &Place, digests: impl IntoIterator<Item = Digest>, place: &Place, how: Gave) {
        let now = Instant::now();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= DIGESTS_MAX {
            known.retain(|_, givers| givers.iter().any(|giver| giver.since.elapsed() < TTL));
            if known.len() >= DIGESTS_MAX {
                known.clear();
            }
        }
        for digest in digests {
            let givers = known.entry((named.clone(), digest)).or_default();
            givers.retain(|giver| (giver.place != *place || giver.how != how) && giver.since.elapsed() < TTL);
            givers.insert(0, Giver { place: place.clone(), how, since: now });
            givers.truncate(PLACES_MAX);
        }
    }

    /// The places that gave a digest so, the latest first.
    pub fn of(&self, named: &Place, digest: Digest, how: Gave) -> Vec<Place> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let givers = known.get(&(named.clone(), digest)).map(Vec::as_slice).unwrap_or_default();
        let gave = givers.iter().filter(|giver| giver.how == how && giver.since.elapsed() < TTL);
        gave.map(|giver| giver.place.clone()).collect()
    }
}
