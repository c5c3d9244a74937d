//! What was read from the disk just now, kept in memory for a moment: what is asked for again and again touches no file.
//!
//! Whatever changes the folder ends here what it changes, before anybody is told that it is done. What was changed by
//! somebody else is seen after `recheck`: everything is read from the disk again by then, and an open file of which not all
//! bytes are here is looked at each time that it is used.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::store::TagEntry;
use super::{Blob, Manifest};
use crate::oci::manifest::Negotiated;
use crate::oci::{Digest, Place, Tag};

/// Most tags and manifests, and most blobs that are not there; at one more all are left.
const NAMES_MAX: usize = 4096;
/// What all manifests may take. Units: bytes.
const BYTES_MAX: usize = 8 << 20;
/// Most open files.
const FILES_MAX: usize = 64;

/// What was read, kept as long as it is kept here.
#[derive(Clone, Debug)]
pub enum Content {
    /// All bytes of a manifest, or of a small blob.
    Bytes(Bytes),
    /// A blob, open.
    Blob(Blob),
}

/// Says as long as what was read is still what the cache has.
#[derive(Clone, Debug)]
pub struct Ticket(Arc<Known>);

#[derive(Debug)]
struct Known {
    changed: AtomicBool,
    until: Instant,
    content: Content,
}

/// A ticket that keeps nothing in memory, nor open: what makes room need not know of it.
#[derive(Clone, Debug)]
pub struct Held(Weak<Known>);

impl Held {
    /// What was read, where the cache would still give the same.
    pub fn content(&self, now: Instant) -> Option<Content> {
        let ticket = Ticket(self.0.upgrade()?);
        if !ticket.holds(now) {
            return None;
        }
        match &ticket.0.content {
            Content::Blob(blob) => match blob.bytes() {
                Some(bytes) => Some(Content::Bytes(bytes.clone())),
                None => blob.is_unchanged().then(|| Content::Blob(blob.clone())),
            },
            content @ Content::Bytes(_) => Some(content.clone()),
        }
    }
}

impl Ticket {
    /// The same, keeping nothing.
    pub fn held(&self) -> Held {
        Held(Arc::downgrade(&self.0))
    }

    fn holds(&self, now: Instant) -> bool {
        now < self.0.until && !self.0.changed.load(Ordering::Acquire)
    }

    fn end(&self) {
        self.0.changed.store(true, Ordering::Release);
    }
}

/// A state of the cache: what was read before something changed is not kept after it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment(u64);

/// What is kept.
pub(super) struct Hot {
    /// For how long. Units: nanoseconds.
    recheck: AtomicU64,
    changes: AtomicU64,
    kept: Mutex<Kept>,
}

/// What is known of a tag.
type Tagged = (Ticket, TagEntry, Manifest);

#[derive(Default)]
struct Kept {
    tags: HashMap<Place, HashMap<(Tag, Negotiated), Tagged>>,
    tags_count: usize,
    manifests: HashMap<(Place, Digest), (Ticket, Manifest)>,
    bytes: usize,
    blobs: HashMap<(Place, Digest), (Ticket, Blob)>,
    /// Of those, what is not kept any more, to be closed when nobody waits for it: the last who closes a file that was
    /// removed has the system take it apart.
    gone: Vec<(Ticket, Blob)>,
    /// Blobs that are not there, each until when that is believed.
    absent: HashMap<Digest, Instant>,
}

impl Hot {
    /// `recheck`: for how long it is kept.
    pub fn new(recheck: Duration) -> Self {
        let hot = Self { recheck: AtomicU64::new(0), changes: AtomicU64::new(0), kept: Mutex::default() };
        hot.set_recheck(recheck);
        hot
    }

