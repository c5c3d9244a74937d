//! How clients name a registry on one listener: by the host that they talk to, among all other ways.

use std::path::Path;
use std::process::{Command, Output};

use tidegate_tests::authority::Authority;
use tidegate_tests::content::sha256;
use tidegate_tests::fake::Fake;
use tidegate_tests::image::Image;
use tidegate_tests::process::run;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::assert_whole;

/// Path of the manifest of `team/app:1`.
const TEAM: &str = "/v2/team/app/manifests/1";

/// A fake registry that holds `team/app:1`.
fn fake_with_team() -> (Fake, Image) {
    let fake = Fake::start();
    let image = Image::small("team");
    fake.put_image(&image, "team/app:1");
    (fake, image)
}

/// Asks with curl, which finds every name at the proxy. Gives what it printed, and the body.
fn curl(proxy: &Proxy, arguments: &[&str], url: &str) -> (Output, Vec<u8>) {
    let body = proxy.site().path("body");
    let _ = std::fs::remove_file(&body);
    let output = run(Command::new("curl")
        .args(["-sS", "--noproxy", "*", "-w", "%{http_version} %{http_code}", "-o", body.to_str().unwrap()])
        .args(["--connect-to", &format!("::{}", proxy.authority())])
        .args(arguments)
        .arg(url));
    (output, std::fs::read(&body).unwrap_or_default())
}

#[track_caller]
fn assert_gets(proxy: &Proxy, trusts: &Path, version: &str, url: &str, digest: &str) {
    let (output, body) = curl(proxy, &[&format!("--http{version}"), "--cacert", trusts.to_str().unwrap()], url);
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(told, format!("{version} 200"), "{url}: {output:?}");
    assert_eq!(sha256(&body), digest, "{url}");
}

#[test]
fn a_virtual_host_stands_for_its_registry_in_both_versions_of_http() {
    let (quay, image) = fake_with_team();
    let hosts = "virtual_hosts = [{ names = [\"Quay.mirror.lan\", \"*.quay.lan\"], registry = \"quay.io\" }]";
    let proxy = Site::of("http://127.0.0.1:9").registry("quay.io", &quay.url(), "").top(hosts).start();
    for host in ["quay.mirror.lan", "QUAY.Mirror.lan:5000", "quay.mirror.lan.", "eu.quay.lan"] {
        assert_whole(&proxy.get(TEAM).field("Host", host).fetch(), &image.digest());
    }
    let mark = proxy.mark();
    let (output, body) = curl(&proxy, &["--http2-prior-knowledge"], &format!("http://quay.mirror.lan:5000{TEAM}"));
    assert_eq!((String::from_utf8_lossy(&output.stdout).as_ref(), sha256(&body)), ("2 200", image.digest()));
    let event = proxy.wait(mark, "request", &[("addressing", "virtual-host")]);
    assert_eq!(event.field("pull"), "quay.io/team/app:1");
    // Of all other hosts the default registry is asked, which is down here; and `ns` goes before the host.
    assert_eq!(proxy.get(TEAM).field("Host", "mirror.lan").fetch().status, 502);
    let by_ns = proxy.get(&format!("{TEAM}?ns=docker.io")).field("Host", "quay.mirror.lan").fetch();
    assert_eq!(by_ns.status, 502);
    // A host in the path is part of a name there.
    let inside = proxy.get("/v2/quay.io/team/app/manifests/1").field("Host", "quay.mirror.lan").fetch();
    assert_eq!((inside.status, inside.code().as_str()), (404, "MANIFEST_UNKNOWN"));
    assert_eq!(quay.count("GET", "/v2/quay.io/team/app/manifests/1"), 1);
}

