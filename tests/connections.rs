//! What goes wrong on the way to an upstream: names, connections, TLS, thin lines.

use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
use tidegate_tests::authority::{Authority, Pair};
use tidegate_tests::content::Content;
use tidegate_tests::dns::{Dns, Says};
use tidegate_tests::fake::{Act, Fake, Reply};
use tidegate_tests::http::{Fields, read_line};
use tidegate_tests::image::Image;
use tidegate_tests::namespace;
use tidegate_tests::site::Site;
use tidegate_tests::tls::Tls;
use tidegate_tests::{HANG, eventually, own_address};

use crate::upstream_faults::{is_ailing, mirrored};
use crate::{APP, app_blob, assert_pulls, assert_whole, fake_with_app};

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
    if !namespace::is_inside("connections::u13_names_that_lie_hang_or_change_lead_nowhere", &setup) {
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
    if !namespace::is_inside("connections::u15_a_thin_line_slows_a_pull_and_does_not_end_it", setup) {
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
fn the_places_that_nobody_answers_at_are_such() {
    // The black hole of these tests is one: a connection to it is not made, however long one waits.
    let (hole, _socket, waiting) = black_hole();
    assert!(!waiting.is_empty());
    assert!(TcpStream::connect_timeout(&hole, Duration::from_millis(300)).is_err());
    // And the servers of these tests do what they are told.
    let closes = server(drop);
    assert_eq!(TcpStream::connect(closes).unwrap().read(&mut [0; 1]).unwrap(), 0);
}
