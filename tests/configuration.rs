//! A change of the configuration while the program runs: a good file takes effect whole, a bad one changes nothing.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;

use rustix::process::Signal;
use tidegate_tests::content::Content;
use tidegate_tests::fake::{Act, Fake};
use tidegate_tests::gate::Gate;
use tidegate_tests::guests;
use tidegate_tests::http::{self, End};
use tidegate_tests::proxy::{Event, Proxy};
use tidegate_tests::site::Site;
use tidegate_tests::{HANG, eventually, own_address};

use crate::{APP, assert_caches, assert_pulls, assert_whole, fake_with_app, proxied};

/// Changes the file and waits until it is in effect.
fn takes_effect(proxy: &Proxy, change: impl FnOnce(String) -> String) -> Event {
    let mark = proxy.mark();
    proxy.site().edit_config(change);
    proxy.wait(mark, "configuration in effect", &[])
}

/// Changes the file and waits until it is refused. Gives the reason.
fn is_refused(proxy: &Proxy, change: impl FnOnce(String) -> String) -> String {
    let mark = proxy.mark();
    proxy.site().edit_config(change);
    let event = proxy.wait(mark, "configuration not loaded", &[("in_effect", "the configuration before")]);
    assert!(proxy.events(mark, "configuration in effect").is_empty());
    event.field("reason")
}

