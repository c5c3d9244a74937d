//! Plugins under way: in shadow, failing, fresh, counting, and where they are asked at all.

use tidegate_tests::fake::{Act, Reply};
use tidegate_tests::image::Image;
use tidegate_tests::plugins::puppet;
use tidegate_tests::site::Site;

use crate::{APP, assert_pulls, assert_whole, denial, fake_with_app, tell, with_puppet};

/// The puppet with settings and lines.
fn with_settings(site: Site, settings: &str, lines: &str) -> tidegate_tests::proxy::Proxy {
    site.with([
        ("10-puppet.wasm", &puppet()),
        ("10-puppet.settings.toml", settings.as_bytes()),
        ("10-puppet.toml", lines.as_bytes()),
    ])
    .start()
}

/// A line of the metrics that ends in a number.
fn metric(proxy: &tidegate_tests::proxy::Proxy, name: &str) -> Option<String> {
    let text = proxy.admin("/metrics").text();
    text.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned())
}

#[test]
fn a_plugin_in_shadow_mode_decides_beside_and_changes_nothing() {
    let (fake, image) = fake_with_app();
    for (hook, word, would) in [
        ("admission", "deny", "deny"),
        ("admission", "cached-only", "cached-only"),
        ("routing", "mirror.lan", "to"),
        ("inspection", "hold", "hold"),
        ("freshness", "revalidate", "revalidate"),
    ] {
        let lines = format!("{hook} = \"{word}\"");
        let proxy = with_settings(Site::of(&fake.url()), "mode = \"shadow\"", &lines);
        assert_pulls(&proxy, &image);
        let told = proxy.wait(
            proxy.beginning(),
            "a plugin in shadow mode would have decided otherwise",
            &[("plugin", "puppet"), ("hook", hook), ("would", would)],
        );
        assert!(told.field("pull").contains("library/app"), "{told:?}");
        let counted = format!("tidegate_plugin_shadows_total{{plugin=\"puppet\",hook=\"{hook}\",outcome=\"other\"}}");
        tidegate_tests::eventually("it is counted", || metric(&proxy, &counted).is_some());
    }
}

#[test]
fn a_shadow_does_not_hold_up_a_pull_and_does_not_warn() {
    let (fake, image) = fake_with_app();
    let settings = "mode = \"shadow\"\ndeadline_ms = 10000";
    let proxy = with_settings(Site::of(&fake.url()), settings, "admission = \"loop\"");
    // The answer is there while the shadow still runs: it is ended by the swap only, or its deadline.
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    assert!(proxy.events(proxy.beginning(), "plugin call failed").is_empty());
    tell(&proxy, "admission = \"warn\"");
    let answer = proxy.get(APP).fetch();
    assert_eq!((answer.status, answer.fields.get("warning")), (200, None));
}

#[test]
fn a_warning_reaches_the_client() {
    let (fake, _image) = fake_with_app();
    let proxy = with_puppet(&fake, "inspection = \"warn\"");
    let answer = proxy.get(APP).fetch();
    assert_eq!(answer.fields.get("warning"), Some("299 - \"a warning of the puppet\""));
}

#[test]
fn a_plugin_that_keeps_failing_is_switched_to_its_on_error_answer_until_it_is_replaced() {
    let (fake, image) = fake_with_app();
    let settings = "on_error = \"skip\"\ngive_up_after = 3";
    let proxy = with_settings(Site::of(&fake.url()), settings, "admission = \"panic\"");
    for _ in 0..2 {
        assert_whole(&proxy.get(APP).fetch(), &image.digest());
    }
    let given_up = "tidegate_plugin_given_up{plugin=\"puppet\"}";
    assert_eq!(metric(&proxy, given_up), None);
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    let told = proxy.wait(
        proxy.beginning(),
        "a plugin keeps failing: its `on_error` answer stands for it until it is replaced",
        &[],
    );
    assert!(told.field("reason").contains("told to fail"), "the panic's own words: {told:?}");
    assert_eq!(metric(&proxy, given_up).as_deref(), Some("1"));
    let failures = proxy.events(proxy.beginning(), "plugin call failed").len();
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    assert_eq!(proxy.events(proxy.beginning(), "plugin call failed").len(), failures, "it is not asked any more");
    tell(&proxy, "admission = \"deny\"");
    assert!(denial(&proxy).contains("is denied by the puppet"));
    assert_eq!(metric(&proxy, given_up), None);
}

#[test]
fn a_plugin_that_keeps_failing_is_reported_once() {
    let (fake, _image) = fake_with_app();
    let proxy = with_puppet(&fake, "inspection = \"panic\"");
    for _ in 0..12 {
        assert_eq!(proxy.get(APP).fetch().status, 403);
    }
    let told = "a plugin keeps failing: `give_up_after` in its settings would let its `on_error` answer stand for it";
    assert_eq!(proxy.events(proxy.beginning(), told).len(), 1);
}

