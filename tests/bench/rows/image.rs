//! A whole image by the clients that people use, over a line of 1 Gbit/s that all connections to the upstream share.

use std::env;
use std::fs;
use std::process::Command;
use std::time::Instant;

use tidegate_tests::clients::{Client, Containerd, Docker, Skopeo};
use tidegate_tests::image::Image;

use super::{Bench, there};
use crate::INSIDE;
use crate::figures::{Against, Row, WALL};
use crate::peers::{self, find};
use crate::stock::REPOSITORY;
use crate::tidegate::{self, with_plugins};

/// The upstream's address, whose line is thin. Every other one has all that loopback gives.
const UPSTREAM: &str = "127.0.0.2";

/// Each client's ways: straight, cold and warm.
const WAYS: [[&str; 3]; 3] = [
    ["skopeo, straight", "skopeo, cold", "skopeo, warm"],
    ["containerd, straight", "containerd, cold", "containerd, warm"],
    ["docker, straight", "docker, cold", "docker, warm"],
];

/// A line of 1 Gbit/s for as long as it lives.
struct ThinLine;

impl ThinLine {
    fn new() -> Result<Self, String> {
        if env::var_os(INSIDE).is_none() {
            return Err("left out: this machine gives no network of its own".to_owned());
        }
        let script = format!(
            "tc qdisc add dev lo root handle 1: htb default 0\n\
             tc class add dev lo parent 1: classid 1:1 htb rate 1gbit burst 256k cburst 256k quantum 60000\n\
             tc filter add dev lo parent 1: protocol ip u32 match ip src {UPSTREAM}/32 flowid 1:1"
        );
        let output = Command::new("sh").args(["-ec", &script]).output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(Self) } else { Err(format!("left out: tc says {said}")) }
    }
}

impl Drop for ThinLine {
    fn drop(&mut self) {
        let _ = Command::new("tc").args(["qdisc", "del", "dev", "lo", "root"]).status();
    }
}

/// A client, started where it is a daemon.
enum Puller {
    Skopeo,
    Containerd(Containerd),
    Docker(Docker),
}

impl Puller {
    /// Pulls, forgets, and tells how long the pull took. Units: seconds.
    fn pull(&self, authority: &str, tag: &str) -> f64 {
        let name = format!("{authority}/docker.io/{REPOSITORY}:{tag}");
        match self {
            Self::Skopeo => {
                let skopeo = Skopeo::new(authority);
                let image = format!("{REPOSITORY}:{tag}");
                let took = seconds(|| skopeo.pull(&image));
                skopeo.remove(&image);
                took
            }
            Self::Containerd(daemon) => {
                let pull = ["images", "pull", "--snapshotter", "overlayfs", "--plain-http", &name];
                let took = seconds(|| daemon.ctr(&pull));
                daemon.ctr(&["images", "rm", "--sync", &name]).unwrap_or_else(|error| panic!("{error}"));
                took
            }
            Self::Docker(daemon) => {
                let took = seconds(|| daemon.docker(&["pull", "--quiet", &name]));
                daemon.docker(&["image", "rm", "--force", &name]).unwrap_or_else(|error| panic!("{error}"));
                took
            }
        }
    }
}

fn seconds(pull: impl FnOnce() -> Result<String, String>) -> f64 {
    let began = Instant::now();
    pull().unwrap_or_else(|error| panic!("{error}"));
    began.elapsed().as_secs_f64()
}

/// Eight layers, incompressible.
pub fn whole(bench: &Bench) -> Row {
    let layer: usize = if bench.quick { 8 << 20 } else { 64 << 20 };
    let work = format!("whole image of 8 layers of {} MiB, upstream at 1 Gbit/s, 3 plugins", layer >> 20);
    let mut row = Row::new("image", &work);
    let image = Image::new("whole", &[layer; 8]);
    bench.stock.image(&image, "whole");
    let upstream = peers::nginx_registry("upstream", UPSTREAM, bench.stock.root(), &image.digest());
    drop(image);
    let (Some(upstream), line) = (there(&mut row, [upstream]).pop(), ThinLine::new()) else { return row };
    if let Err(why) = &line {
        row.note(why);
        return row;
    }
    let site = with_plugins(tidegate::site(&upstream.server), 3);
    for (client, [straight, cold, warm]) in clients(&mut row) {
        for _ in 0..bench.rounds {
            row.add(straight, WALL, client.pull(&upstream.server.authority, "whole"));
            let proxy = tidegate::start(&site);
            row.add(cold, WALL, client.pull(&proxy.proxy.authority(), "whole"));
            row.add(warm, WALL, client.pull(&proxy.proxy.authority(), "whole"));
            drop(proxy);
            fs::remove_dir_all(site.path("cache")).expect("nobody has the cache");
        }
        row.goal(cold, WALL, Against::AtMostTimes(1.05, straight));
        row.goal(warm, WALL, Against::AtMostTimes(1.0, straight));
    }
    row
}

fn clients(row: &mut Row) -> Vec<(Puller, [&'static str; 3])> {
    let [skopeo, containerd, docker] = WAYS;
    let mut clients: Vec<(Puller, [&'static str; 3])> = Vec::new();
    for (program, package, start, ways) in [
        ("skopeo", "skopeo", (|| Puller::Skopeo) as fn() -> Puller, skopeo),
        ("containerd", "containerd", || Puller::Containerd(Containerd::start("127.0.0.1:9")), containerd),
        ("dockerd", "docker.io", || Puller::Docker(Docker::on_overlay()), docker),
    ] {
        match find(program, package) {
            Ok(_) => clients.push((start(), ways)),
            Err(missing) => row.note(missing.0),
        }
    }
    clients
}
