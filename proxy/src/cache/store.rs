//! The cache on disk: blobs by digest, and links that say which repository was seen to hold them.
//!
//! Every function blocks. What becomes visible is made in `staging/`, and moved to its name when it is whole.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::oci::manifest::{MANIFEST_MAX, Negotiated};
use crate::oci::{Digest, Place, Tag};

/// The folder of a cache. Its layout is drawn in DESIGN.md.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    next_staging: AtomicU64,
    /// Held as long as the process lives: two processes never write to one folder. None: it is only read.
    lock: Option<File>,
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

    /// How long ago its registry was asked. A clock that went back makes an entry new, never of negative age.
    pub fn age(&self) -> Duration {
        Duration::from_secs(now_secs().saturating_sub(self.checked_at_secs))
    }
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A file in `staging/` that is removed unless it is committed.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    /// Open for reading and writing.
    pub file: std::sync::Arc<File>,
    committed: bool,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Store {
    /// Opens the folder, makes what is missing in it, and sweeps what a crash has left in `staging/`.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let fail = |source| OpenError::Io { dir: dir.to_owned(), source };
        for folder in ["blobs/sha256", "blobs/sha512", "staging", "links"] {
            fs::create_dir_all(dir.join(folder)).map_err(fail)?;
        }
        let lock = File::options().create(true).append(true).open(dir.join("lock")).map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(OpenError::InUse(dir.to_owned())),
            Err(fs::TryLockError::Error(source)) => return Err(fail(source)),
        }
        for left in fs::read_dir(dir.join("staging")).map_err(fail)?.flatten() {
            let _ = fs::remove_file(left.path());
        }
        let store = Self { dir: dir.to_owned(), next_staging: AtomicU64::new(0), lock: Some(lock) };
        // An OCI image layout, so that ordinary tools can read it; its index names nothing, the links do.
        for (name, text) in [
            ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
            ("index.json", r#"{"schemaVersion":2,"manifests":[]}"#),
        ] {
            if !dir.join(name).exists() {
                store.put(&dir.join(name), text.as_bytes()).map_err(fail)?;
            }
        }
        Ok(store)
    }

    /// A folder that is only read, and may not be there.
    pub fn open_to_read(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), next_staging: AtomicU64::new(0), lock: None }
    }

    /// Opens the blob of a digest; none where there is none, or where it is no regular file.
    pub fn open_blob(&self, digest: &Digest) -> io::Result<Option<(File, u64)>> {
        let path = self.blob_path(digest);
        // Asked before it is opened: opening a FIFO that somebody put there would block.
        match fs::symlink_metadata(&path) {
            Ok(about) if about.is_file() => {}
            Ok(_) => return Ok(None),
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(err),
        }
        let file = File::open(&path)?;
        let size = file.metadata()?.len();
        Ok(Some((file, size)))
    }

    /// Reads a blob that is a manifest, and verifies it; one that does not match its digest is removed.
    pub fn read_manifest(&self, digest: &Digest) -> io::Result<Option<Vec<u8>>> {
        let Some((file, size)) = self.open_blob(digest)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(MANIFEST_MAX as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == size && digest.matches(&bytes) {
            return Ok(Some(bytes));
        }
        self.remove_blob(digest)?;
        Ok(None)
    }

    /// Drops a blob that is not what its name says.
    pub fn remove_blob(&self, digest: &Digest) -> io::Result<()> {
        if self.lock.is_none() {
            return Ok(());
        }
        tracing::warn!(%digest, "a cached file is not what its digest says: removed");
        fs::remove_file(self.blob_path(digest))
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
        self.put_json(&path, link)
    }

    /// What a tag stood for.
    pub fn tag(&self, place: &Place, tag: &Tag, negotiated: Negotiated) -> io::Result<Option<TagEntry>> {
        read_json(&self.tag_path(place, tag, negotiated))
    }

    /// Remembers what a tag stands for.
    pub fn put_tag(&self, place: &Place, tag: &Tag, negotiated: Negotiated, entry: &TagEntry) -> io::Result<()> {
        self.put_json(&self.tag_path(place, tag, negotiated), entry)
    }

    /// Writes a manifest whose digest was verified.
    pub fn put_manifest(&self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        if self.open_blob(digest)?.is_some_and(|(_, size)| size == bytes.len() as u64) {
            return Ok(());
        }
        let staged = self.stage()?;
        staged.file.write_all_at(bytes, 0)?;
        self.commit(staged, digest)
    }

    /// A new file in `staging/`.
    pub fn stage(&self) -> io::Result<Staged> {
        let number = self.next_staging.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join("staging").join(format!("{number}.part"));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Staged { path, file: file.into(), committed: false })
    }

    /// Gives a staged file, whose content was verified, the name of its digest. It is on the disk before it is
    /// visible: after a power cut a file under its final name is whole.
    pub fn commit(&self, mut staged: Staged, digest: &Digest) -> io::Result<()> {
        staged.file.sync_data()?;
        fs::rename(&staged.path, self.blob_path(digest))?;
        staged.committed = true;
        Ok(())
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    /// `_` never begins a component of a repository's name, so that no repository lies in the way of another's links.
    fn place_path(&self, place: &Place) -> PathBuf {
        self.dir.join("links").join(place.registry.as_str()).join(place.repository.as_str())
    }

    fn link_path(&self, place: &Place, digest: &Digest) -> PathBuf {
        self.place_path(place).join("_digests").join(digest.algorithm()).join(digest.hex())
    }

    fn tag_path(&self, place: &Place, tag: &Tag, negotiated: Negotiated) -> PathBuf {
        self.place_path(place).join("_tags").join(tag.as_str()).join(negotiated.key())
    }

    fn put_json(&self, path: &Path, value: &impl Serialize) -> io::Result<()> {
        self.put(path, &serde_json::to_vec(value)?)
    }

    /// Small files that may be lost without harm: whole or not there, but not forced to the disk.
    fn put(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut staged = self.stage()?;
        (&*staged.file).write_all(bytes)?;
        if let Err(err) = fs::rename(&staged.path, path) {
            let Some(folder) = path.parent().filter(|_| err.kind() == io::ErrorKind::NotFound) else {
                return Err(err);
            };
            fs::create_dir_all(folder)?;
            fs::rename(&staged.path, path)?;
        }
        staged.committed = true;
        Ok(())
    }
}

