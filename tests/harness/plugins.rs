//! The plugins that the project ships, built once a run.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use crate::process::run_within;
use crate::program::{BUILD, workspace};

/// `allowlist.wasm`.
pub fn allowlist() -> Vec<u8> {
    built("allowlist")
}

/// `failover.wasm`.
pub fn failover() -> Vec<u8> {
    built("failover")
}

fn built(name: &str) -> Vec<u8> {
    static BUILT: OnceLock<()> = OnceLock::new();
    let folder = workspace().join("plugins");
    BUILT.get_or_init(|| {
        let output = run_within(BUILD, Command::new(folder.join("build")).current_dir(&folder));
        assert!(output.status.success(), "plugins/build:\n{}", String::from_utf8_lossy(&output.stderr));
    });
    let file = folder.join("dist").join(format!("{name}.wasm"));
    fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}; run `make plugins`", file.display()))
}
