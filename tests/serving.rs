//! How clients are served: TLS, HTTP/2, the end of the program, and the service manager that starts it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use rustix::process::Signal;
use tidegate_tests::certificate::Certificate;
use tidegate_tests::content::{Content, sha256};
use tidegate_tests::fake::{Act, Fake};
use tidegate_tests::gate::Gate;
use tidegate_tests::guests;
use tidegate_tests::http::{End, Response};
use tidegate_tests::http2::{Connection, Ended, INITIAL_WINDOW, kind};
use tidegate_tests::image::Image;
use tidegate_tests::process::run;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;
use tidegate_tests::{HANG, eventually, heavy, own_address};

use crate::{APP, app_blob, assert_pulls, assert_whole, fake_with_app, proxied};

const SIZE: u64 = 3_000_000;

/// A proxy that speaks TLS, with a certificate that ends after so many days.
fn secured(days: u32) -> (Fake, Image, Certificate, Proxy) {
    let (fake, image) = fake_with_app();
    let site = Site::of(&fake.url());
    let certificate = Certificate::for_loopback(days);
    let [cert, key] = certificate.write(&site.path(""));
    let tls = format!("tls = {{ certificate = \"{}\", key = \"{}\" }}", cert.display(), key.display());
    let proxy = site.top(&tls).start();
    (fake, image, certificate, proxy)
}

/// Asks with curl, which trusts one certificate.
fn curl(trusts: &Path, arguments: &[&str]) -> Output {
    run(Command::new("curl").args(["-sS", "--noproxy", "*", "--cacert"]).arg(trusts).args(arguments))
}

/// A blob whose second half waits for the gate, and a client that has its beginning.
fn half_way(fake: &Fake, proxy: &Proxy) -> (Content, Gate, Response, u64) {
    let (content, gate) = (Content::noise(SIZE, SIZE), Gate::new());
    let path = fake.put_blob("library/app", content.clone());
    fake.next(&path, Act::Hold(SIZE / 2, gate.clone()));
    let mut client = proxy.get(&path).open().unwrap();
    let mut first = [0; 1000];
    let read = client.read_some(&mut first).unwrap() as u64;
    gate.wait_reached();
    (content, gate, client, read)
}

#[test]
fn tls_carries_both_versions_of_http() {
    let (_fake, image, _certificate, proxy) = secured(90);
    let (trusts, body) = (proxy.site().path("cert.pem"), proxy.site().path("body"));
    let layer = image.layer_digest(0);
    for (option, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        for (path, digest) in [(APP.to_owned(), image.digest()), (app_blob(&layer), layer.clone())] {
            let to = body.to_str().unwrap();
            let output = curl(&trusts, &[option, "-o", to, "-w", "%{http_version} %{http_code}", &proxy.url(&path)]);
            let told = String::from_utf8_lossy(&output.stdout);
            assert_eq!(told, format!("{version} 200"), "{option} {path}: {output:?}");
            assert_eq!(sha256(&std::fs::read(&body).unwrap()), digest, "{option} {path}");
        }
    }
    let old = curl(&trusts, &["--tlsv1.1", "--tls-max", "1.1", &proxy.url("/v2/")]);
    assert!(!old.status.success(), "TLS 1.1 is spoken");
}

