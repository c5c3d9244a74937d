//! Parts of blobs: of cached ones, of cold ones, and of one that is on its way.

use std::thread;

use tidegate_tests::content::Content;
use tidegate_tests::eventually;
use tidegate_tests::fake::{Act, Fake};
use tidegate_tests::gate::Gate;
use tidegate_tests::http::{Answer, End, Fields};
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::{app_blob, assert_whole};

const SIZE: u64 = 3_000_000;

fn stage() -> (Fake, Content, String, Proxy) {
    let fake = Fake::start();
    let content = Content::noise(3, SIZE);
    let path = fake.put_blob("library/app", content.clone());
    let proxy = Site::of(&fake.url()).start();
    (fake, content, path, proxy)
}

#[track_caller]
fn assert_part(proxy: &Proxy, content: &Content, path: &str, range: &str, first: u64, last: u64) {
    let answer = proxy.get(path).field("Range", range).fetch();
    assert_eq!((answer.status, answer.end), (206, End::Whole), "{range}");
    assert_eq!(answer.fields.get("Content-Range"), Some(format!("bytes {first}-{last}/{SIZE}").as_str()), "{range}");
    assert_eq!(answer.body.len() as u64, last - first + 1, "{range}");
    assert!(content.holds(first, &answer.body), "{range}: other bytes");
}

#[test]
fn ranges_of_a_cached_blob_are_exact() {
    let (fake, content, path, proxy) = stage();
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    let end = SIZE - 1;
    for (range, first, last) in [
        ("bytes=0-9", 0, 9),
        ("bytes=0-0", 0, 0),
        ("bytes=10-", 10, end),
        ("bytes=-5", SIZE - 5, end),
        ("bytes=-99999999", 0, end),
        ("bytes=1000000-1999999", 1_000_000, 1_999_999),
        ("bytes=2999999-", end, end),
        ("bytes=2999990-99999999", SIZE - 10, end),
    ] {
        assert_part(&proxy, &content, &path, range, first, last);
    }
    assert_eq!(fake.count("GET", &path), 1);
}

#[test]
fn a_range_that_cannot_be_had_is_416() {
    let (_fake, content, path, proxy) = stage();
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    for range in ["bytes=3000000-", "bytes=3000009-", "bytes=-0"] {
        let answer = proxy.get(&path).field("Range", range).fetch();
        assert_eq!(answer.status, 416, "{range}");
        assert_eq!(answer.fields.get("Content-Range"), Some(format!("bytes */{SIZE}").as_str()), "{range}");
    }
}

#[test]
fn a_range_that_means_nothing_is_ignored_or_refused() {
    let (_fake, content, path, proxy) = stage();
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    for range in ["bytes=5-2", "bytes=abc", "bytes=", "0-3", "bytes=99999999999999999999-"] {
        let answer = proxy.get(&path).field("Range", range).fetch();
        match answer.status {
            200 => assert_whole(&answer, &content.digest()),
            status => assert_eq!(status, 416, "{range}"),
        }
    }
    let answer = proxy.get(&path).field("Range", "items=0-5").fetch();
    assert_whole(&answer, &content.digest());
    let answer = proxy.head(&path).field("Range", "bytes=0-5").fetch();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.fields.get("Content-Length"), Some("3000000"));
}

#[test]
fn if_range_with_another_tag_gives_the_whole() {
    let (_fake, content, path, proxy) = stage();
    let digest = content.digest();
    assert_whole(&proxy.get(&path).fetch(), &digest);
    for tag in ["\"other\"".to_owned(), format!("W/\"{digest}\"")] {
        let answer = proxy.get(&path).field("Range", "bytes=5-").field("If-Range", &tag).fetch();
        assert_whole(&answer, &digest);
    }
    let answer = proxy.get(&path).field("Range", "bytes=5-").field("If-Range", &format!("\"{digest}\"")).fetch();
    assert_eq!(answer.status, 206);
}

