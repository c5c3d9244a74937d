//! Plugins and their configuration change while the proxy serves: at once, whole, and never with a gap.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tidegate_tests::content::sha256;
use tidegate_tests::guests::{self, Does};
use tidegate_tests::http::Answer;
use tidegate_tests::image::Image;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::{APP, app_blob, assert_pulls, assert_whole, denial, fake_with_app};

/// How long a removed plugin, and one whose file turned empty, stays in force.
const GRACE: Duration = Duration::from_secs(2);

/// Every request of some threads, until told otherwise, goes through a function.
fn meanwhile(threads: usize, ask: impl Fn() + Sync, work: impl FnOnce()) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    ask();
                }
            });
        }
        // Also when the work panics, the threads come to an end.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
}

fn without_plugins() -> (tidegate_tests::fake::Fake, Image, Proxy) {
    crate::proxied()
}

#[test]
fn a_new_plugin_takes_effect() {
    let (_fake, image, proxy) = without_plugins();
    assert_pulls(&proxy, &image);
    for (name, message) in [("10-gate.wasm", "by rename"), ("20-other.wasm", "never told: the first denial is")] {
        let event = proxy.reload(|site| site.install(name, &guests::denier(message)));
        assert!(event.field("generation").parse::<u64>().is_ok(), "{event:?}");
        assert!(denial(&proxy).contains("by rename"), "{}", denial(&proxy));
    }
    proxy.wait(proxy.beginning(), "plugin loaded", &[("plugin", "gate")]);
}

#[test]
fn a_plugin_copied_in_place_takes_effect() {
    let (_fake, image, proxy) = without_plugins();
    assert_pulls(&proxy, &image);
    for round in 0..3 {
        let message = format!("version {round}");
        proxy.reload(|site| site.copy("10-gate.wasm", &guests::denier(&message)));
        assert!(denial(&proxy).contains(&message), "{}", denial(&proxy));
    }
}

#[test]
fn a_changed_configuration_holds_for_the_next_request() {
    let (fake, _image) = fake_with_app();
    let proxy = Site::of(&fake.url()).with([("10-stamp.wasm", &guests::stamped(1))]).start();
    for round in 0..3 {
        let text = format!("text {round}");
        proxy.reload(|site| site.copy("10-stamp.toml", text.as_bytes()));
        assert!(denial(&proxy).contains(&format!("wasm 1, config {text}")), "{}", denial(&proxy));
        let text = format!("renamed {round}");
        proxy.reload(|site| site.install("10-stamp.toml", text.as_bytes()));
        assert!(denial(&proxy).contains(&format!("wasm 1, config {text}")), "{}", denial(&proxy));
    }
    proxy.reload(|site| site.remove("10-stamp.toml"));
    assert!(denial(&proxy).trim_end().ends_with("wasm 1, config"), "{}", denial(&proxy));
}

#[test]
fn p5_a_removed_plugin_stays_in_force_for_two_seconds_and_then_goes() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).with([("10-gate.wasm", &guests::denier("not yet"))]).start();
    assert!(denial(&proxy).contains("not yet"));
    let mark = proxy.mark();
    let removed = Instant::now();
    proxy.site().remove("10-gate.wasm");
    loop {
        let told = denial(&proxy);
        if told.is_empty() {
            break;
        }
        assert!(told.contains("not yet"));
    }
    assert!(removed.elapsed() >= GRACE, "gone after {:?}", removed.elapsed());
    proxy.wait(mark, "plugin removed", &[("plugin", "gate")]);
    assert_pulls(&proxy, &image);
}

#[test]
fn p5_delete_and_copy_never_opens_a_gap() {
    let (fake, _image) = fake_with_app();
    let proxy = Site::of(&fake.url()).with([("10-gate.wasm", &guests::denier("round 0"))]).start();
    let asked = AtomicUsize::new(0);
    meanwhile(
        4,
        || {
            assert!(denial(&proxy).contains("round"), "a gap");
            asked.fetch_add(1, Ordering::Relaxed);
        },
        || {
            for round in 1..=10 {
                let message = format!("round {round}");
                let wasm = guests::denier(&message);
                proxy.reload(|site| {
                    site.remove("10-gate.wasm");
                    site.copy("10-gate.wasm", &wasm);
                });
                assert!(denial(&proxy).contains(&message), "{}", denial(&proxy));
            }
        },
    );
    assert_eq!(proxy.events(proxy.beginning(), "plugin removed").len(), 0);
    assert!(asked.load(Ordering::Relaxed) > 0);
}

#[test]
fn p5_a_half_copied_plugin_is_not_loaded() {
    let (fake, _image) = fake_with_app();
    let proxy = Site::of(&fake.url()).with([("10-gate.wasm", &guests::denier("the old one"))]).start();
    let mark = proxy.mark();
    let half = proxy.site().begin_copy("10-gate.wasm", &guests::denier("the new one"));
    // By the time another plugin has come and is at work, the half would have been tried.
    proxy.site().install("20-sentinel.wasm", &guests::admission(Does::Nothing));
    proxy.wait(mark, "plugins in effect", &[]);
    assert!(denial(&proxy).contains("the old one"), "{}", denial(&proxy));
    proxy.reload(|_| half.finish());
    assert!(denial(&proxy).contains("the new one"), "{}", denial(&proxy));
    assert_eq!(proxy.events(mark, "plugin not loaded").len(), 0);
}

