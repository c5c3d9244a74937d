//! The plugin `cooldown` through the real proxy: new images are held, by every name, until their days are over.

use tidegate_tests::clients;
use tidegate_tests::clock::{set_clock, with_clock};
use tidegate_tests::eventually;
use tidegate_tests::fake::Fake;
use tidegate_tests::http::Answer;
use tidegate_tests::image::{INDEX, Image};
use tidegate_tests::plugins::cooldown;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::{APP, assert_pulls, assert_whole, fake_with_app};

fn site(fake: &Fake, rules: &str) -> Site {
    Site::of(&fake.url())
        .cache("tag_ttl = \"0s\"")
        .with([("30-cooldown.wasm", &cooldown()), ("30-cooldown.toml", rules.as_bytes())])
}

fn ask(proxy: &Proxy, path: &str) -> Answer {
    proxy.get(path).field("Accept", INDEX).field("Accept", "application/vnd.oci.image.manifest.v1+json").fetch()
}

#[track_caller]
fn assert_held(answer: &Answer) -> u64 {
    assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"), "{}", answer.text());
    assert!(answer.message().contains("is held until"), "{}", answer.message());
    answer.fields.get("Retry-After").expect("when to come again").parse().expect("seconds")
}

#[test]
fn a_new_image_is_held_also_across_a_restart_and_released_when_its_days_are_over() {
    let (fake, image) = fake_with_app();
    let Some(site) = with_clock(site(&fake, "days = 2\n")) else { return };
    let proxy = site.start();
    let by_digest = format!("/v2/library/app/manifests/{}", image.digest());
    assert_eq!(assert_held(&proxy.get(APP).fetch()), 86_400, "the longest that a client is sent away for");
    assert_eq!(proxy.head(APP).fetch().status, 403);
    assert_held(&proxy.get(&by_digest).fetch());
    set_clock(proxy.site(), "+47h");
    let left = assert_held(&proxy.get(APP).fetch());
    assert!((3500..=3600).contains(&left), "{left}");
    let (site, _) = proxy.terminate();
    let proxy = site.start();
    assert!((3500..=3600).contains(&assert_held(&proxy.get(&by_digest).fetch())));
    proxy.reload(|site| site.copy("30-cooldown.toml", b"days = 3"));
    assert_held(&proxy.get(APP).fetch());
    proxy.reload(|site| site.copy("30-cooldown.toml", b"days = 2"));
    set_clock(proxy.site(), "+2d");
    assert_pulls(&proxy, &image);
    // The tag moves to an image that is new.
    let newer = Image::small("newer");
    fake.put_image(&newer, "library/app:1");
    assert_held(&proxy.get(APP).fetch());
    assert_whole(&proxy.get(&by_digest).fetch(), &image.digest());
    let metrics = proxy.admin("/metrics").text();
    let line = "tidegate_policy_cooldown_first_seen_total{plugin=\"cooldown\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn an_image_is_as_old_as_the_index_that_lists_it() {
    let fake = Fake::start();
    let (one, two) = (Image::small("one"), Image::small("two"));
    let index = fake.put_index(&[(&one, "linux/amd64"), (&two, "linux/arm64")], "library/app:1");
    let Some(site) = with_clock(site(&fake, "days = 2\n")) else { return };
    let proxy = site.start();
    assert_held(&ask(&proxy, APP));
    set_clock(proxy.site(), "+2d");
    assert_whole(&ask(&proxy, APP), &index);
    for image in [&one, &two] {
        let path = format!("/v2/library/app/manifests/{}", image.digest());
        assert_whole(&ask(&proxy, &path), &image.digest());
    }
}

#[test]
fn what_it_takes_down_in_shadow_mode_counts_once_it_is_enforced() {
    let (fake, image) = fake_with_app();
    let site = site(&fake, "days = 2\n").with([("30-cooldown.settings.toml", b"mode = \"shadow\"")]);
    let Some(site) = with_clock(site) else { return };
    let proxy = site.start();
    assert_pulls(&proxy, &image);
    eventually("the shadow has decided", || {
        proxy.admin("/metrics").text().contains("tidegate_policy_cooldown_first_seen_total{plugin=\"cooldown\"} 1")
    });
    set_clock(proxy.site(), "+2d");
    proxy.reload(|site| site.copy("30-cooldown.settings.toml", b"mode = \"enforce\""));
    assert_pulls(&proxy, &image);
    let newer = Image::small("newer");
    fake.put_image(&newer, "library/app:1");
    assert_held(&proxy.get(APP).fetch());
}

#[test]
fn an_excepted_tag_is_pulled_by_every_client_and_another_by_none() {
    let fake = Fake::start();
    let (here, there) = (Image::small("here"), Image::small("there"));
    fake.put_index(&[(&here, "linux/amd64"), (&there, "linux/arm64")], "library/app:1");
    fake.put_index(&[(&there, "linux/amd64")], "library/app:2");
    let proxy = site(&fake, "days = 7\nask = \"#images\"\nexcept = [\"docker.io/library/app:1\"]\n").start();
    for client in clients::all(&proxy.authority()) {
        assert!(client.pull("library/app:1").is_ok(), "{}", client.name());
        let error = client.pull("library/app:2").expect_err(client.name());
        assert!(["denied", "403", "DENIED"].iter().any(|word| error.contains(word)), "{}: {error}", client.name());
    }
    let answer = ask(&proxy, "/v2/library/app/manifests/2");
    assert_held(&answer);
    assert!(answer.message().contains("to have it now, ask #images for"), "{}", answer.message());
}
