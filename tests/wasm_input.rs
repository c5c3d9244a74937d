//! Plugin files that are broken, hostile or no plugins at all: each is refused by name and with a reason that can be
//! printed, in bounded time and memory, and what is in effect stays in effect.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tidegate_tests::fake::Fake;
use tidegate_tests::guests::{self, Does, Guest};
use tidegate_tests::process::run;
use tidegate_tests::program::tidegate;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::rounds;
use tidegate_tests::site::Site;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::{denial, fake_with_app};

/// What one bad file may take: ten times what is expected, and what a compilation may take at most.
const SOON: Duration = Duration::from_mins(2);
/// What the proxy may have resident, whatever it is given. Units: bytes.
const RESIDENT_MAX: u64 = 192 << 20;

/// A proxy with a plugin that denies everything, whatever comes beside it.
fn stage() -> (Fake, Proxy) {
    let (fake, _image) = fake_with_app();
    let proxy = Site::of(&fake.url()).with([("10-good.wasm", &guests::denier("as ever"))]).start();
    (fake, proxy)
}

/// Fails unless a file is refused in words that a log can bear, while the others go on.
#[track_caller]
fn assert_refused(proxy: &Proxy, what: &str, put: impl FnOnce(&Site)) -> String {
    assert_refused_as(proxy, "bad", what, put)
}

#[track_caller]
fn assert_refused_as(proxy: &Proxy, name: &str, what: &str, put: impl FnOnce(&Site)) -> String {
    let begun = Instant::now();
    let refusal = proxy.refusal(name, put);
    let reason = refusal.field("reason");
    assert!(!reason.is_empty(), "{what}: no reason");
    assert_printable(what, &reason);
    assert!(refusal.field("file").contains(&format!("20-{name}.wasm")), "{what}: {refusal:?}");
    assert!(begun.elapsed() < SOON, "{what} takes {:?}", begun.elapsed());
    assert!(denial(proxy).contains("as ever"), "{what}");
    let resident = proxy.process().memory_bytes("VmHWM");
    assert!(resident < RESIDENT_MAX, "{what}: {} MiB resident", resident >> 20);
    reason
}

#[track_caller]
fn assert_printable(what: &str, reason: &str) {
    let raw = reason.chars().find(|sign| sign.is_control());
    assert_eq!(raw, None, "{what}: {reason:?}");
    assert!(reason.len() < 4096, "{what}: {} bytes of a reason", reason.len());
}

/// A core module with the type of a world.
fn core(module: &str, packages: &[&str], world: &str) -> Vec<u8> {
    let mut module = wat::parse_str(module).unwrap_or_else(|error| panic!("{error}: {module}"));
    let mut resolve = Resolve::default();
    for package in packages {
        resolve.push_str("package.wit", package).expect("the package is right");
    }
    let package = resolve.push_str("guest.wit", world).expect("the world is right");
    let world = resolve.select_world(&[package], Some("guest")).expect("it was just pushed");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("a module takes a section");
    module
}

fn component(module: &str, packages: &[&str], world: &str) -> Vec<u8> {
    let core = core(module, packages, world);
    let mut encoder = ComponentEncoder::default().validate(true).module(&core).expect("it is a module");
    encoder.encode().unwrap_or_else(|error| panic!("{error:#}: {module}"))
}

/// A plugin that wants an interface of somebody else.
fn wants(package: &str, interface: &str) -> Vec<u8> {
    let (name, version) = package.split_once('@').expect("a version");
    component(
        &format!(
            "(module (import \"{name}/{interface}@{version}\" \"go\" (func)) (memory (export \"memory\") 1)
               (func (export \"run\")))"
        ),
        &[&format!("package {package};\ninterface {interface} {{ go: func(); }}")],
        &format!("package a:b;\nworld guest {{ import {name}/{interface}@{version}; export run: func(); }}"),
    )
}

/// A good plugin's core module, with more in it.
fn good_with(more: &str) -> Vec<u8> {
    Guest::new().admits(Does::Nothing).with(more).core()
}

/// A number in the format of WebAssembly.
fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(number & 0x7f).expect("seven bits");
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// A component whose types are lists of lists, so deep.
fn deep_type(depth: usize) -> Vec<u8> {
    // The first is a list of booleans (0x7f), each other one of the type before it.
    let mut types = leb(depth);
    for at in 0..depth {
        types.push(0x70);
        types.extend(if at == 0 { vec![0x7f] } else { leb(at - 1) });
    }
    [b"\0asm\x0d\0\x01\0\x07".to_vec(), leb(types.len()), types].concat()
}

/// What the compiling process gives for a good plugin: native code, which nobody may bring.
fn native_code() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("good.wasm");
    fs::write(&file, guests::denier("native")).unwrap();
    let output = Command::new(tidegate())
        .arg("compile-plugin")
        .stdin(File::open(&file).unwrap())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success() && output.stdout.len() > 1000);
    output.stdout
}

