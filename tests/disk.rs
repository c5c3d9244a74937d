//! What disks do: they fill up, fail, and are taken away by a power cut. Rows D of the fault matrix.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use tidegate_tests::content::{Content, noise, sha256};
use tidegate_tests::fake::{Act, Fake};
use tidegate_tests::http::{self, Response};
use tidegate_tests::process::{Process, offline};
use tidegate_tests::program::tidegate;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;
use tidegate_tests::{HANG, eventually};

use crate::{APP, assert_caches, assert_never_wrong, assert_pulls, assert_whole, proxied};
use tidegate_tests::disk::Disk;

pub(crate) const MB: u64 = 1_000_000;

/// The value of a counter or a gauge without labels.
pub(crate) fn metric(proxy: &Proxy, name: &str) -> u64 {
    let text = proxy.admin("/metrics").text();
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("tidegate_{name} ")));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no metric {name} in:\n{text}"))
}

/// Puts a blob into the fake registry. Gives its digest and its path.
pub(crate) fn put(fake: &Fake, seed: u64, size: u64) -> (String, String) {
    let content = Content::noise(seed, size);
    (content.digest(), fake.put_blob("library/app", content))
}

/// Pulls a blob whole, and waits until it is cached.
pub(crate) fn cache(proxy: &Proxy, (digest, path): &(String, String)) {
    assert_whole(&proxy.get(path).fetch(), digest);
    let (file, link) = (proxy.site().blob_path(digest), link(proxy.site(), digest));
    eventually("the blob is cached", || file.exists() && link.exists());
    wait_closed(proxy.process(), &file);
}

/// Waits until the program has a file open no more: the fill that brought it has ended.
pub(crate) fn wait_closed(process: &Process, file: &Path) {
    let folder = format!("/proc/{}/fd", process.id());
    let is_it = |entry: fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|to| to == file);
    eventually("the file is closed", || !fs::read_dir(&folder).unwrap().flatten().any(is_it));
}

/// What says that the app's repository holds a digest: written last of all that makes a blob cached.
pub(crate) fn link(site: &Site, digest: &str) -> PathBuf {
    site.path("cache/links/docker.io/library/app/_digests").join(digest.replace(':', "/"))
}

/// Waits until the clock of the file system has gone on since a file changed: what changes from here on has another
/// time.
pub(crate) fn tick(file: &Path) {
    let beside = file.with_extension("clock");
    let changed = |path: &Path| fs::symlink_metadata(path).map(|about| (about.ctime(), about.ctime_nsec())).unwrap();
    eventually("the clock of the file system goes on", || {
        fs::write(&beside, b"").unwrap();
        changed(&beside) > changed(file)
    });
    fs::remove_file(beside).unwrap();
}

pub(crate) fn flip(file: &Path) {
    let mut open = File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    let middle = open.metadata().unwrap().len() / 2;
    open.seek(SeekFrom::Start(middle)).unwrap();
    open.read_exact(&mut byte).unwrap();
    open.seek(SeekFrom::Start(middle)).unwrap();
    open.write_all(&[byte[0] ^ 1]).unwrap();
}

/// Every file under the name of a digest is what its name says.
#[track_caller]
pub(crate) fn assert_all_right(site: &Site) {
    for (path, _) in site.blobs() {
        let digest = format!("sha256:{}", path.file_name().unwrap().to_string_lossy());
        assert_eq!(sha256(&fs::read(&path).unwrap()), digest);
    }
}

#[test]
fn d1_a_full_disk_makes_room_for_what_comes() {
    let fake = Fake::start();
    let site = Site::of(&fake.url()).cache("min_free = \"0\"");
    let Some(_disk) = Disk::tmpfs(site.path("cache"), "size=6m") else { return };
    let proxy = site.start();
    // Four of these fit, no more.
    let blobs: Vec<_> = (0..6).map(|seed| put(&fake, 100 + seed, 3 * MB / 2)).collect();
    for blob in &blobs {
        cache(&proxy, blob);
    }
    assert!(metric(&proxy, "cache_evictions_total") >= 2);
    assert!(metric(&proxy, "cache_evicted_bytes_total") >= 3 * MB);
    assert_eq!(metric(&proxy, "cache_faults_total"), 0);
    eventually("no staging file is left", || site.staging().is_empty());
    // Those that were dropped come again.
    cache(&proxy, &blobs[0]);
    assert_all_right(&site);
}

