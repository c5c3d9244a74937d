//! Clients that know of no mirror: they connect to registries through the proxy, which stands in for those that are listed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread;

use rustix::process::Signal;
use tidegate_tests::authority::Authority;
use tidegate_tests::clients::{Client, Containerd, Docker};
use tidegate_tests::content::{Content, sha256};
use tidegate_tests::fake::{Act, Fake};
use tidegate_tests::forward::Forward;
use tidegate_tests::gate::Gate;
use tidegate_tests::image::Image;
use tidegate_tests::plugins;
use tidegate_tests::process::run;
use tidegate_tests::program::tidegate;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::registry::Registry;
use tidegate_tests::site::Site;
use tidegate_tests::{HANG, own_address};

use crate::{assert_whole, fake_with_app};

/// Path of the manifest of `team/app:1`.
const TEAM: &str = "/v2/team/app/manifests/1";

/// A fake registry that holds `team/app:1`.
fn fake_with_team(content: &str) -> (Fake, Image) {
    let fake = Fake::start();
    let image = Image::small(content);
    fake.put_image(&image, "team/app:1");
    (fake, image)
}

/// An authority, and the line that intercepts with it.
fn intercepting(site: &Site, registries: &str, more: &str) -> String {
    let ca = site.path("ca");
    let made = site.run(&["ca", "init", "--dir", ca.to_str().unwrap()]);
    assert!(made.status.success(), "{made:?}");
    format!("intercept = {{ registries = [{registries}], ca_dir = \"{}\"{more} }}", ca.display())
}

/// A proxy that intercepts quay.io, which a fake stands for.
fn intercepted(more: &str) -> (Fake, Image, Proxy) {
    let (quay, image) = fake_with_team("quay");
    let site = Site::of("http://127.0.0.1:9").registry("quay.io", &quay.url(), "");
    let line = intercepting(&site, "\"quay.io\"", more);
    (quay, image, site.top(&line).start())
}

/// Asks with curl, through the proxy, trusting its authority. Gives what it printed, and the body.
fn curl(proxy: &Proxy, arguments: &[&str], url: &str) -> (Output, Vec<u8>) {
    let body = proxy.site().path("body");
    let _ = std::fs::remove_file(&body);
    let output = run(Command::new("curl")
        .args(["-sS", "--noproxy", "", "-w", "%{http_version} %{http_code}", "-o", body.to_str().unwrap()])
        .args(["--proxy", &proxy.url(""), "--cacert"])
        .arg(proxy.site().path("ca/ca.crt"))
        .args(arguments)
        .arg(url));
    (output, std::fs::read(&body).unwrap_or_default())
}

#[track_caller]
fn assert_gets(proxy: &Proxy, version: &str, url: &str, digest: &str) {
    let (output, body) = curl(proxy, &[&format!("--http{version}")], url);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{version} 200"), "{url}: {output:?}");
    assert_eq!(sha256(&body), digest, "{url}");
}

/// Sends CONNECT, and reads the head of the answer. Gives its first line, and the stream behind it.
fn connect(proxy: &Proxy, target: &str) -> (String, BufReader<TcpStream>) {
    let stream = TcpStream::connect(proxy.authority()).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    (&stream).write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let (mut first, mut line) = (String::new(), String::new());
    reader.read_line(&mut first).unwrap();
    while reader.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    (first.trim_end().to_owned(), reader)
}

