//! What operators see: reloads under load, starts, and memory.

use std::thread;
use std::time::{Duration, Instant};

use tidegate_tests::http;
use tidegate_tests::image::Image;
use tidegate_tests::site::Site;

use super::{Bench, there};
use crate::cpu::{Spent, resident};
use crate::figures::{
    Against, CPU_REQUEST, FAILED, MEMORY, Measure, Row, START, mebibytes, micros_each, millis, number,
};
use crate::load::{self, Load, wrk};
use crate::peers::{self, Missing, Peer};
use crate::tidegate::{self, PLUGINS, Tidegate, wasm, with_new_plugins, with_plugins};

const P99: Measure = Measure { name: "p99", unit: "ms" };
const RELOADS: Measure = Measure { name: "reloads in effect", unit: "" };

const QUIET: &str = "no reload";
const CONFIGURATION: &str = "configuration changed twice a second";
const CODE: &str = "code replaced every second";

/// How often memory is looked at under a load.
const LOOK: Duration = Duration::from_millis(20);

fn manifest_path(bench: &Bench) -> String {
    bench.stock.manifest(&Image::new("manifest", &[1000; 8]), "manifest")
}

/// A load with reloads and without.
pub fn reload(bench: &Bench) -> Row {
    let mut row = Row::new("reload", "plugin reload under load: manifests, 32 connections, 3 plugins");
    let path = manifest_path(bench);
    let length = Duration::from_secs(if bench.quick { 2 } else { 4 });
    let site = with_plugins(tidegate::site(bench.source()), 3);
    let tidegate = tidegate::start(&site);
    let server = tidegate.server();
    load::fetch(&server, &path);
    let mut version = 0_u64;
    for _ in 0..bench.rounds {
        for (who, period) in [(QUIET, None), (CONFIGURATION, Some(500)), (CODE, Some(1000))] {
            let mark = tidegate.proxy.mark();
            let before = Spent::by(tidegate.proxy.process().id());
            let load: Load = thread::scope(|scope| {
                let load = scope.spawn(|| wrk(&server.url(&path), 32, length));
                while let (Some(period), false) = (period, load.is_finished()) {
                    version += 1;
                    change(&site, who, version);
                    thread::sleep(Duration::from_millis(period));
                }
                load.join().expect("wrk tells what it did")
            });
            let spent = Spent::by(tidegate.proxy.process().id()).since(before);
            row.add(who, FAILED, number(load.failed));
            row.add(who, P99, millis(load.p99));
            row.add(who, CPU_REQUEST, micros_each(spent, load.requests));
            let reloads = tidegate.proxy.events(mark, "plugins in effect").len() as u64;
            row.add(who, RELOADS, number(reloads));
        }
    }
    for who in [CONFIGURATION, CODE] {
        row.goal(who, FAILED, Against::AtMost(0.0));
        row.goal(who, P99, Against::AtMostTimes(2.0, QUIET));
    }
    row.note("code: other bytes each time, so it is compiled anew, on the same two processors");
    row
}

/// Another configuration, or other code that does the same.
fn change(site: &Site, who: &str, version: u64) {
    let (name, config) = PLUGINS[0];
    if who == CONFIGURATION {
        site.install(&format!("{name}.toml"), format!("# {version}\n{config}").as_bytes());
    } else {
        // A custom section: its number, its length, the length of its name, and a name.
        let name_of_section = format!("version-{version}");
        let length = u8::try_from(name_of_section.len()).expect("it is short");
        let section = [&[0, length + 1, length][..], name_of_section.as_bytes()].concat();
        site.install(&format!("{name}.wasm"), &[wasm(name), section].concat());
    }
}

