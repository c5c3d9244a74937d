//! Answers that are given again: as long as nothing has changed that they depend on, and not once longer.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::Value;
use tidegate_tests::content::Content;
use tidegate_tests::fake::Fake;
use tidegate_tests::http::Response;
use tidegate_tests::http2::{self, Connection, kind};
use tidegate_tests::image::Image;
use tidegate_tests::plugins::allowlist;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;
use tidegate_tests::{HANG, eventually};

use crate::{APP, assert_whole, fake_with_app};

const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json";

/// How many requests were answered as the same one was before.
fn repeated(proxy: &Proxy) -> u64 {
    let text = proxy.admin("/metrics").text();
    let line = text.lines().find(|line| line.starts_with("tidegate_repeated_requests_total "));
    line.expect("the metric").rsplit(' ').next().unwrap().parse().unwrap()
}

/// A mirror that keeps what it has read for as long as a test takes.
fn site(fake: &Fake) -> Site {
    Site::of(&fake.url()).cache("recheck = \"10m\"")
}

/// Asks until the answer is one that was given before: the first brings it, later ones find it in the cache.
fn warm_up(proxy: &Proxy, image: &Image) {
    let before = repeated(proxy);
    eventually("an answer is given again", || {
        assert_whole(&proxy.get(APP).field("Accept", ACCEPT).fetch(), &image.digest());
        repeated(proxy) > before
    });
}

#[test]
fn the_same_request_gets_the_same_answer_and_each_is_told() {
    let (fake, image) = fake_with_app();
    let proxy = site(&fake).log("access = true").top("[decisions]\nkeep = 100").start();
    warm_up(&proxy, &image);
    let before = repeated(&proxy);
    let since = proxy.mark();
    let first = proxy.get(APP).field("Accept", ACCEPT).field("User-Agent", "one/1").fetch();
    let second = proxy.get(APP).field("Accept", ACCEPT).field("User-Agent", "two/2").fetch();
    assert_eq!(repeated(&proxy), before + 2);
    for answer in [&first, &second] {
        assert_whole(answer, &image.digest());
        assert_eq!(answer.fields.get("docker-content-digest"), Some(&*image.digest()));
        assert_eq!(answer.fields.get("content-type"), Some(ACCEPT));
    }
    let id = |answer: &tidegate_tests::http::Answer| answer.fields.get("x-request-id").expect("an id").to_owned();
    assert_ne!(id(&first), id(&second));
    // Each has its own line, in the log and in the record.
    let lines: Vec<Value> = serde_json::from_str(&proxy.admin("/decisions").text()).unwrap();
    for (answer, agent) in [(&first, "one/1"), (&second, "two/2")] {
        let line = lines.iter().find(|line| line["request"] == id(answer)).expect("a line");
        assert_eq!((line["user_agent"].as_str(), line["decision"].as_str()), (Some(agent), Some("allow")));
        assert_eq!((line["source"].as_str(), line["status"].as_u64()), (Some("cache"), Some(200)));
        assert_eq!(line["sent_bytes"].as_u64(), Some(answer.body.len() as u64));
        let event = proxy.wait(since, "request", &[("request", &id(answer))]);
        assert_eq!(
            (event.field("pull"), event.field("source")),
            ("docker.io/library/app:1".to_owned(), "cache".to_owned())
        );
    }
    let asked = fake.seen().len();
    assert_whole(&proxy.get(APP).field("Accept", ACCEPT).fetch(), &image.digest());
    assert_eq!(fake.seen().len(), asked);
}