#[test]
fn p4_every_kind_of_file_that_is_no_plugin_is_refused_in_words() {
    let (_fake, proxy) = stage();
    let elsewhere = "(module (memory (export \"memory\") 1) (func (export \"x:y/weather@1.0.0#rain\")))";
    let weather = "package x:y@1.0.0;\ninterface weather { rain: func(); }";
    let newer = "(module (memory (export \"memory\") 1) (func (export \"tidegate:policy/admission@0.9.0#admit\")))";
    let newer_package = "package tidegate:policy@0.9.0;\ninterface admission { admit: func(); }";
    let mut wrong = Vec::new();
    let promised = "package a:b;\nworld guest { export run: func(); }";
    for (what, bytes, says) in [
        ("an empty core module", b"\0asm\x01\0\0\0".to_vec(), "hook"),
        ("an empty component", b"\0asm\x0d\0\x01\0".to_vec(), "hook"),
        ("a version that is none", b"\0asm\xff\xff\xff\xff".to_vec(), "version"),
        ("a core module without a type", wat::parse_str("(module (func (export \"admit\")))").unwrap(), "hook"),
        ("native code", native_code(), "no WebAssembly"),
        ("text of WebAssembly", b"(module)".to_vec(), "no WebAssembly"),
        (
            "a component of another world",
            component(elsewhere, &[weather], "package a:b;\nworld guest { export x:y/weather@1.0.0; }"),
            "hook",
        ),
        (
            "a component of a newer interface",
            component(newer, &[newer_package], "package a:b;\nworld guest { export tidegate:policy/admission@0.9.0; }"),
            "hook",
        ),
        (
            "an export that is promised and missing",
            core("(module (memory (export \"memory\") 1))", &[], promised),
            "run",
        ),
        ("an import of sockets", wants("wasi:sockets@0.2.0", "tcp"), "wasi:sockets"),
        ("an import of HTTP", wants("wasi:http@0.2.0", "outgoing-handler"), "wasi:http"),
        ("an import of the environment", wants("wasi:cli@0.2.0", "environment"), "wasi:cli"),
        ("an import of a newer host", wants("tidegate:policy@0.9.0", "call"), "tidegate:policy"),
        ("10 001 memories", good_with(&"(memory 0)".repeat(10_001)), "memor"),
        ("10 001 tables", good_with(&"(table 0 funcref)".repeat(10_001)), "table"),
        ("a table of 4 billion", good_with("(table 4294967295 funcref)"), "table"),
        ("a start that traps", good_with("(func $boom unreachable) (start $boom)"), "failed"),
        ("50 001 locals", good_with(&format!("(func (local {}))", "i64 ".repeat(50_001))), "locals"),
        ("types 10 000 deep", deep_type(10_000), ""),
        ("types 1 000 000 deep", deep_type(1_000_000), ""),
    ] {
        let reason = assert_refused(&proxy, what, |site| site.install("20-bad.wasm", &bytes));
        if !reason.contains(says) {
            wrong.push(format!("{what}: {reason}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn p4_a_plugin_that_is_odd_and_right_is_taken() {
    let (_fake, proxy) = stage();
    let nested = format!("(func {}{})", "(block ".repeat(10_000), ")".repeat(10_000));
    for (what, more) in [
        ("an export that nobody asks for", "(func (export \"more\"))".to_owned()),
        ("blocks 10 000 deep", nested),
        ("a thousand functions", "(func)".repeat(1000)),
        ("1000 locals", format!("(func (local {}))", "i64 ".repeat(1000))),
    ] {
        let bytes = good_with(&more);
        let begun = Instant::now();
        let event = proxy.reload(|site| site.install("20-odd.wasm", &bytes));
        assert_eq!(event.field("plugins").replace(' ', ""), "good,odd", "{what}");
        assert!(begun.elapsed() < SOON, "{what} takes {:?}", begun.elapsed());
        assert!(denial(&proxy).contains("as ever"), "{what}");
    }
}

#[test]
fn p4_what_takes_a_compiler_long_is_bounded_in_time_and_memory() {
    let _alone = tidegate_tests::heavy();
    let (_fake, proxy) = stage();
    // 200 functions of 30 000 calls each: every one keeps a value alive to the end.
    let body = format!("{}{}", "(i64.add (call $f (local.get 0)) ".repeat(3000), "(local.get 0)") + &")".repeat(3000);
    let one = format!("(func (param i64) (result i64) {body})");
    let bomb = good_with(&format!("(func $f (param i64) (result i64) (local.get 0)) {}", one.repeat(200)));
    let begun = Instant::now();
    let mark = proxy.mark();
    proxy.site().install("20-bomb.wasm", &bomb);
    // It is taken or refused; which, this machine decides.
    proxy.wait_for_either(mark, "plugin loaded", "plugin not loaded", ("plugin", "bomb"));
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert!(denial(&proxy).contains("as ever"));
    let resident = proxy.process().memory_bytes("VmHWM");
    assert!(resident < RESIDENT_MAX, "{} MiB resident", resident >> 20);
}

#[test]
fn p2_what_a_plugin_says_writes_no_lines_of_its_own() {
    let (_fake, proxy) = stage();
    let hostile = "red \u{1b}[31m\u{1b}[2J\r\n2026-11-21 ERROR all is lost\u{9b}31m\u{7}\u{0}";
    let refuses = Guest::new().checks(Does::Refuses(hostile)).admits(Does::Nothing).component();
    let reason = assert_refused(&proxy, "a refusal", |site| site.install("20-bad.wasm", &refuses));
    assert!(reason.contains("all is lost"), "{reason}");
    // The names of functions stand in the trace of a trap.
    let name =
        "(func $\"\\1b[2J\\0d\\0aERROR all is lost\" unreachable)\n(start $\"\\1b[2J\\0d\\0aERROR all is lost\")";
    assert_refused(&proxy, "a name of a function", |site| site.install("20-bad.wasm", &good_with(name)));
    let log = proxy.log();
    assert!(log.lines().all(|line| !line.starts_with("2026-11-21 ERROR") && !line.starts_with("ERROR")), "{log}");
    assert!(!log.contains(['\u{1b}', '\u{7}', '\r', '\u{9b}']), "a control character stands in the log");
}

#[test]
fn p4_what_is_no_file_is_refused_and_nobody_waits_for_it() {
    let (_fake, proxy) = stage();
    let refused = |name: &str, put: &dyn Fn(&Site, &Path)| {
        let path = proxy.site().plugin_path(&format!("20-{name}.wasm"));
        assert_refused_as(&proxy, name, name, |site| put(site, &path));
        let is_folder = fs::symlink_metadata(&path).unwrap().is_dir();
        if is_folder { fs::remove_dir(path) } else { fs::remove_file(path) }.unwrap();
    };
    // A file of zeros that takes no room on the disk.
    let sparse = |site: &Site, path: &Path, len: u64| {
        let staged = site.path("staged");
        let mut file = File::create(&staged).unwrap();
        file.write_all(b"\0asm\x0d\0\x01\0").unwrap();
        file.set_len(len).unwrap();
        fs::rename(staged, path).unwrap();
    };
    refused("fifo", &|_, path| assert!(run(Command::new("mkfifo").arg(path)).status.success()));
    refused("folder", &|_, path| fs::create_dir(path).unwrap());
    refused("socket", &|_, path| drop(UnixListener::bind(path).unwrap()));
    refused("link-to-nothing", &|site, path| symlink(site.path("nothing"), path).unwrap());
    refused("link-to-itself", &|_, path| symlink(path, path).unwrap());
    refused("device", &|_, path| symlink("/dev/zero", path).unwrap());
    refused("empty", &|_, path| fs::write(path, b"").unwrap());
    refused("bigger-than-read", &|site, path| sparse(site, path, 200 << 20));
    refused("as-big-as-read", &|site, path| sparse(site, path, 64 << 20));
    if rustix::process::geteuid().is_root() {
        println!("not tried: a file that may not be read; root reads it all the same");
    } else {
        refused("forbidden", &|site, path| {
            let staged = site.path("staged");
            fs::write(&staged, guests::denier("secret")).unwrap();
            fs::set_permissions(&staged, fs::Permissions::from_mode(0o0)).unwrap();
            fs::rename(staged, path).unwrap();
        });
    }
}

#[test]
fn p4_a_file_cut_at_every_hundredth_is_refused() {
    let ledger = rounds::cuts();
    assert!(ledger.close(), "{}", ledger.table());
    assert_eq!(ledger.done("files refused"), 99 + 20, "{}", ledger.table());
}

#[test]
fn p4_a_file_with_one_bit_changed_is_loaded_or_refused_and_nothing_else() {
    // By chance, the same each time. The long form (`make faults`) takes every byte.
    let ledger = rounds::flips(Some(80), 2026);
    assert!(ledger.close(), "{}", ledger.table());
    // Where most were taken, nothing would be checked.
    assert!(ledger.done("files refused") > 20, "{}", ledger.table());
}
