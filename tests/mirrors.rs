//! The files that people have already: their mirrors are asked as the systems that they come from ask them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tidegate_tests::fake::Fake;
use tidegate_tests::image::Image;
use tidegate_tests::namespace;
use tidegate_tests::plugins::{allowlist, mirrors};
use tidegate_tests::process::{offline, run};
use tidegate_tests::program::workspace;
use tidegate_tests::site::Site;

/// The digest of nothing: no registry is asked.
const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A file of `tests/corpus/mirrors`.
fn corpus(name: &str) -> String {
    let path = workspace().join("tests/corpus/mirrors").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The plugin at work with the objects of a cluster.
fn with_cluster(site: Site) -> Site {
    for name in ["idms.yaml", "itms.yaml", "icsp.yaml", "image.yaml"] {
        site.install(&format!("20-mirrors.d/{name}"), corpus(&format!("cluster/{name}")).as_bytes());
    }
    site.with([("20-mirrors.wasm", &mirrors())])
}

/// Where `tidegate explain` says that an image is looked for, in order; nowhere where it is denied.
fn explained(site: &Site, image: &str) -> Vec<String> {
    let output = site.run_as_is(&["explain", image, "--json"]);
    let line: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{image}: {error}: {}", String::from_utf8_lossy(&output.stderr)));
    let routes = line["routes"].as_array().cloned().unwrap_or_default();
    let place = |route: &Value| {
        let text = |key: &str| route[key].as_str().expect("a text").to_owned();
        format!("{}/{}", text("registry"), text("repository"))
    };
    assert_eq!(line["decision"] == "deny", routes.is_empty(), "{image}: {line}");
    routes.iter().map(place).collect()
}

/// Where containers/image looks for an image with a registries.conf, in order, by Skopeo's own log. What it passes over,
/// since it is blocked, is left out.
fn tried_by_skopeo(registries_conf: &str, image: &str) -> Vec<String> {
    let mut command = Command::new("skopeo");
    command.args(["--debug", "--registries-conf", registries_conf, "inspect", "--no-tags"]);
    let output = run(offline(&mut command).arg(format!("docker://{image}")));
    let log = String::from_utf8_lossy(&output.stderr).replace("\\\"", "\"");
    assert!(!output.status.success(), "{image} is nowhere");
    let between = |line: &str, before: &str| {
        let rest = &line[line.find(before)? + before.len()..];
        Some(rest[..rest.find('"')?].to_owned())
    };
    let tried = log.lines().filter_map(|line| between(line, "msg=\"Trying to access \""));
    let blocked: Vec<String> = log
        .lines()
        .filter(|line| line.contains(" is blocked in "))
        .filter_map(|line| between(line, "msg=\"Accessing \""))
        .collect();
    let tried: Vec<String> = tried.filter(|place| !blocked.contains(place)).collect();
    let place = |place: &String| match place.split_once('@') {
        Some((place, _)) => place.to_owned(),
        None => place.rsplit_once(':').expect("a tag").0.to_owned(),
    };
    tried.iter().map(place).collect()
}

#[test]
fn mirror_sets_lead_where_containers_tools_go_with_what_the_cluster_makes_of_them() {
    let site = with_cluster(Site::new());
    site.write_config();
    let proxy = site.with_fixed_ports().start();
    let registries_conf = workspace().join("tests/corpus/mirrors/registries.conf").display().to_string();
    let names = corpus("pulls.txt");
    let mut pulls = 0;
    for name in names.lines().filter(|line| !line.starts_with('#')) {
        for image in [format!("{name}:1.2"), format!("{name}@{DIGEST}")] {
            assert_eq!(explained(proxy.site(), &image), tried_by_skopeo(&registries_conf, &image), "{image}");
            pulls += 1;
        }
    }
    assert!(pulls >= 60, "only {pulls} pulls were compared");
    println!("{pulls} pulls lead to the same places in the same order");
}

/// Registries by name, in a network of the test's own: each at an address of its own, on port 80.
const REGISTRIES: [&str; 5] =
    ["digests.example.com", "tags.example.com", "all.example.com", "registry.example.com", "closed.example.com"];

const REGISTRIES_CONF: &str = r#"
unqualified-search-registries = []

[[registry]]
location = "registry.example.com"
insecure = true
[[registry.mirror]]
location = "digests.example.com"
pull-from-mirror = "digest-only"
insecure = true
[[registry.mirror]]
location = "tags.example.com/copy/of"
pull-from-mirror = "tag-only"
insecure = true
[[registry.mirror]]
location = "all.example.com"
insecure = true

[[registry]]
location = "closed.example.com"
blocked = true
[[registry.mirror]]
location = "tags.example.com/closed"
pull-from-mirror = "tag-only"
insecure = true
"#;

/// What is pulled, who holds it, and whether as an index of two platforms.
struct Scene {
    source: &'static str,
    by_digest: bool,
    holds: (&'static str, &'static str),
    is_index: bool,
}

impl Scene {
    /// Puts an image where it is held. Gives what clients call it.
    fn put(&self, net: &Net, name: &str) -> String {
        let image = Image::new(name, &[20_000, 10_000]);
        let (holder, path) = self.holds;
        let held = format!("{path}{name}:1");
        let digest = if self.is_index {
            let other = Image::new("another platform", &[1_000]);
            net.fake(holder).put_index(&[(&image, "linux/amd64"), (&other, "linux/s390x")], &held)
        } else {
            net.fake(holder).put_image(&image, &held);
            image.digest()
        };
        let reference = if self.by_digest { format!("@{digest}") } else { ":1".to_owned() };
        format!("{}/{name}{reference}", self.source)
    }
}

/// Every way in which an image comes from a mirror or from its source.
fn scenes() -> [Scene; 8] {
    let open = |by_digest, holder: &'static str, path, is_index| Scene {
        source: "registry.example.com",
        by_digest,
        holds: (holder, path),
        is_index,
    };
    [
        open(false, "registry.example.com", "", false),
        open(false, "tags.example.com", "copy/of/", false),
        open(false, "all.example.com", "", true),
        open(false, "registry.example.com", "", true),
        open(true, "digests.example.com", "", false),
        open(true, "all.example.com", "", false),
        open(true, "registry.example.com", "", true),
        Scene {
            source: "closed.example.com",
            by_digest: false,
            holds: ("tags.example.com", "closed/"),
            is_index: true,
        },
    ]
}

