//! The plugin `quota` through the real proxy: rate limits that run low, and budgets of pulls.

use tidegate_tests::fake::{Act, Fake, Reply};
use tidegate_tests::image::Image;
use tidegate_tests::plugins::quota;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::{APP, assert_pulls, assert_whole, fake_with_app};

/// docker.io and a mirror of it, both with the app and another image.
struct Places {
    hub: Fake,
    mirror: Fake,
    app: Image,
    other: Image,
    proxy: Proxy,
}

const OTHER: &str = "/v2/library/other/manifests/1";

fn places(rules: &str) -> Places {
    let (hub, app) = fake_with_app();
    let mirror = Fake::start();
    let other = Image::small("other");
    hub.put_image(&other, "library/other:1");
    mirror.put_image(&app, "library/app:1");
    mirror.put_image(&other, "library/other:1");
    let proxy = Site::of(&hub.url())
        .registry("mirror-a.lan", &mirror.url(), "")
        .cache("tag_ttl = \"0s\"")
        .with([("60-quota.wasm", &quota()), ("60-quota.toml", rules.as_bytes())])
        .start();
    Places { hub, mirror, app, other, proxy }
}

/// The manifest as Docker Hub gives it, with what is left of the limit.
fn with_limit(image: &Image, remaining: u32) -> Act {
    let reply = Reply::status(200)
        .field("Content-Type", image.media_type())
        .field("Docker-Content-Digest", &image.digest())
        .field("RateLimit-Limit", "100;w=21600")
        .field("RateLimit-Remaining", &format!("{remaining};w=21600"));
    Act::Reply(reply.body(&image.manifest))
}

#[track_caller]
fn assert_metric(proxy: &Proxy, line: &str) {
    let metrics = proxy.admin("/metrics").text();
    assert!(metrics.lines().any(|it| it == line), "{line:?} is not among:\n{metrics}");
}

#[test]
fn while_the_limit_is_low_pulls_go_to_the_mirror() {
    let rules = "[[upstream]]\nregistry = \"docker.io\"\nlow = \"20%\"\nmirrors = [\"mirror-a.lan\"]\n";
    let Places { hub, mirror, app, other, proxy } = places(rules);
    hub.always(APP, with_limit(&app, 21));
    assert_pulls(&proxy, &app);
    hub.always(APP, with_limit(&app, 20));
    proxy.reload(|site| site.install("60-quota.toml", format!("# again\n{rules}").as_bytes()));
    hub.put_image(&app, "library/third:1");
    hub.always("/v2/library/third/manifests/1", with_limit(&app, 20));
    assert_whole(&proxy.get("/v2/library/third/manifests/1").fetch(), &app.digest());
    assert!(mirror.seen().is_empty(), "21 of 100 is not low: {:?}", mirror.seen());
    assert_whole(&proxy.get(OTHER).fetch(), &other.digest());
    assert_eq!((hub.count("GET", OTHER), mirror.count("GET", OTHER)), (0, 1));
    assert_metric(&proxy, "tidegate_policy_quota_remaining{registry=\"docker.io\",plugin=\"quota\"} 20.0");
    assert_metric(&proxy, "tidegate_policy_quota_diverted_total{registry=\"docker.io\",plugin=\"quota\"} 1");
    mirror.stop();
    hub.put_image(&app, "library/fourth:1");
    assert_whole(&proxy.get("/v2/library/fourth/manifests/1").fetch(), &app.digest());
}

#[test]
fn while_the_limit_is_low_cached_copies_are_served_without_a_question() {
    let Places { hub, app, other, proxy, .. } = places("[[upstream]]\nregistry = \"docker.io\"\nlow = 5\n");
    hub.always(OTHER, with_limit(&other, 5));
    assert_pulls(&proxy, &app);
    assert_whole(&proxy.get(OTHER).fetch(), &other.digest());
    let asked = hub.seen().len();
    hub.put_image(&other, "library/app:1");
    for _ in 0..3 {
        assert_pulls(&proxy, &app);
    }
    assert_eq!(hub.seen().len(), asked);
    assert_metric(&proxy, "tidegate_policy_quota_served_cached_total{registry=\"docker.io\",plugin=\"quota\"} 3");
}

#[test]
fn a_429_is_answered_by_a_mirror_and_the_registry_is_left_alone() {
    let rules = "[[upstream]]\nregistry = \"docker.io\"\nlow = 0\nmirrors = [\"mirror-a.lan\"]\nitself = \"never\"\n";
    let Places { hub, mirror, app, other, proxy } = places(rules);
    hub.always(APP, Act::Reply(Reply::status(429).field("Retry-After", "3600")));
    assert_pulls(&proxy, &app);
    assert_eq!((hub.count("GET", APP), mirror.count("GET", APP)), (1, 1));
    assert_whole(&proxy.get(OTHER).fetch(), &other.digest());
    assert_eq!(hub.count("GET", OTHER), 0);
    assert_metric(&proxy, "tidegate_policy_quota_refused_total{registry=\"docker.io\",plugin=\"quota\"} 1");
}

#[test]
fn a_429_is_answered_by_a_cached_copy() {
    let Places { hub, app, proxy, .. } = places("[[upstream]]\nregistry = \"docker.io\"\nlow = 0\n");
    crate::assert_caches(&proxy, &app);
    hub.always(APP, Act::Reply(Reply::status(429).field("Retry-After", "3600")));
    assert_pulls(&proxy, &app);
    assert_pulls(&proxy, &app);
    assert_eq!(hub.seen().iter().filter(|seen| seen.path == APP).count(), 2, "one served, one refused");
}

#[test]
fn a_client_that_has_had_its_pulls_is_told_when_to_come_again() {
    let rules = "[[budget]]\nname = \"each\"\npulls = 2\nwindow = \"31d\"\ncached = true\n";
    let Places { hub, app, other, proxy, .. } = places(rules);
    assert_pulls(&proxy, &app);
    for _ in 0..3 {
        assert_eq!(proxy.head(APP).fetch().status, 200);
    }
    assert_whole(&proxy.get(OTHER).fetch(), &other.digest());
    let asked = hub.seen().len();
    let answer = proxy.get(APP).fetch();
    assert_eq!((answer.status, answer.code().as_str()), (429, "TOOMANYREQUESTS"), "{}", answer.text());
    let secs: u32 = answer.fields.get("Retry-After").expect("when to come again").parse().expect("seconds");
    assert!((1..=86_400).contains(&secs), "{secs}");
    assert!(answer.message().contains("budget \"each\" of 60-quota.toml"), "{}", answer.message());
    assert_eq!(hub.seen().len(), asked);
    // The count is kept across a reload and a restart; another budget is another count.
    let (site, _) = proxy.terminate();
    let proxy = site.start();
    assert_eq!(proxy.get(APP).fetch().status, 429);
    proxy.reload(|site| site.copy("60-quota.toml", rules.replace("each", "new").as_bytes()));
    assert_pulls(&proxy, &app);
}