/// A server that sends back what it gets.
fn echo() -> String {
    let listener = TcpListener::bind((own_address(), 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let (mut stream, mut piece) = (stream, [0; 4096]);
                while let Ok(read @ 1..) = stream.read(&mut piece) {
                    if stream.write_all(&piece[..read]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[track_caller]
fn assert_echoes(stream: &mut BufReader<TcpStream>) {
    let mut back = [0; 5];
    stream.get_mut().write_all(b"hello").unwrap();
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

fn metric(proxy: &Proxy, name: &str) -> String {
    let text = proxy.admin("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
}

#[test]
fn every_mode_gives_the_same_bytes_from_one_cache_with_one_fetch() {
    let (quay, image) = fake_with_team("quay");
    let site = Site::new().registry("quay.io", &quay.url(), "").top("default_registry = \"quay.io\"");
    let line = intercepting(&site, "\"quay.io\"", "");
    let hosts = "virtual_hosts = [{ names = [\"quay.mirror.lan\"], registry = \"quay.io\" }]";
    let proxy = site.top(&line).top(hosts).start();
    let paths = std::iter::once("manifests/1".to_owned())
        .chain(image.blobs.iter().map(|blob| format!("blobs/{}", sha256(blob))))
        .collect::<Vec<_>>();
    let digests =
        std::iter::once(image.digest()).chain(image.blobs.iter().map(|blob| sha256(blob))).collect::<Vec<_>>();
    for (path, digest) in paths.iter().zip(&digests) {
        let mark = proxy.mark();
        assert_whole(&proxy.get(&format!("/v2/team/app/{path}?ns=quay.io")).fetch(), digest);
        assert_whole(&proxy.get(&format!("/v2/quay.io/team/app/{path}")).fetch(), digest);
        assert_whole(&proxy.get(&format!("/v2/team/app/{path}")).fetch(), digest);
        assert_whole(&proxy.get(&format!("/v2/team/app/{path}")).field("Host", "quay.mirror.lan").fetch(), digest);
        assert_gets(&proxy, "1.1", &format!("https://quay.io/v2/team/app/{path}"), digest);
        assert_gets(&proxy, "2", &format!("https://quay.io/v2/team/app/{path}"), digest);
        for mode in ["ns", "path", "default", "virtual-host", "intercept"] {
            proxy.wait(mark, "request", &[("addressing", mode), ("status", "200")]);
        }
        assert_eq!(quay.count("GET", &format!("/v2/team/app/{path}")), 1, "{path}");
    }
}

#[test]
fn what_is_not_listed_is_refused_with_its_name_and_the_key() {
    let (quay, _image, proxy) = intercepted("");
    for target in ["ghcr.io:443", "quay.io:80", "quay.io.evil.net:443", "127.0.0.1:443", "xquay.io:443"] {
        let (first, _) = connect(&proxy, target);
        assert!(first.starts_with("HTTP/1.1 403 ") && first.contains(target), "{first}");
        assert!(first.contains("registries") && first.contains("[intercept]"), "{first}");
    }
    assert_eq!(metric(&proxy, "tidegate_tunnels_total{outcome=\"refused\"}"), "5");
    for target in ["quay.io", "quay.io:", "quay.io:0", "user@quay.io:443", "quay.io:99999"] {
        let (first, _) = connect(&proxy, target);
        assert!(first.starts_with("HTTP/1.1 400 "), "{target}: {first}");
    }
    // However it is written, it is one host.
    for target in ["quay.io:443", "QUAY.io:443", "quay.io.:443"] {
        assert_eq!(connect(&proxy, target).0, "HTTP/1.1 200 OK", "{target}");
    }
    assert!(quay.seen().is_empty());
    // Without [intercept] there is no such thing.
    let (fake, _image, plain) = crate::proxied();
    assert!(connect(&plain, "quay.io:443").0.starts_with("HTTP/1.1 405 "));
    assert!(fake.seen().is_empty());
}

#[test]
fn inside_nothing_names_another_registry_or_host() {
    let (quay, image, proxy) = intercepted("");
    // Neither `ns` nor a host in the path, which are the registry's own business.
    assert_gets(&proxy, "1.1", &format!("https://quay.io{TEAM}?ns=docker.io"), &image.digest());
    let (output, body) = curl(&proxy, &[], "https://quay.io/v2/docker.io/team/app/manifests/1");
    assert!(String::from_utf8_lossy(&output.stdout).ends_with(" 404"), "{output:?} {body:?}");
    assert_eq!(quay.count("GET", "/v2/docker.io/team/app/manifests/1"), 1);
    for (version, host) in [("--http1.1", "Host: ghcr.io"), ("--http2", "Host: quay.io.evil.net")] {
        let (output, _) = curl(&proxy, &[version, "-H", host], &format!("https://quay.io{TEAM}"));
        assert!(String::from_utf8_lossy(&output.stdout).ends_with(" 421"), "{host}: {output:?}");
    }
    // TLS for another name than the one that was connected to.
    let astray = ["--connect-to", "ghcr.io:443:quay.io:443", "--insecure"];
    let (output, _) = curl(&proxy, &astray, &format!("https://ghcr.io{TEAM}"));
    assert!(!output.status.success(), "{output:?}");
    // Another CONNECT inside is none.
    let again = ["--http1.1", "-X", "CONNECT", "--request-target", "quay.io:443"];
    let (output, _) = curl(&proxy, &again, &format!("https://quay.io{TEAM}"));
    assert!(String::from_utf8_lossy(&output.stdout).ends_with(" 405"), "{output:?}");
    assert_eq!(quay.count("GET", TEAM), 1);
}

#[test]
fn the_listener_may_speak_tls_itself() {
    let (quay, image) = fake_with_team("quay");
    let authority = Authority::new();
    let shown = authority.server_named(&["IP:127.0.0.1"]);
    let site = Site::of("http://127.0.0.1:9").registry("quay.io", &quay.url(), "");
    let line = intercepting(&site, "\"quay.io\"", "");
    let tls = format!("tls = {{ certificate = \"{}\", key = \"{}\" }}", shown.cert.display(), shown.key.display());
    let proxy = site.top(&line).top(&tls).start();
    let proxied = ["--proxy-cacert".to_owned(), authority.file().display().to_string()];
    for version in ["1.1", "2"] {
        let option = format!("--http{version}");
        let (output, body) = curl(&proxy, &[&option, &proxied[0], &proxied[1]], &format!("https://quay.io{TEAM}"));
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{version} 200"), "{output:?}");
        assert_eq!(sha256(&body), image.digest());
    }
    let (output, _) = curl(&proxy, &[&proxied[0], &proxied[1]], "https://ghcr.io/v2/");
    assert!(String::from_utf8_lossy(&output.stderr).contains("403"), "{output:?}");
}

#[test]
fn plain_http_through_the_proxy_is_for_listed_registries_alone() {
    let (quay, image, proxy) = intercepted("");
    let (output, body) = curl(&proxy, &[], &format!("http://quay.io{TEAM}"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1.1 200", "{output:?}");
    assert_eq!(sha256(&body), image.digest());
    let (output, body) = curl(&proxy, &[], &format!("http://ghcr.io{TEAM}"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1.1 403", "{output:?}");
    assert!(String::from_utf8_lossy(&body).contains("[intercept]"), "{body:?}");
    assert_eq!(quay.count("GET", TEAM), 1);
}

#[test]
fn others_are_carried_to_public_hosts_and_to_those_that_are_named() {
    let (there, refused) = (echo(), echo());
    let (_quay, image, proxy) = intercepted(&format!(", others = \"tunnel\", tunnel_hosts = [\"{there}\"]"));
    let (first, mut stream) = connect(&proxy, &there);
    assert_eq!(first, "HTTP/1.1 200 OK");
    assert_echoes(&mut stream);
    let mark = proxy.mark();
    drop(stream);
    let ended = proxy.wait(mark, "tunnel ended", &[("to", &there)]);
    assert_eq!(ended.field("bytes"), "10");
    assert_eq!(metric(&proxy, "tidegate_tunnels_total{outcome=\"relayed\"}"), "1");
    assert_eq!(metric(&proxy, "tidegate_tunnel_bytes_total"), "10");
    assert_eq!(metric(&proxy, "tidegate_tunnels_open"), "0");
    // Another port, private addresses by address and by name, and the machine that tells clouds their secrets.
    for (target, status) in [
        (refused.as_str(), 403),
        ("127.0.0.1:443", 502),
        ("localhost:443", 502),
        ("169.254.169.254:443", 502),
        ("8.8.8.8:80", 403),
    ] {
        let (first, _) = connect(&proxy, target);
        assert!(
            first.starts_with(&format!("HTTP/1.1 {status} ")) && first.contains("tunnel_hosts"),
            "{target}: {first}"
        );
    }
    assert_gets(&proxy, "2", &format!("https://quay.io{TEAM}"), &image.digest());
}

#[test]
fn tunnels_take_the_way_out_that_the_configuration_says() {
    let (there, way) = (echo(), Forward::start(None));
    let (_quay, _image, proxy) = intercepted(&format!(
        ", others = \"tunnel\", tunnel_hosts = [\"{there}\"] }}\negress = {{ proxy = \"http://{}\", no_proxy = []",
        way.authority()
    ));
    let (first, mut stream) = connect(&proxy, &there);
    assert_eq!(first, "HTTP/1.1 200 OK");
    assert_echoes(&mut stream);
    assert_eq!(way.seen()[0].line, format!("CONNECT {there} HTTP/1.1"));
    // What can only be near is not led to there either.
    assert!(connect(&proxy, "intranet:443").0.starts_with("HTTP/1.1 502 "));
    assert_eq!(way.seen().len(), 1);
}

#[test]
fn a_registry_that_is_added_is_intercepted_at_once_and_open_tunnels_go_on() {
    let (_quay, image, proxy) = intercepted("");
    let ghcr = fake_with_team("ghcr");
    let listed = "registries = [\"quay.io\"";
    let (_, held) = connect(&proxy, "quay.io:443");
    let mark = proxy.mark();
    proxy.site().edit_config(|text| {
        let text = text.replace(listed, &format!("{listed}, \"ghcr.io\""));
        format!("{text}[registries.\"ghcr.io\"]\nurl = \"{}\"\n", ghcr.0.url())
    });
    proxy.wait(mark, "configuration in effect", &[]);
    assert_gets(&proxy, "1.1", &format!("https://ghcr.io{TEAM}"), &ghcr.1.digest());
    assert_gets(&proxy, "1.1", &format!("https://quay.io{TEAM}"), &image.digest());
    drop(held);
    // A new authority is shown as soon as it is there whole.
    let trusted = std::fs::read(proxy.site().path("ca/ca.crt")).unwrap();
    let other = Site::new();
    intercepting(&other, "", "");
    let mark = proxy.mark();
    for name in ["ca.crt", "ca.key"] {
        std::fs::rename(other.path("ca").join(name), proxy.site().path("ca").join(name)).unwrap();
    }
    proxy.wait(mark, "configuration in effect", &[]);
    assert_gets(&proxy, "1.1", &format!("https://quay.io{TEAM}"), &image.digest());
    std::fs::write(proxy.site().path("ca/ca.crt"), trusted).unwrap();
    let reason = proxy.wait(mark, "configuration not loaded", &[]).field("reason");
    assert!(reason.contains("intercept.ca_dir") && reason.contains("is not the key of the certificate"), "{reason}");
}

#[test]
fn docker_that_knows_of_no_mirror_pulls_from_three_registries_and_is_told_of_a_denial() {
    let (quay, (ghcr, image)) = (Registry::start(), fake_with_team("ghcr"));
    let (hub, hello) = fake_with_app();
    let other = Image::small("quay");
    quay.push(&other, "team/app:1");
    quay.push(&other, "team/blocked:1");
    let site = Site::of(&hub.url()).registry("quay.io", &quay.url(), "").registry("ghcr.io", &ghcr.url(), "");
    let line = intercepting(&site, "\"quay.io\", \"ghcr.io\", \"docker.io\"", "");
    let proxy = site
        .top(&line)
        .with([
            ("10-allowlist.wasm", &plugins::allowlist()),
            ("10-allowlist.toml", b"block = [\"quay.io/team/blocked\"]\n"),
        ])
        .start();
    // As the README says it.
    let ca = format!("{} ca --config {} trust", tidegate().display(), proxy.site().path("tidegate.toml").display());
    let docker = Docker::behind(&proxy.url(""), &format!("{ca} docker\n{ca} system"));
    for (name, digest) in [
        ("quay.io/team/app:1", other.digest()),
        ("ghcr.io/team/app:1", image.digest()),
        ("library/app:1", hello.digest()),
    ] {
        for _ in 0..2 {
            assert_eq!(docker.pull(name), Ok(digest.clone()), "{name}");
            docker.remove(name);
        }
    }
    for blob in &image.blobs {
        assert_eq!(ghcr.count("GET", &format!("/v2/team/app/blobs/{}", sha256(blob))), 1);
    }
    assert_eq!(ghcr.count("GET", &format!("/v2/team/app/manifests/{}", image.digest())) + ghcr.count("GET", TEAM), 1);
    proxy.wait(proxy.beginning(), "request", &[("addressing", "intercept"), ("pull", "ghcr.io/team/app:1")]);
    let denied = docker.pull("quay.io/team/blocked:1").expect_err("it is blocked");
    assert!(denied.contains("quay.io/team/blocked is blocked by rule"), "{denied}");
    let unlisted = docker.pull("gcr.io/team/app:1").expect_err("it is not listed");
    assert!(unlisted.contains("gcr.io:443 is not led to by this mirror"), "{unlisted}");
}

#[test]
fn containerd_and_skopeo_pull_through_it_with_the_files_that_ca_trust_writes() {
    let (quay, image, proxy) = intercepted("");
    let root = proxy.site().path("machine");
    std::fs::create_dir_all(root.join("usr/local/share/ca-certificates")).unwrap();
    let trust = |client: &str, more: &[&str]| {
        let arguments = [&["ca", "trust", client, "--root", root.to_str().unwrap()], more].concat();
        let output = proxy.site().run_as_is(&arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let file = root.join("usr/local/share/ca-certificates/tidegate.crt");
    let told = trust("system", &["--dry-run"]);
    assert!(told.contains("would write") && told.contains("update-ca-certificates") && !file.exists(), "{told}");
    trust("system", &[]);
    assert!(trust("system", &[]).contains("is there"));
    // A file of the operator's own is left as it is.
    let hosts = root.join("etc/containerd/certs.d");
    std::fs::create_dir_all(hosts.join("quay.io")).unwrap();
    std::fs::write(hosts.join("quay.io/hosts.toml"), "server = \"https://quay.io\"\n").unwrap();
    let told = trust("containerd", &[]);
    assert!(told.contains("is left as it is") && told.contains("ca = \"/etc/containerd"), "{told}");
    std::fs::remove_file(hosts.join("quay.io/hosts.toml")).unwrap();
    trust("containerd", &[]);
    // The machine's root is elsewhere here.
    let written = std::fs::read_to_string(hosts.join("quay.io/hosts.toml")).unwrap();
    let moved = written.replace("\"/etc/", &format!("\"{}/etc/", root.display()));
    std::fs::write(hosts.join("quay.io/hosts.toml"), moved).unwrap();
    let containerd = Containerd::start("127.0.0.1:9");
    let pulled = containerd.pull_behind(&proxy.url(""), &hosts, "quay.io/team/app:1");
    assert!(pulled.is_ok(), "{pulled:?}");
    proxy.wait(proxy.beginning(), "request", &[("addressing", "intercept"), ("pull", "quay.io/team/app:1")]);
    let output = run(Command::new("skopeo")
        .args(["--insecure-policy", "inspect", "--no-tags", "--format", "{{.Digest}}", "docker://quay.io/team/app:1"])
        .env("HTTPS_PROXY", proxy.url(""))
        .env("NO_PROXY", "")
        .env("no_proxy", "")
        .env("https_proxy", proxy.url(""))
        .env("SSL_CERT_FILE", &file));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), image.digest(), "{output:?}");
    for blob in &image.blobs {
        assert_eq!(quay.count("GET", &format!("/v2/team/app/blobs/{}", sha256(blob))), 1);
    }
}

#[test]
fn c3_clients_that_connect_and_say_nothing_hold_nobody_up() {
    let (quay, image) = fake_with_team("quay");
    let site = Site::of("http://127.0.0.1:9").registry("quay.io", &quay.url(), "");
    let line = intercepting(&site, "\"quay.io\"", "");
    let proxy = site.top(&line).limits("connections = 20\nrequest_head = \"1s\"").start();
    let silent: Vec<_> = (0..60).map(|_| connect(&proxy, "quay.io:443")).collect();
    assert_gets(&proxy, "2", &format!("https://quay.io{TEAM}"), &image.digest());
    for (_, mut stream) in silent {
        // Closed in order or by a reset: it ends.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    proxy.wait(proxy.beginning(), "request", &[("method", "CONNECT"), ("path", "quay.io:443")]);
}

#[test]
fn c3_the_number_of_tunnels_is_bounded_and_they_free_their_places() {
    let there = echo();
    let (_quay, image, proxy) = intercepted(&format!(", others = \"tunnel\", tunnel_hosts = [\"{there}\"]"));
    let mut held: Vec<_> = (0..256).map(|_| connect(&proxy, &there)).collect();
    assert!(held.iter().all(|(first, _)| first == "HTTP/1.1 200 OK"));
    let (first, _) = connect(&proxy, &there);
    assert!(first.starts_with("HTTP/1.1 503 ") && first.contains("256 tunnels"), "{first}");
    assert_gets(&proxy, "1.1", &format!("https://quay.io{TEAM}"), &image.digest());
    let mark = proxy.mark();
    held.truncate(200);
    proxy.wait(mark, "tunnel ended", &[]);
    assert_eq!(connect(&proxy, &there).0, "HTTP/1.1 200 OK");
}

#[test]
fn t3_a_drain_ends_tunnels_that_rest_and_lets_bodies_inside_finish() {
    let there = echo();
    let (quay, _image, proxy) = intercepted(&format!(", others = \"tunnel\", tunnel_hosts = [\"{there}\"]"));
    let (content, gate) = (Content::noise(5, 3_000_000), Gate::new());
    let path = quay.put_blob("team/app", content.clone());
    quay.next(&path, Act::Hold(1_500_000, gate.clone()));
    let (_, mut resting) = connect(&proxy, &there);
    let (authority, ca) = (proxy.url(""), proxy.site().path("ca/ca.crt"));
    let body: PathBuf = proxy.site().path("drained");
    let to = body.clone();
    let client = thread::spawn(move || {
        run(Command::new("curl")
            .args(["-sS", "--noproxy", "", "--proxy", &authority, "--cacert"])
            .arg(ca)
            .arg("-o")
            .arg(to)
            .arg(format!("https://quay.io{path}")))
    });
    gate.wait_reached();
    proxy.process().signal(Signal::TERM);
    // It ends long before the 30 s that bodies have.
    assert_eq!(resting.read_to_end(&mut Vec::new()).unwrap_or_default(), 0);
    gate.open();
    let output = client.join().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(sha256(&std::fs::read(body).unwrap()), content.digest());
    assert!(proxy.process().wait().success());
    proxy.wait(proxy.beginning(), "tunnel ended", &[("broken", "the listener ends")]);
}

#[test]
fn an_authority_that_cannot_be_used_is_refused_with_the_way_out() {
    let site = Site::new();
    let ca = site.path("ca");
    let line = format!("intercept = {{ registries = [\"quay.io\"], ca_dir = \"{}\" }}", ca.display());
    let site = site.top(&line);
    let refusal = || {
        let output = site.run(&["check"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let (missing, dir) = (refusal(), ca.display());
    assert!(missing.contains("tidegate.toml:3: intercept.ca_dir: there is no authority"), "{missing}");
    assert!(missing.contains(&format!("run: tidegate ca init --dir {dir}")), "{missing}");
    // The folder is the one that the configuration names.
    let made = site.run(&["ca", "init"]);
    assert!(made.status.success() && ca.join("ca.crt").exists(), "{made:?}");
    assert!(site.run(&["check"]).status.success());
    let again = site.run(&["ca", "init"]);
    assert!(
        !again.status.success() && String::from_utf8_lossy(&again.stderr).contains("is there already"),
        "{again:?}"
    );
    let key = ca.join("ca.key");
    run(Command::new("chmod").arg("640").arg(&key));
    let open = refusal();
    assert!(open.contains("may be read by others") && open.contains(&format!("chmod 600 {}", key.display())), "{open}");
    run(Command::new("chmod").arg("600").arg(&key));
    std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n").unwrap();
    let bad = refusal();
    assert!(bad.contains("PKCS#8") && !bad.contains("hunter2"), "{bad}");
}

#[test]
fn an_authority_may_be_made_for_the_listed_registries_alone() {
    let (quay, image) = fake_with_team("quay");
    let site = Site::of("http://127.0.0.1:9").registry("quay.io", &quay.url(), "").registry("ghcr.io", &quay.url(), "");
    let ca = site.path("ca");
    let line =
        |registries: &str| format!("intercept = {{ registries = [{registries}], ca_dir = \"{}\" }}", ca.display());
    let quay_only = site.clone().top(&line("\"quay.io\", \"docker.io\""));
    let made = quay_only.run(&["ca", "init", "--constrain"]);
    assert!(made.status.success(), "{made:?}");
    let refused = site.clone().top(&line("\"quay.io\", \"ghcr.io\"")).run(&["check"]);
    let reason = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(reason.contains("ghcr.io is outside of the domains"), "{reason}");
    let proxy = quay_only.start();
    assert_gets(&proxy, "2", &format!("https://quay.io{TEAM}"), &image.digest());
    for host in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
        let (output, _) = curl(&proxy, &[], &format!("https://{host}/v2/"));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "2 200", "{host}: {output:?}");
    }
}

#[test]
fn an_authority_of_another_make_is_taken() {
    // As a company gives it: an intermediate one, with a key that another program made.
    let (quay, image) = fake_with_team("quay");
    let site = Site::of("http://127.0.0.1:9").registry("quay.io", &quay.url(), "");
    std::fs::create_dir(site.path("ca")).unwrap();
    let openssl = |arguments: &str| {
        let output = run(Command::new("openssl").args(arguments.split(' ')).current_dir(site.path("ca")));
        assert!(output.status.success(), "openssl {arguments}: {output:?}");
    };
    std::fs::write(
        site.path("ca/ext"),
        "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\nsubjectKeyIdentifier=hash\n",
    )
    .unwrap();
    let key = "-newkey rsa:2048 -nodes";
    openssl(&format!("req -x509 {key} -keyout root.key -out root.pem -subj /C=DE/O=Company/CN=Root -days 2"));
    openssl(&format!("req {key} -keyout ca.key -out ca.csr -subj /C=DE/O=Company/OU=Mirrors/CN=Mirrors -utf8"));
    openssl("x509 -req -in ca.csr -CA root.pem -CAkey root.key -CAcreateserial -days 2 -extfile ext -out ca.crt");
    run(Command::new("chmod").arg("600").arg(site.path("ca/ca.key")));
    let line = format!("intercept = {{ registries = [\"quay.io\"], ca_dir = \"{}\" }}", site.path("ca").display());
    let proxy = site.top(&line).start();
    // The client knows the root alone.
    let root = proxy.site().path("ca/root.pem");
    let (output, body) = curl(&proxy, &["--cacert", root.to_str().unwrap()], &format!("https://quay.io{TEAM}"));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(sha256(&body), image.digest());
}
