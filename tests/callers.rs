//! Who is asking: passwords, tokens, networks, certificates, balancers, and who lies.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use serde_json::Value;
use tidegate_tests::authority::{Authority, Pair};
use tidegate_tests::fake::{Fake, basic};
use tidegate_tests::http::{self, Answer, Response};
use tidegate_tests::image::Image;
use tidegate_tests::process::run;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::{APP, fake_with_app};

/// A proxy that serves alice and bob.
fn with_users(lines: &str) -> (Fake, Image, Proxy) {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).users(&[("alice", "wonder"), ("bob", "builder")]).clients(lines).start();
    (fake, image, proxy)
}

fn ask(proxy: &Proxy, path: &str, authorization: &str) -> Answer {
    proxy.get(path).field("Authorization", authorization).fetch()
}

/// A token, and what came with it.
fn token(proxy: &Proxy, query: &str, authorization: Option<&str>) -> Result<(String, Value), Answer> {
    let request = proxy.get(&format!("/v2/token?service=tidegate{query}"));
    let answer = authorization.map_or(request.clone(), |value| request.field("Authorization", value)).fetch();
    if answer.status != 200 {
        return Err(answer);
    }
    let said: Value = serde_json::from_slice(&answer.body).unwrap();
    Ok((said["token"].as_str().unwrap().to_owned(), said))
}

/// Posts a form with curl. Gives status and body.
fn post(proxy: &Proxy, path: &str, form: &[&str]) -> (String, String) {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--noproxy", "*", "-w", "\n%{http_code}"]).arg(proxy.url(path));
    for field in form {
        curl.args(["--data-urlencode", field]);
    }
    let output = run(&mut curl);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

#[test]
fn who_shows_a_password_or_a_token_is_served_and_nobody_else() {
    let (fake, _image, proxy) = with_users("");
    let realm = format!("Bearer realm=\"http://{}/v2/token\",service=\"tidegate\"", proxy.authority());
    let ping = proxy.get("/v2/").fetch();
    assert_eq!((ping.status, ping.code().as_str()), (401, "UNAUTHORIZED"), "{}", ping.text());
    assert_eq!(ping.fields.all("WWW-Authenticate"), [realm.as_str()]);
    let answer = proxy.get(APP).fetch();
    assert_eq!(answer.status, 401);
    let scope = format!("{realm},scope=\"repository:library/app:pull\"");
    assert_eq!(answer.fields.all("WWW-Authenticate"), [scope.as_str()]);
    for wrong in [basic("alice", "builder"), basic("carol", "wonder"), basic("alice", "")] {
        let answer = ask(&proxy, APP, &wrong);
        assert_eq!((answer.status, answer.message().as_str()), (401, "the user or the password is wrong"));
    }
    assert!(fake.seen().is_empty(), "nobody upstream was asked");
    assert_eq!(ask(&proxy, "/v2/", &basic("alice", "wonder")).status, 200);
    assert_eq!(ask(&proxy, APP, &basic("alice", "wonder")).status, 200);
    let (token, said) = token(&proxy, "", Some(&basic("bob", "builder"))).unwrap();
    assert_eq!((&said["access_token"], said["expires_in"].as_u64()), (&said["token"], Some(300)));
    assert!(said["issued_at"].as_str().unwrap().ends_with('Z') && said.get("refresh_token").is_none(), "{said}");
    assert_eq!(ask(&proxy, "/v2/", &format!("Bearer {token}")).status, 200);
    assert_eq!(ask(&proxy, APP, &format!("Bearer {token}")).status, 200);
    let other = ask(&proxy, APP, "Bearer of-somebody-else");
    assert_eq!(other.status, 401);
    assert!(other.fields.get("WWW-Authenticate").unwrap().ends_with(",error=\"invalid_token\""));
    // Nothing of it went upstream or into the log.
    for seen in fake.seen() {
        assert_eq!(seen.fields.get("Authorization"), None);
    }
    for who in ["alice", "bob"] {
        proxy.wait(proxy.beginning(), "request", &[("subject", who), ("path", APP)]);
    }
    let log = proxy.log();
    for secret in ["wonder", "builder", &token, &basic("alice", "wonder")[6..]] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[test]
fn a_token_is_had_in_every_form_in_which_clients_ask_for_it() {
    let (_fake, _image, proxy) = with_users("");
    let alice = basic("alice", "wonder");
    for query in [
        "&scope=repository:library/app:pull&scope=repository:library/other:pull,push",
        "&scope=repository%3Alibrary%2Fapp%3Apull%20repository%3Aa%2Fb%3Apull",
        "&account=alice&client_id=docker&offline_token=true",
    ] {
        let (token, _) = token(&proxy, query, Some(&alice)).unwrap();
        assert_eq!(ask(&proxy, APP, &format!("Bearer {token}")).status, 200, "{query}");
    }
    let password = ["grant_type=password", "username=alice", "password=wonder", "service=tidegate"];
    let scopes = ["scope=repository:library/app:pull repository:a/b:pull", "scope=repository:c/d:pull"];
    let (status, body) = post(&proxy, "/v2/token", &[&password[..], &scopes].concat());
    let said: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status.as_str(), said.get("refresh_token")), ("200", None));
    assert_eq!(ask(&proxy, APP, &format!("Bearer {}", said["access_token"].as_str().unwrap())).status, 200);
    let (_, body) = post(&proxy, "/v2/token", &[&password[..], &["access_type=offline"]].concat());
    let said: Value = serde_json::from_str(&body).unwrap();
    let refresh = format!("refresh_token={}", said["refresh_token"].as_str().unwrap());
    let (status, body) = post(&proxy, "/v2/token", &["grant_type=refresh_token", &refresh]);
    let said: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, "200");
    assert_eq!(ask(&proxy, APP, &format!("Bearer {}", said["access_token"].as_str().unwrap())).status, 200);
    // A token is no refresh token, and a refresh token none for requests.
    let access = format!("refresh_token={}", said["access_token"].as_str().unwrap());
    assert_eq!(post(&proxy, "/v2/token", &["grant_type=refresh_token", &access]).0, "401");
    assert_eq!(ask(&proxy, APP, &refresh.replace("refresh_token=", "Bearer ")).status, 401);
    for (form, status) in [
        (&["grant_type=password", "username=alice", "password=x"][..], "401"),
        (&["grant_type=password", "password=x"], "400"),
        (&["grant_type=client_credentials"], "400"),
        (&["x=y"], "400"),
        (&[&format!("grant_type={}", "x".repeat(40 << 10))], "400"),
    ] {
        assert_eq!(post(&proxy, "/v2/token", form).0, status, "{form:?}");
    }
    let refused = token(&proxy, "", None).expect_err("nobody");
    assert_eq!((refused.status, refused.fields.get("WWW-Authenticate")), (401, Some("Basic realm=\"tidegate\"")));
    assert_eq!(http::method("DELETE", &proxy.url("/v2/token")).fetch().status, 405);
    assert_eq!(ask(&proxy, "/v2/token", "Basic %%%").status, 400);
}

