//! Loads: wrk for small answers; for bodies a reader that has the kernel throw them away unread, so that it costs far
//! less than any server.

use std::io::Write as _;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tidegate_tests::HANG;
use tidegate_tests::process::run_within;

use crate::reader::{Fetched, Reader, Server};

/// What manifests are asked for with.
pub const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json";

/// How long the reader of bodies rests when nothing has come. It never waits for a socket: to wake somebody on another
/// processor costs a server in a virtual machine more than to send, and the more the faster the reader is.
const REST: Duration = Duration::from_micros(50);

/// What a load has brought.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    pub requests: u64,
    /// Of bodies, and for wrk of heads too.
    pub bytes: u64,
    pub failed: u64,
    pub wall: Duration,
    /// The time within which 99 of 100 requests were answered; wrk alone knows it.
    pub p99: Duration,
}

const DONE: &str = "done = function(all, latency, _)\n\
    local failed = all.errors\n\
    io.write(string.format('result %d %d %d %d %d\\n', all.requests, all.bytes, all.duration,\n\
        failed.connect + failed.read + failed.write + failed.timeout + failed.status, latency:percentile(99)))\n\
    end\n";

/// One thread of wrk with connections that are kept, asking for one address.
pub fn wrk(url: &str, connections: usize, length: Duration) -> Load {
    run_wrk(url, "", connections, length)
}

/// The same, asking for one of many paths after the other, in no order.
pub fn wrk_many(url: &str, paths: &[String], connections: usize, length: Duration) -> Load {
    let paths: Vec<String> = paths.iter().map(|path| format!("'{path}'")).collect();
    let script = format!(
        "local paths = {{{}}}\nrequest = function() return wrk.format(nil, paths[math.random(#paths)]) end\n",
        paths.join(",")
    );
    run_wrk(url, &script, connections, length)
}

fn run_wrk(url: &str, requests: &str, connections: usize, length: Duration) -> Load {
    let mut script = tempfile::NamedTempFile::new().expect("a temporary file");
    script.write_all([requests, DONE].concat().as_bytes()).expect("a temporary file takes bytes");
    // wrk counts in whole seconds: the shortest run is one of them.
    let seconds = length.as_secs().max(1).to_string();
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c", &connections.to_string(), "-d", &seconds, "--timeout", "20s"]);
    command.args(["-H", &format!("Accept: {ACCEPT}"), "-s"]).arg(script.path()).arg(url);
    let output = run_within(length + HANG, &mut command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let result = text.lines().find_map(|line| line.strip_prefix("result "));
    let numbers: Vec<u64> = result.unwrap_or_default().split(' ').filter_map(|word| word.parse().ok()).collect();
    let [requests, bytes, wall, failed, p99] = numbers[..] else {
        panic!("wrk {url}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
    };
    Load { requests, bytes, failed, wall: Duration::from_micros(wall), p99: Duration::from_micros(p99) }
}

/// Connections that ask for one body after the other, on one thread, until a time is over; each then reads its last one to
/// its end. A body that is not whole, or not a 200, ends the benchmark.
pub fn bodies(server: &Server, path: &str, connections: usize, length: Duration) -> Load {
    let began = Instant::now();
    let mut load = Load::default();
    read(server, path, connections, |fetched| {
        load.requests += 1;
        load.bytes += fetched.length;
        began.elapsed() < length
    });
    Load { wall: began.elapsed(), ..load }
}

/// So many clients that ask for one body at once, each on a connection of its own.
pub fn crowd(server: &Server, path: &str, clients: usize) -> Vec<Fetched> {
    let mut all = Vec::new();
    read(server, path, clients, |fetched| {
        all.push(fetched);
        false
    });
    all
}

/// One client, one body.
pub fn fetch(server: &Server, path: &str) -> Fetched {
    crowd(server, path, 1)[0]
}

/// So many clients that read one body each, until a time is over; then they go away. Somebody looks on.
pub fn streams(server: &Server, path: &str, clients: usize, length: Duration, mut look: impl FnMut()) {
    let failed = |error: std::io::Error| -> ! { panic!("GET {}: {error}", server.url(path)) };
    let open = || Reader::open(server, path).unwrap_or_else(|error| failed(error));
    let mut all: Vec<Reader> = (0..clients).map(|_| open()).collect();
    let began = Instant::now();
    while began.elapsed() < length {
        let mut came = false;
        for reader in &mut all {
            came |= reader.advance().unwrap_or_else(|error| failed(error));
            if reader.whole().is_some() {
                reader.again(server, path).unwrap_or_else(|error| failed(error));
            }
        }
        look();
        if !came {
            thread::sleep(REST);
        }
    }
}

/// Each of many bodies once, on one connection.
pub fn each_once(server: &Server, paths: &[String]) {
    let mut paths = paths.iter();
    let Some(first) = paths.next() else { return };
    let failed = |error: std::io::Error| -> ! { panic!("GET {}: {error}", server.url(first)) };
    let mut reader = Reader::open(server, first).unwrap_or_else(|error| failed(error));
    loop {
        reader.advance().unwrap_or_else(|error| failed(error));
        if let Some(fetched) = reader.whole() {
            assert_eq!(fetched.status, 200, "{}", server.url(first));
            let Some(next) = paths.next() else { return };
            reader.again(server, next).unwrap_or_else(|error| failed(error));
        }
    }
}

/// Readers on one thread, each of which goes on as long as it is told to after a body.
fn read(server: &Server, path: &str, readers: usize, mut goes_on: impl FnMut(Fetched) -> bool) {
    let failed = |error: std::io::Error| -> ! { panic!("GET {}: {error}", server.url(path)) };
    let open = || Reader::open(server, path).unwrap_or_else(|error| failed(error));
    let mut all: Vec<Reader> = (0..readers).map(|_| open()).collect();
    let mut heard = Instant::now();
    while !all.is_empty() {
        let mut came = false;
        all.retain_mut(|reader| {
            came |= reader.advance().unwrap_or_else(|error| failed(error));
            let Some(fetched) = reader.whole() else { return true };
            assert_eq!(fetched.status, 200, "GET {}", server.url(path));
            let goes_on = goes_on(fetched);
            if goes_on {
                reader.again(server, path).unwrap_or_else(|error| failed(error));
            }
            goes_on
        });
        if came {
            heard = Instant::now();
        } else {
            assert!(heard.elapsed() < HANG, "GET {}: nothing comes for {HANG:?}", server.url(path));
            thread::sleep(REST);
        }
    }
}
