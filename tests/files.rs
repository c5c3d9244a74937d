//! Blobs that go from their files to sockets: right to the last byte, for fast and for slow clients, from memory and
//! from the disk, and on connections that go on.

use std::fs::File;
use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::thread;

use rustix::fs::{Advice, fadvise};
use tidegate_tests::content::Content;
use tidegate_tests::fake::Fake;
use tidegate_tests::http::{End, Response};
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;
use tidegate_tests::{HANG, eventually};

use crate::assert_whole;

const MIB: u64 = 1 << 20;

/// A blob that is cached, and nobody reads.
fn warm(size: u64) -> (Fake, Content, String, Proxy) {
    let fake = Fake::start();
    let content = Content::noise(size, size);
    let path = fake.put_blob("library/app", content.clone());
    let proxy = Site::of(&fake.url()).start();
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    let file = proxy.site().blob_path(&content.digest());
    eventually("the blob is cached", || file.exists());
    (fake, content, path, proxy)
}

fn assert_slowly(mut response: Response, content: &Content, first: u64, length: u64) {
    let (mut at, mut buffer) = (0, [0; 999]);
    loop {
        let read = response.read_some(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        assert!(content.holds(first + at, &buffer[..read]), "other bytes near {}", first + at);
        at += read as u64;
    }
    assert_eq!(at, length);
}

#[test]
fn a_warm_blob_is_right_byte_for_byte_whole_and_in_parts_for_fast_and_slow_clients() {
    let size = 12 * MIB + 12_345;
    let (fake, content, path, proxy) = warm(size);
    // Around what is read, what is sent, and what a socket holds.
    let parts =
        [(0, size), (0, 65_536), (0, 65_537), (1, MIB + 16_385), (5 * MIB - 1, 3 * MIB), (size - 70_000, 70_000)];
    thread::scope(|scope| {
        for (first, length) in parts {
            let range = format!("bytes={first}-{}", first + length - 1);
            let (proxy, content, path) = (&proxy, &content, &path);
            let fast = range.clone();
            scope.spawn(move || {
                let answer = proxy.get(path).field("Range", &fast).fetch();
                assert_eq!((answer.end, answer.body.len() as u64), (End::Whole, length), "{fast}");
                assert!(content.holds(first, &answer.body), "{fast}: other bytes");
            });
            scope.spawn(move || {
                let response = proxy.get(path).field("Range", &range).open().unwrap();
                assert_slowly(response, content, first, length);
            });
        }
    });
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    assert_eq!(fake.count("GET", &path), 1);
}

#[test]
fn several_parts_of_a_warm_blob_are_one_right_body() {
    let (_fake, content, path, proxy) = warm(4 * MIB);
    let answer = proxy.get(&path).field("Range", "bytes=100-1500000,2000000-3999999").fetch();
    assert_eq!((answer.status, answer.end), (206, End::Whole));
    let mut at = 0;
    for (first, length) in [(100, 1_499_901), (2_000_000, 2_000_000)] {
        let head = answer.body[at..].windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        at += head + 4;
        assert!(content.holds(first, &answer.body[at..at + length]), "the part from {first}");
        at += length;
    }
    assert!(answer.body[at..].starts_with(b"\r\n--") && answer.body.ends_with(b"--\r\n"));
}

#[test]
fn a_blob_that_is_not_in_memory_any_more_is_right() {
    let (_fake, content, path, proxy) = warm(6 * MIB);
    let file = File::open(proxy.site().blob_path(&content.digest())).unwrap();
    for _ in 0..3 {
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        assert_whole(&proxy.get(&path).fetch(), &content.digest());
    }
}

#[test]
fn i6_a_file_that_gets_shorter_while_it_is_sent_ends_short_and_the_process_lives() {
    // More than the sockets hold.
    let (fake, content, path, proxy) = warm(60 * MIB);
    let file = proxy.site().blob_path(&content.digest());
    let mut response = proxy.get(&path).open().unwrap();
    assert!(response.read_some(&mut [0; 100]).unwrap() > 0);
    File::options().write(true).open(&file).unwrap().set_len(40 * MIB).unwrap();
    let (read, end) = response.drain(|_, _| ());
    assert_ne!(end, End::Whole);
    assert!(read < 40 * MIB, "{read} bytes");
    // It is found, and fetched again.
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    assert_eq!(fake.count("GET", &path), 2);
}

#[test]
fn requests_behind_a_file_on_the_same_connection_are_answered_in_order() {
    let (_fake, content, path, proxy) = warm(3 * MIB);
    let mut stream = TcpStream::connect(proxy.authority()).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    let ask = |target: &str, more: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n{more}\r\n");
    let asked = [
        ask(&path, ""),
        ask("/v2/", ""),
        ask(&path, "Range: bytes=500000-1499999\r\n"),
        ask(&path, "Range: bytes=7-9\r\n"),
        ask(&path, ""),
    ];
    // All at once, and once more after it.
    stream.write_all(asked.concat().as_bytes()).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let parts = [(0, 3 * MIB), (0, 2), (500_000, 1_000_000), (7, 3), (0, 3 * MIB)];
    for round in 0..2 {
        for (at, (first, length)) in parts.into_iter().enumerate() {
            let (answer, rest) = Response::read(reader, "GET").unwrap().finish_and_keep();
            reader = rest;
            assert_eq!((answer.end, answer.body.len() as u64), (End::Whole, length), "{at}");
            assert!(at == 1 || content.holds(first, &answer.body), "{at}: other bytes");
        }
        if round == 0 {
            stream.write_all(asked.concat().as_bytes()).unwrap();
        }
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_file_harms_nobody() {
    let (_fake, content, path, proxy) = warm(30 * MIB);
    for _ in 0..20 {
        let mut response = proxy.get(&path).open().unwrap();
        assert!(response.read_some(&mut [0; 5000]).unwrap() > 0);
        response.reset();
    }
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
}
