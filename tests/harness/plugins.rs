//! The plugins that the project ships, and a guest that is built as they are, once a run.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use crate::namespace::is_second_run;
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

/// `cooldown.wasm`.
pub fn cooldown() -> Vec<u8> {
    built("cooldown")
}

/// `tag-guard.wasm`.
pub fn tag_guard() -> Vec<u8> {
    built("tag-guard")
}

/// `quota.wasm`.
pub fn quota() -> Vec<u8> {
    built("quota")
}

/// `require-signature.wasm`.
pub fn require_signature() -> Vec<u8> {
    built("require-signature")
}

/// `gatekeeper.wasm`.
pub fn gatekeeper() -> Vec<u8> {
    built("gatekeeper")
}

/// `mirrors.wasm`.
pub fn mirrors() -> Vec<u8> {
    built("mirrors")
}

/// `teller.wasm`, which tells what the host tells it.
pub fn teller() -> Vec<u8> {
    built("teller")
}

/// `puppet.wasm`, whose hooks do what its configuration says.
pub fn puppet() -> Vec<u8> {
    built("puppet")
}

fn built(name: &str) -> Vec<u8> {
    static BUILT: OnceLock<()> = OnceLock::new();
    let folder = workspace().join("plugins");
    BUILT.get_or_init(|| {
        if is_second_run() {
            return;
        }
        let mut build = Command::new(folder.join("build"));
        let own =
            ["allowlist", "failover", "cooldown", "tag-guard", "quota", "require-signature", "gatekeeper", "mirrors"];
        build.args(own).args(["../tests/guests/teller", "../tests/guests/puppet"]).current_dir(&folder);
        let output = run_within(BUILD, &mut build);
        assert!(output.status.success(), "plugins/build:\n{}", String::from_utf8_lossy(&output.stderr));
    });
    let file = folder.join("dist").join(format!("{name}.wasm"));
    fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}; run `make plugins`", file.display()))
}
