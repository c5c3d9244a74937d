//! What plugins decide, and what becomes of it: who may pull, from where, and what follows a failure.

use tidegate_tests::clients::{self, Client, Docker};
use tidegate_tests::content::Content;
use tidegate_tests::fake::{Act, Fake, Reply};
use tidegate_tests::gate::Gate;
use tidegate_tests::guests::{self, Does, Guest};
use tidegate_tests::http::End;
use tidegate_tests::image::Image;
use tidegate_tests::plugins::{allowlist, failover};
use tidegate_tests::proxy::Proxy;
use tidegate_tests::registry::Registry;
use tidegate_tests::site::Site;

use crate::{APP, assert_caches, assert_pulls, assert_whole, denial, fake_with_app};

/// The allow list at work in front of a docker.io.
fn with_allowlist(url: &str, rules: &str) -> Proxy {
    Site::of(url).with([("10-allowlist.wasm", &allowlist()), ("10-allowlist.toml", rules.as_bytes())]).start()
}

/// docker.io and two mirrors, in the order in which they are asked: mirror a, mirror b, the source.
struct Mirrors {
    a: Fake,
    b: Fake,
    source: Fake,
    image: Image,
    proxy: Proxy,
}

fn with_mirrors(rules: &str) -> Mirrors {
    let image = Image::small("app");
    let fakes: Vec<Fake> = (0..3).map(|_| Fake::start()).collect();
    let [a, b, source] = fakes.try_into().expect("three");
    a.put_image(&image, "library/app:1");
    // A path replaces the prefix.
    b.put_image(&image, "hub/library/app:1");
    source.put_image(&image, "library/app:1");
    let rules =
        format!("[[upstream]]\nprefix = \"docker.io\"\nmirrors = [\"mirror-a.lan\", \"mirror-b.lan/hub\"]\n{rules}\n");
    let proxy = Site::of(&source.url())
        .registry("mirror-a.lan", &a.url(), "")
        .registry("mirror-b.lan", &b.url(), "")
        .with([("20-failover.wasm", &failover()), ("20-failover.toml", rules.as_bytes())])
        .start();
    Mirrors { a, b, source, image, proxy }
}

#[test]
fn i1_what_is_blocked_is_denied_to_every_client_also_when_it_is_cached() {
    let registry = Registry::start();
    let image = Image::small("secret");
    registry.push(&image, "library/secret:1");
    let proxy = with_allowlist(&registry.url(), "block = [\"docker.io/library/nothing\"]");
    let clients = clients::all(&proxy.authority());
    for client in &clients {
        assert_eq!(client.pull("library/secret:1").as_ref(), Ok(&image.digest()), "{} before", client.name());
        client.remove("library/secret:1");
    }
    proxy.reload(|site| site.copy("10-allowlist.toml", b"block = [\"docker.io/library/secret\"]"));
    let manifest = "/v2/library/secret/manifests";
    for path in [
        format!("{manifest}/1"),
        format!("{manifest}/{}", image.digest()),
        format!("/v2/library/secret/blobs/{}", image.layer_digest(0)),
        "/v2/docker.io/library/secret/manifests/1".to_owned(),
        format!("{manifest}/1?ns=docker.io"),
    ] {
        let answer = proxy.get(&path).fetch();
        assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"), "{path}");
        assert!(answer.message().contains("docker.io/library/secret"), "{}", answer.message());
        assert_eq!(proxy.head(&path).fetch().status, 403, "{path}");
    }
    for client in &clients {
        let error = client.pull("library/secret:1").expect_err(client.name());
        let told = ["denied", "403", "DENIED"].iter().any(|word| error.contains(word));
        assert!(told, "{} says: {error}", client.name());
    }
    // Edited back, the change holds for the next request.
    proxy.reload(|site| site.copy("10-allowlist.toml", b"block = [\"docker.io/library/nothing\"]"));
    for client in &clients {
        assert_eq!(client.pull("library/secret:1").as_ref(), Ok(&image.digest()), "{} after", client.name());
    }
}

