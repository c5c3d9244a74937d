//! All six policies of the project in one proxy, four of them changed again and again, configurations and modules, under
//! load: what policy wants is pulled, and nothing else ever is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Dice, Ledger};
use crate::content::sha256;
use crate::cosign::{self, Signer};
use crate::fake::{Act, Fake, Reply};
use crate::http::{Answer, End};
use crate::image::Image;
use crate::plugins;
use crate::proxy::Proxy;
use crate::site::Site;

/// How much more memory the last quarter of the time may show than the second: what allocators keep between bursts.
/// Units: bytes.
const GROWTH_MAX: u64 = 16 << 20;
/// Images that are pulled.
const GOOD: usize = 6;
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json";

/// Everything of the run.
struct Stage {
    hub: Fake,
    /// Has half of the images, and fails for one of them.
    _mirror: Fake,
    proxy: Proxy,
    signer: Signer,
    good: Vec<Image>,
    ledger: Ledger,
    over: AtomicBool,
}

/// What may never be pulled, and a part of what the client must be told.
const DENIED: [(&str, &str); 5] = [
    // Denied by the allow list, or held by the cooldown, or both: never neither.
    ("turns", "docker.io/library/turns"),
    ("blocked", "is blocked by rule"),
    ("new", "is held until"),
    ("unsigned", "has no signature"),
    ("moved", "moved: it is"),
];

/// So many changes, one each so often; none: as fast as they take effect.
pub fn changes(count: u64, every: Option<Duration>, seed: u64) -> Ledger {
    let stage = Stage::set_up(&format!("six policies, {count} changes of four of them, seed {seed}"));
    let mut samples = Vec::new();
    thread::scope(|scope| {
        let mut dice = Dice::new(seed);
        for _ in 0..3 {
            let mut dice = dice.split();
            let stage = &stage;
            scope.spawn(move || stage.until_over(|| stage.pull(&mut dice)));
        }
        for _ in 0..2 {
            let mut dice = dice.split();
            let stage = &stage;
            scope.spawn(move || stage.until_over(|| stage.be_denied(&mut dice)));
        }
        let begun = Instant::now();
        let work = std::panic::AssertUnwindSafe(|| {
            for number in 0..count {
                stage.change(number, &mut dice);
                samples.push(stage.proxy.process().memory_bytes("VmRSS"));
                if let Some(every) = every {
                    let next = every * u32::try_from(number + 1).expect("fits");
                    thread::sleep(next.saturating_sub(begun.elapsed()));
                }
            }
        });
        // Also when the work panics, the threads come to an end.
        let done = std::panic::catch_unwind(work);
        stage.over.store(true, Ordering::SeqCst);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
        stage.ledger.most("changes a minute", count * 60 / begun.elapsed().as_secs().max(1));
    });
    stage.end(&samples);
    stage.ledger
}

impl Stage {
    fn set_up(title: &str) -> Self {
        let (hub, mirror, signer) = (Fake::start(), Fake::start(), Signer::new());
        let good: Vec<Image> = (0..GOOD).map(|at| Image::new(&format!("good{at}"), &[30_000, 20_000])).collect();
        let names = (0..GOOD).map(|at| format!("good{at}"));
        let all: Vec<(String, Image)> = names
            .zip(good.iter().cloned())
            .chain(DENIED.iter().map(|(name, _)| ((*name).to_owned(), Image::new(name, &[1000]))))
            .collect();
        for (name, image) in &all {
            hub.put_image(image, &format!("library/{name}:1"));
            if name != "unsigned" {
                let signature = signer.signature(&image.digest(), &format!("docker.io/library/{name}"));
                cosign::put_signatures(&hub, &format!("library/{name}"), &image.digest(), &[signature]);
            }
        }
        for (name, image) in all.iter().take(GOOD / 2) {
            mirror.put_image(image, &format!("library/{name}:1"));
        }
        mirror.always("/v2/library/good0/manifests/1", Act::Reply(Reply::status(503)));
        let site = Site::of(&hub.url())
            .registry("mirror-a.lan", &mirror.url(), "")
            .cache("tag_ttl = \"0s\"\nmiss_ttl = \"0s\"")
            .log("access = false")
            .with([
                ("10-allowlist.wasm", &plugins::allowlist()),
                ("10-allowlist.toml", blocking(0, true).as_bytes()),
                ("20-failover.wasm", &plugins::failover()),
                (
                    "20-failover.toml",
                    b"[[upstream]]\nprefix = \"docker.io\"\nmirrors = [\"mirror-a.lan\"]\non = { any = \"next\" }\n",
                ),
                ("30-cooldown.wasm", &plugins::cooldown()),
                ("30-cooldown.toml", holding(0, false).as_bytes()),
                ("40-require-signature.wasm", &plugins::require_signature()),
                ("40-require-signature.toml", requiring(0).as_bytes()),
                ("40-require-signature.d/cosign.pub", signer.public_pem().as_bytes()),
                ("50-tag-guard.wasm", &plugins::tag_guard()),
                ("50-tag-guard.toml", guarding(0).as_bytes()),
                ("60-quota.wasm", &plugins::quota()),
                ("60-quota.toml", b"[[upstream]]\nregistry = \"docker.io\"\nlow = 5\n"),
            ]);
        let proxy = site.start();
        let (ledger, over) = (Ledger::new(title), AtomicBool::new(false));
        let stage = Self { hub, _mirror: mirror, proxy, signer, good, ledger, over };
        // The tag moves once its first digest is known.
        let first = stage.ask("/v2/library/moved/manifests/1");
        assert_eq!(first.status, 200, "{}", first.text());
        let moved = Image::new("moved again", &[1000]);
        stage.hub.put_image(&moved, "library/moved:1");
        let signature = stage.signer.signature(&moved.digest(), "docker.io/library/moved");
        cosign::put_signatures(&stage.hub, "library/moved", &moved.digest(), &[signature]);
        stage
    }

