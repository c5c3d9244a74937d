//! What an operator takes out of the cache: a tag, a manifest, a repository, a digest; or what is left over.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::rows;
use super::store::{Store, TagEntry, read_json};
use super::survey::Flow;
use crate::oci::{Digest, Place, Reference, Tag};

/// Bits of the filter for each blob: about one of a hundred that has no link is taken for one that has.
const FILTER_BITS: u64 = 10;
/// Largest filter. Units: bytes.
const FILTER_MAX: u64 = 16 << 20;
/// Rows of the index that are looked at at once.
const ROWS: usize = 256;

/// What is to be removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// A repository, with all its tags and links.
    Repository(Place),
    /// A tag or a manifest of a repository, and what only it needs.
    Image(Place, Reference),
    /// A blob, whoever was seen to hold it.
    Digest(Digest),
}

/// What was removed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Removed {
    /// Tags.
    pub tags: u64,
    /// Links of repositories to digests.
    pub links: u64,
    /// Blobs.
    pub blobs: u64,
    /// What the blobs took. Units: bytes.
    pub bytes: u64,
}

impl Store {
    /// Removes a target: what others are seen to hold, and what other tags of its repository need, stays. Whoever
    /// reads a blob reads on.
    pub fn remove(&self, target: &Target) -> io::Result<Removed> {
        let mut removed = Removed::default();
        match target {
            Target::Digest(digest) => {
                for place in self.places_of(digest, usize::MAX) {
                    self.unlink(&place, digest, &mut removed)?;
                }
                self.drop_blob(digest, &mut removed)?;
            }
            Target::Repository(place) => {
                let mut digests = Vec::new();
                let _ = self.each_link(place, &mut |digest, _| {
                    digests.push(digest);
                    Flow::Continue(())
                });
                self.untag(place, |_, _| true, &mut removed)?;
                self.unlink_all(place, digests, &mut removed)?;
                self.remove_empty(place);
            }
            Target::Image(place, reference) => {
                let mut roots = HashSet::new();
                let (mut gone, mut needed) = (HashSet::new(), HashSet::new());
                let matches = |tag: &Tag, digest: &Digest| match reference {
                    Reference::Tag(named) => tag == named,
                    Reference::Digest(named) => digest == named,
                };
                if let Reference::Digest(digest) = reference {
                    roots.insert(*digest);
                }
                let mut others = HashSet::new();
                let _ = self.each_tag(place, &mut |tag, entry, _| {
                    let set = if matches(&tag, &entry.digest) { &mut roots } else { &mut others };
                    set.insert(entry.digest);
                    Flow::Continue(())
                });
                for digest in roots {
                    self.reach(place, digest, &mut gone);
                }
                for digest in others {
                    self.reach(place, digest, &mut needed);
                }
                self.untag(place, matches, &mut removed)?;
                self.unlink_all(place, gone.difference(&needed).copied().collect(), &mut removed)?;
                self.remove_empty(place);
            }
        }
        self.gauge();
        Ok(removed)
    }

    /// Has the registry of a tag asked before any copy of it is served again.
    pub fn expire_tag(&self, place: &Place, tag: &Tag) -> io::Result<()> {
        for file in self.rows_of(place, tag)? {
            if let Some(entry) = read_json::<TagEntry>(&file)? {
                self.put_json(&file, &entry.expired())?;
            }
        }
        self.hot.tag_changed(place, tag);
        Ok(())
    }

    /// Forgets what a tag stood for.
    pub fn forget_tag(&self, place: &Place, tag: &Tag) -> io::Result<()> {
        for file in self.rows_of(place, tag)? {
            match fs::remove_file(file) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
        }
        self.hot.tag_changed(place, tag);
        Ok(())
    }

    /// Forgets that a repository holds a digest, and the tags that stand for it.
    pub fn forget_digest(&self, place: &Place, digest: &Digest) -> io::Result<()> {
        let mut removed = Removed::default();
        self.untag(place, |_, of| of == digest, &mut removed)?;
        self.unlink(place, digest, &mut removed)
    }

    fn rows_of(&self, place: &Place, tag: &Tag) -> io::Result<Vec<PathBuf>> {
        match fs::read_dir(self.tag_folder(place, tag)) {
            Ok(rows) => rows.map(|row| Ok(row?.path())).collect(),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(err) => Err(err),
        }
    }

