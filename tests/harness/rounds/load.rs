//! The load of a busy hour in a box that has little memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, Builder};

use super::{Ledger, read_part};
use crate::content::{Content, sha256};
use crate::fake::Fake;
use crate::http::End;
use crate::image::Image;
use crate::process::Process;
use crate::proxy::Proxy;
use crate::raise_descriptor_limit;
use crate::site::Site;

const STREAMS: u64 = 64;
/// Units: bytes.
const STREAM: u64 = 64 << 20;
const CONNECTIONS: usize = 1000;
const STACK: usize = 256 << 10;

/// A control group whose processes together have so much memory, caches of files included.
struct Group {
    folder: PathBuf,
    /// Its version has other names for the same.
    version: u8,
}

/// A load under a limit of memory (units: bytes). An error says why this machine has no such limit.
pub fn load_under_a_limit(limit: u64) -> Result<Ledger, String> {
    raise_descriptor_limit();
    let group = Group::new(limit)?;
    let ledger = Ledger::new(&format!("load under a limit of {} MiB", limit >> 20));
    let fake = Fake::start();
    let blobs: Vec<_> = (0..4).map(|seed| Content::noise(seed, STREAM)).collect();
    let paths: Vec<_> = blobs.iter().map(|content| fake.put_blob("library/app", content.clone())).collect();
    let image = Image::small("app");
    let manifest = fake.put_image(&image, "library/app:1");
    let proxy = Site::of(&fake.url()).log("access = false").start();
    group.hold(proxy.process())?;
    // Cold, and then from the cache: 4 GiB each time.
    for temperature in ["cold bodies", "warm bodies"] {
        thread::scope(|scope| {
            for stream in 0..STREAMS {
                let at = usize::try_from(stream).expect("an index") % blobs.len();
                let (request, content, ledger) = (proxy.get(&paths[at]), &blobs[at], &ledger);
                let read = move || match request.open() {
                    Ok(response) => {
                        let (read, end, wrong) = read_part(response, content, 0, content.len(), |_| ());
                        ledger.must(end == End::Whole, || format!("a body ends {end:?} after {read} bytes"));
                        ledger.lose_all(wrong);
                        ledger.add(temperature, 1);
                    }
                    Err(error) => ledger.lose(format!("a request is not answered: {error}")),
                };
                Builder::new().stack_size(STACK).spawn_scoped(scope, read).expect("a thread can be started");
            }
        });
    }
    idle_connections(&proxy, &paths[0], &ledger);
    let answer = proxy.get(&manifest).fetch();
    ledger.must(sha256(&answer.body) == image.digest(), || "the manifest cannot be had at the end".to_owned());
    ledger.must(proxy.process().ended().is_none(), || "the proxy was ended".to_owned());
    ledger.most("MiB resident at the peak", proxy.process().memory_bytes("VmHWM") >> 20);
    ledger.most("MiB with caches of files at the peak", group.peak() >> 20);
    drop(proxy);
    Ok(ledger)
}

/// Clients that have asked for a big blob, and read nothing more than its first bytes.
fn idle_connections(proxy: &Proxy, path: &str, ledger: &Ledger) {
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS {
        match proxy.get(path).open() {
            Ok(mut response) => {
                let read = response.read_some(&mut [0; 16]);
                ledger.must(matches!(read, Ok(1..)), || format!("status {} for an idle client", response.status));
                idle.push(response);
            }
            Err(error) => ledger.lose(format!("an idle client is not answered: {error}")),
        }
    }
    ledger.add("clients that do not read", idle.len() as u64);
    let answer = proxy.get("/v2/").fetch();
    ledger.must(answer.status == 200, || format!("status {} beside {CONNECTIONS} idle clients", answer.status));
}

impl Group {
    fn new(limit: u64) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tidegate-tests-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let first = Path::new("/sys/fs/cgroup/memory");
        let (folder, version, key) = if first.is_dir() {
            (first.join(name), 1, "memory.limit_in_bytes")
        } else {
            (Path::new("/sys/fs/cgroup").join(name), 2, "memory.max")
        };
        fs::create_dir(&folder)
            .map_err(|error| format!("no control group can be made: {}: {error}", folder.display()))?;
        let group = Self { folder, version };
        group.write(key, limit)?;
        Ok(group)
    }

    fn write(&self, key: &str, value: u64) -> Result<(), String> {
        let file = self.folder.join(key);
        fs::write(&file, value.to_string()).map_err(|error| format!("{}: {error}", file.display()))
    }

    fn hold(&self, process: &Process) -> Result<(), String> {
        self.write("cgroup.procs", process.id().into())
    }

    /// Units: bytes.
    fn peak(&self) -> u64 {
        let key = if self.version == 1 { "memory.max_usage_in_bytes" } else { "memory.peak" };
        fs::read_to_string(self.folder.join(key)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It goes when its last process has; the proxy has ended by now, or the test has failed.
        let _ = fs::remove_dir(&self.folder);
    }
}