#[test]
fn an_allow_list_lets_only_through_what_it_names() {
    let (fake, image) = fake_with_app();
    fake.put_image(&image, "library/other:1");
    let proxy = with_allowlist(&fake.url(), "allow = [\"docker.io/library/app:1*\"]");
    assert_pulls(&proxy, &image);
    let answer = proxy.get("/v2/library/other/manifests/1").fetch();
    assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"));
    assert_eq!(fake.count("GET", "/v2/library/other/manifests/1"), 0, "nobody is asked for what is denied");
}

#[test]
fn an_edit_that_the_plugin_refuses_leaves_the_policy_as_it_is() {
    let (fake, _image) = fake_with_app();
    let proxy = with_allowlist(&fake.url(), "block = [\"docker.io/library/app\"]");
    let before = denial(&proxy);
    assert!(before.contains("docker.io/library/app"), "{before}");
    for bad in ["block = [", "allow = []\nblock = []", "bolck = [\"docker.io/library/app\"]"] {
        let refusal = proxy.refusal("allowlist", |site| site.install("10-allowlist.toml", bad.as_bytes()));
        assert!(refusal.field("reason").contains("10-allowlist.toml"), "{}", refusal.field("reason"));
        assert_eq!(denial(&proxy), before, "{bad}");
    }
}

#[test]
fn mirrors_are_asked_in_turn_and_the_source_last() {
    let Mirrors { a, b, source, image, proxy } = with_mirrors("source = \"last\"");
    assert_pulls(&proxy, &image);
    assert!(!a.seen().is_empty());
    assert!(b.seen().is_empty() && source.seen().is_empty());
    let other = Image::small("other");
    source.put_image(&other, "library/other:1");
    assert_whole(&proxy.get("/v2/library/other/manifests/1").fetch(), &other.digest());
    assert_eq!(a.count("GET", "/v2/library/other/manifests/1"), 1);
    assert_eq!(b.count("GET", "/v2/hub/library/other/manifests/1"), 1);
    assert_eq!(source.count("GET", "/v2/library/other/manifests/1"), 1);
}

#[test]
fn pulls_go_on_through_the_second_mirror_when_the_first_is_killed() {
    let Mirrors { a, b, source, image, proxy } = with_mirrors("source = \"last\"");
    a.stop();
    assert_pulls(&proxy, &image);
    assert!(!b.seen().is_empty() && source.seen().is_empty());
    b.stop();
    let other = Image::small("other");
    source.put_image(&other, "library/other:1");
    assert_whole(&proxy.get("/v2/library/other/manifests/1").fetch(), &other.digest());
}

#[test]
fn a_mirror_that_hesitates_is_hedged_by_the_next() {
    // Without the hedge the silent mirror would take all the time that a pull has.
    let Mirrors { a, b, source, image, proxy } = with_mirrors("timeout_ms = 60000\nhedge_after_ms = 20");
    a.always(APP, Act::Silent);
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    assert_eq!((a.count("GET", APP), b.seen().len(), source.seen().len()), (1, 1, 0));
}

#[test]
fn i6_a_mirror_killed_in_a_blob_is_replaced_in_the_same_response() {
    let Mirrors { a, b, source, proxy, .. } = with_mirrors("source = \"last\"");
    let content = Content::noise(21, 20_000_000);
    let path = a.put_blob("library/app", content.clone());
    let on_b = b.put_blob("hub/library/app", content.clone());
    let gate = Gate::new();
    a.next(&path, Act::Hold(9_000_000, gate.clone()));
    let mut client = proxy.get(&path).open().unwrap();
    let mut buffer = vec![0; 1000];
    let read = client.read_some(&mut buffer).unwrap();
    assert!(content.holds(0, &buffer[..read]));
    gate.wait_reached();
    a.stop();
    let (rest, end) = client.drain(|offset, piece| assert!(content.holds(read as u64 + offset, piece)));
    assert_eq!((read as u64 + rest, end), (content.len(), End::Whole));
    assert_eq!(b.count("GET", &on_b), 1);
    assert_eq!(source.count("GET", &path), 0);
}

