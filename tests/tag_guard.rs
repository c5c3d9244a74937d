//! The plugin `tag-guard` through the real proxy: what becomes of a tag that moves.

use tidegate_tests::clients;
use tidegate_tests::fake::Fake;
use tidegate_tests::http::Answer;
use tidegate_tests::image::{INDEX, Image};
use tidegate_tests::plugins::tag_guard;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::{APP, assert_pulls, assert_whole, fake_with_app};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn guarded(fake: &Fake, rules: &str) -> Proxy {
    Site::of(&fake.url())
        .cache("tag_ttl = \"0s\"")
        .with([("50-tag-guard.wasm", &tag_guard()), ("50-tag-guard.toml", rules.as_bytes())])
        .start()
}

fn ask(proxy: &Proxy, accept: &[&str]) -> Answer {
    accept.iter().fold(proxy.get(APP), |request, accept| request.field("Accept", accept)).fetch()
}

/// Moves the tag to another image.
fn move_tag(fake: &Fake) -> Image {
    let moved = Image::small("moved");
    fake.put_image(&moved, "library/app:1");
    moved
}

#[test]
fn a_tag_that_moved_is_denied_until_the_operator_accepts_it() {
    let (fake, image) = fake_with_app();
    let proxy = guarded(&fake, "moved = \"deny\"\n");
    assert_pulls(&proxy, &image);
    let moved = move_tag(&fake);
    let mark = proxy.mark();
    let answer = proxy.get(APP).fetch();
    assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"), "{}", answer.text());
    proxy.wait(mark, "request", &[("policy", "tag-guard")]);
    let line = format!("docker.io/library/app:1@{}", moved.digest());
    assert!(answer.message().contains(&image.digest()) && answer.message().contains(&line), "{}", answer.message());
    let told = proxy.log().lines().filter(|line| line.contains("to accept it, write")).count();
    assert_eq!(told, 1, "{}", proxy.log());
    // Who asks by digest knows what it asks for.
    assert_whole(&proxy.get(&format!("/v2/library/app/manifests/{}", moved.digest())).fetch(), &moved.digest());
    let rules = format!("moved = \"deny\"\naccept = [\"{line}\"]\n");
    proxy.reload(|site| site.copy("50-tag-guard.toml", rules.as_bytes()));
    assert_whole(&proxy.get(APP).fetch(), &moved.digest());
    // It is what the tag stands for from now on, also across a restart.
    let (site, _) = proxy.terminate();
    site.copy("50-tag-guard.toml", b"moved = \"deny\"\n");
    let proxy = site.start();
    assert_whole(&proxy.get(APP).fetch(), &moved.digest());
    fake.put_image(&image, "library/app:1");
    assert_eq!(proxy.get(APP).fetch().status, 403);
}

#[test]
fn a_move_is_warned_of_where_that_is_asked_for() {
    let (fake, image) = fake_with_app();
    let proxy = guarded(&fake, "moved = \"deny\"\n[[rule]]\nimages = [\"docker.io/library/*\"]\nmoved = \"warn\"\n");
    assert_pulls(&proxy, &image);
    let moved = move_tag(&fake);
    let answer = proxy.get(APP).fetch();
    assert_whole(&answer, &moved.digest());
    let warning = answer.fields.get("Warning").expect("a warning");
    assert!(warning.contains("299") && warning.contains("docker.io/library/app:1 moved"), "{warning}");
    let metrics = proxy.admin("/metrics").text();
    let line = "tidegate_policy_tag_guard_moved_total{reaction=\"warned of\",plugin=\"tag-guard\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn a_pinned_tag_stays_where_it_was_for_every_client() {
    let (fake, image) = fake_with_app();
    let proxy = guarded(&fake, "moved = \"pin\"\n");
    assert_pulls(&proxy, &image);
    let moved = move_tag(&fake);
    for client in clients::all(&proxy.authority()) {
        assert_eq!(client.pull("library/app:1").as_ref(), Ok(&image.digest()), "{}", client.name());
    }
    let accepted = format!("moved = \"pin\"\naccept = [\"docker.io/library/app:1@{}\"]\n", moved.digest());
    proxy.reload(|site| site.copy("50-tag-guard.toml", accepted.as_bytes()));
    assert_whole(&proxy.get(APP).fetch(), &moved.digest());
}

#[test]
fn what_a_registry_chooses_from_the_index_for_an_old_client_is_no_move() {
    let fake = Fake::start();
    let (one, two) = (Image::small("one"), Image::small("two"));
    let index = fake.put_index(&[(&one, "linux/amd64"), (&two, "linux/arm64")], "library/app:1");
    let proxy = guarded(&fake, "moved = \"deny\"\n");
    assert_whole(&ask(&proxy, &[INDEX, MANIFEST]), &index);
    // What it would give to a client that takes no index.
    fake.put(APP, MANIFEST, one.manifest.clone().into());
    assert_whole(&ask(&proxy, &[MANIFEST]), &one.digest());
    let stranger = Image::small("stranger");
    fake.put_image(&stranger, "library/app:1");
    assert_eq!(ask(&proxy, &[MANIFEST]).status, 403);
}

#[test]
fn tags_that_are_meant_to_move_may_move() {
    let (fake, image) = fake_with_app();
    let proxy = guarded(&fake, "moved = \"deny\"\n");
    let path = "/v2/library/app/manifests/1.2-nightly";
    fake.put_image(&image, "library/app:1.2-nightly");
    assert_whole(&proxy.get(path).fetch(), &image.digest());
    let moved = Image::small("moved");
    fake.put_image(&moved, "library/app:1.2-nightly");
    assert_whole(&proxy.get(path).fetch(), &moved.digest());
}
