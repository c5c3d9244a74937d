//! Clients that are slow, silent, many or hostile: what they cost is bounded, and others are served at once.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};
use tidegate_tests::certificate::Certificate;
use tidegate_tests::content::Content;
use tidegate_tests::fake::Fake;
use tidegate_tests::http2::{Connection, END_HEADERS, END_STREAM, INITIAL_WINDOW, field, frame, head, kind};
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;
use tidegate_tests::{HANG, eventually, heavy};

use crate::{APP, app_blob, assert_caches, assert_pulls, assert_whole, fake_with_app, proxied};

/// A new client is answered within a second: ten times that is the guard.
const AT_ONCE: Duration = Duration::from_secs(10);
/// What the process may take while it is attacked.
const MEMORY_MAX: u64 = 128 << 20;

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.authority()).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.set_write_timeout(Some(HANG)).unwrap();
    stream
}

/// All that comes until the connection ends.
fn to_the_end(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

/// Fails unless a new client is served at once, and the memory is bounded.
#[track_caller]
fn assert_serves_others(proxy: &Proxy) {
    let began = Instant::now();
    assert_eq!(proxy.get("/v2/").fetch().status, 200);
    assert!(began.elapsed() < AT_ONCE, "a new client waits for {:?}", began.elapsed());
    let peak = proxy.process().memory_bytes("VmHWM");
    assert!(peak < MEMORY_MAX, "{} MiB", peak >> 20);
}

fn descriptors(proxy: &Proxy) -> usize {
    fs::read_dir(format!("/proc/{}/fd", proxy.process().id())).unwrap().count()
}

#[test]
fn c2_slow_readers_do_not_hold_up_the_fill_or_the_others() {
    let _alone = heavy();
    let (fake, content) = (Fake::start(), Content::noise(20, 64 << 20));
    let path = fake.put_blob("library/app", content.clone());
    let proxy = Site::of(&fake.url()).limits("write_stall = \"3s\"").start();
    // Each takes a little, and then nothing.
    let slow: Vec<_> = (0..200)
        .map(|_| {
            let mut response = proxy.get(&path).open().unwrap();
            let mut some = [0; 1000];
            assert!(response.read_some(&mut some).unwrap() > 0);
            response
        })
        .collect();
    // The fill goes at line rate, and so does whoever reads.
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    assert_eq!(fake.count("GET", &path), 1);
    assert_serves_others(&proxy);
    // Those that take nothing are given up, by the time that is configured.
    let mark = proxy.beginning();
    eventually("all of them are given up", || {
        proxy.events(mark, "request").iter().filter(|event| !event.field("broken").is_empty()).count() == slow.len()
    });
    drop(slow);
    eventually("no descriptor is left", || descriptors(&proxy) < 40);
}

#[test]
fn c3_idle_connections_and_half_heads_are_closed_and_new_clients_served_meanwhile() {
    let _alone = heavy();
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).limits("request_head = \"4s\"").start();
    assert_caches(&proxy, &image);
    // 10,000 of each where the machine lets us: this process has one end of each, the proxy the other.
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let each = usize::try_from(limit / 8).unwrap_or(usize::MAX).min(10_000);
    println!("{each} idle connections and as many half heads");
    let before = descriptors(&proxy);
    let held: Vec<_> = (0..each * 2)
        .map(|number| {
            let mut stream = connect(&proxy);
            if number % 2 == 0 {
                stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX-Slow: ").unwrap();
            }
            stream
        })
        .collect();
    assert_serves_others(&proxy);
    assert_pulls(&proxy, &image);
    for stream in &held {
        let told = to_the_end(stream);
        assert!(told.is_empty() || told.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&told));
    }
    drop(held);
    eventually("no descriptor is left", || descriptors(&proxy) <= before);
}

