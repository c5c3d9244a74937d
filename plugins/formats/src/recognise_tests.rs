use super::*;
use crate::{Hosted, MirrorSetKind, PullFromMirror, RequirementKind, Scheme, SourcePolicy, hosts_toml_of};

fn one(file: &str, text: &str) -> Document {
    let mut documents = read(file, text).unwrap_or_else(|refusal| panic!("{refusal}"));
    assert_eq!(documents.len(), 1, "{text}");
    documents.remove(0)
}

#[test]
fn the_content_says_what_a_file_is() {
    for (text, name) in [
        ("unqualified-search-registries = [\"docker.io\"]", "registries.conf"),
        ("# a comment\n\n[[registry]]\nlocation = \"a.io\"", "registries.conf"),
        ("[aliases]\nfedora = \"registry.fedoraproject.org/fedora\"", "registries.conf"),
        ("server = \"https://a.io\"", "hosts.toml"),
        ("[host.\"https://a.io\"]\ncapabilities = [\"pull\"]", "hosts.toml"),
        ("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]", "containerd's config.toml"),
        ("mirrors:\n  docker.io:\n    endpoint: [\"https://m.lan\"]", "registries.yaml"),
        ("{\"registry-mirrors\": []}", "daemon.json"),
        ("{\"default\": [{\"type\": \"reject\"}]}", "policy.json"),
        ("kind: ImageDigestMirrorSet\napiVersion: config.openshift.io/v1", "ImageDigestMirrorSet"),
        ("{\"kind\": \"ImageTagMirrorSet\", \"apiVersion\": \"config.openshift.io/v1\"}", "ImageTagMirrorSet"),
        ("---\napiVersion: operator.openshift.io/v1alpha1\nkind: ImageContentSourcePolicy", "ImageContentSourcePolicy"),
        ("\u{feff}apiVersion: config.openshift.io/v1\nkind: Image", "image.config.openshift.io"),
    ] {
        assert_eq!(one("a", text).content.name(), name, "{text}");
    }
    for empty in ["", "\n", "# nothing\n", "---\n", "---\n---\n"] {
        assert_eq!(read("a", empty), Ok(Vec::new()), "{empty:?}");
    }
}

#[test]
fn several_objects_in_one_file_are_several_documents() {
    let set = |name: &str| {
        format!("apiVersion: config.openshift.io/v1\nkind: ImageDigestMirrorSet\nmetadata:\n  name: {name}\n")
    };
    let documents = read("a", &format!("{}---\n{}", set("a"), set("b"))).expect("two documents");
    assert_eq!(documents.iter().map(|document| document.line).collect::<Vec<_>>(), [1, 6]);
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: config.openshift.io/v1\n  kind: ImageTagMirrorSet\n- \
                apiVersion: config.openshift.io/v1\n  kind: Image\n";
    assert_eq!(read("a", list).expect("a list").len(), 2);
    let json = "{\"apiVersion\": \"v1\", \"kind\": \"ImageTagMirrorSetList\", \"items\": [\n\t{\"apiVersion\": \
                \"config.openshift.io/v1\",\n\t\"kind\": \"ImageTagMirrorSet\"}]}";
    assert_eq!(read("a", json).expect("a list")[0].line, 2);
}

#[test]
fn a_mirror_set_keeps_order_and_lines() {
    let document = one(
        "idms.yaml",
        "apiVersion: config.openshift.io/v1\nkind: ImageDigestMirrorSet\nmetadata:\n  name: ubi9repo\n  uid: x\nspec:\n  \
         imageDigestMirrors:\n  - mirrors:\n    - example.io/ubi\n    - example.com/ubi\n    source: \
         registry.access.redhat.com/ubi9\n    mirrorSourcePolicy: NeverContactSource\n    other: 1\n",
    );
    assert_eq!(document.unread, [crate::Unread { key: "spec.imageDigestMirrors.other".to_owned(), line: 13 }]);
    let Content::MirrorSet(set) = document.content else { panic!("a mirror set") };
    assert_eq!((set.kind, set.name.as_deref()), (MirrorSetKind::Digest, Some("ubi9repo")));
    let rule = &set.rules[0];
    assert_eq!((rule.source.as_str(), rule.source.line), ("registry.access.redhat.com/ubi9", 11));
    assert_eq!(rule.mirrors.iter().map(|text| text.line).collect::<Vec<_>>(), [9, 10]);
    assert_eq!(rule.policy, SourcePolicy::NeverContactSource);
}

