//! Registries that are asked with what the caller sent, and whose content is for those alone whom they would serve.

use tidegate_tests::clients::{Client, Containerd, Docker, Podman};
use tidegate_tests::fake::{Fake, Reply, Tokens, basic};
use tidegate_tests::http::Answer;
use tidegate_tests::image::Image;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::registry::Registry;
use tidegate_tests::site::Site;

use crate::callers_clients::skopeo;
use crate::{APP, app_blob, assert_caches, assert_whole, fake_with_app};

const USERS: [(&str, &str); 2] = [("alice", "wonder-land"), ("carol", "sings-loud")];

/// A registry that gives tokens to alice and carol, and a proxy that asks it with what callers send.
fn personal(lines: &str) -> (Fake, Image, Proxy) {
    let (fake, image) = fake_with_app();
    let tokens = Tokens::of_users(&USERS);
    fake.require_bearer(&format!("{}/token", fake.url()), &tokens);
    fake.issue(&tokens);
    let proxy = Site::new().registry("docker.io", &fake.url(), &format!("credentials = \"caller\"\n{lines}")).start();
    (fake, image, proxy)
}

fn alice() -> String {
    basic("alice", "wonder-land")
}

fn carol() -> String {
    basic("carol", "sings-loud")
}

fn ask(proxy: &Proxy, path: &str, who: &str) -> Answer {
    proxy.get(path).field("Authorization", who).fetch()
}

/// Pulls all of the app, and waits until it is cached.
fn caches_as(proxy: &Proxy, image: &Image, who: &str) {
    assert_whole(&ask(proxy, APP, who), &image.digest());
    for layer in &image.blobs {
        let digest = tidegate_tests::content::sha256(layer);
        assert_whole(&ask(proxy, &app_blob(&digest), who), &digest);
        let path = proxy.site().blob_path(&digest);
        tidegate_tests::eventually("the blob is cached", || path.exists());
    }
}

/// What was asked for content, in order.
fn asked(fake: &Fake) -> Vec<String> {
    let of_content = |path: &str| path.starts_with("/v2/");
    let seen = fake.seen();
    let mut asked: Vec<String> = seen
        .iter()
        .filter(|seen| of_content(&seen.path))
        .map(|seen| format!("{} {}", seen.method, seen.path))
        .collect();
    asked.dedup();
    asked
}

#[test]
fn two_callers_with_different_rights_get_what_is_theirs_of_one_cached_image() {
    let (fake, image, proxy) = personal("");
    let ping = proxy.get("/v2/").fetch();
    assert_eq!(ping.status, 401);
    assert!(ping.fields.get("WWW-Authenticate").unwrap().contains("/v2/token\""));
    caches_as(&proxy, &image, &alice());
    fake.forget();
    // Carol may have it too: she is asked about, and the bytes are there.
    caches_as(&proxy, &image, &carol());
    assert_eq!(asked(&fake), [format!("HEAD {APP}")]);
    fake.forget();
    // Bob may not, neither the manifest nor what he knows the digest of.
    let bob = basic("bob", "builder-man");
    let digest = image.layer_digest(0);
    for path in [APP.to_owned(), app_blob(&digest), format!("/v2/library/app/manifests/{}", image.digest())] {
        let answer = ask(&proxy, &path, &bob);
        assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"), "{}", answer.text());
        assert!(
            answer.message().contains("is refused to the user bob: docker.io/library/app: "),
            "{}",
            answer.message()
        );
        // Who has shown nothing is asked first.
        assert_eq!(proxy.get(&path).fetch().status, 401);
    }
    assert!(asked(&fake).iter().all(|line| line.starts_with("HEAD ")), "{:?}", asked(&fake));
    // By a token of ours, which carries the user and the password sealed.
    let answer = ask(&proxy, "/v2/token?scope=repository:library/app:pull", &carol());
    let said: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let token = said["token"].as_str().unwrap();
    assert_whole(&ask(&proxy, APP, &format!("Bearer {token}")), &image.digest());
    let anybody: serde_json::Value = serde_json::from_slice(&proxy.get("/v2/token").fetch().body).unwrap();
    let anybody = format!("Bearer {}", anybody["token"].as_str().unwrap());
    assert_eq!([ask(&proxy, "/v2/", &anybody).status, ask(&proxy, APP, &anybody).status], [200, 403]);
    let log = proxy.log();
    for secret in ["wonder-land", "sings-loud", "builder-man", token] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[test]
fn what_a_registry_said_of_a_caller_holds_for_its_time_and_without_it_nobody_is_served() {
    let (fake, image, proxy) = personal("authorize_ttl = \"1h\"");
    caches_as(&proxy, &image, &alice());
    fake.stop();
    caches_as(&proxy, &image, &alice());
    let answer = ask(&proxy, APP, &carol());
    assert_eq!(answer.status, 502, "{}", answer.text());
    fake.restart();
    caches_as(&proxy, &image, &carol());
    // A word that holds for no time is asked for each time, and the bytes are those of the cache.
    let (fake, image, proxy) = personal("authorize_ttl = \"0s\"");
    caches_as(&proxy, &image, &alice());
    fake.forget();
    caches_as(&proxy, &image, &alice());
    assert!(asked(&fake).len() > image.blobs.len() && asked(&fake).iter().all(|line| line.starts_with("HEAD ")));
    fake.stop();
    assert_eq!(ask(&proxy, APP, &alice()).status, 502);
}

#[test]
fn i9_what_a_caller_sends_goes_to_no_registry_that_is_not_configured_for_it() {
    let (fake, image) = fake_with_app();
    fake.require_basic("alice", "wonder-land");
    let (other, _) = fake_with_app();
    other.require_basic("alice", "wonder-land");
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "configured").unwrap();
    let lines = format!("username = \"mirror\"\npassword_file = \"{}\"", secret.path().display());
    let proxy = Site::new()
        .registry("docker.io", &fake.url(), "credentials = \"caller\"")
        .registry("other.lan", &other.url(), "")
        .registry("own.lan", &other.url(), &lines)
        .start();
    assert_whole(&ask(&proxy, APP, &alice()), &image.digest());
    assert!(fake.seen().iter().any(|seen| seen.fields.get("Authorization") == Some(alice().as_str())));
    for registry in ["other.lan", "own.lan"] {
        let path = format!("/v2/{registry}/library/app/manifests/1");
        assert_eq!(ask(&proxy, &path, &alice()).status, 403);
    }
    let sent: Vec<_> =
        other.seen().iter().filter_map(|seen| seen.fields.get("Authorization").map(str::to_owned)).collect();
    assert!(!sent.contains(&alice()) && sent.contains(&basic("mirror", "configured")), "{sent:?}");
}