#[test]
fn a_change_of_the_file_of_users_holds_at_once_and_a_bad_one_changes_nothing() {
    let (_fake, _image, proxy) = with_users("");
    let (alice, bob) = (basic("alice", "wonder"), basic("bob", "builder"));
    let (token_of_bob, _) = token(&proxy, "", Some(&bob)).unwrap();
    let (token_of_alice, _) = token(&proxy, "", Some(&alice)).unwrap();
    let bearer = |token: &str| ask(&proxy, APP, &format!("Bearer {token}")).status;
    assert_eq!([bearer(&token_of_alice), bearer(&token_of_bob), ask(&proxy, APP, &alice).status], [200; 3]);
    let changed = |text: &str| {
        let mark = proxy.mark();
        fs::write(proxy.site().path("htpasswd"), text).unwrap();
        mark
    };
    let file = proxy.site().path("htpasswd").display().to_string();
    let good = fs::read_to_string(&file).unwrap();
    let apr = "$apr1$k9zzzzzz$wkEfZbFjKyyhdIRWoTzSh1";
    for (bad, words) in [
        (format!("{good}dave:{apr}\n"), [format!("{file}:3"), format!("htpasswd -B {file} 'dave'")]),
        ("alice\n".to_owned(), [format!("{file}:1"), "USER:HASH".to_owned()]),
        ("# gone\n".to_owned(), [format!("{file}:1"), "has no user".to_owned()]),
    ] {
        let mark = changed(&bad);
        let reason = proxy.wait(mark, "configuration not loaded", &[]).field("reason");
        assert!(reason.contains("clients.htpasswd") && words.iter().all(|word| reason.contains(word)), "{reason}");
        assert!(!reason.contains(apr), "{reason}");
        assert_eq!([bearer(&token_of_bob), ask(&proxy, APP, &alice).status, ask(&proxy, APP, &bob).status], [200; 3]);
    }
    // Alice has another password, bob is gone, carol has come.
    let mark = proxy.mark();
    proxy.site().write_users(&[("alice", "changed"), ("carol", "sings")]);
    proxy.wait(mark, "configuration in effect", &[]);
    assert_eq!(
        [ask(&proxy, APP, &basic("alice", "changed")).status, ask(&proxy, APP, &basic("carol", "sings")).status],
        [200; 2]
    );
    assert_eq!(
        [
            bearer(&token_of_alice),
            bearer(&token_of_bob),
            ask(&proxy, APP, &alice).status,
            ask(&proxy, APP, &bob).status
        ],
        [401; 4]
    );
}