#[test]
fn another_request_gets_its_own_answer() {
    let (fake, image) = fake_with_app();
    let proxy = site(&fake).start();
    warm_up(&proxy, &image);
    let blob = format!("/v2/library/app/blobs/{}", image.layer_digest(0));
    for _ in 0..3 {
        assert_whole(&proxy.get(&blob).fetch(), &image.layer_digest(0));
    }
    for _ in 0..2 {
        let head = proxy.head(APP).field("Accept", ACCEPT).fetch();
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.fields.get("docker-content-digest"), Some(&*image.digest()));
        let part = proxy.get(&blob).field("Range", "bytes=1-3").fetch();
        assert_eq!((part.status, part.body.len()), (206, 3));
        let etag = format!("\"{}\"", image.digest());
        assert_eq!(proxy.get(APP).field("Accept", ACCEPT).field("If-None-Match", &etag).fetch().status, 304);
        assert_eq!(proxy.get("/v2/library/app/manifests/2").field("Accept", ACCEPT).fetch().status, 404);
        assert_eq!(proxy.get("/v2/library/other/manifests/1").field("Accept", ACCEPT).fetch().status, 404);
        assert_eq!(proxy.get(&format!("{APP}?ns=quay.io")).field("Accept", ACCEPT).fetch().status, 502);
        assert_whole(&proxy.get(APP).field("Accept", "*/*").fetch(), &image.digest());
    }
}

#[test]
fn what_leaves_the_cache_or_moves_is_not_given_again() {
    let (fake, image) = fake_with_app();
    let proxy = site(&fake).with_fixed_ports().start();
    warm_up(&proxy, &image);
    let blob = format!("/v2/library/app/blobs/{}", image.layer_digest(0));
    for _ in 0..3 {
        assert_whole(&proxy.get(&blob).fetch(), &image.layer_digest(0));
    }
    let path = proxy.site().blob_path(&image.layer_digest(0));
    eventually("the blob is cached", || path.exists());
    let asked = fake.count("GET", &blob);
    let removed = proxy.site().run_as_is(&["cache", "rm", "docker.io/library/app:1"]);
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    fake.stop();
    assert_eq!(proxy.get(APP).field("Accept", ACCEPT).fetch().status, 502);
    assert_eq!(proxy.get(&blob).fetch().status, 502);
    fake.restart();
    warm_up(&proxy, &image);
    assert_whole(&proxy.get(&blob).fetch(), &image.layer_digest(0));
    assert_eq!(fake.count("GET", &blob), asked + 1);
    eventually("the blob is cached again", || path.exists());
    // A file that is written behind our back is not served as it is, whatever was read before.
    let spoil = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[0] ^= 1;
        std::fs::write(path, &bytes).unwrap();
    };
    assert_whole(&proxy.get(&blob).fetch(), &image.layer_digest(0));
    spoil(&path);
    assert_whole(&proxy.get(&blob).fetch(), &image.layer_digest(0));
    assert_eq!(fake.count("GET", &blob), asked + 2);
    // Of a small one all bytes are in memory, and right.
    let small = Content::noise(7, 30_000);
    let blob = fake.put_blob("library/app", small.clone());
    let path = proxy.site().blob_path(&small.digest());
    assert_whole(&proxy.get(&blob).fetch(), &small.digest());
    eventually("the small blob is cached", || path.exists());
    let before = repeated(&proxy);
    eventually("it is given again", || {
        assert_whole(&proxy.get(&blob).fetch(), &small.digest());
        repeated(&proxy) > before
    });
    spoil(&path);
    assert_whole(&proxy.get(&blob).fetch(), &small.digest());
    let part = proxy.get(&blob).field("Range", "bytes=0-9").fetch();
    assert!(part.status == 206 && small.holds(0, &part.body), "other bytes");
    assert_eq!(fake.count("GET", &blob), 1);
}

#[test]
fn a_tag_is_not_given_again_after_its_time() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).cache("recheck = \"10m\"\ntag_ttl = \"0s\"").start();
    let ask = || proxy.get(APP).field("Accept", ACCEPT).fetch();
    for _ in 0..3 {
        assert_whole(&ask(), &image.digest());
    }
    let other = Image::small("other");
    fake.put_image(&other, "library/app:1");
    assert_whole(&ask(), &other.digest());
    assert_eq!(repeated(&proxy), 0);
    // By digest there is no time.
    let by_digest = format!("/v2/library/app/manifests/{}", other.digest());
    eventually("it is given again", || {
        assert_whole(&proxy.get(&by_digest).fetch(), &other.digest());
        repeated(&proxy) > 0
    });
}
#[test]
fn a_change_of_the_policy_holds_for_the_next_request() {
    let (fake, image) = fake_with_app();
    let proxy = site(&fake)
        .with([("10-allowlist.wasm", &allowlist()), ("10-allowlist.toml", b"block = [\"docker.io/library/redis\"]")])
        .start();
    warm_up(&proxy, &image);
    let ask = || proxy.get(APP).field("Accept", ACCEPT).fetch();
    for round in 0..3 {
        proxy.reload(|site| site.copy("10-allowlist.toml", b"block = [\"docker.io/library/app\"]"));
        assert_eq!(ask().status, 403, "round {round}");
        proxy.reload(|site| site.copy("10-allowlist.toml", b"block = [\"docker.io/library/redis\"]"));
        assert_whole(&ask(), &image.digest());
        assert_whole(&ask(), &image.digest());
    }
}

