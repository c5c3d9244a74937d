//! `tidegate import`: what other systems' files say becomes a configuration; what does not is told with its line.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use tidegate_tests::authority::Authority;
use tidegate_tests::plugins::{allowlist, mirrors};
use tidegate_tests::process::{offline, run};
use tidegate_tests::program::tidegate;

const REGISTRIES_CONF: &str = r#"
unqualified-search-registries = ["docker.io", "search.lan"]
short-name-mode = "enforcing"
credential-helpers = ["secret-service"]

[[registry]]
prefix = "*.blocked.example.com"
blocked = true

[[registry]]
prefix = "*.open.example.com"

[[registry]]
prefix = "quay.io/team"
location = "mixed.lan:5000/team"
insecure = true

[[registry.mirror]]
location = "plain.lan/quay"
insecure = true

[aliases]
"app" = "alias.lan/org/app"
"#;

const DROP_IN: &str = r#"
[[registry]]
location = "ghcr.io"
mystery = 3

[[registry.mirror]]
location = "mixed.lan:5000/ghcr"
"#;

const CLUSTER: &str = "\
apiVersion: config.openshift.io/v1
kind: ImageDigestMirrorSet
metadata:
  name: sets
spec:
  imageDigestMirrors:
  - source: registry.redhat.io/ubi9
    mirrors:
    - mirror.example.net/ubi9
    mirrorSourcePolicy: NeverContactSource
---
apiVersion: config.openshift.io/v1
kind: Image
metadata:
  name: cluster
spec:
  additionalTrustedCA:
    name: not-given
  allowedRegistriesForImport:
  - domainName: import.example.com
  externalRegistryHostnames:
  - external.example.com
  registrySources:
    insecureRegistries:
    - insecure.lan
    containerRuntimeSearchRegistries:
    - search2.lan
";

const DAEMON_JSON: &str = r#"{
  "registry-mirrors": ["http://hub.lan:5000"],
  "insecure-registries": [
    "old.lan:5000",
    "10.0.0.0/8"
  ],
  "proxies": { "https-proxy": "http://u:hunter2@proxy.lan" },
  "log-driver": "journald"
}
"#;

const HOSTS_TOML: &str = r#"
server = "https://gcr.io"
[host."https://harbor.lan/v2/gcr"]
  capabilities = ["pull", "resolve"]
  override_path = true
  skip_verify = true
  dial_timeout = "3s"
  ca = ["ca.pem", "missing.pem"]
  client = [["cert.pem", "key.pem"]]
  [host."https://harbor.lan/v2/gcr".header]
    x-token = "hunter2"
"#;

const K3S: &str = r#"
mirrors:
  lscr.io:
    endpoint:
      - "http://k3smirror.lan:5000"
configs:
  k3smirror.lan:5000:
    auth:
      username: k3suser
      password: hunter2
  verified.lan:
    tls:
      ca_file: AUTHORITY
"#;

const CONFIG_JSON: &str = r#"{
  "auths": {
    "https://index.docker.io/v1/": { "auth": "dTpodW50ZXIy" },
    "nowhere at all": { "auth": "eDp5" }
  },
  "credHelpers": { "ecr.lan": "ecr-login" },
  "HttpHeaders": { "X-Meta": "1" }
}
"#;

/// Files as they lie on somebody's machine.
struct Machine {
    folder: TempDir,
    authority: Authority,
}

