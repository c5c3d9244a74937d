//! What tells that a file is the one that was verified, without reading it.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;

/// What changes with every change of a file's content or of the file under its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fingerprint {
    /// Number of the file in its file system.
    pub inode: u64,
    /// Units: bytes.
    pub size: u64,
    /// When its content was last written, as may be set by anybody. Units: nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// When anything of it last changed, as nobody can set. Units: nanoseconds since the epoch.
    pub ctime_ns: i64,
}

impl Fingerprint {
    /// Of an open file.
    pub fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|about| Self::told(&about))
    }

    /// Of what the system said.
    pub fn told(about: &Metadata) -> Self {
        let ns = |secs: i64, ns: i64| secs.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            inode: about.ino(),
            size: about.len(),
            mtime_ns: ns(about.mtime(), about.mtime_nsec()),
            ctime_ns: ns(about.ctime(), about.ctime_nsec()),
        }
    }
}
