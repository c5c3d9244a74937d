//! What is there already: manifests and blobs out of caches and files, and what policy adds.

use tidegate_tests::authority::Authority;
use tidegate_tests::image::Image;

use super::{Bench, WARM_UP, measure, there};
use crate::figures::{Against, CPU_GB, CPU_REQUEST, REQUESTS, Row, THROUGHPUT};
use crate::load;
use crate::peers::{self, Peer};
use crate::tidegate::{self, with_plugins, with_tls};

const STATIC: &str = "nginx static";
const CACHE: &str = "nginx proxy_cache";
const REGISTRY: &str = "docker-registry";
const VARNISH: &str = "varnish";
const NONE: &str = "tidegate, no plugin";
const ONE: &str = "tidegate, 1 plugin";
const THREE: &str = "tidegate, 3 plugins";
const COUNTING: &str = "tidegate, 3 plugins and one that counts";
const STATIC_TLS: &str = "nginx static, TLS";
const TLS: &str = "tidegate, TLS";

/// An image of eight layers that nobody pulls: its manifest is as long as one of a real image.
fn manifest_path(bench: &Bench) -> String {
    bench.stock.manifest(&Image::new("manifest", &[1000; 8]), "manifest")
}

fn tidegate_with(bench: &Bench, name: &'static str, plugins: usize) -> Peer {
    tidegate::start(&with_plugins(tidegate::site(bench.source()), plugins)).named(name)
}

/// Manifest by tag, 32 connections.
pub fn manifest(bench: &Bench) -> Row {
    let mut row = Row::new("manifest", "warm manifest by tag, 32 connections");
    let path = manifest_path(bench);
    let peers = there(
        &mut row,
        [
            peers::nginx_static(STATIC, bench.stock.root(), None, ""),
            peers::nginx_cache(CACHE, bench.source(), ""),
            peers::docker_registry(REGISTRY, bench.source()),
            peers::varnish(VARNISH, bench.source()),
            Ok(tidegate_with(bench, NONE, 0)),
            Ok(tidegate_with(bench, THREE, 3)),
        ],
    );
    small_answers(bench, &mut row, &peers, &path, 32);
    row.goal(THREE, CPU_REQUEST, Against::AtMostTimes(1.0, STATIC));
    row.goal(THREE, CPU_REQUEST, Against::AtMostTimes(0.8, CACHE));
    row.goal(THREE, CPU_REQUEST, Against::Beside(REGISTRY));
    row.goal(THREE, CPU_REQUEST, Against::Beside(VARNISH));
    row.goal(NONE, CPU_REQUEST, Against::AtMostTimes(0.6, STATIC));
    row.goal(THREE, REQUESTS, Against::AtLeastTimes(1.0, STATIC));
    row.goal(NONE, REQUESTS, Against::AtLeastTimes(1.0, STATIC));
    row.note("docker-registry asks its upstream about a tag each time");
    row.note("plugins: allowlist; and failover; and gatekeeper");
    row
}

/// What plugins add to a manifest.
pub fn price(bench: &Bench) -> Row {
    let mut row = Row::new("price", "policy's price: the same manifest with no plugin, one, three");
    let path = manifest_path(bench);
    let with = |name, plugins| tidegate_with(bench, name, plugins);
    let peers = [with(NONE, 0), with(ONE, 1), with(THREE, 3), with(COUNTING, 4)];
    small_answers(bench, &mut row, &peers, &path, 32);
    let added = |who: &str| {
        let pairs = row.samples(who, CPU_REQUEST).into_iter().zip(row.samples(NONE, CPU_REQUEST));
        pairs.flat_map(|(with, without)| with.iter().zip(without).map(|(with, without)| with - without)).collect()
    };
    let (one, three): (Vec<f64>, Vec<f64>) = (added(ONE), added(THREE));
    for (one, three) in one.iter().zip(three) {
        row.add("the first plugin adds", CPU_REQUEST, *one);
        row.add("each of three adds", CPU_REQUEST, three / 3.0);
    }
    row.goal("the first plugin adds", CPU_REQUEST, Against::AtMost(2.0));
    row.goal("each of three adds", CPU_REQUEST, Against::AtMost(2.0));
    row.note("answers of the first three are remembered; with quota, which keeps a state, nothing of a request is given again");
    row.note(
        "Envoy 1.40 with one Proxy-Wasm filter adds 2.8 to 6.8 µs (measured on this kind of machine; not run here)",
    );
    row
}

