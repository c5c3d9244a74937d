//! `tidegate cache`: what it tells, and what it takes out.

use std::fs;
use std::process::Output;

use serde_json::Value;
use tidegate_tests::content::{Content, noise, sha256};
use tidegate_tests::eventually;
use tidegate_tests::fake::Fake;
use tidegate_tests::http::{self, End};
use tidegate_tests::image::Image;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::disk::metric;
use crate::{APP, app_blob, assert_caches, assert_pulls, assert_whole, fake_with_app};

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a verb that succeeds. Gives what it prints.
#[track_caller]
fn says(site: &Site, arguments: &[&str]) -> String {
    let output = site.run_as_is(&[&["cache"], arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", told(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn document(site: &Site, arguments: &[&str]) -> Value {
    let text = says(site, arguments);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
}

/// A proxy with an admin listener that the verbs find, and the app cached.
fn cached() -> (Fake, Image, Proxy) {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).with_fixed_ports().start();
    assert_caches(&proxy, &image);
    (fake, image, proxy)
}

fn size(image: &Image) -> u64 {
    (image.manifest.len() + image.blobs.iter().map(Vec::len).sum::<usize>()) as u64
}

/// Everything in the folder of the cache, with its time: to show that nothing was changed.
fn listing(site: &Site) -> Vec<u8> {
    let output =
        std::process::Command::new("find").arg(site.path("cache")).args(["-printf", "%p %s %T@ %C@\n"]).output();
    output.unwrap().stdout
}

#[test]
fn ls_stat_and_verify_tell_what_is_there_beside_a_proxy_and_without_one_and_change_nothing() {
    let (fake, image, proxy) = cached();
    let other = Image::small("other");
    fake.put_image(&other, "group/other:2");
    assert_whole(&proxy.get("/v2/group/other/manifests/2").fetch(), &other.digest());
    let site = proxy.site().clone();
    assert_tells(&site, &image, &other, true);
    proxy.terminate();
    let before = listing(&site);
    assert_tells(&site, &image, &other, false);
    assert_eq!(String::from_utf8(listing(&site)), String::from_utf8(before));
}

fn assert_tells(site: &Site, image: &Image, other: &Image, running: bool) {
    let table = says(site, &["ls"]);
    let mut lines = table.lines();
    assert!(lines.next().unwrap().starts_with("IMAGE"), "{table}");
    let app =
        table.lines().find(|line| line.starts_with("docker.io/library/app:1 ")).unwrap_or_else(|| panic!("{table}"));
    assert!(app.contains(&image.digest()[..19]) && app.contains(" 5/5 "), "{table}");
    assert!(table.contains("docker.io/group/other:2") && table.contains(" 1/5 "), "{table}");
    for prefix in ["app", "docker.io/library/", "docker.io/library/app:1"] {
        let lines = says(site, &["ls", prefix, "--json"]);
        let entry: Value =
            serde_json::from_str(lines.trim()).unwrap_or_else(|error| panic!("{prefix}: {error}: {lines}"));
        assert_eq!(entry["repository"], "docker.io/library/app");
        assert_eq!((entry["tag"].as_str(), entry["digest"].as_str()), (Some("1"), Some(image.digest().as_str())));
        assert_eq!((entry["size_bytes"].as_u64(), entry["blobs"].as_u64()), (Some(size(image)), Some(5)));
    }
    let stat = document(site, &["stat", "--json"]);
    let bytes = size(image) + other.manifest.len() as u64;
    assert_eq!((stat["blobs"].as_u64(), stat["bytes"].as_u64()), (Some(6), Some(bytes)), "{stat}");
    assert_eq!(
        (stat["tags"].as_u64(), stat["links"].as_u64(), stat["repositories"].as_u64()),
        (Some(2), Some(6), Some(2))
    );
    assert_eq!(stat["running"], running);
    assert!(stat["free_bytes"].as_u64().is_some() && stat["oldest_use_secs"].as_u64() > Some(1_700_000_000), "{stat}");
    assert!(says(site, &["stat"]).contains("min_free"));
    assert!(says(site, &["verify"]).contains("6 blobs of"));
    assert_eq!(document(site, &["verify", "--json"])["wrong"], Value::Array(Vec::new()));
}

#[test]
fn verify_names_what_is_wrong_and_exits_with_1() {
    let (_fake, image, proxy) = cached();
    let site = proxy.site();
    let (digest, file) = (image.layer_digest(1), site.blob_path(&image.layer_digest(1)));
    let mut bytes = fs::read(&file).unwrap();
    bytes[1000] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let output = site.run_as_is(&["cache", "verify"]);
    assert_eq!(output.status.code(), Some(1));
    for word in [digest.as_str(), file.to_str().unwrap(), "docker.io/library/app", &sha256(&bytes)] {
        assert!(told(&output).contains(word), "{word}: {}", told(&output));
    }
    let output = site.run_as_is(&["cache", "verify", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let wrong = serde_json::from_slice::<Value>(&output.stdout).unwrap()["wrong"].clone();
    assert_eq!(wrong[0]["digest"].as_str(), Some(digest.as_str()));
    assert_eq!(wrong[0]["places"][0], "docker.io/library/app");
    assert!(file.exists(), "it changes nothing");
    // The proxy finds it by itself when somebody asks.
    assert_pulls(&proxy, &image);
    eventually("the layer is cached again", || fs::read(&file).is_ok_and(|bytes| sha256(&bytes) == digest));
    says(site, &["verify"]);
}

#[test]
fn what_was_removed_is_asked_for_again_by_the_next_pull() {
    let (fake, image, proxy) = cached();
    let site = proxy.site().clone();
    // Another image of the same repository that shares a layer with it.
    let layer = app_blob(&image.layer_digest(0));
    let manifest =
        String::from_utf8(image.manifest.clone()).unwrap().replace(&image.layer_digest(1), &image.layer_digest(0));
    let shared = Image { manifest: manifest.into_bytes(), blobs: vec![] };
    fake.put_image(&shared, "library/app:2");
    assert_whole(&proxy.get("/v2/library/app/manifests/2").fetch(), &shared.digest());
    let asked = |path: &str| fake.count("GET", path);
    for (target, tag, again, stays) in [
        ("app:1", 1, true, true),
        ("docker.io/library/app", 1, true, false),
        (&*format!("app@{}", image.digest()), 1, true, true),
        (&*image.layer_digest(1), 0, true, true),
    ] {
        let before = (asked(APP), asked(&app_blob(&image.layer_digest(1))), asked(&layer));
        let removed = document(&site, &["rm", target, "--json"]);
        assert!(removed["tags"].as_u64() >= Some(tag) && removed["blobs"].as_u64() > Some(0), "{target}: {removed}");
        assert_caches(&proxy, &image);
        assert_whole(&proxy.get("/v2/library/app/manifests/2").fetch(), &shared.digest());
        assert_eq!(asked(APP) > before.0, tag > 0, "{target}");
        assert_eq!(asked(&app_blob(&image.layer_digest(1))) > before.1, again, "{target}");
        // What the other tag needs stays.
        assert_eq!(asked(&layer) == before.2, stays, "{target}");
    }
    let output = site.run_as_is(&["cache", "rm", "nothing/of/this:1"]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let output = site.run_as_is(&["cache", "rm", "Not An Image"]);
    assert_eq!(output.status.code(), Some(2), "{}", told(&output));
    // The same without a proxy.
    proxy.terminate();
    assert!(says(&site, &["rm", "app"]).contains("removed: 2 tags"));
    assert_eq!(document(&site, &["stat", "--json"])["blobs"], 0);
    assert!(!site.path("cache/links/docker.io").exists(), "no empty folder is left");
    assert_pulls(&site.start(), &image);
}

#[test]
fn a_blob_that_is_removed_while_it_is_read_is_read_to_its_end() {
    let fake = Fake::start();
    let content = Content::noise(70, 40_000_000);
    let path = fake.put_blob("library/app", content.clone());
    let proxy = Site::of(&fake.url()).with_fixed_ports().start();
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    let file = proxy.site().blob_path(&content.digest());
    eventually("the blob is cached", || file.exists());
    let mut client = proxy.get(&path).open().unwrap();
    let read = client.read_some(&mut [0; 100]).unwrap();
    says(proxy.site(), &["rm", &content.digest()]);
    assert!(!file.exists());
    let (rest, end) = client.drain(|offset, piece| assert!(content.holds(read as u64 + offset, piece)));
    assert_eq!((rest + read as u64, end), (content.len(), End::Whole));
}

#[test]
fn gc_removes_what_is_left_over_and_applies_the_limits() {
    let (fake, image, proxy) = cached();
    let site = proxy.site().clone();
    let (without_link, without_blob) = (image.layer_digest(0), image.layer_digest(1));
    let link = |digest: &str| site.path("cache/links/docker.io/library/app/_digests").join(digest.replace(':', "/"));
    let leave = || {
        fs::remove_file(link(&without_link)).unwrap();
        fs::remove_file(site.blob_path(&without_blob)).unwrap();
    };
    leave();
    let removed = document(&site, &["gc", "--json"]);
    assert_eq!((removed["blobs"].as_u64(), removed["links"].as_u64()), (Some(1), Some(1)), "{removed}");
    assert!(!site.blob_path(&without_link).exists() && !link(&without_blob).exists());
    assert_eq!(document(&site, &["gc", "--json"])["blobs"], 0);
    assert_caches(&proxy, &image);
    assert_eq!(metric(&proxy, "cache_blobs"), 5);
    proxy.terminate();
    leave();
    // A blob that the index does not know is found as well.
    let stray = noise(9, 500);
    fs::write(site.blob_path(&sha256(&stray)), &stray).unwrap();
    fs::remove_file(site.path("cache/index.redb")).unwrap();
    assert_eq!(document(&site, &["gc", "--json"])["blobs"], 2);
    assert!(!site.blob_path(&sha256(&stray)).exists());
    let small = site.cache("max_size = \"150kB\"");
    assert!(small.run(&["cache", "gc"]).status.success());
    let left: u64 = small.blobs().iter().map(|(_, size)| size).sum();
    assert!(left <= 150_000, "{left}");
    assert_pulls(&small.start(), &image);
    assert!(fake.count("GET", APP) > 0);
}

#[test]
fn a_folder_that_is_not_there_is_no_cache_that_is_right() {
    let site = Site::of("http://127.0.0.1:9").with_fixed_ports();
    for verb in ["ls", "stat", "verify"] {
        let output = site.run(&["cache", verb]);
        assert_eq!(output.status.code(), Some(1), "{verb}: {}", told(&output));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("there is no cache folder"), "{verb}: {said}");
        assert!(!site.path("cache").exists(), "a look made a cache");
    }
}

#[test]
fn a_page_of_another_site_changes_nothing() {
    let (_fake, image, proxy) = cached();
    let url = |path: &str| {
        let admin = proxy.process().out.since(0);
        let admin = admin.iter().find_map(|line| line.strip_prefix("admin on ")).unwrap().to_owned();
        format!("{admin}{path}")
    };
    let post = |path: &str| http::method("POST", &url(path)).field("Content-Length", "0");
    assert_eq!(post("/cache/gc").fetch().status, 403);
    assert_eq!(post("/cache/rm?image=app").field("Content-Type", "text/plain").fetch().status, 403);
    let refused = http::get(&url("/cache/gc")).field("X-Tidegate", "1").fetch();
    assert_eq!((refused.status, refused.fields.get("Allow")), (405, Some("POST")));
    assert_eq!(post("/cache/rm?image=NO").field("X-Tidegate", "1").fetch().status, 400);
    assert_eq!(post("/cache/other").field("X-Tidegate", "1").fetch().status, 404);
    // Nor is the question answered that a browser asks before it sends such a header.
    assert_eq!(http::method("OPTIONS", &url("/cache/gc")).fetch().status, 405);
    assert_eq!(proxy.site().blobs().len(), image.blobs.len() + 1);
    assert_eq!(post("/cache/rm?image=app").field("X-Tidegate", "1").fetch().status, 200);
    assert_eq!(proxy.site().blobs(), []);
    let state: Value = serde_json::from_str(&proxy.admin("/cache").text()).unwrap();
    assert_eq!((state["blobs"].as_u64(), state["incomplete"].as_bool()), (Some(0), Some(false)));
}
