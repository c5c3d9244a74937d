//! The cache on disk: blobs by digest, and links that say which repository was seen to hold them.
//!
//! Every function blocks.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;
use super::hot::Hot;
use super::index::Index;
use super::room::{Room, is_full};
use crate::config;
use crate::metrics::Metrics;
use crate::oci::manifest::{MANIFEST_MAX, Negotiated};
use crate::oci::{Digest, Place, Tag};

/// Name of the index in the folder.
pub(super) const INDEX: &str = "index.redb";
/// Largest link or entry of a tag that is read: ours have some hundred. Units: bytes.
const SMALL_FILE_MAX: u64 = 64 << 10;

/// The folder of a cache. Its layout is drawn in DESIGN.md.
pub struct Store {
    pub(super) dir: PathBuf,
    pub(super) next_staging: AtomicU64,
    /// Held as long as the process lives: two processes never write to one folder. None: it is only read.
    lock: Option<File>,
    /// None: the folder is only read.
    pub(super) index: Option<Index>,
    pub(super) room: Room,
    pub(super) hot: Hot,
    pub(super) metrics: Arc<Metrics>,
}

/// Why a cache folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the cache folder {} is in use by another process; give each its own `[cache] dir`", .0.display())]
    InUse(PathBuf),
    /// It cannot be made or written.
    #[error("the cache folder {} cannot be used; name another by `[cache] dir`, or let this user write to it", dir.display())]
    Io {
        /// The folder.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What a repository was seen to hold under a digest.
#[derive(Clone, Serialize, Deserialize, Debug, PartialEq, Eq)]
pub struct Link {
    /// As the registry gave it.
    pub media_type: String,
    /// Units: bytes.
    pub size: u64,
}

/// What a tag stood for when its registry was last asked.
#[derive(Clone, Serialize, Deserialize, Debug, PartialEq, Eq)]
pub struct TagEntry {
    /// The manifest.
    pub digest: Digest,
    /// Units: seconds since the epoch.
    checked_at_secs: u64,
}

impl TagEntry {
    /// An entry that is checked now.
    pub fn now(digest: Digest) -> Self {
        Self { digest, checked_at_secs: now_secs() }
    }

    /// The same entry, of an age that nobody knows: its registry is asked before it is served again.
    #[must_use]
    pub fn expired(self) -> Self {
        Self { checked_at_secs: u64::MAX, ..self }
    }

    /// How long ago its registry was asked; none where that would be in the future, after a clock that was wrong.
    pub fn age(&self) -> Option<Duration> {
        let now = now_secs();
        let since = now.checked_sub(self.checked_at_secs).or((self.checked_at_secs - now <= SKEW_SECS).then_some(0));
        since.map(Duration::from_secs)
    }
}

/// How far two looks at the clock may lie apart the wrong way, as after it was set. Units: seconds.
const SKEW_SECS: u64 = 60;

pub(super) fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A blob as it lies in the folder.
pub enum Found {
    /// The file that was verified.
    Right(File, Fingerprint, Link),
    /// A file that nobody is known to have verified.
    Unverified,
}

impl Store {
    /// Opens the folder, makes what is missing in it, and sweeps what a crash has left in `staging/`. Costs the same
    /// with a million blobs as with none: they are not looked at.
    pub fn open(config: &config::Cache, metrics: Arc<Metrics>) -> Result<Self, OpenError> {
        let dir = config.dir.as_path();
        let fail = |source| OpenError::Io { dir: dir.to_owned(), source };
        make_folders(dir).map_err(fail)?;
        let lock = File::options().create(true).append(true).open(dir.join("lock")).map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(OpenError::InUse(dir.to_owned())),
            Err(fs::TryLockError::Error(source)) => return Err(fail(source)),
        }
        for left in fs::read_dir(dir.join("staging")).map_err(fail)?.flatten() {
            if fs::remove_file(left.path()).is_err() {
                let _ = fs::remove_dir_all(left.path());
            }
        }
        let store = Self {
            dir: dir.to_owned(),
            next_staging: AtomicU64::new(0),
            lock: Some(lock),
            index: Some(Index::open(dir.join(INDEX))),
            room: Room::new(config),
            hot: Hot::new(config.recheck),
            metrics,
        };
        // An OCI image layout, so that ordinary tools can read it; its index names nothing, the links do.
        for (name, text) in [
            ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
            ("index.json", r#"{"schemaVersion":2,"manifests":[]}"#),
        ] {
            if !dir.join(name).exists() {
                // Only other tools need them: a disk that is full keeps nobody from serving.
                match store.put(&dir.join(name), text.as_bytes()) {
                    Err(err) if !is_full(&err) => return Err(fail(err)),
                    _ => {}
                }
            }
        }
        store.gauge();
        Ok(store)
    }

    /// A folder that is only read, and may not be there.
    pub fn open_to_read(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            next_staging: AtomicU64::new(0),
            lock: None,
            index: None,
            room: Room::new(&config::Cache::at(dir.to_owned())),
            hot: Hot::new(Duration::ZERO),
            metrics: Arc::default(),
        }
    }

    /// Whether the folder is this process's, to be changed.
    pub(super) fn is_ours(&self) -> bool {
        self.lock.is_some()
    }

    /// Shows in the metrics how much is kept.
    pub(super) fn gauge(&self) {
        if let Some(index) = &self.index {
            let totals = index.totals();
            self.metrics.cache_bytes.set(totals.bytes.try_into().unwrap_or(i64::MAX));
            self.metrics.cache_blobs.set(totals.blobs.try_into().unwrap_or(i64::MAX));
        }
    }

    /// Finds a blob that `place` was seen to hold.
    pub fn find(&self, place: &Place, digest: &Digest) -> io::Result<Option<Found>> {
        let Some(link) = self.link(place, digest)? else {
            return Ok(None);
        };
        let Some((file, about)) = self.open_file(digest)? else {
            self.forget(digest);
            return Ok(None);
        };
        let now = Fingerprint::told(&about);
        let Some(index) = &self.index else {
            // Whoever only reads the folder serves nothing of it.
            return Ok((about.len() == link.size).then_some(Found::Right(file, now, link)));
        };
        match index.row(digest) {
            Some(row) if row.verified == Some(now) => {
                index.used(digest, row);
                // What a registry once said of its size is less than what was hashed.
                Ok(Some(Found::Right(file, now, Link { size: about.len(), ..link })))
            }
            _ => Ok(Some(Found::Unverified)),
        }
    }

    /// Opens the blob of a digest; none where there is none, or where it is no regular file. Held open it is not
    /// dropped to make room.
    pub fn open_blob(&self, digest: &Digest) -> io::Result<Option<(File, u64)>> {
        Ok(self.open_file(digest)?.map(|(file, about)| (file, about.len())))
    }

    pub(super) fn open_file(&self, digest: &Digest) -> io::Result<Option<(File, Metadata)>> {
        // Neither through a link nor waiting at a FIFO that somebody put there.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = match File::options().read(true).custom_flags(flags).open(self.blob_path(digest)) {
            Ok(file) => file,
            Err(err) if is_absent(&err) => return Ok(None),
            Err(err) => return Err(err),
        };
        let about = file.metadata()?;
        if !about.is_file() {
            return Ok(None);
        }
        // Whoever makes room asks for the same lock alone. The lock ends with the last who reads, wherever that is.
        let _ = file.try_lock_shared();
        Ok(Some((file, about)))
    }

    /// Reads a blob that is a manifest, and verifies it; one that does not match its digest is removed.
    pub fn read_manifest(&self, digest: &Digest) -> io::Result<Option<Vec<u8>>> {
        let Some((file, about)) = self.open_file(digest)? else {
            self.forget(digest);
            return Ok(None);
        };
        let mut bytes = Vec::new();
        (&file).take(MANIFEST_MAX as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == about.len() && digest.matches(&bytes) {
            if let Some(index) = &self.index {
                let verified = Some(Fingerprint::told(&about));
                match index.row(digest) {
                    Some(row) if row.verified == verified => index.used(digest, row),
                    _ => index.put(*digest, index.row_now(about.len(), verified)),
                }
            }
            return Ok(Some(bytes));
        }
        self.remove_wrong(digest, "its content is another")?;
        Ok(None)
    }

    /// Drops a blob that is not what its name says.
    pub(super) fn remove_wrong(&self, digest: &Digest, reason: &str) -> io::Result<()> {
        if !self.is_ours() {
            return Ok(());
        }
        let places = self.holders(digest);
        tracing::warn!(%digest, reason, places, "a cached file is not what its digest says: removed");
        self.metrics.cache_corrupt.inc();
        self.remove_blob(digest).map(drop)
    }

    /// Removes a blob. Whoever reads it reads on. Gives whether there was one.
    pub(super) fn remove_blob(&self, digest: &Digest) -> io::Result<bool> {
        // What is only kept open is closed before: else the file is taken apart where it is let go of.
        self.hot.digest_changed(digest);
        let there = match fs::remove_file(self.blob_path(digest)) {
            Ok(()) => true,
            // A folder in its place is none of ours.
            Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => false,
            Err(err) => return Err(err),
        };
        self.hot.digest_changed(digest);
        if let Some(index) = &self.index {
            index.gone(digest);
        }
        Ok(there)
    }

    /// Drops what is known of a blob that is not there.
    fn forget(&self, digest: &Digest) {
        if let Some(index) = &self.index
            && index.row(digest).is_some()
        {
            index.gone(digest);
        }
    }

    /// What `place` was seen to hold under a digest.
    pub fn link(&self, place: &Place, digest: &Digest) -> io::Result<Option<Link>> {
        read_json(&self.link_path(place, digest))
    }

    /// Remembers that `place` holds a digest.
    pub fn put_link(&self, place: &Place, digest: &Digest, link: &Link) -> io::Result<()> {
        let path = self.link_path(place, digest);
        if read_json::<Link>(&path)?.as_ref() == Some(link) {
            return Ok(());
        }
        self.put_json(&path, link)?;
        self.hot.digest_changed(digest);
        Ok(())
    }

    /// What a tag stood for.
    pub fn tag(&self, place: &Place, tag: &Tag, negotiated: Negotiated) -> io::Result<Option<TagEntry>> {
        read_json(&self.tag_path(place, tag, negotiated))
    }

    /// Remembers what a tag stands for.
    pub fn put_tag(&self, place: &Place, tag: &Tag, negotiated: Negotiated, entry: &TagEntry) -> io::Result<()> {
        self.put_json(&self.tag_path(place, tag, negotiated), entry)?;
        self.hot.tag_changed(place, tag);
        Ok(())
    }

    /// Writes a manifest whose digest was verified.
    pub fn put_manifest(&self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        if self.open_blob(digest)?.is_some_and(|(_, size)| size == bytes.len() as u64) {
            return Ok(());
        }
        let mut staged = self.reserve(Some(bytes.len() as u64))?;
        self.write_at(&mut staged, bytes, 0)?;
        self.commit(staged, digest)
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    /// `_` never begins a component of a repository's name, so that no repository lies in the way of another's links.
    pub(super) fn place_path(&self, place: &Place) -> PathBuf {
        self.dir.join("links").join(place.registry.as_str()).join(place.repository.as_str())
    }

    pub(super) fn link_path(&self, place: &Place, digest: &Digest) -> PathBuf {
        self.place_path(place).join("_digests").join(digest.algorithm()).join(digest.hex())
    }

    pub(super) fn tag_folder(&self, place: &Place, tag: &Tag) -> PathBuf {
        self.place_path(place).join("_tags").join(tag.as_str())
    }

    fn tag_path(&self, place: &Place, tag: &Tag, negotiated: Negotiated) -> PathBuf {
        self.tag_folder(place, tag).join(negotiated.key())
    }
}

pub(super) fn make_folders(dir: &Path) -> io::Result<()> {
    ["blobs/sha256", "blobs/sha512", "staging", "links"]
        .iter()
        .try_for_each(|folder| fs::create_dir_all(dir.join(folder)))
}

/// What a name says under which there is no file of ours: nothing, or something else.
fn is_absent(err: &io::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    // A link is not followed, and a socket or a device without a driver cannot be opened.
    let other = [rustix::io::Errno::LOOP, rustix::io::Errno::NXIO].map(|errno| Some(errno.raw_os_error()));
    matches!(err.kind(), NotFound | NotADirectory | IsADirectory) || other.contains(&err.raw_os_error())
}

/// Reads a small file; one that is not whole counts as none.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let read = File::options().read(true).custom_flags(flags).open(path).and_then(|file| {
        let mut bytes = Vec::new();
        file.take(SMALL_FILE_MAX).read_to_end(&mut bytes).map(|_| bytes)
    });
    match read {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(err) if is_absent(&err) => Ok(None),
        Err(err) => Err(err),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Registry, Repository};

    fn opened(dir: &Path) -> Result<Store, OpenError> {
        Store::open(&config::Cache::at(dir.to_owned()), Arc::default())
    }

    fn place(repository: &str) -> Place {
        Place {
            registry: Registry::parse("docker.io").expect("a registry"),
            repository: Repository::parse(repository).expect("a repository"),
        }
    }

    #[test]
    fn what_a_crash_left_is_swept_and_a_second_process_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = opened(dir.path()).expect("a store");
        assert!(matches!(opened(dir.path()), Err(OpenError::InUse(_))));
        let staged = store.stage().expect("a file");
        std::mem::forget(staged);
        drop(store);
        let _store = opened(dir.path()).expect("a store");
        assert_eq!(fs::read_dir(dir.path().join("staging")).expect("a folder").count(), 0);
    }

    #[test]
    fn i10_a_link_belongs_to_one_repository() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = opened(dir.path()).expect("a store");
        let digest = Digest::sha256_of(b"{}");
        store.put_manifest(&digest, b"{}").expect("written");
        let link = Link { media_type: "text/plain".to_owned(), size: 2 };
        store.put_link(&place("a/b"), &digest, &link).expect("written");
        assert_eq!(store.link(&place("a/b"), &digest).expect("read"), Some(link));
        assert_eq!(store.link(&place("a"), &digest).expect("read"), None);
        assert_eq!(store.link(&place("a/b/c"), &digest).expect("read"), None);
    }

    #[test]
    fn d9_a_folder_is_opened_without_a_look_at_its_blobs() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = opened(dir.path()).expect("a store");
        let index = store.index.as_ref().expect("an index");
        index.completed();
        index.close();
        drop(store);
        // A blob behind its back: who looked would count it.
        fs::write(dir.path().join("blobs/sha256").join(Digest::sha256_of(b"x").hex()), b"x").expect("written");
        let store = opened(dir.path()).expect("a store");
        assert_eq!(store.index.as_ref().expect("an index").totals(), super::super::rows::Totals::default());
    }

    #[test]
    fn an_emptied_folder_is_filled_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = opened(dir.path()).expect("a store");
        let digest = Digest::sha256_of(b"{}");
        for entry in fs::read_dir(dir.path()).expect("a folder").flatten() {
            let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        }
        store.put_manifest(&digest, b"{}").expect("written");
        assert_eq!(store.read_manifest(&digest).expect("read"), Some(b"{}".to_vec()));
    }

    #[test]
    fn a_broken_file_is_none() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = opened(dir.path()).expect("a store");
        let digest = Digest::sha256_of(b"{}");
        fs::write(store.blob_path(&digest), b"[]").expect("written");
        assert_eq!(store.read_manifest(&digest).expect("read"), None);
        assert!(store.open_blob(&digest).expect("read").is_none(), "it was removed");
        let tag = Tag::parse("latest").expect("a tag");
        let entry = TagEntry::now(digest);
        store.put_tag(&place("a"), &tag, Negotiated::ALL, &entry).expect("written");
        assert_eq!(store.tag(&place("a"), &tag, Negotiated::ALL).expect("read"), Some(entry));
        fs::write(store.tag_path(&place("a"), &tag, Negotiated::ALL), b"").expect("written");
        assert_eq!(store.tag(&place("a"), &tag, Negotiated::ALL).expect("read"), None);
    }
}