/// 256 MiB, 4 connections.
pub fn blob(bench: &Bench) -> Row {
    let mut row = Row::new("blob", &format!("warm blob of {} MiB, 4 connections", blob_size(bench) >> 20));
    let path = bench.stock.blob(1, blob_size(bench));
    let peers = there(
        &mut row,
        [
            peers::nginx_static(STATIC, bench.stock.root(), None, ""),
            peers::nginx_cache(CACHE, bench.source(), ""),
            peers::docker_registry(REGISTRY, bench.source()),
            Ok(tidegate_with(bench, THREE, 3)),
        ],
    );
    large_answers(bench, &mut row, &peers, &path, 4);
    row.goal(THREE, CPU_GB, Against::AtMostTimes(1.1, STATIC));
    row.goal(THREE, CPU_GB, Against::Beside(CACHE));
    row.goal(THREE, CPU_GB, Against::Beside(REGISTRY));
    row.goal(THREE, THROUGHPUT, Against::AtLeastTimes(1.0, STATIC));
    row
}

/// The same over TLS.
pub fn blob_over_tls(bench: &Bench) -> Row {
    let mut row = Row::new("tls", &format!("warm blob of {} MiB over TLS, 4 connections", blob_size(bench) >> 20));
    let path = bench.stock.blob(1, blob_size(bench));
    let authority = Authority::new();
    let pair = authority.server("127.0.0.1".parse().expect("an address"));
    let peers = there(
        &mut row,
        [
            peers::nginx_static(STATIC_TLS, bench.stock.root(), Some(&pair), ""),
            Ok(tidegate::start(&with_tls(with_plugins(tidegate::site(bench.source()), 3), &pair)).named(TLS)),
        ],
    );
    large_answers(bench, &mut row, &peers, &path, 4);
    row.goal(TLS, CPU_GB, Against::AtMostTimes(1.0, STATIC_TLS));
    row.goal(TLS, THROUGHPUT, Against::AtLeastTimes(1.0, STATIC_TLS));
    row.note("TLS 1.3, AES-128-GCM; each body has a connection of its own; with 3 plugins");
    row
}

/// 64 KiB, 64 connections.
pub fn small_blob(bench: &Bench) -> Row {
    let mut row = Row::new("small", "warm blob of 64 KiB, 64 connections");
    let path = bench.stock.blob(2, 64 << 10);
    // With tcp_nopush, which spares it a packet for what is smaller, it waits for the client's delayed acknowledgements here.
    let peers = there(
        &mut row,
        [
            peers::nginx_static(STATIC, bench.stock.root(), None, ""),
            peers::nginx_cache(CACHE, bench.source(), "tcp_nopush off;"),
            Ok(tidegate_with(bench, THREE, 3)),
        ],
    );
    small_answers(bench, &mut row, &peers, &path, 64);
    row.goal(THREE, CPU_REQUEST, Against::AtMostTimes(1.0, CACHE));
    row.goal(THREE, CPU_REQUEST, Against::Beside(STATIC));
    row.goal(THREE, REQUESTS, Against::AtLeastTimes(1.0, CACHE));
    row
}

fn blob_size(bench: &Bench) -> u64 {
    if bench.quick { 64 << 20 } else { 256 << 20 }
}

/// Rounds of wrk, one after the other.
fn small_answers(bench: &Bench, row: &mut Row, peers: &[Peer], path: &str, connections: usize) {
    for peer in peers {
        load::fetch(&peer.server, path);
        load::wrk(&peer.server.url(path), connections, WARM_UP);
    }
    for _ in 0..bench.rounds {
        for peer in peers {
            measure(row, peer, || load::wrk(&peer.server.url(path), connections, bench.load_time()));
        }
    }
}

/// Rounds of our own reader.
fn large_answers(bench: &Bench, row: &mut Row, peers: &[Peer], path: &str, connections: usize) {
    for peer in peers {
        load::bodies(&peer.server, path, connections, WARM_UP);
    }
    for _ in 0..bench.rounds {
        for peer in peers {
            measure(row, peer, || load::bodies(&peer.server, path, connections, bench.load_time()));
        }
    }
}