/// The fake registries under their names.
struct Net {
    fakes: Vec<(&'static str, Fake)>,
}

impl Net {
    fn start() -> Self {
        let fake = |at: u8| Fake::start_at(SocketAddr::from((address(at), 80)));
        Self { fakes: REGISTRIES.into_iter().zip(0..).map(|(name, at)| (name, fake(at))).collect() }
    }

    fn fake(&self, name: &str) -> &Fake {
        &self.fakes.iter().find(|(other, _)| *other == name).expect("a registry of the test").1
    }

    /// What the registries were asked for since this was asked last, in order: registry and kind, once where it is the
    /// same again.
    fn asked(&self) -> Vec<String> {
        let mut seen = Vec::new();
        for (name, fake) in &self.fakes {
            for request in fake.seen() {
                let kind = ["manifests", "blobs"].into_iter().find(|kind| request.path.contains(&format!("/{kind}/")));
                seen.extend(kind.map(|kind| (request.turn, format!("{name} {kind}"))));
            }
            fake.forget();
        }
        seen.sort();
        let mut asked: Vec<String> = seen.into_iter().map(|(_, what)| what).collect();
        asked.dedup();
        asked
    }
}

fn address(at: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 77, 0, at + 1)
}

fn client(program: &str, registries_conf: &Path, image: &str, folder: &Path) -> Result<(), String> {
    let mut command = Command::new(program);
    let conf = registries_conf.display().to_string();
    let at = |name: &str| folder.join(name).display().to_string();
    let policy = at("policy.json");
    fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).expect("written");
    offline(&mut command).env("NO_PROXY", "127.0.0.0/8,.example.com").env("no_proxy", "127.0.0.0/8,.example.com");
    if program == "skopeo" {
        let target = format!("dir:{}", at("copy"));
        let source = format!("docker://{image}");
        command.args(["--policy", &policy, "--registries-conf", &conf, "copy", &source, &target]);
    } else {
        command.env("CONTAINERS_REGISTRIES_CONF", &conf);
        command.args(["--root", &at("root"), "--runroot", &at("run"), "--tmpdir", &at("tmp")]);
        command.args(["--storage-driver", "vfs", "pull", "--signature-policy", &policy, image]);
    }
    let output = run(&mut command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

#[test]
fn skopeo_reaches_the_same_registries_through_the_mirror_as_without_it() {
    assert_reaches_the_same("mirrors::skopeo_reaches_the_same_registries_through_the_mirror_as_without_it", "skopeo");
}

#[test]
fn podman_reaches_the_same_registries_through_the_mirror_as_without_it() {
    assert_reaches_the_same("mirrors::podman_reaches_the_same_registries_through_the_mirror_as_without_it", "podman");
}

/// Lets a client pull with a registries.conf of its own and through the mirror with the same one, and compares what the
/// registries were asked for. `test`: the test's own name.
fn assert_reaches_the_same(test: &str, program: &str) {
    let hosts: Vec<String> = REGISTRIES.iter().zip(0..).map(|(name, at)| format!("{} {name}", address(at))).collect();
    let setup = format!(
        "printf '127.0.0.1 localhost\\n{}\\n' >/run/tidegate-hosts-{program}\nmount --bind /run/tidegate-hosts-{program} /etc/hosts",
        hosts.join("\\n")
    );
    // Built out here: in there nothing is built.
    let plugin = mirrors();
    if !namespace::is_inside(test, &setup) {
        return;
    }
    let net = Net::start();
    let site = net.fakes.iter().fold(Site::new(), |site, (name, fake)| site.registry(name, &fake.url(), ""));
    let proxy = site.with([("20-mirrors.wasm", &plugin), ("20-mirrors.conf", REGISTRIES_CONF.as_bytes())]).start();
    let folder = tempfile::tempdir().expect("a folder");
    let direct = folder.path().join("direct.conf");
    fs::write(&direct, REGISTRIES_CONF).expect("written");
    let through = folder.path().join("through.conf");
    let to_proxy = |name: &&str| {
        format!("[[registry]]\nprefix = \"{name}\"\nlocation = \"{}/{name}\"\ninsecure = true\n", proxy.authority())
    };
    fs::write(&through, REGISTRIES.iter().map(to_proxy).collect::<String>()).expect("written");

    for (at, scene) in scenes().iter().enumerate() {
        // Podman is the slower one, and the same library asks.
        if program == "podman" && at % 2 == 0 {
            continue;
        }
        let name = format!("{program}-{at}/app");
        let image = scene.put(&net, &name);
        let folder = folder.path().join(at.to_string());
        let mut asked = Vec::new();
        for conf in [&direct, &through] {
            fs::create_dir_all(&folder).expect("made");
            let said = client(program, conf, &image, &folder);
            said.unwrap_or_else(|said| panic!("{image} with {}: {said}", conf.display()));
            asked.push(net.asked());
            fs::remove_dir_all(&folder).expect("removed");
        }
        assert_eq!(asked[1], asked[0], "{image}: through the mirror, and without it");
        assert_eq!(asked[0].last(), Some(&format!("{} blobs", scene.holds.0)), "{image}: {asked:?}");
    }
    // Both are kept from what is blocked and not mirrored so, by their own configuration or by the mirror.
    let name = format!("closed.example.com/blocked/app@{DIGEST}");
    fs::create_dir_all(folder.path().join("closed")).expect("made");
    for conf in [&direct, &through] {
        let said = client(program, conf, &name, &folder.path().join("closed")).expect_err("it is blocked");
        assert!(said.contains("blocked"), "{said}");
        assert_eq!(net.asked(), Vec::<String>::new());
    }
}

#[test]
fn a_saved_change_of_a_file_holds_without_a_lost_pull() {
    let image = Image::small("app");
    let fakes: Vec<Fake> = (0..3).map(|_| Fake::start()).collect();
    for fake in &fakes {
        fake.put_image(&image, "team/app:1");
    }
    let set = |mirror: &str| {
        format!(
            "apiVersion: config.openshift.io/v1\nkind: ImageDigestMirrorSet\nmetadata:\n  name: one\nspec:\n  \
             imageDigestMirrors:\n  - source: quay.io\n    mirrors: [{mirror}]\n    mirrorSourcePolicy: \
             NeverContactSource\n"
        )
    };
    let site = Site::new()
        .registry("quay.io", &fakes[0].url(), "")
        .registry("a.lan", &fakes[1].url(), "")
        .registry("b.lan", &fakes[2].url(), "")
        .with([("20-mirrors.wasm", &mirrors()), ("20-mirrors.d/idms.yaml", set("a.lan").as_bytes())]);
    let proxy = site.start();
    let path = format!("/v2/quay.io/team/app/manifests/{}", image.digest());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pulls = scope.spawn(|| {
            let mut pulls = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let answer = proxy.get(&path).fetch();
                assert_eq!(answer.status, 200, "{}", answer.text());
                pulls += 1;
            }
            pulls
        });
        for mirror in ["b.lan", "a.lan", "b.lan"] {
            proxy.reload(|site| site.copy("20-mirrors.d/idms.yaml", set(mirror).as_bytes()));
            let seen = fakes[if mirror == "b.lan" { 2 } else { 1 }].seen().len();
            assert!(seen > 0 || mirror == "b.lan", "{mirror} was asked");
        }
        // A bad one changes nothing, and is told with its line.
        let refusal = proxy.refusal("mirrors", |site| site.copy("20-mirrors.d/idms.yaml", set("[").as_bytes()));
        assert!(refusal.field("reason").contains("idms.yaml:"), "{}", refusal.field("reason"));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let pulls: usize = pulls.join().expect("no pull was lost");
        assert!(pulls > 0);
        println!("{pulls} pulls while four files were copied over");
    });
    let routes = |answer: &str| answer.contains("b.lan");
    let explained = proxy.admin(&format!("/explain?image=quay.io/team/app@{}", image.digest())).text();
    assert!(routes(&explained) && !explained.contains("a.lan"), "{explained}");
    assert_eq!(fakes[0].seen().len(), 0, "the source is never contacted");
    // What the mirror has as a tag is for no pull by tag: the set is for digests.
    let denied = proxy.get("/v2/quay.io/team/app/manifests/1").fetch();
    assert_eq!((denied.status, denied.code().as_str()), (403, "DENIED"));
    assert!(denied.message().contains("quay.io of idms.yaml:7"), "{}", denied.message());
}

