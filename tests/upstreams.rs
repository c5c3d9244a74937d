//! Credentials, tokens and redirects: what goes to whom.

use std::fs;

use tidegate_tests::content::Content;
use tidegate_tests::fake::{Act, Fake, Reply, Tokens, basic};
use tidegate_tests::image::Image;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::registry::Registry;
use tidegate_tests::site::Site;

use crate::{APP, app_blob, assert_pulls, assert_whole, fake_with_app};

const PASSWORD: &str = "tide-and-time";

/// A site whose docker.io is asked as the user `ferry`.
fn with_credentials(url: &str, lines: &str) -> Site {
    let site = Site::new();
    let file = site.path("password");
    fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let lines = format!("username = \"ferry\"\npassword_file = \"{}\"\n{lines}", file.display());
    site.registry("docker.io", url, &lines)
}

fn authorizations(fake: &Fake) -> Vec<String> {
    fake.seen().iter().filter_map(|seen| seen.fields.get("Authorization").map(str::to_owned)).collect()
}

#[track_caller]
fn assert_no_secret_in_the_log(proxy: &Proxy) {
    let log = proxy.log();
    let encoded = basic("ferry", PASSWORD);
    for secret in [PASSWORD, encoded.trim_start_matches("Basic "), "token-1"] {
        assert!(!log.contains(secret), "{secret} stands in the log");
    }
}

#[test]
fn an_https_upstream_is_trusted_only_with_its_authority() {
    let registry = Registry::start_https();
    let image = Image::small("app");
    registry.push(&image, "library/app:1");
    let trusted = registry.authority_file().display().to_string();
    assert_pulls(&Site::of(&registry.url()).variable("SSL_CERT_FILE", &trusted).start(), &image);

    let stranger = Registry::start_https();
    let other = stranger.authority_file().display().to_string();
    let proxy = Site::of(&registry.url()).variable("SSL_CERT_FILE", &other).start();
    let answer = proxy.get(APP).fetch();
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(answer.message().contains("docker.io"), "{}", answer.message());
}

#[test]
fn basic_credentials_are_sent_where_they_are_asked_for() {
    let (fake, image) = fake_with_app();
    fake.require_basic("ferry", PASSWORD);
    let proxy = with_credentials(&fake.url(), "").start();
    assert_pulls(&proxy, &image);
    assert_no_secret_in_the_log(&proxy);
}

#[test]
fn wrong_credentials_are_a_denial_that_names_the_registry() {
    let (fake, _image) = fake_with_app();
    fake.require_basic("ferry", "another one");
    let proxy = with_credentials(&fake.url(), "").start();
    let answer = proxy.get(APP).fetch();
    assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"));
    assert!(answer.message().contains("docker.io"), "{}", answer.message());
    assert!(fake.count("GET", APP) <= 3, "{} attempts", fake.count("GET", APP));
    assert_no_secret_in_the_log(&proxy);
}

#[test]
fn no_credential_is_sent_to_an_upstream_that_does_not_ask() {
    let (fake, image) = fake_with_app();
    let proxy = with_credentials(&fake.url(), "").start();
    assert_pulls(&proxy, &image);
    assert_eq!(authorizations(&fake), Vec::<String>::new());
}

#[test]
fn an_anonymous_token_is_fetched_once_for_a_repository() {
    let (fake, image) = fake_with_app();
    let tokens = Tokens::anonymous();
    fake.require_bearer(&format!("{}/token", fake.url()), &tokens);
    fake.issue(&tokens);
    let proxy = Site::of(&fake.url()).start();
    assert_pulls(&proxy, &image);
    assert_eq!(tokens.given(), 1);
    let asked = fake.seen().into_iter().find(|seen| seen.path == "/token").unwrap();
    assert!(asked.query.contains("service=fake"), "{}", asked.query);
    let scope = asked.query.replace("%3A", ":").replace("%2F", "/");
    assert!(scope.contains("scope=repository:library/app:pull"), "{}", asked.query);
    assert_no_secret_in_the_log(&proxy);
}

