//! Has the system begin to write a file to its disk, so that a whole file need not wait for all of it.
//!
//! The call is Linux's own, and no crate has a safe one for it: hence the code that is not.

use std::fs::File;
use std::os::fd::AsRawFd;

/// Begins to write `length` bytes from `start`, and waits for none of it. A fault shows when the file is forced to the
/// disk; a file system that does not know this writes then.
#[allow(unsafe_code)]
pub(super) fn begin(file: &File, start: u64, length: u64) {
    let (Ok(start), Ok(length)) = (i64::try_from(start), i64::try_from(length)) else { return };
    // SAFETY: the descriptor is open as long as `file` is borrowed, and the call reads and writes no memory of ours.
    unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, libc::SYNC_FILE_RANGE_WRITE) };
}
