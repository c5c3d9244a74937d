//! A plugin that is replaced again and again: nothing of the versions before stays.

use std::fs;

use super::{Holdings, Ledger};
use crate::fake::Fake;
use crate::guests;
use crate::proxy::Proxy;
use crate::site::Site;

/// What the proxy may have resident more at the end than when all its pools were filled. A compiled guest takes some
/// 100 KiB: 40 of them that stay would be seen. Units: bytes.
const GROWN_MAX: u64 = 4 << 20;
/// Mappings that may be more, by chance: a compiled guest has four.
const MAPS_MAX: usize = 40;
/// Descriptors and threads that a process opens once and keeps.
const KEPT: usize = 4;

/// Replaces a plugin so many times, and asks it each time.
pub fn reloads(count: usize) -> Ledger {
    let ledger = Ledger::new("plugins that were replaced");
    let fake = Fake::start();
    let proxy = Site::of(&fake.url()).with([("10-gate.wasm", &guests::denier("version 0"))]).start();
    // The first rounds fill the pools and the free lists of the allocator.
    let first = count / 3;
    replace(&proxy, 1..first, &ledger);
    let before = Taken::by(&proxy);
    replace(&proxy, first..count + 1, &ledger);
    let after = Taken::by(&proxy);
    let grown = after.resident.saturating_sub(before.resident);
    ledger.most("KiB more", grown >> 10);
    ledger.most("mappings more", after.maps.saturating_sub(before.maps) as u64);
    if grown > GROWN_MAX {
        ledger.lose(format!("{} KiB resident more", grown >> 10));
    }
    if after.maps > before.maps + MAPS_MAX {
        ledger.lose(format!("{} mappings, {} before", after.maps, before.maps));
    }
    if !after.holdings.are_back_to(&before.holdings, KEPT) {
        ledger.lose(format!("{:?} is held, {:?} before", after.holdings, before.holdings));
    }
    ledger
}

fn replace(proxy: &Proxy, rounds: std::ops::Range<usize>, ledger: &Ledger) {
    for round in rounds {
        let message = format!("version {round}");
        proxy.reload(|site| site.install("10-gate.wasm", &guests::denier(&message)));
        let answer = proxy.get("/v2/library/app/manifests/1").fetch();
        if answer.status != 403 || !answer.message().contains(&message) {
            ledger.lose(format!("round {round}: {} {}", answer.status, answer.text()));
        }
        ledger.add("replacements", 1);
    }
}

/// What a process takes.
struct Taken {
    /// Units: bytes.
    resident: u64,
    maps: usize,
    holdings: Holdings,
}

impl Taken {
    fn by(proxy: &Proxy) -> Self {
        let process = proxy.process();
        let maps = fs::read_to_string(format!("/proc/{}/maps", process.id())).expect("it runs").lines().count();
        let holdings = Holdings::of(process, proxy.site());
        Self { resident: process.memory_bytes("VmRSS"), maps, holdings }
    }
}
