//! What the configuration says of a registry: whose credentials it gets, who is believed to be it, and the way there.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;

use tidegate_tests::authority::Authority;
use tidegate_tests::content::Content;
use tidegate_tests::fake::{Act, Fake, Reply, Tokens, basic};
use tidegate_tests::forward::Forward;
use tidegate_tests::image::Image;
use tidegate_tests::plugins::teller;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;
use tidegate_tests::tls::Tls;
use tidegate_tests::{eventually, own_address};

use crate::{APP, app_blob, assert_pulls, assert_whole, fake_with_app};

/// Writes a file that only its owner reads. Gives its path as text.
fn secret(site: &Site, name: &str, text: &str) -> String {
    let file = site.path(name);
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    file.display().to_string()
}

/// What was sent as `Authorization` the last time that a repository of the fake was asked for.
fn sent(fake: &Fake, repository: &str) -> String {
    let asked =
        fake.seen().into_iter().rev().find(|seen| seen.path.starts_with(&format!("/v2/{repository}/manifests/")));
    asked.and_then(|seen| seen.fields.get("Authorization").map(str::to_owned)).unwrap_or_default()
}

#[track_caller]
fn assert_not_in_log(proxy: &Proxy, secrets: &[&str]) {
    let log = proxy.log();
    for secret in secrets {
        assert!(!log.contains(secret), "{secret} stands in the log");
    }
}

#[test]
fn credentials_of_the_longest_prefix_are_sent() {
    let fake = Fake::start();
    fake.require_basic("nobody", "nothing");
    let site = Site::new();
    let file = |name: &str| secret(&site, name, &format!("pw-{name}\n"));
    let lines = format!(
        "username = \"all\"\npassword_file = \"{}\"\n\
         [registries.\"docker.io\".repositories.\"org\"]\nusername = \"org\"\npassword_file = \"{}\"\n\
         [registries.\"docker.io\".repositories.\"org/team\"]\nusername = \"team\"\npassword_file = \"{}\"\n",
        file("all"),
        file("org"),
        file("team")
    );
    let proxy = site.registry("docker.io", &fake.url(), &lines).start();
    for (repository, user) in
        [("org/team", "team"), ("org/team/app", "team"), ("org/teams", "org"), ("org/app", "org"), ("other/app", "all")]
    {
        let answer = proxy.get(&format!("/v2/{repository}/manifests/1")).fetch();
        assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"), "{repository}");
        assert_eq!(sent(&fake, repository), basic(user, &format!("pw-{user}")), "{repository}");
    }
    assert_not_in_log(&proxy, &["pw-all", "pw-org", "pw-team"]);
}

#[test]
fn a_ready_token_is_sent_as_it_is_and_read_again_when_it_is_refused() {
    let (fake, image) = fake_with_app();
    let tokens = Tokens::anonymous();
    tokens.accept("ready-1");
    fake.require_bearer(&format!("{}/token", fake.url()), &tokens);
    let site = Site::new();
    let lines = format!("token_file = \"{}\"", secret(&site, "token", "ready-1\n"));
    let proxy = site.registry("docker.io", &fake.url(), &lines).start();
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    tokens.expire();
    tokens.accept("ready-2");
    secret(proxy.site(), "token", "ready-2\n");
    assert_pulls(&proxy, &image);
    assert_eq!(fake.count("GET", "/token"), 0, "no token service is asked");
    assert_not_in_log(&proxy, &["ready-1", "ready-2"]);
}

#[test]
fn an_identity_token_is_changed_at_the_token_service_and_goes_nowhere_else() {
    let (fake, image) = fake_with_app();
    let tokens = Tokens::of_identity("identity-secret");
    fake.require_bearer(&format!("{}/token", fake.url()), &tokens);
    fake.issue(&tokens);
    let site = Site::new();
    let lines = format!("identity_token_file = \"{}\"", secret(&site, "token", "identity-secret\n"));
    let proxy = site.registry("docker.io", &fake.url(), &lines).start();
    assert_pulls(&proxy, &image);
    assert_eq!(tokens.given(), 1);
    for seen in fake.seen() {
        let heads = format!("{} {} {:?}", seen.path, seen.query, seen.fields);
        assert!(!heads.contains("identity-secret"), "{heads}");
        assert_eq!(seen.body.contains("identity-secret"), seen.path == "/token");
    }
    assert_not_in_log(&proxy, &["identity-secret", "token-1"]);
}

