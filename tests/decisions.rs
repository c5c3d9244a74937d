//! The decision record: each request leaves a line behind, in memory and in a file, that says what was decided and why.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tidegate_tests::content::sha256;
use tidegate_tests::fake::{Act, Reply};
use tidegate_tests::guests::{self, Does};
use tidegate_tests::plugins::allowlist;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;
use tidegate_tests::{HANG, eventually};

use crate::{APP, assert_whole, fake_with_app};

/// A site that blocks redis, and the file of its record.
fn recorded(url: &str) -> (Site, PathBuf) {
    let site = Site::of(url)
        .with([("10-allowlist.wasm", &allowlist()), ("10-allowlist.toml", b"block = [\"docker.io/library/redis\"]")]);
    let file = site.path("decisions.jsonl");
    let site = site.top(&format!("[decisions]\nfile = \"{}\"\nkeep = 3", file.display()));
    (site, file)
}

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// The last decisions by the admin listener.
fn last(proxy: &Proxy, query: &str) -> Vec<Value> {
    let answer = proxy.admin(&format!("/decisions{query}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_str(&answer.text()).unwrap()
}

#[test]
fn each_request_leaves_a_line_with_what_was_decided() {
    let (fake, image) = fake_with_app();
    let (site, file) = recorded(&fake.url());
    let proxy = site.start();
    assert_whole(&proxy.get(&format!("{APP}?ns=docker.io")).field("User-Agent", "me/1").fetch(), &image.digest());
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    assert_eq!(proxy.get("/v2/library/redis/manifests/7").fetch().status, 403);
    // What asks for no content leaves none.
    assert_eq!(proxy.get("/v2/").fetch().status, 200);
    eventually("three lines are written", || lines(&file).len() == 3);
    let lines = lines(&file);
    let [first, second, denied] = lines.as_slice() else { panic!("{lines:?}") };
    for (key, value) in [
        ("client", "127.0.0.1"),
        ("user_agent", "me/1"),
        ("method", "GET"),
        ("addressing", "ns"),
        ("content", "manifest"),
        ("registry", "docker.io"),
        ("repository", "library/app"),
        ("reference", "1"),
        ("decision", "allow"),
        ("digest", &image.digest()),
    ] {
        assert_eq!(first[key], *value, "{key}: {first}");
    }
    assert_eq!((&first["status"], &first["generation"]), (&200.into(), &1.into()));
    let decided = &first["decisions"][0];
    for (key, value) in [("plugin", "allowlist"), ("hook", "admission"), ("mode", "enforce"), ("ruling", "allow")] {
        assert_eq!(decided[key], value, "{decided}");
    }
    let place = json!([{ "registry": "docker.io", "repository": "library/app" }]);
    assert_eq!((&first["routes"], &first["cache"]), (&place, &json!({ "state": "absent" })));
    let tried = &first["upstreams"][0];
    assert_eq!((&tried["registry"], &tried["outcome"]), (&"docker.io".into(), &"ok".into()), "{first}");
    assert_eq!((&second["cache"]["state"], &second["cache"]["digest"]), (&"fresh".into(), &image.digest().into()));
    assert_eq!((second["upstreams"].is_null(), denied["routes"].is_null()), (true, true), "{second} {denied}");
    assert_eq!(denied["decisions"][0]["ruling"], "deny", "{denied}");
    assert_eq!(first["source"], "upstream", "{first}");
    assert_eq!(second["source"], "cache", "{second}");
    assert_eq!(
        (&denied["status"], &denied["decision"], &denied["policy"]),
        (&403.into(), &"deny".into(), &"allowlist".into())
    );
    assert!(denied["reason"].as_str().unwrap().contains("docker.io/library/redis"), "{denied}");
    assert!(first["time"].as_str() < denied["time"].as_str(), "{first} {denied}");
}

#[test]
fn the_last_decisions_are_shown_newest_first() {
    let (fake, image) = fake_with_app();
    let (site, _) = recorded(&fake.url());
    let proxy = site.start();
    for _ in 0..3 {
        assert_whole(&proxy.get(APP).fetch(), &image.digest());
    }
    assert_eq!(proxy.get("/v2/library/redis/manifests/7").fetch().status, 403);
    eventually("the denial is remembered", || last(&proxy, "?decision=deny").len() == 1);
    let all = last(&proxy, "");
    assert_eq!(all.len(), 3, "only the last three are kept");
    assert_eq!(all[0]["repository"], "library/redis");
    assert_eq!(last(&proxy, "?limit=1").len(), 1);
    assert_eq!(last(&proxy, "?image=app:1").len(), 2);
    assert_eq!(last(&proxy, "?image=docker.io/library/redis").len(), 1);
    assert_eq!(last(&proxy, "?image=app:2").len(), 0);
    assert_eq!(last(&proxy, "?plugin=allowlist&decision=deny").len(), 1);
    for bad in ["?decision=maybe", "?limit=all", "?image=a%20b", "?color=red"] {
        assert_eq!(proxy.admin(&format!("/decisions{bad}")).status, 400, "{bad}");
    }
}

#[test]
fn a_file_that_is_moved_away_is_begun_anew_and_the_end_loses_nothing() {
    let (fake, image) = fake_with_app();
    let (site, file) = recorded(&fake.url());
    let proxy = site.start();
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    eventually("a line is written", || lines(&file).len() == 1);
    let moved = proxy.site().path("decisions.jsonl.1");
    fs::rename(&file, &moved).unwrap();
    for _ in 0..20 {
        assert_whole(&proxy.get(APP).fetch(), &image.digest());
    }
    proxy.terminate();
    assert_eq!((lines(&moved).len(), lines(&file).len()), (1, 20));
}

#[test]
fn a_line_that_waits_for_a_shadow_is_written_before_the_end() {
    let (fake, image) = fake_with_app();
    let (site, file) = recorded(&fake.url());
    site.install("20-shade.wasm", &guests::admission(Does::Loops));
    site.install("20-shade.settings.toml", b"mode = \"shadow\"\ndeadline_ms = 10000");
    let proxy = site.start();
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    let (_, status) = proxy.terminate();
    assert!(status.success(), "{status}");
    // The shadow takes longer than the end waits: what the others decided is there.
    let lines = lines(&file);
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!((&line["digest"], &line["decision"]), (&image.digest().into(), &"allow".into()), "{line}");
}

#[test]
fn a_record_on_standard_output_is_read_from_there() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).top("[decisions]\nfile = \"-\"").start();
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    let line = proxy.process().out.wait(0, HANG, |line| serde_json::from_str::<Value>(line).ok()).expect("a line");
    assert_eq!((&line["repository"], &line["status"]), (&"library/app".into(), &200.into()), "{line}");
    assert_eq!(line["digest"], image.digest(), "{line}");
    let (site, status) = proxy.terminate();
    assert!(status.success() && !site.path("-").exists());
}

