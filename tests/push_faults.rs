//! Pushes that go wrong, pushes that are large, and who may not learn what.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use tidegate_tests::content::{Content, noise, sha256};
use tidegate_tests::eventually;
use tidegate_tests::fake::{Act, Fake, Reply, Tokens, basic};
use tidegate_tests::gate::Gate;
use tidegate_tests::heavy;
use tidegate_tests::http::{self, Answer, Response};
use tidegate_tests::http2::{Connection, END_HEADERS, END_STREAM, head, kind};
use tidegate_tests::proxy::Proxy;
use tidegate_tests::registry::Registry;
use tidegate_tests::site::Site;

const MIB: u64 = 1 << 20;
const UPLOADS: &str = "/v2/team/app/blobs/uploads/";

fn site(url: &str) -> Site {
    Site::new().registry("docker.io", url, "push = true")
}

fn begin(proxy: &Proxy) -> String {
    let begun = http::method("POST", &proxy.url(UPLOADS)).carry(b"");
    assert_eq!(begun.status, 202, "{}", begun.text());
    location(&begun)
}

fn location(answer: &Answer) -> String {
    answer.fields.get("Location").expect("a location").to_owned()
}

/// Sends a head and no body yet.
fn start(proxy: &Proxy, method: &str, path: &str, length: u64) -> TcpStream {
    let request = http::method(method, &proxy.url(path)).field("Content-Length", &length.to_string());
    request.start().unwrap()
}

fn answer(stream: TcpStream) -> Answer {
    Response::read(BufReader::new(stream), "PATCH").expect("an answer").finish()
}

fn descriptors(proxy: &Proxy) -> usize {
    fs::read_dir(format!("/proc/{}/fd", proxy.process().id())).unwrap().count()
}

#[test]
fn i5_a_layer_of_a_gibibyte_is_pushed_with_memory_flat() {
    let _heavy = heavy();
    let registry = Registry::start();
    let proxy = site(&registry.url()).start();
    let layer = Content::noise(3, 1024 * MIB);
    let upload = begin(&proxy);
    proxy.process().reset_peak_memory();
    let before = proxy.process().memory_bytes("VmRSS");
    let mut stream = start(&proxy, "PATCH", &upload, layer.len());
    layer.write(&mut stream, 0, layer.len()).unwrap();
    let sent = answer(stream);
    assert_eq!(sent.status, 202, "{}", sent.text());
    assert_eq!(sent.fields.get("Range"), Some(format!("0-{}", layer.len() - 1).as_str()));
    let peak = proxy.process().memory_bytes("VmHWM");
    println!("from {} to {} MiB resident", before / MIB, peak / MIB);
    assert!(peak < 48 * MIB, "{} MiB resident", peak / MIB);
    let digest = layer.digest();
    let done = http::method("PUT", &proxy.url(&format!("{}?digest={digest}", location(&sent)))).carry(b"");
    assert_eq!(done.status, 201, "{}", done.text());
    let there = proxy.head(&format!("/v2/team/app/blobs/{digest}")).fetch();
    assert_eq!(there.fields.get("Content-Length"), Some(layer.len().to_string().as_str()));
    let metrics = proxy.admin("/metrics").text();
    let sent = format!("tidegate_upstream_sent_bytes_total{{registry=\"docker.io\"}} {}", layer.len());
    assert!(metrics.contains(&sent), "{metrics}");
}

#[test]
fn c1_a_client_that_goes_away_in_an_upload_leaves_nothing_open() {
    let registry = Registry::start();
    let proxy = site(&registry.url()).start();
    let upload = begin(&proxy);
    let before = descriptors(&proxy);
    for _ in 0..20 {
        let mark = proxy.mark();
        let mut stream = start(&proxy, "PATCH", &upload, MIB);
        stream.write_all(&noise(1, 100_000)).unwrap();
        drop(stream);
        let event = proxy.wait(mark, "request", &[("method", "PATCH")]);
        assert!(event.field("status") != "202", "{}", event.field("status"));
        assert!(!event.field("path").contains(upload.rsplit('/').next().unwrap()), "{}", event.field("path"));
    }
    eventually("what was open is closed", || descriptors(&proxy) <= before + 1);
    let done = http::method("PUT", &proxy.url(&format!("{}?digest={}", begin(&proxy), sha256(b"x")))).carry(b"x");
    assert_eq!(done.status, 201, "{}", done.text());
}