#[test]
fn the_folder_of_hosts_that_containerd_has_works_as_it_is() {
    let image = Image::small("app");
    let (mirror, source) = (Fake::start(), Fake::start());
    mirror.put_image(&image, "hub/library/app:1");
    source.put_image(&image, "library/app:1");
    let hosts = format!(
        "server = \"https://registry-1.docker.io\"\n[host.\"{}/v2/hub\"]\noverride_path = true\n",
        mirror.url()
    );
    let site = Site::of(&source.url())
        .registry(&mirror.authority(), &mirror.url(), "")
        .with([("20-mirrors.wasm", &mirrors()), ("20-mirrors.d/certs.d/docker.io/hosts.toml", hosts.as_bytes())]);
    let proxy = site.start();
    crate::assert_pulls(&proxy, &image);
    assert_eq!(source.seen().len(), 0);
    // What is not at the mirror comes from the server.
    source.put_image(&image, "library/other:1");
    assert_eq!(proxy.get("/v2/library/other/manifests/1").fetch().status, 200);
    assert_eq!(mirror.count("GET", "/v2/hub/library/other/manifests/1"), 1);
    // A change below the folder is heard of.
    let away = hosts.replace("override_path = true", "override_path = true\ncapabilities = [\"pull\"]");
    proxy.reload(|site| site.install("20-mirrors.d/certs.d/docker.io/hosts.toml", away.as_bytes()));
    source.put_image(&image, "library/third:1");
    assert_eq!(proxy.get("/v2/library/third/manifests/1").fetch().status, 200);
    assert_eq!(mirror.count("GET", "/v2/hub/library/third/manifests/1"), 0);
}

