//! Plugin files that were cut, and plugin files with one bit changed: each is refused, or loaded, and nothing else.

use std::collections::{BTreeMap, HashSet};

use super::{Dice, Ledger};
use crate::fake::Fake;
use crate::guests::{self, Does, Guest};
use crate::proxy::{Mark, Proxy};
use crate::site::Site;

/// Files that are judged at once: a folder has at most 64 plugins.
const BATCH: usize = 50;
/// What the proxy may have resident meanwhile. Units: bytes.
const RESIDENT_MAX: u64 = 192 << 20;
/// Any path: what is denied needs not to be there.
const ASKED: &str = "/v2/library/app/manifests/1";

/// A file to be judged, by the name of its plugin.
type Files = BTreeMap<String, Vec<u8>>;

/// A component that is cut at every hundredth, and a core module at every twentieth.
pub fn cuts() -> Ledger {
    let ledger = Ledger::new("plugin files that were cut");
    let (_fake, proxy) = stage();
    let component = guests::denier("never");
    let module = Guest::new().admits(Does::Denies("never")).core();
    for (kind, whole, step) in [("component", component, 1), ("module", module, 5)] {
        let cut = |share: usize| (format!("{kind}-{share:02}"), whole[..whole.len() * share / 100].to_vec());
        judge_all(&proxy, (1..100).step_by(step).map(cut).collect(), &ledger);
    }
    ledger.must(ledger.done("files loaded") == 0, || "a part of a plugin was loaded".to_owned());
    ledger
}

/// One bit is changed, in so many places, or in every byte.
pub fn flips(count: Option<usize>, seed: u64) -> Ledger {
    let ledger = Ledger::new(&format!("plugin files with one bit changed, seed {seed}"));
    let (_fake, proxy) = stage();
    let whole = guests::denier("never");
    let mut dice = Dice::new(seed);
    let len = whole.len() as u64;
    let places: Vec<u64> = match count {
        Some(count) => (0..count).map(|_| dice.below(len)).collect(),
        None => (0..len).collect(),
    };
    let flipped = |place: u64| {
        let mut bytes = whole.clone();
        bytes[usize::try_from(place).expect("in the file")] ^= 1 << dice.below(8);
        (format!("flip-{place:06}"), bytes)
    };
    judge_all(&proxy, places.into_iter().map(flipped).collect(), &ledger);
    ledger
}

/// A proxy with a plugin that denies everything, whatever comes beside it.
fn stage() -> (Fake, Proxy) {
    let fake = Fake::start();
    let proxy = Site::of(&fake.url()).with([("10-good.wasm", &guests::denier("as ever"))]).start();
    (fake, proxy)
}

fn judge_all(proxy: &Proxy, files: Files, ledger: &Ledger) {
    let files: Vec<(String, Vec<u8>)> = files.into_iter().collect();
    for batch in files.chunks(BATCH) {
        judge(proxy, batch, ledger);
        let resident = proxy.process().memory_bytes("VmHWM");
        ledger.must(resident < RESIDENT_MAX, || format!("{} MiB resident", resident >> 20));
        ledger.most("MiB resident at the peak", resident >> 20);
    }
}

/// Puts many files there at once, waits until each was judged, and takes them away.
fn judge(proxy: &Proxy, files: &[(String, Vec<u8>)], ledger: &Ledger) {
    let mark = proxy.mark();
    for (name, bytes) in files {
        proxy.site().install(&format!("50-{name}.wasm"), bytes);
    }
    // The last one there, and the last one in order: when it is in effect, all others have been looked at.
    proxy.site().install("99-sentinel.wasm", &guests::admission(Does::Nothing));
    wait_in_effect(proxy, mark, "sentinel");
    let refused = proxy.events(mark, "plugin not loaded");
    let loaded: HashSet<String> =
        proxy.events(mark, "plugin loaded").iter().map(|event| event.field("plugin")).collect();
    for (name, _) in files {
        let reasons: Vec<String> =
            refused.iter().filter(|event| event.field("plugin") == *name).map(|event| event.field("reason")).collect();
        let times = reasons.len() + usize::from(loaded.contains(name));
        ledger.must(times == 1, || format!("{name} is told {times} times"));
        for reason in &reasons {
            let bad = reason.is_empty() || reason.contains("panic") || reason.contains(char::is_control);
            ledger.must(!bad, || format!("{name}: the reason {reason:?}"));
        }
        ledger.add(if reasons.is_empty() { "files loaded" } else { "files refused" }, 1);
    }
    let answer = proxy.get(ASKED).fetch();
    ledger.must(answer.status == 403 && answer.message().contains("as ever"), || format!("decided: {}", answer.text()));
    let mark = proxy.mark();
    for (name, _) in files {
        proxy.site().remove(&format!("50-{name}.wasm"));
    }
    proxy.site().remove("99-sentinel.wasm");
    proxy.wait(mark, "plugins in effect", &[("plugins", "good")]);
}

/// Waits for a set that has a plugin.
fn wait_in_effect(proxy: &Proxy, mark: Mark, plugin: &str) {
    proxy.wait_for(mark, "plugins in effect", |event| {
        event.field("plugins").split(',').any(|name| name.trim() == plugin)
    });
}