#[test]
fn u1_a_registry_that_is_killed_in_a_part_is_a_502() {
    let registry = Registry::start();
    let proxy = site(&registry.url()).start();
    let upload = begin(&proxy);
    let mut stream = start(&proxy, "PATCH", &upload, 64 * MIB);
    stream.write_all(&noise(1, 1 << 20)).unwrap();
    registry.stop();
    // Not all of it is taken; the answer comes all the same.
    let _ = Content::noise(2, 63 * MIB).write(&mut stream, 0, 63 * MIB);
    let told = answer(stream);
    assert_eq!(told.status, 502, "{}", told.text());
    assert!(told.message().contains("docker.io/team/app"), "{}", told.message());
    let refused = http::method("POST", &proxy.url(UPLOADS)).carry(b"");
    assert_eq!(refused.status, 502, "{}", refused.text());
    registry.restart();
    assert!(begin(&proxy).starts_with(UPLOADS));
}

#[test]
fn c2_a_client_that_sends_nothing_for_too_long_is_told_so() {
    let registry = Registry::start();
    let proxy = site(&registry.url()).limits("write_stall = \"1s\"").start();
    let upload = begin(&proxy);
    let mut stream = start(&proxy, "PATCH", &upload, MIB);
    stream.write_all(&noise(1, 1000)).unwrap();
    let told = answer(stream);
    assert_eq!(told.status, 400, "{}", told.text());
    assert!(told.message().contains("nothing came for 1s"), "{}", told.message());
    assert_eq!(told.fields.get("Connection"), Some("close"));
}

#[test]
fn u2_a_registry_that_takes_nothing_is_not_waited_for_for_ever() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let proxy = site(&url).limits("upstream_idle = \"1s\"\nupstream_push = \"1s\"").start();
    // A monolithic push is one request with a body; nothing is known of the registry before.
    let path = format!("{UPLOADS}?digest={}", sha256(b""));
    let reading = std::thread::spawn(move || {
        // Whether it wants a login, it says; what it is sent, it never reads.
        let (mut first, _) = listener.accept().unwrap();
        let mut asked = BufReader::new(first.try_clone().unwrap()).lines();
        while asked.next().is_some_and(|line| !line.unwrap().is_empty()) {}
        first.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        (first, listener.accept())
    });
    let mut stream = start(&proxy, "POST", &path, 256 * MIB);
    let _ = Content::noise(2, 256 * MIB).write(&mut stream, 0, 256 * MIB);
    let told = answer(stream);
    assert_eq!(told.status, 504, "{}", told.text());
    drop(reading);
}

#[test]
fn a_body_is_asked_for_only_when_it_is_wanted() {
    let registry = Registry::start();
    let proxy = site(&registry.url()).start();
    let ask = |path: &str| {
        let request = http::method("PATCH", &proxy.url(path)).field("Content-Length", "5");
        let mut stream = request.field("Expect", "100-continue").start().unwrap();
        let mut first = [0; 12];
        std::io::Read::read_exact(&mut stream, &mut first).unwrap();
        (String::from_utf8_lossy(&first).into_owned(), stream)
    };
    let (first, mut stream) = ask(&begin(&proxy));
    assert_eq!(first, "HTTP/1.1 100");
    stream.write_all(b"hello").unwrap();
    let mut rest = String::new();
    while !rest.contains("HTTP/1.1 202") {
        let mut more = [0; 512];
        let read = std::io::Read::read(&mut stream, &mut more).unwrap();
        assert!(read > 0, "{rest}");
        rest += &String::from_utf8_lossy(&more[..read]);
    }
    let (first, _) = ask("/v2/team/app/blobs/uploads/unknown");
    assert_eq!(first, "HTTP/1.1 404");
    let (first, _) = ask("/v2/quay.io/team/app/blobs/uploads/unknown");
    assert_eq!(first, "HTTP/1.1 405");
}

