//! Answers of plugins that are remembered, and those that are not.

use tidegate_tests::fake::Fake;
use tidegate_tests::plugins::{allowlist, failover, gatekeeper, mirrors, puppet};
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::{APP, assert_whole, fake_with_app, with_puppet};

/// What the puppet says of how often it was asked: it counts in its own memory, which a plugin with hints should not do.
fn told(proxy: &Proxy, path: &str, fields: &[(&str, &str)]) -> String {
    let request = fields.iter().fold(proxy.get(path), |request, (name, value)| request.field(name, value));
    let answer = request.fetch();
    assert_eq!(answer.status, 403, "{}", answer.text());
    answer.message().split(" (policy").next().unwrap_or_default().to_owned()
}

fn counted(proxy: &Proxy, plugin: &str, hook: &str, outcome: &str) -> u64 {
    let start = format!("tidegate_plugin_calls_total{{plugin=\"{plugin}\",hook=\"{hook}\",outcome=\"{outcome}\"}} ");
    let metrics = proxy.admin("/metrics").text();
    metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok()).unwrap_or(0)
}

fn counting(hints: &str, admission: &str) -> (Fake, Proxy) {
    let (fake, _) = fake_with_app();
    let proxy = with_puppet(&fake, &format!("hints = \"{hints}\"\nadmission = \"{admission}\""));
    (fake, proxy)
}

const OTHER: &str = "/v2/library/app/manifests/2";
const ONCE: &str = "asked 1 times";
const TWICE: &str = "asked 2 times";

#[test]
fn an_answer_is_remembered_for_the_same_request_and_told_as_any_other() {
    let (_fake, proxy) = counting("none", "times method");
    assert_eq!(told(&proxy, APP, &[]), ONCE);
    assert_eq!(told(&proxy, APP, &[]), ONCE);
    assert_eq!(told(&proxy, OTHER, &[]), TWICE);
    // Whoever asks, with whatever: it said that it does not care.
    assert_eq!(told(&proxy, APP, &[("User-Agent", "another/1"), ("Accept", "a/b")]), ONCE);
    assert_eq!(proxy.head(APP).fetch().status, 403);
    assert_eq!(told(&proxy, "/v2/library/app/manifests/3", &[]), "asked 4 times", "a HEAD is another request");
    assert_eq!(
        (counted(&proxy, "puppet", "admission", "ok"), counted(&proxy, "puppet", "admission", "remembered")),
        (4, 2)
    );
    let list: serde_json::Value = serde_json::from_str(&proxy.admin("/plugins").text()).unwrap();
    assert_eq!(list["plugins"][0]["calls"], 6, "{list}");
    let record: serde_json::Value = serde_json::from_str(&proxy.admin("/decisions").text()).unwrap();
    let first = record.as_array().unwrap().iter().filter(|line| line["decisions"][0]["detail"] == ONCE).count();
    assert_eq!(first, 3, "{record}");
    // What is asked for a person is asked.
    let explained = proxy.admin("/explain?image=library/app:1").text();
    assert!(explained.contains("asked 5 times"), "{explained}");
    assert_eq!(told(&proxy, APP, &[]), ONCE);
}

#[test]
fn what_is_remembered_ends_with_the_configuration() {
    let (_fake, proxy) = counting("none", "times");
    assert_eq!(told(&proxy, APP, &[]), ONCE);
    assert_eq!(told(&proxy, OTHER, &[]), TWICE);
    assert_eq!(told(&proxy, OTHER, &[]), TWICE);
    proxy.reload(|site| site.install("10-puppet.toml", b"hints = \"none\"\nadmission = \"times\"\n# another\n"));
    assert_eq!(told(&proxy, OTHER, &[]), ONCE);
    proxy.reload(|site| site.install("10-puppet.toml", b"hints = \"none\"\nadmission = \"cached-only\""));
    assert!(told(&proxy, OTHER, &[]).contains("cached content only"));
}

#[test]
fn what_one_client_is_answered_is_not_told_another() {
    let (_fake, proxy) = counting("client", "times address");
    let [one, other] = ["one/1", "other/1"].map(|agent| [("User-Agent", agent)]);
    assert_eq!(told(&proxy, APP, &one), ONCE);
    assert_eq!(told(&proxy, APP, &other), TWICE);
    assert_eq!(told(&proxy, APP, &one), ONCE);
    assert_eq!(told(&proxy, APP, &other), TWICE);

    let (_fake, proxy) = counting("headers", "times accept");
    let [one, other] = ["a/b", "c/d"].map(|accept| [("Accept", accept)]);
    assert_eq!(told(&proxy, APP, &one), ONCE);
    assert_eq!(told(&proxy, APP, &other), TWICE);
    assert_eq!(told(&proxy, APP, &one), ONCE);
}

