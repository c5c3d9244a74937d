//! Plugins that fail: what does not load, what fails in a call, and what that means.

use std::time::Instant;

use tidegate_tests::HANG;
use tidegate_tests::guests::{self, Does, Guest};
use tidegate_tests::http::Answer;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::{APP, assert_pulls, assert_whole, denial, fake_with_app};

/// Files that are no plugin, each with what makes it bad.
fn bad_files() -> Vec<(&'static str, Vec<u8>)> {
    let good = guests::denier("never");
    let check = |does| Guest::new().checks(does).admits(Does::Nothing).component();
    vec![
        ("truncated", good[..good.len() * 2 / 3].to_vec()),
        ("only its magic", good[..4].to_vec()),
        ("text", b"deny everything, please\n".to_vec()),
        ("of noise", tidegate_tests::content::noise(4, 5000)),
        ("of an import that nobody has", Guest::new().admits(Does::Nothing).wants_the_moon().component()),
        ("of 4 GiB", Guest::new().admits(Does::Nothing).pages(65_536).component()),
        ("that never starts", Guest::new().admits(Does::Nothing).never_starts().component()),
        ("whose check loops", check(Does::Loops)),
        ("whose check traps", check(Does::Traps)),
        ("whose check refuses", check(Does::Refuses("line 3: there is no such word"))),
    ]
}

/// What is answered when a plugin fails in a call and its failure means a denial.
#[track_caller]
fn assert_denied_by(answer: &Answer, plugin: &str) {
    assert!(matches!(answer.status, 403 | 500 | 503), "{}: {}", answer.status, answer.text());
    assert!(answer.message().contains(plugin), "{}", answer.message());
}

#[test]
fn p4_a_file_that_is_no_plugin_is_reported_by_name_and_the_others_go_on() {
    let (fake, _image) = fake_with_app();
    let proxy = Site::of(&fake.url()).with([("10-good.wasm", &guests::denier("as ever"))]).start();
    for (what, bytes) in bad_files() {
        let refusal = proxy.refusal("bad", |site| site.install("20-bad.wasm", &bytes));
        assert!(refusal.field("file").contains("20-bad.wasm"), "{what}: {refusal:?}");
        assert!(!refusal.field("reason").is_empty(), "{what}: {refusal:?}");
        assert!(denial(&proxy).contains("as ever"), "{what}");
    }
    // And a good version of it is taken at once.
    let event = proxy.reload(|site| site.install("20-bad.wasm", &guests::admission(Does::Nothing)));
    assert_eq!(event.field("plugins").replace(' ', ""), "good,bad");
}

#[test]
fn p4_a_bad_new_version_leaves_the_old_one_in_force() {
    let (fake, _image) = fake_with_app();
    let proxy = Site::of(&fake.url()).with([("10-gate.wasm", &guests::denier("the old one"))]).start();
    for (what, bytes) in bad_files() {
        proxy.refusal("gate", |site| site.copy("10-gate.wasm", &bytes));
        assert!(denial(&proxy).contains("the old one"), "{what}");
    }
    proxy.reload(|site| site.copy("10-gate.wasm", &guests::denier("the new one")));
    assert!(denial(&proxy).contains("the new one"));
}

#[test]
fn a_refusal_of_the_plugin_itself_is_told_in_its_words() {
    let (fake, _image) = fake_with_app();
    let proxy = Site::of(&fake.url()).start();
    let picky = Guest::new().checks(Does::Refuses("line 3: there is no such word")).admits(Does::Nothing).component();
    let refusal = proxy.refusal("picky", |site| site.install("10-picky.wasm", &picky));
    assert!(refusal.field("reason").contains("line 3: there is no such word"), "{refusal:?}");
}

