//! Pushes: real clients push through the proxy to a real registry, and pull what they pushed.

use std::fs;
use std::process::Command;
use std::thread;

use serde_json::Value;

use tidegate_tests::clients::{Client, Containerd, Docker, Podman, Skopeo, buildah, skopeo};
use tidegate_tests::content::{noise, sha256};
use tidegate_tests::eventually;
use tidegate_tests::fake::{Act, Fake, Reply};
use tidegate_tests::gate::Gate;
use tidegate_tests::http::{self, Answer};
use tidegate_tests::image::{Image, tar};
use tidegate_tests::plugins;
use tidegate_tests::process::{offline, run};
use tidegate_tests::program::tidegate;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::registry::Registry;
use tidegate_tests::site::Site;

use crate::{assert_whole, tell, with_puppet_at};

/// The lines that have a registry written to.
const PUSH: &str = "push = true";

/// What is taken: a registry has no other form of some of it.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

/// A sidecar before a registry: the default one, which is written to.
fn sidecar(registry: &Registry) -> Site {
    Site::new().registry("docker.io", &registry.url(), PUSH).cache("tag_ttl = \"1h\"")
}

/// Fails unless what a client pushed under a name is what the registry has, and comes through the proxy.
#[track_caller]
fn assert_pushed(registry: &Registry, proxy: &Proxy, repository: &str, digest: &str) {
    let path = format!("/v2/{repository}/manifests/1");
    let direct = http::get(&format!("{}{path}", registry.url())).field("Accept", ACCEPT).fetch();
    assert_whole(&direct, digest);
    assert_whole(&proxy.get(&path).field("Accept", ACCEPT).fetch(), digest);
}

#[test]
fn every_client_pushes_and_what_it_pushed_is_pulled_through_the_cache() {
    let registry = Registry::start();
    let proxy = sidecar(&registry).start();
    let host = proxy.authority();
    let image = Image::new("pushed", &[900_000, 100]);
    let layout = tempfile::tempdir().unwrap();
    image.write_layout(layout.path(), "image");

    skopeo::copy(layout.path(), &format!("{host}/team/skopeo:1")).unwrap();
    assert_pushed(&registry, &proxy, "team/skopeo", &image.digest());
    let puller = Skopeo::new(&host);
    assert_eq!(puller.pull("team/skopeo:1").as_ref(), Ok(&image.digest()));

    buildah::push(layout.path(), &format!("{host}/team/buildah:1")).unwrap();
    let pushed = proxy.get("/v2/team/buildah/manifests/1").field("Accept", ACCEPT).fetch();
    assert_pushed(&registry, &proxy, "team/buildah", &sha256(&pushed.body));

    let containerd = Containerd::start(&host);
    assert_eq!(containerd.pull("team/skopeo:1").as_ref(), Ok(&image.digest()));
    containerd.push("team/skopeo:1", &format!("{host}/team/containerd:1")).unwrap();
    assert_pushed(&registry, &proxy, "team/containerd", &image.digest());

    let podman = Podman::new(&host);
    assert_eq!(podman.pull("team/skopeo:1").as_ref(), Ok(&image.digest()));
    podman.push("team/skopeo:1", &format!("{host}/team/podman:1")).unwrap();
    let pushed = proxy.get("/v2/team/podman/manifests/1").field("Accept", ACCEPT).fetch();
    assert_pushed(&registry, &proxy, "team/podman", &sha256(&pushed.body));

    let docker = Docker::start(&host);
    let archive = layout.path().join("layer.tar");
    fs::write(&archive, tar("file", &noise(7, 700_000))).unwrap();
    let digest = docker.import_and_push(&archive, &format!("{host}/team/docker:1")).unwrap();
    assert_pushed(&registry, &proxy, "team/docker", &digest);
    // The host in the path names the same registry.
    let digest = docker.import_and_push(&archive, &format!("{host}/docker.io/team/mounted:1")).unwrap();
    assert_pushed(&registry, &proxy, "team/mounted", &digest);

    // All of it is cached now, and stays to be had.
    registry.stop();
    assert_eq!(Skopeo::new(&host).pull("team/skopeo:1").as_ref(), Ok(&image.digest()));
}