    fn until_over(&self, mut work: impl FnMut()) {
        while !self.over.load(Ordering::SeqCst) {
            work();
        }
    }

    fn ask(&self, path: &str) -> Answer {
        self.proxy.get(path).field("Accept", ACCEPT).fetch()
    }

    /// An image that policy lets through, by tag and to its last blob.
    fn pull(&self, dice: &mut Dice) {
        let at = usize::try_from(dice.below(GOOD as u64)).expect("an index");
        let image = &self.good[at];
        let mut paths = vec![
            (format!("/v2/library/good{at}/manifests/1"), image.digest()),
            (format!("/v2/library/good{at}/manifests/{}", image.digest()), image.digest()),
        ];
        paths.extend(image.blobs.iter().map(|blob| {
            let digest = sha256(blob);
            (format!("/v2/library/good{at}/blobs/{digest}"), digest)
        }));
        for (path, digest) in paths {
            let answer = self.ask(&path);
            let right = answer.status == 200 && answer.end == End::Whole && sha256(&answer.body) == digest;
            self.ledger.must(right, || format!("{path}: {} {}", answer.status, answer.text()));
        }
        self.ledger.add("images pulled whole", 1);
    }

    /// An image that no set of policies lets through.
    fn be_denied(&self, dice: &mut Dice) {
        let (name, told) = *dice.one(&DENIED);
        let path = format!("/v2/library/{name}/manifests/1");
        let answer = self.ask(&path);
        let right = answer.status == 403 && answer.message().contains(told);
        self.ledger.must(right, || format!("{path}: {} {}", answer.status, answer.text()));
        self.ledger.add("pulls denied as they must be", 1);
    }

    /// One change, waited for until it is in effect.
    fn change(&self, number: u64, dice: &mut Dice) {
        // From one to the other and back, over a set in which both deny: a request that took its admission from one
        // set and its inspection from another would find neither.
        match number % 8 {
            0 => self.install("30-cooldown.toml", holding(number, true).as_bytes()),
            1 => self.install("10-allowlist.toml", blocking(number, false).as_bytes()),
            4 => self.install("10-allowlist.toml", blocking(number, true).as_bytes()),
            5 => self.install("30-cooldown.toml", holding(number, false).as_bytes()),
            _ => match dice.below(6) {
                0 => self.install("40-require-signature.toml", requiring(number).as_bytes()),
                1 => self.install("50-tag-guard.toml", guarding(number).as_bytes()),
                2 => self.install("10-allowlist.wasm", &stamped(plugins::allowlist(), number)),
                3 => self.install("30-cooldown.wasm", &stamped(plugins::cooldown(), number)),
                4 => self.install("40-require-signature.wasm", &stamped(plugins::require_signature(), number)),
                _ => self.install("50-tag-guard.wasm", &stamped(plugins::tag_guard(), number)),
            },
        }
        self.ledger.add("changes in effect", 1);
    }

    fn install(&self, name: &str, bytes: &[u8]) {
        self.proxy.reload(|site| site.install(name, bytes));
    }

    fn end(&self, samples: &[u64]) {
        let middle = |samples: &[u64]| {
            let mut samples = samples.to_vec();
            samples.sort_unstable();
            samples[samples.len() / 2]
        };
        let quarter = samples.len() / 4;
        let (early, late) = (middle(&samples[quarter..2 * quarter]), middle(&samples[3 * quarter..]));
        self.ledger.most("MiB resident, second quarter", early >> 20);
        self.ledger.most("MiB resident, last quarter", late >> 20);
        self.ledger.must(late < early + GROWTH_MAX, || {
            format!("memory grows: {} KiB in the second quarter, {} KiB in the last", early >> 10, late >> 10)
        });
        self.ledger.must(self.proxy.process().ended().is_none(), || "the proxy has ended".to_owned());
        let log = self.proxy.log();
        let bad = log.lines().filter(|line| line.contains("panicked at") || line.contains("plugin not loaded"));
        self.ledger.lose_all(bad.map(str::to_owned));
    }
}

fn blocking(version: u64, turns: bool) -> String {
    let turns = if turns { ", \"docker.io/library/turns\"" } else { "" };
    format!("# version {version}\nblock = [\"docker.io/library/blocked\"{turns}]\n")
}

fn holding(version: u64, turns: bool) -> String {
    let turns = if turns { "" } else { ", \"docker.io/library/turns\"" };
    let good: Vec<String> = (0..GOOD).map(|at| format!("\"docker.io/library/good{at}\"")).collect();
    let others = "\"docker.io/library/blocked\", \"docker.io/library/unsigned\", \"docker.io/library/moved\"";
    format!("# version {version}\ndays = 7\nexcept = [{}, {others}{turns}]\n", good.join(", "))
}

fn requiring(version: u64) -> String {
    format!("# version {version}\ndefault = \"deny\"\n[[policy]]\nimages = [\"docker.io\"]\nkeys = [\"cosign.pub\"]\n")
}

fn guarding(version: u64) -> String {
    format!("# version {version}\nmoved = \"deny\"\n")
}

/// The same module as another file: with a custom section of its own at its end.
fn stamped(mut module: Vec<u8>, version: u64) -> Vec<u8> {
    let name = b"version";
    let payload = 1 + name.len() + 8;
    module.extend([0, u8::try_from(payload).expect("short"), u8::try_from(name.len()).expect("short")]);
    module.extend(name);
    module.extend(version.to_le_bytes());
    module
}
