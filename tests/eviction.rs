//! What goes when there is no room, what stays, and what a million blobs cost.

use std::fs::{self};
use std::path::Path;
use std::process::Command;

use tidegate_tests::content::{Content, sha256};
use tidegate_tests::eventually;
use tidegate_tests::fake::{Act, Fake};
use tidegate_tests::http::End;
use tidegate_tests::image::Image;
use tidegate_tests::process::run;
use tidegate_tests::program::tidegate;
use tidegate_tests::site::Site;

use crate::disk::{MB, cache, metric, put};
use crate::{assert_caches, assert_pulls, assert_whole, proxied};

#[test]
fn d8_what_was_not_used_for_the_longest_time_goes_first_also_after_a_start() {
    let fake = Fake::start();
    let blobs: Vec<_> = (0..5).map(|seed| put(&fake, 800 + seed, MB)).collect();
    let site = Site::of(&fake.url()).cache("max_size = \"3MB\"");
    let proxy = site.start();
    let kept = || blobs.iter().map(|(digest, _)| site.blob_path(digest).exists()).collect::<Vec<_>>();
    for blob in [&blobs[0], &blobs[1], &blobs[2], &blobs[0], &blobs[3]] {
        cache(&proxy, blob);
    }
    assert_eq!(kept(), [true, false, true, true, false]);
    assert_eq!((metric(&proxy, "cache_blobs"), metric(&proxy, "cache_size_bytes")), (3, 3 * MB));
    proxy.terminate();
    let proxy = site.start();
    assert_eq!((metric(&proxy, "cache_blobs"), metric(&proxy, "cache_size_bytes")), (3, 3 * MB));
    cache(&proxy, &blobs[4]);
    assert_eq!(kept(), [true, false, false, true, true]);
    // A manifest counts as any blob does, and fits like one.
    let image = Image::small("app");
    fake.put_image(&image, "library/app:1");
    assert_pulls(&proxy, &image);
    eventually("the limit holds", || site.blobs().iter().map(|(_, size)| size).sum::<u64>() <= 3 * MB);
}

#[test]
fn d8_a_blob_bigger_than_the_cache_passes_through_without_a_fault() {
    let fake = Fake::start();
    let (small, big) = (put(&fake, 810, 100_000), put(&fake, 811, 3 * MB));
    let site = Site::of(&fake.url()).cache("max_size = \"1MB\"");
    let proxy = site.start();
    cache(&proxy, &small);
    for _ in 0..2 {
        assert_whole(&proxy.get(&big.1).fetch(), &big.0);
    }
    // Nor is it kept when it comes without a length.
    fake.next(&big.1, Act::ServeChunked);
    assert_whole(&proxy.get(&big.1).fetch(), &big.0);
    eventually("no staging file is left", || site.staging().is_empty());
    assert_eq!(site.blobs().len(), 1);
    assert_eq!((metric(&proxy, "cache_faults_total"), metric(&proxy, "cache_evictions_total")), (0, 0));
    assert!(proxy.events(proxy.beginning(), "the cache failed; the pull goes on without it").is_empty());
}

#[test]
fn d8_what_is_being_read_is_not_dropped() {
    let fake = Fake::start();
    let blobs: Vec<_> = (0..2).map(|seed| put(&fake, 820 + seed, 40 * MB)).collect();
    let site = Site::of(&fake.url()).cache("max_size = \"60MB\"");
    let proxy = site.start();
    cache(&proxy, &blobs[0]);
    let file = site.blob_path(&blobs[0].0);
    // More than the sockets hold: the file stays open.
    let mut client = proxy.get(&blobs[0].1).open().unwrap();
    let mut first = [0; 100];
    let read = client.read_some(&mut first).unwrap();
    assert_whole(&proxy.get(&blobs[1].1).fetch(), &blobs[1].0);
    assert!(file.exists() && !site.blob_path(&blobs[1].0).exists());
    let content = Content::noise(820, 40 * MB);
    let (rest, end) = client.drain(|offset, piece| assert!(content.holds(read as u64 + offset, piece)));
    assert_eq!((rest + read as u64, end), (40 * MB, End::Whole));
    // Now nobody reads it any more.
    eventually("the other takes its place", || {
        assert_whole(&proxy.get(&blobs[1].1).fetch(), &blobs[1].0);
        !file.exists() && site.blob_path(&blobs[1].0).exists()
    });
}

#[test]
fn d9_a_start_on_many_blobs_reads_none_and_takes_no_memory_for_them() {
    const MANY: usize = 20_000;
    let fake = Fake::start();
    let site = Site::of(&fake.url());
    let (blobs, links) =
        (site.path("cache/blobs/sha256"), site.path("cache/links/docker.io/library/app/_digests/sha256"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&links).unwrap();
    let content = |at: usize| format!("blob {at}").into_bytes();
    for at in 0..MANY {
        let (bytes, digest) = (content(at), sha256(&content(at)));
        let hex = digest.trim_start_matches("sha256:");
        fs::write(blobs.join(hex), &bytes).unwrap();
        let link = format!(r#"{{"media_type":"application/octet-stream","size":{}}}"#, bytes.len());
        fs::write(links.join(hex), link).unwrap();
    }
    // The first start serves while the index is made, the second has it.
    let proxy = site.start();
    let digest = sha256(&content(MANY - 1));
    assert_whole(&proxy.get(&crate::app_blob(&digest)).fetch(), &digest);
    let found = proxy.wait(proxy.beginning(), "blobs that the index did not know are found", &[]);
    assert!(found.field("found").parse::<usize>().unwrap() >= MANY - 1);
    assert!(proxy.process().memory_bytes("VmRSS") < 64 << 20);
    proxy.terminate();
    let proxy = site.start();
    assert_eq!(metric(&proxy, "cache_blobs"), MANY as u64);
    assert!(proxy.process().memory_bytes("VmRSS") < 48 << 20);
    assert_eq!(proxy.events(proxy.beginning(), "blobs that the index did not know are found").len(), 0);
    assert!(fake.seen().is_empty());
}

#[test]
fn t1_a_clock_that_jumps_expires_nothing_that_is_known_by_its_digest() {
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    if !Path::new(library).exists() {
        println!("not run: there is no libfaketime; to install it: apt-get install faketime");
        return;
    }
    let (fake, image, proxy) = proxied();
    assert_caches(&proxy, &image);
    let (site, _) = proxy.terminate();
    for jump in ["+1y", "-2h", "-1y", "+0"] {
        let site = site
            .clone()
            .variable("LD_PRELOAD", library)
            .variable("FAKETIME", jump)
            .variable("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let asked = fake.seen().len();
        let proxy = site.start();
        for _ in 0..3 {
            assert_pulls(&proxy, &image);
        }
        // At most the tag is asked for, once.
        assert!(fake.seen().len() <= asked + 1, "{jump}: {:?}", &fake.seen()[asked..]);
        assert_eq!(metric(&proxy, "cache_evictions_total"), 0);
        assert!(!proxy.log().contains("panicked"), "{jump}: {}", proxy.log());
        let output = run(Command::new(tidegate()).args(["cache", "stat", "--config"]).arg(site.path("tidegate.toml")));
        assert_eq!(output.status.code(), Some(0));
        proxy.terminate();
    }
}