#[test]
fn u4_wrong_bytes_of_one_mirror_are_made_good_by_the_next() {
    let Mirrors { a, b, source, proxy, .. } = with_mirrors("source = \"last\"");
    // A small blob is waited for whole: its client sees nothing of it.
    let small = Content::noise(31, 50_000);
    let path = a.put_blob("library/app", small.clone());
    b.put_blob("hub/library/app", small.clone());
    a.always(&path, Act::Lie(small.corrupted()));
    assert_whole(&proxy.get(&path).fetch(), &small.digest());
    // Of a big one the client has had wrong bytes: its answer ends short, and the next one is right.
    let big = Content::noise(32, 5_000_000);
    let path = a.put_blob("library/app", big.clone());
    let on_b = b.put_blob("hub/library/app", big.clone());
    a.always(&path, Act::Lie(big.corrupted()));
    crate::assert_never_wrong(&proxy.get(&path).fetch(), &big.digest());
    assert_whole(&proxy.get(&path).fetch(), &big.digest());
    assert_eq!((a.count("GET", &path), b.count("GET", &on_b), source.count("GET", &path)), (1, 1, 0));
    let metrics = proxy.admin("/metrics").text();
    let line = "tidegate_upstream_broken_bodies_total{registry=\"mirror-a.lan\",failure=\"digest-mismatch\"} 2";
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn every_client_pulls_while_a_mirror_breaks_off_in_each_layer() {
    let image = Image::new("large", &[5_000_000, 3_000_000]);
    let (mirror, registry) = (Fake::start(), Registry::start());
    let manifest = mirror.put_image(&image, "library/large:1");
    registry.push(&image, "library/large:1");
    let rules = b"[[upstream]]\nprefix = \"docker.io\"\nmirrors = [\"mirror-a.lan\"]\nsource = \"last\"\n";
    for layer in 0..2 {
        let path = format!("/v2/library/large/blobs/{}", image.layer_digest(layer));
        mirror.always(&path, Act::CloseAfter(1_000_000));
    }
    // Each client has a proxy of its own, so that each pull is a cold one.
    for set_up in clients::ALL {
        let proxy = Site::of(&registry.url())
            .registry("mirror-a.lan", &mirror.url(), "")
            .with([("20-failover.wasm", &failover()), ("20-failover.toml", rules)])
            .start();
        let client = set_up(&proxy.authority());
        assert_eq!(client.pull("library/large:1").as_ref(), Ok(&image.digest()), "{}", client.name());
    }
    assert!(mirror.seen().iter().filter(|seen| seen.path == manifest).count() >= 4);
}

#[test]
fn a_source_that_is_never_asked_is_never_dialled() {
    let Mirrors { a, b, source, image, proxy } = with_mirrors("source = \"never\"");
    a.stop();
    b.stop();
    let answer = proxy.get(APP).fetch();
    assert!(matches!(answer.status, 502..=504), "{}", answer.status);
    assert!(source.seen().is_empty());
    b.restart();
    assert_pulls(&proxy, &image);
}

#[test]
fn what_follows_a_failure_is_as_the_rules_say() {
    let rules = "source = \"last\"\non = { status-429 = \"stop\", not-found = \"next\", status-503 = \"stop\" }";
    let Mirrors { a, b, source, image, proxy } = with_mirrors(rules);
    a.always(APP, Act::Reply(Reply::status(429).field("Retry-After", "60")));
    assert_eq!(proxy.get(APP).fetch().status, 429);
    a.always(APP, Act::Reply(Reply::status(503)));
    assert!(matches!(proxy.get(APP).fetch().status, 502 | 503));
    assert!(b.seen().is_empty() && source.seen().is_empty());
    a.always(APP, Act::Reply(Reply::status(404)));
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    assert!(!b.seen().is_empty());
}

#[test]
fn a_stale_copy_is_served_where_the_rules_say_so_though_another_mirror_could_answer() {
    let image = Image::small("app");
    let (mirror, source) = (Fake::start(), Fake::start());
    mirror.put_image(&image, "library/app:1");
    let rules =
        b"[[upstream]]\nprefix = \"docker.io\"\nmirrors = [\"mirror-a.lan\"]\non = { status-429 = \"stale\" }\n";
    let proxy = Site::of(&source.url())
        .registry("mirror-a.lan", &mirror.url(), "")
        .cache("tag_ttl = \"0s\"")
        .with([("20-failover.wasm", &failover()), ("20-failover.toml", rules)])
        .start();
    assert_caches(&proxy, &image);
    mirror.always(APP, Act::Reply(Reply::status(429)));
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    assert!(source.seen().is_empty(), "{:?}", source.seen());
}

#[test]
fn cached_only_serves_what_is_cached_and_asks_nobody() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).start();
    proxy.reload(|site| site.install("10-frozen.wasm", &guests::admission(Does::CachedOnly)));
    let answer = proxy.get(APP).fetch();
    assert!((400..=599).contains(&answer.status), "{}", answer.status);
    assert!(fake.seen().is_empty());
    proxy.reload(|site| site.remove("10-frozen.wasm"));
    assert_caches(&proxy, &image);
    let cold = fake.seen().len();
    proxy.reload(|site| site.install("10-frozen.wasm", &guests::admission(Does::CachedOnly)));
    assert_pulls(&proxy, &image);
    assert_eq!(fake.seen().len(), cold);
}