/// The value of a metric without labels, or with these.
fn metric(proxy: &Proxy, name: &str) -> String {
    let text = proxy.admin("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
}

#[test]
fn t2_a_registry_that_is_added_is_served_at_once() {
    let (_fake, image, proxy) = proxied();
    let other = Fake::start();
    let content = Content::noise(1, 1000);
    other.put_blob("team/app", content.clone());
    let path = format!("/v2/other.lan/team/app/blobs/{}", content.digest());
    assert_eq!(proxy.get(&path).fetch().status, 404);
    takes_effect(&proxy, |text| format!("{text}\n[registries.\"other.lan\"]\nurl = \"{}\"\n", other.url()));
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    assert_pulls(&proxy, &image);
    assert_eq!(metric(&proxy, "tidegate_config_generation"), "2");
    assert_eq!(metric(&proxy, "tidegate_config_loads_total{outcome=\"ok\"}"), "1");
}

#[test]
fn t2_a_bad_file_changes_nothing_and_is_reported_once_with_line_and_key() {
    let (_fake, image, proxy) = proxied();
    let secret = proxy.site().path("secret");
    for (line, key) in [
        ("default_registry = 5".to_owned(), "default_registry"),
        ("lisen = \"127.0.0.1:0\"".to_owned(), "lisen"),
        ("default_registry = \"http://x\"".to_owned(), "default_registry"),
        ("this is no TOML".to_owned(), ""),
        (format!("tls = {{ certificate = \"{0}\", key = \"{0}\" }}", secret.display()), "tls.certificate"),
    ] {
        let mark = proxy.mark();
        let before = fs::read_to_string(proxy.site().path("tidegate.toml")).unwrap();
        let reason = is_refused(&proxy, |text| format!("{line}\n{text}"));
        assert!(reason.contains("tidegate.toml:1: ") && reason.contains(key), "{line}: {reason}");
        assert_pulls(&proxy, &image);
        // Looked at again, it is as bad as it was: nothing more to say.
        takes_effect(&proxy, |_| before);
        assert_eq!(proxy.events(mark, "configuration not loaded").len(), 1, "{line}");
    }
    assert_eq!(metric(&proxy, "tidegate_config_loads_total{outcome=\"failed\"}"), "5");
}

#[test]
fn t2_a_file_that_is_empty_is_no_wish_for_the_defaults() {
    let (_fake, image, proxy) = proxied();
    for text in ["", "\n\n", "# nothing yet\n"] {
        let before = fs::read_to_string(proxy.site().path("tidegate.toml")).unwrap();
        let reason = is_refused(&proxy, |_| text.to_owned());
        assert!(reason.contains("is empty"), "{text:?}: {reason}");
        assert_pulls(&proxy, &image);
        takes_effect(&proxy, |_| before);
    }
}

#[test]
fn t2_a_file_that_is_gone_changes_nothing() {
    let (_fake, image, proxy) = proxied();
    let (file, away) = (proxy.site().path("tidegate.toml"), proxy.site().path("away.toml"));
    let mark = proxy.mark();
    fs::rename(&file, &away).unwrap();
    let event = proxy.wait(mark, "configuration not loaded", &[]);
    assert!(event.field("reason").contains("cannot be read"), "{}", event.field("reason"));
    assert_pulls(&proxy, &image);
    fs::rename(&away, &file).unwrap();
    proxy.wait(mark, "configuration in effect", &[]);
    assert_pulls(&proxy, &image);
}

#[test]
fn t2_a_secret_that_cannot_be_read_is_refused_until_it_can() {
    let (fake, image, proxy) = proxied();
    let secret = proxy.site().path("password");
    let named = |text: String| {
        let lines = format!("username = \"ferry\"\npassword_file = \"{}\"\n", secret.display());
        text.replace("[registries.\"docker.io\"]\n", &format!("[registries.\"docker.io\"]\n{lines}"))
    };
    let mark = proxy.mark();
    let reason = is_refused(&proxy, named);
    assert!(reason.contains("password_file") && reason.contains("password cannot be read"), "{reason}");
    assert_pulls(&proxy, &image);
    // What it names is mended: the file itself does not change.
    fake.require_basic("ferry", "boat");
    fs::write(&secret, "boat\n").unwrap();
    proxy.wait(mark, "configuration in effect", &[]);
    let content = Content::noise(2, 1000);
    let path = fake.put_blob("library/app", content.clone());
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    assert!(!proxy.log().contains("boat"));
}

#[test]
fn t2_the_listener_moves_and_requests_of_the_old_one_finish() {
    let (fake, image, proxy) = proxied();
    let (content, gate) = (Content::noise(3, 3_000_000), Gate::new());
    let path = fake.put_blob("library/app", content.clone());
    fake.next(&path, Act::Hold(1_000_000, gate.clone()));
    let mut client = proxy.get(&path).open().unwrap();
    let mut first = [0; 1000];
    let read = client.read_some(&mut first).unwrap();
    let address = own_address();
    let text = |text: String| text.replace("listen = \"127.0.0.1:0\"", &format!("listen = \"{address}:5005\""));
    takes_effect(&proxy, text);
    assert_whole(&http::get(&format!("http://{address}:5005{APP}")).fetch(), &image.digest());
    eventually("the old address is closed", || TcpStream::connect(proxy.authority()).is_err());
    gate.open();
    let (rest, end) = client.drain(|offset, piece| assert!(content.holds(read as u64 + offset, piece)));
    assert_eq!((read as u64 + rest, end), (content.len(), End::Whole));
}

#[test]
fn t2_a_port_that_is_taken_refuses_the_whole_file() {
    let (_fake, image, proxy) = proxied();
    let holds = TcpListener::bind((own_address(), 0)).unwrap();
    let address = holds.local_addr().unwrap();
    let reason = is_refused(&proxy, |text| {
        let text = text.replace("listen = \"127.0.0.1:0\"", &format!("listen = \"{address}\""));
        format!("default_registry = \"quay.io\"\n{text}")
    });
    assert!(
        reason.contains("tidegate.toml:2: listen: ") && reason.contains("another program listens there"),
        "{reason}"
    );
    // Neither key is in effect.
    assert_pulls(&proxy, &image);
    // Once the port is free, the same file takes effect by itself.
    let mark = proxy.mark();
    drop(holds);
    proxy.wait(mark, "configuration in effect", &[]);
}

#[test]
fn t2_the_admin_listener_moves_and_ends() {
    let (_fake, _image, proxy) = proxied();
    let address = own_address();
    takes_effect(&proxy, |text| text.replace("admin = \"127.0.0.1:0\"", &format!("admin = \"{address}:5001\"")));
    assert_eq!(http::get(&format!("http://{address}:5001/readyz")).fetch().status, 200);
    takes_effect(&proxy, |text| text.replace(&format!("admin = \"{address}:5001\""), "admin = \"off\""));
    eventually("nobody answers", || TcpStream::connect((address, 5001)).is_err());
}

#[test]
fn t2_a_plugin_folder_that_is_missing_is_refused() {
    let (_fake, image, proxy) = proxied();
    let reason = is_refused(&proxy, |text| text.replace("/plugins.d\"", "/nowhere\""));
    assert!(reason.contains("plugins.dir") && reason.contains("is no folder"), "{reason}");
    assert_pulls(&proxy, &image);
}

#[test]
fn t2_what_needs_a_start_is_named_and_the_rest_takes_effect() {
    let (fake, image, proxy) = proxied();
    let mark = proxy.mark();
    takes_effect(&proxy, |text| {
        let text = text.replace("/cache\"", "/cache2\"").replace("/state\"", "/state2\"");
        format!("{text}\n[registries.\"other.lan\"]\nurl = \"{}\"\n", fake.url())
    });
    let keys = "cache.dir, plugins.state_dir";
    proxy.wait(mark, "a change of these keys takes effect at the next start; all else is in effect", &[("keys", keys)]);
    assert_whole(&proxy.get("/v2/other.lan/library/app/manifests/1").fetch(), &image.digest());
    assert!(!proxy.site().path("cache2").exists());
}

#[test]
fn t2_an_upstream_that_is_removed_in_the_middle_of_a_pull_finishes_it() {
    let (fake, content) = (Fake::start(), Content::noise(4, 3_000_000));
    let path = fake.put_blob("library/app", content.clone());
    let proxy = Site::of(&fake.url()).registry("other.lan", &fake.url(), "").start();
    let gate = Gate::new();
    // It breaks as well: what is asked again is asked of the upstream of before.
    fake.next(&path, Act::Hold(1_000_000, gate.clone()));
    let named = format!("/v2/other.lan/library/app/blobs/{}", content.digest());
    let mut client = proxy.get(&named).open().unwrap();
    let mut first = [0; 1000];
    let read = client.read_some(&mut first).unwrap();
    takes_effect(&proxy, |text| text.split("[registries.\"other.lan\"]").next().unwrap().to_owned());
    assert_eq!(proxy.get("/v2/other.lan/library/app/manifests/1").fetch().status, 404);
    gate.open();
    let (rest, end) = client.drain(|offset, piece| assert!(content.holds(read as u64 + offset, piece)));
    assert_eq!((read as u64 + rest, end), (content.len(), End::Whole));
}

#[test]
fn t2_a_hundred_changes_lose_no_pull() {
    let (fake, image, proxy) = proxied();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pulls = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) || count == 0 {
                assert_pulls(&proxy, &image);
                count += 1;
            }
        });
        for number in 0..100 {
            let mark = proxy.mark();
            let name = format!("registries.\"r{number}.lan\"");
            proxy.site().edit_config(|text| format!("{text}\n[{name}]\nurl = \"{}\"\n", fake.url()));
            proxy.process().signal(Signal::HUP);
            proxy.wait(mark, "configuration in effect", &[]);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        pulls.join().unwrap();
    });
    assert_whole(&proxy.get("/v2/r99.lan/library/app/manifests/1").fetch(), &image.digest());
}

