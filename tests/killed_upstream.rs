//! An upstream that is killed in the middle of layers, again and again: real clients pull on, and notice nothing.

use std::thread;

use tidegate_tests::clients::{ALL, Client};
use tidegate_tests::fake::{Act, Fake};
use tidegate_tests::gate::Gate;
use tidegate_tests::image::Image;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;
use tidegate_tests::{eventually, heavy};

const KILLS: usize = 3;
/// Units: bytes.
const LAYERS: [usize; 3] = [7_000_000, 6_500_000, 300_000];
/// What a transfer brings before it is killed: more than 1 MiB, so that it is worth going on. Units: bytes.
const BETWEEN_KILLS: u64 = 1_500_000;

fn layer(image: &Image, at: usize) -> String {
    crate::app_blob(&image.layer_digest(at))
}

/// Kills the registry whenever one of the big layers has come so far, and starts it again.
fn kill_again_and_again(fake: &Fake, image: &Image) {
    let hold = |gate: &Gate| {
        for at in [0, 1] {
            fake.next(&layer(image, at), Act::Hold(BETWEEN_KILLS, gate.clone()));
        }
    };
    let mut gate = Gate::new();
    hold(&gate);
    fake.restart();
    for kill in 1..=KILLS {
        gate.wait_reached();
        // Ends every connection in the middle of what it brings, and opens the gate.
        fake.stop();
        if kill < KILLS {
            gate = Gate::new();
            hold(&gate);
        }
        fake.restart();
    }
}

/// Fails when the client was given a body that it had to ask for again.
#[track_caller]
fn assert_nothing_was_noticed(proxy: &Proxy, image: &Image, client: &str) {
    for at in 0..LAYERS.len() {
        let path = layer(image, at);
        let path = path.rsplit('/').next().unwrap();
        let size = image.blobs[at + 1].len();
        let asked = || {
            let events = proxy.events(proxy.beginning(), "request");
            events.into_iter().filter(|event| event.field("path").ends_with(path) && event.field("method") == "GET")
        };
        // The line of a request is written when its body has been sent, which may be after the client has it.
        eventually("the requests are logged", || {
            asked().map(|event| event.field("sent_bytes").parse::<usize>().unwrap_or(0)).sum::<usize>() >= size
        });
        for event in asked() {
            assert!(matches!(event.field("status").as_str(), "200" | "206"), "{client}: {event:?}");
            assert_eq!(event.field("broken"), "", "{client}: {event:?}");
        }
        let sent: usize = asked().map(|event| event.field("sent_bytes").parse::<usize>().unwrap()).sum();
        assert_eq!(sent, size, "{client}: layer {at} was sent more than once: {:?}", asked().collect::<Vec<_>>());
    }
}

fn pulls_on(set_up: fn(&str) -> Box<dyn Client>) {
    let _heavy = heavy();
    let fake = Fake::start();
    let image = Image::new("app", &LAYERS);
    fake.put_image(&image, "library/app:1");
    let proxy = Site::of(&fake.url()).start();
    let client = set_up(&proxy.authority());
    // From here on it is `kill_again_and_again` that starts it.
    fake.stop();
    thread::scope(|scope| {
        let killer = scope.spawn(|| kill_again_and_again(&fake, &image));
        eventually("the registry is back", || std::net::TcpStream::connect(fake.authority()).is_ok());
        let pulled = client.pull("library/app:1");
        assert_eq!(pulled.as_ref(), Ok(&image.digest()), "{}", client.name());
        killer.join().unwrap();
    });
    assert_nothing_was_noticed(&proxy, &image, client.name());
    let resumed = fake.seen().iter().filter(|seen| seen.fields.get("Range").is_some()).count();
    assert!(resumed >= KILLS, "{}: only {resumed} transfers were continued", client.name());
}

#[test]
fn u1_docker_pulls_on_while_its_upstream_is_killed_three_times() {
    pulls_on(ALL[0]);
}

#[test]
fn u1_containerd_pulls_on_while_its_upstream_is_killed_three_times() {
    pulls_on(ALL[1]);
}

#[test]
fn u1_podman_pulls_on_while_its_upstream_is_killed_three_times() {
    pulls_on(ALL[2]);
}

#[test]
fn u1_skopeo_pulls_on_while_its_upstream_is_killed_three_times() {
    pulls_on(ALL[3]);
}
