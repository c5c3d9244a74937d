//! Rows of the fault matrix that concern upstreams: slow ones, refusing ones, lying names, broken TLS, circles.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
use tidegate_tests::authority::{Authority, Pair};
use tidegate_tests::content::Content;
use tidegate_tests::dns::{Dns, Says};
use tidegate_tests::fake::{Act, Fake, Reply, Tokens};
use tidegate_tests::http::{Answer, End, Fields, read_line};
use tidegate_tests::image::Image;
use tidegate_tests::namespace;
use tidegate_tests::plugins::failover;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;
use tidegate_tests::tls::Tls;
use tidegate_tests::{HANG, eventually, own_address};

use crate::{APP, app_blob, assert_never_wrong, assert_pulls, assert_whole, fake_with_app};

/// Asks for a path as so many clients at once.
fn ask_at_once(proxy: &Proxy, path: &str, clients: usize) -> Vec<Answer> {
    thread::scope(|scope| {
        let asked: Vec<_> = (0..clients).map(|_| scope.spawn(|| proxy.get(path).fetch())).collect();
        asked.into_iter().map(|answer| answer.join().unwrap()).collect()
    })
}

/// A site whose docker.io is mirrored by `mirror-a.lan`, which is asked first.
fn mirrored(mirror: &str, source: &str, limits: &str) -> Site {
    let rules = "[[upstream]]\nprefix = \"docker.io\"\nmirrors = [\"mirror-a.lan\"]\nsource = \"last\"\n";
    let site = Site::of(source)
        .registry("mirror-a.lan", mirror, "")
        .with([("20-failover.wasm", &failover()), ("20-failover.toml", rules.as_bytes())]);
    site.limits(limits)
}

/// What the metric says: whether a registry stands behind the others.
fn is_ailing(proxy: &Proxy, registry: &str) -> bool {
    proxy.admin("/metrics").text().contains(&format!("tidegate_upstream_ailing{{registry=\"{registry}\"}} 1"))
}

#[test]
fn u3_a_slow_drip_frees_its_place() {
    let fake = Fake::start();
    let content = Content::noise(41, 300_000);
    let path = fake.put_blob("library/app", content.clone());
    let other = Content::noise(42, 300_000);
    let quick = fake.put_blob("library/app", other.clone());
    let site = Site::of(&fake.url()).limits("upstream_idle = \"1s\"\nupstream_min_rate = \"1KiB\"");
    let proxy = site.start();
    // Never silent for long, and never at its end: a day for this blob.
    fake.next(&path, Act::Drip(Duration::from_millis(300)));
    let mut client = proxy.get(&path).open().unwrap();
    fake.wait_count(&path, 1);
    assert_whole(&proxy.get(&quick).fetch(), &other.digest());
    // The place is free again once the transfer is begun anew: by Range, from where it was.
    fake.wait_count(&path, 2);
    let mut body = vec![0; 300_000];
    let mut read = 0;
    while let Ok(more @ 1..) = client.read_some(&mut body[read..]) {
        read += more;
    }
    assert!(read == 300_000 && content.holds(0, &body), "{read} bytes");
    let resumed = fake.seen().into_iter().rfind(|seen| seen.path == path).unwrap();
    assert!(resumed.fields.get("Range").is_some_and(|range| range != "bytes=0-"), "{:?}", resumed.fields);
    proxy.wait(proxy.beginning(), "upstream attempt failed", &[("reason", "no answer in time")]);
}