/// From exec to the first answered request.
pub fn start(bench: &Bench) -> Row {
    let mut row = Row::new("start", "start: from exec to the first answered request");
    let full = if bench.quick { "tidegate, 20,000 blobs, 3 plugins" } else { "tidegate, 1,000,000 blobs, 3 plugins" };
    let empty = "tidegate, empty cache, 3 plugins";
    let new = "tidegate, plugins compiled first";
    let sites = [with_plugins(tidegate::site(bench.source()), 3), bench.many()];
    for _ in 0..bench.rounds {
        there(
            &mut Row::new("", ""),
            [
                timed(&mut row, "nginx static", || peers::nginx_static("nginx", bench.stock.root(), None, "")),
                timed(&mut row, "docker-registry", || peers::docker_registry("docker-registry", bench.source())),
            ],
        );
        let first = with_new_plugins(tidegate::site(bench.source()), 3);
        for (who, site) in [(new, &first), (empty, &sites[0]), (full, &sites[1])] {
            // The first start of all compiles: it is measured by a site of its own.
            if who == empty && row.samples(empty, START).is_none() {
                drop(site.start());
            }
            let _peer = timed(&mut row, who, || Ok::<_, Missing>(tidegate::start(site).named("tidegate")));
        }
    }
    row.goal(empty, START, Against::AtMost(100.0));
    row.goal(empty, START, Against::Beside("nginx static"));
    row.goal(empty, START, Against::Beside("docker-registry"));
    row.goal(full, START, Against::AtMost(2000.0));
    row
}

fn timed<E>(row: &mut Row, who: &str, start: impl FnOnce() -> Result<Peer, E>) -> Result<Peer, E> {
    let began = Instant::now();
    let peer = start()?;
    let answer = http::get(&peer.server.url("/v2/")).fetch();
    assert_eq!(answer.status, 200, "{who}");
    row.add(who, START, millis(began.elapsed()));
    Ok(peer)
}

/// Resident memory: idle, with streams, with connections.
pub fn memory(bench: &Bench) -> Row {
    let mut row = Row::new("memory", "resident memory, 3 plugins");
    let (manifest, blob) = (manifest_path(bench), bench.stock.blob(3, if bench.quick { 128 << 20 } else { 1 << 30 }));
    let idle = Measure { name: "idle", ..MEMORY };
    let streams = Measure { name: "64 streams", ..MEMORY };
    let cold = Measure { name: "64 streams, cold", ..MEMORY };
    let connections = Measure { name: "1,000 connections", ..MEMORY };
    let tidegate = || tidegate::start(&with_plugins(tidegate::site(bench.source()), 3)).named("tidegate");
    // Memory is no matter of luck: fewer rounds do.
    for _ in 0..bench.rounds.min(2) {
        let peers = there(
            &mut row,
            [
                peers::nginx_static("nginx static", bench.stock.root(), None, ""),
                peers::docker_registry("docker-registry", bench.source()),
                Ok(tidegate()),
            ],
        );
        for peer in peers {
            load::fetch(&peer.server, &manifest);
            thread::sleep(Duration::from_secs(2));
            row.add(peer.name, idle, mebibytes(resident(peer.pid())));
            load::fetch(&peer.server, &blob);
            row.add(peer.name, streams, peak_of_streams(bench, &peer, &blob));
            row.add(peer.name, connections, peak_of_connections(&peer, &manifest));
        }
        let fresh = tidegate();
        row.add(fresh.name, cold, peak_of_streams(bench, &fresh, &blob));
    }
    for (measure, limit) in [(idle, 48.0), (streams, 64.0), (cold, 64.0), (connections, 128.0)] {
        row.goal("tidegate", measure, Against::AtMost(limit));
    }
    row.note("the peak under a load, looked at fifty times a second; pages that processes share count in each");
    row
}

fn peak_of_streams(bench: &Bench, peer: &Peer, path: &str) -> f64 {
    let (mut peak, mut looked) = (0, Instant::now());
    load::streams(&peer.server, path, 64, 2 * bench.load_time(), || {
        if looked.elapsed() > LOOK {
            looked = Instant::now();
            peak = peak.max(resident(peer.pid()));
        }
    });
    mebibytes(peak)
}

fn peak_of_connections(peer: &Peer, path: &str) -> f64 {
    let mut peak = 0;
    thread::scope(|scope| {
        let load = scope.spawn(|| wrk(&peer.server.url(path), 1000, Duration::from_secs(2)));
        while !load.is_finished() {
            peak = peak.max(resident(peer.pid()));
            thread::sleep(LOOK);
        }
        load.join().expect("wrk tells what it did");
    });
    mebibytes(peak)
}

impl Tidegate {
    fn server(&self) -> crate::reader::Server {
        crate::reader::Server { authority: self.proxy.authority(), tls: self.tls }
    }
}
