//! A test in namespaces of its own: the test program runs itself once more, alone with a network that it may break.

use std::env;
use std::process::Command;

use crate::process::run;
use crate::program::{PROGRAM, tidegate};

/// Says to the second run that it is the second one.
const INSIDE: &str = "TIDEGATE_TEST_NAMESPACE";

/// Whether this is a second run. It has no network and little time, so it builds nothing: the first one did.
pub fn is_second_run() -> bool {
    env::var_os(INSIDE).is_some()
}

/// Whether this is the inside. Outside, the test is run inside and must be good there; where the machine has no
/// namespaces for us, a line says so. `setup`: lines of shell that make the network, run with `set -e`.
pub fn is_inside(test: &str, setup: &str) -> bool {
    if is_second_run() {
        return true;
    }
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "sh", "-ec", script]);
        command
    };
    let tried = run(&mut unshare(&format!("ip link set lo up\n{setup}")));
    if !tried.status.success() {
        let reason = String::from_utf8_lossy(&tried.stderr).into_owned();
        println!("{test} is not run: this machine gives no namespaces such as it needs: {}", reason.trim());
        return false;
    }
    let program = env::current_exe().expect("a test has a file");
    let script = format!("ip link set lo up\n{setup}\nexec '{}' --exact '{test}' --nocapture", program.display());
    let output = run(unshare(&script).env(INSIDE, "1").env(PROGRAM, tidegate()));
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{test}, in namespaces of its own:\n{said}");
    assert!(said.contains("1 passed"), "{test} was not found:\n{said}");
    false
}
