//! The command line: what each verb prints, and what it exits with.

use std::net::TcpListener;
use std::process::{Command, Output};

use tidegate_tests::fake::Fake;
use tidegate_tests::guests::{self, Does, Guest};
use tidegate_tests::plugins::{allowlist, failover};
use tidegate_tests::process::{offline, run};
use tidegate_tests::program::tidegate;
use tidegate_tests::site::Site;

use crate::{denial, fake_with_app};

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn check_accepts_what_serve_would_serve() {
    let site = Site::of("http://127.0.0.1:1")
        .with([("10-allowlist.wasm", &allowlist()), ("10-allowlist.toml", b"block = [\"docker.io/library/redis\"]")]);
    let output = site.run(&["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
}

#[test]
fn check_names_a_plugin_that_does_not_load_and_why() {
    let refuses = Guest::new().checks(Does::Refuses("line 3: there is no such word")).admits(Does::Nothing).component();
    for (bytes, reason) in [(b"no plugin".to_vec(), ""), (refuses, "line 3: there is no such word")] {
        let site = Site::of("http://127.0.0.1:1");
        site.install("10-bad.wasm", &bytes);
        let output = site.run(&["check"]);
        let told = told(&output);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains("10-bad.wasm") && told.contains(reason), "{told}");
    }
}

#[test]
fn check_names_file_and_line_of_a_plugin_configuration() {
    let site = Site::of("http://127.0.0.1:1")
        .with([("10-allowlist.wasm", &allowlist()), ("10-allowlist.toml", b"# rules\nblokc = [\"docker.io/a\"]\n")]);
    let output = site.run(&["check"]);
    let told = told(&output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("10-allowlist.toml") && told.contains('2') && told.contains("blokc"), "{told}");
}

#[test]
fn check_leaves_nothing_behind() {
    let site = Site::of("http://127.0.0.1:1").with([("10-gate.wasm", &guests::admission(Does::Nothing))]);
    assert_eq!(site.run(&["check"]).status.code(), Some(0));
    assert!(!site.path("cache").exists(), "check made a cache");
}

/// A site with both plugins, and the fake registries behind it.
fn explained() -> (Site, [Fake; 2]) {
    let (source, _image) = fake_with_app();
    let mirror = Fake::start();
    let rules: &[u8] = b"[[upstream]]\nprefix = \"docker.io\"\nmirrors = [\"mirror-a.lan/hub\"]\nsource = \"last\"\n";
    let site = Site::of(&source.url()).registry("mirror-a.lan", &mirror.url(), "").with([
        ("10-allowlist.wasm", &allowlist()),
        ("10-allowlist.toml", b"block = [\"docker.io/library/redis\"]"),
        ("20-failover.wasm", &failover()),
        ("20-failover.toml", rules),
    ]);
    (site, [source, mirror])
}

#[track_caller]
fn assert_explains(site: &Site, image: &str, parts: &[&str]) {
    let output = site.run_as_is(&["explain", image]);
    let told = told(&output);
    let mut rest = told.as_str();
    for part in parts {
        let at = rest.find(part).unwrap_or_else(|| panic!("{image}: no {part:?} (in this order) in:\n{told}"));
        rest = &rest[at + part.len()..];
    }
}

#[test]
fn explain_without_a_running_proxy_asks_a_fresh_set() {
    let (site, fakes) = explained();
    site.write_config();
    assert_explains(
        &site,
        "app:1",
        &["allowlist", "allow", "failover", "mirror-a.lan/hub/library/app", "docker.io/library/app"],
    );
    assert_explains(&site, "docker.io/library/redis:7", &["allowlist", "den", "docker.io/library/redis"]);
    assert!(fakes.iter().all(|fake| fake.seen().is_empty()), "explain asked an upstream");
    assert!(site.blobs().is_empty());
}

#[test]
fn explain_asks_the_running_proxy_and_changes_nothing() {
    let (site, fakes) = explained();
    let proxy = site.clone().with_fixed_ports().start();
    assert!(denial(&proxy).is_empty());
    let (asked, metrics) =
        (fakes.each_ref().map(|fake| fake.seen().len()), proxy.events(proxy.beginning(), "plugins in effect").len());
    assert_explains(
        &site,
        "app:1",
        &["allowlist", "allow", "failover", "mirror-a.lan/hub/library/app", "docker.io/library/app"],
    );
    // What the running proxy has in force is told, though the file says otherwise by now.
    proxy.reload(|site| site.copy("10-allowlist.toml", b"block = [\"docker.io/library/app\"]"));
    proxy.refusal("allowlist", |site| site.copy("10-allowlist.toml", b"block = ["));
    assert_explains(&site, "app:1", &["allowlist", "den"]);
    assert_eq!(fakes.each_ref().map(|fake| fake.seen().len()), asked);
    assert_eq!(proxy.events(proxy.beginning(), "plugins in effect").len(), metrics + 1);
}

#[test]
fn explain_of_an_unknown_registry_says_that_it_is_not_configured() {
    let (site, _fakes) = explained();
    site.write_config();
    let way_out = "[registries.\"registry.lan:5000\"]";
    assert_explains(&site, "registry.lan:5000/a/b:1", &["registry.lan:5000/a/b", "skipped", way_out]);
}

#[test]
fn without_a_configuration_it_listens_on_port_5000_of_this_machine() {
    let site = Site::new();
    // Whoever has that port, the program says which one it wanted.
    let taken = TcpListener::bind("127.0.0.1:5000");
    let mut command = Command::new(tidegate());
    let output = run(offline(&mut command).arg("serve").env("HOME", site.path("home")).current_dir(site.path("")));
    drop(taken);
    assert_ne!(output.status.code(), Some(0));
    assert!(told(&output).contains("127.0.0.1:5000"), "{}", told(&output));
}

#[test]
fn every_verb_is_in_the_help() {
    let output = run(Command::new(tidegate()).arg("--help"));
    for verb in ["serve", "check", "explain"] {
        assert!(told(&output).contains(verb), "{}", told(&output));
    }
}