#[test]
fn c3_a_full_table_lets_a_new_client_in_at_once() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).limits("connections = 20\nrequest_head = \"10m\"").start();
    assert_caches(&proxy, &image);
    let held: Vec<_> = (0..60).map(|_| connect(&proxy)).collect();
    // Nobody would leave for ten minutes.
    assert_serves_others(&proxy);
    assert_pulls(&proxy, &image);
    // Those who were let in first had to go.
    assert_eq!(to_the_end(&held[0]), b"");
    let metrics = proxy.admin("/metrics").text();
    let open = metrics.lines().find_map(|line| line.strip_prefix("tidegate_connections{listener=\"clients\"} "));
    assert!(open.unwrap().parse::<usize>().unwrap() <= 20, "{metrics}");
}

#[test]
fn c3_a_tls_handshake_that_stalls_is_ended() {
    let (fake, _image) = fake_with_app();
    let site = Site::of(&fake.url()).limits("request_head = \"1s\"");
    let [cert, key] = Certificate::for_loopback(90).write(&site.path(""));
    let tls = format!("tls = {{ certificate = \"{}\", key = \"{}\" }}", cert.display(), key.display());
    let proxy = site.top(&tls).start();
    for bytes in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        let mut stream = connect(&proxy);
        stream.write_all(bytes).unwrap();
        to_the_end(&stream);
    }
}

#[test]
fn c3_too_few_descriptors_never_end_the_listener() {
    let (fake, image) = fake_with_app();
    let limits = ["prlimit", "--nofile=256:256"];
    if Command::new("prlimit").arg("--version").output().is_err() {
        println!("not tried: prlimit is not installed");
        return;
    }
    let proxy = Site::of(&fake.url()).limits("request_head = \"10m\"").wrapped(&limits).start();
    assert_caches(&proxy, &image);
    let held: Vec<_> = (0..600).map(|_| connect(&proxy)).collect();
    assert_serves_others(&proxy);
    // What a pull itself needs is there as well: the cache is read, and an upstream is asked.
    assert_pulls(&proxy, &image);
    let content = Content::noise(21, 100_000);
    let path = fake.put_blob("library/app", content.clone());
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    assert_eq!(proxy.admin("/healthz").status, 200);
    drop(held);
    assert_serves_others(&proxy);
}

/// An attack over HTTP/2: whatever it does, it ends within the guard, and others are served.
fn attack(proxy: &Proxy, does: impl FnOnce(&mut Connection)) -> bool {
    let mut connection = Connection::open(&proxy.authority(), &[]).unwrap();
    does(&mut connection);
    assert_serves_others(proxy);
    connection.read_to_end()
}

