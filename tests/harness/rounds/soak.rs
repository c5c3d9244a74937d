//! All kinds of clients, reloads and faults at once, for as long as is asked for; afterwards all is as before.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::{Dice, Holdings, Ledger, read_part};
use crate::content::{Content, sha256};
use crate::eventually;
use crate::fake::{Act, Fake, Reply};
use crate::guests::{self, Does, Guest};
use crate::http::End;
use crate::image::Image;
use crate::proxy::Proxy;
use crate::site::Site;

/// Blobs of one worker that are cold again and again: the disk holds no more of them than these.
const COLD: u64 = 24;
/// Units: bytes.
const BLOB_MAX: u64 = 2_000_000;
/// How often a client asks for what a fault kept from it, before that counts as lost.
const TRIES: usize = 8;
/// Samples of the memory over the whole time.
const SAMPLES: u32 = 120;
/// How much more memory the last quarter of the time may show than the second: what allocators keep between bursts.
/// Units: bytes.
const GROWTH_MAX: u64 = 16 << 20;
/// Threads and descriptors that a process opens once and keeps.
const KEPT: usize = 16;

struct Soak {
    fake: Fake,
    proxy: Proxy,
    ledger: Ledger,
    over: AtomicBool,
    /// Workers that still run.
    workers: AtomicUsize,
}

/// Runs for so long.
pub fn soak(time: Duration, seed: u64) -> Ledger {
    let mut dice = Dice::new(seed);
    let fake = Fake::start();
    let proxy = Site::of(&fake.url()).log("access = false").with([("10-gate.wasm", &allows(0))]).start();
    let ledger = Ledger::new(&format!("soak of {} s, seed {seed}", time.as_secs()));
    let soak = Soak { fake, proxy, ledger, over: AtomicBool::new(false), workers: AtomicUsize::new(0) };
    let image = Image::small("app");
    soak.fake.put_image(&image, "library/app:1");
    // What is opened once is opened before the first count.
    soak.pull(&image);
    let before = Holdings::of(soak.proxy.process(), soak.proxy.site());
    let mut samples = Vec::new();
    thread::scope(|scope| {
        let worker = |work: &'static (dyn Fn(&Soak, u64, &mut Dice) + Sync), dice: Dice| {
            let number = soak.workers.fetch_add(1, Ordering::SeqCst) as u64;
            let soak = &soak;
            scope.spawn(move || {
                let mut dice = dice;
                while !soak.over.load(Ordering::SeqCst) {
                    work(soak, number, &mut dice);
                }
            });
        };
        worker(&|soak, number, dice| soak.cold(number, dice), dice.split());
        worker(&|soak, number, dice| soak.cold(number, dice), dice.split());
        worker(&|soak, number, dice| soak.ranges(number, dice), dice.split());
        worker(&|soak, number, dice| soak.ranges(number, dice), dice.split());
        worker(&|soak, number, dice| soak.reset(number, dice), dice.split());
        worker(&|soak, _, dice| soak.wrong(dice), dice.split());
        worker(&|soak, _, dice| soak.reload(dice), dice.split());
        let warm = &image;
        scope.spawn(|| {
            while !soak.over.load(Ordering::SeqCst) {
                soak.pull(warm);
            }
        });
        let (end, pause) = (Instant::now() + time, time / SAMPLES);
        while Instant::now() < end {
            samples.push(soak.proxy.process().memory_bytes("VmRSS"));
            soak.fake.forget();
            thread::park_timeout(pause);
        }
        soak.over.store(true, Ordering::SeqCst);
    });
    soak.end(&before, &samples);
    soak.ledger
}

/// A plugin that allows everything, one like no other.
fn allows(number: u64) -> Vec<u8> {
    Guest::new().admits(Does::Warns(&format!("version {number}"))).component()
}