#[test]
fn a_range_of_a_cold_blob_is_right_and_fills_nothing_wrong() {
    for (range, first, last) in [("bytes=0-", 0, SIZE - 1), ("bytes=1500000-", 1_500_000, SIZE - 1)] {
        let (_fake, content, path, proxy) = stage();
        let answer = proxy.get(&path).field("Range", range).fetch();
        assert_eq!(answer.end, End::Whole);
        if answer.status == 200 {
            assert_whole(&answer, &content.digest());
        } else {
            assert_eq!(answer.status, 206);
            assert_eq!(answer.body.len() as u64, last - first + 1);
            assert!(content.holds(first, &answer.body));
        }
        assert_whole(&proxy.get(&path).fetch(), &content.digest());
    }
}

#[test]
fn i4_a_range_of_what_has_come_already_does_not_wait_for_the_rest() {
    let (fake, content, path, proxy) = stage();
    let gate = Gate::new();
    fake.next(&path, Act::Hold(2_000_000, gate.clone()));
    let mut leader = proxy.get(&path).open().unwrap();
    let mut buffer = vec![0; 1000];
    assert!(leader.read_some(&mut buffer).unwrap() > 0);
    gate.wait_reached();
    assert_part(&proxy, &content, &path, "bytes=500000-1500000", 500_000, 1_500_000);
    gate.open();
    assert_eq!(leader.finish().end, End::Whole);
    assert_eq!(fake.count("GET", &path), 1);
}

#[test]
fn i3_a_range_with_the_last_byte_of_wrong_bytes_is_never_whole() {
    let (fake, content, path, proxy) = stage();
    fake.always(&path, Act::Lie(content.corrupted()));
    let digest = content.digest();
    for range in ["bytes=0-", "bytes=1000000-", "bytes=-1000"] {
        let answer = proxy.get(&app_blob(&digest)).field("Range", range).fetch();
        let whole = matches!(answer.status, 200 | 206) && answer.end == End::Whole;
        assert!(!whole, "{range}: status {} with {} bytes", answer.status, answer.body.len());
    }
    assert_eq!(proxy.site().blobs(), []);
}

/// Splits a multipart body into the `Content-Range` and the bytes of each part.
fn parts(answer: &Answer) -> Vec<(String, Vec<u8>)> {
    let media_type = answer.fields.get("Content-Type").unwrap_or_default();
    let boundary = media_type.strip_prefix("multipart/byteranges; boundary=").expect(media_type);
    let mut rest = answer.body.as_slice();
    let mut found = Vec::new();
    loop {
        let line = format!("--{boundary}\r\n");
        let Some(part) = rest.strip_prefix(line.as_bytes()) else { break };
        let head = part.windows(4).position(|four| four == b"\r\n\r\n").expect("the head of a part");
        let fields = Fields::read(&mut &part[..head + 4]).expect("fields");
        assert_eq!(fields.get("Content-Type"), Some("application/octet-stream"));
        let range = fields.get("Content-Range").expect("a range").to_owned();
        let (first, last) = range.trim_start_matches("bytes ").split_once('/').unwrap().0.split_once('-').unwrap();
        let length = last.parse::<usize>().unwrap() - first.parse::<usize>().unwrap() + 1;
        let body = &part[head + 4..];
        found.push((range, body[..length].to_vec()));
        rest = body[length..].strip_prefix(b"\r\n").expect("a line end behind each part");
    }
    assert_eq!(rest, format!("--{boundary}--\r\n").as_bytes(), "nothing else");
    found
}