#[test]
fn a_push_that_policy_denies_writes_nothing_and_tells_every_client_why() {
    let registry = Registry::start();
    let proxy = with_puppet_at(sidecar(&registry), "admission = \"read-only\"");
    let host = proxy.authority();
    let image = Image::small("denied");
    let layout = tempfile::tempdir().unwrap();
    image.write_layout(layout.path(), "image");
    let docker = Docker::start(&host);
    let archive = layout.path().join("layer.tar");
    fs::write(&archive, tar("file", &noise(7, 1000))).unwrap();
    for (client, refused) in [
        ("skopeo", skopeo::copy(layout.path(), &format!("{host}/team/app:1"))),
        ("buildah", buildah::push(layout.path(), &format!("{host}/team/app:1"))),
        ("docker", docker.import_and_push(&archive, &format!("{host}/team/app:1"))),
    ] {
        let told = refused.expect_err(client);
        assert!(told.contains("denied"), "{client}: {told}");
    }
    let refused = http::method("PUT", &proxy.url("/v2/team/app/manifests/1")).carry(&image.manifest);
    assert_eq!((refused.status, refused.code().as_str()), (403, "DENIED"));
    assert!(refused.message().contains("puppet"), "{}", refused.message());
    let catalog = http::get(&format!("{}/v2/_catalog", registry.url())).fetch();
    assert_eq!(catalog.text().trim(), "{\"repositories\":[]}");
}

/// POST of an upload, PATCH of its bytes, PUT of its end, as most clients have it.
fn push_blob(proxy: &Proxy, repository: &str, blob: &[u8]) -> Answer {
    let begun = http::method("POST", &proxy.url(&format!("/v2/{repository}/blobs/uploads/"))).carry(b"");
    assert_eq!(begun.status, 202, "{}", begun.text());
    let to = begun.fields.get("Location").expect("a location").to_owned();
    let sent = http::method("PATCH", &proxy.url(&to)).carry(blob);
    assert_eq!(sent.status, 202, "{}", sent.text());
    let to = sent.fields.get("Location").expect("a location").to_owned();
    http::method("PUT", &proxy.url(&format!("{to}?digest={}", sha256(blob)))).carry(b"")
}

/// Pushes an image blob by blob, and its manifest under a reference.
fn push_image(proxy: &Proxy, repository: &str, image: &Image, reference: &str) {
    for blob in &image.blobs {
        assert_eq!(push_blob(proxy, repository, blob).status, 201);
    }
    let put = http::method("PUT", &proxy.url(&format!("/v2/{repository}/manifests/{reference}")));
    let put = put.field("Content-Type", image.media_type()).carry(&image.manifest);
    assert_eq!(put.status, 201, "{}", put.text());
}

#[test]
fn what_was_pushed_or_removed_is_not_served_as_it_was() {
    let registry = Registry::start();
    let proxy = sidecar(&registry).start();
    let (old, new) = (Image::small("old"), Image::small("new"));
    let path = "/v2/team/app/manifests/1";
    let blob = format!("/v2/team/app/blobs/{}", new.layer_digest(0));
    push_image(&proxy, "team/app", &old, "1");
    for _ in 0..2 {
        assert_whole(&proxy.get(path).fetch(), &old.digest());
    }
    // What is not there is remembered, until something is pushed.
    assert_eq!(proxy.get(&blob).fetch().status, 404);
    push_image(&proxy, "team/app", &new, "1");
    assert_whole(&proxy.get(path).fetch(), &new.digest());
    assert_whole(&proxy.get(&blob).fetch(), &new.layer_digest(0));
    let tags = proxy.get("/v2/team/app/tags/list").fetch();
    assert!(tags.text().contains("\"1\""), "{}", tags.text());

    let gone = http::method("DELETE", &proxy.url(&format!("/v2/team/app/manifests/{}", new.digest()))).fetch();
    assert_eq!(gone.status, 202, "{}", gone.text());
    assert_eq!(proxy.get(path).fetch().status, 404);
    assert_eq!(proxy.get(&format!("/v2/team/app/manifests/{}", new.digest())).fetch().status, 404);
    let gone = http::method("DELETE", &proxy.url(&blob)).fetch();
    assert_eq!(gone.status, 202, "{}", gone.text());
    // Its transfer may just be ending.
    eventually("the blob is gone", || proxy.get(&blob).fetch().status == 404);
}