#[test]
fn a_cached_image_is_for_whom_its_registry_serves_though_the_mirror_has_a_password() {
    let (fake, image) = fake_with_app();
    let tokens = Tokens::of_users(&[("mirror", "configured"), USERS[0], USERS[1]]);
    fake.require_bearer(&format!("{}/token", fake.url()), &tokens);
    fake.issue(&tokens);
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "configured").unwrap();
    let lines = format!(
        "username = \"mirror\"\npassword_file = \"{}\"\nauthorize = \"caller\"\nauthorize_ttl = \"5m\"",
        secret.path().display()
    );
    let proxy = Site::new().registry("docker.io", &fake.url(), &lines).start();
    caches_as(&proxy, &image, &alice());
    let seen = fake.seen();
    let shown: Vec<_> = seen.iter().filter(|seen| seen.path.starts_with("/token")).collect();
    assert!(
        shown.iter().any(|seen| seen.fields.get("Authorization") == Some(alice().as_str())),
        "alice is asked about"
    );
    assert!(
        shown.iter().any(|seen| seen.fields.get("Authorization") == Some(basic("mirror", "configured").as_str())),
        "the bytes are fetched as the mirror"
    );
    assert_eq!(ask(&proxy, APP, &basic("bob", "x")).status, 403);
    assert_eq!(proxy.get(APP).fetch().status, 401);
}

#[test]
fn a_public_image_is_for_anybody_also_where_callers_are_asked_about() {
    let (fake, image) = fake_with_app();
    let proxy = Site::new().registry("docker.io", &fake.url(), "credentials = \"caller\"").start();
    assert_caches(&proxy, &image);
}

#[test]
fn guesses_at_a_registrys_passwords_are_limited() {
    let (fake, _image, proxy) = personal("");
    let statuses: Vec<u16> = (0..12).map(|at| ask(&proxy, APP, &basic("alice", &at.to_string())).status).collect();
    assert_eq!(statuses, [[403; 10].as_slice(), &[429; 2]].concat());
    let tried = fake.seen().iter().filter(|seen| seen.path.starts_with("/token")).count();
    assert_eq!(tried, 10);
}

