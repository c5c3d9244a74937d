//! Caches of many small blobs, written as the program lays them out.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use tidegate_tests::content::sha256;
use tidegate_tests::disk::Disk;
use tidegate_tests::site::Site;

use crate::rows::Bench;
use crate::stock::{REPOSITORY, blob_path};
use crate::tidegate::{self, with_plugins};

/// Files that are one file by so many names: a file system allows 65,000.
const NAMES: usize = 60_000;

/// The program sweeps 25,000 files a second at the most, and slower beside others.
const SWEEP: Duration = Duration::from_mins(5);

/// Of how many blobs a load asks for some.
pub const ASKED: usize = 10_000;

/// The arguments of mkfs for a disk of a million blobs: room for their files, and nothing that a cache does not need.
const MANY: [&str; 6] = ["-q", "-O", "^has_journal", "-N", "1200000", "-Enodiscard"];

/// A site with many blobs on a file system of its own: to remove a million files one by one takes longer than all else.
pub fn site_on_disk(bench: &Bench, blobs: usize) -> (Option<Disk>, Site) {
    let site = with_plugins(tidegate::site(bench.source()), 3);
    let (image, cache) = (site.path("disk").display().to_string(), site.path("cache"));
    let format = || {
        let file = File::create(&image)?;
        file.set_len(8 << 30)?;
        Command::new("mkfs.ext4").args(MANY).arg(&image).output()
    };
    let is_formatted = format().is_ok_and(|output| output.status.success());
    let disk = if is_formatted { Disk::mount(cache, &["-o", "loop,noatime", &image]) } else { None };
    (disk, filled(&site, blobs))
}

/// A site with three plugins whose cache has so many blobs, in order: its index knows them all.
pub fn site(bench: &Bench, blobs: usize) -> Site {
    filled(&with_plugins(tidegate::site(bench.source()), 3), blobs)
}

fn filled(site: &Site, blobs: usize) -> Site {
    let folders =
        [site.path("cache/blobs/sha256"), site.path(&format!("cache/links/docker.io/{REPOSITORY}/_digests/sha256"))];
    for folder in &folders {
        fs::create_dir_all(folder).expect("a folder");
    }
    let half = blobs / 2;
    thread::scope(|scope| {
        scope.spawn(|| write(&folders[0], &folders[1], 0, half));
        write(&folders[0], &folders[1], half, blobs);
    });
    // The first start makes the index.
    let proxy = site.start();
    let found = proxy.wait_for_within(SWEEP, "blobs that the index did not know are found");
    assert!(found, "the blobs are not found within {SWEEP:?}");
    let (site, status) = proxy.terminate();
    assert!(status.success(), "tidegate ends with {status} after its sweep");
    site
}

/// Paths of some of the blobs, spread evenly.
pub fn paths(blobs: usize) -> Vec<String> {
    let step = (blobs / ASKED).max(1);
    (0..blobs).step_by(step).map(|at| blob_path(&sha256(&content(at)))).collect()
}

fn content(at: usize) -> Vec<u8> {
    format!("blob {at:07}").into_bytes()
}

fn write(blobs: &Path, links: &Path, from: usize, to: usize) {
    let link = format!(r#"{{"media_type":"application/octet-stream","size":{}}}"#, content(from).len());
    let mut first = None;
    for at in from..to {
        let bytes = content(at);
        let digest = sha256(&bytes);
        let hex = digest.trim_start_matches("sha256:");
        fs::write(blobs.join(hex), bytes).expect("room on the disk");
        // All links say the same: few files are enough.
        let own = links.join(hex);
        match &first {
            Some(first) if !(at - from).is_multiple_of(NAMES) => fs::hard_link(first, own).expect("a name more"),
            _ => {
                fs::write(&own, &link).expect("room on the disk");
                first = Some(own);
            }
        }
    }
}