#[test]
fn u3_a_client_that_reads_slowly_is_no_slow_upstream() {
    if !namespace::is_inside("upstream_faults::u3_a_client_that_reads_slowly_is_no_slow_upstream", "") {
        return;
    }
    let fake = Fake::start();
    let content = Content::noise(43, 60_000_000);
    let path = fake.put_blob("library/app", content.clone());
    let site = Site::of(&fake.url()).limits("upstream_idle = \"1s\"\nupstream_min_rate = \"256KiB\"");
    // A cache that takes nothing: what comes goes past it, and the client's pace is the upstream's.
    let cache = site.path("cache");
    fs::create_dir(&cache).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&cache).status().unwrap();
    assert!(mounted.success());
    let proxy = site.start();
    let mut client = proxy.get(&path).open().unwrap();
    let mut buffer = vec![0; 1000];
    let mut offset = 0;
    for _ in 0..2 {
        let read = client.read_some(&mut buffer).unwrap();
        assert!(content.holds(offset, &buffer[..read]));
        offset += read as u64;
        // The reader's own pause, longer than an upstream may be silent: it is what is tested.
        thread::sleep(Duration::from_millis(1500));
    }
    let (rest, end) = client.drain(|at, piece| assert!(content.holds(offset + at, piece)));
    assert_eq!((offset + rest, end), (content.len(), End::Whole));
    assert_eq!(fake.count("GET", &path), 1);
    assert!(site.blobs().is_empty(), "it went past the cache");
}

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
fn u10_retry_after_is_handed_on_within_reason() {
    let fake = Fake::start();
    let proxy = Site::of(&fake.url()).start();
    for (at, (value, expected)) in
        [("600", 600), ("315360000", 3600), ("99999999999999999999999", 3600), ("Fri, 31 Dec 9999 23:59:59 GMT", 3600)]
            .into_iter()
            .enumerate()
    {
        let path = format!("/v2/library/app{at}/manifests/1");
        fake.always(&path, Act::Reply(Reply::status(429).field("Retry-After", value)));
        let answer = proxy.get(&path).fetch();
        assert_eq!((answer.status, answer.code().as_str()), (429, "TOOMANYREQUESTS"), "{value}");
        let after: u64 = answer.fields.get("Retry-After").unwrap().parse().unwrap();
        assert_eq!(after, expected, "{value}");
        assert_eq!(fake.count("GET", &path), 1, "{value}: a wait that is too long is not waited");
    }
}

#[test]
fn u10_junk_in_retry_after_is_a_short_wait() {
    for value in ["-1", "soon", "1e9", "Wed, 21 Oct 2015 07:28:00 GMT"] {
        let (fake, image) = fake_with_app();
        fake.next(APP, Act::Reply(Reply::status(429).field("Retry-After", value)));
        assert_whole(&Site::of(&fake.url()).start().get(APP).fetch(), &image.digest());
        assert_eq!(fake.count("GET", APP), 2, "{value}");
    }
}

#[test]
fn u10_a_fault_of_the_upstream_is_asked_once_for_each_client_at_the_most() {
    for status in [500, 502, 503, 504] {
        let fake = Fake::start();
        fake.always(APP, Act::Reply(Reply::status(status)));
        let proxy = Site::of(&fake.url()).start();
        for answer in ask_at_once(&proxy, APP, 200) {
            assert!(matches!(answer.status, 502 | 503), "{status}: {}", answer.status);
        }
        let asked = fake.seen().len();
        assert!(asked <= 200, "{status}: {asked} requests");
    }
}

#[test]
fn u11_redirects_end_after_five_and_lead_nowhere_that_nobody_named() {
    let (fake, _image) = fake_with_app();
    let inside = Fake::start();
    let content = Content::noise(47, 1000);
    let path = app_blob(&content.digest());
    let proxy = Site::of(&fake.url()).start();
    fake.put("/end", "application/octet-stream", content.clone());
    for hop in 1..=9 {
        let to = if hop == 1 { "/end".to_owned() } else { format!("/hop{}", hop - 1) };
        fake.always(&format!("/hop{hop}"), Act::Reply(Reply::redirect(&to)));
    }
    // Ten hops are too many, and are cut after five; five are followed, and may be relative.
    fake.always(&path, Act::Reply(Reply::redirect("/hop9")));
    let answer = proxy.get(&path).fetch();
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(answer.message().contains("more than 5 redirects"), "{}", answer.message());
    assert_eq!((fake.count("GET", "/hop5"), fake.count("GET", "/hop4")), (1, 0));
    for to in [
        format!("{}/there", inside.url()),
        format!("//{}/there", inside.authority()),
        "http://169.254.169.254/latest".to_owned(),
        "http://[::ffff:127.0.0.1]/x".to_owned(),
        "http://0x7f000001/x".to_owned(),
        "http://2130706433/x".to_owned(),
        "file:///etc/passwd".to_owned(),
        "gopher://127.0.0.1/x".to_owned(),
        "http://".to_owned(),
        String::new(),
        // The line end makes another header of what follows: the address ends before it.
        format!("http://127.0.0.9/x\r\nX-Injected: 1\r\nLocation: {}/there", inside.url()),
    ] {
        fake.always(&path, Act::Reply(Reply::redirect(&to)));
        let answer = proxy.get(&path).fetch();
        assert!(matches!(answer.status, 502..=504), "{to}: {}", answer.status);
    }
    assert!(inside.seen().is_empty(), "{:?}", inside.seen());
    fake.always(&path, Act::Reply(Reply::redirect("/hop4")));
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
}