#[test]
fn one_denial_denies_and_the_first_one_is_told() {
    let (fake, _image) = fake_with_app();
    let allow = guests::admission(Does::Nothing);
    let (first, second) = (guests::denier("the first says no"), guests::denier("the second says no"));
    let proxy = Site::of(&fake.url())
        .with([("10-easy.wasm", &allow), ("30-second.wasm", &second), ("20-first.wasm", &first)])
        .start();
    let loaded = proxy.wait(proxy.beginning(), "plugins in effect", &[]);
    assert_eq!(loaded.field("plugins").replace(' ', ""), "easy,first,second");
    assert!(denial(&proxy).contains("the first says no"), "{}", denial(&proxy));
    proxy.reload(|site| site.remove("20-first.wasm"));
    assert!(denial(&proxy).contains("the second says no"), "{}", denial(&proxy));
}

#[test]
fn a_routing_plugin_may_deny_and_a_warning_reaches_the_client() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).with([("10-witness.wasm", &guests::witness(7))]).start();
    for _ in 0..2 {
        let answer = proxy.get(APP).fetch();
        assert_whole(&answer, &image.digest());
        let warnings = answer.fields.all("Warning").join("\n");
        assert!(warnings.contains("299") && warnings.contains("admission: wasm 7"), "{warnings}");
        assert!(warnings.contains("routing: wasm 7"), "{warnings}");
    }
    let denies = Guest::new().routes(Does::Denies("there is no way there")).component();
    // In `routes`, case 2 is a denial, as in a verdict.
    proxy.reload(|site| site.install("10-witness.wasm", &denies));
    assert!(denial(&proxy).contains("there is no way there"), "{}", denial(&proxy));
}

#[test]
fn docker_tells_the_denial_in_its_log_and_goes_no_further() {
    let (fake, _image) = fake_with_app();
    let proxy = with_allowlist(&fake.url(), "block = [\"docker.io/library/app\"]");
    let docker = Docker::start(&proxy.authority());
    assert!(docker.pull("library/app:1").is_err());
    assert!(docker.log().contains("denied"), "{}", docker.log());
    assert!(fake.seen().is_empty());
}