impl Machine {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), authority: Authority::new() }
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn import(&self, files: &[&str], dir: &str) -> Output {
        let mut command = Command::new(tidegate());
        run(offline(&mut command).arg("import").args(files).args(["--dir", dir]).current_dir(self.folder.path()))
    }

    /// A verb about what was written to `new`.
    fn verb(&self, words: &[&str]) -> Output {
        let mut command = Command::new(tidegate());
        let home = self.folder.path();
        run(offline(&mut command)
            .args(words)
            .args(["--config", "new/tidegate.toml"])
            .env("HOME", home)
            .current_dir(home))
    }

    /// Puts plugins beside the files that were written for them, and nothing beside none.
    fn put_plugins(&self) {
        for (stem, plugin) in [("10-allowlist", allowlist()), ("20-mirrors", mirrors())] {
            if self.at(&format!("new/plugins.d/{stem}.d")).exists() {
                fs::write(self.at(&format!("new/plugins.d/{stem}.wasm")), plugin).unwrap();
            }
        }
    }

    /// Where an image would be pulled from.
    fn routes(&self, image: &str) -> Vec<String> {
        let told = text(&self.verb(&["explain", "--json", image]).stdout);
        let explained: serde_json::Value = serde_json::from_str(&told).unwrap_or_else(|err| panic!("{err}: {told}"));
        let routes = explained["routes"].as_array().unwrap_or_else(|| panic!("{told}")).iter();
        routes
            .map(|place| format!("{}/{}", place["registry"].as_str().unwrap(), place["repository"].as_str().unwrap()))
            .collect()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap_or_else(|err| panic!("{name}: {err}"))
    }

    fn authority(&self) -> String {
        fs::read_to_string(self.authority.file()).unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// All files below a folder, as texts by their paths.
fn texts(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(texts(&path));
        } else {
            found.insert(path.clone(), fs::read_to_string(&path).unwrap());
        }
    }
    found
}

/// Every kind of file.
fn everything() -> (Machine, Vec<(&'static str, String)>) {
    let machine = Machine::new();
    let pair = machine.authority.client("proxy");
    let config_map = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: given\n  namespace: openshift-config\ndata:\n  \
         trusted.lan..5000: |\n    {}\n  updateservice-registry: |\n    {0}\nimmutable: true\n",
        machine.authority().trim().replace('\n', "\n    ")
    );
    let secret = "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/dockerconfigjson\nmetadata:\n  name: pull\ndata:\n  \
                  .dockerconfigjson: eyJhdXRocyI6eyJjbG91ZC5sYW4iOnsiYXV0aCI6ImRUcG9kVzUwWlhJeSJ9fX0=\n";
    let policy = r#"{
  "default": [{ "type": "reject" }],
  "transports": {
    "docker": {
      "accepted.lan/team": [{ "type": "insecureAcceptAnything" }],
      "signed.lan": [
        { "type": "signedBy", "keyType": "GPGKeys", "keyPath": "/etc/key.gpg" }
      ]
    },
    "docker-daemon": { "": [{ "type": "insecureAcceptAnything" }] }
  }
}
"#;
    let files = vec![
        ("containers/registries.conf", REGISTRIES_CONF.to_owned()),
        ("containers/registries.conf.d/50-ghcr.conf", DROP_IN.to_owned()),
        ("cluster.yaml", CLUSTER.to_owned()),
        ("config-map.yaml", config_map),
        ("secret.yaml", secret.to_owned()),
        ("docker/daemon.json", DAEMON_JSON.to_owned()),
        ("docker/config.json", CONFIG_JSON.to_owned()),
        ("containerd/certs.d/gcr.io/hosts.toml", HOSTS_TOML.to_owned()),
        ("registries.yaml", K3S.replace("AUTHORITY", &machine.authority.file().display().to_string())),
        ("policy.json", policy.to_owned()),
    ];
    for (name, text) in &files {
        machine.put(name, text);
    }
    machine.put("docker/certs.d/own.lan:5000/ca.crt", &machine.authority());
    pair.copy(
        &machine.at("docker/certs.d/own.lan:5000/client.cert"),
        &machine.at("docker/certs.d/own.lan:5000/client.key"),
    );
    // What a hosts.toml names lies elsewhere than the folders that are given.
    machine.put("containerd/certs.d/gcr.io/ca.pem", &machine.authority());
    pair.copy(&machine.at("containerd/certs.d/gcr.io/cert.pem"), &machine.at("containerd/certs.d/gcr.io/key.pem"));
    (machine, files)
}