#[test]
fn a_registry_that_is_not_written_to_says_so() {
    let registry = Registry::start();
    let proxy = Site::of(&registry.url()).registry("sidecar.lan", &registry.url(), PUSH).start();
    for (method, path) in [
        ("POST", "/v2/team/app/blobs/uploads/"),
        ("PUT", "/v2/team/app/manifests/1"),
        ("PUT", "/v2/team/app/tags/list"),
        ("DELETE", "/v2/quay.io/team/app/manifests/1"),
        ("PATCH", "/v2/unknown.lan/team/app/blobs/uploads/x"),
    ] {
        let refused = http::method(method, &proxy.url(path)).carry(b"");
        assert_eq!((refused.status, refused.code().as_str()), (405, "UNSUPPORTED"), "{method} {path}");
        assert_eq!(refused.fields.get("Allow"), Some("GET, HEAD"), "{method} {path}");
        assert!(refused.message().contains("push = true"), "{}", refused.message());
    }
    for (method, path, allowed) in [
        ("PATCH", "/v2/sidecar.lan/a/manifests/1", "GET, HEAD, PUT, DELETE"),
        ("POST", "/v2/sidecar.lan/a/blobs/uploads/x", "GET, PATCH, PUT, DELETE"),
        ("DELETE", "/v2/sidecar.lan/a/blobs/uploads/", "POST"),
        ("DELETE", "/v2/sidecar.lan/a/tags/list", "GET, HEAD"),
    ] {
        let refused = http::method(method, &proxy.url(path)).carry(b"");
        assert_eq!((refused.status, refused.fields.get("Allow")), (405, Some(allowed)), "{method} {path}");
    }
}

#[test]
fn an_answer_from_before_a_push_is_neither_kept_nor_given_to_who_asks_after_it() {
    let fake = Fake::start();
    let (old, new) = (Image::small("old"), Image::small("new"));
    let path = fake.put_image(&old, "team/app:1");
    let proxy = Site::new().registry("docker.io", &fake.url(), PUSH).cache("tag_ttl = \"1h\"").start();
    let gate = Gate::new();
    fake.next(&path, Act::After(gate.clone()));
    thread::scope(|scope| {
        let asked = scope.spawn(|| proxy.get(&path).fetch());
        gate.wait_reached();
        let put = http::method("PUT", &proxy.url(&path)).field("Content-Type", new.media_type()).carry(&new.manifest);
        assert!(put.status < 300, "{}", put.text());
        fake.put_image(&new, "team/app:1");
        // Who asks now does not wait for the answer of who asked before.
        assert_whole(&proxy.get(&path).fetch(), &new.digest());
        gate.open();
        assert_whole(&asked.join().unwrap(), &old.digest());
    });
    assert_whole(&proxy.get(&path).fetch(), &new.digest());
}

#[test]
fn a_push_that_a_registry_refuses_loses_no_copy() {
    let fake = Fake::start();
    let old = Image::small("old");
    let path = fake.put_image(&old, "team/app:1");
    let proxy = Site::new().registry("docker.io", &fake.url(), PUSH).cache("tag_ttl = \"1h\"").start();
    for blob in &old.blobs {
        proxy.get(&format!("/v2/team/app/blobs/{}", sha256(blob))).fetch();
    }
    assert_whole(&proxy.get(&path).fetch(), &old.digest());
    for blob in &old.blobs {
        let kept = proxy.site().blob_path(&sha256(blob));
        eventually("the blob is cached", || kept.exists());
    }
    fake.next(&path, Act::Reply(Reply::status(403)));
    let refused = http::method("PUT", &proxy.url(&path)).carry(b"{}");
    assert_eq!(refused.status, 403, "{}", refused.text());
    fake.stop();
    // It is served as it was, since nobody can say that it is another.
    assert_whole(&proxy.get(&path).fetch(), &old.digest());
}

