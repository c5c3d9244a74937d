//! `tidegate replay`: recorded requests against other plugins.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tidegate_tests::eventually;
use tidegate_tests::fake::{Act, Fake, Reply};
use tidegate_tests::image::Image;
use tidegate_tests::plugins::{allowlist, cooldown, failover, teller};
use tidegate_tests::process::{offline, run};
use tidegate_tests::program::tidegate;
use tidegate_tests::site::Site;

use crate::{APP, assert_whole, fake_with_app};

/// Repositories that are pulled.
const REPOSITORIES: usize = 24;
/// How often each of them is asked for.
const ROUNDS: usize = 4;

/// A site that records, and the file of its record.
fn recorded(url: &str) -> (Site, PathBuf) {
    let site = Site::of(url);
    let file = site.path("decisions.jsonl");
    let site = site.top(&format!("[decisions]\nfile = \"{}\"", file.display()));
    (site, file)
}

/// A folder of plugins in a site, beside the one that it serves with.
fn plugins<const N: usize>(site: &Site, files: [(&str, &[u8]); N]) -> PathBuf {
    let folder = site.path("others");
    fs::create_dir_all(&folder).unwrap();
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).unwrap();
    }
    folder
}

/// Replays: the exit code, and what is said.
fn replay(record: &Path, plugins: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let mut command = std::process::Command::new(tidegate());
    let output = run(offline(&mut command).arg("replay").arg(record).arg("--plugins").arg(plugins).args(more));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn wait_for_lines(file: &Path, many: usize) {
    eventually("all requests are recorded", || fs::read_to_string(file).is_ok_and(|text| text.lines().count() == many));
}

#[test]
fn an_hour_against_a_changed_list_names_exactly_the_pulls_that_change() {
    let fake = Fake::start();
    let image = Image::small("app");
    for number in 0..REPOSITORIES {
        fake.put_image(&image, &format!("team-{}/app-{number}:1", number % 3));
    }
    let (site, file) = recorded(&fake.url());
    let before: &[u8] = b"block = [\"docker.io/team-1/*\"]";
    let site = site.with([("10-allowlist.wasm", &allowlist()), ("10-allowlist.toml", before)]);
    let proxy = site.start();
    for round in 0..ROUNDS {
        for number in 0..REPOSITORIES {
            let path = format!("/v2/team-{}/app-{number}/manifests/1", number % 3);
            let status =
                if round % 2 == 0 { proxy.get(&path).fetch().status } else { proxy.head(&path).fetch().status };
            assert_eq!(status, if number % 3 == 1 { 403 } else { 200 }, "{path}");
            let list = format!("/v2/team-{}/app-{number}/tags/list", number % 3);
            proxy.get(&list).fetch();
            proxy.get(&format!("/v2/team-{}/app-{number}/blobs/{}", number % 3, image.digest())).fetch();
        }
    }
    let requests = REPOSITORIES * ROUNDS * 3;
    wait_for_lines(&file, requests);
    let same = plugins(&site, [("10-allowlist.wasm", &allowlist()), ("10-allowlist.toml", before)]);
    let (code, out, complaint) = replay(&file, &same, &[]);
    assert_eq!(code, Some(0), "the same policy changes nothing: {out}{complaint}");
    assert!(out.contains(&format!("{requests} requests replayed, 0 would change")), "{out}");

    // Of team-1 all but app-4 is let in, and app-3 of team-0 is kept out.
    let after = b"block = [\"docker.io/team-1/app-4\", \"docker.io/team-0/app-3\"]";
    let other = plugins(&site, [("10-allowlist.toml", after)]);
    let (code, out, complaint) = replay(&file, &other, &[]);
    assert_eq!(code, Some(1), "{out}{complaint}");
    let mut expected: BTreeMap<String, bool> = (0..REPOSITORIES)
        .filter(|number| number % 3 == 1 && *number != 4)
        .map(|number| (format!("docker.io/team-1/app-{number}"), false))
        .collect();
    expected.insert("docker.io/team-0/app-3".to_owned(), true);
    let changes = expected.len() * 3;
    assert!(out.contains(&format!("{requests} requests replayed, {} would change", changes * ROUNDS)), "{out}");
    let lines: Vec<&str> = out.lines().filter(|line| line.contains(" -> ")).collect();
    assert_eq!(lines.len(), changes, "equal ones are told once: {out}");
    for (repository, is_denied) in expected {
        let of_it: Vec<&&str> = lines
            .iter()
            .filter(|line| {
                line.split_whitespace().any(|word| {
                    word == repository
                        || word.strip_prefix(&repository).is_some_and(|rest| rest.starts_with([':', '@']))
                })
            })
            .collect();
        assert_eq!(of_it.len(), 3, "manifest, tags and blob of {repository}: {out}");
        for line in of_it {
            assert!(line.ends_with(&format!("({ROUNDS} requests)")), "{line}");
            let (was, now) = line.split_once(" -> ").unwrap();
            if is_denied {
                assert!(was.ends_with("allow") && now.contains("deny by allowlist"), "{line}");
            } else {
                assert!(was.contains("deny by allowlist") && now.starts_with("allow"), "{line}");
            }
        }
    }
}

#[test]
fn other_mirrors_and_other_steps_are_changes() {
    let (fake, image) = fake_with_app();
    let (site, file) = recorded(&fake.url());
    let rules = |mirrors: &str, on: &str| {
        format!("[[upstream]]\nprefix = \"docker.io\"\nmirrors = [{mirrors}]\nsource = \"last\"\non = {{ {on} }}")
    };
    let before = rules("", "status-5xx = \"retry\"");
    let site = site.with([("20-failover.wasm", &failover()), ("20-failover.toml", before.as_bytes())]);
    fake.next(APP, Act::Reply(Reply::status(503)));
    let proxy = site.start();
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    wait_for_lines(&file, 1);
    let folder = plugins(&site, [("20-failover.wasm", &failover()), ("20-failover.toml", before.as_bytes())]);
    let (code, out, complaint) = replay(&file, &folder, &[]);
    assert_eq!(code, Some(0), "{out}{complaint}");
    plugins(&site, [("20-failover.toml", rules("", "status-5xx = \"stop\"").as_bytes())]);
    let (code, out, _) = replay(&file, &folder, &[]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("after failures") && out.contains("-> stop"), "{out}");
    plugins(&site, [("20-failover.toml", rules("\"mirror.lan\"", "status-5xx = \"retry\"").as_bytes())]);
    let (code, out, _) = replay(&file, &folder, &[]);
    assert_eq!(code, Some(1), "{out}");
    let change = "from docker.io/library/app -> from mirror.lan/library/app, then docker.io/library/app";
    assert!(out.contains(change), "{out}");
}

#[test]
fn facts_time_and_state_are_those_of_the_record() {
    let (fake, image) = fake_with_app();
    let (site, file) = recorded(&fake.url());
    let site = site.plugins("headers = [\"x-tell\"]");
    let proxy = site.start();
    for _ in 0..2 {
        assert_whole(&proxy.get(APP).field("X-Tell", "me").field("User-Agent", "agent/7").fetch(), &image.digest());
    }
    wait_for_lines(&file, 2);
    // It denies with what it is told, and counts in its state.
    let folder = plugins(&site, [("10-teller.wasm", &teller())]);
    let (code, out, complaint) = replay(&file, &folder, &[]);
    assert_eq!(code, Some(1), "{out}{complaint}");
    let told: Vec<&str> = out.lines().filter(|line| line.contains("deny by teller")).collect();
    assert_eq!(told.len(), 2, "{out}");
    assert!(told[0].contains("agent=agent/7") && told[0].contains("cache=absent"), "{out}");
    assert!(told[1].contains("cache=fresh") && told[1].contains(&image.digest()), "{out}");
    assert!(told[0].contains("count=1") && told[1].contains("count=2"), "the state lives along: {out}");
    let state = site.path("kept");
    fs::create_dir(&state).unwrap();
    let kept = r#"{"count":{"value":"40"}}"#;
    fs::write(state.join("teller.json"), kept).unwrap();
    let (_, out, _) = replay(&file, &folder, &["--state", state.to_str().unwrap()]);
    assert!(out.contains("count=41") && out.contains("count=42"), "{out}");
    assert_eq!(fs::read_to_string(state.join("teller.json")).unwrap(), kept, "it is only read");
}

#[test]
fn a_bad_record_is_refused_with_its_line_and_a_half_line_at_its_end_is_told() {
    let (fake, image) = fake_with_app();
    let (site, file) = recorded(&fake.url());
    let proxy = site.start();
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    wait_for_lines(&file, 1);
    let folder = plugins(&site, [("10-allowlist.wasm", &allowlist()), ("10-allowlist.toml", b"block = [\"quay.io\"]")]);
    let good = fs::read_to_string(&file).unwrap();
    let of = |text: String| {
        let file = site.path("other.jsonl");
        fs::write(&file, text).unwrap();
        replay(&file, &folder, &[])
    };
    let (code, out, complaint) = of(format!("{good}{}", &good[..50]));
    assert_eq!(code, Some(0), "{out}{complaint}");
    assert!(complaint.contains("other.jsonl:2: ") && out.contains("1 request replayed"), "{out}{complaint}");
    for bad in ["{}\n".to_owned(), "hello\n".to_owned(), good.replace("docker.io", "a b"), good.replace("GET", "PUT")] {
        let (code, _, complaint) = of(format!("{good}{bad}"));
        assert_eq!(code, Some(2), "{bad}");
        assert!(complaint.contains("other.jsonl:2: "), "{complaint}");
    }
    let (code, _, complaint) = replay(&site.path("absent"), &folder, &[]);
    assert_eq!(code, Some(2), "{complaint}");
    let bad = plugins(&site, [("10-allowlist.toml", b"blokc = []")]);
    let (code, _, complaint) = replay(&file, &bad, &[]);
    assert_eq!(code, Some(2), "{complaint}");
    assert!(complaint.contains("blokc"), "{complaint}");
}

#[test]
fn a_changed_inspection_names_exactly_the_pulls_that_change_where_manifests_are_at_hand() {
    let fake = Fake::start();
    let images: Vec<Image> = (0..6).map(|number| Image::small(&format!("app-{number}"))).collect();
    for (number, image) in images.iter().enumerate() {
        fake.put_image(image, &format!("team/app-{number}:1"));
    }
    let rules = |excepted: &[usize]| {
        let excepted: Vec<String> = excepted.iter().map(|number| format!("\"docker.io/team/app-{number}\"")).collect();
        format!("days = 7\nexcept = [{}]", excepted.join(", "))
    };
    let (site, file) = recorded(&fake.url());
    let before = rules(&[0, 1, 2]);
    let site = site.with([("30-cooldown.wasm", &cooldown()), ("30-cooldown.toml", before.as_bytes())]);
    let proxy = site.start();
    for (number, image) in images.iter().enumerate() {
        for reference in ["1", &image.digest()] {
            let path = format!("/v2/team/app-{number}/manifests/{reference}");
            let status = if number < 3 { 200 } else { 403 };
            assert_eq!((proxy.get(&path).fetch().status, proxy.head(&path).fetch().status), (status, status), "{path}");
        }
        proxy.get(&format!("/v2/team/app-{number}/tags/list")).fetch();
    }
    wait_for_lines(&file, 30);
    let folder = plugins(&site, [("30-cooldown.wasm", &cooldown()), ("30-cooldown.toml", before.as_bytes())]);
    let cache = ["--cache", site.path("cache").to_str().unwrap()].map(str::to_owned);
    let with_cache = || replay(&file, &folder, &[&cache[0], &cache[1]]);
    let (code, out, complaint) = with_cache();
    assert_eq!(code, Some(0), "the same policy changes nothing: {out}{complaint}");
    assert!(out.contains("30 requests replayed, 0 would change") && !out.contains("not replayed"), "{out}");

    // app-2 is excepted no more, and app-3 is.
    plugins(&site, [("30-cooldown.toml", rules(&[0, 1, 3]).as_bytes())]);
    let (code, out, complaint) = with_cache();
    assert_eq!(code, Some(1), "{out}{complaint}");
    assert!(out.contains("30 requests replayed, 8 would change"), "{out}");
    let changes: Vec<&str> = out.lines().filter(|line| line.contains(" -> ")).collect();
    assert_eq!(changes.len(), 4, "by tag and by digest: {out}");
    for line in changes {
        assert!(line.ends_with("(2 requests)"), "{line}");
        let (was, now) = line.split_once(" -> ").unwrap();
        if was.contains("docker.io/team/app-2") {
            assert!(was.ends_with("allow") && now.contains("deny by cooldown"), "{line}");
        } else {
            assert!(was.contains("docker.io/team/app-3") && was.contains("hold by cooldown"), "{line}");
            assert!(now.starts_with("allow"), "{line}");
        }
    }
    let (code, out, complaint) = replay(&file, &folder, &[]);
    assert_eq!(code, Some(0), "{out}{complaint}");
    assert!(out.contains("6 requests replayed, 0 would change"), "the lists of tags: {out}");
    assert!(out.contains("24 not replayed") && out.contains("--cache gives manifests"), "{out}");
}

#[test]
fn a_plugin_that_reads_the_clock_gets_the_time_of_the_record() {
    let (fake, image) = fake_with_app();
    let (site, file) = recorded(&fake.url());
    let proxy = site.start();
    for _ in 0..4 {
        assert_whole(&proxy.get(APP).fetch(), &image.digest());
    }
    wait_for_lines(&file, 4);
    let times =
        ["2025-03-01T10:00:00.000Z", "2025-03-03T09:59:59.000Z", "2025-03-03T10:00:01.000Z", "2025-04-01T10:00:00Z"];
    let text = fs::read_to_string(&file).unwrap();
    let lines = text.lines().zip(times).map(|(line, time)| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["time"] = time.into();
        format!("{line}\n")
    });
    let older = site.path("older.jsonl");
    fs::write(&older, lines.collect::<String>()).unwrap();
    let folder = plugins(&site, [("30-cooldown.wasm", &cooldown()), ("30-cooldown.toml", b"days = 2")]);
    let (code, out, complaint) = replay(&older, &folder, &["--cache", site.path("cache").to_str().unwrap()]);
    assert_eq!(code, Some(1), "{out}{complaint}");
    assert!(out.contains("4 requests replayed, 2 would change"), "held for two days, then let go: {out}");
    assert!(out.contains(times[0]) && out.contains("2025-03-03 10:00"), "until when it is held: {out}");
}