#[test]
fn a_token_that_is_refused_is_renewed_once() {
    let (fake, image) = fake_with_app();
    let tokens = Tokens::anonymous();
    fake.require_bearer(&format!("{}/token", fake.url()), &tokens);
    fake.issue(&tokens);
    let proxy = Site::of(&fake.url()).start();
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    tokens.expire();
    assert_whole(&proxy.get(&app_blob(&image.layer_digest(0))).fetch(), &image.layer_digest(0));
    assert_eq!(tokens.given(), 2);
}

#[test]
fn the_token_service_gets_the_credentials_and_the_registry_gets_the_token() {
    let (fake, image) = fake_with_app();
    let tokens = Tokens::of_user("ferry", PASSWORD);
    fake.require_bearer(&format!("{}/token", fake.url()), &tokens);
    fake.issue(&tokens);
    let proxy = with_credentials(&fake.url(), "").start();
    assert_pulls(&proxy, &image);
    for seen in fake.seen() {
        match seen.fields.get("Authorization") {
            Some(sent) if seen.path == "/token" => assert_eq!(sent, basic("ferry", PASSWORD)),
            Some(sent) => assert!(sent.starts_with("Bearer token-"), "{} with {sent}", seen.path),
            None => assert_ne!(seen.path, "/token"),
        }
    }
    assert_no_secret_in_the_log(&proxy);
}

#[test]
fn i9_a_token_service_elsewhere_is_not_asked_unless_it_is_allowed() {
    let (fake, image) = fake_with_app();
    let elsewhere = Fake::start();
    let tokens = Tokens::of_user("ferry", PASSWORD);
    fake.require_bearer(&format!("{}/token", elsewhere.url()), &tokens);
    elsewhere.issue(&tokens);
    let proxy = with_credentials(&fake.url(), "").start();
    let answer = proxy.get(APP).fetch();
    assert!(matches!(answer.status, 403 | 502 | 503), "{}: {}", answer.status, answer.text());
    assert!(elsewhere.seen().is_empty(), "{:?}", elsewhere.seen());

    let allowed = format!("redirect_hosts = [\"{}\"]", elsewhere.authority());
    assert_pulls(&with_credentials(&fake.url(), &allowed).start(), &image);
}

#[test]
fn a_token_service_that_fails_is_a_502_and_no_404() {
    let (fake, _image) = fake_with_app();
    let tokens = Tokens::anonymous();
    fake.require_bearer(&format!("{}/token", fake.url()), &tokens);
    let proxy = Site::of(&fake.url()).start();
    let huge = vec![b'{'; 1 << 20];
    for reply in [
        Reply::status(500),
        Reply::status(200).body(b"no json"),
        Reply::status(200).body(b"{}"),
        Reply::status(200).body(&huge),
    ] {
        fake.always("/token", Act::Reply(reply));
        let answer = proxy.get(APP).fetch();
        assert!(matches!(answer.status, 502 | 503), "{}: {}", answer.status, answer.text());
    }
}

#[test]
fn i9_what_a_client_sends_as_its_login_stays_here() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).start();
    let login = basic("ferry", PASSWORD);
    let answer = proxy.get(APP).field("Authorization", &login).field("Cookie", "a=b").fetch();
    assert_whole(&answer, &image.digest());
    assert_eq!(authorizations(&fake), Vec::<String>::new());
    assert!(fake.seen().iter().all(|seen| seen.fields.get("Cookie").is_none()));
    assert_no_secret_in_the_log(&proxy);
}