#[test]
fn several_ranges_are_one_body_of_several_parts() {
    let (_fake, content, path, proxy) = stage();
    // On a cold blob, on one that is on its way, and on a cached one.
    for _ in 0..2 {
        let answer = proxy.get(&path).field("Range", "bytes=2000000-2000009,0-0,-5").fetch();
        assert_eq!((answer.status, answer.end), (206, End::Whole));
        assert_eq!(answer.fields.get("Content-Length"), Some(answer.body.len().to_string().as_str()));
        let parts = parts(&answer);
        for ((range, bytes), (first, last)) in parts.iter().zip([(2_000_000, 2_000_009), (0, 0), (SIZE - 5, SIZE - 1)])
        {
            assert_eq!(*range, format!("bytes {first}-{last}/{SIZE}"));
            assert!(content.holds(first, bytes), "{range}");
        }
        assert_eq!(parts.len(), 3);
        eventually("the blob is cached", || proxy.site().blobs().len() == 1);
    }
    // What asks for bytes twice, or for too many parts, gets the whole.
    let many = (0..33).map(|part| format!("{}-{}", part * 2, part * 2)).collect::<Vec<_>>().join(",");
    for range in ["bytes=0-5,5-9".to_owned(), format!("bytes={many}")] {
        assert_whole(&proxy.get(&path).field("Range", &range).fetch(), &content.digest());
    }
}

#[test]
fn c4_a_range_far_ahead_does_not_wait_for_the_transfer() {
    let (fake, content, path, proxy) = stage();
    let (fill, sides) = (Gate::new(), Gate::new());
    fake.next(&path, Act::Hold(100_000, fill.clone()));
    let leader = proxy.get(&path).open().unwrap();
    fill.wait_reached();
    // Its bytes come while those before them are still to come.
    assert_part(&proxy, &content, &path, "bytes=2000000-2099999", 2_000_000, 2_099_999);
    assert_eq!(fake.count("GET", &path), 2);
    // A fill has two such transfers beside it at most: further readers wait for it.
    for _ in 0..2 {
        fake.next(&path, Act::Hold(0, sides.clone()));
    }
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_part(&proxy, &content, &path, "bytes=1000000-1000009", 1_000_000, 1_000_009));
        }
        fake.wait_count(&path, 4);
        fill.open();
        assert_eq!(leader.finish().end, End::Whole);
        sides.open();
    });
    assert_eq!(fake.count("GET", &path), 4);
}

#[test]
fn i3_a_range_far_ahead_with_the_last_byte_waits_for_the_digest() {
    for wrong in [false, true] {
        let (fake, content, path, proxy) = stage();
        let gate = Gate::new();
        fake.next(&path, Act::Hold(100_000, gate.clone()));
        let leader = proxy.get(&path).open().unwrap();
        gate.wait_reached();
        if wrong {
            fake.always(&path, Act::Lie(content.corrupted()));
        }
        let mut ahead = proxy.get(&path).field("Range", "bytes=2000000-").open().unwrap();
        let mut taken = 0;
        let mut buffer = vec![0; 100_000];
        // All but the last byte comes while the transfer is held.
        while taken < 999_999 {
            taken += ahead.read_some(&mut buffer).unwrap();
        }
        assert_eq!(taken, 999_999);
        if wrong {
            // The transfer breaks, and goes on with wrong bytes.
            fake.stop();
            fake.restart();
        }
        gate.open();
        assert_eq!(ahead.finish().end == End::Whole, !wrong);
        assert_eq!(leader.finish().end == End::Whole, !wrong);
    }
}

#[test]
fn a_server_without_ranges_is_not_asked_for_one_far_ahead_twice() {
    let (fake, content, path, proxy) = stage();
    let gate = Gate::new();
    fake.next(&path, Act::Hold(100_000, gate.clone()));
    fake.always(&path, Act::ServeWhole);
    let leader = proxy.get(&path).open().unwrap();
    gate.wait_reached();
    thread::scope(|scope| {
        let ahead = scope.spawn(|| assert_part(&proxy, &content, &path, "bytes=2000000-2000009", 2_000_000, 2_000_009));
        fake.wait_count(&path, 2);
        gate.open();
        ahead.join().unwrap();
    });
    assert_eq!(leader.finish().end, End::Whole);
    assert_eq!(fake.count("GET", &path), 2);
}