#[test]
fn chunked_bodies_go_through_as_they_come() {
    let registry = Registry::start();
    let proxy = site(&registry.url()).start();
    let request = http::method("PATCH", &proxy.url(&begin(&proxy))).field("Transfer-Encoding", "chunked");
    let mut stream = request.start().unwrap();
    let mut whole = Vec::new();
    for at in 0..50 {
        let piece = noise(at, 7777);
        write!(stream, "{:x}\r\n", piece.len()).unwrap();
        stream.write_all(&piece).unwrap();
        stream.write_all(b"\r\n").unwrap();
        whole.extend_from_slice(&piece);
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let sent = answer(stream);
    assert_eq!(sent.status, 202, "{}", sent.text());
    let done = http::method("PUT", &proxy.url(&format!("{}?digest={}", location(&sent), sha256(&whole)))).carry(b"");
    assert_eq!(done.status, 201, "{}", done.text());
    // A body of two lengths is none.
    let both = http::method("PATCH", &proxy.url(&begin(&proxy))).field("Transfer-Encoding", "chunked").carry(b"x");
    assert_eq!(both.status, 400, "{}", both.text());
}

#[test]
fn c5_a_body_goes_through_over_http2_and_no_more_than_it() {
    let registry = Registry::start();
    let proxy = site(&registry.url()).start();
    let (upload, mark) = (begin(&proxy), proxy.mark());
    let body = noise(5, 3 << 20);
    let mut connection = Connection::open(&proxy.authority(), &[]).unwrap();
    let stream = connection.next_stream();
    connection.send(kind::HEADERS, END_HEADERS, stream, &head("PATCH", &upload)).unwrap();
    // 65,535 bytes on the stream and on the connection, and what is allowed beyond (RFC 9113, section 6.9.2).
    let (mut on_stream, mut on_all, mut sent) = (65_535_usize, 65_535_usize, 0);
    while sent < body.len() {
        let most = on_stream.min(on_all).min(16 << 10).min(body.len() - sent);
        if most > 0 {
            let last = if sent + most == body.len() { END_STREAM } else { 0 };
            connection.send(kind::DATA, last, stream, &body[sent..sent + most]).unwrap();
            (sent, on_stream, on_all) = (sent + most, on_stream - most, on_all - most);
            continue;
        }
        let frame = connection.read().expect("the connection lives");
        assert_ne!(frame.kind, kind::RST_STREAM);
        if frame.kind == kind::WINDOW_UPDATE {
            let more = u32::from_be_bytes(frame.payload[..4].try_into().unwrap()) as usize;
            if frame.stream == 0 { on_all += more } else { on_stream += more }
        }
    }
    connection.finish(stream);
    let received = body.len().to_string();
    proxy.wait(mark, "request", &[("method", "PATCH"), ("status", "202"), ("received_bytes", &received)]);
    // What is no body that anybody wants still ends the connection.
    let flood = (0..1 << 20).all(|_| connection.send(kind::PING, 0, 0, &[0; 8]).is_ok());
    assert!(!flood);
}

#[test]
fn i9_an_upload_is_named_by_its_seal_alone_and_outlives_the_process() {
    let registry = Registry::start();
    let proxy = site(&registry.url()).with_fixed_ports().start();
    let upload = begin(&proxy);
    assert!(!upload.contains("_state") && !upload.contains(&registry.authority()), "{upload}");
    let name = upload.rsplit('/').next().unwrap();
    for path in [
        format!("/v2/team/other/blobs/uploads/{name}"),
        format!("/v2/team/app/blobs/uploads/{name}A"),
        "/v2/team/app/blobs/uploads/0b6d1a5e-0000-4000-8000-000000000000".to_owned(),
        "/v2/team/app/blobs/uploads/http%3A%2F%2F127.0.0.1%3A1%2F".to_owned(),
    ] {
        let refused = http::method("PATCH", &proxy.url(&path)).carry(b"x");
        assert_eq!((refused.status, refused.code().as_str()), (404, "BLOB_UPLOAD_UNKNOWN"), "{path}");
    }
    let site = proxy.kill9();
    let proxy = site.start();
    let sent = http::method("PATCH", &proxy.url(&upload)).carry(b"hello");
    assert_eq!(sent.status, 202, "{}", sent.text());
}

#[test]
fn i9_an_upload_that_leads_elsewhere_takes_no_credential_along() {
    let (fake, elsewhere) = (Fake::start(), Fake::start());
    fake.require_basic("ferry", "PASSWORD");
    let there = format!("{}/there", elsewhere.url());
    let open = Gate::new();
    open.open();
    fake.put(UPLOADS, "text/plain", b"x".to_vec().into());
    fake.always(UPLOADS, Act::Held(open, Reply::status(202).field("Location", &there)));
    elsewhere.always("/there", Act::Reply(Reply::status(202).field("Location", "/there").field("Range", "0-4")));
    let with = |lines: &str| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        fs::write(&file, "PASSWORD\n").unwrap();
        let lines = format!("push = true\nusername = \"ferry\"\npassword_file = \"{}\"\n{lines}", file.display());
        (Site::new().registry("docker.io", &fake.url(), &lines).start(), folder)
    };
    let (proxy, _folder) = with("");
    let refused = http::method("PATCH", &proxy.url(&begin(&proxy))).carry(b"hello");
    assert_eq!(refused.status, 502, "{}", refused.text());
    assert!(elsewhere.seen().is_empty());
    let (proxy, _folder) = with(&format!("redirect_hosts = [\"{}\"]", elsewhere.authority()));
    let sent = http::method("PATCH", &proxy.url(&begin(&proxy))).carry(b"hello");
    assert_eq!(sent.status, 202, "{}", sent.text());
    let seen = elsewhere.seen();
    assert_eq!((seen.len(), seen[0].body.as_str(), seen[0].fields.get("Authorization")), (1, "hello", None));
    assert!(
        fake.seen().iter().any(|seen| seen.fields.get("Authorization") == Some(basic("ferry", "PASSWORD").as_str()))
    );
}

