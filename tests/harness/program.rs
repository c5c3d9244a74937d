//! Where the program under test is, built from what lies in the tree now.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::process::run_within;

/// How long a build may take, with everything to be compiled on a small machine: a guard against hanging.
pub const BUILD: Duration = Duration::from_mins(30);

/// The variable that names the program to be tested.
pub const PROGRAM: &str = "TIDEGATE_BIN";

/// Folder of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace")
}

/// The program: `TIDEGATE_BIN` where it is set, else what cargo builds, once a run, into the target folder that holds
/// the tests. So a binary that is out of date is never tested.
pub fn tidegate() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| env::var_os(PROGRAM).map_or_else(build, PathBuf::from))
}

fn build() -> PathBuf {
    // The test runs as TARGET/release/deps/e2e-HASH, the long faults as TARGET/release/faults.
    let test = env::current_exe().expect("a test has a file");
    let release = test.ancestors().find(|folder| folder.ends_with("release")).expect("it lies in a target folder");
    let target = release.parent().expect("the profile lies in a target folder");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = run_within(
        BUILD,
        Command::new(cargo)
            .args(["build", "--release", "--package", "tidegate", "--target-dir"])
            .arg(target)
            .current_dir(workspace()),
    );
    assert!(output.status.success(), "cargo build of tidegate:\n{}", String::from_utf8_lossy(&output.stderr));
    target.join("release/tidegate")
}
