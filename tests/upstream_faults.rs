//! Rows of the fault matrix that concern upstreams: slow ones, refusing ones, lying names, broken TLS, circles.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use tidegate_tests::authority::Authority;
use tidegate_tests::content::Content;
use tidegate_tests::fake::{Act, Fake, Reply};
use tidegate_tests::http::{Answer, End};
use tidegate_tests::namespace;
use tidegate_tests::plugins::failover;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;
use tidegate_tests::tls::Tls;
use tidegate_tests::{eventually, own_address};

use crate::{APP, app_blob, assert_never_wrong, assert_whole, fake_with_app};

/// Asks for a path as so many clients at once.
pub(crate) fn ask_at_once(proxy: &Proxy, path: &str, clients: usize) -> Vec<Answer> {
    thread::scope(|scope| {
        let asked: Vec<_> = (0..clients).map(|_| scope.spawn(|| proxy.get(path).fetch())).collect();
        asked.into_iter().map(|answer| answer.join().unwrap()).collect()
    })
}

/// A site whose docker.io is mirrored by `mirror-a.lan`, which is asked first.
pub(crate) fn mirrored(mirror: &str, source: &str, limits: &str) -> Site {
    let rules = "[[upstream]]\nprefix = \"docker.io\"\nmirrors = [\"mirror-a.lan\"]\nsource = \"last\"\n";
    let site = Site::of(source)
        .registry("mirror-a.lan", mirror, "")
        .with([("20-failover.wasm", &failover()), ("20-failover.toml", rules.as_bytes())]);
    site.limits(limits)
}

/// What the metric says: whether a registry stands behind the others.
pub(crate) fn is_ailing(proxy: &Proxy, registry: &str) -> bool {
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