#[test]
fn a_docker_configuration_gives_logins_and_is_read_again() {
    let fake = Fake::start();
    fake.require_basic("nobody", "nothing");
    let site = Site::new();
    let auth = |user: &str, password: &str| basic(user, password).trim_start_matches("Basic ").to_owned();
    let file = |hub: &str| {
        let text = format!(
            r#"{{"auths": {{"https://index.docker.io/v1/": {{"auth": "{}"}}, "docker.io/org": {{"auth": "{}"}}}}}}"#,
            auth("hub", hub),
            auth("org", "two")
        );
        secret(&site, "config.json", &text)
    };
    let path = file("one");
    let own = secret(&site, "own", "three");
    let lines =
        format!("[registries.\"docker.io\".repositories.\"org/own\"]\nusername = \"own\"\npassword_file = \"{own}\"\n");
    let proxy =
        site.clone().top(&format!("docker_config = \"{path}\"")).registry("docker.io", &fake.url(), &lines).start();
    let ask = |repository: &str| {
        assert_eq!(proxy.get(&format!("/v2/{repository}/manifests/1")).fetch().status, 403, "{repository}");
        sent(&fake, repository)
    };
    assert_eq!(ask("library/app"), basic("hub", "one"));
    assert_eq!(ask("org/app"), basic("org", "two"));
    assert_eq!(ask("org/own"), basic("own", "three"));
    file("changed");
    assert_eq!(ask("library/other"), basic("hub", "changed"));
    assert_not_in_log(&proxy, &[&auth("hub", "one"), &auth("hub", "changed"), "changed"]);
}

#[test]
fn a_credential_helper_is_asked_for_the_server_and_one_that_fails_is_named() {
    let (fake, image) = fake_with_app();
    fake.require_basic("helped", "by-a-program");
    let site = Site::new();
    let bin = site.path("bin");
    fs::create_dir(&bin).unwrap();
    let program = bin.join("docker-credential-tide");
    let log = site.path("asked");
    let script = |then: &str| format!("#!/bin/sh\ncat >>{}\n{then}\n", log.display());
    let install = |then: &str| {
        let staged = site.path("staged-helper");
        fs::write(&staged, script(then)).unwrap();
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(staged, &program).unwrap();
    };
    install("echo '{\"ServerURL\":\"x\",\"Username\":\"helped\",\"Secret\":\"by-a-program\"}'");
    let config = secret(&site, "config.json", r#"{"credsStore": "tide"}"#);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let start = || {
        let site = site.clone().variable("PATH", &path);
        site.registry("docker.io", &fake.url(), &format!("docker_config = \"{config}\"")).start()
    };
    let proxy = start();
    assert_pulls(&proxy, &image);
    assert_eq!(fs::read_to_string(&log).unwrap(), "https://index.docker.io/v1/");
    assert_not_in_log(&proxy, &["by-a-program"]);
    drop(proxy);
    fs::remove_dir_all(site.path("cache")).unwrap();
    install("echo by-a-program; exit 3");
    let proxy = start();
    let answer = proxy.get(APP).fetch();
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(answer.message().contains("credential helper tide"), "{}", answer.message());
    assert!(!answer.text().contains("by-a-program"));
    assert_not_in_log(&proxy, &["by-a-program"]);
}