#[test]
fn t2_a_signal_reads_the_file_again_and_says_so() {
    let (_fake, _image, proxy) = proxied();
    let mark = proxy.mark();
    proxy.process().signal(Signal::HUP);
    assert_eq!(proxy.wait(mark, "configuration in effect", &[]).field("generation"), "2");
}

#[test]
fn t2_a_file_that_is_half_written_does_not_take_effect_though_it_parses() {
    let (_fake, image, proxy) = proxied();
    let file = proxy.site().path("tidegate.toml");
    let text = fs::read_to_string(&file).unwrap();
    // What is there first is a whole file of its own, and would leave docker.io without its address.
    let (first, rest) = text.split_at(text.find("[registries").unwrap());
    // It watches by now.
    takes_effect(&proxy, |text| text);
    let mark = proxy.mark();
    let mut writes = fs::File::create(&file).unwrap();
    writes.write_all(first.as_bytes()).unwrap();
    // A plugin that comes later takes effect meanwhile, after as long a time of rest.
    for stamp in 1..=3 {
        proxy.reload(|site| site.install("10-later.wasm", &guests::stamped(stamp)));
    }
    assert!(proxy.events(mark, "configuration in effect").is_empty());
    writes.write_all(rest.as_bytes()).unwrap();
    writes.write_all(b"redirect_hosts = [\"cdn.lan\"]\n").unwrap();
    drop(writes);
    proxy.wait(mark, "configuration in effect", &[]);
    proxy.reload(|site| site.remove("10-later.wasm"));
    assert_eq!(proxy.events(mark, "configuration in effect").len(), 1);
    assert_pulls(&proxy, &image);
}

