//! Transfers of blobs that break, that nobody waits for, or that the disk does not take.

use std::thread;

use tidegate_tests::content::Content;
use tidegate_tests::disk::Disk;
use tidegate_tests::fake::{Act, Fake};
use tidegate_tests::gate::Gate;
use tidegate_tests::http::End;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;
use tidegate_tests::{eventually, heavy};

use crate::{assert_never_wrong, assert_whole};

const MIB: u64 = 1 << 20;

fn stage(size: u64, limits: &str) -> (Fake, Content, String, Proxy) {
    let fake = Fake::start();
    let content = Content::noise(17, size);
    let path = fake.put_blob("library/app", content.clone());
    let proxy = Site::of(&fake.url()).limits(limits).start();
    (fake, content, path, proxy)
}

const ORPHANED: &str = "a transfer that nobody waits for is ended; what has come is kept for the next one";

/// Reads the beginning of a blob, and leaves. Waits until its transfer has been given up.
fn begin_and_leave(fake: &Fake, proxy: &Proxy, path: &str, gate: &Gate, after: u64) {
    fake.next(path, Act::Hold(after, gate.clone()));
    let mark = proxy.mark();
    let mut client = proxy.get(path).open().unwrap();
    assert!(client.read_some(&mut [0; 100]).unwrap() > 0);
    gate.wait_reached();
    client.reset();
    proxy.wait(mark, ORPHANED, &[]);
}

#[test]
fn c1_a_big_transfer_that_nobody_waits_for_is_ended_and_gone_on_with() {
    let _heavy = heavy();
    let (fake, content, path, proxy) = stage(80 * MIB, "orphan_time = \"10ms\"");
    let gate = Gate::new();
    begin_and_leave(&fake, &proxy, &path, &gate, 20 * MIB);
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    gate.open();
    let ranges: Vec<_> = fake.seen().iter().map(|seen| seen.fields.get("Range").map(str::to_owned)).collect();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    let from =
        ranges[1].as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<u64>().ok());
    // What had come is not asked for again; what was on its way may be.
    assert!(from.is_some_and(|from| from > 15 * MIB && from <= 20 * MIB), "{ranges:?}");
    eventually("the blob is cached", || proxy.site().blobs().len() == 1);
    eventually("nothing is left in staging", || proxy.site().staging().is_empty());
}

#[test]
fn c1_a_transfer_is_finished_that_is_past_its_half() {
    let _heavy = heavy();
    let (fake, content, path, proxy) = stage(80 * MIB, "orphan_time = \"10ms\"");
    let gate = Gate::new();
    fake.next(&path, Act::Hold(60 * MIB, gate.clone()));
    let mut client = proxy.get(&path).open().unwrap();
    assert!(client.read_some(&mut [0; 100]).unwrap() > 0);
    gate.wait_reached();
    eventually("the proxy has what was sent", || {
        let metrics = proxy.admin("/metrics").text();
        let count = metrics.lines().find_map(|line| {
            line.strip_prefix("tidegate_upstream_received_bytes_total{registry=\"docker.io\"} ")?.parse::<u64>().ok()
        });
        count.is_some_and(|count| count >= 50 * MIB)
    });
    client.reset();
    gate.open();
    eventually("the blob is cached", || proxy.site().blobs().len() == 1);
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    assert_eq!(fake.count("GET", &path), 1);
}

#[test]
fn c1_transfers_that_nobody_waits_for_are_few() {
    // Small enough to be finished, but none may go on without a reader.
    let (fake, content, path, proxy) = stage(2 * MIB, "orphan_time = \"10ms\"\norphan_fills = 0");
    let gate = Gate::new();
    begin_and_leave(&fake, &proxy, &path, &gate, MIB);
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    gate.open();
}

