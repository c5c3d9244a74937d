//! What becomes visible is made in `staging/`, and moved to its name when it is whole: blobs on the disk by then, small files
//! whole or not there.
//!
//! Every function blocks.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use serde::Serialize;

use super::fingerprint::Fingerprint;
use super::room::Reserved;
use super::store::{Store, make_folders};
use super::writeback;
use crate::oci::Digest;

/// How far ahead of what is written the disk sets room apart: before the first byte, which waits for it, and then.
/// Units: bytes.
const AHEAD: (u64, u64) = (1 << 20, 64 << 20);
/// How much is written before the disk is given it. Units: bytes.
const BEGIN: u64 = 8 << 20;
/// Times that a small file is written anew because its folder was pruned meanwhile.
const PUTS_MAX: usize = 3;

/// A file in `staging/` that is removed unless it is committed.
pub struct Staged {
    path: PathBuf,
    /// Open for reading and writing.
    pub file: Arc<File>,
    committed: bool,
    /// Its part of the room that the cache may take.
    reserved: Reserved,
    /// To before this byte the disk has set room apart, and to before which it is to. Units: bytes.
    apart: (u64, u64),
    /// To before this byte the system was told to write it to the disk. Units: bytes.
    begun: u64,
}

impl Staged {
    /// Gives back the room of bytes that are not coming now: only `length` have come.
    pub fn give_back(&mut self, length: u64) {
        self.reserved = Reserved::none();
        // What lies behind the end of a file goes with this, on ext4 too, which punches no hole there.
        let _ = self.file.set_len(length);
        self.apart = (length, length);
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Store {
    /// A new file in `staging/` with room for a content, made by dropping others where there is none; of an unknown
    /// size it gets its room when it is committed. A disk that is too full shows now; it sets the space apart as the
    /// content comes, since all of it at once would keep the first byte waiting.
    pub fn reserve(&self, size: Option<u64>) -> io::Result<Staged> {
        let mut staged = self.unless_full(0, || self.stage())?;
        self.reserve_rest(&mut staged, 0, size)?;
        Ok(staged)
    }

    /// The same for the rest of a content of which a staged file has the beginning.
    pub fn reserve_rest(&self, staged: &mut Staged, from: u64, size: Option<u64>) -> io::Result<()> {
        // A reservation on the disk does not show this limit.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
        if limit.is_some_and(|limit| size.is_some_and(|size| size > limit)) {
            return Err(rustix::io::Errno::FBIG.into());
        }
        let rest = size.map_or(0, |size| size.saturating_sub(from));
        staged.reserved = self.make_room(rest)?;
        staged.apart = (from, from + rest);
        self.set_apart(staged, from + AHEAD.0)
    }

    /// Has the disk set room apart up to a byte, as far as that belongs to the content.
    fn set_apart(&self, staged: &mut Staged, to: u64) -> io::Result<()> {
        let (start, end) = staged.apart;
        let next = end.min(to);
        if start >= next {
            return Ok(());
        }
        let length = next - start;
        staged.reserved.is_set_apart(length);
        let file = &*staged.file;
        self.unless_full(length, || match fallocate(file, FallocateFlags::KEEP_SIZE, start, length) {
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(err) => Err(err.into()),
        })?;
        staged.apart.0 = next;
        Ok(())
    }

    /// Writes bytes of a staged file, in order; on a disk that is full, once more after others were dropped.
    pub fn write_at(&self, staged: &mut Staged, bytes: &[u8], at: u64) -> io::Result<()> {
        let end = at + bytes.len() as u64;
        if end > staged.apart.0 {
            self.set_apart(staged, end + AHEAD.1)?;
        }
        self.unless_full(bytes.len() as u64, || staged.file.write_all_at(bytes, at))?;
        if end - staged.begun >= BEGIN {
            writeback::begin(&staged.file, staged.begun, end - staged.begun);
            staged.begun = end;
        }
        Ok(())
    }

    pub(super) fn stage(&self) -> io::Result<Staged> {
        let number = self.next_staging.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join("staging").join(format!("{number}.part"));
        let create = || File::options().read(true).write(true).create_new(true).open(&path);
        let file = create().or_else(|err| {
            if err.kind() != io::ErrorKind::NotFound {
                return Err(err);
            }
            // Somebody has emptied the folder under us.
            make_folders(&self.dir)?;
            create()
        })?;
        // As of a blob that is read: those who follow this fill keep it from being dropped.
        let _ = file.try_lock_shared();
        Ok(Staged { path, file: file.into(), committed: false, reserved: Reserved::none(), apart: (0, 0), begun: 0 })
    }

    /// Gives a staged file, whose content was verified, the name of its digest. It is on the disk before it is
    /// visible: after a power cut a file under its final name is whole.
    pub fn commit(&self, mut staged: Staged, digest: &Digest) -> io::Result<()> {
        let size = staged.file.metadata()?.len();
        let missing = size.saturating_sub(staged.reserved.bytes());
        // It lies on the disk already: only what the cache may hold is asked about.
        let _more = (missing > 0).then(|| self.make_room_for(missing, 0)).transpose()?;
        staged.file.sync_data()?;
        let path = self.blob_path(digest);
        self.rename(&staged.path, &path)?;
        staged.committed = true;
        if let Some(index) = &self.index {
            // The rename itself changes the file's ctime.
            let verified = Fingerprint::of(&staged.file).ok();
            index.put(*digest, index.row_now(size, verified));
            self.gauge();
        }
        self.hot.digest_changed(digest);
        Ok(())
    }

    /// Moves a staged file to its name. What is there instead of a file is moved out of the way.
    fn rename(&self, staged: &Path, path: &Path) -> io::Result<()> {
        let in_the_way = |err: &io::Error| {
            use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, IsADirectory};
            matches!(err.kind(), AlreadyExists | DirectoryNotEmpty | IsADirectory)
        };
        match fs::rename(staged, path) {
            Err(err) if in_the_way(&err) => {
                let number = self.next_staging.fetch_add(1, Ordering::Relaxed);
                let aside = self.dir.join("staging").join(format!("{number}.aside"));
                tracing::warn!(path = %path.display(), "a folder lies where a file of the cache belongs: it is removed");
                fs::rename(path, &aside)?;
                let _ = fs::remove_dir_all(&aside);
                fs::rename(staged, path)
            }
            done => done,
        }
    }

    pub(super) fn put_json(&self, path: &Path, value: &impl Serialize) -> io::Result<()> {
        self.put(path, &serde_json::to_vec(value)?)
    }

    /// Small files that may be lost without harm: whole or not there, but not forced to the disk.
    pub(super) fn put(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.unless_full(bytes.len() as u64, || {
            let mut staged = self.stage()?;
            (&*staged.file).write_all(bytes)?;
            let mut put = self.rename(&staged.path, path);
            for _ in 0..PUTS_MAX {
                match (&put, path.parent()) {
                    (Err(err), Some(folder)) if err.kind() == io::ErrorKind::NotFound => fs::create_dir_all(folder)?,
                    _ => break,
                }
                put = self.rename(&staged.path, path);
            }
            put?;
            staged.committed = true;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::config::Cache;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(&Cache::at(dir.path().to_owned()), Arc::default()).expect("a store");
        (dir, store)
    }

    #[test]
    fn the_disk_sets_room_apart_ahead_of_what_is_written() {
        let (_dir, store) = store();
        let (first, ahead) = AHEAD;
        let size = first + 3 * ahead;
        let mut staged = store.reserve(Some(size)).expect("room");
        let state = |staged: &Staged| (staged.apart.0, size - store.room.owed());
        assert_eq!(state(&staged), (first, first));
        store.write_at(&mut staged, b"within", 0).expect("written");
        assert_eq!(state(&staged), (first, first));
        store.write_at(&mut staged, b"beyond", first).expect("written");
        assert_eq!(state(&staged), (first + 6 + ahead, first + 6 + ahead));
        staged.give_back(first + 6);
        assert_eq!(store.room.owed(), 0);
        let taken = staged.file.metadata().expect("it is open").blocks() * 512;
        assert!(taken <= first + (64 << 10), "{taken} bytes on the disk");
        store.reserve_rest(&mut staged, first + 6, Some(size)).expect("room");
        assert_eq!((staged.apart.0, store.room.owed()), (2 * first + 6, 3 * ahead - first - 6));
        drop(staged);
        assert_eq!(store.room.owed(), 0);
    }

    #[test]
    fn d1_what_lies_on_the_disk_is_not_asked_of_it_once_more() {
        let (_dir, store) = store();
        let huge = u64::MAX / 4;
        assert!(store.make_room(huge).is_err());
        store.make_room_for(huge, 0).expect("no limit of the cache's own");
    }

    #[test]
    fn d1_what_is_promised_to_one_fill_is_not_there_for_another() {
        let (_dir, store) = store();
        let (_, least, free) = store.limits().expect("limits");
        let spare = free.saturating_sub(least);
        let first = store.reserve(Some(spare / 4 * 3)).expect("room");
        assert!(store.reserve(Some(spare / 2)).is_err_and(|err| super::super::room::is_no_space(&err)));
        drop(first);
        store.reserve(Some(spare / 2)).expect("room");
    }
}