#[test]
fn u11_encoded_line_ends_stay_words_and_a_user_in_the_address_is_dropped() {
    let (fake, _image) = fake_with_app();
    let content = Content::noise(48, 1000);
    let path = app_blob(&content.digest());
    fake.put("/a%0d%0aX-Evil:%201", "application/octet-stream", content.clone());
    let to = format!("http://who:ever@{}/a%0d%0aX-Evil:%201", fake.authority());
    fake.always(&path, Act::Reply(Reply::redirect(&to)));
    assert_whole(&Site::of(&fake.url()).start().get(&path).fetch(), &content.digest());
    let last = fake.seen().pop().unwrap();
    assert!(last.fields.get("X-Evil").is_none() && last.fields.get("Authorization").is_none(), "{:?}", last.fields);
}

#[test]
fn u11_https_never_leads_to_http() {
    let (fake, _image) = fake_with_app();
    let (authority, host) = (Authority::new(), own_address());
    let tls = Tls::start(host, &authority.server(host.into()), None, &fake.authority());
    let content = Content::noise(49, 1000);
    let path = app_blob(&content.digest());
    fake.put("/there", "application/octet-stream", content);
    fake.always(&path, Act::Reply(Reply::redirect(&format!("{}/there", fake.url()))));
    let lines = format!("ca_file = \"{}\"\nredirect_hosts = [\"{}\"]", authority.file().display(), fake.authority());
    let answer = Site::new().registry("docker.io", &tls.url(), &lines).start().get(&path).fetch();
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(answer.message().contains("from https to http"), "{}", answer.message());
    assert_eq!(fake.count("GET", "/there"), 0);
}

/// A server that does something to every connection, until the test ends.
fn server(does: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((own_address(), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            does(stream);
        }
    });
    address
}

#[test]
fn u12_broken_tls_is_a_502_that_says_why() {
    let (fake, image) = fake_with_app();
    let (authority, host, elsewhere) = (Authority::new(), own_address(), own_address());
    let start = |pair: &Pair| Tls::start(host, pair, None, &fake.authority());
    let good = start(&authority.server(host.into()));
    let expired = start(&authority.expired(host.into()));
    let wrong = start(&authority.server(elsewhere.into()));
    let strange = start(&Authority::new().server(host.into()));
    let ca = format!("ca_file = \"{}\"", authority.file().display());
    let of = |url: &str| Site::new().registry("docker.io", url, &ca).limits("upstream_connect = \"2s\"");
    assert_pulls(&of(&good.url()).start(), &image);
    let seen = fake.seen().len();
    // What came is read first: else the kernel would make a reset of a close.
    let says = |text: &'static [u8]| {
        let says = move |mut stream: TcpStream| {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(text);
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        };
        format!("https://{}", server(says))
    };
    let closes = says(b"");
    let junk = says(b"SSH-2.0-OpenSSH\r\n");
    let plain = says(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let resets = format!("https://{}", server(|stream| drop(SockRef::from(&stream).set_linger(Some(Duration::ZERO)))));
    let kept = std::sync::Mutex::new(Vec::new());
    let silent = format!("https://{}", server(move |stream| kept.lock().unwrap().push(stream)));
    for (url, word) in [
        (expired.url(), "expired"),
        (wrong.url(), "not valid for name"),
        (strange.url(), "authority that nobody trusts here"),
        (closes, "closed in the handshake"),
        (resets, "reset by peer"),
        (silent, "not finished within 2s"),
        (junk, "does not answer in TLS"),
        (plain, "does it speak plain http?"),
    ] {
        let proxy = of(&url).start();
        let answer = proxy.get(APP).fetch();
        assert_eq!(answer.status, 502, "{url}: {}", answer.text());
        assert!(answer.message().contains(word), "{word}: {}", answer.message());
        assert!(answer.message().contains(url.trim_start_matches("https://")), "{}", answer.message());
        let logged = proxy.wait(proxy.beginning(), "upstream attempt failed", &[]).field("reason");
        assert!(logged.contains(word), "{word}: {logged}");
    }
    // There is no way back to plain text.
    assert!(fake.seen()[seen..].iter().all(|seen| !seen.path.contains("/v2/")), "{:?}", &fake.seen()[seen..]);
}