/// Reads a small file; one that is not whole counts as none.
fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(err) => Err(err),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Registry, Repository};

    fn place(repository: &str) -> Place {
        Place {
            registry: Registry::parse("docker.io").expect("a registry"),
            repository: Repository::parse(repository).expect("a repository"),
        }
    }

    #[test]
    fn what_a_crash_left_is_swept_and_a_second_process_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path()).expect("a store");
        assert!(matches!(Store::open(dir.path()), Err(OpenError::InUse(_))));
        let staged = store.stage().expect("a file");
        std::mem::forget(staged);
        drop(store);
        let _store = Store::open(dir.path()).expect("a store");
        assert_eq!(fs::read_dir(dir.path().join("staging")).expect("a folder").count(), 0);
    }

    #[test]
    fn i10_a_link_belongs_to_one_repository() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path()).expect("a store");
        let digest = Digest::sha256_of(b"{}");
        store.put_manifest(&digest, b"{}").expect("written");
        let link = Link { media_type: "text/plain".to_owned(), size: 2 };
        store.put_link(&place("a/b"), &digest, &link).expect("written");
        assert_eq!(store.link(&place("a/b"), &digest).expect("read"), Some(link));
        assert_eq!(store.link(&place("a"), &digest).expect("read"), None);
        assert_eq!(store.link(&place("a/b/c"), &digest).expect("read"), None);
    }

    #[test]
    fn a_broken_file_is_none() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path()).expect("a store");
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
