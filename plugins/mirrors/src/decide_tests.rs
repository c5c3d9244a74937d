use super::*;
use crate::load::load;
use tidegate_sdk::{File, testing};

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn rules(files: &[(&str, &str)]) -> Result<Rules, String> {
    let files: Vec<File> =
        files.iter().map(|(name, text)| File { name: (*name).to_owned(), text: (*text).to_owned() }).collect();
    load(&files)
}

fn rules_of(file: &str, text: &str) -> Rules {
    rules(&[(file, text)]).unwrap_or_else(|reason| panic!("{reason}"))
}

/// Where a pull is tried, as places with spaces between, or why it is denied. `@` stands for a digest, `#` for a blob.
fn decided(rules: &Rules, image: &str) -> String {
    let (image, content) = match image.strip_suffix('#') {
        Some(image) => (format!("{image}@{DIGEST}"), Content::Blob),
        None if image.ends_with('@') => (format!("{image}{DIGEST}"), Content::Manifest),
        None => (image.to_owned(), Content::Manifest),
    };
    let request = Request { content, ..testing::request(&image) };
    decided_about(rules, &request)
}

fn decided_about(rules: &Rules, request: &Request) -> String {
    if let Verdict::Deny(denial) = admit(rules, request) {
        return format!("denied: {}", denial.message);
    }
    let named = [Candidate::new(request.registry.as_str()).with_repository(request.repository.as_str())];
    match route(rules, request, &named) {
        Routes::Pass => "pass".to_owned(),
        Routes::To(list) => {
            let place = |candidate: Candidate| {
                format!("{}/{}", candidate.registry, candidate.repository.expect("a repository is named"))
            };
            list.into_iter().map(place).collect::<Vec<_>>().join(" ")
        }
        Routes::Deny(denial) => panic!("{}", denial.message),
    }
}

const IDMS: &str = "
apiVersion: config.openshift.io/v1
kind: ImageDigestMirrorSet
metadata: {name: one}
spec:
  imageDigestMirrors:
  - source: registry.example.com
    mirrors: [mirror.example.com]
  - source: registry.example.com/example
    mirrors: [mirror.example.net]
    mirrorSourcePolicy: NeverContactSource
---
apiVersion: config.openshift.io/v1
kind: ImageTagMirrorSet
metadata: {name: two}
spec:
  imageTagMirrors:
  - source: registry.example.com
    mirrors: [tags.example.com/x]
  - source: quay.io/a
    mirrors: [tags.example.com/quay-a]
    mirrorSourcePolicy: NeverContactSource
";

#[test]
fn mirror_sets_of_a_cluster() {
    let rules = rules_of("20-mirrors.yaml", IDMS);
    for (image, places) in [
        ("registry.example.com/a/b@", "mirror.example.com/a/b registry.example.com/a/b"),
        ("registry.example.com/a/b:1", "tags.example.com/x/a/b registry.example.com/a/b"),
        ("registry.example.com/example/app@", "mirror.example.net/app"),
        (
            "registry.example.com/example/app:1",
            "denied: registry.example.com/example/app is blocked by registry.example.com/example of 20-mirrors.yaml:9, \
             and none of its mirrors is for pulls by tag",
        ),
        // The mirror itself has no name for what the prefix names whole.
        (
            "registry.example.com/example@",
            "denied: registry.example.com/example is blocked by registry.example.com/example of 20-mirrors.yaml:9, and \
             none of its mirrors is for pulls by digest",
        ),
        ("quay.io/a:1", "tags.example.com/quay-a"),
        ("quay.io/a/b:1", "tags.example.com/quay-a/b"),
        ("quay.io/a/b#", "tags.example.com/quay-a/b"),
        ("quay.io/ab:1", "pass"),
        ("mirror.example.com/a/b:1", "pass"),
    ] {
        assert_eq!(decided(&rules, image), places, "{image}");
    }
}

