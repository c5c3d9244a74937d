//! Plugins that do in a call what no plugin may (rows P1, P2, P3 and P7): the call fails, in time, and nothing else does.

use std::fmt::Write as _;
use std::io::BufReader;
use std::time::{Duration, Instant};

use rustix::time::ClockId;

use tidegate_tests::guests::{self, Does, Guest};
use tidegate_tests::http::Response;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::{APP, assert_pulls, assert_whole, denial, fake_with_app};

/// The result `allow`.
const ALLOW: &str = "(i32.store8 (i32.const 0) (i32.const 0)) (i32.const 0)";

/// A plugin that never comes back from a function that calls itself.
fn overflows() -> Vec<u8> {
    let deeper = "(func $deeper (param i32) (result i32) (i32.add (call $deeper (local.get 0)) (i32.const 1)))";
    Guest::new().with(deeper).admits(Does::Runs("(call $deeper (i32.const 0))")).component()
}

/// A denial of which some bytes are then written over.
fn denial_with(change: &str) -> Vec<u8> {
    let text = "(data (i32.const 3000) \"some \\ff\\fe\\c3 words\")";
    let deny = format!("(drop (call $deny (i32.const 3000) (i32.const 4))) {change} (i32.const 0)");
    Guest::new().with(text).admits(Does::Runs(&deny)).component()
}

/// A list of so many candidates at an address, 32 MiB of memory below it.
fn routes_to(count: usize, at: usize, more: &str) -> Vec<u8> {
    let list = format!(
        "(i32.store8 (i32.const 0) (i32.const 1)) (i32.store (i32.const 4) (i32.const {at}))
         (i32.store (i32.const 8) (i32.const {count})) {more} (i32.const 0)"
    );
    Guest::new().pages(512).routes(Does::Runs(&list)).component()
}

/// How much longer a denial takes than 50 ms of work take on this machine just then: the median of many.
pub fn beyond_50_ms(proxy: &Proxy) -> Duration {
    let mut beyond: Vec<_> = (0..15)
        .map(|_| {
            let begun = Instant::now();
            assert_eq!(proxy.get(APP).fetch().status, 403);
            let answered = begun.elapsed();
            answered.saturating_sub(work())
        })
        .collect();
    beyond.sort();
    beyond[beyond.len() / 2]
}

/// Computes for 50 ms of this thread's own time. Gives the time that it took on the wall.
fn work() -> Duration {
    let own = || {
        let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
        Duration::try_from(time).expect("it counts from 0")
    };
    let (begun, end) = (Instant::now(), own() + Duration::from_millis(50));
    while own() < end {
        std::hint::spin_loop();
    }
    begun.elapsed()
}

#[test]
fn p1_a_call_that_never_ends_takes_its_deadline_and_50_ms_at_the_most() {
    let (fake, _image) = fake_with_app();
    let proxy = Site::of(&fake.url()).with([("10-loops.wasm", &guests::admission(Does::Loops))]).start();
    let beyond = beyond_50_ms(&proxy);
    assert!(beyond < Duration::from_millis(50), "{beyond:?} beyond the deadline");
}

#[test]
fn p1_a_stack_that_overflows_fails_the_call_and_a_start_that_loops_is_never_loaded() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).with([("10-deep.wasm", &overflows())]).start();
    for _ in 0..3 {
        let mark = proxy.mark();
        assert_eq!(proxy.get(APP).fetch().status, 403);
        let event = proxy.wait(mark, "plugin call failed", &[("plugin", "deep")]);
        assert!(event.field("reason").contains("stack"), "{event:?}");
    }
    let begun = Instant::now();
    let loops = Guest::new().admits(Does::Nothing).never_starts().component();
    let refusal = proxy.refusal("loops", |site| site.install("20-loops.wasm", &loops));
    assert!(refusal.field("reason").contains("deadline"), "{refusal:?}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    proxy.reload(|site| site.install("10-deep.wasm", &guests::admission(Does::Nothing)));
    assert_pulls(&proxy, &image);
}