const ALL: [&str; 11] = [
    "containers/registries.conf",
    "containers/registries.conf.d",
    "cluster.yaml",
    "config-map.yaml",
    "secret.yaml",
    "docker/daemon.json",
    "docker/config.json",
    "docker/certs.d",
    "containerd/certs.d/gcr.io/hosts.toml",
    "registries.yaml",
    "policy.json",
];

#[test]
fn what_concerns_connections_becomes_the_proxys_configuration() {
    let (machine, _) = everything();
    let output = machine.import(&ALL, "new");
    assert_eq!(output.status.code(), Some(1), "{}{}", text(&output.stdout), text(&output.stderr));
    let config: toml::Table = machine.read("new/tidegate.toml").parse().unwrap();
    let registries = config["registries"].as_table().unwrap();
    let of = |name: &str| registries.get(name).unwrap_or_else(|| panic!("{name}: {registries:?}")).as_table().unwrap();
    for insecure in ["plain.lan", "insecure.lan", "old.lan:5000", "harbor.lan"] {
        assert_eq!(of(insecure)["insecure"].as_bool(), Some(true), "{insecure}");
    }
    for http in ["hub.lan:5000", "k3smirror.lan:5000"] {
        assert_eq!(of(http)["url"].as_str(), Some(&*format!("http://{http}")));
    }
    for proven in [
        "docker.io",
        "search.lan",
        "search2.lan",
        "quay.io",
        "mixed.lan:5000",
        "alias.lan",
        "ghcr.io",
        "registry.redhat.io",
        "mirror.example.net",
        "trusted.lan:5000",
        "cloud.lan",
        "ecr.lan",
        "gcr.io",
        "lscr.io",
        "own.lan:5000",
        "accepted.lan",
        "verified.lan",
    ] {
        assert!(of(proven).is_empty(), "{proven}: {:?}", of(proven));
    }
    assert!(!registries.contains_key("signed.lan") && !registries.keys().any(|name| name.contains('*')));
    for (file, mode) in [
        ("docker-config.json", 0o600),
        ("certs.d/trusted.lan:5000/ca.crt", 0o644),
        ("certs.d/own.lan:5000/ca.crt", 0o644),
        ("certs.d/own.lan:5000/client.cert", 0o644),
        ("certs.d/own.lan:5000/client.key", 0o600),
        ("certs.d/harbor.lan/ca.crt", 0o644),
        ("certs.d/harbor.lan/client.key", 0o600),
        ("certs.d/verified.lan/ca.crt", 0o644),
    ] {
        let about = fs::metadata(machine.at("new").join(file)).unwrap_or_else(|err| panic!("{file}: {err}"));
        assert_eq!(about.permissions().mode() & 0o777, mode, "{file}");
    }
    let logins: serde_json::Value = serde_json::from_str(&machine.read("new/docker-config.json")).unwrap();
    assert_eq!(logins["auths"]["k3smirror.lan:5000"]["auth"], "azNzdXNlcjpodW50ZXIy");
    assert_eq!(logins["auths"]["cloud.lan"]["auth"], "dTpodW50ZXIy");
    assert_eq!(logins["auths"]["https://index.docker.io/v1/"]["auth"], "dTpodW50ZXIy");
    assert_eq!(logins["credHelpers"]["ecr.lan"], "ecr-login");
}

#[test]
fn no_secret_reaches_a_plugin_or_a_terminal() {
    let (machine, _) = everything();
    let output = machine.import(&ALL, "new");
    let secrets = ["hunter2", "dTpodW50ZXIy", "PRIVATE KEY"];
    let told = text(&output.stdout) + &text(&output.stderr);
    assert!(!secrets.iter().any(|secret| told.contains(secret)), "{told}");
    for (path, text) in texts(&machine.at("new/plugins.d")) {
        assert!(!secrets.iter().any(|secret| text.contains(secret)), "{}", path.display());
    }
}

