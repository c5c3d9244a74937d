//! What `wit/README.md` promises: to plugins that were built when the interface was younger, kept as they were built, and
//! of those that were built when it was older.

use tidegate_tests::fake::{Act, Fake, Reply};
use tidegate_tests::guests::{Does, Guest};
use tidegate_tests::image::Image;
use tidegate_tests::site::Site;

use crate::{APP, assert_pulls, assert_whole, denial, fake_with_app};

/// Built before the hooks `inspection` and `freshness`, and the imports `image`, `registry` and `metrics`, were there.
const ALLOWLIST: &[u8] = include_bytes!("guests/kept/allowlist-0.1.0.wasm");
const FAILOVER: &[u8] = include_bytes!("guests/kept/failover-0.1.0.wasm");
/// Of `tests/guests/teller` as it was then: it calls everything of `call`, and `state`.
const TELLER: &[u8] = include_bytes!("guests/kept/teller-0.1.0.wasm");

#[test]
fn an_allow_list_of_0_1_0_denies_and_allows() {
    let (fake, image) = fake_with_app();
    let rules: &[u8] = b"block = [\"docker.io/library/redis\"]";
    let proxy = Site::of(&fake.url()).with([("10-allowlist.wasm", ALLOWLIST), ("10-allowlist.toml", rules)]).start();
    let denied = proxy.get("/v2/library/redis/manifests/7").fetch();
    assert_eq!((denied.status, denied.code().as_str()), (403, "DENIED"), "{}", denied.text());
    let reason = "docker.io/library/redis is blocked by rule \"docker.io/library/redis\" of 10-allowlist.toml";
    assert!(denied.message().starts_with(reason), "{}", denied.message());
    assert_pulls(&proxy, &image);
    // Its hook `lifecycle` refuses as it did, and its log is heard.
    let refusal = proxy.refusal("allowlist", |site| site.copy("10-allowlist.toml", b"blokc = []"));
    assert!(refusal.field("reason").contains("10-allowlist.toml:1"), "{refusal:?}");
    assert_eq!(proxy.get("/v2/library/redis/manifests/7").fetch().status, 403);
}

#[test]
fn a_failover_of_0_1_0_routes_and_says_what_follows_a_failure() {
    let (source, image) = fake_with_app();
    let mirror = Fake::start();
    let other = Image::small("mirrored");
    mirror.put_image(&other, "library/mirrored:1");
    let rules = "[[upstream]]\nprefix = \"docker.io\"\nmirrors = [\"mirror-a.lan\"]\n\
                 on = { status-503 = \"next\", status-429 = \"later\" }\n";
    let proxy = Site::of(&source.url())
        .registry("mirror-a.lan", &mirror.url(), "")
        .with([("20-failover.wasm", FAILOVER), ("20-failover.toml", rules.as_bytes())])
        .start();
    assert_whole(&proxy.get("/v2/library/mirrored/manifests/1").fetch(), &other.digest());
    assert!(source.seen().is_empty());
    mirror.always(APP, Act::Reply(Reply::status(503)));
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    // An answer that the host by itself would not give.
    let limited = "/v2/library/limited/manifests/1";
    mirror.always(limited, Act::Reply(Reply::status(429).field("Retry-After", "60")));
    let told = proxy.get(limited).fetch();
    assert_eq!(told.status, 429, "{}", told.text());
    assert_eq!(told.fields.get("Retry-After"), Some("60"));
}

#[test]
fn a_plugin_of_0_1_0_reads_all_facts_and_keeps_its_state() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url())
        .plugins("headers = [\"x-tell\", \"x-tell-failure\"]")
        .with([("10-teller.wasm", TELLER)])
        .start();
    assert_pulls(&proxy, &image);
    for count in ["1", "2"] {
        let answer = proxy.get(APP).field("X-Tell", "all").field("User-Agent", "kept/1").fetch();
        assert_eq!(answer.status, 403, "{}", answer.text());
        for part in [
            "docker.io/library/app:1 ",
            "client=127.0.0.1",
            "identity=false",
            "agent=kept/1",
            "told=all",
            "method=GET",
            "addressing=default",
            "cache=fresh",
            &image.digest(),
            &format!("count={count} "),
            "left=true",
        ] {
            assert!(answer.message().contains(part), "{part}: {}", answer.message());
        }
        assert_eq!(answer.fields.get("Warning"), Some("299 - \"this was told\""));
    }
    let failed = proxy.get("/v2/library/none/manifests/1").field("X-Tell-Failure", "all").fetch();
    assert!(failed.message().contains("failure=Failure::Status(404)"), "{}", failed.message());
}

#[test]
fn a_plugin_that_calls_what_a_later_0_1_brought_is_refused_with_the_function_s_name() {
    let (fake, _image) = fake_with_app();
    let built = |guest: Guest, message| guest.admits(Does::Denies(message)).component();
    let proxy = Site::of(&fake.url()).with([("10-guard.wasm", &built(Guest::new(), "as ever"))]).start();
    let later = built(Guest::new().wants_later("moon-phase"), "by the moon");
    let refusal = proxy.refusal("guard", |site| site.copy("10-guard.wasm", &later));
    for part in ["tidegate:policy/call@0.1.1", "moon-phase"] {
        assert!(refusal.field("reason").contains(part), "{refusal:?}");
    }
    assert_eq!(denial(&proxy), "as ever", "the version before stays");
    // Built for the same later interface, it runs as long as it calls nothing of what came.
    proxy.reload(|site| site.copy("10-guard.wasm", &built(Guest::new().knows_later("moon-phase"), "of its day")));
    assert_eq!(denial(&proxy), "of its day");
    let listed = proxy.admin("/plugins").text();
    assert!(listed.contains("\"interface\":\"0.1.1\""), "{listed}");
}
