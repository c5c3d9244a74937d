//! What plugins say of how fresh a tag must be.

use tidegate_tests::fake::Act;
use tidegate_tests::fake::Reply;
use tidegate_tests::image::Image;
use tidegate_tests::site::Site;

use crate::{APP, assert_caches, assert_pulls, assert_whole, fake_with_app, tell, with_puppet, with_puppet_at};

#[test]
fn a_copy_is_served_however_old_where_a_plugin_says_so() {
    let (fake, image) = fake_with_app();
    let site = Site::of(&fake.url()).cache("tag_ttl = \"0s\"").cache("max_stale = \"0s\"");
    let proxy = with_puppet_at(site, "freshness = \"serve\"");
    // There is no copy yet.
    assert_caches(&proxy, &image);
    fake.put_image(&Image::small("moved"), "library/app:1");
    let asked = fake.seen().len();
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    assert_eq!(fake.seen().len(), asked, "nobody was asked");
}

#[test]
fn a_tag_is_asked_for_again_where_a_plugin_says_so() {
    let (fake, image) = fake_with_app();
    let proxy = with_puppet(&fake, "");
    assert_pulls(&proxy, &image);
    let moved = Image::small("moved");
    fake.put_image(&moved, "library/app:1");
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    tell(&proxy, "freshness = \"revalidate\"");
    assert_whole(&proxy.get(APP).fetch(), &moved.digest());
    // With its registry gone, the copy is as good as ever.
    fake.always(APP, Act::Reply(Reply::status(503)));
    for blob in &moved.blobs {
        proxy.get(&format!("/v2/library/app/blobs/{}", tidegate_tests::content::sha256(blob))).fetch();
    }
    assert_whole(&proxy.get(APP).fetch(), &moved.digest());
}

#[test]
fn a_pinned_tag_stays_wherever_it_points() {
    let (fake, image) = fake_with_app();
    let moved = Image::small("moved");
    fake.put_image(&moved, "library/app:1");
    fake.put_image(&image, "library/app:old");
    let proxy = with_puppet(&fake, &format!("freshness = \"{}\"", image.digest()));
    let answer = proxy.get(APP).fetch();
    assert_whole(&answer, &image.digest());
    assert_eq!(answer.fields.get("docker-content-digest"), Some(image.digest().as_str()));
    assert_eq!(fake.count("GET", APP), 0);
    tell(&proxy, "");
    assert_whole(&proxy.get(APP).fetch(), &moved.digest());
    // What cannot be had is not replaced by something else.
    tell(&proxy, &format!("freshness = \"sha256:{}\"", "0".repeat(64)));
    assert_eq!(proxy.get(APP).fetch().status, 404);
    // And what is no digest is no answer.
    tell(&proxy, "freshness = \"sha256:nonsense\"");
    let answer = proxy.get(APP).fetch();
    assert_eq!(answer.status, 403);
    assert!(answer.message().contains("pins the digest `sha256:nonsense`, which is none"), "{}", answer.message());
}

#[test]
fn a_plugin_is_told_of_the_copy() {
    let (fake, image) = fake_with_app();
    let proxy = with_puppet(&fake, "admission = \"log\"");
    let judged = |cached: &str| format!("judges docker.io/library/app:1: {cached}");
    assert_pulls(&proxy, &image);
    proxy.wait(proxy.beginning(), &judged("nothing"), &[("plugin", "puppet")]);
    proxy.get(APP).fetch();
    proxy.wait(proxy.beginning(), &judged(&image.digest()), &[("plugin", "puppet")]);
}