    /// Removes links without blobs and blobs without links, and applies the limits.
    pub fn collect(&self) -> io::Result<Removed> {
        let mut removed = Removed::default();
        let Some(index) = &self.index else { return Ok(removed) };
        if index.is_incomplete() {
            let _ = self.sweep(&mut || Flow::Continue(()))?;
        }
        index.write(false);
        // What is kept from here on is not looked at: its link may just be on its way.
        let newest = index.row_now(0, None).used;
        let mut linked = Filter::new(index.totals().blobs);
        let _ = self.each_place(&mut |place| {
            self.each_link(place, &mut |digest, _| {
                linked.add(&rows::key(&digest));
                Flow::Continue(())
            })
        })?;
        let mut cursor = Vec::new();
        loop {
            let found = index.after(&cursor, ROWS);
            let Some((last, _)) = found.last() else { break };
            cursor = rows::key(last);
            for (digest, row) in found {
                if row.used < newest && !linked.has(&rows::key(&digest)) {
                    self.drop_blob(&digest, &mut removed)?;
                }
            }
        }
        let pruned = self.prune(None, &mut || Flow::Continue(()))?;
        (removed.links, removed.tags) = (removed.links + pruned.links, removed.tags + pruned.tags);
        let (evictions, bytes) = (self.metrics.cache_evictions.get(), self.metrics.cache_evicted_bytes.get());
        while self.trim() > 0 {}
        removed.blobs += self.metrics.cache_evictions.get() - evictions;
        removed.bytes += self.metrics.cache_evicted_bytes.get() - bytes;
        index.write(true);
        self.gauge();
        Ok(removed)
    }

    fn untag(&self, place: &Place, matches: impl Fn(&Tag, &Digest) -> bool, removed: &mut Removed) -> io::Result<()> {
        let (mut tags, mut failed) = (HashSet::new(), None);
        let _ = self.each_tag(place, &mut |tag, entry, file| {
            if matches(&tag, &entry.digest) {
                match fs::remove_file(file) {
                    Err(err) if err.kind() != io::ErrorKind::NotFound => failed = Some(err),
                    _ => _ = tags.insert(tag),
                }
            }
            Flow::Continue(())
        });
        self.hot.place_changed(place);
        removed.tags += tags.len() as u64;
        failed.map_or(Ok(()), Err)
    }

    fn unlink_all(&self, place: &Place, digests: Vec<Digest>, removed: &mut Removed) -> io::Result<()> {
        for digest in digests {
            self.unlink(place, &digest, removed)?;
            if self.places_of(&digest, 1).is_empty() {
                self.drop_blob(&digest, removed)?;
            }
        }
        Ok(())
    }

    fn unlink(&self, place: &Place, digest: &Digest, removed: &mut Removed) -> io::Result<()> {
        match fs::remove_file(self.link_path(place, digest)) {
            Ok(()) => removed.links += 1,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        }
        self.hot.place_changed(place);
        Ok(())
    }

    fn drop_blob(&self, digest: &Digest, removed: &mut Removed) -> io::Result<()> {
        let size = self.open_blob(digest)?.map(|(_, size)| size);
        if self.remove_blob(digest)? {
            removed.blobs += 1;
            removed.bytes += size.unwrap_or_default();
        }
        Ok(())
    }
}

/// A set of digests that takes little memory: it may say that it has one which was not added, never the reverse. So
/// a collection may leave a blob, and never takes one that is linked. (A Bloom filter; digests are hashes already.)
struct Filter(Vec<u64>);

impl Filter {
    fn new(digests: u64) -> Self {
        let words = (digests.max(1000) * FILTER_BITS).min(FILTER_MAX * 8) / 64 + 1;
        Self(vec![0; usize::try_from(words).expect("16 MiB at most")])
    }

    /// Seven bits, each named by four bytes of the hash.
    fn bits(&self, key: &[u8]) -> impl Iterator<Item = (usize, u64)> + use<> {
        let all = self.0.len() * 64;
        let words: [u32; 7] = std::array::from_fn(|at| {
            u32::from_le_bytes(key[1 + 4 * at..5 + 4 * at].try_into().expect("a hash has 32 bytes or more"))
        });
        words.into_iter().map(move |word| {
            let bit = word as usize % all;
            (bit / 64, 1 << (bit % 64))
        })
    }

    fn add(&mut self, key: &[u8]) {
        for (word, bit) in self.bits(key) {
            self.0[word] |= bit;
        }
    }

    fn has(&self, key: &[u8]) -> bool {
        self.bits(key).all(|(word, bit)| self.0[word] & bit != 0)
    }
}
