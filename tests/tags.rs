//! How long a tag holds.

use std::fs;
use std::path::PathBuf;

use tidegate_tests::fake::{Act, Reply};
use tidegate_tests::image::Image;
use tidegate_tests::site::Site;

use crate::{APP, assert_caches, assert_whole, fake_with_app};

/// The files that say what the tag stands for, and when its registry was asked.
fn entries(site: &Site) -> Vec<PathBuf> {
    let folder = site.path("cache/links/docker.io/library/app/_tags/1");
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Makes it so that the registry was asked `secs` seconds ago, for a mirror that looks at the disk each time.
fn age(site: &Site, secs: u64) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for path in entries(site) {
        let mut entry: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        entry["checked_at_secs"] = (now - secs).into();
        fs::write(path, entry.to_string()).unwrap();
    }
}

#[test]
fn i7_a_tag_is_served_stale_however_old_unless_a_limit_is_set() {
    let year = 365 * 24 * 3600;
    for (line, old, served) in [
        ("", year, true),
        ("max_stale = \"unlimited\"", year, true),
        ("max_stale = \"1d\"", 3600, true),
        ("max_stale = \"1d\"", 25 * 3600, false),
    ] {
        let (fake, image) = fake_with_app();
        let site = Site::of(&fake.url()).cache(&format!("recheck = \"0s\"\n{line}"));
        let proxy = site.start();
        assert_caches(&proxy, &image);
        age(&site, old);
        fake.stop();
        let answer = proxy.get(APP).fetch();
        if served {
            assert_whole(&answer, &image.digest());
        } else {
            assert_eq!(answer.status, 502, "{line}: {}", answer.text());
            assert!(answer.message().contains("max_stale"), "{}", answer.message());
        }
        // What is asked for by digest never expires.
        let by_digest = format!("/v2/library/app/manifests/{}", image.digest());
        assert_whole(&proxy.get(&by_digest).fetch(), &image.digest());
    }
}

#[test]
fn tag_times_are_those_of_the_registry() {
    let (fake, image) = fake_with_app();
    let own = "tag_ttl = \"1h\"\nmax_stale = \"2h\"";
    let site = Site::new().registry("docker.io", &fake.url(), own).cache("tag_ttl = \"0s\"\nrecheck = \"0s\"");
    let proxy = site.start();
    assert_caches(&proxy, &image);
    let asked = || fake.count("HEAD", APP);
    age(&site, 1800);
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    assert_eq!(asked(), 0, "it holds for an hour");
    age(&site, 5400);
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    assert_eq!(asked(), 1);
    fake.stop();
    age(&site, 5400);
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    age(&site, 10_000);
    assert_eq!(proxy.get(APP).fetch().status, 502);
}

#[test]
fn u10_a_429_is_answered_with_the_copy_that_is_there() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).cache("tag_ttl = \"0s\"").start();
    assert_caches(&proxy, &image);
    fake.always(APP, Act::Reply(Reply::status(429).field("Retry-After", "5")));
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    assert_eq!((fake.count("GET", APP), fake.count("HEAD", APP)), (1, 1), "it is not asked again and again");
}

#[test]
fn t1_a_clock_that_jumps_makes_no_tag_unusable() {
    let (fake, image) = fake_with_app();
    let site = Site::of(&fake.url()).cache("recheck = \"0s\"");
    let proxy = site.start();
    assert_caches(&proxy, &image);
    // Asked an hour from now, as after a clock that went back: nobody knows its age, so that its registry is asked.
    for path in entries(&site) {
        let text = fs::read_to_string(&path).unwrap();
        let mut entry: serde_json::Value = serde_json::from_str(&text).unwrap();
        entry["checked_at_secs"] = (entry["checked_at_secs"].as_u64().unwrap() + 3600).into();
        fs::write(path, entry.to_string()).unwrap();
    }
    fake.stop();
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    fake.restart();
    for _ in 0..3 {
        assert_whole(&proxy.get(APP).fetch(), &image.digest());
    }
    assert_eq!((fake.count("GET", APP), fake.count("HEAD", APP)), (1, 1));
    // As after a clock that went on by a year: it is asked for again once, and found to hold.
    age(&site, 365 * 24 * 3600);
    for _ in 0..3 {
        assert_whole(&proxy.get(APP).fetch(), &image.digest());
    }
    assert_eq!((fake.count("GET", APP), fake.count("HEAD", APP)), (1, 2));
}

#[test]
fn a_tag_that_has_moved_is_fetched_again() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).cache("tag_ttl = \"0s\"").start();
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    let other = Image::small("other");
    fake.put_image(&other, "library/app:1");
    assert_whole(&proxy.get(APP).fetch(), &other.digest());
}