#[test]
fn u9_a_body_is_sent_once_with_a_token_that_is_known_before() {
    let fake = Fake::start();
    let tokens = Tokens::anonymous();
    fake.require_bearer(&format!("{}/token", fake.url()), &tokens);
    fake.issue(&tokens);
    let open = Gate::new();
    open.open();
    let upload = "/v2/team/app/blobs/uploads/1";
    for path in [UPLOADS, upload] {
        fake.put(path, "text/plain", b"x".to_vec().into());
        fake.always(path, Act::Held(open.clone(), Reply::status(202).field("Location", upload)));
    }
    let proxy = site(&fake.url()).with_fixed_ports().start();
    let begun = begin(&proxy);
    let bodies = || fake.seen().iter().filter(|seen| seen.method == "PATCH").count();
    let sent = http::method("PATCH", &proxy.url(&begun)).carry(b"hello");
    assert_eq!((sent.status, bodies(), tokens.given()), (202, 1, 1), "{}", sent.text());
    let scopes =
        || fake.seen().iter().filter(|seen| seen.path == "/token").map(|seen| seen.query.clone()).collect::<Vec<_>>();
    assert!(scopes()[0].contains("scope=repository%3Ateam%2Fapp%3Apull%2Cpush"), "{:?}", scopes());
    // Another process knows nothing yet, and asks before it sends.
    let site = proxy.kill9();
    let proxy = site.start();
    let sent = http::method("PATCH", &proxy.url(&begun)).carry(b"hello");
    assert_eq!((sent.status, bodies(), tokens.given()), (202, 2, 2), "{}", sent.text());
    assert!(scopes()[1].contains("scope=repository%3Ateam%2Fapp%3Apull%2Cpush"), "{:?}", scopes());
    // A token that is taken back in between costs this part, and the next has a new one.
    tokens.expire();
    let lost = http::method("PATCH", &proxy.url(&begun)).carry(b"hello");
    assert_eq!(lost.status, 502, "{}", lost.text());
    assert!(lost.message().contains("push again"), "{}", lost.message());
    let sent = http::method("PATCH", &proxy.url(&begun)).carry(b"hello");
    assert_eq!(sent.status, 202, "{}", sent.text());
    // To remove something is another right.
    let gone = http::method("DELETE", &proxy.url("/v2/team/app/manifests/1")).fetch();
    assert_eq!(gone.status, 404, "{}", gone.text());
    assert!(scopes().last().unwrap().contains("scope=repository%3Ateam%2Fapp%3Adelete"), "{:?}", scopes());
}

#[test]
fn a_registry_that_refuses_us_is_403_with_its_words() {
    let fake = Fake::start();
    let body = br#"{"errors":[{"code":"DENIED","message":"the tag is immutable"}]}"#;
    fake.always("/v2/team/app/manifests/1", Act::Reply(Reply::status(403).body(body)));
    fake.always(UPLOADS, Act::Reply(Reply::status(503).body(body)));
    fake.always("/v2/team/app/manifests/2", Act::Reply(Reply::status(429).field("Retry-After", "7")));
    let proxy = site(&fake.url()).start();
    let put =
        |reference: &str| http::method("PUT", &proxy.url(&format!("/v2/team/app/manifests/{reference}"))).carry(b"{}");
    let refused = put("1");
    assert_eq!((refused.status, refused.code().as_str()), (403, "DENIED"));
    assert!(refused.message().contains("docker.io answers 403: the tag is immutable"), "{}", refused.message());
    let busy = put("2");
    assert_eq!((busy.status, busy.fields.get("Retry-After")), (429, Some("7")));
    assert_eq!(http::method("POST", &proxy.url(UPLOADS)).carry(b"").status, 502);
    let large = http::method("PUT", &proxy.url("/v2/team/app/manifests/3")).field("Content-Length", "5000000");
    assert_eq!(answer(large.start().unwrap()).status, 413);
}