#[test]
fn u13_names_that_lie_hang_or_change_lead_nowhere() {
    let public = Ipv4Addr::new(93, 184, 216, 34);
    let setup = format!(
        "ip address add {public}/32 dev lo\nprintf 'nameserver 127.0.0.1\\noptions timeout:30 attempts:1\\n' >/run/tidegate-test-resolv\n\
         mount --bind /run/tidegate-test-resolv /etc/resolv.conf"
    );
    if !namespace::is_inside("upstream_faults::u13_names_that_lie_hang_or_change_lead_nowhere", &setup) {
        return;
    }
    let dns = Dns::start();
    let (fake, image) = fake_with_app();
    let loopback = Ipv4Addr::LOCALHOST;
    let site = Site::of(&fake.url())
        .top("open_registries = true")
        .variable("NO_PROXY", "*")
        .limits("upstream_connect = \"2s\"");
    let proxy = site.start();
    let ask = |registry: &str| proxy.get(&format!("{APP}?ns={registry}")).fetch();

    // No such name; no address; no answer.
    dns.say("empty.example.com", Says::Is(Vec::new()));
    dns.say("slow.example.com", Says::Silence);
    for (name, word) in [
        ("nowhere.example.com", "cannot be resolved"),
        ("empty.example.com", "cannot be resolved"),
        ("slow.example.com", "the resolver does not answer within 2s"),
    ] {
        let answer = ask(name);
        assert_eq!(answer.status, 502, "{name}: {}", answer.text());
        assert!(answer.message().contains(word) && answer.message().contains(name), "{}", answer.message());
    }
    // Many that ask for one name ask the resolver once or twice (A and AAAA), and others are not held up by it.
    let before = dns.count("nowhere.example.com");
    assert_eq!(ask("nowhere.example.com").status, 502);
    thread::scope(|scope| {
        let asked: Vec<_> = (0..50).map(|_| scope.spawn(|| ask("nowhere.example.com"))).collect();
        assert_whole(&proxy.get(APP).fetch(), &image.digest());
        assert!(asked.into_iter().all(|answer| answer.join().unwrap().status == 502));
    });
    let asked = dns.count("nowhere.example.com") - before;
    assert!(asked <= 12, "{asked} questions for 51 requests");

    // A public registry that comes to mean this machine is refused, and nobody here hears of it.
    let listener = TcpListener::bind((loopback, 443)).unwrap();
    listener.set_nonblocking(true).unwrap();
    dns.say("private.example.com", Says::Is(vec![loopback]));
    let answer = ask("private.example.com");
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(answer.message().contains("private.example.com is 127.0.0.1"), "{}", answer.message());
    assert!(listener.accept().is_err(), "somebody has come");

    // So is the host of a redirect, between two calls.
    let content = Content::noise(50, 1000);
    let path = app_blob(&content.digest());
    let (outside, inside) = (Fake::start_at((public, 80).into()), Fake::start_at((loopback, 80).into()));
    let other = Content::noise(51, 1000);
    for at in [&outside, &inside] {
        at.put("/one", "application/octet-stream", content.clone());
        at.put("/two", "application/octet-stream", other.clone());
    }
    dns.say("cdn.example.com", Says::Is(vec![public]));
    fake.always(&path, Act::Reply(Reply::redirect("http://cdn.example.com/one")));
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    assert_eq!(outside.count("GET", "/one"), 1);
    dns.say("cdn.example.com", Says::Is(vec![loopback]));
    // The connection that is kept ends, so that the next one asks for the name again.
    outside.stop();
    let path = app_blob(&other.digest());
    fake.always(&path, Act::Reply(Reply::redirect("http://cdn.example.com/two")));
    eventually("the new address is seen", || {
        let answer = proxy.get(&path).fetch();
        assert_eq!(answer.status, 502, "{}", answer.text());
        answer.message().contains("cdn.example.com is 127.0.0.1")
    });
    assert!(inside.seen().is_empty(), "{:?}", inside.seen());
}

/// A place whose SYNs are dropped: its queue is full, and nobody takes from it.
fn black_hole() -> (SocketAddr, Socket, Vec<TcpStream>) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((own_address(), 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        waiting.push(stream);
        assert!(waiting.len() < 100, "the queue has no end");
    }
    (address, socket, waiting)
}