#[test]
fn pushes_are_recorded_counted_and_never_replayed_as_pulls() {
    let registry = Registry::start();
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("decisions.jsonl");
    let site = sidecar(&registry).with([
        ("10-allowlist.wasm", plugins::allowlist().as_slice()),
        ("10-allowlist.toml", b"block = [\"docker.io/team/blocked\"]"),
    ]);
    let proxy = site.top(&format!("[decisions]\nfile = \"{}\"", record.display())).start();
    push_image(&proxy, "team/app", &Image::small("recorded"), "1");
    let denied = http::method("DELETE", &proxy.url("/v2/team/blocked/manifests/1")).fetch();
    assert_eq!((denied.status, denied.code().as_str()), (403, "DENIED"));
    let lines: Vec<Value> = serde_json::from_str(&proxy.admin("/decisions").text()).unwrap();
    let has = |key: &str, value: &str| lines.iter().any(|line| line[key] == value);
    assert!(has("action", "push") && has("action", "delete") && has("method", "PATCH"), "{lines:?}");
    let put = lines.iter().find(|line| line["content"] == "manifest" && line["action"] == "push").unwrap();
    assert_eq!((put["reference"].as_str(), put["status"].as_u64()), (Some("1"), Some(201)));
    assert!(put["received_bytes"].as_u64() > Some(0), "{put}");
    let metrics = proxy.admin("/metrics").text();
    for line in [
        "tidegate_pushes_total{action=\"push\",content=\"manifest\",status=\"201\"} 1",
        "tidegate_pushes_total{action=\"delete\",content=\"manifest\",status=\"403\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let (site, _) = proxy.terminate();
    let replay = run(offline(&mut Command::new(tidegate()))
        .arg("replay")
        .arg(&record)
        .arg("--plugins")
        .arg(site.path("plugins.d")));
    let replayed = String::from_utf8_lossy(&replay.stdout).into_owned();
    assert!(replayed.contains("not replayed: they are no pulls"), "{replayed}");
}

#[test]
fn a_routing_plugin_leads_a_push_only_where_pushes_are_taken() {
    let (named, other) = (Registry::start(), Registry::start());
    let site = Site::new().registry("docker.io", &named.url(), PUSH).registry("other.lan", &other.url(), PUSH);
    let site = site.registry("mirror.lan", &named.url(), "");
    let proxy = with_puppet_at(site, "routing = \"other.lan\"");
    assert_eq!(push_blob(&proxy, "team/app", b"routed").status, 201);
    let there = |registry: &Registry| {
        http::head(&format!("{}/v2/team/app/blobs/{}", registry.url(), sha256(b"routed"))).fetch().status
    };
    assert_eq!((there(&named), there(&other)), (404, 200));
    tell(&proxy, "routing = \"mirror.lan\"");
    let refused = http::method("POST", &proxy.url("/v2/team/app/blobs/uploads/")).carry(b"");
    assert_eq!((refused.status, refused.code().as_str()), (405, "UNSUPPORTED"));
    assert!(refused.message().contains("mirror.lan"), "{}", refused.message());
    tell(&proxy, "admission = \"cached-only\"");
    let refused = http::method("POST", &proxy.url("/v2/team/app/blobs/uploads/")).carry(b"");
    assert_eq!((refused.status, refused.code().as_str()), (403, "DENIED"));
}

#[test]
fn i10_a_mount_is_asked_for_only_where_the_blob_may_be_pulled() {
    let registry = Registry::start();
    let proxy = sidecar(&registry)
        .with([
            ("10-allowlist.wasm", plugins::allowlist().as_slice()),
            ("10-allowlist.toml", b"block = [\"docker.io/team/blocked\"]"),
        ])
        .start();
    let put_directly = |repository: &str, blob: &[u8]| {
        let begun = http::method("POST", &format!("{}/v2/{repository}/blobs/uploads/", registry.url())).carry(b"");
        let to = begun.fields.get("Location").unwrap().to_owned();
        let done = http::method("PUT", &format!("{to}&digest={}", sha256(blob))).carry(blob);
        assert_eq!(done.status, 201, "{}", done.text());
        sha256(blob)
    };
    let (open, secret) = (put_directly("team/open", b"open"), put_directly("team/blocked", b"secret"));
    let mount = |digest: &str, from: &str| {
        let path = format!("/v2/team/app/blobs/uploads/?mount={digest}{from}");
        http::method("POST", &proxy.url(&path)).carry(b"").status
    };
    assert_eq!(mount(&open, "&from=team/open"), 201);
    for (digest, from) in [(&secret, "&from=team/blocked"), (&secret, "&from=docker.io/team/blocked"), (&secret, "")] {
        assert_eq!(mount(digest, from), 202, "{from}");
    }
    let there = http::head(&format!("{}/v2/team/app/blobs/{secret}", registry.url())).fetch();
    assert_eq!(there.status, 404);
}