#[test]
fn i3_a_kept_beginning_that_is_wrong_is_made_good() {
    let (fake, content, path, proxy) = stage(32 * MIB, "orphan_time = \"10ms\"\norphan_fills = 0");
    let gate = Gate::new();
    // Nearly half of a blob of other bytes, more than sockets take for a client that is gone; the registry is mended
    // meanwhile.
    fake.next(&path, Act::LieAndHold(content.corrupted(), 15 * MIB, gate.clone()));
    let mark = proxy.mark();
    let mut client = proxy.get(&path).open().unwrap();
    assert!(client.read_some(&mut [0; 100]).unwrap() > 0);
    gate.wait_reached();
    client.reset();
    proxy.wait(mark, ORPHANED, &[]);
    gate.open();
    // The one who gets some of the wrong bytes is never given a whole; then the right ones are there.
    assert_never_wrong(&proxy.get(&path).fetch(), &content.digest());
    eventually("the right blob is cached", || proxy.site().blobs().len() == 1);
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
}

#[test]
fn u1_an_upstream_that_is_started_anew_in_the_middle_is_found_again() {
    let (fake, content, path, proxy) = stage(3 * MIB, "");
    let gate = Gate::new();
    fake.next(&path, Act::Hold(MIB / 2, gate.clone()));
    let mut client = proxy.get(&path).open().unwrap();
    let mut first = vec![0; 1000];
    let taken = client.read_some(&mut first).unwrap() as u64;
    gate.wait_reached();
    let mark = proxy.mark();
    fake.stop();
    gate.open();
    proxy.wait(mark, "upstream attempt failed", &[("reason", "the body ended early")]);
    fake.restart();
    let (rest, end) = client.drain(|offset, piece| assert!(content.holds(taken + offset, piece)));
    assert_eq!((taken + rest, end), (3 * MIB, End::Whole));
}

#[test]
fn u7_bodies_without_a_length_that_are_cut_are_never_whole() {
    let size = 2 * MIB;
    // So little that no number of attempts brings all of it.
    for act in [Act::ChunkedCloseAfter(size / 16), Act::UntilClose(size / 2), Act::UntilClose(size - 1)] {
        let (fake, content, path, proxy) = stage(size, "");
        fake.always(&path, act.clone());
        let answer = proxy.get(&path).fetch();
        assert_never_wrong(&answer, &content.digest());
        assert_eq!(proxy.site().blobs(), [], "{act:?}");
        fake.always(&path, Act::UntilClose(size));
        assert_whole(&proxy.get(&path).fetch(), &content.digest());
    }
}

#[test]
fn d1_a_disk_that_fills_in_the_middle_of_a_blob_fails_no_pull() {
    let fake = Fake::start();
    let content = Content::noise(23, 9 * MIB);
    let path = fake.put_blob("library/app", content.clone());
    let site = Site::of(&fake.url());
    let Some(_disk) = Disk::tmpfs(site.path("cache"), "size=4m") else { return };
    let proxy = site.start();
    // Nobody knows how long it will be, so that no space can be reserved.
    fake.always(&path, Act::ServeChunked);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_whole(&proxy.get(&path).fetch(), &content.digest()));
        }
    });
    // What goes past the cache is verified to its beginning, which came by way of the disk.
    fake.always(&path, Act::ServeChunkedLie(content.corrupted()));
    assert_never_wrong(&proxy.get(&path).fetch(), &content.digest());
    assert_eq!(site.blobs(), []);
    eventually("nothing is left in staging", || site.staging().is_empty());
}

#[test]
fn d1_ranges_are_right_on_a_full_disk() {
    let fake = Fake::start();
    let content = Content::noise(29, 6 * MIB);
    let path = fake.put_blob("library/app", content.clone());
    let site = Site::of(&fake.url());
    let Some(_disk) = Disk::tmpfs(site.path("cache"), "size=4m") else { return };
    let proxy = site.start();
    for range in ["bytes=0-99", "bytes=5000000-", "bytes=5000000-5000009,-1"] {
        let answer = proxy.get(&path).field("Range", range).fetch();
        // The whole is what a client must be ready for.
        assert_whole(&answer, &content.digest());
    }
}
