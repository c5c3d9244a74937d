//! Who pushes: with passwords of the registry's own, as who is trusted, and without knowing of the mirror.

use std::fs;
use std::path::Path;
use std::process::Command;

use tidegate_tests::clients::Docker;
use tidegate_tests::content::{noise, sha256};
use tidegate_tests::fake::{Fake, Reply, Tokens, basic};
use tidegate_tests::http;
use tidegate_tests::image::{Image, tar};
use tidegate_tests::plugins::gatekeeper;
use tidegate_tests::process::{offline, run};
use tidegate_tests::registry::Registry;
use tidegate_tests::site::Site;

use crate::assert_whole;

/// Everybody here but alice may bring images into the cache, and alice alone may write.
const RULES: &[u8] = b"[fill]\nusers = [\"bob\"]\n[push]\nusers = [\"alice\"]\n";

/// Pushes a layout's image with Skopeo. Gives what it printed when it failed.
fn skopeo(layout: &Path, name: &str, more: &[&str], variables: &[(&str, &str)]) -> Result<(), String> {
    let output = run(offline(&mut Command::new("skopeo"))
        .envs(variables.iter().copied())
        .args(["--insecure-policy", "copy", "--preserve-digests"])
        .args(more)
        .arg(format!("oci:{}:image", layout.display()))
        .arg(format!("docker://{name}")));
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn a_registrys_own_users_push_with_their_own_passwords_and_pull_from_the_cache() {
    let registry = Registry::start_for(&[("alice", "wonder-land"), ("carol", "sings-loud")]);
    let site = Site::new().registry("docker.io", &registry.url(), "push = true\ncredentials = \"caller\"");
    let proxy = site.start();
    let host = proxy.authority();
    let image = Image::small("own");
    let layout = tempfile::tempdir().unwrap();
    image.write_layout(layout.path(), "image");
    let name = format!("{host}/team/own:1");
    let push = |creds: &[&str]| skopeo(layout.path(), &name, &[&["--dest-tls-verify=false"], creds].concat(), &[]);
    push(&["--dest-no-creds"]).expect_err("as anybody");
    push(&["--dest-creds", "alice:wrong"]).expect_err("with a wrong password");
    push(&["--dest-creds", "alice:wonder-land"]).unwrap();
    let pull = |who: &str| proxy.get("/v2/team/own/manifests/1").field("Authorization", who).fetch();
    assert_whole(&pull(&basic("carol", "sings-loud")), &image.digest());
    assert_ne!(pull(&basic("carol", "wrong")).status, 200);

    let docker = Docker::start(&host);
    let archive = layout.path().join("layer.tar");
    fs::write(&archive, tar("file", &noise(7, 1000))).unwrap();
    let name = format!("{host}/team/docker:1");
    docker.import_and_push(&archive, &name).expect_err("docker as anybody");
    docker.docker(&["login", "--username", "carol", "--password", "sings-loud", &host]).unwrap();
    docker.import_and_push(&archive, &name).unwrap_or_else(|error| panic!("docker: {error}\n{}", docker.log()));
    for secret in ["wonder-land", "sings-loud"] {
        assert!(!proxy.log().contains(secret), "{}", proxy.log());
    }
}

#[test]
fn the_gatekeeper_lets_only_who_is_trusted_push_and_delete() {
    let registry = Registry::start();
    let site = Site::new()
        .registry("docker.io", &registry.url(), "push = true")
        .users(&[("alice", "wonder"), ("bob", "builder")])
        .with([("10-gatekeeper.wasm", &gatekeeper()[..]), ("10-gatekeeper.toml", RULES)]);
    let proxy = site.start();
    let image = Image::small("kept");
    let layout = tempfile::tempdir().unwrap();
    image.write_layout(layout.path(), "image");
    let name = format!("{}/team/app:1", proxy.authority());
    let push = |user: &str| skopeo(layout.path(), &name, &["--dest-tls-verify=false", "--dest-creds", user], &[]);
    let refused = push("bob:builder").expect_err("bob is not trusted");
    assert!(refused.contains("gatekeeper"), "{refused}");
    push("alice:wonder").unwrap();
    let docker = Docker::start(&proxy.authority());
    let archive = layout.path().join("layer.tar");
    fs::write(&archive, tar("file", &noise(7, 1000))).unwrap();
    docker.docker(&["login", "--username", "alice", "--password", "wonder", &proxy.authority()]).unwrap();
    let pushed = docker.import_and_push(&archive, &format!("{}/team/docker:1", proxy.authority()));
    pushed.unwrap_or_else(|error| panic!("docker: {error}\n{}", docker.log()));
    let path = format!("/v2/team/app/manifests/{}", image.digest());
    let delete = |who: &str| {
        http::method("DELETE", &proxy.url(&path)).field("Authorization", who).field("Content-Length", "0").fetch()
    };
    let refused = delete(&basic("bob", "builder"));
    assert_eq!((refused.status, refused.code().as_str()), (403, "DENIED"), "{}", refused.text());
    assert_whole(
        &http::get(&format!("{}{path}", registry.url())).field("Accept", image.media_type()).fetch(),
        &image.digest(),
    );
    assert_eq!(delete(&basic("alice", "wonder")).status, 202);
    assert_eq!(http::get(&format!("{}{path}", registry.url())).field("Accept", image.media_type()).fetch().status, 404);
}

#[test]
fn a_client_that_knows_of_no_mirror_pushes_through_a_tunnel() {
    let registry = Registry::start();
    let site = Site::of("http://127.0.0.1:9").registry("quay.io", &registry.url(), "push = true");
    let ca = site.path("ca");
    let made = site.run(&["ca", "init", "--dir", ca.to_str().unwrap()]);
    assert!(made.status.success(), "{made:?}");
    let proxy =
        site.top(&format!("intercept = {{ registries = [\"quay.io\"], ca_dir = \"{}\" }}", ca.display())).start();
    let image = Image::new("through", &[900_000, 100]);
    let layout = tempfile::tempdir().unwrap();
    image.write_layout(layout.path(), "image");
    let (way, trusts) = (proxy.url(""), ca.join("ca.crt").display().to_string());
    let variables = [
        ("HTTPS_PROXY", &way[..]),
        ("https_proxy", &way),
        ("NO_PROXY", ""),
        ("no_proxy", ""),
        ("SSL_CERT_FILE", &trusts),
    ];
    let mark = proxy.mark();
    skopeo(layout.path(), "quay.io/team/app:1", &[], &variables).unwrap();
    proxy.wait(mark, "request", &[("addressing", "intercept"), ("action", "push"), ("status", "201")]);
    let direct = http::get(&format!("{}/v2/team/app/manifests/1", registry.url()));
    assert_whole(&direct.field("Accept", image.media_type()).fetch(), &image.digest());
}

/// What a site says of a registry that the mirror has a password for, and whose callers are asked about.
fn with_a_password_of_its_own(user: &str, password: &str) -> (tempfile::NamedTempFile, String) {
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), password).unwrap();
    let file = secret.path().display().to_string();
    let lines = format!("push = true\nauthorize = \"caller\"\nusername = \"{user}\"\npassword_file = \"{file}\"");
    (secret, lines)
}