#[test]
fn what_is_no_wrong_password_locks_nobody_out_and_who_is_vouched_for_goes_on() {
    // A right password without the right to the repository, asked about each time.
    let (fake, _image, proxy) = personal("authorize_ttl = \"0s\"");
    fake.always(APP, Reply::status(403).into());
    for _ in 0..12 {
        let answer = ask(&proxy, APP, &carol());
        assert_eq!(answer.status, 403, "{}", answer.text());
    }
    assert!(!proxy.log().contains("a login has failed"), "{}", proxy.log());
    // A wrong one over and over is asked about once.
    let (_fake, image, proxy) = personal("authorize_ttl = \"1h\"");
    caches_as(&proxy, &image, &alice());
    let mark = proxy.mark();
    for _ in 0..12 {
        assert_eq!(ask(&proxy, APP, &basic("carol", "wrong")).status, 403);
    }
    proxy.wait(mark, "a login has failed", &[("user", "carol")]);
    assert_whole(&ask(&proxy, APP, &carol()), &image.digest());
    // Guesses from her address do not keep alice from what she is known to have.
    let guesses: Vec<u16> = (0..12).map(|at| ask(&proxy, APP, &basic("bob", &at.to_string())).status).collect();
    assert_eq!(guesses.last(), Some(&429), "{guesses:?}");
    caches_as(&proxy, &image, &alice());
    let answer = ask(&proxy, "/v2/library/other/manifests/1", &alice());
    assert_eq!((answer.status, answer.fields.get("Retry-After").is_some()), (429, true), "{}", answer.text());
}

#[test]
fn guesses_by_tokens_of_ours_are_limited_too() {
    let (fake, _image, proxy) = personal("");
    let tokens: Vec<String> = (0..12)
        .map(|at| {
            let answer = ask(&proxy, "/v2/token", &basic("alice", &at.to_string()));
            let said: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            format!("Bearer {}", said["token"].as_str().unwrap())
        })
        .collect();
    let statuses: Vec<u16> = tokens.iter().map(|token| ask(&proxy, APP, token).status).collect();
    assert_eq!(statuses, [[403; 10].as_slice(), &[429; 2]].concat());
    assert_eq!(fake.seen().iter().filter(|seen| seen.path.starts_with("/token")).count(), 10);
}

#[test]
fn many_who_may_not_do_not_fail_one_who_may() {
    let (fake, image, proxy) = personal("");
    let digest = image.layer_digest(0);
    let path = app_blob(&digest);
    let bobs: Vec<_> = (0..5)
        .map(|at| {
            let request = proxy.get(&path).field("Authorization", &basic("bob", &at.to_string()));
            std::thread::spawn(move || request.fetch().status)
        })
        .collect();
    assert_whole(&ask(&proxy, &path, &alice()), &digest);
    for bob in bobs {
        assert_eq!(bob.join().unwrap(), 403);
    }
    assert_eq!(fake.count("GET", &path), 1);
}

#[test]
fn every_client_pulls_a_private_image_with_its_own_password() {
    let registry = Registry::start_for(&USERS);
    let image = Image::small("private");
    registry.push(&image, "team/private:1");
    let proxy = Site::new().registry("docker.io", &registry.url(), "credentials = \"caller\"").start();
    let mirror = proxy.authority();
    let name = format!("{mirror}/docker.io/team/private:1");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);

    assert!(skopeo(&name, Some("alice:wonder-land"), &at("good")).status.success());
    assert!(!skopeo(&name, Some("alice:wrong"), &at("wrong")).status.success());
    assert!(!skopeo(&name, None, &at("none")).status.success());

    let podman = Podman::new(&mirror);
    let policy = at("policy.json");
    std::fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    let policy = policy.display().to_string();
    let pull =
        |creds: &str| podman.podman(&["pull", "--signature-policy", &policy, "--tls-verify=false", creds, &name]);
    pull("--creds=carol:sings-loud").unwrap_or_else(|error| panic!("podman: {error}"));
    podman.podman(&["rmi", "--force", &name]).unwrap();
    pull("--creds=carol:wrong").expect_err("podman with a wrong password");

    let containerd = Containerd::start(&mirror);
    containerd.pull_as("alice:wonder-land", "team/private:1").unwrap_or_else(|error| panic!("ctr: {error}"));
    containerd.remove("team/private:1");
    containerd.pull("team/private:1").expect_err("ctr as anybody");

    let docker = Docker::start(&mirror);
    docker.docker(&["pull", &name]).expect_err("docker as anybody");
    docker.docker(&["login", "--username", "carol", "--password", "sings-loud", &mirror]).unwrap();
    docker.docker(&["pull", &name]).unwrap_or_else(|error| panic!("docker: {error}\n{}", docker.log()));
}