#[test]
fn u14_no_connection_is_a_502_in_time() {
    let (hole, _socket, _waiting) = black_hole();
    let refused = TcpListener::bind((own_address(), 0)).unwrap().local_addr().unwrap();
    let reset = server(|stream| drop(SockRef::from(&stream).set_linger(Some(Duration::ZERO))));
    for (address, word) in [(hole, "no connection to"), (refused, "refused"), (reset, "")] {
        let site = Site::of(&format!("http://{address}")).limits("upstream_connect = \"1s\"");
        let began = Instant::now();
        let answer = site.start().get(APP).fetch();
        assert_eq!(answer.status, 502, "{word}: {}", answer.text());
        assert!(answer.message().contains(word), "{word}: {}", answer.message());
        assert!(began.elapsed() < Duration::from_secs(10), "{word}: {:?}", began.elapsed());
    }
}

#[test]
fn u14_a_kept_connection_that_was_closed_meanwhile_is_no_failure() {
    // Answers one request on each connection, and closes it when the next one comes, without a word.
    let address = server(|stream| {
        thread::spawn(move || {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut head = || read_line(&mut reader).and_then(|_| Fields::read(&mut reader));
            if head().is_ok() {
                let _ = (&stream).write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
                let _ = head();
            }
        });
    });
    let proxy = Site::of(&format!("http://{address}")).start();
    for at in 0..10 {
        let answer = proxy.get(&format!("/v2/library/app{at}/manifests/1")).fetch();
        assert_eq!(answer.status, 404, "{at}: {}", answer.text());
    }
}

#[test]
fn u14_a_mirror_that_keeps_failing_is_moved_back_and_probed_in_again() {
    let (mirror, source) = (Fake::start(), Fake::start());
    let images: Vec<Image> = (0..40).map(|at| Image::small(&format!("app{at}"))).collect();
    for (at, image) in images.iter().enumerate() {
        for fake in [&mirror, &source] {
            fake.put_image(image, &format!("library/app{at}:1"));
        }
    }
    let proxy = mirrored(&mirror.url(), &source.url(), "upstream_ailing = \"1s\"").start();
    let pull = |at: usize| {
        let answer = proxy.get(&format!("/v2/library/app{at}/manifests/1")).fetch();
        assert_whole(&answer, &images[at].digest());
    };
    mirror.stop();
    let mark = proxy.mark();
    (0..3).for_each(pull);
    let moved = proxy.wait(mark, "registry keeps failing: others are asked before it", &[("registry", "mirror-a.lan")]);
    assert!(moved.field("reason").contains("refused"), "{}", moved.field("reason"));
    assert!(is_ailing(&proxy, "mirror-a.lan"));
    // While it rests it costs nobody anything.
    let attempts = proxy.events(mark, "upstream attempt failed").len();
    pull(3);
    assert_eq!(proxy.events(mark, "upstream attempt failed").len(), attempts);
    mirror.restart();
    // One request probes it when its time is over, and it is asked in its turn again.
    let mut next = 4;
    while proxy.events(mark, "registry answers again: it is asked in its turn").is_empty() {
        if next < 40 {
            pull(next);
            next += 1;
        }
        let probed = Instant::now();
        eventually("some time passes", || probed.elapsed() > Duration::from_millis(100));
        assert!(next < 40 || probed.elapsed() < HANG);
    }
    assert!(!is_ailing(&proxy, "mirror-a.lan"));
    let before = mirror.seen().len();
    pull(39);
    assert!(mirror.seen().len() > before || next == 40);
}

#[test]
fn u14_with_all_failing_all_are_tried() {
    let (mirror, source) = (Fake::start(), Fake::start());
    let proxy = mirrored(&mirror.url(), &source.url(), "").start();
    mirror.stop();
    source.stop();
    for _ in 0..4 {
        assert_eq!(proxy.get(APP).fetch().status, 502);
    }
    assert!(is_ailing(&proxy, "mirror-a.lan") && is_ailing(&proxy, "docker.io"));
    let answer = proxy.get(APP).fetch();
    let message = answer.message();
    let (first, last) = (message.find("mirror-a.lan"), message.find("; docker.io"));
    assert!(first.is_some() && last.is_some() && first < last, "in the order that was given: {message}");
    source.restart();
    let image = Image::small("app");
    source.put_image(&image, "library/app:1");
    assert_pulls(&proxy, &image);
    assert!(!is_ailing(&proxy, "docker.io"));
}

