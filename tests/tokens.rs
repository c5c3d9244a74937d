//! What goes wrong with tokens, and with the service that gives them.

use std::fs;
use std::path::Path;
use std::time::Instant;

use tidegate_tests::content::Content;
use tidegate_tests::eventually;
use tidegate_tests::fake::{Act, Fake, Reply, Tokens};
use tidegate_tests::http::End;
use tidegate_tests::image::Image;
use tidegate_tests::site::Site;

use crate::upstream_faults::ask_at_once;
use crate::{APP, app_blob, assert_pulls, assert_whole, fake_with_app};

/// A fake with the app that wants tokens of its own service, and the tokens.
fn guarded() -> (Fake, Image, Tokens) {
    let (fake, image) = fake_with_app();
    let tokens = Tokens::anonymous();
    fake.require_bearer(&format!("{}/token", fake.url()), &tokens);
    fake.issue(&tokens);
    (fake, image, tokens)
}

#[test]
fn u9_a_token_that_ends_in_the_middle_of_a_pull_is_renewed_once_and_the_pull_goes_on() {
    let (fake, _image, tokens) = guarded();
    let content = Content::noise(44, 3_000_000);
    let path = fake.put_blob("library/app", content.clone());
    let proxy = Site::of(&fake.url()).start();
    assert_eq!(proxy.get(APP).fetch().status, 200);
    let gate = tidegate_tests::gate::Gate::new();
    fake.next(&path, Act::Hold(2_000_000, gate.clone()));
    let client = proxy.get(&path).open().unwrap();
    gate.wait_reached();
    // The connection breaks, and the token has ended meanwhile.
    tokens.expire();
    fake.stop();
    fake.restart();
    let (length, end) = client.drain(|offset, piece| assert!(content.holds(offset, piece)));
    assert_eq!((length, end), (content.len(), End::Whole));
    assert_eq!(tokens.given(), 2);
}

#[test]
fn u9_a_401_after_a_redirect_gives_one_refresh_and_one_retry() {
    let (fake, _image, tokens) = guarded();
    let cdn = Fake::start();
    let content = Content::noise(45, 100_000);
    let path = app_blob(&content.digest());
    cdn.put("/there", "application/octet-stream", content.clone());
    let allowed = format!("redirect_hosts = [\"{}\"]", cdn.authority());
    let proxy = Site::new().registry("docker.io", &fake.url(), &allowed).start();
    assert_eq!(proxy.get(APP).fetch().status, 200);
    fake.always(&path, Act::Reply(Reply::redirect(&format!("{}/there", cdn.url()))));
    // What the other host asks for itself is not answered.
    let challenge = Reply::status(401).field("WWW-Authenticate", &format!("Bearer realm=\"{}/steal\"", cdn.url()));
    cdn.next("/there", Act::Reply(challenge.clone()));
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    assert_eq!((tokens.given(), cdn.count("GET", "/there"), cdn.count("GET", "/steal")), (2, 2, 0));
    // And without an end to it, there is an end.
    let other = app_blob(&Content::noise(46, 10).digest());
    fake.always(&other, Act::Reply(Reply::redirect(&format!("{}/there", cdn.url()))));
    cdn.always("/there", Act::Reply(challenge));
    let answer = proxy.get(&other).fetch();
    assert_eq!(answer.status, 403, "{}", answer.text());
    assert_eq!((cdn.count("GET", "/there"), cdn.count("GET", "/steal")), (4, 0));
    assert!(cdn.seen().iter().all(|seen| seen.fields.get("Authorization").is_none()));
}

#[test]
fn u9_what_the_token_service_does_is_told_apart() {
    let (fake, _image, _tokens) = guarded();
    let proxy = Site::of(&fake.url()).start();
    let body = |bytes: &[u8]| Reply::status(200).body(bytes);
    let huge = [b"{\"token\":\"x\",\"junk\":\"".to_vec(), vec![b'x'; 70 << 10], b"\"}".to_vec()].concat();
    let cases = [
        (Reply::status(401), 403, "answers 401"),
        (Reply::status(403), 403, "answers 403"),
        (Reply::status(500), 502, "answers 500"),
        (Reply::status(503), 502, "answers 503"),
        (Reply::redirect("/elsewhere"), 502, "answers 307"),
        (body(&huge), 502, "token service"),
        (body(b"<html>"), 502, "sends no token"),
        (body(b"{\"token\":\"\",\"access_token\":\"\"}"), 502, "sends no token"),
        (body(b"{\"expires_in\":60}"), 502, "sends no token"),
        (body(b"{\"token\":\"a\\nb\"}"), 502, "control characters"),
    ];
    for (at, (reply, status, word)) in cases.into_iter().enumerate() {
        // Another repository each time: what failed a moment ago is not asked again.
        fake.always("/token", Act::Reply(reply));
        let answer = proxy.get(&format!("/v2/library/app{at}/manifests/1")).fetch();
        assert_eq!(answer.status, status, "{word}: {}", answer.text());
        assert!(answer.message().contains(word), "{word}: {}", answer.message());
    }
}

