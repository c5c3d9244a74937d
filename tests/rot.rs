//! What changes on the disk under the cache: verified again, dropped, fetched again.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use tidegate_tests::content::{Content, noise};
use tidegate_tests::eventually;
use tidegate_tests::fake::Fake;
use tidegate_tests::http::End;
use tidegate_tests::site::Site;

use crate::disk::{MB, cache, flip, metric, put, tick, wait_closed};
use crate::{assert_caches, assert_pulls, assert_whole, proxied};

#[test]
fn d5_what_is_not_what_its_digest_says_is_fetched_again_while_it_is_hot() {
    let fake = Fake::start();
    let blob = put(&fake, 600, MB);
    let proxy = Site::of(&fake.url()).start();
    cache(&proxy, &blob);
    let (digest, path) = &blob;
    let file = proxy.site().blob_path(digest);
    let aside = proxy.site().path("other");
    fs::write(&aside, noise(7, 1_000_000)).unwrap();
    let changes: [(&str, &dyn Fn()); 10] = [
        ("a flipped bit", &|| flip(&file)),
        ("a flipped bit and its old time", &|| {
            let before = fs::metadata(&file).unwrap().modified().unwrap();
            flip(&file);
            File::options().write(true).open(&file).unwrap().set_modified(before).unwrap();
        }),
        ("truncation", &|| File::options().write(true).open(&file).unwrap().set_len(MB / 2).unwrap()),
        ("growth", &|| File::options().append(true).open(&file).unwrap().write_all(b"more").unwrap()),
        ("no length", &|| File::options().write(true).open(&file).unwrap().set_len(0).unwrap()),
        ("another file", &|| _ = fs::copy(&aside, &file).unwrap()),
        ("no file", &|| fs::remove_file(&file).unwrap()),
        ("a folder", &|| {
            fs::remove_file(&file).unwrap();
            fs::create_dir(&file).unwrap();
            fs::write(file.join("inside"), b"x").unwrap();
        }),
        ("a link", &|| {
            fs::remove_file(&file).unwrap();
            std::os::unix::fs::symlink(&aside, &file).unwrap();
        }),
        ("a FIFO", &|| {
            fs::remove_file(&file).unwrap();
            assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
        }),
    ];
    for (at, (name, change)) in changes.iter().enumerate() {
        tick(&file);
        change();
        // A part of it that is not the changed one is no reason to serve it either.
        let part = proxy.get(path).field("Range", "bytes=0-9").fetch();
        assert!(part.status == 206 && Content::noise(600, MB).holds(0, &part.body), "{name}");
        assert_whole(&proxy.get(path).fetch(), digest);
        eventually("the blob is cached again", || {
            fs::symlink_metadata(&file).is_ok_and(|about| about.is_file() && about.len() == MB)
        });
        wait_closed(proxy.process(), &file);
        assert_eq!(fake.count("GET", path), at + 2, "{name}");
    }
    // A socket, and a blob that was found wrong at all: the first six were.
    fs::remove_file(&file).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(&file).ok();
    assert_whole(&proxy.get(path).fetch(), digest);
    assert_eq!(metric(&proxy, "cache_corrupt_total"), 6);
    let told = proxy.events(proxy.beginning(), "a cached file is not what its digest says: removed");
    assert!(told.iter().all(|event| event.field("places") == "docker.io/library/app"), "{told:?}");
}

#[test]
fn d5_a_hundred_clients_of_a_changed_file_hash_it_once_and_fetch_nothing() {
    let fake = Fake::start();
    let blob = put(&fake, 610, 3 * MB);
    let proxy = Site::of(&fake.url()).start();
    cache(&proxy, &blob);
    let (digest, path) = &blob;
    let file = proxy.site().blob_path(digest);
    tick(&file);
    // Its time is another, its content is not.
    File::options().write(true).open(&file).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| assert_whole(&proxy.get(path).fetch(), digest));
        }
    });
    assert_eq!(fake.count("GET", path), 1);
    assert_eq!((metric(&proxy, "cache_verified_total"), metric(&proxy, "cache_corrupt_total")), (1, 0));
}

