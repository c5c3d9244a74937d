//! Many clients, one transfer; bodies that cost no memory.

use std::sync::mpsc;
use std::thread;

use tidegate_tests::content::Content;
use tidegate_tests::fake::{Act, Fake};
use tidegate_tests::gate::Gate;
use tidegate_tests::http::{End, Response};
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;
use tidegate_tests::{HANG, eventually, heavy, plugins};

const MIB: u64 = 1 << 20;
const CLIENTS: usize = 16;

fn stage(len: u64) -> (Fake, Content, String, Proxy) {
    let fake = Fake::start();
    let content = Content::noise(len, len);
    let path = fake.put_blob("library/app", content.clone());
    let proxy = Site::of(&fake.url()).start();
    (fake, content, path, proxy)
}

/// Reads a body to its end, comparing every byte. Says when the first one has come.
fn read(mut response: Response, content: &Content, first: impl FnOnce()) {
    assert_eq!(response.status, 200);
    let mut buffer = vec![0; 64];
    let start = response.read_some(&mut buffer).unwrap();
    assert!(start > 0);
    assert!(content.holds(0, &buffer[..start]));
    first();
    let (rest, end) = response.drain(|offset, piece| {
        assert!(content.holds(start as u64 + offset, piece), "other bytes near {offset}");
    });
    assert_eq!((start as u64 + rest, end), (content.len(), End::Whole));
}

#[test]
fn i4_sixteen_clients_of_a_cold_blob_share_one_transfer_and_have_its_first_byte_before_its_last() {
    let _heavy = heavy();
    let (fake, content, path, proxy) = stage(256 * MIB);
    let gate = Gate::new();
    fake.next(&path, Act::Hold(128 * MIB, gate.clone()));
    let (first, firsts) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let (first, proxy, path, content) = (first.clone(), &proxy, &path, &content);
            scope.spawn(move || read(proxy.get(path).open().unwrap(), content, || first.send(()).unwrap()));
        }
        for client in 0..CLIENTS {
            assert!(firsts.recv_timeout(HANG).is_ok(), "only {client} clients had a byte while the transfer was on");
        }
        gate.wait_reached();
        gate.open();
    });
    assert_eq!(fake.count("GET", &path), 1, "transfers");
    let site = proxy.site();
    eventually("the blob is cached", || site.blobs() == [(site.blob_path(&content.digest()), 256 * MIB)]);
    eventually("nothing is left in staging", || site.staging().is_empty());
}

#[test]
fn i5_resident_memory_stays_under_64_mib_while_sixteen_clients_stream_a_gibibyte() {
    let _heavy = heavy();
    let fake = Fake::start();
    let content = Content::noise(1, 1024 * MIB);
    let path = fake.put_blob("library/app", content.clone());
    let proxy = Site::of(&fake.url())
        .with([
            ("10-allowlist.wasm", &plugins::allowlist()),
            ("10-allowlist.toml", b"block = [\"docker.io/library/blocked\"]"),
            ("20-failover.wasm", &plugins::failover()),
            ("20-failover.toml", b"[[upstream]]\nprefix = \"docker.io\"\nmirrors = []\nsource = \"last\"\n"),
        ])
        .start();
    for temperature in ["cold", "warm"] {
        proxy.process().reset_peak_memory();
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| read(proxy.get(&path).open().unwrap(), &content, || ()));
            }
        });
        let peak = proxy.process().memory_bytes("VmHWM");
        println!("{temperature}: at most {} MiB resident", peak / MIB);
        assert!(peak < 64 * MIB, "{temperature}: {} MiB resident", peak / MIB);
    }
    assert_eq!(fake.count("GET", &path), 1, "transfers");
}

#[test]
fn i4_a_client_that_goes_away_does_not_end_the_transfer() {
    let (fake, content, path, proxy) = stage(8 * MIB);
    let gate = Gate::new();
    fake.next(&path, Act::Hold(4 * MIB, gate.clone()));
    let mut leader = proxy.get(&path).open().unwrap();
    assert!(leader.read_some(&mut [0; 10]).unwrap() > 0);
    let follower = proxy.get(&path).open().unwrap();
    drop(leader);
    gate.wait_reached();
    gate.open();
    read(follower, &content, || ());
    assert_eq!(fake.count("GET", &path), 1);
}

#[test]
fn i4_a_transfer_that_nobody_waits_for_is_finished() {
    let (fake, content, path, proxy) = stage(8 * MIB);
    let gate = Gate::new();
    fake.next(&path, Act::Hold(4 * MIB, gate.clone()));
    let mut leader = proxy.get(&path).open().unwrap();
    assert!(leader.read_some(&mut [0; 10]).unwrap() > 0);
    gate.wait_reached();
    drop(leader);
    gate.open();
    // Either the transfer is still on, and this client joins it, or it is over, and the blob is cached.
    read(proxy.get(&path).open().unwrap(), &content, || ());
    assert_eq!(fake.count("GET", &path), 1);
}

#[test]
fn i5_a_client_that_does_not_read_holds_nobody_up() {
    let (fake, content, path, proxy) = stage(64 * MIB);
    let mut idle = proxy.get(&path).open().unwrap();
    assert!(idle.read_some(&mut [0; 1]).unwrap() > 0);
    read(proxy.get(&path).open().unwrap(), &content, || ());
    assert_eq!(fake.count("GET", &path), 1);
    let (rest, end) = idle.drain(|offset, piece| assert!(content.holds(1 + offset, piece)));
    assert_eq!((rest, end), (64 * MIB - 1, End::Whole));
}

#[test]
fn different_blobs_do_not_wait_for_each_other() {
    let (fake, _, held, proxy) = stage(2 * MIB);
    let other = Content::noise(9, MIB);
    let free = fake.put_blob("library/app", other.clone());
    let gate = Gate::new();
    fake.next(&held, Act::Hold(MIB, gate.clone()));
    let mut leader = proxy.get(&held).open().unwrap();
    assert!(leader.read_some(&mut [0; 10]).unwrap() > 0);
    gate.wait_reached();
    read(proxy.get(&free).open().unwrap(), &other, || ());
    gate.open();
    assert_eq!(leader.finish().end, End::Whole);
}

#[test]
fn i4_sixteen_cold_pulls_of_an_image_bring_each_blob_once() {
    let (fake, image, proxy) = crate::proxied();
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| crate::assert_pulls(&proxy, &image));
        }
    });
    for blob in &image.blobs {
        let path = crate::app_blob(&tidegate_tests::content::sha256(blob));
        assert_eq!(fake.count("GET", &path), 1, "{path}");
    }
}