#[test]
fn u15_a_thin_line_slows_a_pull_and_does_not_end_it() {
    // 20 Mbit/s both ways, through one queue.
    let setup = "ip link set lo mtu 1500\ntc qdisc add dev lo root tbf rate 20mbit burst 128kb latency 500ms";
    if !namespace::is_inside("upstream_faults::u15_a_thin_line_slows_a_pull_and_does_not_end_it", setup) {
        return;
    }
    let fake = Fake::start();
    let content = Content::noise(52, 3_000_000);
    let path = fake.put_blob("library/app", content.clone());
    let proxy = Site::of(&fake.url()).limits("upstream_idle = \"5s\"").start();
    let began = Instant::now();
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    // 24 Mbit from the upstream, and as much to the client: more than the line carries in a second.
    assert!(began.elapsed() > Duration::from_secs(1), "the line is not thin: {:?}", began.elapsed());
    assert_eq!(fake.count("GET", &path), 1);
}

#[test]
fn u16_two_mirrors_that_name_each_other_end_at_once() {
    let (one, other) = (Site::new().with_fixed_ports(), Site::new().with_fixed_ports());
    let (one_url, other_url) = (one.url(), other.url());
    let one = one.registry("docker.io", &other_url, "").start();
    let other = other.registry("docker.io", &one_url, "").start();
    let descriptors = |proxy: &Proxy| fs::read_dir(format!("/proc/{}/fd", proxy.process().id())).unwrap().count();
    let before = descriptors(&one) + descriptors(&other);
    let blob = app_blob(&Content::noise(53, 10).digest());
    for path in [APP, &blob, "/v2/library/app/tags/list"] {
        for answer in ask_at_once(&one, path, 20) {
            assert!(matches!(answer.status, 502 | 508), "{path}: {} {}", answer.status, answer.text());
            assert_never_wrong(&answer, "");
        }
    }
    let answer = one.get("/v2/library/other/manifests/1").fetch();
    assert_eq!(answer.status, 502, "{}", answer.text());
    let after = descriptors(&one) + descriptors(&other);
    assert!(after < before + 200, "{before} descriptors became {after}");
    for proxy in [&one, &other] {
        let told = || proxy.log().contains("come back to this mirror") || proxy.log().contains("in a circle");
        eventually("the circle is told", told);
    }
}

#[test]
fn u16_a_mirror_that_is_its_own_upstream_says_so() {
    let site = Site::new().with_fixed_ports();
    // By a name, so that the configuration cannot know.
    let url = site.url();
    let to_itself = Fake::start();
    let path = app_blob(&Content::noise(54, 10).digest());
    to_itself.always(&path, Act::Reply(Reply::redirect(&format!("{url}{path}"))));
    let allowed = format!("redirect_hosts = [\"{}\"]", url.trim_start_matches("http://"));
    let proxy = site.registry("docker.io", &to_itself.url(), &allowed).start();
    let answer = proxy.get(&path).fetch();
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(answer.message().contains("in a circle"), "{}", answer.message());
    assert!(to_itself.count("GET", &path) <= 2, "{:?}", to_itself.seen());
    // A chain that is too long is told with the status for it.
    let hops = (0..9).map(|hop| format!("1.1 tidegate-{hop:016x}")).collect::<Vec<_>>().join(", ");
    let answer = proxy.get(APP).field("Via", &hops).fetch();
    assert_eq!(answer.status, 508, "{}", answer.text());
    assert!(answer.message().contains("more than 8 mirrors"), "{}", answer.message());
    assert_eq!(to_itself.count("GET", APP), 0);
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

#[test]
fn the_places_that_nobody_answers_at_are_such() {
    // The black hole of these tests is one: a connection to it is not made, however long one waits.
    let (hole, _socket, waiting) = black_hole();
    assert!(!waiting.is_empty());
    assert!(TcpStream::connect_timeout(&hole, Duration::from_millis(300)).is_err());
    // And the servers of these tests do what they are told.
    let closes = server(drop);
    assert_eq!(TcpStream::connect(closes).unwrap().read(&mut [0; 1]).unwrap(), 0);
}