#[test]
fn p2_an_answer_that_is_garbage_is_a_failed_call() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).start();
    let memory: &[u8] = b"memory = \"64MiB\"\n";
    let big = "(i32.store (i32.const 16) (i32.const 65536)) (i32.store (i32.const 20) (i32.const 30000000))";
    let deny_big = format!("(drop (call $deny (i32.const 0) (i32.const 0))) {big} (i32.const 0)");
    // The name of a registry, in a candidate whose other fields are none.
    let named = |name: &str| {
        let mut stores = String::new();
        for (at, byte) in name.bytes().enumerate() {
            let _ = write!(stores, "(i32.store8 (i32.const {}) (i32.const {byte}))", 200_000 + at);
        }
        stores
            + &format!(
                "(i32.store (i32.const 131072) (i32.const 200000)) (i32.store (i32.const 131076) (i32.const {}))",
                name.len()
            )
    };
    for (what, wasm) in [
        ("a case that there is not", guests::admission(Does::Garbles)),
        ("an option that is neither", denial_with("(i32.store8 (i32.const 24) (i32.const 7))")),
        ("a text that is no UTF-8", denial_with("(i32.store (i32.const 20) (i32.const 12))")),
        ("a text outside the memory", guests::admission(Does::Overreaches)),
        ("a text of 30 MB", Guest::new().pages(512).admits(Does::Runs(&deny_big)).component()),
        ("an address that is not aligned", Guest::new().admits(Does::Runs("(i32.const 1)")).component()),
        ("an address outside the memory", Guest::new().admits(Does::Runs("(i32.const -4)")).component()),
        ("500 000 candidates of nothing", routes_to(500_000, 131_072, "")),
        ("10 000 000 candidates outside the memory", routes_to(10_000_000, 131_072, "")),
        ("a candidate without a name", routes_to(1, 131_072, "")),
        ("a candidate with line ends", routes_to(1, 131_072, &named("a.lan\r\nx: y"))),
        ("a candidate that is an address", routes_to(1, 131_072, &named("http://a.lan/"))),
    ] {
        proxy.reload(|site| {
            site.install("20-bad.settings.toml", memory);
            site.install("20-bad.wasm", &wasm);
        });
        let mark = proxy.mark();
        let answer = proxy.get(APP).fetch();
        assert_eq!(answer.status, 403, "{what}: {}", answer.text());
        assert!(answer.message().contains("the policy could not decide"), "{what}: {}", answer.message());
        let event = proxy.wait(mark, "plugin call failed", &[("plugin", "bad")]);
        let reason = event.field("reason");
        assert!(!reason.is_empty() && !reason.contains(['\r', '\n']), "{what}: {reason:?}");
    }
    proxy.reload(|site| {
        site.remove("20-bad.wasm");
        site.remove("20-bad.settings.toml");
    });
    assert_pulls(&proxy, &image);
    let peak = proxy.process().memory_bytes("VmHWM") >> 20;
    assert!(peak < 192, "{peak} MiB resident: a guest got what it asked for");
}

#[test]
fn p2_a_denial_with_an_odd_status_is_answered_as_403_and_words_write_no_headers() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).start();
    for status in [0, 99, 200, 302, 399, 600, 999, 65_535] {
        let wasm = denial_with(&format!("(i32.store16 (i32.const 4) (i32.const {status}))"));
        proxy.reload(|site| site.install("20-odd.wasm", &wasm));
        assert_eq!(denial(&proxy), "some", "{status}");
    }
    let evil = "a\r\nX-Evil: yes\r\n\r\nb";
    proxy.reload(|site| site.install("20-odd.wasm", &guests::denier(evil)));
    let answer = proxy.get(APP).fetch();
    assert_eq!((answer.status, answer.fields.get("X-Evil")), (403, None), "{:?}", answer.fields);
    proxy.reload(|site| site.install("20-odd.wasm", &guests::admission(Does::Warns(evil))));
    let answer = proxy.get(APP).fetch();
    assert_whole(&answer, &image.digest());
    assert_eq!(answer.fields.get("X-Evil"), None, "{:?}", answer.fields);
    assert!(answer.fields.get("Warning").is_some_and(|warning| warning.starts_with("299 ")), "{:?}", answer.fields);
}

#[test]
fn p3_ten_thousand_log_calls_write_what_one_call_may_and_the_rest_is_counted() {
    let (fake, image) = fake_with_app();
    let floods = |count: u32| {
        let body = format!(
            "(global.set $left (i32.const {count}))
             (loop $again (call $log (i32.const 2) (i32.const 3000) (i32.const 10))
               (global.set $left (i32.sub (global.get $left) (i32.const 1))) (br_if $again (global.get $left))) {ALLOW}"
        );
        Guest::new()
            .with("(import \"tidegate:policy/log@0.1.0\" \"write\" (func $log (param i32 i32 i32)))")
            .with("(global $left (mut i32) (i32.const 0)) (data (i32.const 3000) \"log, again\")")
            .admits(Does::Runs(&body))
            .component()
    };
    let patient: &[u8] = b"deadline_ms = 5000\n";
    let proxy = Site::of(&fake.url())
        .with([("10-floods.wasm", &floods(10_000)[..]), ("10-floods.settings.toml", patient)])
        .start();
    let mark = proxy.mark();
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    let event = proxy.wait(mark, "a plugin logs more than a call may", &[("plugin", "floods")]);
    let lines = proxy.events(mark, "log, again").len();
    assert!((1..=64).contains(&lines), "{lines} lines");
    assert_eq!(event.field("dropped"), (10_000 - lines).to_string());
    // A loop of calls to the host ends at the deadline as any other.
    proxy.reload(|site| {
        site.install("10-floods.wasm", &floods(u32::MAX));
        site.install("10-floods.settings.toml", b"deadline_ms = 50\n");
    });
    let answer = proxy.get(APP).fetch();
    assert!(answer.message().contains("ran past its deadline of 50 ms"), "{}", answer.message());
}

#[test]
fn p7_a_thousand_and_one_calls_at_once_wait_their_turn() {
    tidegate_tests::raise_descriptor_limit();
    let _alone = tidegate_tests::heavy();
    let (fake, _image) = fake_with_app();
    let proxy = Site::of(&fake.url()).with([("10-gate.wasm", &guests::denier("each in its turn"))]).start();
    let asked: Vec<_> = (0..1001).map(|_| proxy.get(APP).start().expect("a connection")).collect();
    for stream in asked {
        let answer = Response::read(BufReader::new(stream), "GET").expect("an answer").finish();
        assert_eq!(answer.status, 403, "{}", answer.text());
        assert!(answer.message().contains("each in its turn"), "{}", answer.message());
    }
}