#[test]
fn what_a_manifest_lists_is_had_where_the_manifest_was() {
    let rules = rules_of("20-mirrors.yaml", IDMS);
    let tell = |name: &str, places: &str| {
        testing::host(|host| _ = host.attributes.insert(name.to_owned(), places.to_owned()));
    };
    tell("listed-at", "registry.example.com/a/b");
    assert_eq!(
        decided(&rules, "registry.example.com/a/b#"),
        "registry.example.com/a/b mirror.example.com/a/b tags.example.com/x/a/b"
    );
    assert_eq!(decided(&rules, "registry.example.com/a/b@"), "registry.example.com/a/b mirror.example.com/a/b");
    // The digest of a tag that came from a mirror for tags only, and what its index lists.
    tell("listed-at", "tags.example.com/quay-a/b");
    assert_eq!(decided(&rules, "quay.io/a/b@"), "tags.example.com/quay-a/b");
    tell("listed-at", "");
    assert!(decided(&rules, "quay.io/a/b@").contains("none of its mirrors is for pulls by digest"));
    tell("tagged-at", "tags.example.com/quay-a/b");
    assert_eq!(decided(&rules, "quay.io/a/b@"), "tags.example.com/quay-a/b");
    // A place that the rule does not name is none for it.
    tell("tagged-at", "evil.org/quay-a/b");
    assert!(decided(&rules, "quay.io/a/b@").contains("none of its mirrors is for pulls by digest"));
}

#[test]
fn a_blocked_registry_with_mirrors_is_had_from_them_only() {
    let image = "apiVersion: config.openshift.io/v1\nkind: Image\nspec:\n  registrySources:\n    blockedRegistries:\n    - \
                 quay.io/payload\n    - '*.evil.org'\n    - mirror.lan/bad\n";
    let icsp = "apiVersion: operator.openshift.io/v1alpha1\nkind: ImageContentSourcePolicy\nspec:\n  \
                repositoryDigestMirrors:\n  - {source: quay.io/payload, mirrors: [mirror.lan/payload]}\n  - {source: \
                quay.io/other, mirrors: [mirror.lan/bad/other, mirror.lan/other]}\n";
    let rules = rules(&[("image.yaml", image), ("icsp.yaml", icsp)]).expect("rules");
    for (image, places) in [
        ("quay.io/payload/a@", "mirror.lan/payload/a"),
        (
            "quay.io/payload/a:1",
            "denied: quay.io/payload/a is blocked by quay.io/payload of image.yaml:6, and none of its mirrors is for \
             pulls by tag",
        ),
        ("quay.io/other/a@", "mirror.lan/other/a quay.io/other/a"),
        ("quay.io/other/a:1", "pass"),
        ("a.evil.org/x:1", "denied: a.evil.org/x is blocked by *.evil.org of image.yaml:7"),
        ("evil.org/x:1", "pass"),
    ] {
        assert_eq!(decided(&rules, image), places, "{image}");
    }
    // Pushes go to the source, or nowhere.
    let push = |image: &str| Request { action: Action::Push, ..testing::request(image) };
    assert_eq!(decided_about(&rules, &push("quay.io/other/a:1")), "pass");
    let denied = decided_about(&rules, &push("quay.io/payload/a:1"));
    assert_eq!(denied, "denied: quay.io/payload/a is blocked by quay.io/payload of image.yaml:6");
}