    pub fn set_recheck(&self, recheck: Duration) {
        self.recheck.store(u64::try_from(recheck.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let mut kept = self.change();
        kept.retain(|_, _, _| false);
        kept.absent.clear();
        close(kept);
    }

    fn ticket(&self, content: Content) -> Ticket {
        Ticket(Arc::new(Known { changed: AtomicBool::new(false), until: self.until(), content }))
    }

    fn until(&self) -> Instant {
        Instant::now() + Duration::from_nanos(self.recheck.load(Ordering::Relaxed))
    }

    /// To be asked before the disk is read.
    pub fn moment(&self) -> Moment {
        Moment(self.changes.load(Ordering::Acquire))
    }

    pub fn tag(&self, place: &Place, tag: &(Tag, Negotiated)) -> Option<(TagEntry, Manifest)> {
        let mut kept = self.lock();
        let (ticket, entry, manifest) = kept.tags.get(place)?.get(tag)?;
        if ticket.holds(Instant::now()) {
            return Some((entry.clone(), manifest.clone()));
        }
        kept.drop_tag(place, tag);
        None
    }

    /// Keeps what was read since a moment; gives it with its ticket.
    pub fn keep_tag(
        &self,
        since: Moment,
        (place, tag): (&Place, (Tag, Negotiated)),
        (entry, manifest): (TagEntry, Manifest),
    ) -> (TagEntry, Manifest) {
        let ticket = self.ticket(Content::Bytes(manifest.bytes.clone()));
        let manifest = Manifest { ticket: Some(ticket.clone()), ..manifest };
        let mut kept = self.lock();
        if self.moment() != since {
            ticket.end();
        } else if kept.makes_room(manifest.bytes.len()) {
            kept.drop_tag(place, &tag);
            kept.tags_count += 1;
            kept.bytes += manifest.bytes.len();
            kept.tags.entry(place.clone()).or_default().insert(tag, (ticket, entry.clone(), manifest.clone()));
        }
        (entry, manifest)
    }

    pub fn manifest(&self, key: &(Place, Digest)) -> Option<Manifest> {
        let mut kept = self.lock();
        let (ticket, manifest) = kept.manifests.get(key)?;
        if ticket.holds(Instant::now()) {
            return Some(manifest.clone());
        }
        kept.drop_manifest(key);
        None
    }

    /// The same for a manifest.
    pub fn keep_manifest(&self, since: Moment, key: (Place, Digest), manifest: Manifest) -> Manifest {
        let ticket = self.ticket(Content::Bytes(manifest.bytes.clone()));
        let manifest = Manifest { ticket: Some(ticket.clone()), ..manifest };
        let mut kept = self.lock();
        if self.moment() != since {
            ticket.end();
        } else if kept.makes_room(manifest.bytes.len()) {
            kept.drop_manifest(&key);
            kept.bytes += manifest.bytes.len();
            kept.manifests.insert(key, (ticket, manifest.clone()));
        }
        manifest
    }

    pub fn blob(&self, key: &(Place, Digest)) -> Option<Blob> {
        let mut kept = self.lock();
        let (ticket, blob) = kept.blobs.get(key)?;
        if ticket.holds(Instant::now()) && (blob.bytes().is_some() || blob.is_unchanged()) {
            return Some(blob.clone());
        }
        let gone = kept.blobs.remove(key);
        drop(kept);
        if let Some((ticket, _)) = gone {
            ticket.end();
        }
        None
    }

    /// The same for a blob.
    pub fn keep_blob(&self, since: Moment, key: (Place, Digest), blob: Blob) -> Blob {
        let ticket = self.ticket(Content::Blob(blob.clone()));
        let blob = Blob { ticket: Some(ticket.clone()), ..blob };
        let mut kept = self.lock();
        if self.moment() == since {
            if kept.blobs.len() >= FILES_MAX {
                let Kept { blobs, gone, .. } = &mut *kept;
                gone.extend(blobs.drain().map(|(_, blob)| blob).inspect(|(ticket, _)| ticket.end()));
            }
            kept.blobs.insert(key, (ticket, blob.clone()));
            close(kept);
        } else {
            ticket.end();
        }
        blob
    }

    /// Whether a blob is known not to be there, whoever asks for it.
    pub fn is_absent(&self, digest: &Digest) -> bool {
        self.lock().absent.get(digest).is_some_and(|until| Instant::now() < *until)
    }

    /// Keeps that a blob was not there.
    pub fn keep_absent(&self, since: Moment, digest: Digest) {
        let mut kept = self.lock();
        if self.moment() == since {
            if kept.absent.len() >= NAMES_MAX {
                kept.absent.clear();
            }
            kept.absent.insert(digest, self.until());
        }
    }

    /// Something else is known of a tag now.
    pub fn tag_changed(&self, place: &Place, tag: &Tag) {
        let mut kept = self.change();
        let Some(tags) = kept.tags.get(place) else { return };
        let these: Vec<_> = tags.keys().filter(|(of, _)| of == tag).cloned().collect();
        for tag in &these {
            kept.drop_tag(place, tag);
        }
    }

    /// Something else is known of a repository's tags or links now.
    pub fn place_changed(&self, place: &Place) {
        let mut kept = self.change();
        kept.retain(|of, _, _| of != place);
        close(kept);
    }

    /// Something else is known of a digest now.
    pub fn digest_changed(&self, digest: &Digest) {
        let mut kept = self.change();
        kept.retain(|_, of, _| of != digest);
        kept.absent.remove(digest);
        close(kept);
    }

    /// Lets go what is too old to be served.
    pub fn sweep(&self) {
        let now = Instant::now();
        let mut kept = self.lock();
        kept.retain(|_, _, ticket| ticket.holds(now));
        kept.absent.retain(|_, until| now < *until);
        close(kept);
    }

    fn change(&self) -> MutexGuard<'_, Kept> {
        let kept = self.lock();
        self.changes.fetch_add(1, Ordering::AcqRel);
        kept
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes the files that are not kept any more, once nobody waits for what is.
fn close(mut kept: MutexGuard<'_, Kept>) {
    let gone = std::mem::take(&mut kept.gone);
    drop(kept);
    drop(gone);
}

impl Kept {
    /// Whether something of a size may be kept; all else goes for it where it must.
    fn makes_room(&mut self, bytes: usize) -> bool {
        if bytes > BYTES_MAX / 8 {
            return false;
        }
        if self.bytes + bytes > BYTES_MAX || self.tags_count + self.manifests.len() >= NAMES_MAX {
            self.retain(|_, _, _| false);
        }
        true
    }

    fn drop_tag(&mut self, place: &Place, tag: &(Tag, Negotiated)) {
        if let Entry::Occupied(mut tags) = self.tags.entry(place.clone()) {
            if let Some((ticket, _, manifest)) = tags.get_mut().remove(tag) {
                ticket.end();
                self.bytes -= manifest.bytes.len();
                self.tags_count -= 1;
            }
            if tags.get().is_empty() {
                tags.remove();
            }
        }
    }

    fn drop_manifest(&mut self, key: &(Place, Digest)) {
        if let Some((ticket, manifest)) = self.manifests.remove(key) {
            ticket.end();
            self.bytes -= manifest.bytes.len();
        }
    }

    fn retain(&mut self, mut stays: impl FnMut(&Place, &Digest, &Ticket) -> bool) {
        let Self { tags, tags_count, manifests, bytes, blobs, gone, .. } = self;
        let mut go = |ticket: &Ticket, size: usize| {
            ticket.end();
            *bytes -= size;
        };
        tags.retain(|place, tags| {
            tags.retain(|_, (ticket, _, manifest)| {
                let stay = stays(place, &manifest.digest, ticket);
                if !stay {
                    go(ticket, manifest.bytes.len());
                    *tags_count -= 1;
                }
                stay
            });
            !tags.is_empty()
        });
        manifests.retain(|(place, digest), (ticket, manifest)| {
            let stay = stays(place, digest, ticket);
            if !stay {
                go(ticket, manifest.bytes.len());
            }
            stay
        });
        gone.extend(blobs.extract_if(|(place, digest), (ticket, _)| !stays(place, digest, ticket)).map(|(_, blob)| {
            go(&blob.0, 0);
            blob
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_that_was_not_there_is_absent_until_it_comes() {
        let hot = Hot::new(Duration::from_mins(1));
        let [digest, other] = [b"a", b"b"].map(|content| Digest::sha256_of(content));
        let since = hot.moment();
        hot.keep_absent(since, digest);
        hot.keep_absent(since, other);
        hot.digest_changed(&digest);
        assert!(!hot.is_absent(&digest) && hot.is_absent(&other));
        // It came while somebody looked.
        hot.keep_absent(since, digest);
        assert!(!hot.is_absent(&digest));
        // And after `recheck` nothing is believed.
        hot.set_recheck(Duration::ZERO);
        hot.keep_absent(hot.moment(), digest);
        assert!(!hot.is_absent(&digest) && !hot.is_absent(&other));
    }
}
