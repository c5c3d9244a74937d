//! Who is asking, shown by the clients that people use.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tidegate_tests::clients::{Buildah, Containerd, Docker, Podman};
use tidegate_tests::fake::Fake;
use tidegate_tests::image::Image;
use tidegate_tests::process::{offline, run};
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::fake_with_app;

/// A proxy that asks who asks; `lines`: what else of `[clients]`.
fn guarded(lines: &str) -> (Fake, Image, Proxy) {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).users(&[("alice", "wonder"), ("bob", "builder")]).clients(lines).start();
    (fake, image, proxy)
}

/// Copies an image with Skopeo, as `NAME:PASSWORD` or as anybody.
pub fn skopeo(from: &str, user: Option<&str>, to: &Path) -> Output {
    let mut skopeo = Command::new("skopeo");
    offline(&mut skopeo).args(["--insecure-policy", "copy", "--src-tls-verify=false"]);
    match user {
        Some(user) => skopeo.args(["--src-creds", user]),
        None => skopeo.arg("--src-no-creds"),
    };
    run(skopeo.arg(format!("docker://{from}")).arg(format!("oci:{}:x", to.display())))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command of a tool.
type Run<'a> = dyn Fn(&[&str]) -> Result<String, String> + 'a;

/// What each client does with the right password, with a wrong one, and with none.
#[track_caller]
fn all_clients(proxy: &Proxy, image: &Image, served_as_anybody: bool) {
    let mirror = proxy.authority();
    let name = format!("{mirror}/docker.io/library/app:1");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);

    let output = skopeo(&name, Some("alice:wonder"), &at("good"));
    assert!(output.status.success(), "skopeo: {}", text(&output));
    let output = skopeo(&name, Some("alice:wrong"), &at("wrong"));
    assert!(
        !output.status.success() && text(&output).contains("user or the password is wrong")
            || text(&output).contains("invalid username/password"),
        "skopeo: {}",
        text(&output)
    );
    let output = skopeo(&name, None, &at("none"));
    assert_eq!(output.status.success(), served_as_anybody, "skopeo: {}", text(&output));

    let podman = Podman::new(&mirror);
    let policy = at("policy.json");
    fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    let policy = policy.display().to_string();
    let pull = ["pull", "--signature-policy", &policy, "--tls-verify=false"];
    let buildah = Buildah::new(&mirror);
    let tools: [(&str, &Run); 2] =
        [("podman", &|with| podman.podman(with)), ("buildah", &|with| buildah.buildah(with))];
    for (tool, run) in tools {
        let pull_as = |creds: &str| run(&[&pull[..], &[creds, &name]].concat());
        pull_as("--creds=alice:wonder").unwrap_or_else(|error| panic!("{tool}: {error}"));
        run(&["rmi", "--force", &name]).unwrap();
        pull_as("--creds=alice:wrong").expect_err("a wrong password");
        assert_eq!(run(&[&pull[..], &[&name]].concat()).is_ok(), served_as_anybody, "{tool}");
    }

    let containerd = Containerd::start(&mirror);
    containerd.pull_as("alice:wonder", "library/app:1").unwrap_or_else(|error| panic!("ctr: {error}"));
    tidegate_tests::clients::Client::remove(&containerd, "library/app:1");
    let as_anybody = tidegate_tests::clients::Client::pull(&containerd, "library/app:1");
    assert_eq!(as_anybody.is_ok(), served_as_anybody, "ctr: {as_anybody:?}");
    if !served_as_anybody {
        containerd.pull_as("alice:wrong", "library/app:1").expect_err("ctr with a wrong password");
    }

    let docker = Docker::start(&mirror);
    let as_anybody = docker.docker(&["pull", &name]);
    assert_eq!(as_anybody.is_ok(), served_as_anybody, "docker: {as_anybody:?}");
    let refused =
        docker.docker(&["login", "--username", "bob", "--password", "wrong", &mirror]).expect_err("a wrong password");
    assert!(refused.contains("unauthorized") || refused.contains("wrong"), "docker: {refused}");
    docker.docker(&["login", "--username", "bob", "--password", "builder", &mirror]).unwrap();
    docker.docker(&["pull", &name]).unwrap_or_else(|error| panic!("docker: {error}\n{}", docker.log()));
    let digest = docker.docker(&["image", "inspect", "--format", "{{index .RepoDigests 0}}", &name]).unwrap();
    assert!(digest.ends_with(&image.digest()), "{digest}");
    let mark = proxy.beginning();
    proxy.wait(mark, "request", &[("subject", "bob"), ("status", "200")]);
}

#[test]
fn every_client_pulls_with_a_password_and_not_without() {
    let (_fake, image, proxy) = guarded("");
    all_clients(&proxy, &image, false);
}

#[test]
fn every_client_pulls_as_anybody_from_a_network_that_may_and_with_a_password_too() {
    let (_fake, image, proxy) = guarded("anonymous = [\"127.0.0.0/8\"]");
    all_clients(&proxy, &image, true);
}
