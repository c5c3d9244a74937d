//! Upstreams that lie, break off, stall or refuse, and a proxy that is killed.

use std::fs;
use std::thread;

use tidegate_tests::content::{Content, sha256};
use tidegate_tests::disk::Disk;
use tidegate_tests::eventually;
use tidegate_tests::fake::{Act, Fake, Reply};
use tidegate_tests::gate::Gate;
use tidegate_tests::http::{Answer, End, Response};
use tidegate_tests::image::Image;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::{APP, assert_caches, assert_never_wrong, assert_pulls, assert_whole, fake_with_app, proxied};

const SIZE: u64 = 3_000_000;

fn stage() -> (Fake, Content, String, Proxy) {
    let fake = Fake::start();
    let content = Content::noise(5, SIZE);
    let path = fake.put_blob("library/app", content.clone());
    let proxy = Site::of(&fake.url()).start();
    (fake, content, path, proxy)
}

/// The same, with a proxy that asks again for what was just not there.
fn stage_without_memory() -> (Fake, Content, String, Proxy) {
    let fake = Fake::start();
    let content = Content::noise(5, SIZE);
    let path = fake.put_blob("library/app", content.clone());
    let proxy = Site::of(&fake.url()).cache("miss_ttl = \"0s\"").start();
    (fake, content, path, proxy)
}

/// Many ask at once. Gives their answers, but for those that ended without a word.
fn ask_eight_times(proxy: &Proxy, path: &str) -> Vec<Answer> {
    thread::scope(|scope| {
        let ask = || proxy.get(path).open().ok().map(Response::finish);
        let asked: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        asked.into_iter().filter_map(|answer| answer.join().unwrap()).collect()
    })
}

#[test]
fn u4_i3_wrong_bytes_are_never_whole_and_never_cached() {
    for size in [1, 1000, 100_000, SIZE] {
        let fake = Fake::start();
        let content = Content::noise(6, size);
        let path = fake.put_blob("library/app", content.clone());
        let proxy = Site::of(&fake.url()).start();
        fake.always(&path, Act::Lie(content.corrupted()));
        for answer in ask_eight_times(&proxy, &path) {
            assert_never_wrong(&answer, &content.digest());
            assert!(answer.status != 200 || answer.end == End::Short, "{size}: it ends {:?}", answer.end);
        }
        assert_eq!(proxy.site().blobs(), [], "{size}");
        eventually("no staging file is left", || proxy.site().staging().is_empty());
        // And it recovers.
        fake.always(&path, Act::Serve);
        assert_whole(&proxy.get(&path).fetch(), &content.digest());
    }
}

#[test]
fn u5_i3_a_body_that_is_longer_than_its_blob_is_never_whole() {
    let (fake, content, path, proxy) = stage();
    let mut longer = Vec::new();
    content.write(&mut longer, 0, SIZE).unwrap();
    longer.extend_from_slice(b"and more");
    let reply = Reply::status(200).field("Content-Type", "application/octet-stream").body(&longer);
    fake.always(&path, Act::Reply(reply));
    assert_never_wrong(&proxy.get(&path).fetch(), &content.digest());
    assert_eq!(proxy.site().blobs(), []);
}