#[test]
fn p5_a_half_written_configuration_is_not_read() {
    let (fake, _image) = fake_with_app();
    let proxy =
        Site::of(&fake.url()).with([("10-stamp.wasm", &guests::stamped(1)), ("10-stamp.txt", b"old, whole")]).start();
    let mark = proxy.mark();
    let half = proxy.site().begin_copy("10-stamp.txt", b"new, whole");
    proxy.site().install("20-sentinel.wasm", &guests::admission(Does::Nothing));
    proxy.wait(mark, "plugins in effect", &[]);
    assert!(denial(&proxy).contains("config old, whole"), "{}", denial(&proxy));
    proxy.reload(|_| half.finish());
    assert!(denial(&proxy).contains("config new, whole"), "{}", denial(&proxy));
}

#[test]
fn p5_a_file_that_turned_empty_waits_two_seconds() {
    let (fake, _image) = fake_with_app();
    let proxy =
        Site::of(&fake.url()).with([("10-stamp.wasm", &guests::stamped(1)), ("10-stamp.txt", b"something")]).start();
    let emptied = Instant::now();
    proxy.reload(|site| site.copy("10-stamp.txt", b""));
    assert!(emptied.elapsed() >= GRACE, "after {:?}", emptied.elapsed());
    assert!(denial(&proxy).trim_end().ends_with("wasm 1, config"), "{}", denial(&proxy));
    // Emptied and filled again: the empty one is never seen.
    proxy.reload(|site| site.copy("10-stamp.txt", b"first"));
    let event = proxy.reload(|site| {
        site.copy("10-stamp.txt", b"");
        site.copy("10-stamp.txt", b"second");
    });
    assert!(denial(&proxy).contains("config second"), "{event:?}: {}", denial(&proxy));
}

#[test]
fn i2_a_plugin_and_its_configuration_that_change_together_are_one_version() {
    /// Within this time of each other two changes are surely one.
    const TOGETHER: Duration = Duration::from_millis(50);
    let (fake, image) = fake_with_app();
    let proxy =
        Site::of(&fake.url()).with([("10-witness.wasm", &guests::witness(0)), ("10-witness.txt", b"0")]).start();
    // Numbers whose two files were not put there together by this test, because the machine was busy.
    let mut torn = HashSet::new();
    let seen = std::sync::Mutex::new(HashSet::new());
    meanwhile(
        2,
        || {
            let answer = proxy.get(APP).fetch();
            assert_whole(&answer, &image.digest());
            seen.lock().unwrap().extend(witnessed(&answer));
        },
        || {
            for round in 1..=20_usize {
                let (wasm, text) = (guests::witness(round), round.to_string());
                proxy.reload(|site| {
                    let begun = Instant::now();
                    site.copy("10-witness.wasm", &wasm);
                    site.copy("10-witness.txt", text.as_bytes());
                    if begun.elapsed() > TOGETHER {
                        torn.insert(round);
                    }
                });
            }
        },
    );
    for (_, wasm, config) in seen.into_inner().unwrap() {
        let excused = torn.contains(&wasm) || torn.contains(&(wasm + 1));
        assert!(wasm.to_string() == config || excused, "wasm {wasm} with configuration {config}");
    }
    assert!(torn.len() < 10, "this machine is too busy to tell: {torn:?}");
}

/// The hook, the number of the program and the configuration in each warning of a witness.
fn witnessed(answer: &Answer) -> Vec<(String, usize, String)> {
    let read = |warning: &str| {
        let (hook, rest) = warning.split_once('"')?.1.split_once(": wasm ")?;
        let (number, config) = rest.trim_end_matches('"').split_once(", config")?;
        Some((hook.to_owned(), number.parse().ok()?, config.trim().to_owned()))
    };
    // A server may put several warnings into one field.
    let fields = answer.fields.all("Warning").join(", ");
    fields.split("299 ").skip(1).filter_map(|warning| read(warning.trim_end_matches([',', ' ']))).collect()
}