#[test]
fn a_file_that_cannot_be_opened_is_told_at_start() {
    let site = Site::of("http://127.0.0.1:1");
    let file = site.path("no/such/folder/d.jsonl");
    let output = site.top(&format!("[decisions]\nfile = \"{}\"", file.display())).run(&["serve"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("decisions.file") && told.contains("d.jsonl"), "{told}");
}

#[test]
fn the_verb_decisions_prints_what_the_running_proxy_decided() {
    let (fake, image) = fake_with_app();
    let (site, _) = recorded(&fake.url());
    let site = site.with_fixed_ports();
    site.write_config();
    let run = |arguments: &[&str]| {
        let output = site.run_as_is(arguments);
        let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code(), told)
    };
    let (code, told) = run(&["decisions"]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("no proxy answers"), "{told}");
    let proxy = site.start();
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    assert_eq!(proxy.get("/v2/library/redis/manifests/7").fetch().status, 403);
    eventually("the denial is remembered", || last(&proxy, "?decision=deny").len() == 1);
    let (code, told) = run(&["decisions", "docker.io/library/redis"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("GET docker.io/library/redis:7  403") && told.contains("(policy allowlist)"), "{told}");
    let (_, told) = run(&["decisions", "--json"]);
    let lines: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["repository"], "library/app", "the latest stands last: {told}");
    assert_eq!(lines.len(), 2);
}