#[test]
fn u1_i6_a_broken_transfer_is_resumed_and_the_client_sees_nothing_of_it() {
    let mut wrong = Vec::new();
    for after in [0, 1, SIZE / 2, SIZE - 1] {
        for act in [Act::CloseAfter(after), Act::ResetAfter(after)] {
            let (fake, content, path, proxy) = stage();
            fake.next(&path, act.clone());
            let answers = [0, 1].map(|_| proxy.get(&path).fetch());
            if answers.iter().any(|answer| sha256(&answer.body) != content.digest()) {
                let first = &answers[0];
                wrong.push(format!("{act:?}: status {}, {} bytes, {:?}", first.status, first.body.len(), first.end));
            } else {
                assert_eq!(fake.count("GET", &path), 2, "{act:?}");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn u1_a_broken_transfer_is_resumed_with_a_range() {
    let (fake, content, path, proxy) = stage();
    fake.next(&path, Act::CloseAfter(SIZE / 2));
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    let resumed = fake.seen().into_iter().rfind(|seen| seen.path == path).unwrap();
    assert_eq!(resumed.fields.get("Range"), Some("bytes=1500000-"));
}

#[test]
fn u1_an_upstream_that_knows_no_ranges_is_asked_for_the_whole_again() {
    let (fake, content, path, proxy) = stage();
    fake.next(&path, Act::CloseAfter(SIZE / 2));
    fake.next(&path, Act::ServeWhole);
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
}

#[test]
fn u4_i3_wrong_bytes_in_the_resumed_half_are_never_whole() {
    let (fake, content, path, proxy) = stage();
    fake.next(&path, Act::CloseAfter(SIZE / 4));
    fake.always(&path, Act::Lie(content.corrupted()));
    assert_never_wrong(&proxy.get(&path).fetch(), &content.digest());
    assert_eq!(proxy.site().blobs(), []);
}

#[test]
fn u6_i6_a_transfer_that_always_breaks_ends_short_with_a_clean_close() {
    let (fake, content, path, proxy) = stage();
    // The second half is never to be had: resumed transfers close at once.
    fake.next(&path, Act::CloseAfter(SIZE / 2));
    fake.always(&path, Act::CloseAfter(0));
    let answer = proxy.get(&path).fetch();
    assert_eq!((answer.status, answer.end), (200, End::Short));
    assert!(content.holds(0, &answer.body));
    assert!(fake.count("GET", &path) < 10, "{} attempts", fake.count("GET", &path));
    assert_eq!(proxy.site().blobs(), []);
    fake.always(&path, Act::Serve);
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
}

#[test]
fn u7_a_body_without_a_length_is_judged_by_its_digest() {
    let (fake, content, path, proxy) = stage();
    fake.next(&path, Act::ServeChunked);
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    assert_eq!(fake.count("GET", &path), 1);
}

#[test]
fn u8_i3_an_empty_answer_is_never_a_whole_blob() {
    let (fake, content, path, proxy) = stage();
    fake.always(&path, Act::Reply(Reply::status(200)));
    for _ in 0..2 {
        assert_never_wrong(&proxy.get(&path).fetch(), &content.digest());
    }
    assert_eq!(proxy.site().blobs(), []);
}

#[test]
fn u8_an_answer_that_is_no_blob_is_a_502() {
    let (fake, content, path, proxy) = stage();
    let page = Reply::status(200).field("Content-Type", "text/html").body(b"<html>Log in to the hotel</html>");
    let zipped = Reply::status(200).field("Content-Encoding", "gzip").body(b"\x1f\x8b rest");
    let mut wrong = Vec::new();
    let part = Reply::status(206).field("Content-Range", "bytes 0-9/3000000").body(b"0123456789");
    for reply in [page, zipped, part, Reply::status(200), Reply::status(204), Reply::status(304)] {
        fake.always(&path, Act::Reply(reply.clone()));
        let answer = proxy.get(&path).fetch();
        if (answer.status, answer.end) != (502, End::Whole) {
            wrong.push(format!("{reply:?} became {}, {} bytes, {:?}", answer.status, answer.body.len(), answer.end));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    fake.always(&path, Act::Serve);
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
}

#[test]
fn u10_what_the_upstream_refuses_is_told_in_the_words_of_the_specification() {
    let (fake, _, path, proxy) = stage_without_memory();
    let (unknown, status) = ("/v2/library/app/manifests/none", |status| Act::Reply(Reply::status(status)));
    for (asked, act, status, code) in [
        (unknown, Act::Serve, 404, "MANIFEST_UNKNOWN"),
        (path.as_str(), status(404), 404, "BLOB_UNKNOWN"),
        (path.as_str(), status(403), 403, "DENIED"),
        (path.as_str(), status(401), 403, "DENIED"),
        (APP, status(403), 403, "DENIED"),
    ] {
        fake.always(asked, act);
        let answer = proxy.get(asked).fetch();
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{asked}: {}", answer.text());
    }
    for refused in [500, 502, 503, 504] {
        fake.always(&path, status(refused));
        let answer = proxy.get(&path).fetch();
        assert!(matches!(answer.status, 502..=504), "{refused} became {}", answer.status);
    }
    fake.stop();
    let answer = proxy.get(&path).fetch();
    assert!(matches!(answer.status, 502..=504), "{}", answer.status);
    assert!(answer.message().contains("docker.io"), "{}", answer.message());
}

#[test]
fn u10_a_429_is_handed_on_only_as_the_last_resort_and_with_its_time() {
    let (fake, content, path, proxy) = stage();
    let busy = |seconds: &str| Act::Reply(Reply::status(429).field("Retry-After", seconds));
    fake.next(&path, busy("1"));
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    let app = Image::small("app");
    fake.put_image(&app, "library/app:1");
    fake.always(APP, busy("600"));
    let answer = proxy.get(APP).fetch();
    assert_eq!((answer.status, answer.code().as_str()), (429, "TOOMANYREQUESTS"));
    assert!(answer.fields.get("Retry-After").is_some_and(|after| after.parse::<u64>().is_ok()));
}

#[test]
fn u4_i3_a_manifest_of_another_digest_is_never_served() {
    let (fake, image, proxy) = proxied();
    let path = format!("/v2/library/app/manifests/{}", image.digest());
    let other = Image::small("other");
    fake.always(&path, Act::Reply(Reply::status(200).field("Content-Type", image.media_type()).body(&other.manifest)));
    let answer = proxy.get(&path).fetch();
    assert_eq!(answer.status, 502, "{}", answer.text());
    fake.always(&path, Act::Serve);
    assert_whole(&proxy.get(&path).fetch(), &image.digest());
}

#[test]
fn u17_a_manifest_over_4_mib_is_refused_while_it_is_read() {
    let (fake, image, proxy) = proxied();
    let manifest = vec![b' '; (4 << 20) + 1];
    fake.put(APP, image.media_type(), manifest.into());
    let answer = proxy.get(APP).fetch();
    assert_eq!(answer.status, 502, "{}", answer.text());
}

#[test]
fn u17_a_body_that_is_no_manifest_is_a_502() {
    let (fake, image, proxy) = proxied();
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let both = format!(r#"{{"layers":[{{"digest":"{empty}"}}],"manifests":[{{"digest":"{empty}"}}]}}"#);
    let other = r#"{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let deep = format!("{{\"layers\":{}", "[".repeat(100_000));
    for (body, why) in [
        (both.as_bytes(), "both an image and an index"),
        (other.as_bytes(), "its own media type is another"),
        (deep.as_bytes(), "deeper than anybody reads"),
        (b"{\"layers\":[],\"x\":\"\xff\"}", "no UTF-8"),
        (b"<html>Log in to the hotel</html>", "a page"),
        (b"", "nothing"),
    ] {
        fake.put(APP, oci, body.to_vec().into());
        let answer = proxy.get(APP).fetch();
        assert_eq!((answer.status, answer.end), (502, End::Whole), "{why}: {}", answer.text());
        assert!(answer.message().contains("docker.io/library/app"), "{why}: {}", answer.message());
    }
    assert_eq!(proxy.site().blobs(), []);
    fake.put_image(&image, "library/app:1");
    assert_pulls(&proxy, &image);
}

#[test]
fn u17_a_manifest_keeps_its_bytes_whatever_they_are() {
    let (fake, _image, proxy) = proxied();
    // Twice the same key, odd spaces, a key that nobody knows: what was signed is these bytes.
    let odd = br#" {"schemaVersion":2,  "schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"x":{"y":[1]}}
"#;
    fake.put(APP, "application/vnd.oci.image.index.v1+json", odd.to_vec().into());
    for _ in 0..2 {
        let answer = proxy.get(APP).fetch();
        assert_eq!((answer.status, answer.body.as_slice()), (200, &odd[..]));
        assert_eq!(answer.fields.get("Content-Type"), Some("application/vnd.oci.image.index.v1+json"));
    }
}

#[test]
fn u2_an_upstream_that_says_nothing_or_stalls_holds_nobody_for_ever() {
    let (fake, content, path, proxy) = stage();
    fake.put_image(&Image::small("app"), "library/app:1");
    fake.always(APP, Act::Silent);
    let other = fake.put_blob("library/app", Content::noise(77, SIZE));
    // The attempts after the stalled one find a good upstream.
    fake.next(&other, Act::StallAfter(SIZE / 2));
    fake.always(&path, Act::StallAfter(0));
    thread::scope(|scope| {
        // containerd gives up after 30 s without headers.
        scope.spawn(|| {
            let answer = proxy.get(APP).fetch();
            assert!(matches!(answer.status, 502..=504), "{}", answer.status);
        });
        scope.spawn(|| assert_whole(&proxy.get(&other).fetch(), &Content::noise(77, SIZE).digest()));
        scope.spawn(|| assert_never_wrong(&proxy.get(&path).fetch(), &content.digest()));
    });
}

#[test]
fn d3_i3_after_a_kill_in_a_cold_pull_no_partial_blob_is_served() {
    let (fake, content, path, proxy) = stage();
    let gate = Gate::new();
    fake.next(&path, Act::Hold(SIZE / 2, gate.clone()));
    let mut client = proxy.get(&path).open().unwrap();
    assert!(client.read_some(&mut [0; 100]).unwrap() > 0);
    gate.wait_reached();
    assert!(!proxy.site().staging().is_empty(), "the transfer has a staging file");
    let site = proxy.kill9();
    gate.open();
    assert_ne!(client.finish().end, End::Whole);
    assert_eq!(site.blobs(), []);
    let proxy = site.start();
    assert_eq!(site.staging(), [], "staging files of the killed process are swept");
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    eventually("the blob is cached", || site.blobs() == [(site.blob_path(&content.digest()), SIZE)]);
}

#[test]
fn d3_i3_kills_at_any_moment_leave_nothing_wrong() {
    let fake = Fake::start();
    let image = Image::new("app", &[700_000, 500_000, 300_000]);
    fake.put_image(&image, "library/app:1");
    let site = Site::of(&fake.url());
    for round in 0..10 {
        let gate = Gate::new();
        let blob = crate::app_blob(&image.layer_digest(round % 3));
        fake.next(&blob, Act::Hold(50_000 * round as u64, gate.clone()));
        let proxy = site.start();
        thread::scope(|scope| {
            for path in [APP.to_owned(), blob.clone(), crate::app_blob(&image.layer_digest((round + 1) % 3))] {
                let request = proxy.get(&path);
                // The proxy is killed meanwhile: whatever comes is no whole wrong body.
                scope.spawn(move || {
                    let answer = request.open().map(Response::finish);
                    let digest = path.rsplit('/').next().unwrap_or_default();
                    if let (Ok(answer), true) = (answer, digest.starts_with("sha256:")) {
                        assert_never_wrong(&answer, digest);
                    }
                });
            }
            fake.wait_count(APP, 1);
            proxy.kill9();
            gate.open();
        });
        for (path, _) in site.blobs() {
            let digest = format!("sha256:{}", path.file_name().unwrap().to_string_lossy());
            assert_eq!(sha256(&fs::read(&path).unwrap()), digest);
        }
    }
    let proxy = site.start();
    assert_eq!(site.staging(), []);
    assert_pulls(&proxy, &image);
}

#[test]
fn d5_i3_a_cached_file_of_the_wrong_size_is_not_served_as_whole() {
    let (fake, content, path, proxy) = stage();
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    eventually("the blob is cached", || proxy.site().blobs().len() == 1);
    let (site, _) = proxy.terminate();
    for size in [0, SIZE / 2] {
        fs::File::options().write(true).open(site.blob_path(&content.digest())).unwrap().set_len(size).unwrap();
        let proxy = site.start();
        assert_whole(&proxy.get(&path).fetch(), &content.digest());
        eventually("the blob is cached", || site.blobs() == [(site.blob_path(&content.digest()), SIZE)]);
        proxy.terminate();
    }
    assert_eq!(fake.count("GET", &path), 3);
}

#[test]
fn t3_sigterm_lets_a_running_body_finish() {
    let (fake, content, path, proxy) = stage();
    let gate = Gate::new();
    fake.next(&path, Act::Hold(SIZE / 2, gate.clone()));
    let mut client = proxy.get(&path).open().unwrap();
    let mut first = vec![0; 100];
    let read = client.read_some(&mut first).unwrap();
    gate.wait_reached();
    let ended = thread::spawn(move || proxy.terminate());
    gate.open();
    let (rest, end) = client.drain(|offset, piece| assert!(content.holds(read as u64 + offset, piece)));
    assert_eq!((rest + read as u64, end), (SIZE, End::Whole));
    let (_, status) = ended.join().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn u18_an_upstream_that_is_down_at_the_start_is_found_when_it_comes() {
    let (fake, image) = crate::fake_with_app();
    fake.stop();
    let proxy = Site::of(&fake.url()).start();
    assert_eq!(proxy.admin("/healthz").status, 200);
    let answer = proxy.get(APP).fetch();
    assert!(matches!(answer.status, 502..=504), "{}", answer.status);
    fake.restart();
    assert_pulls(&proxy, &image);
}

#[test]
fn d1_i7_a_full_disk_fails_no_pull() {
    let (fake, image) = fake_with_app();
    let content = Content::noise(41, 3 * SIZE);
    let path = fake.put_blob("library/app", content.clone());
    let site = Site::of(&fake.url());
    let Some(_disk) = Disk::tmpfs(site.path("cache"), "size=4m") else { return };
    let proxy = site.start();
    assert_whole(&proxy.get(&path).fetch(), &content.digest());
    for answer in ask_eight_times(&proxy, &path) {
        assert_whole(&answer, &content.digest());
    }
    // What comes past the cache is verified all the same.
    fake.always(&path, Act::Lie(content.corrupted()));
    assert_never_wrong(&proxy.get(&path).fetch(), &content.digest());
    assert_eq!(site.blobs(), []);
    // What fits is kept.
    assert_caches(&proxy, &image);
}
