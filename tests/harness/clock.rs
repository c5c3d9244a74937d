//! A wall clock for the program that moves when a test says so.

use std::fs;
use std::path::Path;

use crate::site::Site;

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// A site whose program reads its wall clock from a file. None, with a word on why, where this machine has no
/// libfaketime.
pub fn with_clock(site: Site) -> Option<Site> {
    if !Path::new(LIBRARY).exists() {
        println!("not run: there is no {LIBRARY}; to install it: apt-get install faketime");
        return None;
    }
    let file = site.path("clock");
    fs::write(&file, "+0").unwrap();
    let site = site
        .variable("LD_PRELOAD", LIBRARY)
        .variable("FAKETIME_TIMESTAMP_FILE", &file.display().to_string())
        .variable("FAKETIME_NO_CACHE", "1")
        .variable("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    Some(site)
}

/// Sets the clock so far from the real time: `+8d`, `-2h`.
pub fn set_clock(site: &Site, offset: &str) {
    fs::write(site.path("clock"), offset).unwrap();
}