#[test]
fn what_is_not_safe_is_said_at_start() {
    let site = Site::new();
    let file = secret(&site, "password", "x");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let lines = format!("username = \"u\"\npassword_file = \"{file}\"\ninsecure = true");
    let proxy = site.registry("h.lan", "https://h.lan", &lines).start();
    proxy.wait(proxy.beginning(), "serving", &[]);
    let log = proxy.log();
    assert!(log.contains(&format!("{file} holds a secret")), "{log}");
    assert!(log.contains("h.lan") && log.contains("is not verified"), "{log}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let proxy = proxy.terminate().0.start();
    proxy.wait(proxy.beginning(), "serving", &[]);
    let log = proxy.log();
    assert!(!log.contains("holds a secret"), "{log}");
}

/// A fake with the app behind TLS, with a certificate of an authority of its own.
struct Private {
    fake: Fake,
    image: Image,
    authority: Authority,
    tls: Tls,
}

impl Private {
    fn start(wants_client: bool) -> Self {
        let (fake, image) = fake_with_app();
        let (authority, host) = (Authority::new(), own_address());
        let pair = authority.server(host.into());
        let clients = authority.file();
        let tls = Tls::start(host, &pair, wants_client.then_some(&*clients), &fake.authority());
        Self { fake, image, authority, tls }
    }
}

/// A site with a folder of trust by host, and its folder for one host.
fn with_certs(site: Site, name: &str) -> (Site, std::path::PathBuf) {
    let certs = site.path("certs.d");
    let folder = certs.join(name);
    fs::create_dir_all(&folder).unwrap();
    let site = site.top(&format!("certs_dirs = [\"{}\"]", certs.display()));
    (site, folder)
}

#[test]
fn an_authority_in_the_folder_of_a_host_is_trusted_as_soon_as_it_is_there() {
    let Private { tls, authority, image, fake: _fake } = Private::start(false);
    for name in [tls.authority(), tls.authority().replace(':', ".."), "docker.io".to_owned()] {
        let (site, folder) = with_certs(Site::of(&tls.url()), &name);
        let proxy = site.start();
        let answer = proxy.get(APP).fetch();
        assert_eq!(answer.status, 502, "{}", answer.text());
        assert!(answer.message().contains("certs_dirs"), "{}", answer.message());
        fs::copy(authority.file(), folder.join("ca.crt")).unwrap();
        eventually("the authority is trusted", || proxy.get(APP).fetch().status == 200);
        assert_pulls(&proxy, &image);
    }
}

#[test]
fn a_file_that_goes_bad_leaves_the_trust_that_there_was_and_is_told_once() {
    let Private { tls, authority, fake, .. } = Private::start(false);
    let (site, folder) = with_certs(Site::of(&tls.url()), &tls.authority());
    fs::copy(authority.file(), folder.join("ca.crt")).unwrap();
    let proxy = site.cache("tag_ttl = \"0s\"").start();
    assert_eq!(proxy.get(APP).fetch().status, 200);
    let mark = proxy.mark();
    fs::write(folder.join("ca.crt"), "torn").unwrap();
    eventually("it is seen", || {
        assert_eq!(proxy.get(APP).fetch().status, 200, "what held before holds");
        !proxy.events(mark, "trust in a host cannot be read").is_empty()
    });
    let told = proxy.wait(mark, "trust in a host cannot be read", &[]);
    assert!(told.field("reason").contains("ca.crt"), "{}", told.field("reason"));
    for image in 0..20 {
        fake.put_image(&Image::small("more"), &format!("library/more{image}:1"));
        assert_eq!(proxy.get(&format!("/v2/library/more{image}/manifests/1")).fetch().status, 200);
    }
    assert_eq!(proxy.events(mark, "trust in a host cannot be read").len(), 1);
}

#[test]
fn a_client_certificate_is_shown_to_its_host_and_a_missing_key_is_named() {
    let Private { tls, authority, image, fake: _fake } = Private::start(true);
    let client = authority.client("ferry");
    let ca = format!("ca_file = \"{}\"", authority.file().display());
    let without = Site::new().registry("docker.io", &tls.url(), &ca).start().get(APP).fetch();
    assert_eq!(without.status, 502, "{}", without.text());
    assert!(without.message().contains("client certificate"), "{}", without.message());
    // From the configuration.
    let lines = format!("{ca}\nclient_cert = \"{}\"\nclient_key = \"{}\"", client.cert.display(), client.key.display());
    assert_pulls(&Site::new().registry("docker.io", &tls.url(), &lines).start(), &image);
    // From the folder of the host.
    let (site, folder) = with_certs(Site::of(&tls.url()), &tls.authority());
    fs::copy(authority.file(), folder.join("ca.crt")).unwrap();
    client.copy(&folder.join("client.cert"), &folder.join("client.key"));
    assert_pulls(&site.start(), &image);
    fs::remove_file(folder.join("client.key")).unwrap();
    fs::remove_dir_all(site.path("cache")).unwrap();
    let answer = site.start().get(APP).fetch();
    assert_eq!(answer.status, 502);
    let key = folder.join("client.key").display().to_string();
    assert!(answer.message().contains(&format!("missing key {key}")), "{}", answer.message());
}

#[test]
fn i9_neither_trust_nor_insecurity_goes_along_with_a_redirect() {
    let registry = Private::start(false);
    let cdn = Private::start(false);
    let content = Content::noise(31, 100_000);
    let path = app_blob(&content.digest());
    cdn.fake.put("/there", "application/octet-stream", content.clone());
    registry.fake.always(&path, Act::Reply(Reply::redirect(&format!("{}/there", cdn.tls.url()))));
    let allowed = format!("redirect_hosts = [\"{}\"]", cdn.tls.authority());
    let ca = |private: &Private| format!("ca_file = \"{}\"", private.authority.file().display());
    // The registry's own words are for the registry: neither opens the other host.
    for own in [format!("insecure = true\n{allowed}"), format!("{}\n{allowed}", ca(&registry))] {
        let proxy = Site::new().registry("docker.io", &registry.tls.url(), &own).start();
        assert_whole(&proxy.get(APP).fetch(), &registry.image.digest());
        let answer = proxy.get(&path).fetch();
        assert_eq!(answer.status, 502, "{}", answer.text());
        assert!(answer.message().contains("TLS failed"), "{}", answer.message());
    }
    assert_eq!((cdn.tls.handshakes(), cdn.fake.seen().len()), (0, 0));
    // Its own folder does.
    let site = Site::new().registry("docker.io", &registry.tls.url(), &format!("{}\n{allowed}", ca(&registry)));
    let (site, folder) = with_certs(site, &cdn.tls.authority());
    fs::copy(cdn.authority.file(), folder.join("ca.crt")).unwrap();
    assert_whole(&site.start().get(&path).fetch(), &content.digest());
}

#[test]
fn i9_a_proxy_on_the_way_out_gets_its_password_and_nothing_of_the_registry() {
    let password = basic("out", "way-out");
    let forward = Forward::start(Some(password.clone()));
    let Private { tls, authority, fake, image } = Private::start(false);
    fake.require_basic("ferry", "tide");
    let site = Site::new();
    let (file, own) = (secret(&site, "proxy-password", "way-out\n"), secret(&site, "password", "tide"));
    let way = format!("proxy = \"http://out@{}\"\nproxy_password_file = \"{file}\"", forward.authority());
    let login = format!("username = \"ferry\"\npassword_file = \"{own}\"");
    // Through a tunnel to what is encrypted; the registry's own way holds whatever NO_PROXY says.
    let lines = format!("ca_file = \"{}\"\n{login}\n{way}", authority.file().display());
    let proxy = Site::new().registry("docker.io", &tls.url(), &lines).start();
    assert_pulls(&proxy, &image);
    let seen = forward.seen();
    assert!(!seen.is_empty());
    for asked in &seen {
        assert_eq!(asked.line, format!("CONNECT {} HTTP/1.1", tls.authority()));
        assert_eq!(asked.authorization.as_deref(), Some(&*password));
    }
    // In absolute form to what is not.
    let plain = Site::new().registry("docker.io", &fake.url(), &format!("{login}\n{way}")).start();
    assert_pulls(&plain, &image);
    let lines: Vec<_> = forward.seen().into_iter().skip(seen.len()).map(|asked| asked.line).collect();
    assert!(lines.contains(&format!("GET {}{APP} HTTP/1.1", fake.url())), "{lines:?}");
    assert!(fake.seen().iter().all(|seen| seen.fields.get("Proxy-Authorization").is_none()));
    for proxy in [&proxy, &plain] {
        assert_not_in_log(proxy, &["way-out", password.trim_start_matches("Basic ")]);
    }
}

#[test]
fn the_environment_and_the_configuration_choose_the_way() {
    let (fake, image) = fake_with_app();
    let forward = Forward::start(None);
    let address = format!("http://{}", forward.authority());
    let through = |site: Site| {
        let before = forward.seen().len();
        assert_pulls(&site.start(), &image);
        forward.seen().len() > before
    };
    let of = |lines: &str| Site::new().registry("docker.io", &fake.url(), lines);
    let loopback = "127.0.0.0/8";
    assert!(!through(of("").variable("HTTP_PROXY", &address).variable("NO_PROXY", loopback)));
    assert!(through(of("").variable("HTTP_PROXY", &address).variable("NO_PROXY", "10.0.0.0/8")));
    assert!(!through(of("proxy = \"off\"").variable("HTTP_PROXY", &address).variable("NO_PROXY", "")));
    let egress = |lines: &str| of(&format!("[egress]\n{lines}"));
    assert!(through(egress(&format!("proxy = \"{address}\"\nno_proxy = []"))));
    assert!(!through(egress(&format!("proxy = \"{address}\"\nno_proxy = [\"{loopback}\"]"))));
    assert!(!through(egress("proxy = \"off\"").variable("HTTP_PROXY", &address).variable("NO_PROXY", "")));
}

#[test]
fn a_proxy_that_refuses_or_is_not_there_is_named() {
    let (fake, _image) = fake_with_app();
    let forward = Forward::start(Some(basic("out", "right")));
    let nobody = TcpListener::bind((own_address(), 0)).unwrap().local_addr().unwrap();
    for (proxy, word) in [(forward.authority(), "407"), (nobody.to_string(), "refused")] {
        let lines = format!("proxy = \"http://out@{proxy}\"");
        let answer = Site::new().registry("docker.io", &fake.url(), &lines).start().get(APP).fetch();
        assert_eq!(answer.status, 502, "{}", answer.text());
        assert!(answer.message().contains(word), "{}", answer.message());
        let tunnel = Site::new().registry("docker.io", "https://127.0.0.1:1", &lines).start().get(APP).fetch();
        assert_eq!(tunnel.status, 502, "{}", tunnel.text());
        assert!(tunnel.message().contains(&proxy), "{}", tunnel.message());
    }
    assert!(fake.seen().is_empty());
}

#[test]
fn a_private_name_is_refused_behind_a_proxy_too() {
    let (fake, _image) = fake_with_app();
    let forward = Forward::start(None);
    let path = app_blob(&Content::noise(32, 10).digest());
    let lines = format!("[egress]\nproxy = \"http://{}\"\nno_proxy = [\"127.0.0.0/8\"]", forward.authority());
    let proxy = Site::new().registry("docker.io", &fake.url(), &lines).start();
    for to in
        ["http://localhost/x", "http://intranet/x", "http://metadata.google.internal/x", "http://169.254.169.254/x"]
    {
        fake.always(&path, Act::Reply(Reply::redirect(to)));
        let answer = proxy.get(&path).fetch();
        assert_eq!(answer.status, 502, "{to}: {}", answer.text());
        assert!(answer.message().contains("no public address"), "{to}: {}", answer.message());
    }
    assert!(forward.seen().is_empty(), "{:?}", forward.seen());
}

#[test]
fn a_registry_with_an_ipv6_address_is_reached() {
    let any = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    if let Err(error) = TcpListener::bind(any) {
        println!("not run: this machine has no ::1: {error}");
        return;
    }
    let fake = Fake::start_at(any);
    let image = Image::small("app");
    fake.put_image(&image, "library/app:1");
    let name = fake.authority();
    let proxy = Site::new().registry(&name, &fake.url(), "proxy = \"off\"").start();
    for path in [format!("{APP}?ns={name}"), format!("/v2/{name}/library/app/manifests/1")] {
        assert_whole(&proxy.get(&path).fetch(), &image.digest());
    }
    // And with TLS, by a certificate for the address.
    let authority = Authority::new();
    let tls = Tls::start(Ipv6Addr::LOCALHOST, &authority.server(Ipv6Addr::LOCALHOST.into()), None, &name);
    let (site, folder) = with_certs(Site::new(), &tls.authority());
    fs::copy(authority.file(), folder.join("ca.crt")).unwrap();
    let proxy = site.registry("docker.io", &tls.url(), "proxy = \"off\"").start();
    assert_pulls(&proxy, &image);
}

#[test]
fn a_fallback_plugin_is_told_the_limits_and_the_age_of_the_copy() {
    let (fake, _image) = fake_with_app();
    let site = Site::of(&fake.url()).cache("tag_ttl = \"0s\"").plugins("headers = [\"x-tell-failure\"]");
    let proxy = site.with([("10-teller.wasm", &teller())]).start();
    let ask = || {
        let answer = proxy.get(APP).field("X-Tell-Failure", "1").fetch();
        assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"), "{}", answer.text());
        answer.message()
    };
    let limited = Reply::status(429)
        .field("Retry-After", "7")
        .field("RateLimit-Limit", "100;w=21600")
        .field("ratelimit-remaining", "0;w=21600")
        .field("Docker-RateLimit-Source", "192.0.2.7")
        .field("X-RateLimit-Reset", &"9".repeat(4000))
        .field("Set-Cookie", "not-for-plugins");
    fake.next(APP, Act::Reply(limited.clone()));
    let told = ask();
    for part in [
        "Status(429)",
        "after=Some(7)",
        "limits=ratelimit-limit=100;w=21600 ratelimit-remaining=0;w=21600 docker-ratelimit-source=192.0.2.7 cache=absent",
        "age=false",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // With a copy that is past its time.
    assert_eq!(proxy.get(APP).fetch().status, 200);
    fake.next(APP, Act::Reply(limited));
    let told = ask();
    assert!(told.contains("cache=stale age=true"), "{told}");
    // What one answer told is not told of the next failure.
    fake.next(APP, Act::Reply(Reply::status(503)));
    let told = ask();
    assert!(told.contains("Status(503)") && told.contains("limits= cache"), "{told}");
}