#[test]
fn registries_conf_is_read_as_written() {
    let document = one(
        "registries.conf",
        "unqualified-search-registries = ['reg1.io', 'reg2.io']\nshort-name-mode = \"\"\n\n[[registry]]\nprefix = \"\"\n\
         location = \"a.io/x/\"\nblocked = true\n\n[[registry.mirror]]\nlocation = \"m.io\"\npull-from-mirror = \
         \"digest-only\"\n\n[[registry]]\nprefix = \"*.b.io\"\n",
    );
    let Content::RegistriesConf(conf) = document.content else { panic!("a registries.conf") };
    assert_eq!(conf.unqualified_search.expect("a list").len(), 2);
    assert_eq!((conf.registries[0].scope().as_str(), conf.registries[0].line), ("a.io/x", 4));
    assert!(conf.registries[0].blocked && !conf.registries[0].insecure);
    assert_eq!(conf.registries[0].mirrors[0].pull, PullFromMirror::DigestOnly);
    assert_eq!(conf.registries[1].scope().as_str(), "*.b.io");
}

#[test]
fn hosts_stand_in_the_order_of_the_file() {
    let document = one(
        "docker.io/hosts.toml",
        "server = \"https://registry-1.docker.io\"\n[host.\"https://z.lan\"]\ncapabilities = [\"pull\"]\n\
         [host.\"http://a.lan:5000/v2/hub/\"]\noverride_path = true\n[host.\"http://a.lan:5000/v2/hub/\".header]\n\
         authorization = \"Basic c2VjcmV0\"\n",
    );
    let Content::HostsToml(hosts) = document.content else { panic!("a hosts.toml") };
    assert_eq!(hosts.of, Hosted::Registry("docker.io".to_owned()));
    let (_, first) = hosts.hosts[0].address.as_ref().expect("an address");
    assert_eq!((first.host.as_str(), first.path.as_str(), first.scheme), ("z.lan", "", Scheme::Https));
    assert!(hosts.hosts[0].capabilities.pull && !hosts.hosts[0].capabilities.resolve);
    let (_, second) = hosts.hosts[1].address.as_ref().expect("an address");
    assert_eq!((second.host.as_str(), second.path.as_str(), second.scheme), ("a.lan:5000", "/v2/hub", Scheme::Http));
    assert_eq!(hosts.hosts[1].headers[0].as_str(), "authorization");
    assert!(!format!("{hosts:?}").contains("c2VjcmV0"), "a secret is kept");
    assert_eq!(hosts.server.address.expect("a server").1.host, "registry-1.docker.io");
}

#[test]
fn the_name_of_a_hosts_toml_says_whose_it_is() {
    let registry = |name: &str| Hosted::Registry(name.to_owned());
    for (file, of) in [
        ("docker.io/hosts.toml", registry("docker.io")),
        ("certs.d/registry.lan:5000/hosts.toml", registry("registry.lan:5000")),
        ("registry.lan_5000_/hosts.toml", registry("registry.lan:5000")),
        ("docker.io.hosts.toml", registry("docker.io")),
        ("docker.io_hosts.toml", registry("docker.io")),
        ("registry.lan_5000_.hosts.toml", registry("registry.lan:5000")),
        ("_default/hosts.toml", Hosted::Others),
        ("_default.hosts.toml", Hosted::Others),
        ("hosts.toml", Hosted::Unknown),
        ("20-mirrors.toml", Hosted::Unknown),
    ] {
        assert_eq!(hosts_toml_of(file), of, "{file}");
    }
}

#[test]
fn tables_of_registries_are_read_wherever_containerd_has_them() {
    for plugin in ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "cri"] {
        let text = format!(
            "version = 2\n[plugins.\"{plugin}\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://m.lan\", \
             \"http://n.lan:5000\"]\n[plugins.\"{plugin}\".registry.configs.\"m.lan\".tls]\ninsecure_skip_verify = true\n\
             [plugins.\"{plugin}\".registry.configs.\"m.lan\".auth]\npassword = \"geheim\"\n[debug]\nlevel = \"info\"\n"
        );
        let document = one("config.toml", &text);
        assert!(document.unread.iter().any(|unread| unread.key == "debug"), "{:?}", document.unread);
        let Content::RegistryTables(tables) = document.content else { panic!("tables") };
        assert_eq!(tables.mirrors[0].endpoints[1].1.host, "n.lan:5000");
        assert!(tables.tls[0].insecure_skip_verify);
        assert_eq!(tables.auth[0].as_str(), "m.lan");
        assert!(!format!("{tables:?}").contains("geheim"), "a secret is kept");
    }
}

#[test]
fn policies_are_read_strictly() {
    let document = one(
        "policy.json",
        "{\"default\": [{\"type\": \"reject\"}],\n \"transports\": {\"docker\": {\n  \"quay.io\": [{\"type\": \
         \"insecureAcceptAnything\"}]},\n  \"docker-daemon\": {\"\": [{\"type\": \"insecureAcceptAnything\"}]}}}",
    );
    let Content::SignaturePolicy(policy) = document.content else { panic!("a policy") };
    assert_eq!(policy.default[0].kind, RequirementKind::Reject);
    assert_eq!((policy.docker[0].scope.as_str(), policy.docker[0].scope.line), ("quay.io", 3));
    assert_eq!(policy.other_transports[0].as_str(), "docker-daemon");
}

