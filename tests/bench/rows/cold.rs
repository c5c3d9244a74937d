//! What is not there yet: one client at an upstream of a known rate, and a crowd.

use std::fs;
use std::time::Duration;

use super::{Bench, there};
use crate::cpu::Spent;
use crate::figures::{Against, CPU_GB, FIRST_BYTE, Measure, Row, THROUGHPUT, WALL, millis, number, seconds_a_gigabyte};
use crate::load::{self, crowd, fetch};
use crate::peers::{self, Missing, Peer};
use crate::stock::Stock;
use crate::tidegate::{self, with_plugins};

/// Name of the straight way, name of ours, what limits a connection at the upstream (bytes a second).
const LINES: [(&str, &str, Option<u64>); 3] = [
    ("straight, 1 Gbit/s", "tidegate, 1 Gbit/s", Some(125_000_000)),
    ("straight, 2.5 Gbit/s", "tidegate, 2.5 Gbit/s", Some(312_500_000)),
    ("straight, no limit", "tidegate, no limit", None),
];

const TRANSFERS: Measure = Measure { name: "upstream transfers", unit: "" };
const LAST: Measure = Measure { name: "last client", unit: "s" };
const SINGLE: Measure = Measure { name: "single client", unit: "s" };
/// The last client's time, of what a single client and the machine's own copying take together.
const OF_IDEAL: Measure = Measure { name: "of single + copies", unit: "×" };
const CLIENTS: usize = 64;
const COPIES: &str = "64 copies of a file";
const CROWDED: &str = "tidegate, 3 plugins";

/// A proxy that has nothing yet, but is awake: it has a connection, and its plugins have decided once.
fn awake(peer: &Peer, stock: &Stock) {
    fetch(&peer.server, &stock.blob(9, 1000));
}

/// 1 GiB, one client.
pub fn one_client(bench: &Bench) -> Row {
    let length: u64 = if bench.quick { 128 << 20 } else { 1 << 30 };
    let mut row = Row::new("cold", &format!("cold blob of {} MiB, one client, 3 plugins", length >> 20));
    let path = bench.stock.blob(3, length);
    for (straight, through, limit) in LINES {
        let limit = limit.map(|rate| format!("limit_rate {rate};")).unwrap_or_default();
        let Some(upstream) = there(&mut row, [peers::nginx_static(straight, bench.stock.root(), None, &limit)]).pop()
        else {
            return row;
        };
        let site = with_plugins(tidegate::site(&upstream.server), 3);
        for _ in 0..bench.rounds {
            awake(&upstream, &bench.stock);
            sample(&mut row, &upstream, &path);
            let proxy = tidegate::start(&site).named(through);
            awake(&proxy, &bench.stock);
            sample(&mut row, &proxy, &path);
            drop(proxy);
            fs::remove_dir_all(site.path("cache")).expect("nobody has the cache");
        }
        if limit.is_empty() {
            row.goal(through, WALL, Against::Beside(straight));
        } else {
            row.goal(through, WALL, Against::AtMostTimes(1.05, straight));
            row.goal(through, FIRST_BYTE, Against::AtMostMore(2.0, straight));
        }
    }
    row.note("without a limit three programs share the processors: told, nothing is wanted");
    row
}

fn sample(row: &mut Row, peer: &Peer, path: &str) {
    let before = Spent::by(peer.pid());
    let fetched = fetch(&peer.server, path);
    let spent = Spent::by(peer.pid()).since(before);
    row.add(peer.name, WALL, fetched.wall.as_secs_f64());
    row.add(peer.name, FIRST_BYTE, millis(fetched.first_byte));
    row.add(peer.name, CPU_GB, seconds_a_gigabyte(spent, fetched.length));
}

/// 256 MiB, 64 clients at once.
pub fn many_clients(bench: &Bench) -> Row {
    let size: u64 = if bench.quick { 32 << 20 } else { 256 << 20 };
    let mut row = Row::new("crowd", &format!("cold blob of {} MiB, {CLIENTS} clients at once", size >> 20));
    let path = bench.stock.blob(4, size);
    let counted = "access_log FOLDER/access.log;";
    let upstream = there(&mut row, [peers::nginx_static("upstream", bench.stock.root(), None, counted)]).pop();
    let Some(upstream) = upstream else { return row };
    let start: [&dyn Fn() -> Result<Peer, Missing>; 3] = [
        &|| peers::nginx_cache("nginx proxy_cache", &upstream.server, ""),
        &|| peers::docker_registry("docker-registry", &upstream.server),
        &|| Ok(tidegate::start(&with_plugins(tidegate::site(&upstream.server), 3)).named(CROWDED)),
    ];
    load::bodies(&bench.upstream.server, &path, 4, Duration::from_millis(300));
    for _ in 0..bench.rounds {
        let copies = last(&bench.upstream, &path);
        row.add(COPIES, LAST, copies);
        row.add(COPIES, THROUGHPUT, number(size) * number(CLIENTS as u64) / 1e9 / copies);
        for start in start {
            for peer in there(&mut row, [start()]) {
                awake(&peer, &bench.stock);
                row.add(peer.name, SINGLE, fetch(&peer.server, &path).wall.as_secs_f64());
            }
            for peer in there(&mut row, [start()]) {
                awake(&peer, &bench.stock);
                let before = (transfers(&upstream, &path), Spent::by(peer.pid()));
                let took = last(&peer, &path);
                let spent = Spent::by(peer.pid()).since(before.1);
                row.add(peer.name, TRANSFERS, number(transfers(&upstream, &path) - before.0));
                row.add(peer.name, LAST, took);
                row.add(peer.name, CPU_GB, seconds_a_gigabyte(spent, size * CLIENTS as u64));
                let single = *row.samples(peer.name, SINGLE).and_then(<[f64]>::last).expect("it was measured");
                row.add(peer.name, OF_IDEAL, took / (single + copies));
            }
        }
    }
    row.goal(CROWDED, TRANSFERS, Against::AtMost(1.0));
    row.goal(CROWDED, LAST, Against::Beside("nginx proxy_cache"));
    row.goal(CROWDED, LAST, Against::Beside("docker-registry"));
    row.goal(CROWDED, OF_IDEAL, Against::AtMost(1.3));
    row.note("copies: what loopback needs for as many copies of a warm file, by nginx");
    row
}

/// When the last of the clients was done. Units: seconds.
fn last(peer: &Peer, path: &str) -> f64 {
    crowd(&peer.server, path, CLIENTS).iter().map(|one| one.wall).max().unwrap_or_default().as_secs_f64()
}

/// How often the upstream was asked for a body so far. It tells so when it has sent all of it.
fn transfers(upstream: &Peer, path: &str) -> u64 {
    let log = fs::read_to_string(upstream.folder().join("access.log")).unwrap_or_default();
    log.lines().filter(|line| line.contains(&format!("\"GET {path}"))).count() as u64
}