#[test]
fn c5_rapid_reset_ends_the_connection() {
    let (_fake, image, proxy) = proxied();
    let block = head("GET", APP);
    let mut bytes = Vec::new();
    for number in 0..20_000 {
        let stream = number * 2 + 1;
        bytes.extend(frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &block));
        bytes.extend(frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    let goaway = attack(&proxy, |connection| {
        // It is closed before all of it is out.
        let sent = connection.send_raw(&bytes);
        println!("{sent:?}");
    });
    println!("GOAWAY: {goaway}");
    assert_pulls(&proxy, &image);
    eventually("no request is left", || proxy.admin("/metrics").text().contains("tidegate_requests_in_flight 0\n"));
}

#[test]
fn c5_a_head_without_end_ends_the_connection() {
    let (_fake, image, proxy) = proxied();
    let goaway = attack(&proxy, |connection| {
        let stream = connection.next_stream();
        let _ = connection.send(kind::HEADERS, END_STREAM, stream, &head("GET", APP));
        let more = field("x-more", &"a".repeat(8000));
        for _ in 0..100_000 {
            if connection.send(kind::CONTINUATION, 0, stream, &more).is_err() {
                return;
            }
        }
        panic!("800 MB of head are taken");
    });
    println!("GOAWAY: {goaway}");
    assert_pulls(&proxy, &image);
}

#[test]
fn c5_empty_frames_end_the_connection() {
    let (_fake, image, proxy) = proxied();
    attack(&proxy, |connection| {
        let stream = connection.next_stream();
        connection.send(kind::HEADERS, END_HEADERS, stream, &head("GET", APP)).unwrap();
        let empty = frame(kind::DATA, 0, stream, b"").repeat(1000);
        // 100,000 would do; it never ends by itself.
        while connection.send_raw(&empty).is_ok() {}
    });
    assert_pulls(&proxy, &image);
}

#[test]
fn c5_settings_and_pings_without_end_end_the_connection() {
    let (_fake, image, proxy) = proxied();
    for flood in [frame(kind::SETTINGS, 0, 0, b""), frame(kind::PING, 0, 0, b"12345678")] {
        let flood = flood.repeat(1000);
        attack(&proxy, |connection| {
            // The answers are not read.
            while connection.send_raw(&flood).is_ok() {}
        });
    }
    assert_pulls(&proxy, &image);
}

#[test]
fn c5_streams_without_a_window_are_ended() {
    let (fake, content) = (Fake::start(), Content::noise(22, 3_000_000));
    let path = fake.put_blob("library/app", content.clone());
    let proxy = Site::of(&fake.url()).limits("write_stall = \"1s\"").start();
    let mut connection = Connection::open(&proxy.authority(), &[(INITIAL_WINDOW, 0)]).unwrap();
    for _ in 0..100 {
        connection.get(&path).unwrap();
    }
    let mut resets = 0;
    while resets < 100 {
        resets += usize::from(connection.read().expect("it goes on").kind == kind::RST_STREAM);
    }
    assert_serves_others(&proxy);
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    // Whoever asks for nothing more is said goodbye to.
    assert!(connection.read_to_end());
}

#[test]
fn c5_more_streams_than_allowed_are_refused() {
    let (fake, content) = (Fake::start(), Content::noise(23, 3_000_000));
    let path = fake.put_blob("library/app", content.clone());
    let proxy = Site::of(&fake.url()).start();
    let mut connection = Connection::open(&proxy.authority(), &[(INITIAL_WINDOW, 0)]).unwrap();
    for _ in 0..300 {
        if connection.get(&path).is_err() {
            break;
        }
    }
    let (mut heads, mut refused) = (0, 0);
    while heads + refused < 300 {
        match connection.read() {
            Ok(frame) if frame.kind == kind::HEADERS => heads += 1,
            Ok(frame) if frame.kind == kind::RST_STREAM => refused += 1,
            Ok(_) => {}
            // With so many it is no client.
            Err(_) => break,
        }
    }
    assert!(heads <= 128, "{heads} streams at once");
    drop(connection);
    assert_serves_others(&proxy);
}

/// Sends bytes, a second request behind them, and gives all that comes until the connection ends.
fn smuggle(proxy: &Proxy, request: &str) -> String {
    let mut stream = connect(proxy);
    let second = "GET /v2/library/smuggled/manifests/1 HTTP/1.1\r\nHost: a\r\n\r\n";
    // It may be closed before all of it is out.
    let _ = stream.write_all(format!("{request}{second}").as_bytes());
    String::from_utf8_lossy(&to_the_end(&stream)).into_owned()
}

#[test]
fn c6_what_could_be_read_in_two_ways_ends_the_connection() {
    let (fake, image, proxy) = proxied();
    assert_caches(&proxy, &image);
    let (hit, miss) = (app_blob(&image.layer_digest(0)), "/v2/library/app/manifests/none".to_owned());
    for path in [hit, miss] {
        for framing in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: \r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: chunked\r\n",
            "X-A: b\r\n c\r\n",
            "X-A : b\r\n",
            "X-A: b\0c\r\n",
            ": b\r\n",
            "Host: b\r\n",
        ] {
            let told = smuggle(&proxy, &format!("GET {path} HTTP/1.1\r\nHost: a\r\n{framing}\r\n"));
            let statuses: Vec<_> = told.match_indices("HTTP/1.").map(|(at, _)| &told[at + 9..at + 12]).collect();
            assert!(matches!(statuses.as_slice(), ["400" | "501"]), "{path} {framing:?}: {statuses:?}");
        }
        let told = smuggle(&proxy, &format!("GET {path} HTTP/1.1\r\n\r\n"));
        assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("one header Host"), "{told}");
    }
    assert!(fake.seen().iter().all(|seen| !seen.path.contains("smuggled")));
    // And the upstream got nothing of what such clients sent.
    assert!(fake.seen().iter().all(|seen| seen.fields.get("X-A").is_none()));
}