#[test]
fn plain_http_is_told_to_speak_tls_and_tls_on_a_plain_port_is_closed() {
    let (_fake, _image, _certificate, proxy) = secured(90);
    let exchange = |authority: &str, bytes: &[u8]| {
        let mut stream = TcpStream::connect(authority).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        (answer, read.is_ok())
    };
    let (answer, clean) = exchange(&proxy.authority(), b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("https://") && clean, "{answer}");
    let (_plain_fake, _image, plain) = proxied();
    let (answer, _) = exchange(&plain.authority(), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    assert_eq!(answer, "");
}

#[test]
fn a_certificate_is_replaced_while_it_serves_and_a_bad_pair_is_not() {
    let (_fake, _image, first, proxy) = secured(90);
    let site = proxy.site();
    let (old, new) = (site.path("old.pem"), site.path("new.pem"));
    let second = Certificate::for_loopback(90);
    std::fs::write(&old, &first.certificate).unwrap();
    std::fs::write(&new, &second.certificate).unwrap();
    let accepts = |trusts: &Path| curl(trusts, &[&proxy.url("/v2/")]).status.success();
    assert!(accepts(&old) && !accepts(&new));
    let mark = proxy.mark();
    let mixed = Certificate { certificate: second.certificate.clone(), key: first.key.clone() };
    mixed.write(&site.path(""));
    let refused = proxy.wait(mark, "configuration not loaded", &[]).field("reason");
    assert!(refused.contains("tls.key") && refused.contains("is not the key of the certificate"), "{refused}");
    assert!(accepts(&old), "the pair of before serves");
    let mark = proxy.mark();
    second.write(&site.path(""));
    proxy.wait(mark, "configuration in effect", &[]);
    assert!(accepts(&new) && !accepts(&old));
    assert!(!proxy.log().contains("PRIVATE KEY"));
}

#[test]
fn a_certificate_that_ends_soon_is_told_and_measured() {
    let (_fake, _image, _certificate, proxy) = secured(5);
    let told = proxy.wait(proxy.beginning(), "the certificate ends soon: put a new one in its place", &[]);
    assert_eq!(told.field("days"), "4");
    let metrics = proxy.admin("/metrics").text();
    assert!(metrics.contains("tidegate_certificate_expiry_timestamp_seconds{listener=\"clients\"} 1"), "{metrics}");
}

#[test]
fn plain_http2_serves_a_whole_pull() {
    let (_fake, image, proxy) = proxied();
    let mut connection = Connection::open(&proxy.authority(), &[]).unwrap();
    for (path, digest) in std::iter::once((APP.to_owned(), image.digest()))
        .chain(image.blobs.iter().map(|blob| (app_blob(&sha256(blob)), sha256(blob))))
    {
        let stream = connection.get(&path).unwrap();
        let (body, ended) = connection.finish(stream);
        assert_eq!((sha256(&body), ended), (digest, Ended::InOrder), "{path}");
    }
}

#[test]
fn i6_a_body_that_breaks_ends_its_stream_early_and_in_order() {
    let (fake, content) = (Fake::start(), Content::noise(8, SIZE));
    let path = fake.put_blob("library/app", content.clone());
    let proxy = Site::of(&fake.url()).start();
    fake.next(&path, Act::CloseAfter(SIZE / 2));
    fake.always(&path, Act::CloseAfter(0));
    let mut connection = Connection::open(&proxy.authority(), &[]).unwrap();
    let stream = connection.get(&path).unwrap();
    let (body, ended) = connection.finish(stream);
    assert_eq!(ended, Ended::InOrder);
    assert!((body.len() as u64) < SIZE && content.holds(0, &body), "{} bytes", body.len());
    // The connection goes on.
    fake.always(&path, Act::Serve);
    let stream = connection.get(&path).unwrap();
    assert_eq!(connection.finish(stream).0.len() as u64, SIZE);
    proxy.wait(proxy.beginning(), "request", &[("status", "200")]);
    assert!(proxy.events(proxy.beginning(), "request").iter().any(|event| !event.field("broken").is_empty()));
}

#[test]
fn a_stream_whose_client_takes_nothing_is_ended_and_the_others_go_on() {
    let (fake, content) = (Fake::start(), Content::noise(9, SIZE));
    let path = fake.put_blob("library/app", content.clone());
    let proxy = Site::of(&fake.url()).limits("write_stall = \"1s\"").start();
    let mut connection = Connection::open(&proxy.authority(), &[(INITIAL_WINDOW, 0)]).unwrap();
    let (stalls, reads) = (connection.get(&path).unwrap(), connection.get(&path).unwrap());
    connection.allow(0, 1 << 30).unwrap();
    connection.allow(reads, 1 << 30).unwrap();
    let (mut reset, mut whole, mut received) = (false, false, 0);
    while !(reset && whole) {
        let frame = connection.read().expect("the connection goes on");
        match (frame.stream, frame.kind) {
            (stream, kind::RST_STREAM) if stream == stalls => reset = true,
            (stream, kind::DATA) if stream == reads => {
                assert!(content.holds(received, &frame.payload));
                received += frame.payload.len() as u64;
                whole |= received == SIZE;
            }
            _ => {}
        }
    }
    let next = connection.get("/v2/").unwrap();
    connection.allow(next, 1000).unwrap();
    assert_eq!(connection.finish(next).0, b"{}");
}

#[test]
fn i5_streams_whose_clients_take_nothing_cost_little_memory() {
    let _alone = heavy();
    let (fake, content) = (Fake::start(), Content::noise(10, 1 << 30));
    let path = fake.put_blob("library/app", content.clone());
    let gate = Gate::new();
    // The fill itself is not what is measured.
    fake.next(&path, Act::Hold(64 << 20, gate.clone()));
    let proxy = Site::of(&fake.url()).start();
    let mut connections = Vec::new();
    for _ in 0..4 {
        let mut connection = Connection::open(&proxy.authority(), &[]).unwrap();
        connection.allow(0, 1 << 30).unwrap();
        let streams: Vec<u32> = (0..64).map(|_| connection.get(&path).unwrap()).collect();
        let mut full = std::collections::HashMap::new();
        // Each gets its first window, 65,535 bytes, and no more is allowed.
        while full.values().filter(|bytes| **bytes == 65_535).count() < streams.len() {
            let frame = connection.read().unwrap();
            if frame.kind == kind::DATA {
                *full.entry(frame.stream).or_insert(0) += frame.payload.len();
            }
        }
        connections.push(connection);
    }
    gate.wait_reached();
    let peak = proxy.process().memory_bytes("VmHWM");
    assert!(peak < 128 << 20, "{} MiB with 256 streams", peak >> 20);
    println!("256 streams that wait: {} MiB", peak >> 20);
    drop(connections);
    gate.open();
}

#[test]
fn a_request_with_a_body_is_refused_over_http2() {
    let (_fake, _image, proxy) = proxied();
    let mut connection = Connection::open(&proxy.authority(), &[]).unwrap();
    let stream = connection.next_stream();
    let head = tidegate_tests::http2::head("GET", APP);
    connection.send(kind::HEADERS, tidegate_tests::http2::END_HEADERS, stream, &head).unwrap();
    connection.send(kind::DATA, 0, stream, b"what is this").unwrap();
    let (body, _) = connection.finish(stream);
    let body = String::from_utf8_lossy(&body).into_owned();
    assert!(body.contains("UNSUPPORTED") && body.contains("has no body"), "{body}");
}

#[test]
fn t3_a_signal_closes_what_is_idle_lets_bodies_finish_and_exits_with_0() {
    let (fake, _image, proxy) = proxied();
    let (content, gate, client, read) = half_way(&fake, &proxy);
    let mut idle = TcpStream::connect(proxy.authority()).unwrap();
    idle.set_read_timeout(Some(HANG)).unwrap();
    idle.write_all(b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut answer = [0; 4096];
    assert!(idle.read(&mut answer).unwrap() > 0);
    let mut http2 = Connection::open(&proxy.authority(), &[]).unwrap();
    let stream = http2.get("/v2/").unwrap();
    http2.finish(stream);
    let mark = proxy.mark();
    proxy.process().signal(Signal::TERM);
    proxy.wait(mark, "draining: a second signal ends at once", &[]);
    // Idle connections end at once, whatever else is under way.
    assert_eq!(idle.read(&mut answer).unwrap(), 0);
    assert!(http2.read_to_end(), "HTTP/2 says goodbye");
    assert_eq!(proxy.admin("/readyz").status, 503);
    assert_eq!(proxy.admin("/healthz").status, 200);
    assert!(TcpStream::connect(proxy.authority()).is_err(), "nobody new is let in");
    gate.open();
    let (rest, end) = client.drain(|offset, piece| assert!(content.holds(read + offset, piece)));
    assert_eq!((read + rest, end), (SIZE, End::Whole));
    assert_eq!(proxy.process().wait().code(), Some(0));
    let site = proxy.site();
    assert_eq!(site.staging(), []);
    assert!(site.blob_path(&content.digest()).exists());
}

#[test]
fn t3_when_the_time_is_over_bodies_end_short_by_a_clean_close() {
    let fake = Fake::start();
    let proxy = Site::of(&fake.url()).limits("drain = \"1s\"").start();
    let (content, gate, client, read) = half_way(&fake, &proxy);
    let mut http2 = Connection::open(&proxy.authority(), &[]).unwrap();
    let stream = http2.get(&format!("/v2/library/app/blobs/{}", content.digest())).unwrap();
    assert!(http2.read().unwrap().is_ok());
    proxy.process().signal(Signal::TERM);
    // A stream ends in order too, so that its client resumes.
    let (body, ended) = http2.finish(stream);
    assert_eq!(ended, Ended::InOrder, "after {} bytes", body.len());
    assert!((body.len() as u64) < SIZE && content.holds(0, &body));
    let (rest, end) = client.drain(|offset, piece| assert!(content.holds(read + offset, piece)));
    assert_eq!(end, End::Short, "after {rest} bytes");
    // A fill is under way all the while, and does not keep the process.
    assert_eq!(proxy.process().wait().code(), Some(0));
    assert_eq!(proxy.site().blobs(), []);
    gate.open();
}

#[test]
fn t3_a_second_signal_ends_at_once() {
    let (fake, _image, proxy) = proxied();
    let (content, gate, client, read) = half_way(&fake, &proxy);
    let mark = proxy.mark();
    proxy.process().signal(Signal::TERM);
    proxy.wait(mark, "draining: a second signal ends at once", &[]);
    proxy.process().signal(Signal::TERM);
    let (_, end) = client.drain(|offset, piece| assert!(content.holds(read + offset, piece)));
    assert_eq!(end, End::Short);
    assert_eq!(proxy.process().wait().code(), Some(0));
    gate.open();
}

#[test]
fn t3_a_signal_while_plugins_are_compiled_ends_it() {
    let (_fake, _image, proxy) = proxied();
    for number in 0..8 {
        proxy.site().install(&format!("{number}0-p{number}.wasm"), &guests::stamped(number));
    }
    proxy.process().signal(Signal::TERM);
    assert_eq!(proxy.process().wait().code(), Some(0));
    // And at the start, before it serves.
    let site = proxy.site().clone();
    let process = tidegate_tests::process::Process::start(
        Command::new(tidegate_tests::program::tidegate()).args(["serve", "--config"]).arg(site.path("tidegate.toml")),
    );
    eventually("it begins", || process.err.count() > 0 || process.ended().is_some());
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());
}

#[test]
fn t3_a_signal_under_load_loses_no_answer() {
    let (_fake, image, proxy) = proxied();
    assert_pulls(&proxy, &image);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut answered = 0;
                    // Refused or closed before a status line: a client takes the next mirror. All else must be whole.
                    while let Ok(response) = proxy.get(APP).open() {
                        assert_whole(&response.finish(), &image.digest());
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        proxy.wait(proxy.beginning(), "request", &[("source", "cache")]);
        proxy.process().signal(Signal::TERM);
        let answered: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
        assert!(answered > 0);
    });
    assert_eq!(proxy.process().wait().code(), Some(0));
}

