//! `tidegate plugin check`, `test` and `bench`: a plugin by itself, without a proxy or its configuration.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Output};
use std::time::SystemTime;

use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_tests::content::sha256;
use tidegate_tests::guests::{Does, Guest, denier};
use tidegate_tests::image::Image;
use tidegate_tests::plugins::{allowlist, cooldown, failover, puppet, quota, tag_guard, teller};
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
    let Output { status, stdout, stderr } = run(offline(&mut command)
        .arg("plugin")
        .args(arguments)
        .current_dir(folder.path())
        .env("XDG_STATE_HOME", folder.path()));
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

const CASES: &str = r#"
[[case]]
name = "redis is denied"
pull = "redis:7"
expect = { admission = "deny", message = "docker.io/library/redis", status = 403, code = "DENIED" }

[[case]]
name = "nginx is not"
pull = "quay.io/org/nginx"
expect = { admission = "allow", routes = ["quay.io/org/nginx"], warnings = [] }
"#;

#[test]
fn test_decides_by_the_real_host_and_says_what_differs() {
    let folder = folder([
        ("allowlist.wasm", &allowlist()),
        ("rules.toml", b"block = [\"docker.io/library/redis\"]"),
        ("good.toml", CASES.as_bytes()),
        ("bad.toml", CASES.replace("quay.io/org/nginx\"\n", "redis\"\n").as_bytes()),
    ]);
    let run = |cases| plugin(&folder, &["test", "allowlist.wasm", cases, "--config-files", "rules.toml"]);
    let (code, out, complaint) = run("good.toml");
    assert_eq!(code, 0, "{out}{complaint}");
    assert!(out.contains("ok    redis is denied") && out.contains("2 cases, 0 failed"), "{out}");
    let (code, out, _) = run("bad.toml");
    assert_eq!(code, 1, "{out}");
    for part in
        ["ok    redis is denied", "FAIL  nginx is not", "expected  allow", "got       deny: docker.io/library/redis"]
    {
        assert!(out.contains(part), "{part}: {out}");
    }
    let (code, _, complaint) = plugin(&folder, &["test", "allowlist.wasm", "good.toml"]);
    assert_eq!(code, 2, "a plugin without its configuration cannot be tested: {complaint}");
    assert!(complaint.contains("--config-files"), "{complaint}");
}