#[test]
fn i2_a_plugin_replaced_100_times_fails_no_request_and_none_is_decided_by_a_mix() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).with([("10-witness.wasm", &guests::witness(0))]).start();
    let versions = std::sync::Mutex::new(HashSet::new());
    let check = |answer: &Answer, digest: &str| {
        assert_whole(answer, digest);
        let told = witnessed(answer);
        let hooks: Vec<&str> = told.iter().map(|(hook, _, _)| hook.as_str()).collect();
        assert_eq!(hooks, ["admission", "routing"], "{:?}", answer.fields);
        assert_eq!(told[0].1, told[1].1, "one request, decided by two versions");
        versions.lock().unwrap().insert(told[0].1);
    };
    meanwhile(
        8,
        || {
            check(&proxy.get(APP).fetch(), &image.digest());
            for blob in &image.blobs {
                let digest = sha256(blob);
                check(&proxy.get(&app_blob(&digest)).fetch(), &digest);
            }
        },
        || {
            for round in 1..=100 {
                let wasm = guests::witness(round);
                proxy.reload(|site| {
                    if round % 2 == 0 {
                        site.install("10-witness.wasm", &wasm);
                    } else {
                        site.copy("10-witness.wasm", &wasm);
                    }
                });
            }
        },
    );
    let versions = versions.into_inner().unwrap();
    assert!(versions.len() > 50, "only {} versions were seen at work", versions.len());
    assert_eq!(proxy.events(proxy.beginning(), "plugin not loaded").len(), 0);
}

#[test]
fn p5_a_link_that_is_swapped_is_one_change() {
    // As Kubernetes mounts a volume: the files are links through `..data`, which is swapped as a whole.
    let (fake, _image) = fake_with_app();
    let site = Site::of(&fake.url());
    let folder = site.path("plugins.d");
    let put = |version: usize| {
        let dir = folder.join(format!("..{version}"));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("10-gate.wasm"), guests::stamped(version)).unwrap();
        std::fs::write(dir.join("10-gate.txt"), version.to_string()).unwrap();
        std::os::unix::fs::symlink(format!("..{version}"), folder.join("..data_tmp")).unwrap();
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    };
    put(1);
    for file in ["10-gate.wasm", "10-gate.txt"] {
        std::os::unix::fs::symlink(format!("..data/{file}"), folder.join(file)).unwrap();
    }
    let proxy = site.start();
    assert!(denial(&proxy).contains("wasm 1, config 1"), "{}", denial(&proxy));
    for version in 2..6 {
        let said = std::sync::Mutex::new(HashSet::new());
        meanwhile(2, || _ = said.lock().unwrap().insert(denial(&proxy)), || _ = proxy.reload(|_| put(version)));
        for said in said.into_inner().unwrap() {
            let one = [version - 1, version].map(|it| format!("wasm {it}, config {it}"));
            assert!(one.iter().any(|one| said.contains(one)), "{said}");
        }
        assert!(denial(&proxy).contains(&format!("wasm {version}, config {version}")));
        std::fs::remove_dir_all(folder.join(format!("..{}", version - 1))).unwrap();
    }
}

#[test]
fn p6_replaced_plugins_leave_nothing_behind() {
    // The long form (`make faults`) replaces 10 000.
    let ledger = tidegate_tests::rounds::reloads(300);
    assert!(ledger.close(), "{}", ledger.table());
    assert_eq!(ledger.done("replacements"), 300, "{}", ledger.table());
}

#[test]
fn a_running_pull_keeps_the_set_that_it_began_with() {
    let (fake, image) = fake_with_app();
    let content = tidegate_tests::content::Content::noise(31, 4_000_000);
    let path = fake.put_blob("library/app", content.clone());
    let gate = tidegate_tests::gate::Gate::new();
    fake.next(&path, tidegate_tests::fake::Act::Hold(1_000_000, gate.clone()));
    let proxy = Site::of(&fake.url()).start();
    let mut client = proxy.get(&path).open().unwrap();
    let mut buffer = vec![0; 100];
    let read = client.read_some(&mut buffer).unwrap();
    gate.wait_reached();
    proxy.reload(|site| site.install("10-gate.wasm", &guests::denier("from now on")));
    assert!(denial(&proxy).contains("from now on"));
    gate.open();
    let (rest, end) = client.drain(|offset, piece| assert!(content.holds(read as u64 + offset, piece)));
    assert_eq!((read as u64 + rest, end), (content.len(), tidegate_tests::http::End::Whole));
    let _ = image;
}

#[test]
fn a_plugin_folder_that_disappears_is_reported_and_its_policy_stays() {
    let (fake, _image) = fake_with_app();
    let site = Site::of(&fake.url()).with([("10-gate.wasm", &guests::denier("stay"))]);
    let proxy = site.start();
    let mark = proxy.mark();
    std::fs::remove_dir_all(site.path("plugins.d")).unwrap();
    proxy.wait(mark, "the plugin folder cannot be read: the plugins in effect stay", &[]);
    assert!(denial(&proxy).contains("stay"));
    // And it is read again when it is back.
    proxy.reload(|site| site.install("10-gate.wasm", &guests::denier("back")));
    assert!(denial(&proxy).contains("back"));
}

#[test]
fn a_module_that_is_cut_short_is_told_so_in_words() {
    let (fake, _image) = fake_with_app();
    let proxy = Site::of(&fake.url()).start();
    let whole = tidegate_tests::plugins::allowlist();
    for share in [10, 50, 90] {
        let cut = &whole[..whole.len() * share / 100];
        let refusal = proxy.refusal("cut", |site| site.install("10-cut.wasm", cut));
        let reason = refusal.field("reason");
        assert!(reason.contains("cut short") && !reason.contains("panic"), "{share} %: {reason}");
    }
}