#[test]
fn a_token_outlives_the_process() {
    let (fake, _image) = fake_with_app();
    let site = Site::of(&fake.url()).users(&[("alice", "wonder")]);
    let proxy = site.start();
    let (token, _) = token(&proxy, "", Some(&basic("alice", "wonder"))).unwrap();
    let (site, _) = proxy.terminate();
    let proxy = site.start();
    assert_eq!(ask(&proxy, APP, &format!("Bearer {token}")).status, 200);
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(site.path("state/token-key")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn failed_logins_are_limited_and_who_is_known_goes_on() {
    let (_fake, _image, proxy) = with_users("");
    assert_eq!(ask(&proxy, APP, &basic("alice", "wonder")).status, 200);
    let statuses: Vec<u16> = (0..15).map(|at| ask(&proxy, APP, &basic("bob", &at.to_string())).status).collect();
    assert_eq!(statuses, [[401; 10].as_slice(), &[429; 5]].concat());
    let limited = ask(&proxy, APP, &basic("bob", "builder"));
    assert_eq!((limited.status, limited.code().as_str()), (429, "TOOMANYREQUESTS"));
    let wait: u64 = limited.fields.get("Retry-After").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(token(&proxy, "", Some(&basic("bob", "builder"))).expect_err("limited").status, 429);
    assert_eq!(ask(&proxy, APP, &basic("alice", "wonder")).status, 200, "her password is remembered");
}

#[test]
fn networks_may_ask_as_anybody_and_still_show_who_they_are() {
    let (_fake, _image, proxy) = with_users("anonymous = [\"127.0.0.0/8\"]");
    assert_eq!(proxy.get(APP).fetch().status, 200);
    // docker shows what it has only where it is asked for it.
    assert_eq!(proxy.get("/v2/").fetch().status, 401);
    let (anybody, _) = token(&proxy, "", None).unwrap();
    assert_eq!(ask(&proxy, "/v2/", &format!("Bearer {anybody}")).status, 200);
    assert_eq!(ask(&proxy, APP, &format!("Bearer {anybody}")).status, 200);
    // containers/image shows an empty pair where it has none.
    assert_eq!(ask(&proxy, APP, &basic("", "")).status, 200);
    assert_eq!(ask(&proxy, APP, &basic("alice", "wrong")).status, 401, "a password that is wrong is wrong");
    // The network is no more one of these: neither is its token.
    let mark = proxy.mark();
    proxy.site().edit_config(|text| text.replace("127.0.0.0/8", "10.0.0.0/8"));
    proxy.wait(mark, "configuration in effect", &[]);
    assert_eq!(proxy.get(APP).fetch().status, 401);
    assert_eq!(ask(&proxy, APP, &format!("Bearer {anybody}")).status, 401);
}

#[test]
fn without_passwords_a_network_that_is_not_listed_is_refused() {
    let (fake, _image) = fake_with_app();
    let proxy = Site::of(&fake.url()).clients("anonymous = [\"10.0.0.0/8\"]").start();
    for path in ["/v2/", APP] {
        let answer = proxy.get(path).fetch();
        assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"), "{}", answer.text());
        assert!(answer.message().contains("does not serve 127.0.0.1"), "{}", answer.message());
    }
    assert_eq!(proxy.get("/v2/token").fetch().status, 404);
}

/// Sends bytes as they are, and reads the answer; none: the connection ends without one.
fn raw(proxy: &Proxy, bytes: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(proxy.authority()).unwrap();
    let _ = stream.write_all(bytes);
    Response::read(BufReader::new(stream), "GET").ok().map(Response::finish)
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: mirror.lan\r\nConnection: close\r\n\r\n")
}

fn v2(command: u8, source: [u8; 4]) -> Vec<u8> {
    let addresses = [&source[..], &[127, 0, 0, 1, 1, 2, 0, 80]].concat();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, 0x11, 0, 12][..], &addresses].concat()
}