#[test]
fn a_plugin_that_uses_what_it_does_not_declare_is_asked_each_time() {
    let (_fake, proxy) = counting("none", "");
    for (act, function, flag) in [
        ("clock", "clock.now-ms", "time"),
        ("address", "call.client-address", "client"),
        ("accept", "call.accept", "headers"),
        ("state", "state.get", "state"),
        ("remember", "state.set-once", "state"),
        ("say", "log.write", "state"),
        ("warn", "call.warn", "state"),
        ("count", "metrics", "state"),
        ("cached", "call.cache", "lookups"),
        ("limits", "call.attribute", "lookups"),
    ] {
        let mark = proxy.mark();
        let text = format!("hints = \"none\"\nadmission = \"times {act}\"");
        proxy.reload(|site| site.install("10-puppet.toml", text.as_bytes()));
        for times in 1..=3 {
            assert_eq!(told(&proxy, APP, &[]), format!("asked {times} times"), "{act}");
        }
        let message = "a plugin uses what its `hints` do not declare: such answers are not remembered";
        proxy.wait(mark, message, &[]);
        let warnings = proxy.events(mark, message);
        let [warning] = warnings.as_slice() else { panic!("{act}: {} warnings", warnings.len()) };
        // It keeps the time before it keeps the state.
        let expected = if act == "remember" { ("clock.now-ms", "time") } else { (function, flag) };
        assert_eq!((warning.field("function").as_str(), warning.field("flag").as_str()), expected, "{act}");
        assert_eq!(warning.field("plugin"), "puppet");
    }
}

#[test]
fn what_depends_on_time_or_state_is_never_remembered_and_what_was_looked_up_is_not() {
    for (hints, act) in [("time", ""), ("state", ""), ("client+time", ""), ("lookups", "cached"), ("lookups", "limits")]
    {
        let (_fake, proxy) = counting(hints, &format!("times {act}"));
        assert_eq!(told(&proxy, APP, &[]), ONCE);
        assert_eq!(told(&proxy, APP, &[]), TWICE, "{hints} {act}");
        let warnings = proxy.events(
            proxy.beginning(),
            "a plugin uses what its `hints` do not declare: such answers are not remembered",
        );
        assert!(warnings.is_empty(), "{hints} {act}");
    }
    let (_fake, proxy) = counting("lookups", "times");
    assert_eq!(told(&proxy, APP, &[]), ONCE);
    assert_eq!(told(&proxy, APP, &[]), ONCE);
}

#[test]
fn routes_are_remembered_and_failures_are_not() {
    let (fake, _) = fake_with_app();
    let proxy = with_puppet(&fake, "hints = \"none\"\nrouting = \"times\"");
    assert_eq!(told(&proxy, APP, &[]), "routed 1 times");
    assert_eq!(told(&proxy, APP, &[]), "routed 1 times");
    assert_eq!(counted(&proxy, "puppet", "routing", "remembered"), 1);
    assert_eq!(counted(&proxy, "puppet", "admission", "remembered"), 1);

    let proxy = with_puppet(&fake, "hints = \"none\"\nadmission = \"panic\"");
    for _ in 0..2 {
        assert_eq!(proxy.get(APP).fetch().status, 403);
    }
    assert_eq!((counted(&proxy, "puppet", "admission", "trap"), counted(&proxy, "puppet", "admission", "ok")), (2, 0));
}

#[test]
fn a_plugin_in_shadow_mode_is_asked_each_time() {
    let (fake, image) = fake_with_app();
    let settings: &[u8] = b"mode = \"shadow\"";
    let proxy = Site::of(&fake.url())
        .with([
            ("10-puppet.wasm", &puppet()),
            ("10-puppet.toml", b"hints = \"none\"\nadmission = \"times\""),
            ("10-puppet.settings.toml", settings),
        ])
        .start();
    for _ in 0..2 {
        assert_whole(&proxy.get(APP).fetch(), &image.digest());
    }
    tidegate_tests::eventually("both were asked about", || counted(&proxy, "puppet", "admission", "ok") == 2);
}

#[test]
fn a_plugin_that_cannot_say_what_it_depends_on_is_refused() {
    let (_fake, proxy) = counting("none", "times");
    let bad = b"hints = \"panic\"\nadmission = \"times\"";
    let event = proxy.refusal("puppet", |site| site.install("10-puppet.toml", bad));
    let reason = event.field("reason");
    assert!(reason.contains("hints.depends-on: it failed") && reason.contains("told to fail"), "{reason}");
    assert_eq!(told(&proxy, APP, &[]), ONCE, "the version before serves");
}

#[test]
fn four_plugins_of_the_project_answer_a_warm_pull_from_memory() {
    let (fake, image) = fake_with_app();
    let mirror = "location = \"docker.io\"\n[[registry.mirror]]\nlocation = \"mirror.lan\"\n";
    let failing = "[[upstream]]\nprefix = \"quay.io\"\nmirrors = [\"mirror.lan\"]\n";
    let proxy = Site::of(&fake.url())
        .registry("mirror.lan", &fake.url(), "")
        .with([
            ("10-allowlist.wasm", &allowlist()),
            ("10-allowlist.toml", b"block = [\"docker.io/library/redis\"]"),
            ("20-gatekeeper.wasm", &gatekeeper()),
            ("20-gatekeeper.toml", b"[fill]\naddresses = [\"127.0.0.0/8\"]\n"),
            ("30-mirrors.wasm", &mirrors()),
            ("30-mirrors.conf", format!("[[registry]]\n{mirror}").as_bytes()),
            ("40-failover.wasm", &failover()),
            ("40-failover.toml", failing.as_bytes()),
        ])
        .start();
    for _ in 0..3 {
        assert_whole(&proxy.get(APP).fetch(), &image.digest());
    }
    for (plugin, hook) in [
        ("allowlist", "admission"),
        ("gatekeeper", "admission"),
        ("mirrors", "admission"),
        ("mirrors", "routing"),
        ("failover", "routing"),
    ] {
        assert_eq!(
            (counted(&proxy, plugin, hook, "ok"), counted(&proxy, plugin, hook, "remembered")),
            (1, 2),
            "{plugin}"
        );
    }
    assert_eq!(proxy.get("/v2/library/redis/manifests/1").fetch().status, 403);
}