#[test]
fn registries_conf_rewrites_and_restricts() {
    let rules = rules_of(
        "registries.conf",
        "[[registry]]\nprefix = \"example.com/foo\"\nlocation = \"internal.lan/bar\"\n[[registry.mirror]]\nlocation = \
         \"m0.lan/for-foo\"\n[[registry.mirror]]\nlocation = \"m1.lan:5000\"\npull-from-mirror = \"digest-only\"\n\
         [[registry]]\nlocation = \"registry.com\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \
         \"mirror.registry.com\"\n[[registry]]\nprefix = \"*.blocked.org\"\nblocked = true\n[[registry]]\nprefix = \
         \"*.moved.org\"\nlocation = \"moved.lan/all\"\n",
    );
    for (image, places) in [
        ("example.com/foo/x/y:1", "m0.lan/for-foo/x/y internal.lan/bar/x/y"),
        ("example.com/foo/x@", "m0.lan/for-foo/x m1.lan:5000/x internal.lan/bar/x"),
        ("example.com/foo:1", "m0.lan/for-foo internal.lan/bar"),
        // The mirror that is a registry alone has no name for it.
        ("example.com/foo@", "m0.lan/for-foo internal.lan/bar"),
        ("example.com/foobar:1", "pass"),
        ("registry.com/x:1", "pass"),
        ("registry.com/x@", "mirror.registry.com/x registry.com/x"),
        ("registry.com/x#", "mirror.registry.com/x registry.com/x"),
        ("a.b.blocked.org/x@", "denied: a.b.blocked.org/x is blocked by *.blocked.org of registries.conf:14"),
        ("a.moved.org/x:1", "moved.lan/all/x"),
    ] {
        assert_eq!(decided(&rules, image), places, "{image}");
    }
}

#[test]
fn later_files_of_registries_conf_replace_what_they_name() {
    let rules = rules(&[
        (
            "registries.conf",
            "[[registry]]\nlocation = \"a.io\"\nblocked = true\n[[registry]]\nlocation = \"b.io\"\nblocked = true",
        ),
        ("registries.conf.d/10.conf", "[[registry]]\nlocation = \"a.io\"\n[[registry.mirror]]\nlocation = \"m.io\""),
    ])
    .expect("rules");
    assert_eq!(decided(&rules, "a.io/x:1"), "m.io/x a.io/x");
    assert_eq!(decided(&rules, "b.io/x:1"), "denied: b.io/x is blocked by b.io of registries.conf:4");
}

#[test]
fn registries_conf_goes_before_its_drop_ins_whatever_they_are_called() {
    let main = "[[registry]]\nlocation = \"gcr.io\"\n[[registry.mirror]]\nlocation = \"ghcr.io/org\"\n";
    let drop_in = "[[registry]]\nlocation = \"gcr.io\"\nblocked = true\n";
    let rules = rules(&[("60-b.conf", drop_in), ("registries.conf", main)]).expect("rules");
    let told = decided(&rules, "gcr.io/deep/x:1");
    assert!(told.starts_with("denied: ") && told.contains("60-b.conf:1"), "{told}");
    assert_eq!(rules.notes, ["60-b.conf:1: gcr.io holds instead of registries.conf:1"]);
}

#[test]
fn hosts_of_containerd() {
    let hosts = "server = \"https://registry-1.docker.io\"\n[host.\"https://z.lan\"]\ncapabilities = [\"pull\"]\n\
                 [host.\"http://a.lan:5000/v2/hub\"]\noverride_path = true\n[host.\"https://r.lan\"]\ncapabilities = \
                 [\"resolve\"]\n[host.\"https://p.lan\"]\ncapabilities = [\"push\"]\n";
    let only = "server = \"https://mirror.lan\"\ncapabilities = [\"pull\"]\n";
    let default = "[host.\"https://others.lan\"]\n";
    let rules =
        rules(&[("docker.io/hosts.toml", hosts), ("quay.io.hosts.toml", only), ("_default/hosts.toml", default)])
            .expect("rules");
    for (image, places) in [
        ("docker.io/library/redis:7", "a.lan:5000/hub/library/redis r.lan/library/redis docker.io/library/redis"),
        ("docker.io/library/redis@", "z.lan/library/redis a.lan:5000/hub/library/redis docker.io/library/redis"),
        ("quay.io/a/b@", "mirror.lan/a/b"),
        ("quay.io/a/b:1", "denied: quay.io/a/b has no host for pulls by tag in quay.io.hosts.toml:1"),
        ("ghcr.io/a/b:1", "others.lan/a/b ghcr.io/a/b"),
    ] {
        assert_eq!(decided(&rules, image), places, "{image}");
    }
}