#[test]
fn p1_a_plugin_that_fails_in_a_call_costs_that_call_only() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).start();
    for (name, does) in [
        ("loops", Does::Loops),
        ("traps", Does::Traps),
        ("grows", Does::Grows),
        ("garbles", Does::Garbles),
        ("overreaches", Does::Overreaches),
    ] {
        let file = format!("20-{name}.wasm");
        proxy.reload(|site| site.install(&file, &guests::admission(does)));
        for _ in 0..3 {
            let mark = proxy.mark();
            let begun = Instant::now();
            assert_denied_by(&proxy.get(APP).fetch(), name);
            assert!(begun.elapsed() < HANG / 10, "{name}: {:?}", begun.elapsed());
            let event = proxy.wait(mark, "plugin call failed", &[("plugin", name), ("hook", "admission")]);
            assert!(!event.field("reason").is_empty(), "{event:?}");
        }
        proxy.reload(|site| site.remove(&file));
        assert_pulls(&proxy, &image);
    }
    let peak = proxy.process().memory_bytes("VmHWM") >> 20;
    assert!(peak < 256, "{peak} MiB resident: a guest got what it asked for");
}

#[test]
fn p1_a_looping_plugin_does_not_slow_the_others() {
    let (fake, image) = fake_with_app();
    let settings = b"on_error = \"skip\"\n";
    let proxy = Site::of(&fake.url())
        .with([("10-loops.wasm", &guests::admission(Does::Loops)), ("10-loops.settings.toml", settings)])
        .start();
    // Eight at once: each waits for its own deadline, not for those of the others in turn.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_whole(&proxy.get(APP).fetch(), &image.digest()));
        }
        assert_eq!(proxy.admin("/healthz").status, 200);
    });
}

#[test]
fn on_error_says_what_a_failure_means() {
    let (fake, image) = fake_with_app();
    for failing in [Does::Traps, Does::Loops] {
        let proxy = Site::of(&fake.url()).with([("10-bad.wasm", &guests::admission(failing))]).start();
        assert_denied_by(&proxy.get(APP).fetch(), "bad");
        proxy.reload(|site| site.install("10-bad.settings.toml", b"on_error = \"skip\"\n"));
        assert_whole(&proxy.get(APP).fetch(), &image.digest());
        proxy.wait(proxy.beginning(), "plugin call failed", &[("plugin", "bad")]);
        proxy.reload(|site| site.install("10-bad.settings.toml", b"on_error = \"deny\"\n"));
        assert_denied_by(&proxy.get(APP).fetch(), "bad");
    }
}

#[test]
fn a_routing_or_fallback_plugin_that_fails_is_passed_over() {
    let (fake, image) = fake_with_app();
    let bad = Guest::new().routes(Does::Traps).falls_back(Does::Traps).component();
    let skip: &[u8] = b"on_error = \"skip\"\n";
    let proxy = Site::of(&fake.url()).with([("10-bad.wasm", &bad), ("10-bad.settings.toml", skip)]).start();
    assert_pulls(&proxy, &image);
    proxy.wait(proxy.beginning(), "plugin call failed", &[("plugin", "bad"), ("hook", "routing")]);
    assert_eq!(proxy.get("/v2/library/app/manifests/none").fetch().status, 404);
    proxy.wait(proxy.beginning(), "plugin call failed", &[("plugin", "bad"), ("hook", "fallback")]);
}

#[test]
fn the_settings_are_the_hosts_and_never_handed_to_the_plugin() {
    let (fake, _image) = fake_with_app();
    let settings: &[u8] = b"on_error = \"skip\"\n";
    let proxy = Site::of(&fake.url())
        .with([("10-stamp.wasm", &guests::stamped(1)), ("10-stamp.settings.toml", settings)])
        .start();
    assert!(denial(&proxy).trim_end().ends_with("wasm 1, config"), "{:?}", denial(&proxy));
    for bad in ["on_error = \"maybe\"\n", "on_errors = \"skip\"\n", "on_error"] {
        let refusal = proxy.refusal("stamp", |site| site.install("10-stamp.settings.toml", bad.as_bytes()));
        assert!(
            refusal.field("reason").contains("10-stamp.settings.toml") || refusal.field("file").contains("settings")
        );
        assert!(denial(&proxy).contains("wasm 1"));
    }
}