#[test]
fn d1_what_stays_free_is_the_operators_choice() {
    let fake = Fake::start();
    let site = Site::of(&fake.url()).cache("min_free = \"14MiB\"");
    let Some(_disk) = Disk::tmpfs(site.path("cache"), "size=20m") else { return };
    let proxy = site.start();
    for seed in 0..6 {
        cache(&proxy, &put(&fake, 200 + seed, 2 * MB));
        let taken: u64 = site.blobs().iter().map(|(_, size)| size).sum();
        assert!(taken <= 6 << 20, "{taken} bytes are taken");
    }
    // Where other files take the disk, nothing is dropped in vain, and the pull goes on.
    let kept = site.blobs().len();
    fs::write(site.path("cache/other"), vec![1; 12 << 20]).unwrap();
    let (digest, path) = put(&fake, 210, 2 * MB);
    assert_whole(&proxy.get(&path).fetch(), &digest);
    assert_eq!(site.blobs().len(), kept);
    let told = proxy.wait(proxy.beginning(), "the cache keeps nothing new for want of space: pulls go past it", &[]);
    assert!(told.field("reason").contains("min_free"), "{}", told.field("reason"));
}

#[test]
fn d1_no_room_for_a_link_fails_no_pull() {
    let (fake, image, _) = proxied();
    // Ten inodes are the folder's own, so that the blob has one and its link none.
    for inodes in [11, 12, 14, 16, 20] {
        let site = Site::of(&fake.url());
        let Some(_disk) = Disk::tmpfs(site.path("cache"), &format!("size=16m,nr_inodes={inodes}")) else { return };
        let proxy = site.start();
        for _ in 0..2 {
            assert_pulls(&proxy, &image);
        }
        eventually("no staging file is left", || site.staging().is_empty());
        assert_all_right(&site);
    }
}

#[test]
fn d2_a_file_over_the_limit_of_its_size_ends_neither_pull_nor_process() {
    for limit in ["500000", "2000000"] {
        let fake = Fake::start();
        let (digest, path) = put(&fake, 300, 3 * MB);
        let proxy = Site::of(&fake.url()).start();
        let pid = proxy.process().id().to_string();
        let limited = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={limit}")]).status();
        assert!(limited.unwrap().success());
        for _ in 0..2 {
            assert_whole(&proxy.get(&path).fetch(), &digest);
        }
        // Without a length nothing can be reserved: the write itself fails.
        fake.next(&path, Act::ServeChunked);
        assert_whole(&proxy.get(&path).fetch(), &digest);
        cache(&proxy, &put(&fake, 301, 100_000));
        assert_eq!(proxy.admin("/healthz").status, 200);
        eventually("no staging file is left", || proxy.site().staging().is_empty());
        let (site, status) = proxy.terminate();
        assert_eq!(status.code(), Some(0));
        assert_all_right(&site);
    }
}

#[test]
fn d2_d4_a_disk_that_fails_for_good_fails_no_pull_and_a_power_cut_leaves_nothing_wrong() {
    let (fake, image, _) = proxied();
    let site = Site::of(&fake.url());
    let disk = site.path("disk.ext4");
    File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk).output();
    if !made.is_ok_and(|output| output.status.success()) {
        println!("not run: mkfs.ext4 makes no file system here");
        return;
    }
    let device = disk.to_str().unwrap();
    let Some(mounted) = Disk::mount(site.path("cache"), &["-o", "loop", device]) else { return };
    let proxy = site.start();
    assert_caches(&proxy, &image);
    let blobs: Vec<_> = (0..4).map(|seed| put(&fake, 400 + seed, 700_000)).collect();
    cache(&proxy, &blobs[0]);
    // EXT4_IOC_SHUTDOWN without a flush: what the disk has not got is lost, and all that follows is EIO.
    let cut =
        "import fcntl,os,struct,sys; fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
    let output = Command::new("python3").args(["-c", cut]).arg(site.path("cache")).output();
    if !output.is_ok_and(|output| output.status.success()) {
        println!("not run: this kernel shuts no ext4 down");
        return;
    }
    for (digest, path) in &blobs {
        assert_whole(&proxy.get(path).fetch(), digest);
    }
    assert_pulls(&proxy, &image);
    assert_eq!(proxy.admin("/healthz").status, 200);
    proxy.kill9();
    drop(mounted);
    let mut again = None;
    eventually("the file system is let go", || {
        // Until it is, the same shut-down file system would be mounted once more.
        !fs::read_to_string("/proc/mounts").unwrap().contains(device)
    });
    again.get_or_insert_with(|| Disk::mount(site.path("cache"), &["-o", "loop", device]));
    let proxy = site.start();
    assert_eq!(site.staging(), []);
    assert_pulls(&proxy, &image);
    for blob in &blobs {
        cache(&proxy, blob);
    }
    assert_all_right(&site);
}

