//! Many clients never multiply what upstreams are asked.

use std::thread;

use tidegate_tests::content::{Content, sha256};
use tidegate_tests::fake::{Act, Fake, Reply};
use tidegate_tests::gate::Gate;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::{APP, app_blob, assert_whole, fake_with_app};

const CLIENTS: usize = 50;

/// Waits until so many requests share the one of another.
fn wait_coalesced(proxy: &Proxy, requests: usize) {
    tidegate_tests::eventually("all others wait for the first", || {
        let metrics = proxy.admin("/metrics").text();
        let line = metrics.lines().find_map(|line| line.strip_prefix("tidegate_coalesced_requests_total "));
        line.is_some_and(|count| count.parse::<usize>().unwrap() >= requests)
    });
}

/// Asks by many clients at once, while the upstream holds its answer back until all others wait for it.
fn ask_at_once(fake: &Fake, proxy: &Proxy, path: &str, ask: impl Fn() + Sync) {
    let gate = Gate::new();
    fake.next(path, Act::After(gate.clone()));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(&ask);
        }
        gate.wait_reached();
        wait_coalesced(proxy, CLIENTS - 1);
        gate.open();
    });
}

#[test]
fn c4_many_who_ask_for_a_tag_are_one_request() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).start();
    ask_at_once(&fake, &proxy, APP, || assert_whole(&proxy.get(APP).fetch(), &image.digest()));
    assert_eq!(fake.seen().len(), 1);
}

#[test]
fn c4_many_who_ask_for_a_manifest_by_digest_are_one_request() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).start();
    let path = format!("/v2/library/app/manifests/{}", image.digest());
    ask_at_once(&fake, &proxy, &path, || assert_whole(&proxy.get(&path).fetch(), &image.digest()));
    assert_eq!(fake.seen().len(), 1);
}

#[test]
fn c4_many_who_ask_whether_a_tag_still_holds_are_one_request() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).cache("tag_ttl = \"0s\"").start();
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    ask_at_once(&fake, &proxy, APP, || assert_whole(&proxy.get(APP).fetch(), &image.digest()));
    assert_eq!((fake.count("GET", APP), fake.count("HEAD", APP)), (1, 1));
}

#[test]
fn c4_many_who_ask_whether_a_blob_is_there_are_one_request() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).start();
    let digest = image.layer_digest(0);
    let path = app_blob(&digest);
    ask_at_once(&fake, &proxy, &path, || {
        let answer = proxy.head(&path).fetch();
        assert_eq!((answer.status, answer.fields.get("Docker-Content-Digest")), (200, Some(digest.as_str())));
    });
    assert_eq!((fake.count("GET", &path), fake.count("HEAD", &path)), (0, 1));
}

#[test]
fn c4_many_who_ask_for_a_list_are_one_request() {
    let (fake, _image) = fake_with_app();
    let list = br#"{"name":"library/app","tags":["1"]}"#;
    let path = "/v2/library/app/tags/list";
    fake.put(path, "application/json", list.to_vec().into());
    let proxy = Site::of(&fake.url()).start();
    ask_at_once(&fake, &proxy, path, || assert_eq!(proxy.get(path).fetch().body, list));
    assert_eq!(fake.seen().len(), 1);
}

#[test]
fn u10_many_who_ask_for_what_fails_are_one_request() {
    // A registry in trouble may be so for a moment: it is asked twice more, for all of them.
    for (status, told, times) in [(404, 404, 1), (500, 502, 3), (403, 403, 1)] {
        let (fake, _image) = fake_with_app();
        let proxy = Site::of(&fake.url()).start();
        let gate = Gate::new();
        fake.next(APP, Act::Held(gate.clone(), Reply::status(status)));
        fake.always(APP, Act::Reply(Reply::status(status)));
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| assert_eq!(proxy.get(APP).fetch().status, told));
            }
            gate.wait_reached();
            wait_coalesced(&proxy, CLIENTS - 1);
            gate.open();
        });
        assert_eq!(fake.seen().len(), times, "{status}");
    }
}

#[test]
fn a_client_that_leaves_does_not_take_the_answer_of_others_with_it() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).start();
    let gate = Gate::new();
    fake.next(APP, Act::After(gate.clone()));
    thread::scope(|scope| {
        let first = proxy.get(APP).start().unwrap();
        gate.wait_reached();
        let second = scope.spawn(|| assert_whole(&proxy.get(APP).fetch(), &image.digest()));
        wait_coalesced(&proxy, 1);
        drop(first);
        gate.open();
        second.join().unwrap();
    });
    assert_eq!(fake.seen().len(), 1);
}

#[test]
fn what_is_not_there_is_not_asked_for_again_for_a_while() {
    let (fake, image) = fake_with_app();
    let other = Content::noise(1, 1000);
    let blob = app_blob(&other.digest());
    let missing = "/v2/library/app/manifests/none";
    for (line, times) in [("", 1), ("miss_ttl = \"0s\"", 3)] {
        let site = Site::of(&fake.url()).cache(line);
        let proxy = site.start();
        let before = fake.seen().len();
        for path in [missing, &blob] {
            for _ in 0..3 {
                assert_eq!(proxy.get(path).fetch().status, 404, "{path}");
            }
        }
        assert_eq!(fake.seen().len() - before, 2 * times, "{line}");
        // What is there is served meanwhile.
        assert_whole(&proxy.get(&app_blob(&image.layer_digest(0))).fetch(), &image.layer_digest(0));
    }
    assert_eq!(sha256(&image.blobs[1]), image.layer_digest(0));
}
