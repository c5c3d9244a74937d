//! `tidegate client-config`: what it writes is what real clients read, and with `--enforce` a denial is the last word.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use tidegate_tests::authority::Authority;
use tidegate_tests::http;
use tidegate_tests::image::Image;
use tidegate_tests::machine::{Machine, Printed};
use tidegate_tests::own_address;
use tidegate_tests::plugins::allowlist;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::registry::Registry;
use tidegate_tests::site::Site;

/// A proxy of docker.io and quay.io, of which both hold `library/app:1` and `library/secret:1`, and the latter is denied.
struct Served {
    proxy: Proxy,
    // For as long as the proxy runs.
    _registry: Registry,
    _authority: Option<Authority>,
}

/// How the proxy is spoken to.
#[derive(Clone, Copy)]
enum Speaks {
    Http,
    Https,
}

fn serve(speaks: Speaks) -> Served {
    let registry = Registry::start();
    registry.push(&Image::small("app"), "library/app:1");
    registry.push(&Image::small("secret"), "library/secret:1");
    let rules: &[u8] = b"block = [\"docker.io/library/secret\", \"quay.io/library/secret\"]";
    let site = Site::of(&registry.url())
        .registry("quay.io", &registry.url(), "")
        .with([("10-allowlist.wasm", &allowlist()), ("10-allowlist.toml", rules)]);
    let (site, authority) = match speaks {
        Speaks::Http => (site.with_fixed_ports(), None),
        Speaks::Https => {
            let address = own_address();
            let authority = Authority::new();
            let pair = authority.server(IpAddr::V4(address));
            let chain = site.path("chain.pem");
            let read = |path: PathBuf| fs::read_to_string(path).unwrap();
            fs::write(&chain, read(pair.cert) + &read(authority.file())).unwrap();
            let lines = format!("[tls]\ncertificate = \"{}\"\nkey = \"{}\"", chain.display(), pair.key.display());
            (site.listening_at(address).top(&lines), Some(authority))
        }
    };
    Served { proxy: site.start(), _registry: registry, _authority: authority }
}

/// A machine with what `client-config` writes for a client.
fn machine(served: &Served, words: &[&str]) -> Machine {
    machine_of(&served.proxy, words)
}

fn machine_of(proxy: &Proxy, words: &[&str]) -> Machine {
    let site = proxy.site();
    let tree = site.path(&words.join("-"));
    let tree_word = tree.display().to_string();
    let output = site.run_as_is(&[&["client-config", "--write", &tree_word][..], words].concat());
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Machine::new(&tree)
}

type Pull = fn(&mut Machine, &str) -> Printed;

/// Clients that are held by their configuration: what they are called, for whom the files are, and how they pull.
const HELD: [(&str, &str, Pull); 4] = [
    ("ctr", "containerd", |machine, image| machine.ctr(image)),
    ("podman", "podman", |machine, image| machine.podman(image)),
    ("buildah", "podman", |machine, image| machine.buildah(image)),
    ("skopeo", "skopeo", |machine, image| machine.skopeo(image)),
];

/// What each shows of a denial. ctr asks with HEAD, whose answer has no body: it has the status.
fn assert_reason(client: &str, image: &str, text: &str) {
    let shown = if client == "ctr" { "403 Forbidden" } else { "is blocked by rule" };
    assert!(text.contains(shown), "{client} on {image}: {text}");
}

#[track_caller]
fn assert_enforced(speaks: Speaks) {
    let served = serve(speaks);
    for (client, files, pull) in HELD {
        let mut machine = machine(&served, &[files, "--enforce"]);
        for registry in ["docker.io", "quay.io"] {
            let pulled = pull(&mut machine, &format!("{registry}/library/app:1"));
            assert!(pulled.is_ok(), "{client}: {pulled:?}");
            let image = format!("{registry}/library/secret:1");
            let text = pull(&mut machine, &image).expect_err(client);
            assert_reason(client, &image, &text);
        }
        assert_eq!(machine.wanted(), [""; 0], "{client} asked somebody else");
    }
}

#[test]
fn a_denial_is_the_last_word_of_each_client_over_http() {
    assert_enforced(Speaks::Http);
}

#[test]
fn a_denial_is_the_last_word_of_each_client_over_https() {
    assert_enforced(Speaks::Https);
}

#[test]
fn without_enforce_clients_ask_the_registry_itself_after_a_denial() {
    let served = serve(Speaks::Https);
    for (client, files, pull) in HELD {
        let mut machine = machine(&served, &[files]);
        let pulled = pull(&mut machine, "docker.io/library/app:1");
        assert!(pulled.is_ok(), "{client}: {pulled:?}");
        assert_eq!(machine.wanted(), [""; 0], "{client} asked somebody else");
        pull(&mut machine, "docker.io/library/secret:1").expect_err(client);
        assert!(
            machine.wanted().iter().any(|host| host == "registry-1.docker.io:443"),
            "{client}: {:?}",
            machine.wanted()
        );
    }
}