#[test]
fn a_body_over_http2_is_refused_of_what_would_be_given_again_too() {
    let (fake, _image) = fake_with_app();
    let proxy = site(&fake).start();
    let mut connection = Connection::open(&proxy.authority(), &[]).unwrap();
    for _ in 0..100 {
        let stream = connection.get(APP).unwrap();
        connection.finish(stream);
        if repeated(&proxy) > 0 {
            break;
        }
    }
    assert!(repeated(&proxy) > 0, "nothing was given again");
    let before = repeated(&proxy);
    let stream = connection.next_stream();
    connection.send(kind::HEADERS, http2::END_HEADERS, stream, &http2::head("GET", APP)).unwrap();
    connection.send(kind::DATA, 0, stream, b"what is this").unwrap();
    let (body, _) = connection.finish(stream);
    let body = String::from_utf8_lossy(&body).into_owned();
    assert!(body.contains("has no body"), "{body}");
    assert_eq!(repeated(&proxy), before);
}

#[test]
fn p6_an_answer_that_nobody_asks_for_again_keeps_no_plugin_that_was_replaced() {
    let (fake, image) = fake_with_app();
    let proxy = site(&fake)
        .with([("10-allowlist.wasm", &allowlist()), ("10-allowlist.toml", b"block = [\"docker.io/library/none\"]")])
        .start();
    warm_up(&proxy, &image);
    // More versions than there are places for instances, each with an answer of its own.
    for number in 0..270 {
        let path = format!("{APP}?version={number}");
        let before = repeated(&proxy);
        for _ in 0..2 {
            assert_whole(&proxy.get(&path).field("Accept", ACCEPT).fetch(), &image.digest());
        }
        assert_eq!(repeated(&proxy), before + 1, "version {number}");
        let block = format!("block = [\"docker.io/library/none-{number}\"]");
        proxy.reload(|site| site.copy("10-allowlist.toml", block.as_bytes()));
    }
}

#[test]
fn i1_whom_to_trust_is_asked_about_connections_that_are_open_too() {
    let (fake, image) = fake_with_app();
    let proxy = site(&fake).top("[decisions]\nkeep = 100").start();
    warm_up(&proxy, &image);
    let mut stream = TcpStream::connect(proxy.authority()).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    let mut reader = Some(BufReader::new(stream.try_clone().unwrap()));
    let mut ask = |client: &str| {
        let fields = format!("Host: mirror.lan\r\nAccept: {ACCEPT}\r\nX-Forwarded-For: {client}\r\n");
        stream.write_all(format!("GET {APP} HTTP/1.1\r\n{fields}\r\n").as_bytes()).unwrap();
        let (answer, rest) = Response::read(reader.take().unwrap(), "GET").unwrap().finish_and_keep();
        reader = Some(rest);
        assert_whole(&answer, &image.digest());
    };
    ask("192.0.2.1");
    let mark = proxy.mark();
    proxy.site().edit_config(|text| {
        let balanced = "[clients]\ntrusted_proxies = [\"127.0.0.1\"]\naddress_from = \"X-Forwarded-For\"";
        text.replace("[clients]", balanced)
    });
    proxy.wait(mark, "configuration in effect", &[]);
    for client in ["192.0.2.1", "192.0.2.2", "192.0.2.1"] {
        ask(client);
    }
    let clients = || {
        let record: Vec<Value> = serde_json::from_str(&proxy.admin("/decisions?limit=3").text()).unwrap();
        record.iter().map(|line| line["client"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    eventually("the clients are told", || clients() == ["192.0.2.1", "192.0.2.2", "192.0.2.1"]);
}