#[test]
fn endpoints_of_config_toml_and_registries_yaml() {
    let config = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = \
                  [\"https://registry-1.docker.io\", \"https://mirror.gcr.io\"]\n\
                  [plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"*\"]\nendpoint = [\"http://m.lan:5000/v2/all\"]\n";
    let rules_config = rules_of("config.toml", config);
    // Docker Hub itself is named already, so it is not tried again.
    assert_eq!(decided(&rules_config, "docker.io/library/a:1"), "docker.io/library/a mirror.gcr.io/library/a");
    assert_eq!(decided(&rules_config, "quay.io/a:1"), "m.lan:5000/all/a quay.io/a");
    let k3s = "mirrors:\n  docker.io:\n    endpoint:\n    - https://m.lan:5000\nconfigs:\n  m.lan:5000:\n    auth: {username: a}\n";
    assert_eq!(decided(&rules_of("registries.yaml", k3s), "docker.io/a/b:1"), "m.lan:5000/a/b docker.io/a/b");
}

#[test]
fn mirrors_of_docker_are_for_docker_hub() {
    let rules = rules_of(
        "daemon.json",
        "{\"registry-mirrors\": [\"https://mirror.gcr.io/\", \"http://m.lan:5000\"], \"debug\": true}",
    );
    assert_eq!(
        decided(&rules, "docker.io/library/a:1"),
        "mirror.gcr.io/library/a m.lan:5000/library/a docker.io/library/a"
    );
    assert_eq!(decided(&rules, "quay.io/a:1"), "pass");
}

#[test]
fn names_without_a_registry_are_completed() {
    let rules = rules_of(
        "registries.conf",
        "unqualified-search-registries = [\"registry.access.redhat.com\", \"reg.lan/team\", \"docker.io\"]\n[aliases]\n\
         fedora = \"registry.fedoraproject.org/fedora\"\n\"org/app\" = \"quay.io/org/app\"\n[[registry]]\nlocation = \
         \"docker.io\"\n[[registry.mirror]]\nlocation = \"hub.lan\"\n[[registry]]\nlocation = \
         \"registry.fedoraproject.org\"\nblocked = true\n",
    );
    let decide = |addressing: &str, image: &str| {
        testing::host(|host| _ = host.attributes.insert("addressing".to_owned(), addressing.to_owned()));
        decided(&rules, image)
    };
    for (addressing, image, places) in [
        (
            "default",
            "docker.io/library/redis:7",
            "registry.access.redhat.com/redis reg.lan/team/redis hub.lan/library/redis docker.io/library/redis",
        ),
        ("default", "docker.io/a/b:7", "registry.access.redhat.com/a/b reg.lan/team/a/b hub.lan/a/b docker.io/a/b"),
        ("default", "docker.io/org/app:7", "quay.io/org/app"),
        (
            "default",
            "docker.io/library/fedora:40",
            "denied: registry.fedoraproject.org/fedora is blocked by registry.fedoraproject.org of registries.conf:9",
        ),
        ("path", "docker.io/library/redis:7", "hub.lan/library/redis docker.io/library/redis"),
        ("ns", "docker.io/library/fedora:40", "hub.lan/library/fedora docker.io/library/fedora"),
    ] {
        assert_eq!(decide(addressing, image), places, "{addressing} {image}");
    }
}

#[test]
fn candidates_of_plugins_before_are_mirrored_too() {
    let rules =
        rules_of("registries.conf", "[[registry]]\nlocation = \"a.io\"\n[[registry.mirror]]\nlocation = \"m.io\"");
    let request = testing::request("q.io/x:1");
    let before = [Candidate::new("a.io").with_repository("y"), Candidate::new("q.io")];
    let Routes::To(list) = route(&rules, &request, &before) else { panic!("candidates") };
    let places: Vec<String> =
        list.iter().map(|it| format!("{}/{}", it.registry, it.repository.as_deref().unwrap_or("-"))).collect();
    assert_eq!(places, ["m.io/y", "a.io/y", "q.io/x"]);
}

#[test]
fn what_contradicts_itself_is_refused_by_name() {
    let conf = "[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"m.io\"\n";
    let digests = |mirror: &str| {
        format!(
            "apiVersion: config.openshift.io/v1\nkind: ImageDigestMirrorSet\nspec:\n  imageDigestMirrors:\n  - {{source: \
             a.io, mirrors: [{mirror}]}}\n"
        )
    };
    let hosts = "[host.\"https://m.io\"]\n[host.\"https://m.io/x\"]";
    let config_path = "[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
    let daemon = |mirror: &str| format!("{{\"registry-mirrors\": [\"{mirror}\"]}}");
    for (files, said) in [
        (
            vec![("a.conf", conf), ("daemon.json", &daemon("https://n.io"))],
            "daemon.json:1: docker.io is mirrored in another way by a.conf:1: keep one of the two",
        ),
        (vec![("hosts.toml", hosts)], "hosts.toml: this is a hosts.toml, and its name does not say for which registry"),
        (
            vec![("docker.io.hosts.toml", hosts)],
            "docker.io.hosts.toml:2: bad address \"https://m.io/x\": its API would be at /x/v2",
        ),
        (
            vec![("config.toml", config_path)],
            "config.toml:2: this config.toml names no mirrors, but the folder of hosts.toml",
        ),
        (
            vec![("daemon.json", &daemon("ftp://m.io"))],
            "daemon.json:1: bad mirror \"ftp://m.io\": it must begin with https://",
        ),
        (
            vec![("policy.json", "{\"default\": [{\"type\": \"reject\"}]}")],
            "policy.json:1: policy.json says what may be pulled",
        ),
        (vec![("idms.yaml", &digests("m.io/A"))], "idms.yaml:5: bad mirror \"m.io/A\": \"A\" is no repository"),
        (
            vec![
                ("idms.yaml", &digests("m.io")),
                ("a.conf", "[[registry]]\nlocation='a.io'\nmirror-by-digest-only=true"),
            ],
            "idms.yaml:5: a.io has mirror-by-digest-only (a.conf:1), which allows no rule of its own",
        ),
        (
            vec![("a.conf", "[[registry]]\nlocation = 'a.io'\n[[registry]]\nlocation = 'a.io'\nblocked = true")],
            "a.conf:3: a.io is blocked in one of two entries and not in the other (a.conf:1)",
        ),
        (vec![("a.conf", "[[registry]]\nprefix = 'a*.io'\nlocation = 'b.io'")], "a.conf:1: bad prefix \"a*.io\": "),
        (vec![("a.conf", "unqualified-search-registries = ['a b']")], "a.conf:1: bad registry \"a b\": "),
        (
            vec![("a.conf", "[aliases]\nx = 'docker.io'")],
            "a.conf:2: bad alias \"x\" = \"docker.io\": write a short name",
        ),
        (vec![("a.conf", "short-name-mode = 'enforcing'")], "a.conf says nothing of where images come from"),
        (vec![], "no configuration: put your registries.conf"),
    ] {
        let refusal = rules(&files).expect_err(said);
        assert!(refusal.starts_with(said), "{refusal}");
    }
    // The same, said twice, is no contradiction.
    let same = rules(&[("a.conf", conf), ("daemon.json", &daemon("https://m.io"))]);
    assert_eq!(decided(&same.expect("rules"), "docker.io/a/b:1"), "m.io/a/b docker.io/a/b");
}
