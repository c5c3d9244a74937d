//! A small file system of its own, for as long as a test needs it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A file system of its own under a folder, for as long as this lives.
#[derive(Debug)]
pub struct Disk(PathBuf);

impl Disk {
    /// None, with a line that says why, where none can be mounted.
    pub fn tmpfs(folder: PathBuf, options: &str) -> Option<Self> {
        Self::mount(folder, &["-t", "tmpfs", "-o", options, "tmpfs"])
    }

    /// The same by any arguments of `mount`.
    pub fn mount(folder: PathBuf, arguments: &[&str]) -> Option<Self> {
        fs::create_dir_all(&folder).unwrap();
        let output = Command::new("mount").args(arguments).arg(&folder).output().unwrap();
        if output.status.success() {
            return Some(Self(folder));
        }
        println!("not run: mount {arguments:?} says {}", String::from_utf8_lossy(&output.stderr).trim());
        None
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