#[test]
fn each_virtual_host_shows_its_own_certificate_and_the_others_that_of_the_listener() {
    let (quay, image) = fake_with_team();
    let (own, common) = (Authority::new(), Authority::new());
    let site = Site::of("http://127.0.0.1:9").registry("quay.io", &quay.url(), "").registry("ghcr.io", &quay.url(), "");
    let at = |name: &str| site.path(name).display().to_string();
    own.server_named(&["DNS:quay.mirror.lan"]).copy(&site.path("own.pem"), &site.path("own.key"));
    common
        .server_named(&["DNS:ghcr.mirror.lan", "DNS:mirror.lan", "IP:127.0.0.1"])
        .copy(&site.path("common.pem"), &site.path("common.key"));
    let (tls, keys) = (
        format!("tls = {{ certificate = \"{}\", key = \"{}\" }}", at("common.pem"), at("common.key")),
        format!("certificate = \"{}\", key = \"{}\"", at("own.pem"), at("own.key")),
    );
    let hosts = format!(
        "virtual_hosts = [\n{{ names = [\"quay.mirror.lan\"], registry = \"quay.io\", {keys} }},\n\
         {{ names = [\"ghcr.mirror.lan\"], registry = \"ghcr.io\" }}]"
    );
    let proxy = site.clone().top(&tls).top(&hosts).start();
    for version in ["1.1", "2"] {
        let gets = |trusts: &Authority, host: &str, path: &str| {
            assert_gets(&proxy, &trusts.file(), version, &format!("https://{host}:5000{path}"), &image.digest());
        };
        gets(&own, "quay.mirror.lan", TEAM);
        gets(&common, "ghcr.mirror.lan", TEAM);
        // A name that stands for nothing, and none at all.
        gets(&common, "mirror.lan", "/v2/quay.io/team/app/manifests/1");
        gets(&common, "127.0.0.1", "/v2/quay.io/team/app/manifests/1");
    }
    let refuses = |trusts: &Authority, host: &str| {
        let file = trusts.file();
        !curl(&proxy, &["--cacert", file.to_str().unwrap()], &format!("https://{host}:5000/v2/")).0.status.success()
    };
    assert!(refuses(&common, "quay.mirror.lan") && refuses(&own, "ghcr.mirror.lan"));

    // A pair that does not match changes nothing; a new one is shown as soon as it is there.
    let other = Authority::new();
    let next = other.server_named(&["DNS:quay.mirror.lan"]);
    let mark = proxy.mark();
    std::fs::copy(&next.cert, site.path("own.pem")).unwrap();
    let reason = proxy.wait(mark, "configuration not loaded", &[]).field("reason");
    assert!(reason.contains("virtual_hosts.key: ") && reason.contains("is not the key of the certificate"), "{reason}");
    assert_gets(&proxy, &own.file(), "2", &format!("https://quay.mirror.lan{TEAM}"), &image.digest());
    let mark = proxy.mark();
    next.copy(&site.path("own.pem"), &site.path("own.key"));
    proxy.wait(mark, "configuration in effect", &[]);
    assert_gets(&proxy, &other.file(), "2", &format!("https://quay.mirror.lan{TEAM}"), &image.digest());
}

#[test]
fn a_virtual_host_comes_and_goes_with_the_file() {
    let (quay, image) = fake_with_team();
    let proxy = Site::of("http://127.0.0.1:9").registry("quay.io", &quay.url(), "").start();
    let status = || proxy.get(TEAM).field("Host", "quay.mirror.lan").fetch().status;
    assert_eq!(status(), 502);
    let before = std::fs::read_to_string(proxy.site().path("tidegate.toml")).unwrap();
    let edit = |text: String, outcome: &str| {
        let mark = proxy.mark();
        proxy.site().edit_config(|_| text);
        proxy.wait(mark, outcome, &[])
    };
    let with = |registry: &str| {
        format!("{before}\n[[virtual_hosts]]\nnames = [\"quay.mirror.lan\"]\nregistry = \"{registry}\"\n")
    };
    edit(with("quay.io"), "configuration in effect");
    assert_whole(&proxy.get(TEAM).field("Host", "quay.mirror.lan").fetch(), &image.digest());
    let reason = edit(with("unlisted.lan"), "configuration not loaded").field("reason");
    let line = before.lines().count() + 4;
    assert!(reason.contains(&format!("tidegate.toml:{line}: virtual_hosts.registry: unlisted.lan")), "{reason}");
    assert_eq!(status(), 200, "what was in effect stays");
    edit(before.clone(), "configuration in effect");
    assert_eq!(status(), 502);
}