#[test]
fn i9_a_redirect_takes_no_credential_along() {
    let (fake, _image) = fake_with_app();
    let cdn = Fake::start();
    let content = Content::noise(11, 500_000);
    fake.require_basic("ferry", PASSWORD);
    let path = app_blob(&content.digest());
    fake.put("/there", "application/octet-stream", content.clone());
    cdn.put("/there", "application/octet-stream", content.clone());
    let allowed = format!("redirect_hosts = [\"{}\"]", cdn.authority());
    let proxy = with_credentials(&fake.url(), &allowed).start();
    // A good answer first, so that the proxy has learned to send its credential at once.
    assert_eq!(proxy.get(APP).fetch().status, 200);
    fake.always(&path, Act::Reply(Reply::redirect(&format!("{}/there", cdn.url()))));
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    assert_eq!(cdn.count("GET", "/there"), 1);
    assert_eq!(authorizations(&cdn), Vec::<String>::new());
    assert_no_secret_in_the_log(&proxy);
}

#[test]
fn a_redirect_to_a_private_address_that_nobody_named_is_refused() {
    let (fake, _image) = fake_with_app();
    let inside = Fake::start();
    let content = Content::noise(12, 1000);
    inside.put("/there", "application/octet-stream", content.clone());
    let path = app_blob(&content.digest());
    let proxy = Site::of(&fake.url()).start();
    for to in
        [format!("{}/there", inside.url()), "http://169.254.169.254/latest".to_owned(), "file:///etc/passwd".to_owned()]
    {
        fake.always(&path, Act::Reply(Reply::redirect(&to)));
        let answer = proxy.get(&path).fetch();
        assert!(matches!(answer.status, 502..=504), "{to}: {}", answer.status);
    }
    assert!(inside.seen().is_empty(), "{:?}", inside.seen());
}

#[test]
fn redirects_that_lead_in_a_circle_come_to_an_end() {
    let (fake, _image) = fake_with_app();
    let path = app_blob(&Content::noise(13, 1000).digest());
    fake.always(&path, Act::Reply(Reply::redirect(&path)));
    let proxy = Site::of(&fake.url()).start();
    let answer = proxy.get(&path).fetch();
    assert!(matches!(answer.status, 502..=504), "{}", answer.status);
    assert!(fake.count("GET", &path) <= 30, "{} requests", fake.count("GET", &path));
}

#[test]
fn an_unknown_registry_is_a_404_with_the_line_to_add_and_nobody_is_dialled() {
    let (fake, _image) = fake_with_app();
    let stranger = Fake::start();
    let name = stranger.authority();
    for site in [Site::of(&fake.url()), Site::of(&fake.url()).top("open_registries = true")] {
        let proxy = site.start();
        for path in [format!("{APP}?ns={name}"), format!("/v2/{name}/library/app/manifests/1")] {
            let answer = proxy.get(&path).fetch();
            assert_eq!((answer.status, answer.code().as_str()), (404, "NAME_UNKNOWN"), "{path}");
            let line = format!("[registries.\"{name}\"]");
            assert!(answer.message().contains(&line), "{}", answer.message());
        }
    }
    assert!(stranger.seen().is_empty(), "{:?}", stranger.seen());
    assert!(fake.seen().is_empty(), "{:?}", fake.seen());
    // And with that line it is reached.
    let image = Image::small("app");
    stranger.put_image(&image, "library/app:1");
    let proxy = Site::of(&fake.url()).registry(&name, &stranger.url(), "").start();
    assert_whole(&proxy.get(&format!("{APP}?ns={name}")).fetch(), &image.digest());
}

#[test]
fn a_namespace_is_never_an_address() {
    let (fake, _image) = fake_with_app();
    let proxy = Site::of(&fake.url()).start();
    for ns in ["169.254.169.254", "user@docker.io", "http://docker.io", "docker.io:99999", "docker.io/x", "", "a%20b"] {
        let answer = proxy.get(&format!("{APP}?ns={ns}")).fetch();
        assert!(matches!(answer.status, 400 | 404), "ns={ns}: {}", answer.status);
        assert!(!answer.code().is_empty());
    }
    let answer = proxy.get(&format!("{APP}?ns=docker.io&ns=quay.io")).fetch();
    assert_eq!(answer.status, 400);
    assert!(fake.seen().is_empty(), "{:?}", fake.seen());
}