/// Rounds of a test that kills the program: more with `TIDEGATE_FAULTS=long`.
fn rounds(short: u64, long: u64) -> u64 {
    if std::env::var_os("TIDEGATE_FAULTS").is_some_and(|faults| faults == "long") { long } else { short }
}

#[test]
fn d3_kills_during_fills_commits_and_evictions_leave_nothing_wrong() {
    let fake = Fake::start();
    let blobs: Vec<_> = (0..12).map(|seed| put(&fake, 500 + seed, 200_000 + 50_000 * seed)).collect();
    // Room for about half of them, so that evictions are going on all the time.
    let site = Site::of(&fake.url()).cache("max_size = \"3MB\"");
    for round in 0..rounds(10, 200) {
        let proxy = site.start();
        let chance = noise(round + 1, 16);
        let answered = AtomicUsize::new(0);
        thread::scope(|scope| {
            for client in 0..4 {
                let (blobs, chance, proxy, answered) = (&blobs, &chance, &proxy, &answered);
                scope.spawn(move || {
                    for step in 0..6 {
                        let (digest, path) = &blobs[usize::from(chance[client * 3 + step % 3]) % blobs.len()];
                        // It is killed meanwhile: whatever comes is no whole wrong body.
                        match proxy.get(path).open().map(Response::finish) {
                            Ok(answer) => assert_never_wrong(&answer, digest),
                            Err(_) => return,
                        }
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let some = usize::from(chance[15]) % 20;
            eventually("so many answers have come", || answered.load(Ordering::Relaxed) >= some);
            proxy.process().signal(rustix::process::Signal::KILL);
        });
        drop(proxy);
        assert_all_right(&site);
    }
    let began = Instant::now();
    let proxy = site.start();
    assert!(began.elapsed() < HANG);
    assert_eq!(site.staging(), []);
    for (digest, path) in &blobs {
        assert_whole(&proxy.get(path).fetch(), digest);
    }
    eventually("the limit holds", || site.blobs().iter().map(|(_, size)| size).sum::<u64>() <= 3 * MB);
    let (site, _) = proxy.terminate();
    assert_eq!(site.run_as_is(&["cache", "verify"]).status.code(), Some(0));
}

#[test]
fn d4_the_states_that_a_power_cut_leaves_are_fetched_again() {
    let (fake, image, proxy) = proxied();
    assert_caches(&proxy, &image);
    let (site, _) = proxy.terminate();
    let layer = site.blob_path(&image.layer_digest(0));
    let links = site.path("cache/links/docker.io/library/app");
    let cut = |path: &Path| File::options().write(true).open(path).unwrap().set_len(0).unwrap();
    for state in 0..6 {
        match state {
            0 => cut(&layer),
            1 => fs::write(site.path("cache/staging/7.part"), b"half of it").unwrap(),
            2 => cut(&links.join("_digests").join(image.layer_digest(1).replace(':', "/"))),
            3 => fs::read_dir(links.join("_tags/1")).unwrap().for_each(|tag| cut(&tag.unwrap().path())),
            4 => cut(&site.path("cache/index.redb")),
            _ => File::options().write(true).open(site.path("cache/index.redb")).unwrap().set_len(500_000).unwrap(),
        }
        let proxy = site.start();
        assert_eq!(site.staging(), [], "state {state}");
        assert_caches(&proxy, &image);
        let log = proxy.log();
        assert!(!log.contains("panicked"), "state {state}: {log}");
        proxy.terminate();
        assert_all_right(&site);
    }
    assert!(fake.count("GET", APP) >= 2);
}

/// The program as a user who is not root. None, with a line that says why, where it cannot run so.
fn as_nobody(site: &Site) -> Option<(Process, String)> {
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let runs = Command::new("setpriv").args(nobody).arg(tidegate()).arg("--version").output();
    if !runs.is_ok_and(|output| output.status.success()) {
        println!("not run: the program cannot be started as another user here");
        return None;
    }
    let config = site.write_config();
    let folder = config.parent().unwrap();
    assert!(Command::new("chown").args(["-R", "65534:65534"]).arg(folder).status().unwrap().success());
    let mut command = Command::new("setpriv");
    offline(&mut command).args(nobody).arg(tidegate()).args(["serve", "--config"]).arg(&config).current_dir(folder);
    let process = Process::start(&mut command);
    let listening = process.out.wait(0, HANG, |line| Some(line.strip_prefix("listening on ")?.trim().to_owned()));
    let listening = listening.unwrap_or_else(|| panic!("it does not listen:\n{}", process.log()));
    Some((process, listening))
}

#[test]
fn d6_what_may_not_be_read_or_written_fails_no_pull() {
    let fake = Fake::start();
    let blobs: Vec<_> = (0..3).map(|seed| put(&fake, 700 + seed, MB)).collect();
    let site = Site::of(&fake.url());
    let Some((process, url)) = as_nobody(&site) else { return };
    let pull = |(digest, path): &(String, String)| assert_whole(&http::get(&format!("{url}{path}")).fetch(), digest);
    pull(&blobs[0]);
    let (file, link) = (site.blob_path(&blobs[0].0), link(&site, &blobs[0].0));
    eventually("the blob is cached", || file.exists() && link.exists());
    wait_closed(&process, &file);
    // A file that may not be read is fetched again, and replaced.
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&file, 0o000);
    pull(&blobs[0]);
    eventually("the blob is cached again", || fs::metadata(&file).unwrap().mode() & 0o400 != 0);
    wait_closed(&process, &file);
    assert_eq!(fake.count("GET", &blobs[0].1), 2);
    // A folder that may not be written: what is there is served, what comes goes past it.
    let folders = ["blobs/sha256", "blobs", "staging", "links", ""].map(|name| site.path("cache").join(name));
    for folder in &folders {
        mode(folder, 0o555);
    }
    for blob in &blobs {
        pull(blob);
    }
    assert_eq!(fake.count("GET", &blobs[0].1), 2);
    assert!(process.ended().is_none());
    for folder in &folders {
        mode(folder, 0o755);
    }
    pull(&blobs[2]);
    eventually("it is kept again", || site.blob_path(&blobs[2].0).exists());
}

#[test]
fn d7_a_second_process_on_one_folder_is_refused_by_name() {
    let (_fake, image, proxy) = proxied();
    assert_caches(&proxy, &image);
    let output = proxy.site().run_as_is(&["serve"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("in use by another process") && told.contains("/cache"), "{told}");
    assert_pulls(&proxy, &image);
    // Nor is it taken by a verb that changes something and cannot ask the proxy.
    let output = proxy.site().run_as_is(&["cache", "rm", "app"]);
    assert_eq!(output.status.code(), Some(1));
    // It is free again at once when its process was killed.
    let site = proxy.kill9();
    assert_pulls(&site.start(), &image);
}

#[test]
fn d9_no_inode_left_makes_room_for_what_comes() {
    let fake = Fake::start();
    let site = Site::of(&fake.url());
    let Some(_disk) = Disk::tmpfs(site.path("cache"), "size=16m,nr_inodes=60") else { return };
    let proxy = site.start();
    for seed in 0..60 {
        let (digest, path) = put(&fake, 900 + seed, 1000);
        assert_whole(&proxy.get(&path).fetch(), &digest);
    }
    assert!(metric(&proxy, "cache_evictions_total") > 0);
    cache(&proxy, &put(&fake, 990, 1000));
    eventually("no staging file is left", || site.staging().is_empty());
    assert_all_right(&site);
}