#[test]
fn t2_a_file_that_is_replaced_by_kubernetes_way_takes_effect() {
    let (fake, image) = fake_with_app();
    let site = Site::of(&fake.url());
    let file = site.write_config();
    let (mount, text) = (site.path("mount"), fs::read_to_string(&file).unwrap());
    for (version, text) in
        [("..one", text.clone()), ("..two", format!("{text}\n[registries.\"two.lan\"]\nurl = \"{}\"\n", fake.url()))]
    {
        fs::create_dir_all(mount.join(version)).unwrap();
        fs::write(mount.join(version).join("tidegate.toml"), text).unwrap();
    }
    symlink("..one", mount.join("..data")).unwrap();
    symlink("..data/tidegate.toml", mount.join("tidegate.toml")).unwrap();
    let proxy = site.start_with(&mount.join("tidegate.toml"));
    let mark = proxy.mark();
    symlink("..two", mount.join("..next")).unwrap();
    fs::rename(mount.join("..next"), mount.join("..data")).unwrap();
    proxy.wait(mark, "configuration in effect", &[]);
    assert_whole(&proxy.get("/v2/two.lan/library/app/manifests/1").fetch(), &image.digest());
}

#[test]
fn level_format_and_access_lines_of_the_log_change_while_it_runs() {
    let (_fake, image, proxy) = proxied();
    let mark = proxy.mark();
    takes_effect(&proxy, |text| text.replace("format = \"json\"", "format = \"json\"\naccess = false"));
    assert_pulls(&proxy, &image);
    assert!(proxy.events(mark, "request").is_empty());
    takes_effect(&proxy, |text| text.replace("access = false", "level = \"debug\""));
    assert_pulls(&proxy, &image);
    eventually("each request has a line again", || !proxy.events(mark, "request").is_empty());
    let before = proxy.log().lines().count();
    proxy.site().edit_config(|text| text.replace("format = \"json\"", "format = \"text\""));
    let said = |line: &str| line.contains("configuration in effect generation=4").then_some(());
    assert!(proxy.process().err.wait(before, HANG, said).is_some(), "{}", proxy.log());
}

#[test]
fn u18_it_starts_with_every_upstream_down() {
    let (fake, image) = fake_with_app();
    fake.stop();
    let proxy = Site::of(&fake.url()).start();
    assert_eq!(proxy.admin("/healthz").status, 200);
    assert_eq!(proxy.admin("/readyz").status, 200);
    let answer = proxy.get(APP).fetch();
    assert!(matches!(answer.status, 502..=504), "{}", answer.text());
    fake.restart();
    assert_caches(&proxy, &image);
    fake.stop();
    assert_pulls(&proxy, &image);
}