#[test]
fn a_plugin_that_is_switched_off_decides_nothing_and_is_not_even_compiled() {
    let (fake, image) = fake_with_app();
    let off: &[u8] = b"mode = \"off\"\n";
    let site = Site::of(&fake.url()).with([
        ("10-gate.wasm", &guests::denier("no")[..]),
        ("20-bad.wasm", b"no plugin at all"),
        ("20-bad.settings.toml", off),
    ]);
    let proxy = site.start();
    proxy.wait(proxy.beginning(), "plugin switched off by its settings: it decides nothing", &[("plugin", "bad")]);
    assert!(denial(&proxy).contains("no"));
    let event = proxy.reload(|site| site.install("10-gate.settings.toml", off));
    assert_eq!(event.field("plugins"), "");
    assert_pulls(&proxy, &image);
    let (site, _) = proxy.terminate();
    let proxy = site.start();
    assert_pulls(&proxy, &image);
    proxy.reload(|site| site.install("10-gate.settings.toml", b"mode = \"enforce\"\n"));
    assert!(denial(&proxy).contains("no"));
    // Its file was never looked into; now it is.
    let refusal = proxy.refusal("bad", |site| site.install("20-bad.settings.toml", b"mode = \"shadow\"\n"));
    assert!(refusal.field("reason").contains("no WebAssembly"), "{refusal:?}");
}

#[test]
fn a_configuration_is_any_file_of_the_stem_or_a_folder_of_them() {
    let (fake, _image) = fake_with_app();
    let proxy =
        Site::of(&fake.url()).with([("10-stamp.wasm", &guests::stamped(1)), ("10-stamp.yaml", b"words: many")]).start();
    assert!(denial(&proxy).contains("config words: many"), "{}", denial(&proxy));
    proxy.reload(|site| {
        site.remove("10-stamp.yaml");
        site.install("10-stamp.d/b.txt", b"from the second file");
        site.install("10-stamp.d/a.txt", b"from the first file");
    });
    assert!(wait_denial(&proxy, "config from the first file"), "{}", denial(&proxy));
}

/// Asks until the denial says something: for changes that may take effect in more than one step.
fn wait_denial(proxy: &Proxy, text: &str) -> bool {
    let end = Instant::now() + HANG;
    while Instant::now() < end {
        if denial(proxy).contains(text) {
            return true;
        }
    }
    false
}

#[test]
fn a_core_module_that_carries_its_type_is_a_plugin_too() {
    let (fake, _image) = fake_with_app();
    let core = Guest::new().admits(Does::Denies("from a core module")).core();
    let proxy = Site::of(&fake.url()).with([("10-core.wasm", &core)]).start();
    assert!(denial(&proxy).contains("from a core module"));
}