#[test]
fn what_is_refused_names_file_line_and_way_out() {
    let idms = "apiVersion: config.openshift.io/v1\nkind: ImageDigestMirrorSet\nspec:\n  imageDigestMirrors:\n";
    let image = "apiVersion: config.openshift.io/v1\nkind: Image\nspec:\n  registrySources:\n";
    for (text, said) in [
        ("a = ", "f:1: "),
        ("{\"a\": }", "f:1: bad JSON: expected value"),
        ("{\n\"registry-mirrors\": [],\n\"registry-mirrors\": []}", "f:3: registry-mirrors is there twice"),
        ("a: [\n", "f:2: bad YAML: "),
        ("hello", "f:1: this is no file that is known here: it has no keys; known are registries.conf, "),
        ("upstreams: 1", "f:1: this is no file that is known here: its keys are upstreams; known are"),
        ("[registries.search]\nregistries = ['a.io']", "f:1: this is registries.conf in version 1"),
        ("[[registry]]\ninsecure = true", "f:1: a [[registry]] has neither prefix nor location"),
        ("[[registry]]\nprefix = 'a.io'", "f:2: prefix \"a.io\" has no location: write location = \"a.io\""),
        ("[[registry]]\nlocation = 'https://a.io'", "f:2: registry.location is a name, not an address: write \"a.io\""),
        ("[[registry]]\nlocation = 1", "f:2: registry.location must be a text, and is a number"),
        (
            "[[registry]]\nlocation = 'a'\npull-from-mirror = 'all'",
            "f:3: pull-from-mirror belongs into a [[registry.mirror]]",
        ),
        (
            "[[registry]]\nlocation = 'a'\n[[registry.mirror]]\nlocation = 'b'\npull-from-mirror = 'x'",
            "f:5: pull-from-mirror \"x\" is none: write all, digest-only or tag-only",
        ),
        (
            "[[registry]]\nlocation = 'a'\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \
             'b'\npull-from-mirror = 'all'",
            "f:6: pull-from-mirror and the registry's mirror-by-digest-only are both there",
        ),
        ("[host.\"ftp://a\"]", "f:1: bad address \"ftp://a\": it must begin with https:// or http://"),
        ("[host.\"https://u:p@a\"]", "it has credentials in it"),
        ("[host.\"https://a\"]\ncapabilities = ['push', 'fly']", "f:2: unknown capability \"fly\""),
        (&format!("{idms}  - mirrors: [a]\n"), "f:5: spec.imageDigestMirrors.source is missing"),
        (&format!("{idms}  - source: a\n    mirrorSourcePolicy: Never\n"), "f:6: mirrorSourcePolicy \"Never\" is none"),
        (&format!("{idms}  - source: [a]\n"), "f:5: spec.imageDigestMirrors.source must be a text, and is a list"),
        ("apiVersion: v1\nkind: Pod", "f:2: kind Pod says nothing about registries here"),
        ("apiVersion: v1\nkind: ImageTagMirrorSet", "f:1: apiVersion of this kind is config.openshift.io/v1"),
        (
            &format!("{image}    allowedRegistries: [a]\n    blockedRegistries: [b]\n"),
            "f:6: allowedRegistries and blockedRegistries are both there",
        ),
        ("{\"default\": []}", "f:1: default has no requirement"),
        ("{\"default\": [{\"type\": \"accept\"}]}", "f:1: unknown type \"accept\" of a requirement of default"),
        ("{\"default\": [{\"type\": \"reject\", \"x\": 1}]}", "f:1: unknown key \"x\" in a requirement of default"),
    ] {
        let refusal = read("f", text).expect_err(text).to_string();
        assert!(refusal.contains(said), "{text}: {refusal}");
        assert!(!refusal.contains('\n'), "{refusal}");
    }
}

#[test]
fn what_aliases_repeat_is_bounded() {
    let mut bomb = "kind: x\napiVersion: y\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        let again = format!("*a{}, ", level - 1).repeat(10);
        bomb.push_str(&["a", &level.to_string(), ": &a", &level.to_string(), " [", &again, "]\n"].concat());
    }
    let refusal = read("f", &bomb).expect_err("a bomb").to_string();
    assert!(refusal.contains("it has more than 200000 values, with what aliases repeat"), "{refusal}");
    let deep = format!("a: {}{}", "[".repeat(100), "]".repeat(100));
    assert!(read("f", &deep).expect_err("deep").to_string().contains("nested more than 64 deep"));
    let deep = format!("{{\"a\": {}{}}}", "[".repeat(100), "]".repeat(100));
    assert!(read("f", &deep).expect_err("deep").to_string().contains("nested more than 64 deep"));
    let anchored = "x: &m [m.lan]\nkind: ImageTagMirrorSet\napiVersion: config.openshift.io/v1\nspec:\n  imageTagMirrors:\n  \
                    - {source: a, mirrors: *m}\n";
    let document = one("f", anchored);
    let Content::MirrorSet(set) = document.content else { panic!("a mirror set") };
    assert_eq!(set.rules[0].mirrors[0].as_str(), "m.lan");
}