#[test]
fn counters_and_gauges_of_a_plugin_appear_under_its_name() {
    let (fake, image) = fake_with_app();
    let proxy = with_puppet(&fake, "admission = \"count\"");
    for _ in 0..3 {
        assert_whole(&proxy.get(APP).fetch(), &image.digest());
    }
    let counter = "tidegate_policy_puppet_asked_total{by=\"test\",plugin=\"puppet\"}";
    assert_eq!(metric(&proxy, counter).as_deref(), Some("6"));
    assert_eq!(metric(&proxy, "tidegate_policy_puppet_level{plugin=\"puppet\"}").as_deref(), Some("0.5"));
    assert_eq!(metric(&proxy, "tidegate_plugin_dropped_total{plugin=\"puppet\"}").as_deref(), Some("3"));
    // What is asked for a person counts nothing.
    proxy.admin("/explain?image=docker.io/library/app:1");
    assert_eq!(metric(&proxy, counter).as_deref(), Some("6"));
    // A plugin that is gone says nothing any more.
    proxy.reload(|site| {
        site.remove("10-puppet.wasm");
        site.remove("10-puppet.toml");
    });
    assert_eq!(metric(&proxy, counter), None);
}

#[test]
fn a_plugin_is_asked_only_where_its_settings_say() {
    let (fake, image) = fake_with_app();
    fake.put_image(&image, "team/app:1");
    let deny = "admission = \"deny\"";
    let proxy = with_settings(Site::of(&fake.url()), "only = [\"docker.io/team/*\"]", deny);
    assert_pulls(&proxy, &image);
    assert_eq!(proxy.get("/v2/team/app/manifests/1").fetch().status, 403);
    proxy.reload(|site| site.copy("10-puppet.settings.toml", b"except = [\"docker.io/team/*\"]"));
    assert_eq!(proxy.get("/v2/team/app/manifests/1").fetch().status, 200);
    assert_eq!(proxy.get(APP).fetch().status, 403);
}

#[test]
fn an_instance_of_its_own_for_each_call() {
    let (fake, image) = fake_with_app();
    let proxy = with_settings(Site::of(&fake.url()), "isolation = \"fresh\"", "admission = \"remember\"");
    for times in 1..=3 {
        assert_whole(&proxy.get(APP).fetch(), &image.digest());
        // What must last is in the state, whatever becomes of the instance.
        proxy.wait(proxy.beginning(), &format!("remembers {times} true"), &[("plugin", "puppet")]);
    }
}

#[test]
fn a_plugin_knows_what_a_registry_still_allows_and_whether_it_fails() {
    let (fake, image) = fake_with_app();
    let proxy = with_puppet(&fake, "admission = \"tell\"");
    assert_eq!(denial(&proxy), "limits=none/none/none ailing=false");
    tell(&proxy, "");
    let limited = Reply::status(200)
        .field("Content-Type", image.media_type())
        .field("Docker-Content-Digest", &image.digest())
        .field("RateLimit-Limit", "100;w=21600")
        .field("RateLimit-Remaining", "7;w=21600")
        .body(&image.manifest);
    fake.next(APP, Act::Reply(limited));
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    tell(&proxy, "admission = \"tell\"");
    assert_eq!(denial(&proxy), "limits=7/100/21600 ailing=false");
    let other = Image::small("other");
    fake.put_image(&other, "library/other:1");
    tell(&proxy, "");
    for _ in 0..3 {
        fake.always("/v2/library/other/manifests/1", Act::Reply(Reply::status(500)));
        proxy.get("/v2/library/other/manifests/1").fetch();
    }
    tell(&proxy, "admission = \"tell\"");
    assert!(denial(&proxy).contains("ailing=true"));
}

#[test]
fn settings_that_are_removed_hold_no_more() {
    let (fake, image) = fake_with_app();
    let proxy = with_puppet(&fake, "admission = \"deny\"");
    // Another plugin comes, so that the files of this one are found as they were.
    proxy.reload(|site| site.install("20-other.wasm", &tidegate_tests::guests::stamped(1)));
    proxy.reload(|site| site.remove("20-other.wasm"));
    for settings in ["mode = \"shadow\"", "mode = \"off\""] {
        proxy.reload(|site| site.install("10-puppet.settings.toml", settings.as_bytes()));
        assert_whole(&proxy.get(APP).fetch(), &image.digest());
        let listed = proxy.admin("/plugins").text();
        let word = if settings.contains("off") { "\"off\":[{\"name\":\"puppet\"" } else { "\"mode\":\"shadow\"" };
        assert!(listed.contains(word), "{listed}");
        proxy.reload(|site| site.remove("10-puppet.settings.toml"));
        assert!(denial(&proxy).contains("is denied by the puppet"), "{settings}");
    }
}