#[test]
fn d5_what_rotted_while_the_proxy_was_down_is_found_and_a_lost_index_costs_one_look() {
    let (fake, image, proxy) = proxied();
    assert_caches(&proxy, &image);
    let (site, _) = proxy.terminate();
    flip(&site.blob_path(&image.layer_digest(0)));
    let proxy = site.start();
    assert_pulls(&proxy, &image);
    assert_eq!(metric(&proxy, "cache_corrupt_total"), 1);
    let (fetched, layer) = (fake.seen().len(), site.blob_path(&image.layer_digest(0)));
    eventually("the layer is cached again", || layer.exists());
    proxy.terminate();
    // Without its index everything is hashed once, and nothing is fetched.
    fs::remove_file(site.path("cache/index.redb")).unwrap();
    let proxy = site.start();
    for _ in 0..2 {
        assert_pulls(&proxy, &image);
    }
    assert_eq!(metric(&proxy, "cache_verified_total"), image.blobs.len() as u64);
    assert_eq!(fake.seen().len(), fetched);
    eventually("the folders are read", || metric(&proxy, "cache_blobs") == image.blobs.len() as u64 + 1);
}

#[test]
fn d5_a_file_that_is_written_while_it_is_read_is_never_whole() {
    let fake = Fake::start();
    let blob = put(&fake, 620, 60 * MB);
    let proxy = Site::of(&fake.url()).start();
    cache(&proxy, &blob);
    let (digest, path) = &blob;
    let file = proxy.site().blob_path(digest);
    tick(&file);
    // More than the sockets hold: the last byte is not read before the first ones are taken.
    let mut client = proxy.get(path).open().unwrap();
    assert!(client.read_some(&mut [0; 100]).unwrap() > 0);
    let mut end = File::options().write(true).open(&file).unwrap();
    end.seek(SeekFrom::End(-10)).unwrap();
    end.write_all(b"0123456789").unwrap();
    drop(end);
    assert_ne!(client.finish().end, End::Whole);
    assert_whole(&proxy.get(path).fetch(), digest);
}

#[test]
fn d5_the_scrub_finds_what_nobody_asks_for_and_drops_old_links() {
    let (fake, image, proxy) = proxied();
    assert_caches(&proxy, &image);
    let (site, _) = proxy.terminate();
    let layer = site.blob_path(&image.layer_digest(0));
    flip(&layer);
    let links = site.path("cache/links/docker.io/library");
    let (old, new) = (links.join("old/_digests/sha256"), links.join("new/_digests/sha256"));
    for folder in [&old, &new] {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("a".repeat(64)), br#"{"media_type":"x","size":1}"#).unwrap();
    }
    let long_ago = SystemTime::now() - Duration::from_hours(31 * 24);
    File::options().write(true).open(old.join("a".repeat(64))).unwrap().set_modified(long_ago).unwrap();
    let proxy = site.cache("scrub = \"1s\"").start();
    let removed = proxy.wait(proxy.beginning(), "a cached file is not what its digest says: removed", &[]);
    assert_eq!(
        (removed.field("digest"), removed.field("places").as_str()),
        (image.layer_digest(0), "docker.io/library/app")
    );
    eventually("a round has ended", || metric(&proxy, "cache_scrub_rounds_total") > 0);
    assert_eq!(metric(&proxy, "cache_corrupt_total"), 1);
    assert!(metric(&proxy, "cache_scrubbed_bytes_total") >= image.blobs.iter().map(Vec::len).sum::<usize>() as u64);
    assert!(!layer.exists() && !links.join("old").exists() && new.exists());
    assert_pulls(&proxy, &image);
    assert_eq!(fake.count("GET", &crate::app_blob(&image.layer_digest(0))), 2);
}