#[test]
fn i9_where_callers_are_asked_about_nothing_is_written_with_the_mirrors_own_password() {
    let registry = Registry::start_for(&[("mirror", "configured"), ("carol", "sings-loud")]);
    let (_secret, lines) = with_a_password_of_its_own("mirror", "configured");
    let proxy = Site::new().registry("docker.io", &registry.url(), &lines).start();
    let image = Image::small("written");
    registry.push(&image, "team/app:1");
    let path = format!("/v2/team/app/manifests/{}", image.digest());
    let write = |method: &str, path: &str, who: Option<&str>, body: &[u8]| {
        let request = http::method(method, &proxy.url(path)).field("Content-Type", image.media_type());
        who.map_or_else(|| request.clone(), |who| request.clone().field("Authorization", who)).carry(body)
    };
    let (wrong, carol) = (basic("carol", "wrong"), basic("carol", "sings-loud"));
    for (who, status) in [(None, 401), (Some(&wrong[..]), 403)] {
        for (method, path, body) in [
            ("PUT", "/v2/team/app/manifests/2", &image.manifest[..]),
            ("POST", "/v2/team/app/blobs/uploads/", b""),
            (
                "POST",
                "/v2/team/app/blobs/uploads/?digest=sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
                b"foo",
            ),
            ("DELETE", &path, b""),
        ] {
            let answer = write(method, path, who, body);
            assert_eq!(answer.status, status, "{method} {path} {who:?}: {}", answer.text());
            assert_eq!(answer.fields.get("WWW-Authenticate").is_some(), who.is_none());
        }
    }
    let pull = |path: &str| proxy.get(path).field("Accept", image.media_type()).field("Authorization", &carol).fetch();
    assert_eq!(pull("/v2/team/app/manifests/2").status, 404);
    assert_whole(&pull(&path), &image.digest());
    assert_eq!(write("PUT", "/v2/team/app/manifests/2", Some(&carol), &image.manifest).status, 201);
    assert_whole(&pull("/v2/team/app/manifests/2"), &image.digest());
    assert_eq!(write("DELETE", &path, Some(&carol), b"").status, 202);
}

#[test]
fn i9_a_mount_is_asked_for_only_where_the_caller_may_read_the_other_repository() {
    let fake = Fake::start();
    let tokens = Tokens::of_users(&[("mirror", "configured"), ("carol", "sings-loud")]);
    fake.require_bearer(&format!("{}/token", fake.url()), &tokens);
    fake.issue(&tokens);
    let (_secret, lines) = with_a_password_of_its_own("mirror", "configured");
    let proxy = Site::new().registry("docker.io", &fake.url(), &lines).start();
    let refused = fake.put_blob("team/s", b"secret".to_vec());
    fake.put_blob("team/open", b"open".to_vec());
    let (secret, open) = (sha256(b"secret"), sha256(b"open"));
    fake.always(&refused, Reply::status(403).into());
    let upload = "/v2/mine/app/blobs/uploads/";
    fake.always(upload, Reply::status(202).field("Location", &format!("{upload}1")).into());
    let mount = |digest: &str, from: &str| {
        let path = format!("{upload}?mount={digest}&from={from}");
        http::method("POST", &proxy.url(&path)).field("Authorization", &basic("carol", "sings-loud")).carry(b"").status
    };
    let mounts = || fake.seen().iter().filter(|seen| seen.query.contains("mount=")).count();
    assert_eq!(mount(&secret, "team/s"), 202);
    assert_eq!(mounts(), 0, "{:?}", fake.seen());
    assert_eq!(mount(&open, "team/open"), 202);
    assert_eq!(mounts(), 1, "{:?}", fake.seen());
    // What is written is written as carol, who may be one that the registry lets read only.
    fake.always(upload, Reply::status(403).into());
    assert_eq!(mount(&open, "team/open"), 403);
    let mirrors = basic("mirror", "configured");
    assert!(fake.seen().iter().all(|seen| seen.fields.get("Authorization") != Some(&mirrors)), "{:?}", fake.seen());
}