#[test]
fn every_line_is_carried_over_or_named() {
    let (machine, files) = everything();
    let output = machine.import(&ALL, "new");
    let told = text(&output.stdout);
    // A port behind two dots is one behind a colon here.
    let carried: String = texts(&machine.at("new")).into_values().chain([told.replace(':', "..")]).collect();
    for (file, text) in &files {
        for (number, line) in text.lines().enumerate() {
            // The last value of a line stands for it; brackets alone say nothing, and a certificate is carried whole.
            let value = line.rsplit(['=', ':', '-']).next().unwrap_or(line);
            let words = line.split(|sign: char| !(sign.is_alphanumeric() || "-_.:/*+$^()".contains(sign)));
            let value_known = words
                .clone()
                .filter(|word| word.len() > 2)
                .all(|word| carried.contains(word) || carried.contains(word.trim_end_matches(':')));
            let named = told.contains(&format!("{file}:{}: ", number + 1));
            let is_structure = value.trim().is_empty() || !line.contains(char::is_alphanumeric);
            let is_kubernetes = ["apiVersion", "kind", "metadata", "name", "namespace", "type", "data"]
                .iter()
                .any(|key| line.trim_start().starts_with(&format!("{key}:")));
            // Put together anew, or in another form: the tests above look at these one by one.
            let is_login = line.contains(".dockerconfigjson") || line.contains("username") || line.contains("password");
            let is_trust = ["skip_verify", "ca = ", "client = ", "ca_file", "header]", "auth:", "tls:", "configs"]
                .iter()
                .any(|key| line.contains(key));
            let is_certificate = machine.authority().contains(line.trim());
            assert!(
                value_known || named || is_structure || is_kubernetes || is_login || is_trust || is_certificate,
                "{file}:{}: {line}\n{told}",
                number + 1
            );
        }
    }
    for (place, part) in [
        ("containers/registries.conf:3", "short-name-mode"),
        ("containers/registries.conf:4", "credential-helpers"),
        ("containers/registries.conf:11", "add [registries.\"NAME\"]"),
        ("containers/registries.conf:15", "containers/registries.conf.d/50-ghcr.conf:7 wants proof"),
        ("containers/registries.conf.d/50-ghcr.conf:4", "registry.mystery"),
        ("cluster.yaml:18", "oc get configmap not-given"),
        ("cluster.yaml:20", "allowedRegistriesForImport"),
        ("cluster.yaml:22", "externalRegistryHostnames"),
        ("docker/daemon.json:5", "10.0.0.0/8"),
        ("docker/daemon.json:7", "proxies"),
        ("docker/daemon.json:8", "log-driver"),
        ("docker/config.json:4", "nowhere at all"),
        ("docker/config.json:7", "HttpHeaders"),
        ("containerd/certs.d/gcr.io/hosts.toml:7", "upstream_connect"),
        ("containerd/certs.d/gcr.io/hosts.toml:8", "missing.pem"),
        ("containerd/certs.d/gcr.io/hosts.toml:11", "x-token"),
        ("policy.json:7", "require-signature"),
        ("policy.json:10", "docker-daemon"),
    ] {
        let line =
            told.lines().find(|line| line.trim_start().starts_with(&format!("{place}: ")) && line.contains(part));
        assert!(line.is_some(), "{place} {part}:\n{told}");
    }
    assert!(told.contains("updateservice-registry") && told.contains("immutable"), "{told}");
    assert!(!told.contains("blocked.example.com"), "what is blocked needs no registry:\n{told}");
}