impl Soak {
    fn end(&self, before: &Holdings, samples: &[u64]) {
        let middle = |samples: &[u64]| {
            let mut samples = samples.to_vec();
            samples.sort_unstable();
            samples[samples.len() / 2]
        };
        let quarter = samples.len() / 4;
        let (early, late) = (middle(&samples[quarter..2 * quarter]), middle(&samples[3 * quarter..]));
        self.ledger.most("MiB resident, second quarter", early >> 20);
        self.ledger.most("MiB resident, last quarter", late >> 20);
        self.ledger.most("MiB resident at the peak", self.proxy.process().memory_bytes("VmHWM") >> 20);
        self.ledger.must(late < early + GROWTH_MAX, || {
            format!("memory grows: {} KiB in the second quarter, {} KiB in the last", early >> 10, late >> 10)
        });
        self.ledger.must(self.proxy.process().ended().is_none(), || "the proxy has ended".to_owned());
        let panics = self.proxy.log().lines().filter(|line| line.contains("panicked at")).count();
        self.ledger.must(panics == 0, || format!("{panics} panics in the log"));
        for (path, len) in self.proxy.site().blobs() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let right = fs::read(&path).is_ok_and(|bytes| sha256(&bytes) == format!("sha256:{name}"));
            self.ledger.must(right, || format!("{} ({len} bytes) is not what its name says", path.display()));
            self.ledger.add("files of the cache verified at the end", 1);
        }
        // What was pooled towards the upstream goes with it.
        self.fake.stop();
        eventually("descriptors, threads and staging files are back", || {
            Holdings::of(self.proxy.process(), self.proxy.site()).are_back_to(before, KEPT)
        });
    }

    /// A warm pull, as a client does it.
    fn pull(&self, image: &Image) {
        let mut paths = vec![("/v2/library/app/manifests/1".to_owned(), image.digest())];
        paths.extend(image.blobs.iter().map(|blob| {
            let digest = sha256(blob);
            (format!("/v2/library/app/blobs/{digest}"), digest)
        }));
        for (path, digest) in paths {
            match self.proxy.get(&path).open() {
                Ok(response) => {
                    let answer = response.finish();
                    let right = answer.status == 200 && answer.end == End::Whole && sha256(&answer.body) == digest;
                    self.ledger.must(right, || format!("{path}: status {}, {:?}", answer.status, answer.end));
                }
                Err(error) => self.ledger.lose(format!("{path}: {error}")),
            }
        }
        self.ledger.add("warm pulls", 1);
    }

    /// One of a worker's own blobs, which is not cached any more.
    fn cold_blob(&self, number: u64, dice: &mut Dice) -> (String, Content) {
        let at = dice.below(COLD);
        // The same number, the same blob.
        let len = Dice::new(at * 100 + number).below(BLOB_MAX) + 1;
        let content = Content::noise(at * 100 + number, len);
        let path = self.fake.put_blob("library/cold", content.clone());
        // As an operator's hand, or another program, may do it.
        let _ = fs::remove_file(self.proxy.site().blob_path(&content.digest()));
        (path, content)
    }

    /// A cold blob whose upstream fails in some way, or does not.
    fn cold(&self, number: u64, dice: &mut Dice) {
        let (path, content) = self.cold_blob(number, dice);
        let at = dice.below(content.len());
        let act = match dice.below(10) {
            0 | 1 => Some(Act::CloseAfter(at)),
            2 | 3 => Some(Act::ResetAfter(at)),
            4 => Some(Act::ServeChunked),
            5 => Some(Act::ServeWhole),
            6 => Some(Act::Reply(Reply::status(503))),
            7 => Some(Act::Lie(content.corrupted())),
            _ => None,
        };
        if let Some(act) = act {
            self.fake.next(&path, act);
            self.ledger.add("faults of the upstream", 1);
        }
        for _ in 0..TRIES {
            let Ok(response) = self.proxy.get(&path).open() else {
                self.ledger.lose(format!("{path} is not answered"));
                return;
            };
            if response.status != 200 {
                self.ledger.add("errors told in place of a body", 1);
                continue;
            }
            let (_, end, wrong) = read_part(response, &content, 0, content.len(), |_| ());
            match (end, wrong) {
                (End::Whole, None) => {
                    self.ledger.add("cold bodies that came whole and right", 1);
                    return;
                }
                (End::Whole, Some(wrong)) => {
                    self.ledger.lose(wrong);
                    return;
                }
                // Wrong bytes end short, never whole.
                _ => self.ledger.add("bodies that ended short", 1),
            }
        }
        self.ledger.lose(format!("{path} does not come, {TRIES} times"));
    }

    /// Ranges of a blob that is on its way, or cached.
    fn ranges(&self, number: u64, dice: &mut Dice) {
        let (path, content) = self.cold_blob(number, dice);
        for _ in 0..4 {
            let from = dice.below(content.len());
            let to = from + dice.below(content.len() - from) + 1;
            let request = self.proxy.get(&path).field("Range", &format!("bytes={from}-{}", to - 1));
            match request.open() {
                Ok(response) if response.status == 206 => {
                    let (_, end, wrong) = read_part(response, &content, from, to, |_| ());
                    self.ledger.must(end == End::Whole, || format!("a range of {path} ends {end:?}"));
                    self.ledger.lose_all(wrong);
                    self.ledger.add("ranges that came whole and right", 1);
                }
                Ok(response) => self.ledger.lose(format!("status {} for a range of {path}", response.status)),
                Err(error) => self.ledger.lose(format!("{path}: {error}")),
            }
        }
    }

    /// A client that resets after some bytes.
    fn reset(&self, number: u64, dice: &mut Dice) {
        let (path, content) = self.cold_blob(number, dice);
        let Ok(stream) = TcpStream::connect(self.proxy.authority()) else {
            self.ledger.lose("a client is not accepted".to_owned());
            return;
        };
        let _ = (&stream).write_all(format!("GET {path} HTTP/1.1\r\nHost: mirror\r\n\r\n").as_bytes());
        let mut left = dice.below(content.len());
        let mut buffer = vec![0; 32 << 10];
        while left > 0 {
            let take = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match std::io::Read::read(&mut (&stream), &mut buffer[..take]) {
                Ok(read) if read > 0 => left -= read as u64,
                _ => break,
            }
        }
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        self.ledger.add("clients that reset", 1);
    }

    /// Requests that are none.
    fn wrong(&self, dice: &mut Dice) {
        let path = *dice.one(&[
            "/v2/Library/x/manifests/1",
            "/v2/a..b/manifests/1",
            "/v2/library/app/blobs/sha256:abc",
            "/v2/library/app/manifests/none",
            "/v2/library/app/manifests/1?ns=unlisted.lan",
            "/v2/_catalog",
            "/nothing",
        ]);
        match self.proxy.get(path).open() {
            Ok(response) => {
                self.ledger
                    .must((400..500).contains(&response.status), || format!("status {} for {path}", response.status));
                self.ledger.add("wrong names refused", 1);
            }
            Err(error) => self.ledger.lose(format!("{path}: {error}")),
        }
    }

    /// Another version of the plugin; now and then one that does not load.
    fn reload(&self, dice: &mut Dice) {
        if dice.one_in(8) {
            let bad = guests::denier("never");
            let cut = usize::try_from(dice.below(bad.len() as u64 - 1)).expect("an index") + 1;
            self.proxy.refusal("gate", |site| site.copy("10-gate.wasm", &bad[..cut]));
            self.ledger.add("plugins refused", 1);
        } else {
            let version = allows(dice.below(1 << 40));
            self.proxy.reload(|site| site.install("10-gate.wasm", &version));
            self.ledger.add("plugins replaced", 1);
        }
    }
}