#[test]
fn hosts_that_are_none_and_addresses_that_are_too_long_are_refused() {
    let (fake, image, proxy) = proxied();
    for host in ["a b<>", "[fe80::1%25eth0]", "user@host", ""] {
        let answer = proxy.get(APP).field("Host", host).fetch();
        assert_eq!((answer.status, answer.code().as_str()), (400, "UNSUPPORTED"), "{host}");
    }
    let long = proxy.get(&format!("/v2/{}/manifests/1", "a".repeat(9000))).fetch();
    assert_eq!((long.status, long.code().as_str()), (414, "UNSUPPORTED"));
    assert!(fake.seen().is_empty());
    let mut accept = String::new();
    while accept.len() < 16 << 10 {
        let _ = write!(accept, "application/vnd.test.{}, ", accept.len());
    }
    assert_whole(&proxy.get(APP).field("Accept", &format!("{accept}*/*")).fetch(), &image.digest());
}

#[test]
fn a_body_is_refused_without_being_asked_for_and_the_answer_arrives() {
    let (fake, _image, proxy) = proxied();
    let expects = smuggle(
        &proxy,
        &format!("GET {APP} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n"),
    );
    assert!(expects.starts_with("HTTP/1.1 400 ") && !expects.contains("100 Continue"), "{expects}");
    // A client that sends first and reads then gets the answer all the same.
    for _ in 0..20 {
        let mut stream = connect(&proxy);
        let head = "PUT /v2/library/app/manifests/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&vec![b'x'; 500_000]).unwrap();
        let told = String::from_utf8_lossy(&to_the_end(&stream)).into_owned();
        assert!(told.starts_with("HTTP/1.1 405 ") && told.contains("UNSUPPORTED"), "{told}");
    }
    assert!(fake.seen().is_empty());
}

#[test]
fn the_line_of_a_request_tells_what_the_policy_decided() {
    use tidegate_tests::plugins::allowlist;
    let (fake, _image) = fake_with_app();
    let proxy = Site::of(&fake.url())
        .with([("10-allowlist.wasm", &allowlist()), ("10-allowlist.toml", b"block = [\"docker.io/library/redis\"]")])
        .start();
    let mark = proxy.mark();
    proxy.get(APP).fetch();
    proxy.wait(mark, "request", &[("decision", "allow"), ("status", "200")]);
    proxy.get("/v2/library/redis/manifests/1").fetch();
    let denied = proxy.wait(mark, "request", &[("decision", "deny"), ("policy", "allowlist"), ("status", "403")]);
    assert!(denied.field("reason").contains("rule \"docker.io/library/redis\""), "{}", denied.field("reason"));
    let metrics = proxy.admin("/metrics").text();
    for line in [
        "tidegate_plugin_calls_total{plugin=\"allowlist\",hook=\"admission\",outcome=\"ok\"} 2",
        "tidegate_request_seconds_count{content=\"manifest\",source=\"upstream\"} 1",
        "tidegate_first_byte_seconds_count{content=\"manifest\",source=\"upstream\"} 1",
        "tidegate_connections{listener=\"admin\"} 1",
        "tidegate_panics_total 0",
        "tidegate_build_info{version=",
        "tidegate_process_start_time_seconds ",
    ] {
        assert!(metrics.lines().any(|had| had.starts_with(line)), "{line}: {metrics}");
    }
    assert!(thread::panicking() || metrics.contains("# EOF"));
}
