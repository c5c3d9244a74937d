//! Compiled code that is kept from start to start: what took a compiler seconds is read in milliseconds.
//!
//! It is native code, so it is believed only out of a folder that nobody else can write to, and only when it is what
//! was written. It lies in the state folder, never beside the plugins.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::{CWD, Mode, OFlags, openat};
use wasmtime::Engine as Wasmtime;

use crate::oci::Digest;

/// What all entries may take together: some fifteen plugins of Python. Units: bytes.
const ROOM: u64 = 512 << 20;
/// Entries that are kept: four times what one folder may hold.
const ENTRIES_MAX: usize = 256;
/// Bytes of the checksum (SHA-256) at the beginning of an entry.
const CHECKSUM: usize = 32;

/// The folder of compiled code.
#[derive(Debug)]
pub(super) struct CodeCache {
    dir: PathBuf,
    /// The folder that was looked at when it was opened, whatever stands under its name later.
    opened: File,
    /// What of this program decides over the code that it makes.
    maker: u64,
    room: u64,
    may_write: bool,
}

impl CodeCache {
    /// Opens the folder under `state_dir` and makes it, where there is none.
    ///
    /// # Errors
    /// When it is not this user's alone: a text for the operator.
    pub fn open(state_dir: &Path, wasmtime: &Wasmtime) -> Result<Self, String> {
        let dir = folder(state_dir);
        let made = fs::create_dir_all(state_dir).and_then(|()| match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        });
        made.map_err(|err| format!("it cannot be made: {err}"))?;
        let cache = Self::open_as_it_is(dir, wasmtime, true)?;
        cache.remove_leftovers();
        Ok(cache)
    }

    /// Opens the folder, where there is one, to read only.
    pub fn open_to_read(state_dir: &Path, wasmtime: &Wasmtime) -> Option<Self> {
        Self::open_as_it_is(folder(state_dir), wasmtime, false).ok()
    }

    fn open_as_it_is(dir: PathBuf, wasmtime: &Wasmtime, may_write: bool) -> Result<Self, String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(CWD, &dir, flags, Mode::empty()).map_err(|err| format!("it cannot be opened: {err}"))?;
        let opened = File::from(opened);
        let about = opened.metadata().map_err(|err| format!("it cannot be looked at: {err}"))?;
        let user = rustix::process::geteuid().as_raw();
        if about.uid() != user {
            return Err(format!("it belongs to user {}, and this is user {user}; remove it", about.uid()));
        }
        if about.mode() & 0o077 != 0 {
            let mode = about.mode() & 0o777;
            return Err(format!("others may enter it (mode {mode:o}); remove it, or set its mode to 700"));
        }
        let mut maker = DefaultHasher::new();
        wasmtime.precompile_compatibility_hash().hash(&mut maker);
        // What makes a component of a core module belongs to this program, not to wasmtime.
        env!("CARGO_PKG_VERSION").hash(&mut maker);
        Ok(Self { dir, opened, maker: maker.finish(), room: ROOM, may_write })
    }

    /// The code of a plugin file, where it is kept and whole. Blocks.
    pub fn get(&self, wasm: &[u8]) -> Option<Vec<u8>> {
        let name = self.name(wasm);
        let file = openat(&self.opened, &name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        let mut file = File::from(file.ok()?);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        let whole = bytes.get(..CHECKSUM).is_some_and(|sum| sum == checksum(&bytes[CHECKSUM..]));
        if !whole {
            tracing::warn!(file = %self.dir.join(&name).display(), "compiled code has changed on the disk: it is compiled anew");
            self.remove(&name);
            return None;
        }
        // What was used last is dropped last.
        let _ = file.set_modified(SystemTime::now());
        bytes.drain(..CHECKSUM);
        Some(bytes)
    }

    /// Keeps the code of a plugin file. Blocks.
    ///
    /// # Errors
    /// The system's; the entry before, if any, stays.
    pub fn put(&self, wasm: &[u8], code: &[u8]) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let len = (CHECKSUM + code.len()) as u64;
        if !self.may_write || len > self.room {
            return Ok(());
        }
        self.make_room(len)?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let staged = format!("{}-{number}.part", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.opened, &staged, flags, Mode::RUSR | Mode::WUSR)?);
        let written = file
            .write_all(&checksum(code))
            .and_then(|()| file.write_all(code))
            .and_then(|()| file.sync_data())
            .and_then(|()| Ok(rustix::fs::renameat(&self.opened, &staged, &self.opened, self.name(wasm))?));
        written.inspect_err(|_| self.remove(&staged))
    }

    /// Drops the oldest until there is room for so many bytes more.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        let mut entries = self.entries()?;
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.modified));
        let mut taken = bytes;
        for (at, entry) in entries.into_iter().enumerate() {
            taken += entry.len;
            if taken > self.room || at + 1 >= ENTRIES_MAX {
                self.remove(&entry.name);
            }
        }
        Ok(())
    }

    /// What a process that ended in the middle of writing left.
    fn remove_leftovers(&self) {
        for entry in self.entries().unwrap_or_default() {
            if entry.name.strip_suffix(".part").is_some() {
                self.remove(&entry.name);
            }
        }
    }

    fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.opened)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let about = rustix::fs::statat(&self.opened, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
            if rustix::fs::FileType::from_raw_mode(about.st_mode).is_file() {
                let modified = (about.st_mtime, about.st_mtime_nsec);
                let len = u64::try_from(about.st_size).unwrap_or(0);
                entries.push(Entry {
                    name: name.to_owned(),
                    len,
                    modified: (modified.0, i64::try_from(modified.1).unwrap_or(0)),
                });
            }
        }
        Ok(entries)
    }

    fn remove(&self, name: &str) {
        if self.may_write {
            let _ = rustix::fs::unlinkat(&self.opened, name, rustix::fs::AtFlags::empty());
        }
    }

    fn name(&self, wasm: &[u8]) -> String {
        format!("{}-{:016x}", Digest::sha256_of(wasm).hex(), self.maker)
    }
}