#[test]
fn what_a_cluster_allows_and_what_a_policy_rejects_is_held() {
    let image = Image::small("app");
    let fake = Fake::start();
    for name in ["org/app:1", "org/app:2", "other/app:1"] {
        fake.put_image(&image, name);
    }
    let allowed = "apiVersion: config.openshift.io/v1\nkind: Image\nmetadata:\n  name: cluster\nspec:\n  \
                   registrySources:\n    allowedRegistries:\n    - quay.io/org/app:1\n    - registry.redhat.io\n";
    let site = Site::new()
        .registry("quay.io", &fake.url(), "")
        .with([("10-allowlist.wasm", &allowlist()), ("10-allowlist.yaml", allowed.as_bytes())]);
    let proxy = site.start();
    let status = |name: &str| {
        let answer = proxy.get(&format!("/v2/quay.io/{name}")).fetch();
        (answer.status, if answer.status == 403 { answer.message() } else { String::new() })
    };
    assert_eq!(status("org/app/manifests/1").0, 200);
    assert_eq!(status(&format!("org/app/blobs/{}", image.layer_digest(0))).0, 200);
    for (name, said) in [("org/app/manifests/2", "quay.io/org/app:2"), ("other/app/manifests/1", "quay.io/other/app")] {
        let (status, message) = status(name);
        assert_eq!(status, 403, "{name}");
        let reason = format!("{said} is not allowed: it is none of the allowedRegistries of 10-allowlist.yaml:8");
        assert!(message.contains(&reason), "{message}");
    }
    // Both lists at once are refused with the reason, and what was there before holds.
    let both = format!("{allowed}    blockedRegistries:\n    - quay.io\n");
    let refusal = proxy.refusal("allowlist", |site| site.copy("10-allowlist.yaml", both.as_bytes()));
    let reason = refusal.field("reason");
    assert!(
        reason.contains("10-allowlist.yaml:11: allowedRegistries and blockedRegistries are both there"),
        "{reason}"
    );
    assert_eq!(status("org/app/manifests/1").0, 200);
    // A policy beside it: each of the two must let a pull through.
    let policy = r#"{"default": [{"type": "insecureAcceptAnything"}],
        "transports": {"docker": {"quay.io/org": [{"type": "reject"}]}}}"#;
    proxy.reload(|site| {
        site.copy("10-allowlist.yaml", allowed.as_bytes());
        site.install("10-allowlist.json", policy.as_bytes());
    });
    let (denied, message) = status("org/app/manifests/1");
    assert_eq!(denied, 403);
    assert!(message.contains("quay.io/org/app is rejected by \"quay.io/org\" of 10-allowlist.json:2"), "{message}");
}
