//! The plugin `gatekeeper` through the real proxy: who is trusted brings images, everybody else gets what is there.

use tidegate_tests::clients::{Client, Containerd};
use tidegate_tests::fake::{Fake, basic};
use tidegate_tests::image::Image;
use tidegate_tests::plugins::gatekeeper;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::{APP, app_blob, assert_whole, fake_with_app};

const OPS: &str = "[fill]\ngroups = [\"ops\"]\n";

/// A proxy where alice is of the group ops, and bob is not; anybody may ask from this machine.
fn guarded(rules: &str) -> (Fake, Image, Proxy) {
    let (fake, image) = fake_with_app();
    let site = Site::of(&fake.url()).users(&[("alice", "wonder"), ("bob", "builder")]);
    std::fs::write(site.path("groups"), "ops: alice\n").unwrap();
    let groups = format!("groups = \"{}\"\nanonymous = [\"127.0.0.0/8\"]", site.path("groups").display());
    let files: [(&str, &[u8]); 2] = [("10-gatekeeper.wasm", &gatekeeper()), ("10-gatekeeper.toml", rules.as_bytes())];
    let proxy = site.clients(&groups).with(files).start();
    (fake, image, proxy)
}

#[test]
fn who_is_trusted_brings_an_image_and_another_user_gets_it_then() {
    let (fake, image, proxy) = guarded(OPS);
    let [alice, bob] = [basic("alice", "wonder"), basic("bob", "builder")];
    let ask = |path: &str, who: &str| proxy.get(path).field("Authorization", who).fetch();
    let refused = ask(APP, &bob);
    assert_eq!((refused.status, refused.code().as_str()), (403, "DENIED"), "{}", refused.text());
    assert!(refused.message().contains("the policy gatekeeper allows cached content only"), "{}", refused.message());
    // Who has shown nothing is asked for it first: it may be alice.
    assert_eq!(proxy.get(APP).fetch().status, 401);
    assert!(fake.seen().is_empty());
    assert_whole(&ask(APP, &alice), &image.digest());
    for blob in &image.blobs {
        let digest = tidegate_tests::content::sha256(blob);
        assert_whole(&ask(&app_blob(&digest), &alice), &digest);
        let path = proxy.site().blob_path(&digest);
        tidegate_tests::eventually("the blob is cached", || path.exists());
    }
    fake.forget();
    assert_whole(&ask(APP, &bob), &image.digest());
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    assert!(fake.seen().is_empty());
    let explained = proxy.admin("/explain?image=library/app:1&user=bob").text();
    assert!(explained.contains("only from the cache"), "{explained}");
    let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(read(&explained)["upstreams"], serde_json::json!([]), "no registry would be asked");
    let explained = proxy.admin("/explain?image=library/app:1&user=alice").text();
    assert!(!explained.contains("only from the cache"), "{explained}");
    // A change of the rules holds for the next request.
    proxy.reload(|site| site.copy("10-gatekeeper.toml", b"[fill]\naddresses = [\"127.0.0.1\"]\n"));
    assert_eq!(ask("/v2/library/app/manifests/2", &bob).status, 404, "the registry is asked");
}

#[test]
fn containerd_brings_an_image_as_who_is_trusted_and_gets_it_as_anybody_then() {
    let (_fake, image, proxy) = guarded(OPS);
    let containerd = Containerd::start(&proxy.authority());
    let refused = containerd.pull("library/app:1").expect_err("nobody");
    assert!(refused.contains("403") || refused.contains("not in the cache"), "{refused}");
    containerd.pull_as("bob:builder", "library/app:1").expect_err("another user");
    containerd.pull_as("alice:wonder", "library/app:1").unwrap_or_else(|error| panic!("{error}"));
    containerd.remove("library/app:1");
    assert_eq!(containerd.pull("library/app:1"), Ok(image.digest()));
}

#[test]
fn rules_that_cannot_be_read_are_refused_with_their_line() {
    let (_fake, _image, proxy) = guarded(OPS);
    let bad = b"[fill]\naddresses = [\"10.0.0.0/33\"]\n";
    let event = proxy.refusal("gatekeeper", |site| site.copy("10-gatekeeper.toml", bad));
    assert!(event.field("reason").contains("10-gatekeeper.toml:2: \"10.0.0.0/33\""), "{}", event.field("reason"));
}