struct Entry {
    name: String,
    /// Units: bytes.
    len: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

/// Where the code lies that belongs to a state folder.
pub(super) fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("compiled")
}

fn checksum(code: &[u8]) -> [u8; CHECKSUM] {
    use sha2::Digest as _;
    sha2::Sha256::digest(code).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn open(state_dir: &Path) -> CodeCache {
        CodeCache::open(state_dir, &Wasmtime::default()).expect("a cache")
    }

    #[test]
    fn code_comes_back_as_it_was_and_rotten_code_never() {
        let state_dir = tempfile::tempdir().expect("a folder");
        let cache = open(state_dir.path());
        assert_eq!(cache.get(b"a"), None);
        cache.put(b"a", b"the code of a").expect("kept");
        assert_eq!(open(state_dir.path()).get(b"a").as_deref(), Some(&b"the code of a"[..]));
        let path = folder(state_dir.path()).join(cache.name(b"a"));
        let changes: [fn(&mut Vec<u8>); 4] =
            [|bytes| bytes[40] ^= 1, |bytes| bytes[0] ^= 1, |bytes| bytes.truncate(20), |bytes| bytes.push(0)];
        for change in changes {
            cache.put(b"a", b"the code of a").expect("kept");
            let mut bytes = fs::read(&path).expect("it is there");
            change(&mut bytes);
            fs::write(&path, bytes).expect("written");
            assert_eq!(cache.get(b"a"), None);
            assert!(!path.exists(), "it is not looked at again");
        }
    }

    #[test]
    fn a_folder_that_others_may_enter_is_not_believed() {
        let state_dir = tempfile::tempdir().expect("a folder");
        open(state_dir.path()).put(b"a", b"code").expect("kept");
        let dir = folder(state_dir.path());
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o770)).expect("set");
        let reason = CodeCache::open(state_dir.path(), &Wasmtime::default()).expect_err("refused");
        assert!(reason.contains("mode 770") && reason.contains("700"), "{reason}");
        assert!(CodeCache::open_to_read(state_dir.path(), &Wasmtime::default()).is_none());
        // A link that leads elsewhere is no folder of ours either.
        let elsewhere = state_dir.path().join("elsewhere");
        fs::rename(&dir, &elsewhere).expect("moved");
        fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o700)).expect("set");
        std::os::unix::fs::symlink(&elsewhere, &dir).expect("linked");
        assert!(CodeCache::open(state_dir.path(), &Wasmtime::default()).is_err());
    }

    #[test]
    fn the_oldest_make_room_and_readers_change_nothing() {
        let state_dir = tempfile::tempdir().expect("a folder");
        let mut cache = open(state_dir.path());
        cache.room = 3 * 1032;
        let old = |name: &[u8], secs| {
            let file =
                File::options().write(true).open(folder(state_dir.path()).join(cache.name(name))).expect("there");
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(secs)).expect("set");
        };
        for (name, secs) in [(b"a", 30), (b"b", 10), (b"c", 20)] {
            cache.put(name, &[0; 1000]).expect("kept");
            old(name, secs);
        }
        let reader = CodeCache::open_to_read(state_dir.path(), &Wasmtime::default()).expect("it is there");
        reader.put(b"e", b"code").expect("passed over");
        assert_eq!(reader.get(b"e"), None);
        cache.put(b"d", &[0; 1000]).expect("kept");
        let left = [b"a", b"b", b"c", b"d"].map(|name| reader.get(name).is_some());
        assert_eq!(left, [true, false, true, true]);
        cache.put(b"f", &[0; 5000]).expect("passed over");
        assert!(reader.get(b"a").is_some() && reader.get(b"f").is_none());
        for number in 0..ENTRIES_MAX + 10 {
            cache.put(number.to_string().as_bytes(), b"").expect("kept");
        }
        assert!(cache.entries().expect("listed").len() <= ENTRIES_MAX);
    }
}