#[test]
fn a_push_of_containerd_lands_at_the_registry_of_its_name() {
    let (hub, quay) = (Registry::start(), Registry::start());
    let image = Image::small("app");
    hub.push(&image, "library/app:1");
    quay.push(&image, "library/app:1");
    let site = Site::new().with_fixed_ports().registry("docker.io", &hub.url(), "push = true");
    let proxy = site.registry("quay.io", &quay.url(), "push = true").start();
    let machine = machine_of(&proxy, &["containerd", "--enforce"]);
    let pushed = machine.ctr_pull_and_push("quay.io/library/app:1", "quay.io/team/pushed:1");
    assert!(pushed.is_ok(), "{pushed:?}");
    let pushed = machine.ctr_pull_and_push("docker.io/library/app:1", "docker.io/team/other:1");
    assert!(pushed.is_ok(), "{pushed:?}");
    let has = |registry: &Registry, name: &str| {
        http::get(&format!("{}/v2/team/{name}/manifests/1", registry.url()))
            .field("Accept", image.media_type())
            .fetch()
            .status
    };
    assert_eq!((has(&quay, "pushed"), has(&hub, "pushed")), (200, 404));
    assert_eq!((has(&quay, "other"), has(&hub, "other")), (404, 200));
    assert_eq!(machine.wanted(), [""; 0]);
}

#[test]
fn docker_is_held_by_the_name_of_the_mirror_alone() {
    let served = serve(Speaks::Http);
    let mirror = served.proxy.authority();
    let mut held = machine(&served, &["docker", "--enforce"]);
    for registry in ["docker.io", "quay.io"] {
        let pulled = held.docker(&format!("{mirror}/{registry}/library/app:1"));
        assert!(pulled.is_ok(), "{pulled:?}");
        let image = format!("{mirror}/{registry}/library/secret:1");
        assert_reason("docker", &image, &held.docker(&image).expect_err("it is denied"));
    }
    assert_eq!(held.wanted(), [""; 0]);
    let mut free = machine(&served, &["docker"]);
    let pulled = free.docker("docker.io/library/app:1");
    assert!(pulled.is_ok(), "{pulled:?}");
    assert_eq!(free.wanted(), [""; 0]);
    free.docker("docker.io/library/secret:1").expect_err("nobody is let out");
    assert!(free.wanted().iter().any(|host| host == "registry-1.docker.io:443"), "{:?}", free.wanted());
}

#[test]
fn docker_is_held_by_interception_under_the_names_that_registries_have() {
    let registry = Registry::start();
    registry.push(&Image::small("app"), "library/app:1");
    registry.push(&Image::small("secret"), "library/secret:1");
    let site = Site::new()
        .with_fixed_ports()
        .registry("quay.io", &registry.url(), "")
        .registry("ghcr.io", &registry.url(), "")
        .with([("10-allowlist.wasm", &allowlist()), ("10-allowlist.toml", b"block = [\"*/library/secret\"]")]);
    let ca = site.path("ca").display().to_string();
    let made = site.clone().run(&["ca", "init", "--dir", &ca]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let table = format!("[intercept]\nregistries = [\"quay.io\", \"ghcr.io\"]\nca_dir = \"{ca}\"");
    let served = Served { proxy: site.top(&table).start(), _registry: registry, _authority: None };
    let mut machine = machine(&served, &["docker", "--enforce"]);
    for name in ["quay.io", "ghcr.io"] {
        let pulled = machine.docker(&format!("{name}/library/app:1"));
        assert!(pulled.is_ok(), "{pulled:?}");
        let image = format!("{name}/library/secret:1");
        let told = machine.docker(&image).expect_err("it is denied");
        assert!(told.contains("is blocked by rule"), "{told}");
    }
    assert_eq!(machine.wanted(), [""; 0]);
}

#[test]
fn nothing_is_written_over_and_nothing_merged() {
    let site = Site::new().with_fixed_ports();
    let tree = site.path("tree");
    let daemon = tree.join("etc/docker/daemon.json");
    let write = |more: &[&str]| {
        let words = ["client-config", "docker", "--write", &tree.display().to_string()].map(str::to_owned);
        site.run(&[&words.each_ref().map(String::as_str)[..], more].concat())
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(text(&write(&[]).stdout).contains("wrote "));
    let ours = fs::read_to_string(&daemon).unwrap();
    assert!(text(&write(&[]).stdout).contains("unchanged "));
    fs::write(&daemon, "{}").unwrap();
    fs::remove_dir_all(tree.join("etc/docker/certs.d")).ok();
    let refused = write(&[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("daemon.json") && text(&refused.stderr).contains("--force"));
    assert_eq!(fs::read_to_string(&daemon).unwrap(), "{}");
    assert!(write(&["--force"]).status.success());
    assert_eq!(fs::read_to_string(&daemon).unwrap(), ours);
}

#[test]
fn what_cannot_be_told_to_clients_is_refused_with_the_way_out() {
    let site = Site::new();
    for (words, part) in [
        (&["docker"][..], "--address"),
        (&["docker", "--address", "mirror.lan:5000", "--ca", "/etc/hostname"], "--ca"),
        (&["docker", "--address", "https://mirror.lan", "--ca", "/etc/hostname"], "holds no certificate"),
        (&["docker", "--address", "mirror.lan:5000", "--registry", "other.lan"], "[registries.\"other.lan\"]"),
        (&["docker", "--address", "mirror.lan:5000", "--force"], "--write"),
        (&["dokcer", "--address", "mirror.lan:5000"], "docker"),
    ] {
        let output = site.run(&[&["client-config"], words].concat());
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {told}");
        assert!(told.contains(part), "{words:?}: {told}");
    }
}