#[test]
fn a_service_manager_is_told_how_it_is() {
    let (fake, _image) = fake_with_app();
    let site = Site::of(&fake.url());
    let path = site.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(HANG)).unwrap();
    let hear = |what: &str| {
        let mut buffer = [0; 1024];
        loop {
            let read = manager.recv(&mut buffer).unwrap_or_else(|error| panic!("no {what}: {error}"));
            let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
            if text.lines().any(|line| line.starts_with(what)) {
                return text;
            }
        }
    };
    let site = site.variable("NOTIFY_SOCKET", path.to_str().unwrap()).variable("WATCHDOG_USEC", "200000");
    let proxy = site.start();
    assert!(hear("READY=1").contains("STATUS=serving"));
    hear("WATCHDOG=1");
    proxy.process().signal(Signal::HUP);
    assert!(hear("RELOADING=1").contains("MONOTONIC_USEC="));
    assert!(hear("READY=1").contains("STATUS=configuration 2 in effect"));
    proxy.process().signal(Signal::TERM);
    hear("STOPPING=1");
    assert_eq!(proxy.process().wait().code(), Some(0));
}

#[test]
fn a_service_manager_gives_the_sockets() {
    let (fake, image) = fake_with_app();
    // Free a moment ago, on an address that nobody else has.
    let address = own_address();
    let free = || TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().to_string();
    let (clients, admin) = (free(), free());
    let activate = ["systemd-socket-activate", "-l", &clients, "-l", &admin];
    if Command::new("systemd-socket-activate").arg("--version").output().is_err() {
        println!("not tried: systemd-socket-activate is not installed");
        return;
    }
    // The first client starts it.
    let first = clients.clone();
    let first = thread::spawn(move || eventually("somebody listens", || TcpStream::connect(&first).is_ok()));
    let proxy = Site::of(&fake.url()).wrapped(&activate).start();
    first.join().unwrap();
    assert_eq!(proxy.url(""), format!("http://{clients}"));
    assert_pulls(&proxy, &image);
    assert_eq!(proxy.admin("/healthz").status, 200);
    // What it was given it keeps.
    let mark = proxy.mark();
    proxy.site().edit_config(|text| text.replace("listen = \"127.0.0.1:0\"", "listen = \"127.0.0.1:1\""));
    proxy.wait(
        mark,
        "a change of these keys takes effect at the next start; all else is in effect",
        &[("keys", "listen")],
    );
    assert_pulls(&proxy, &image);
}
