//! Parts of blobs: of cached ones, of cold ones, and of one that is on its way.

use tidegate_tests::content::Content;
use tidegate_tests::fake::{Act, Fake};
use tidegate_tests::gate::Gate;
use tidegate_tests::http::End;
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
fn several_ranges_come_as_parts_or_as_the_whole() {
    let (_fake, content, path, proxy) = stage();
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    let answer = proxy.get(&path).field("Range", "bytes=0-99,1000-1099").fetch();
    assert_eq!(answer.end, End::Whole);
    match answer.status {
        200 => assert_whole(&answer, &content.digest()),
        206 => {
            let media_type = answer.fields.get("Content-Type").unwrap_or_default();
            assert!(media_type.starts_with("multipart/byteranges"), "{media_type}");
            for first in [0_usize, 1000] {
                let head = format!("Content-Range: bytes {first}-{}/{SIZE}", first + 99);
                let text = answer.text().to_ascii_lowercase();
                assert!(text.contains(&head.to_ascii_lowercase()), "{head}");
                let mut part = Vec::new();
                content.write(&mut part, first as u64, first as u64 + 100).unwrap();
                assert!(answer.body.windows(100).any(|window| window == part), "{head}");
            }
        }
        status => panic!("{status}"),
    }
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