#[test]
fn two_plugins_of_one_name_are_refused() {
    let (fake, _image) = fake_with_app();
    let site = Site::of(&fake.url()).with([("10-gate.wasm", &guests::denier("the first"))]);
    let proxy = site.start();
    let refusal = proxy.refusal("gate", |site| site.install("20-gate.wasm", &guests::denier("the second")));
    assert!(refusal.field("reason").contains("gate"), "{refusal:?}");
    assert!(denial(&proxy).contains("the first"));
    // At a start there is no telling which one was meant first: both are named.
    let fresh = Site::of(&fake.url())
        .with([("10-gate.wasm", &guests::denier("the first")), ("20-gate.wasm", &guests::denier("the second"))]);
    let output = fresh.run(&["serve"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("10-gate.wasm") && told.contains("20-gate.wasm"), "{told}");
}

#[test]
fn i8_a_plugin_that_does_not_load_at_the_start_refuses_it() {
    let (fake, image) = fake_with_app();
    for (what, bytes) in bad_files() {
        let site = Site::of(&fake.url()).with([("10-good.wasm", &guests::admission(Does::Nothing))]);
        site.install("20-bad.wasm", &bytes);
        let output = site.run(&["serve"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{what}: {told}");
        assert!(told.contains("20-bad.wasm"), "{what}: {told}");
    }
    let site = Site::of(&fake.url()).plugins("on_load_error = \"skip\"");
    site.install("20-bad.wasm", b"no plugin");
    site.install("30-good.wasm", &guests::admission(Does::Nothing));
    let proxy = site.start();
    proxy.wait(proxy.beginning(), "plugin not loaded", &[("plugin", "bad")]);
    assert_pulls(&proxy, &image);
}

#[test]
fn i8_the_last_good_version_serves_when_a_bad_file_lies_there_at_the_start() {
    let (fake, _image) = fake_with_app();
    let site = Site::of(&fake.url()).with([("10-stamp.wasm", &guests::stamped(1)), ("10-stamp.txt", b"the good one")]);
    let proxy = site.start();
    let before = denial(&proxy);
    let (site, status) = proxy.terminate();
    assert_eq!(status.code(), Some(0));
    site.copy("10-stamp.wasm", b"no plugin at all");
    let proxy = site.start();
    let event = proxy.wait(proxy.beginning(), "plugin not loaded", &[("plugin", "stamp")]);
    assert!(event.field("file").contains("10-stamp.wasm"), "{event:?}");
    assert_eq!(denial(&proxy), before);
    // The same after a kill, and with an empty cache: what is kept is no part of the cache.
    let site = proxy.kill9();
    std::fs::remove_dir_all(site.path("cache")).unwrap();
    let proxy = site.start();
    assert_eq!(denial(&proxy), before);
    // A good file takes its place again.
    proxy.reload(|site| site.copy("10-stamp.wasm", &guests::stamped(2)));
    assert!(denial(&proxy).contains("wasm 2, config the good one"), "{}", denial(&proxy));
}

#[test]
fn a_plugin_that_was_removed_while_nothing_ran_is_gone() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).with([("10-gate.wasm", &guests::denier("no"))]).start();
    assert!(denial(&proxy).contains("no"));
    let (site, _) = proxy.terminate();
    site.remove("10-gate.wasm");
    assert_pulls(&site.start(), &image);
}

#[test]
fn the_host_tells_the_truth_and_what_a_plugin_keeps_outlives_a_restart() {
    let (fake, image) = fake_with_app();
    let site = Site::of(&fake.url()).plugins("headers = [\"X-Tell\"]");
    site.install("10-teller.wasm", &tidegate_tests::plugins::teller());
    let proxy = site.start();
    let ask = |proxy: &Proxy| {
        let asked =
            proxy.get(APP).field("User-Agent", "probe/1").field("Accept", "a/b, c/d;q=0.5").field("X-Tell", "yes");
        let answer = asked.field("Authorization", "Basic c2VjcmV0").fetch();
        assert_eq!(answer.status, 403, "{}", answer.text());
        assert_eq!(answer.fields.get("Warning"), Some("299 - \"this was told\""));
        let id = answer.fields.get("X-Request-Id").unwrap().to_owned();
        assert!(answer.message().contains(&format!("id={id} ")), "{id}: {}", answer.message());
        answer.message()
    };
    let before = ask(&proxy);
    for fact in [
        "docker.io/library/app:1 ",
        " client=127.0.0.1 identity=false agent=probe/1 accept=a/b,c/d told=yes secret=0 ",
        " method=GET addressing=default cache=absent digest=none count=1 left=true",
    ] {
        assert!(before.contains(fact), "no {fact:?} in {before}");
    }
    assert_pulls(&proxy, &image);
    let after = ask(&proxy);
    let cached = format!(" cache=fresh digest={} count=2 ", image.digest());
    assert!(after.contains(&cached), "no {cached:?} in {after}");
    proxy.reload(|site| site.install("10-teller.toml", b"changed"));
    assert!(ask(&proxy).contains(" count=3 "), "kept across a reload");
    let (site, _) = proxy.terminate();
    assert!(ask(&site.start()).contains(" count=4 "), "kept across a restart");
}
