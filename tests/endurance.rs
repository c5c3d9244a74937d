//! What `make faults` does for long, in short: kills, resets, crowds and a soak, each with what was lost: nothing.

use std::time::Duration;

use tidegate_tests::content::Content;
use tidegate_tests::fake::Fake;
use tidegate_tests::http::{End, Response};
use tidegate_tests::proxy::Proxy;
use tidegate_tests::rounds::{self, Ledger};
use tidegate_tests::site::Site;
use tidegate_tests::{heavy, raise_descriptor_limit};

const MIB: u64 = 1 << 20;
/// The same each time: a test that fails fails again.
const SEED: u64 = 2026;

#[track_caller]
fn assert_nothing_lost(ledger: &Ledger) {
    assert!(ledger.close(), "{}", ledger.table());
}

#[test]
fn d3_ten_kills_during_pulls_lose_nothing() {
    let ledger = rounds::kills(10, SEED);
    assert_nothing_lost(&ledger);
    assert_eq!(ledger.done("kills"), 10);
    assert!(ledger.done("files of the cache verified") > 0, "{}", ledger.table());
}

#[test]
fn c1_fifty_clients_that_go_away_take_nothing_with_them() {
    let ledger = rounds::resets(50, SEED);
    assert_nothing_lost(&ledger);
    assert_eq!(ledger.done("clients that stayed and got all"), 10);
    assert!(ledger.done("clients that reset") > 10, "{}", ledger.table());
}

#[test]
fn c4_a_hundred_clients_of_one_cold_blob_share_one_transfer() {
    let _heavy = heavy();
    assert_nothing_lost(&rounds::crowd(100, 4 * MIB));
}

#[test]
fn c4_a_thousand_clients_of_one_cold_blob_share_one_transfer() {
    let _heavy = heavy();
    let ledger = rounds::crowd(1000, MIB);
    assert_nothing_lost(&ledger);
    assert_eq!(ledger.done("bodies that came whole and right"), 1000);
}

#[test]
fn c4_a_thousand_open_ranges_of_one_cold_blob_are_few_transfers() {
    let _heavy = heavy();
    let ledger = rounds::ranges(1000, 64 * MIB);
    assert_nothing_lost(&ledger);
    assert_eq!(ledger.done("pieces that came right"), 1000);
}

#[test]
fn t4_a_load_under_a_memory_limit_ends_no_pull() {
    let _heavy = heavy();
    match rounds::load_under_a_limit(256 * MIB) {
        Ok(ledger) => assert_nothing_lost(&ledger),
        Err(reason) => println!("not tried: {reason}"),
    }
}

#[test]
fn a_soak_of_five_seconds_leaves_all_as_it_was() {
    let _heavy = heavy();
    let ledger = rounds::soak(Duration::from_secs(5), SEED);
    assert_nothing_lost(&ledger);
    for what in ["cold bodies that came whole and right", "warm pulls", "ranges that came whole and right"] {
        assert!(ledger.done(what) > 0, "{what}: {}", ledger.table());
    }
}

fn stage(len: u64) -> (Fake, Content, String, Proxy) {
    raise_descriptor_limit();
    let fake = Fake::start();
    let content = Content::noise(len, len);
    let path = fake.put_blob("library/app", content.clone());
    // A loaded machine may need longer to bring a thousand clients than a client may take nothing.
    let proxy = Site::of(&fake.url()).log("access = false").limits("write_stall = \"10m\"").start();
    (fake, content, path, proxy)
}

#[test]
fn i5_a_thousand_connections_take_less_than_128_mib() {
    let _heavy = heavy();
    let (fake, content, path, proxy) = stage(64 * MIB);
    // All of them in the middle of a body, none reading: what waits for them waits in their sockets and in the file.
    let mut clients: Vec<Response> = Vec::new();
    for _ in 0..1000 {
        let mut response = proxy.get(&path).open().unwrap();
        assert!(response.read_some(&mut [0; 16]).unwrap() > 0);
        clients.push(response);
    }
    let peak = proxy.process().memory_bytes("VmHWM") >> 20;
    println!("{peak} MiB resident with {} connections in the middle of a body", clients.len());
    assert!(peak < 128, "{peak} MiB resident");
    // And they are served to their end, when they read again.
    for response in clients.into_iter().step_by(100) {
        let (_, end) = response.drain(|_, _| ());
        assert_eq!(end, End::Whole);
    }
    assert_eq!(fake.count("GET", &path), 1);
    drop(content);
}

#[test]
fn i5_sixty_four_streams_take_less_than_64_mib() {
    let _heavy = heavy();
    let (fake, content, path, proxy) = stage(64 * MIB);
    for temperature in ["cold", "warm"] {
        proxy.process().reset_peak_memory();
        std::thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| {
                    let response = proxy.get(&path).open().unwrap();
                    let (read, end) = response.drain(|offset, piece| assert!(content.holds(offset, piece)));
                    assert_eq!((read, end), (content.len(), End::Whole));
                });
            }
        });
        let peak = proxy.process().memory_bytes("VmHWM") >> 20;
        println!("{temperature}: {peak} MiB resident with 64 streams");
        assert!(peak < 64, "{temperature}: {peak} MiB resident");
    }
    assert_eq!(fake.count("GET", &path), 1);
}