#[test]
fn what_comes_out_is_checked_and_routes_as_the_files_say() {
    let machine = Machine::new();
    machine.put("registries.conf", "[[registry]]\nprefix = \"quay.io\"\nlocation = \"quay.io\"\n[[registry.mirror]]\nlocation = \"mirror.lan:5000/quay\"\ninsecure = true\n");
    machine.put(
        "certs.d/docker.io/hosts.toml",
        "server = \"https://registry-1.docker.io\"\n[host.\"http://hub.lan:5000\"]\n",
    );
    let output = machine.import(&["registries.conf", "certs.d"], "new");
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    fs::write(machine.at("new/plugins.d/20-mirrors.wasm"), mirrors()).unwrap();
    let output = machine.verb(&["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("mirrors"), "{}", text(&output.stdout));
    for (image, places) in [
        ("quay.io/org/app:1", ["mirror.lan:5000/quay/org/app", "quay.io/org/app"]),
        ("docker.io/library/app:1", ["hub.lan:5000/library/app", "docker.io/library/app"]),
    ] {
        assert_eq!(machine.routes(image), places);
    }
}

#[test]
fn nothing_is_written_over_and_bad_files_stop_it() {
    let machine = Machine::new();
    machine.put("daemon.json", DAEMON_JSON);
    machine.put("bad.conf", "[[registry]]\nlocation = \"http://x\"\n");
    machine.put("other.txt", "hello: world\n");
    machine.put("taken/file", "");
    for (files, dir, part) in [
        (&["daemon.json"][..], "taken", "--dir"),
        (&["daemon.json"], "daemon.json", "--dir"),
        (&["daemon.json", "bad.conf"], "new", "bad.conf:2: "),
        (&["daemon.json", "other.txt"], "new", "other.txt:1: "),
        (&["missing.conf"], "new", "missing.conf"),
    ] {
        let output = machine.import(files, dir);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(part), "{part}: {told}");
        assert!(!machine.at("new").exists());
    }
    assert_eq!(machine.read("taken/file"), "");
}

/// The example of the cluster's own documentation: what is blocked comes from its mirror, and from nowhere else.
#[test]
fn what_is_blocked_still_comes_from_its_mirror() {
    let machine = Machine::new();
    machine.put(
        "icsp.yaml",
        "apiVersion: operator.openshift.io/v1alpha1\nkind: ImageContentSourcePolicy\nmetadata: {name: payload}\nspec:\n  \
         repositoryDigestMirrors:\n  - mirrors: [internal-mirror.io/openshift-payload]\n    source: quay.io/openshift-payload\n",
    );
    machine.put(
        "image.yaml",
        "apiVersion: config.openshift.io/v1\nkind: Image\nmetadata: {name: cluster}\nspec:\n  registrySources:\n    \
         blockedRegistries: [quay.io/openshift-payload]\n",
    );
    let output = machine.import(&["icsp.yaml", "image.yaml"], "new");
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(!machine.at("new/plugins.d/10-allowlist.d").exists());
    machine.put_plugins();
    let digest = format!("quay.io/openshift-payload/app@sha256:{}", "a".repeat(64));
    assert_eq!(machine.routes(&digest), ["internal-mirror.io/openshift-payload/app"]);
}

/// A file, its text, and the line and the part of it that is named, if one is.
type Refused = (&'static str, &'static str, Option<(usize, &'static str)>);

/// Files that the plugins would refuse, in part or as a whole.
const REFUSED: [Refused; 10] = [
    (
        "registries.yaml",
        "mirrors:\n  a.lan:\n    endpoint: [\"https://m.lan\"]\n    rewrite:\n      \"^x\": y\n",
        Some((5, "rewrite")),
    ),
    (
        "registries.yaml",
        "mirrors:\n  a.lan:\n    endpoint: [\"https://gm.lan/gcr\"]\n",
        Some((3, "https://gm.lan/gcr")),
    ),
    ("a.lan/hosts.toml", "[host.\"https://b.lan/prefix\"]\n", Some((1, "https://b.lan/prefix"))),
    ("a.lan/hosts.toml", "server = \"https://s.lan/x\"\n[host.\"https://b.lan\"]\n", Some((1, "https://s.lan/x"))),
    (
        "daemon.json",
        "{\"registry-mirrors\": [\"https://m.lan\",\n\"https://m2.lan/x\"]}",
        Some((2, "https://m2.lan/x")),
    ),
    ("daemon.json", "{\"insecure-registries\": [\"old.lan\"]}", None),
    (
        "config.toml",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n",
        Some((3, "config_path")),
    ),
    (
        "policy.json",
        "{\"default\": [{\"type\": \"insecureAcceptAnything\"}], \"transports\": {\"docker\": {\"s.lan\": [\n{\"type\": \
         \"sigstoreSigned\", \"keyPath\": \"/k\"}]}}}",
        Some((2, "require-signature")),
    ),
    ("registries.conf", "# stock\n# unqualified-search-registries = [\"a.lan\"]\n", None),
    ("registries.conf", "short-name-mode = \"enforcing\"\n", Some((1, "short-name-mode"))),
];

#[test]
fn only_what_the_plugins_take_is_written() {
    for (name, said, left) in REFUSED {
        let machine = Machine::new();
        machine.put(name, said);
        let output = machine.import(&[name], "new");
        let told = text(&output.stdout);
        assert_eq!(output.status.code(), Some(i32::from(left.is_some())), "{said}: {told}{}", text(&output.stderr));
        if let Some((line, part)) = left {
            let is_named = |told: &str| told.contains(&format!("{name}:{line}: ")) && told.contains(part);
            assert!(told.lines().any(is_named), "{name}:{line}: {part}: {told}");
        } else {
            assert!(told.contains(&format!("{name} -> ")), "{told}");
        }
        machine.put_plugins();
        let output = machine.verb(&["check"]);
        assert_eq!(output.status.code(), Some(0), "{said}: {}", text(&output.stderr));
    }
}

#[test]
fn what_contradicts_an_earlier_file_is_named() {
    let machine = Machine::new();
    machine.put("_default/hosts.toml", "[host.\"https://one.lan\"]\n");
    machine.put(
        "config.toml",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"*\"]\nendpoint = [\"https://two.lan\"]\n",
    );
    let output = machine.import(&["_default/hosts.toml", "config.toml"], "new");
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("mirrors of \"*\": _default/hosts.toml:1 says it in another way"), "{told}");
    machine.put_plugins();
    let output = machine.verb(&["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

/// However a drop-in is named, it holds against the file that it belongs to.
#[test]
fn drop_ins_that_are_named_one_by_one_stand_behind_their_file() {
    for drop_in in ["registries.conf.d/60-b.conf", "60-b.conf"] {
        let machine = Machine::new();
        machine.put("registries.conf", "credential-helpers = [\"a\", \"b\"]\n[[registry]]\nlocation = \"a.lan\"\n");
        machine.put(drop_in, "[[registry]]\nlocation = \"a.lan\"\nblocked = true\n");
        let output = machine.import(&["registries.conf", drop_in], "new");
        let told = text(&output.stdout);
        assert!(told.contains("20-mirrors.d/registries.conf.d/60-b.conf"), "{told}");
        assert_eq!(told.matches("credential-helpers").count(), 1, "{told}");
        machine.put_plugins();
        let told = text(&machine.verb(&["explain", "a.lan/app:1"]).stdout);
        assert!(told.contains("is blocked by a.lan of registries.conf.d/60-b.conf"), "{told}");
    }
}

#[test]
fn check_refuses_a_forgotten_plugin() {
    let machine = Machine::new();
    machine.put("registries.conf", "[[registry]]\nlocation = \"a.lan\"\nblocked = true\n");
    machine.import(&["registries.conf"], "new");
    let output = machine.verb(&["check"]);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("20-mirrors.d belongs to no plugin"), "{told}");
}
