//! The instruments themselves: what the fake registry does, and what the client sees of it.

use tidegate_tests::content::Content;
use tidegate_tests::fake::{Act, Fake, Reply, Tokens, basic};
use tidegate_tests::gate::Gate;
use tidegate_tests::guests::{self, Does, Guest};
use tidegate_tests::http::{self, End};
use tidegate_tests::plugins::{allowlist, failover};

use crate::assert_whole;

#[test]
fn the_client_tells_how_a_body_ended() {
    let (fake, content) = (Fake::start(), Content::noise(1, 3_000_000));
    let path = fake.put_blob("a", content.clone());
    let url = format!("{}{path}", fake.url());
    for (act, status, len, end) in [
        (Act::Serve, 200, 3_000_000, End::Whole),
        (Act::ServeChunked, 200, 3_000_000, End::Whole),
        (Act::Lie(content.corrupted()), 200, 3_000_000, End::Whole),
        (Act::CloseAfter(1_000_000), 200, 1_000_000, End::Short),
        (Act::CloseAfter(0), 200, 0, End::Short),
        (Reply::status(429).into(), 429, 0, End::Whole),
    ] {
        fake.next(&path, act.clone());
        let answer = http::get(&url).fetch();
        assert_eq!((answer.status, answer.body.len(), answer.end), (status, len, end), "{act:?}");
        assert_eq!(content.holds(0, &answer.body), !matches!(act, Act::Lie(_)), "{act:?}");
    }
    fake.next(&path, Act::ResetAfter(1_000_000));
    assert_eq!(http::get(&url).fetch().end, End::Broken);
    assert_eq!(http::head(&url).fetch().fields.get("Content-Length"), Some("3000000"));
    assert_eq!((fake.count("GET", &path), fake.count("HEAD", &path)), (7, 1));
}

#[test]
fn the_fake_registry_knows_ranges_and_gates() {
    let (fake, content) = (Fake::start(), Content::noise(2, 100_000));
    let path = fake.put_blob("a", content.clone());
    let url = format!("{}{path}", fake.url());
    let part = http::get(&url).field("Range", "bytes=1000-1999").fetch();
    assert_eq!((part.status, part.fields.get("Content-Range")), (206, Some("bytes 1000-1999/100000")));
    assert!(part.body.len() == 1000 && content.holds(1000, &part.body));
    let gate = Gate::new();
    fake.next(&path, Act::Hold(10, gate.clone()));
    let mut held = http::get(&url).open().unwrap();
    let mut first = [0; 100];
    assert_eq!(held.read_some(&mut first).unwrap(), 10);
    gate.wait_reached();
    gate.open();
    let (rest, end) = held.drain(|offset, piece| assert!(content.holds(10 + offset, piece)));
    assert_eq!((rest, end), (99_990, End::Whole));
    fake.stop();
    assert!(http::get(&url).open().is_err());
    fake.restart();
    assert_whole(&http::get(&url).fetch(), &content.digest());
}

#[test]
fn the_fake_registry_asks_for_credentials() {
    let (fake, tokens) = (Fake::start(), Tokens::of_user("ferry", "boat"));
    assert_eq!(basic("ferry", "boat"), "Basic ZmVycnk6Ym9hdA==");
    fake.require_bearer(&format!("{}/token", fake.url()), &tokens);
    fake.issue(&tokens);
    let url = |path: &str| format!("{}{path}", fake.url());
    let challenge = http::get(&url("/v2/a/b/manifests/1")).fetch();
    assert_eq!(challenge.status, 401);
    let asked = challenge.fields.get("WWW-Authenticate").unwrap();
    assert!(asked.starts_with("Bearer realm=") && asked.ends_with("scope=\"repository:a/b:pull\""), "{asked}");
    assert_eq!(http::get(&url("/token")).fetch().status, 401);
    let token = http::get(&url("/token")).field("Authorization", &basic("ferry", "boat")).fetch().text();
    assert!(token.contains("token-1"), "{token}");
    assert_eq!(http::get(&url("/v2/")).field("Authorization", "Bearer token-1").fetch().status, 200);
}

#[test]
fn guests_and_plugins_are_what_they_should_be() {
    let all = Guest::new().admits(Does::Nothing).routes(Does::Nothing).falls_back(Does::Nothing).checks(Does::Nothing);
    for bytes in [guests::stamped(1), guests::witness(1), all.component()] {
        assert_eq!(bytes[..8], *b"\0asm\x0d\0\x01\0");
    }
    // What rustc makes: core modules that carry their component type.
    for bytes in [all.core(), allowlist(), failover()] {
        assert_eq!(bytes[..8], *b"\0asm\x01\0\0\0");
    }
}
