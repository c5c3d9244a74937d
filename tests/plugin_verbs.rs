//! `tidegate plugin check`, `test` and `bench`: a plugin by itself, without a proxy or its configuration.

use std::fs;
use std::process::{Command, Output};

use tempfile::TempDir;
use tidegate_tests::guests::{Does, Guest};
use tidegate_tests::plugins::{allowlist, teller};
use tidegate_tests::process::{offline, run};
use tidegate_tests::program::tidegate;

/// A folder with files in it, and nothing of a proxy.
fn folder<const N: usize>(files: [(&str, &[u8]); N]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// Runs a verb in a folder: its exit code, what it prints, and what it complains of.
fn plugin(folder: &TempDir, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(tidegate());
    let Output { status, stdout, stderr } =
        run(offline(&mut command).arg("plugin").args(arguments).current_dir(folder.path()));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().expect("it ends by itself"), text(stdout), text(stderr))
}

#[test]
fn check_says_what_a_plugin_is_without_a_configuration_of_a_proxy() {
    let folder = folder([
        ("10-allowlist.wasm", &allowlist()),
        ("rules.toml", b"block = [\"docker.io/library/redis\"]"),
        ("teller.wasm", &teller()),
        // Nothing of it is read.
        ("tidegate.toml", b"listen = 5"),
    ]);
    let (code, out, _) = plugin(&folder, &["check", "10-allowlist.wasm", "--config-files", "rules.toml"]);
    assert_eq!(code, 0, "{out}");
    for part in ["tidegate:policy@0.1.0", "admission", "config, log", "not used", "KiB", "accepted: rules.toml"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let (code, out, _) = plugin(&folder, &["check", "teller.wasm"]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("admission, fallback") && out.contains("none is needed"), "{out}");
}

#[test]
fn check_tells_that_a_configuration_is_needed_and_refuses_a_bad_one() {
    let folder = folder([("allowlist.wasm", &allowlist()), ("bad.toml", b"\nblokc = [\"docker.io/a\"]\n")]);
    let (code, out, _) = plugin(&folder, &["check", "allowlist.wasm"]);
    assert_eq!(code, 0, "that one is needed is no failure: {out}");
    assert!(out.contains("one is needed"), "{out}");
    let (code, _, complaint) = plugin(&folder, &["check", "allowlist.wasm", "--config-files", "bad.toml"]);
    assert_eq!(code, 2, "{complaint}");
    assert!(complaint.contains("bad.toml") && complaint.contains('2') && complaint.contains("blokc"), "{complaint}");
}

#[test]
fn check_refuses_what_the_proxy_would_refuse() {
    let folder = folder([
        ("text.wasm", b"no plugin"),
        ("hookless.wasm", &Guest::new().component()),
        ("moon.wasm", &Guest::new().admits(Does::Nothing).wants_the_moon().component()),
        ("spins.wasm", &Guest::new().admits(Does::Nothing).never_starts().component()),
    ]);
    for (file, reason) in [
        ("text.wasm", "no WebAssembly"),
        ("hookless.wasm", "exports no hook"),
        ("moon.wasm", "moon"),
        ("spins.wasm", "deadline"),
        ("absent.wasm", "cannot be read"),
    ] {
        let (code, _, complaint) = plugin(&folder, &["check", file]);
        assert_eq!(code, 2, "{file}: {complaint}");
        assert!(complaint.contains(file) && complaint.contains(reason), "{complaint}");
    }
}