#[test]
fn test_asks_routing_and_fallback() {
    let folder = folder([
        ("failover.wasm", &failover()),
        ("mirrors.toml", b"[[upstream]]\nprefix = \"docker.io\"\nmirrors = [\"mirror.lan/hub\"]\nsource = \"last\"\non = { status-429 = \"stale\" }"),
        ("cases.toml", br#"
[[case]]
name = "the mirror, then the source"
pull = "redis:7"
expect = { routes = ["mirror.lan/hub/library/redis", "docker.io/library/redis"] }

[[case]]
name = "a limit is bridged by what is cached"
pull = "redis:7"
failed = [{ at = "mirror.lan/hub/library/redis", failure = "status-429", after = "40ms", retry_after_secs = 9 }]
expect = { step = "serve-stale" }
"#),
    ]);
    let (code, out, complaint) =
        plugin(&folder, &["test", "failover.wasm", "cases.toml", "--config-files", "mirrors.toml"]);
    assert_eq!(code, 0, "{out}{complaint}");
}

#[test]
fn test_gives_facts_and_state() {
    let cases = br#"
[[case]]
name = "who asks, and how often"
pull = "redis:7"
method = "HEAD"
addressing = "ns"
client = "10.0.0.7"
user_agent = "me/1"
accept = ["a/b"]
headers = { X-Tell = ["one", "two"] }
cached = { digest = "sha256:0123456789012345678901234567890123456789012345678901234567890123", age = "3h", stale = true }
state = { count = "41" }
[case.expect]
message = "client=10.0.0.7 identity=false agent=me/1 accept=a/b told=one,two secret=0 method=HEAD addressing=ns cache=stale digest=sha256:0123456789012345678901234567890123456789012345678901234567890123 count=42"
state = { count = "42" }
warnings = ["told"]

[[case]]
name = "the count goes on"
keep_state = true
pull = "redis:7"
headers = { X-Tell = "again" }
expect = { state = { count = "43" } }

[[case]]
name = "and begins again"
pull = "redis:7"
headers = { X-Tell = "again" }
expect = { state = { count = "1" } }
"#;
    let folder = folder([("teller.wasm", &teller()), ("cases.toml", cases)]);
    let (code, out, complaint) = plugin(&folder, &["test", "teller.wasm", "cases.toml"]);
    assert_eq!(code, 0, "{out}{complaint}");
}

#[test]
fn test_names_the_line_of_what_is_no_case() {
    let folder = folder([("teller.wasm", &teller())]);
    for (cases, line, reason) in [
        ("", 1, "case"),
        ("\n[[case]]\nname = \"a\"\npul = \"redis\"\nexpect = { admission = \"deny\" }", 4, "pul"),
        ("[[case]]\nname = \"a\"\npull = \"re dis\"\nexpect = { admission = \"deny\" }", 3, "re dis"),
        ("\n\n[[case]]\nname = \"a\"\nexpect = { admission = \"deny\" }", 3, "what is asked for"),
        ("[[case]]\nname = \"a\"\npull = \"redis\"\nexpect = {}", 1, "expects nothing"),
        ("[[case]]\nname = \"a\"\npull = \"redis\"\nexpect = { admission = \"no\" }", 1, "allow, cached-only, deny"),
        (
            "[[case]]\nname = \"a\"\npull = \"redis\"\nfailed = [\n{ at = \"a.lan/b\", failure = \"bad luck\" }]\nexpect = { step = \"next\" }",
            5,
            "status-429",
        ),
    ] {
        fs::write(folder.path().join("cases.toml"), cases).unwrap();
        let (code, _, complaint) = plugin(&folder, &["test", "teller.wasm", "cases.toml"]);
        assert_eq!(code, 2, "{cases}: {complaint}");
        assert!(complaint.contains(&format!("cases.toml:{line}: ")) && complaint.contains(reason), "{complaint}");
    }
}

#[test]
fn bench_says_what_each_hook_costs() {
    let folder = folder([("teller.wasm", &teller())]);
    let (code, out, complaint) = plugin(&folder, &["bench", "teller.wasm"]);
    assert_eq!(code, 0, "{complaint}");
    for hook in ["admission", "fallback"] {
        let row = out.lines().find(|line| line.starts_with(hook)).unwrap_or_else(|| panic!("no {hook}: {out}"));
        let rate: f64 = row.split_whitespace().next_back().unwrap().parse().unwrap();
        assert!(row.contains("warm") && rate > 0.0, "{out}");
    }
}

#[test]
fn test_gives_manifests_time_and_limits() {
    let folder = folder([
        ("cooldown.wasm", &cooldown()),
        ("cooldown.toml", b"days = 7\nask = \"us\""),
        (
            "held.toml",
            br#"
[[case]]
name = "a new image is held"
pull = "app:1"
now = 2026-11-01T10:00:00Z
annotations = { a = "1" }
expect = { finding = "hold", status = 403 }

[[case]]
name = "a day later too"
keep_state = true
pull = "app:1"
now = 2026-11-02T10:00:00Z
annotations = { a = "1" }
expect = { finding = "hold" }

[[case]]
name = "and is let go after a week"
keep_state = true
pull = "app:1"
now = 2026-11-08T10:00:01Z
annotations = { a = "1" }
expect = { finding = "release" }
"#,
        ),
        ("tag-guard.wasm", &tag_guard()),
        ("tag-guard.toml", b"moved = \"deny\""),
        (
            "moved.toml",
            br#"
[[case]]
name = "a tag is taken down"
pull = "app:1"
labels = { version = "1" }
expect = { finding = "release" }

[[case]]
name = "and has moved"
keep_state = true
pull = "app:1"
labels = { version = "2" }
expect = { finding = "deny", message = "app:1" }
"#,
        ),
        ("quota.wasm", &quota()),
        ("quota.toml", b"[[upstream]]\nregistry = \"docker.io\"\nlow = 10\nmirrors = [\"mirror.lan\"]"),
        (
            "low.toml",
            br#"
[[case]]
name = "few pulls are left"
pull = "app:1"
attributes = { "ratelimit.docker.io.remaining" = "3", "ratelimit.docker.io.limit" = "100" }
expect = { routes = ["mirror.lan/library/app", "docker.io/library/app"] }

[[case]]
name = "many are"
pull = "app:1"
attributes = { "ratelimit.docker.io.remaining" = "90", "ratelimit.docker.io.limit" = "100" }
expect = { routes = ["docker.io/library/app"], rule = "pass" }
"#,
        ),
    ]);
    for (name, cases) in [("cooldown", "held.toml"), ("tag-guard", "moved.toml"), ("quota", "low.toml")] {
        let (wasm, config) = (format!("{name}.wasm"), format!("{name}.toml"));
        let (code, out, complaint) = plugin(&folder, &["test", &wasm, cases, "--config-files", &config]);
        assert_eq!(code, 0, "{out}{complaint}");
    }
}

#[test]
fn test_gives_a_manifest_its_configuration_and_the_indexes_that_list_it() {
    let image = Image::small("app");
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["annotations"] = json!({ "org.example.team": "blue" });
    let manifest = manifest.to_string().into_bytes();
    let (digest, index, other) = (sha256(&manifest), sha256(b"index"), sha256(b"other"));
    let (size, config_size) = (manifest.len(), image.blobs[0].len());
    let layers: Vec<String> = (0..3).map(|layer| image.layer_digest(layer)).collect();
    let cases = format!(
        r#"
[[case]]
name = "all of it is told"
pull = "app@{digest}"
manifest = "seen/manifest.json"
config = "seen/config.json"
parents = ["{index}", "{other}"]
[case.expect]
finding = "deny"
message = """target={digest} type=application/vnd.oci.image.manifest.v1+json size={size} raw={size} layers={layers} \
annotation=Some("blue") subject=None label=Ok(Some("app")) none=Ok(None) config=Ok({config_size}) \
parents={index}+{other}"""

[[case]]
name = "labels do for a configuration"
pull = "app:1"
labels = {{ name = "made up" }}
expect = {{ message = 'label=Ok(Some("made up"))' }}
"#,
        layers = layers.join("+"),
    );
    let folder = folder([
        ("puppet.wasm", &puppet()),
        ("puppet.toml", b"inspection = \"tell\""),
        ("cases.toml", cases.as_bytes()),
        ("wrong.toml", cases.replacen(&digest, &other, 1).as_bytes()),
    ]);
    fs::create_dir(folder.path().join("seen")).unwrap();
    fs::write(folder.path().join("seen/manifest.json"), &manifest).unwrap();
    fs::write(folder.path().join("seen/config.json"), &image.blobs[0]).unwrap();
    let run = |cases| plugin(&folder, &["test", "puppet.wasm", cases, "--config-files", "puppet.toml"]);
    let (code, out, complaint) = run("cases.toml");
    assert_eq!(code, 0, "{out}{complaint}");
    let (code, _, complaint) = run("wrong.toml");
    assert_eq!(code, 2, "{complaint}");
    assert!(complaint.contains("wrong.toml:2: ") && complaint.contains(&digest), "{complaint}");
    fs::remove_file(folder.path().join("seen/manifest.json")).unwrap();
    let (code, _, complaint) = run("cases.toml");
    assert_eq!(code, 2, "{complaint}");
    assert!(complaint.contains("cases.toml:5: ") && complaint.contains("seen/manifest.json"), "{complaint}");
}

#[test]
fn test_gives_what_a_registry_holds() {
    let other = r#"{"schemaVersion":2,"layers":[]}"#;
    let subject = sha256(b"subject");
    let artifact = |kind: &str| json!({ "schemaVersion": 2, "artifactType": kind, "layers": [] }).to_string();
    let (sbom, scan) = (artifact("application/vnd.example.sbom"), artifact("application/vnd.example.scan"));
    let cases = format!(
        r#"
[[case]]
name = "what there is, and what there is not"
pull = "app@{subject}"
[case.registry]
manifests = {{ other = '{other}' }}
blobs = ["blob"]
referrers = {{ "{subject}" = ['{sbom}', "scan.json"] }}
[case.expect]
admission = "deny"
message = "other=Ok({size}) none=Err(Error::NotFound)"

[[case]]
name = "what refers to it, of one kind"
pull = "app@{subject}"
registry = {{ blobs = ["blob"], referrers = {{ "{subject}" = ['{sbom}', "scan.json"] }} }}
expect = {{ message = " referrers={found} blob=Ok(12) big=Err(Error::NotFound)" }}

[[case]]
name = "nothing is left of the case before"
pull = "app@{subject}"
expect = {{ message = " referrers= blob=Err(Error::NotFound)" }}
"#,
        size = other.len(),
        found = sha256(sbom.as_bytes()),
    );
    let lines = format!("admission = \"look\"\nblob = \"{}\"\nbig = \"{}\"", sha256(b"twelve bytes"), sha256(b"big"));
    let folder = folder([
        ("puppet.wasm", &puppet()),
        ("puppet.toml", lines.as_bytes()),
        ("cases.toml", cases.as_bytes()),
        ("blob", b"twelve bytes"),
        ("scan.json", scan.as_bytes()),
    ]);
    let (code, out, complaint) =
        plugin(&folder, &["test", "puppet.wasm", "cases.toml", "--config-files", "puppet.toml"]);
    assert_eq!(code, 0, "{out}{complaint}");
}

#[test]
fn test_gives_who_asks() {
    let cases = br#"
[[case]]
name = "somebody"
pull = "app:1"
identity = { subject = "ci", issuer = "https://id.lan", groups = ["build", "all"] }
expect = { message = "ci by https://id.lan of build+all" }

[[case]]
name = "a name alone"
pull = "app:1"
identity = { subject = "ci" }
expect = { message = "ci by  of" }

[[case]]
name = "nobody"
pull = "app:1"
expect = { message = "anonymous" }
"#;
    let folder = folder([("puppet.wasm", &puppet()), ("puppet.toml", b"admission = \"who\""), ("cases.toml", cases)]);
    let (code, out, complaint) =
        plugin(&folder, &["test", "puppet.wasm", "cases.toml", "--config-files", "puppet.toml"]);
    assert_eq!(code, 0, "{out}{complaint}");
}

#[test]
fn compiled_code_is_kept_but_for_check_which_says_what_compiling_costs() {
    let folder = folder([
        ("denier.wasm", &denier("no")),
        ("cases.toml", b"[[case]]\nname = \"a\"\npull = \"alpine:1\"\nexpect = { admission = \"deny\" }\n"),
    ]);
    let kept = || -> Vec<(u64, SystemTime)> {
        let entries = fs::read_dir(folder.path().join("tidegate/compiled")).into_iter().flatten();
        let about = entries.map(|entry| entry.unwrap().metadata().unwrap());
        about.map(|about| (about.ino(), about.modified().unwrap())).collect()
    };
    assert_eq!(plugin(&folder, &["check", "denier.wasm"]).0, 0);
    assert_eq!(kept(), []);
    assert_eq!(plugin(&folder, &["test", "denier.wasm", "cases.toml"]).0, 0);
    let first = kept();
    assert_eq!(first.len(), 1);
    for verb in [&["test", "denier.wasm", "cases.toml"][..], &["bench", "denier.wasm"]] {
        assert_eq!(plugin(&folder, verb).0, 0);
        let again = kept();
        assert_eq!(again[0].0, first[0].0, "the file is the one that was written first");
        assert!(again[0].1 > first[0].1, "and was read");
    }
}
