//! Plugins that were built for WASI: their sandbox is empty, and what they print becomes lines of the log.

use std::fmt::Write as _;
use std::time::Duration;

use tidegate_tests::guests::{Does, Guest};
use tidegate_tests::site::Site;

use crate::bad_guests::beyond_50_ms;
use crate::{APP, assert_pulls, fake_with_app};

/// What the guests of this file import: functions of WASI's first preview, and how many parameters of 32 bits each has.
const PREVIEW1: [(&str, &str); 9] = [
    ("fd_write", "i32 i32 i32 i32"),
    ("fd_read", "i32 i32 i32 i32"),
    ("fd_prestat_get", "i32 i32"),
    ("path_open", "i32 i32 i32 i32 i32 i64 i64 i32 i32"),
    ("environ_sizes_get", "i32 i32"),
    ("args_sizes_get", "i32 i32"),
    ("random_get", "i32 i32"),
    ("clock_time_get", "i32 i64 i32"),
    ("poll_oneoff", "i32 i32 i32 i32"),
];
/// The result `allow`.
const ALLOW: &str = "(i32.store8 (i32.const 0) (i32.const 0)) (i32.const 0)";

/// A core module that speaks the first preview of WASI, as the one of Go does, and runs this in its hook `admission`.
fn preview1(instructions: &str) -> Vec<u8> {
    let mut imports = String::new();
    for (name, parameters) in PREVIEW1 {
        let _ = writeln!(
            imports,
            "(import \"wasi_snapshot_preview1\" \"{name}\" (func ${name} (param {parameters}) (result i32)))"
        );
    }
    // The adapter keeps its own memory, which must outlive a call.
    let realloc = "(func (export \"cabi_realloc_adapter\") (param i32 i32 i32 i32) (result i32)
        (i32.mul (memory.grow (i32.const 2)) (i32.const 65536)))
      (func $print (param $fd i32) (param $at i32) (param $len i32)
        (i32.store (i32.const 600) (local.get $at))
        (i32.store (i32.const 604) (local.get $len))
        (if (call $fd_write (local.get $fd) (i32.const 600) (i32.const 1) (i32.const 608)) (then (unreachable))))
      (func $must (param $holds i32) (if (i32.eqz (local.get $holds)) (then (unreachable))))
      (data (i32.const 900) \"one line\\ntwo lines\\na third one, not ended\")
      (data (i32.const 960) \"and \\1b[31mred\")";
    Guest::new().with(&imports).with(realloc).admits(Does::Runs(instructions)).core()
}

#[test]
fn what_a_guest_prints_becomes_lines_of_the_log_under_its_name() {
    let (fake, image) = fake_with_app();
    let prints = format!(
        "(call $print (i32.const 1) (i32.const 900) (i32.const 41)) (call $print (i32.const 2) (i32.const 960) (i32.const 12)) {ALLOW}"
    );
    let proxy = Site::of(&fake.url()).with([("10-talks.wasm", &preview1(&prints))]).start();
    let mark = proxy.mark();
    assert_pulls(&proxy, &image);
    for line in ["one line", "two lines", "a third one, not ended"] {
        let event = proxy.wait(mark, line, &[("plugin", "talks"), ("level", "INFO")]);
        assert!(!event.field("request").is_empty(), "{event:?}");
    }
    let log = proxy.log();
    assert!(log.contains("and ") && log.contains("red") && !log.contains('\u{1b}'), "{log}");
}

#[test]
fn what_a_guest_printed_before_it_failed_is_told_too() {
    let (fake, _image) = fake_with_app();
    let dies = "(call $print (i32.const 2) (i32.const 900) (i32.const 9)) (unreachable)";
    let proxy = Site::of(&fake.url()).with([("10-dies.wasm", &preview1(dies))]).start();
    let mark = proxy.mark();
    assert_eq!(proxy.get(APP).fetch().status, 403);
    proxy.wait(mark, "one line", &[("plugin", "dies"), ("level", "WARN")]);
}

#[test]
fn p3_what_a_guest_prints_is_bounded_as_what_it_logs() {
    let (fake, image) = fake_with_app();
    // 10 000 times 41 bytes.
    let floods = format!(
        "(global.set $left (i32.const 10000))
         (loop $again (call $print (i32.const 1) (i32.const 900) (i32.const 41))
           (global.set $left (i32.sub (global.get $left) (i32.const 1))) (br_if $again (global.get $left))) {ALLOW}"
    );
    let module = preview1(&floods.replace("$left", "$heap"));
    let settings: &[u8] = b"deadline_ms = 5000\n";
    let proxy =
        Site::of(&fake.url()).with([("10-floods.wasm", &module[..]), ("10-floods.settings.toml", settings)]).start();
    let mark = proxy.mark();
    assert_eq!(proxy.get(APP).fetch().status, 200, "{}", image.digest());
    proxy.wait(mark, "a plugin logs more than a call may", &[("plugin", "floods")]);
    let lines = proxy.log().matches("two lines").count();
    assert!((1..=64).contains(&lines), "{lines} lines");
}

#[test]
fn the_sandbox_of_wasi_is_empty_and_its_clocks_and_dice_work() {
    let (fake, image) = fake_with_app();
    let zero = |at: u32| format!("(call $must (i32.eqz (i32.load (i32.const {at}))))");
    let looks = [
        // No environment and no arguments: none of them, of 0 bytes.
        "(drop (call $environ_sizes_get (i32.const 640) (i32.const 644)))".to_owned(),
        "(drop (call $args_sizes_get (i32.const 648) (i32.const 652)))".to_owned(),
        [640, 644, 648, 652].map(zero).concat(),
        // No folder that is open, and none that can be opened.
        "(call $must (call $fd_prestat_get (i32.const 3) (i32.const 656)))".to_owned(),
        "(call $must (call $path_open (i32.const 3) (i32.const 0) (i32.const 900) (i32.const 3) (i32.const 0)
           (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 664)))"
            .to_owned(),
        // Standard input has ended.
        "(i32.store (i32.const 600) (i32.const 700)) (i32.store (i32.const 604) (i32.const 16))
         (drop (call $fd_read (i32.const 0) (i32.const 600) (i32.const 1) (i32.const 668)))"
            .to_owned(),
        zero(668),
        // A clock past 2020, and dice that do not show all zeros.
        "(call $must (i32.eqz (call $clock_time_get (i32.const 0) (i64.const 1) (i32.const 680))))
         (call $must (i64.gt_u (i64.load (i32.const 680)) (i64.const 1577836800000000000)))
         (call $must (i32.eqz (call $random_get (i32.const 720) (i32.const 16))))
         (call $must (i32.eqz (i64.eqz (i64.or (i64.load (i32.const 720)) (i64.load (i32.const 728))))))"
            .to_owned(),
        ALLOW.to_owned(),
    ];
    let site = Site::of(&fake.url()).with([("10-looks.wasm", &preview1(&looks.concat()))]);
    assert_pulls(&site.start(), &image);
}

#[test]
fn p1_a_guest_that_sleeps_in_the_host_is_ended_at_its_deadline() {
    let (fake, _image) = fake_with_app();
    // A subscription of 48 bytes: a clock (tag 0 at 8), the monotonic one (1 at 16), an hour from now (at 24).
    let sleeps = format!(
        "(i64.store (i32.const 640) (i64.const 7)) (i64.store (i32.const 648) (i64.const 0))
         (i64.store (i32.const 656) (i64.const 1)) (i64.store (i32.const 664) (i64.const 3600000000000))
         (i64.store (i32.const 672) (i64.const 0)) (i64.store (i32.const 680) (i64.const 0))
         (drop (call $poll_oneoff (i32.const 640) (i32.const 700) (i32.const 1) (i32.const 740))) {ALLOW}"
    );
    let proxy = Site::of(&fake.url()).with([("10-sleeps.wasm", &preview1(&sleeps))]).start();
    let answer = proxy.get(APP).fetch();
    assert!(answer.message().contains("ran past its deadline of 50 ms"), "{}", answer.message());
    let beyond = beyond_50_ms(&proxy);
    assert!(beyond < Duration::from_millis(50), "{beyond:?} beyond the deadline");
}