#[test]
fn attempts_that_failed_and_plugins_in_shadow_stand_in_the_line() {
    let (fake, image) = fake_with_app();
    let (site, file) = recorded(&fake.url());
    site.install("20-shade.wasm", &guests::admission(Does::Denies("not today")));
    site.install("20-shade.settings.toml", b"mode = \"shadow\"");
    fake.next(APP, Act::Reply(Reply::status(503)));
    let proxy = site.start();
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    eventually("a line is written", || lines(&file).len() == 1);
    let line = &lines(&file)[0];
    let outcomes: Vec<&Value> = line["upstreams"].as_array().unwrap().iter().map(|tried| &tried["outcome"]).collect();
    assert_eq!(outcomes, ["status", "ok"], "{line}");
    assert_eq!(line["upstreams"][0]["status"], 503, "{line}");
    let shade = line["decisions"].as_array().unwrap().iter().find(|decided| decided["plugin"] == "shade");
    let shade = shade.unwrap_or_else(|| panic!("no shadow: {line}"));
    assert_eq!(
        (&shade["mode"], &shade["ruling"], &shade["detail"]),
        (&"shadow".into(), &"deny".into(), &"not today".into())
    );
    assert_eq!(line["decision"], "allow");
}

#[test]
fn the_live_view_lists_plugins_how_they_fare_and_what_is_not_loaded() {
    let (fake, image) = fake_with_app();
    let (site, _) = recorded(&fake.url());
    let site = site.with_fixed_ports();
    site.install("20-trap.wasm", &guests::admission(Does::Traps));
    site.install("20-trap.settings.toml", b"on_error = \"skip\"\nisolation = \"fresh\"\ngive_up_after = 2");
    let proxy = site.start();
    for _ in 0..3 {
        assert_whole(&proxy.get(APP).fetch(), &image.digest());
    }
    proxy.refusal("allowlist", |site| site.install("10-allowlist.toml", b"blokc = []"));
    let answer = proxy.admin("/plugins");
    assert_eq!(answer.status, 200);
    let list: Value = serde_json::from_str(&answer.text()).unwrap();
    let [first, trap] = list["plugins"].as_array().unwrap().as_slice() else { panic!("{list}") };
    assert_eq!(
        (&first["name"], &first["file"], &first["mode"]),
        (&"allowlist".into(), &"10-allowlist.wasm".into(), &"enforce".into())
    );
    assert_eq!((&first["calls"], &first["failures"], &first["given_up"]), (&3.into(), &0.into(), &false.into()));
    assert_eq!(first["digest"], sha256(&allowlist()));
    assert!(first["mean_us"].as_f64().unwrap() > 0.0, "{first}");
    assert_eq!((&trap["isolation"], &trap["failures"], &trap["given_up"]), (&"fresh".into(), &2.into(), &true.into()));
    assert!(trap["last_error"]["reason"].as_str().unwrap().contains("unreachable"), "{trap}");
    let refused = &list["refused"][0];
    assert_eq!((&refused["plugin"], &refused["file"]), (&"allowlist".into(), &"10-allowlist.wasm".into()), "{list}");
    assert!(refused["reason"].as_str().unwrap().contains("blokc"), "{list}");

    let output = site.run_as_is(&["plugin", "ls"]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{told}");
    for part in ["allowlist  10-allowlist.wasm  sha256:", "3 calls", "given up", "not loaded since", "blokc"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    proxy.reload(|site| site.install("10-allowlist.toml", b"block = [\"quay.io\"]"));
    let mended = || serde_json::from_str::<Value>(&proxy.admin("/plugins").text()).unwrap()["refused"] == json!([]);
    eventually("nothing is refused any more", mended);
}

#[test]
fn explain_tells_what_would_be_decided_as_a_line_of_the_record() {
    let (site, _) = recorded("http://127.0.0.1:1");
    let output = site.run(&["explain", "redis:7", "--json"]);
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&line["decision"], &line["policy"], &line["status"]),
        (&"deny".into(), &"allowlist".into(), &403.into())
    );
    assert_eq!((&line["repository"], &line["reference"]), (&"library/redis".into(), &"7".into()), "{line}");
    let output = site.run(&["explain", "nginx", "--json"]);
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&line["decision"], &line["cache"]), (&"allow".into(), &json!({ "state": "absent" })), "{line}");
    assert_eq!(line["routes"], json!([{ "registry": "docker.io", "repository": "library/nginx" }]));
    assert_eq!(line["decisions"][0]["ruling"], "allow", "{line}");
}
