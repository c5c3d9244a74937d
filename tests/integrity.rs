//! What is run is what was meant: `plugins.lock`, and compiled code that is kept.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tidegate_tests::content::sha256;
use tidegate_tests::guests::{self, Does};
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::{assert_pulls, denial, fake_with_app};

/// A line as `sha256sum` prints it.
fn line(name: &str, bytes: &[u8]) -> String {
    format!("{}  {name}\n", sha256(bytes).strip_prefix("sha256:").unwrap())
}

#[test]
fn a_lock_file_lets_only_what_it_lists_be_loaded() {
    let (fake, _image) = fake_with_app();
    let (first, second, third) = (guests::stamped(1), guests::stamped(2), guests::stamped(3));
    let site = Site::of(&fake.url()).with([("10-gate.wasm", &first)]);
    site.install("plugins.lock", line("10-gate.wasm", &first).as_bytes());
    let proxy = site.start();
    assert!(denial(&proxy).contains("wasm 1"));
    // Another file under the name of a listed one, and one that is not listed at all.
    let refusal = proxy.refusal("gate", |site| site.install("10-gate.wasm", &second));
    let reason = refusal.field("reason");
    for part in ["10-gate.wasm", &line("", &first)[..64], &line("", &second)[..64], "sha256sum 10-gate.wasm"] {
        assert!(reason.contains(part), "no {part} in {reason}");
    }
    assert_eq!(refusal.field("in_effect"), "the version before");
    assert!(denial(&proxy).contains("wasm 1"));
    let refusal = proxy.refusal("more", |site| site.install("05-more.wasm", &guests::denier("not listed")));
    assert!(refusal.field("reason").contains("sha256sum 05-more.wasm >> plugins.lock"), "{refusal:?}");
    assert!(denial(&proxy).contains("wasm 1"));
    proxy.site().remove("05-more.wasm");
    // First the list, then the file, and the other way round: what was in effect stays until both agree.
    proxy.reload(|site| site.install("plugins.lock", line("10-gate.wasm", &second).as_bytes()));
    assert!(denial(&proxy).contains("wasm 2"));
    proxy.refusal("gate", |site| site.install("plugins.lock", line("10-gate.wasm", &third).as_bytes()));
    assert!(denial(&proxy).contains("wasm 2"));
    proxy.reload(|site| site.install("10-gate.wasm", &third));
    assert!(denial(&proxy).contains("wasm 3"));
}

#[test]
fn a_listed_configuration_must_match_and_be_there() {
    let (fake, _image) = fake_with_app();
    let wasm = guests::stamped(1);
    let site =
        Site::of(&fake.url()).with([("10-gate.wasm", &wasm[..]), ("10-gate.txt", b"right"), ("10-gate.yaml", b"free")]);
    let lines = line("10-gate.wasm", &wasm) + &line("10-gate.txt", b"right");
    site.install("plugins.lock", lines.as_bytes());
    let proxy = site.start();
    assert!(denial(&proxy).contains("config right"));
    let refusal = proxy.refusal("gate", |site| site.install("10-gate.txt", b"wrong"));
    assert!(refusal.field("reason").contains("10-gate.txt does not match"), "{refusal:?}");
    let refusal = proxy.refusal("gate", |site| site.remove("10-gate.txt"));
    assert!(refusal.field("reason").contains("10-gate.txt is listed in plugins.lock and is not there"), "{refusal:?}");
    assert!(denial(&proxy).contains("config right"));
    // One that is not listed may be what it likes.
    proxy.reload(|site| {
        site.install("10-gate.txt", b"right");
        site.install("10-gate.yaml", b"freer");
    });
}

#[test]
fn a_lock_file_that_cannot_be_read_loads_nothing_and_refuses_a_start() {
    let (fake, image) = fake_with_app();
    let wasm = guests::stamped(1);
    let site = Site::of(&fake.url()).plugins("on_load_error = \"skip\"").with([("10-gate.wasm", &wasm)]);
    for bad in [&b"10-gate.wasm\n"[..], b"\xff\xfe", b"abc  10-gate.wasm\n"] {
        site.install("plugins.lock", bad);
        let output = site.run(&["serve"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains("plugins.lock"), "{told}");
    }
    site.install("plugins.lock", line("10-gate.wasm", &wasm).as_bytes());
    let proxy = site.start();
    let mark = proxy.mark();
    proxy.site().install("plugins.lock", b"no list\n");
    proxy.wait_for(mark, "the lock file cannot be used: nothing new is loaded, the plugins in effect stay", |event| {
        event.field("reason").contains("plugins.lock:1: no line as `sha256sum FILE` prints it")
    });
    proxy.site().install("10-gate.wasm", &guests::stamped(2));
    proxy.site().install("20-more.wasm", &guests::admission(Does::Nothing));
    assert!(denial(&proxy).contains("wasm 1"));
    // With the list away for good anything is loaded, and that is told.
    let event = proxy.reload(|site| site.remove("plugins.lock"));
    assert_eq!(event.field("plugins"), "gate,more");
    proxy.wait(mark, "the lock file is gone: any plugin is loaded from now on", &[]);
    assert!(denial(&proxy).contains("wasm 2"));
    proxy.reload(|site| site.remove("10-gate.wasm"));
    assert_pulls(&proxy, &image);
}

/// The files of compiled code.
fn compiled(site: &Site) -> Vec<PathBuf> {
    let entries = fs::read_dir(site.path("state/compiled")).expect("code is kept");
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Whether the program compiled since it started: a child process of it did.
fn compiles(proxy: &Proxy) -> bool {
    proxy.process().children_page_faults() > 0
}

#[test]
fn compiled_code_is_kept_and_believed_only_as_it_was_written() {
    let (fake, _image) = fake_with_app();
    let site = Site::of(&fake.url()).with([("10-gate.wasm", &guests::stamped(1))]);
    let proxy = site.start();
    assert!(compiles(&proxy));
    let (site, _) = proxy.terminate();
    let [file] = &compiled(&site)[..] else { panic!("{:?}", compiled(&site)) };
    assert_eq!(fs::metadata(site.path("state/compiled")).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(!compiles(&site.start()), "a start compiles what it knows");
    let whole = fs::read(file).unwrap();
    for at in [0, 40, whole.len() / 2, whole.len() - 1] {
        let mut rotten = whole.clone();
        rotten[at] ^= 0x20;
        fs::write(file, rotten).unwrap();
        let proxy = site.start();
        proxy.wait(proxy.beginning(), "compiled code has changed on the disk: it is compiled anew", &[]);
        assert!(denial(&proxy).contains("wasm 1"));
        assert!(compiles(&proxy));
        let _ = proxy.terminate();
        assert_eq!(fs::read(file).unwrap(), whole, "it is kept anew");
    }
    // A folder that others may write to is not used.
    fs::set_permissions(site.path("state/compiled"), fs::Permissions::from_mode(0o777)).unwrap();
    let proxy = site.start();
    proxy.wait(proxy.beginning(), "compiled code is not kept: every start compiles anew", &[]);
    assert!(compiles(&proxy));
    assert!(denial(&proxy).contains("wasm 1"));
}