#[test]
fn the_proxy_protocol_is_believed_from_who_is_trusted_and_refused_from_others() {
    let (fake, _image) = fake_with_app();
    let lines = |trusted: &str| {
        format!("anonymous = [\"192.0.2.0/24\"]\ntrusted_proxies = [\"{trusted}\"]\naddress_from = \"proxy-protocol\"")
    };
    let proxy = Site::of(&fake.url()).clients(&lines("127.0.0.1")).start();
    let status = |header: &[u8]| raw(&proxy, &[header, request(APP).as_bytes()].concat()).map(|answer| answer.status);
    assert_eq!(status(b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n"), Some(200));
    assert_eq!(status(b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\n"), Some(403));
    assert_eq!(status(&v2(0x21, [192, 0, 2, 9])), Some(200));
    assert_eq!(status(&v2(0x21, [203, 0, 113, 9])), Some(403));
    // The balancer for itself, which is none of the network.
    assert_eq!(status(&v2(0x20, [192, 0, 2, 9])), Some(403));
    assert_eq!(status(b"PROXY UNKNOWN\r\n"), Some(403));
    let mark = proxy.beginning();
    proxy.wait(mark, "request", &[("client", "192.0.2.7"), ("status", "200")]);
    proxy.wait(mark, "request", &[("client", "203.0.113.9"), ("status", "403")]);
    // Required, and right.
    for bad in [&b""[..], b"PROXY TCP4 nonsense\r\n", &v2(0x31, [192, 0, 2, 9])] {
        assert_eq!(status(bad), None, "{bad:?}");
    }
    proxy.wait(
        mark,
        "a trusted proxy is not understood: have it send the PROXY protocol, or take it out of clients.trusted_proxies",
        &[],
    );
    // From anybody else it is a lie.
    let proxy = Site::of(&fake.url()).clients(&lines("127.99.0.1")).start();
    for lie in [&b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n"[..], &v2(0x21, [192, 0, 2, 9])] {
        let answer = raw(&proxy, &[lie, request(APP).as_bytes()].concat());
        assert!(answer.is_none_or(|answer| answer.status == 400), "{lie:?}");
    }
    assert!(proxy.events(proxy.beginning(), "request").iter().all(|event| event.field("client") == "127.0.0.1"));
}

#[test]
fn forwarded_addresses_are_believed_as_far_as_trusted_proxies_wrote_them() {
    let (fake, _image) = fake_with_app();
    let lines = |trusted: &str| {
        format!("anonymous = [\"192.0.2.0/24\"]\ntrusted_proxies = [{trusted}]\naddress_from = \"X-Forwarded-For\"")
    };
    let trusting = Site::of(&fake.url()).clients(&lines("\"127.0.0.1\", \"10.0.0.0/8\"")).start();
    let strange = Site::of(&fake.url()).clients(&lines("\"127.99.0.1\"")).start();
    for (value, status) in [
        ("192.0.2.7", 200),
        ("203.0.113.7, 192.0.2.7", 200),
        ("192.0.2.7, 203.0.113.7", 403),
        ("192.0.2.7, 10.1.1.1", 200),
        ("203.0.113.7, 10.1.1.1", 403),
        ("junk, 192.0.2.7", 200),
        ("192.0.2.7, junk", 400),
        ("", 403),
    ] {
        assert_eq!(trusting.get(APP).field("X-Forwarded-For", value).fetch().status, status, "{value}");
        assert_eq!(strange.get(APP).field("X-Forwarded-For", value).fetch().status, 403, "{value}");
    }
    // And the scheme, which leads clients to the realm.
    let users = Site::of(&fake.url()).users(&[("alice", "wonder")]).clients(&lines("\"127.0.0.1\"")).start();
    let ping = users.get("/v2/").field("X-Forwarded-Proto", "https").field("X-Forwarded-For", "203.0.113.7").fetch();
    assert!(ping.fields.get("WWW-Authenticate").unwrap().starts_with("Bearer realm=\"https://"), "{:?}", ping.fields);
    let users = Site::of(&fake.url()).users(&[("alice", "wonder")]).start();
    let ping = users.get("/v2/").field("X-Forwarded-Proto", "https").fetch();
    assert!(ping.fields.get("WWW-Authenticate").unwrap().starts_with("Bearer realm=\"http://"), "{:?}", ping.fields);
}

#[test]
fn a_client_certificate_says_who_asks() {
    let (fake, _image) = fake_with_app();
    let (servers, people, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let Pair { cert, key } = servers.server(std::net::Ipv4Addr::LOCALHOST.into());
    let tls = format!("tls = {{ certificate = \"{}\", key = \"{}\" }}", cert.display(), key.display());
    let proxy =
        Site::of(&fake.url()).top(&tls).clients(&format!("certificates = \"{}\"", people.file().display())).start();
    let curl = |pair: Option<&Pair>| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]).arg(servers.file());
        if let Some(pair) = pair {
            curl.arg("--cert").arg(&pair.cert).arg("--key").arg(&pair.key);
        }
        let output = run(curl.arg(proxy.url(APP)));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(curl(Some(&people.client("builder-7"))), "200");
    proxy.wait(proxy.beginning(), "request", &[("subject", "builder-7"), ("status", "200")]);
    assert_eq!(curl(None), "403");
    // Who is vouched for by nobody has no connection.
    assert_eq!(curl(Some(&strangers.client("builder-7"))), "000");
    let line: Value = serde_json::from_str(&proxy.admin("/decisions?limit=1").text()).unwrap();
    let identity = &line[0]["identity"];
    assert_eq!(identity["subject"], "builder-7", "{line}");
    let authority = people.file().parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(identity["issuer"], authority.as_str());
}

#[test]
fn who_asks_is_told_to_plugins_and_the_decision_record() {
    let (fake, _image) = fake_with_app();
    let site = Site::of(&fake.url()).users(&[("alice", "wonder")]);
    fs::write(site.path("groups"), "ops: alice\nall: alice\n").unwrap();
    let groups = format!("groups = \"{}\"", site.path("groups").display());
    let proxy = site.clients(&groups).start();
    assert_eq!(ask(&proxy, APP, &basic("alice", "wonder")).status, 200);
    let lines: Value = serde_json::from_str(&proxy.admin("/decisions").text()).unwrap();
    let identity = &lines[0]["identity"];
    assert_eq!((&identity["subject"], &identity["issuer"]), (&"alice".into(), &"htpasswd".into()), "{lines}");
    assert_eq!(identity["groups"], serde_json::json!(["all", "ops"]));
    // A change of the groups is one of the configuration.
    let mark = proxy.mark();
    fs::write(proxy.site().path("groups"), "ops: bob\n").unwrap();
    proxy.wait(mark, "configuration in effect", &[]);
    assert_eq!(ask(&proxy, APP, &basic("alice", "wonder")).status, 200);
    let lines: Value = serde_json::from_str(&proxy.admin("/decisions").text()).unwrap();
    assert_eq!(lines[0]["identity"].get("groups").and_then(Value::as_array).map_or(0, Vec::len), 0, "{lines}");
}

#[test]
fn an_authorization_that_is_none_is_refused_and_the_connection_goes_on() {
    let (fake, _image, proxy) = with_users("");
    for (lines, allowed) in [
        ("Authorization: Basic %%%\r\n".to_owned(), &[400][..]),
        ("Authorization: Basic\r\n".to_owned(), &[400]),
        ("Authorization: Digest x=y\r\n".to_owned(), &[400]),
        ("Authorization: Basic YWxpY2U6d29uZGVy\r\nAuthorization: Bearer x\r\n".to_owned(), &[400]),
        ("Authorization: Bearer of\u{1}the-client\r\n".to_owned(), &[400]),
        (format!("Authorization: Bearer {}\r\n", "x".repeat(64 << 10)), &[431, 400]),
        (format!("Authorization: Bearer {}\r\n", "x".repeat(20 << 10)), &[401]),
    ] {
        let text = request(APP).replace("Connection: close\r\n", &lines);
        let answer = raw(&proxy, text.as_bytes());
        assert!(answer.as_ref().is_none_or(|answer| allowed.contains(&answer.status)), "{lines:.60}: {answer:?}");
    }
    assert!(fake.seen().is_empty());
    // On one connection.
    let mut stream = TcpStream::connect(proxy.authority()).unwrap();
    for (line, status) in [("Basic %%%", 400), ("Basic YWxpY2U6d29uZGVy", 200)] {
        let text = format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: {line}\r\n\r\n");
        stream.write_all(text.as_bytes()).unwrap();
        let read = Response::read(BufReader::new(stream), "GET").unwrap();
        let (answer, rest) = read.finish_and_keep();
        assert_eq!(answer.status, status, "{line}");
        stream = rest.into_inner();
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
    let _ = stream.read(&mut [0]);
}
