//! What grows with a site: rules, cached blobs, connections. It should be flat.

use tidegate_tests::image::Image;
use tidegate_tests::site::Site;

use super::{Bench, WARM_UP, measure};
use crate::figures::{Against, CPU_REQUEST, Row};
use crate::load::{self, fetch, wrk, wrk_many};
use crate::stored;
use crate::tidegate::{self, PLUGINS, wasm, with_plugins};

/// So many of each, by name.
const RULES: [(&str, usize); 3] = [("10 rules", 10), ("1,000 rules", 1_000), ("100,000 rules", 100_000)];
const CONNECTIONS: [(&str, usize); 3] = [("1 connection", 1), ("100 connections", 100), ("1,000 connections", 1_000)];

/// The figures whose names begin with a number, one line each, for plots: what grows, and the names in order.
pub fn lines(row: &Row) -> Vec<(&'static str, Vec<(f64, f64)>)> {
    ["rules", "blobs", "connection"]
        .into_iter()
        .map(|kind| {
            let points = row.figures.iter().filter(|figure| figure.measure == CPU_REQUEST && figure.who.contains(kind));
            let point = |figure: &crate::figures::Figure| {
                let count = figure.who.split(' ').next()?.replace(',', "").parse().ok()?;
                Some((count, crate::figures::median(&figure.samples)))
            };
            (kind, points.filter_map(point).collect())
        })
        .collect()
}

/// Cost against size.
pub fn sizes(bench: &Bench) -> Row {
    let mut row = Row::new("size", "cost against size: rules, cached blobs, connections");
    let path = bench.stock.manifest(&Image::new("manifest", &[1000; 8]), "manifest");
    let rules = RULES.map(|(name, count)| tidegate::start(&with_rules(bench, count)).named(name));
    for peer in &rules {
        fetch(&peer.server, &path);
        wrk(&peer.server.url(&path), 32, WARM_UP);
    }
    for _ in 0..bench.rounds {
        for peer in &rules {
            measure(&mut row, peer, || wrk(&peer.server.url(&path), 32, bench.load_time()));
        }
    }
    drop(rules);
    row.goal("100,000 rules", CPU_REQUEST, Against::Beside("10 rules"));

    let blobs = [
        ("100 blobs", 100, stored::site(bench, 100)),
        ("10,000 blobs", 10_000, stored::site(bench, 10_000)),
        (bench.many_name(), bench.many_blobs(), bench.many()),
    ];
    let sites = blobs.map(|(name, count, site)| (tidegate::start(&site).named(name), stored::paths(count)));
    for (peer, paths) in &sites {
        // Each of them once, as in the hours before.
        load::each_once(&peer.server, paths);
    }
    for _ in 0..bench.rounds {
        for (peer, paths) in &sites {
            measure(&mut row, peer, || wrk_many(&peer.server.url(""), paths, 32, bench.load_time()));
        }
    }
    drop(sites);
    row.goal(bench.many_name(), CPU_REQUEST, Against::Beside("100 blobs"));

    let mut one = tidegate::start(&with_plugins(tidegate::site(bench.source()), 3)).named("");
    fetch(&one.server, &path);
    for _ in 0..bench.rounds {
        for (name, count) in CONNECTIONS {
            one.name = name;
            measure(&mut row, &one, || wrk(&one.server.url(&path), count, bench.load_time()));
        }
    }
    row.goal("1,000 connections", CPU_REQUEST, Against::Beside("1 connection"));
    row.note(format!("rules: manifests with the plugin allowlist alone; blobs: {} of them at random, 3 plugins; connections: manifests, 3 plugins", stored::ASKED));
    row
}

fn with_rules(bench: &Bench, count: usize) -> Site {
    let site = tidegate::site(bench.source());
    let name = PLUGINS[0].0;
    let rules: Vec<String> = (1..count).map(|at| format!("  \"docker.io/team-{}/app-{at}\",\n", at % 97)).collect();
    let list = format!("allow = [\n{}  \"docker.io/library/*\",\n]\n", rules.concat());
    site.install(&format!("{name}.toml"), list.as_bytes());
    if count > 10_000 {
        site.install(&format!("{name}.settings.toml"), b"memory = \"64MiB\"\n");
    }
    site.install(&format!("{name}.wasm"), &wasm(name));
    site
}