#[test]
fn u9_a_token_service_that_says_nothing_is_a_502_in_time() {
    let (fake, _image, _tokens) = guarded();
    fake.always("/token", Act::Silent);
    let proxy = Site::of(&fake.url()).limits("upstream_headers = \"2s\"").start();
    let answer = proxy.get(APP).fetch();
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(answer.message().contains("does not answer within 1.5s"), "{}", answer.message());
}

#[test]
fn u9_tokens_with_an_absurd_life_are_tokens() {
    for life in ["1", "0", "-5", "1e300", "\"300\"", "\"soon\"", "null", "[]"] {
        let (fake, image, tokens) = guarded();
        tokens.hold_for(life);
        let proxy = Site::of(&fake.url()).start();
        assert_pulls(&proxy, &image);
        // A second of life serves what is asked within it, not each request with a token of its own.
        assert!((1..=3).contains(&tokens.given()), "{life}: {} tokens", tokens.given());
    }
}

#[test]
fn u9_two_hundred_clients_behind_a_failing_token_service_ask_it_a_few_times() {
    let (fake, _image, _tokens) = guarded();
    fake.always("/token", Act::Reply(Reply::status(500)));
    let proxy = Site::of(&fake.url()).start();
    let began = Instant::now();
    for answer in ask_at_once(&proxy, APP, 200) {
        assert_eq!(answer.status, 502, "{}", answer.text());
    }
    // One a second, whoever asks.
    let most = 2 + usize::try_from(began.elapsed().as_secs()).unwrap();
    assert!(fake.count("GET", "/token") <= most, "{} requests", fake.count("GET", "/token"));
    // And when it is well again, so are they.
    fake.always("/token", Act::Serve);
    eventually("it is asked again", || proxy.get(APP).fetch().status == 200);
}

#[test]
fn u9_a_token_that_comes_too_late_for_one_pull_serves_the_next() {
    let (fake, image, tokens) = guarded();
    let gate = tidegate_tests::gate::Gate::new();
    fake.next("/token", Act::Hold(0, gate.clone()));
    let proxy = Site::of(&fake.url()).limits("upstream_attempts = \"1s\"").start();
    assert!(matches!(proxy.get(APP).fetch().status, 502 | 504));
    gate.wait_reached();
    gate.open();
    eventually("the token is there", || proxy.get(APP).fetch().status == 200);
    assert_pulls(&proxy, &image);
    assert_eq!(tokens.given(), 1);
}

#[test]
fn u9_two_hundred_clients_share_one_token() {
    let (fake, image, tokens) = guarded();
    let proxy = Site::of(&fake.url()).start();
    for answer in ask_at_once(&proxy, APP, 200) {
        assert_whole(&answer, &image.digest());
    }
    assert_eq!(tokens.given(), 1);
}

#[test]
fn t1_a_wall_clock_that_jumps_makes_no_token_old_and_no_storm() {
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
    if !Path::new(library).exists() {
        println!("not run: there is no {library}; to install it: apt-get install faketime");
        return;
    }
    let (fake, _image, tokens) = guarded();
    let site = Site::new();
    let clock = site.path("clock");
    let set = |offset: &str| fs::write(&clock, offset).unwrap();
    set("+0");
    let proxy = site
        .variable("LD_PRELOAD", library)
        .variable("FAKETIME_TIMESTAMP_FILE", &clock.display().to_string())
        .variable("FAKETIME_NO_CACHE", "1")
        .variable("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .registry("docker.io", &fake.url(), "")
        .start();
    let year = || proxy.admin("/metrics").fields.get("Date").map(|date| date[12..16].to_owned());
    let now = year();
    for (at, offset) in ["+0", "+1y", "-2h", "+0"].into_iter().enumerate() {
        set(offset);
        if offset == "+1y" {
            eventually("the clock has jumped", || year() != now);
        }
        let image = Image::small(&format!("layers{at}"));
        for blob in &image.blobs {
            let content = Content::from(blob.clone());
            let path = fake.put_blob("library/app", content.clone());
            assert_whole(&proxy.get(&path).fetch(), &content.digest());
        }
    }
    assert_eq!(tokens.given(), 1);
}
