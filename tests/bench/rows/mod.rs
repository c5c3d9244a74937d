//! The kinds of work, in the order of the table.

pub mod cold;
pub mod image;
pub mod operation;
pub mod size;
pub mod warm;

use std::cell::OnceCell;
use std::time::Duration;

use tidegate_tests::disk::Disk;
use tidegate_tests::site::Site;

use crate::cpu::Spent;
use crate::figures::{
    CPU_GB, CPU_REQUEST, FAILED, REQUESTS, Row, THROUGHPUT, micros_each, number, per_second, seconds_a_gigabyte,
};
use crate::load::Load;
use crate::peers::{self, Missing, Peer};
use crate::reader::Server;
use crate::stock::Stock;
use crate::stored;

/// What all rows share.
#[derive(Debug)]
pub struct Bench {
    /// Everything smaller, for a first look.
    pub quick: bool,
    /// How often each measurement is made, one of each in turn.
    pub rounds: usize,
    /// What is served, and by whom: nginx, whatever stands before it.
    pub stock: Stock,
    pub upstream: Peer,
    // The disk goes before the folder that it is mounted in.
    many: OnceCell<(Option<Disk>, Site)>,
}

/// The name on the command line, and what measures it.
pub type Measured = (&'static str, fn(&Bench) -> Row);

/// What a first request brings into a cache is warm for all others.
const WARM_UP: Duration = Duration::from_millis(300);

/// All rows.
pub const ALL: &[Measured] = &[
    ("manifest", warm::manifest),
    ("blob", warm::blob),
    ("tls", warm::blob_over_tls),
    ("small", warm::small_blob),
    ("price", warm::price),
    ("cold", cold::one_client),
    ("crowd", cold::many_clients),
    ("image", image::whole),
    ("reload", operation::reload),
    ("start", operation::start),
    ("memory", operation::memory),
    ("size", size::sizes),
];

impl Bench {
    /// Starts what all rows need.
    pub fn new(quick: bool, rounds: usize) -> Result<Self, Missing> {
        let stock = Stock::new();
        let upstream = peers::nginx_static("upstream", stock.root(), None, "")?;
        Ok(Self { quick, rounds, stock, upstream, many: OnceCell::new() })
    }

    /// How long a load lasts.
    pub fn load_time(&self) -> Duration {
        Duration::from_secs(if self.quick { 1 } else { 2 })
    }

    /// How many blobs are many.
    pub fn many_blobs(&self) -> usize {
        if self.quick { 20_000 } else { 1_000_000 }
    }

    /// A site whose cache has them; made once, since it takes long.
    pub fn many(&self) -> Site {
        self.many.get_or_init(|| stored::site_on_disk(self, self.many_blobs())).1.clone()
    }

    /// The same in words.
    pub fn many_name(&self) -> &'static str {
        if self.quick { "20,000 blobs" } else { "1,000,000 blobs" }
    }

    /// Where everybody gets what they do not have.
    pub fn source(&self) -> &Server {
        &self.upstream.server
    }
}

/// Those that are there; the others are told of.
pub fn there(row: &mut Row, peers: impl IntoIterator<Item = Result<Peer, Missing>>) -> Vec<Peer> {
    let take = |peer: Result<Peer, Missing>| peer.map_err(|missing| row.note(missing.0)).ok();
    peers.into_iter().filter_map(take).collect()
}

/// One load on one server: what it cost, and what it brought.
fn measure(row: &mut Row, peer: &Peer, load: impl FnOnce() -> Load) {
    let before = Spent::by(peer.pid());
    let load = load();
    let spent = Spent::by(peer.pid()).since(before);
    assert!(load.requests > load.failed, "{}: {load:?}", peer.name);
    if load.failed > 0 {
        row.add(peer.name, FAILED, number(load.failed));
    }
    // A small answer's bytes and a large one's number say nothing.
    if load.bytes / load.requests < 1 << 20 {
        row.add(peer.name, CPU_REQUEST, micros_each(spent, load.requests));
        row.add(peer.name, REQUESTS, per_second(load.requests, load.wall));
    }
    if load.bytes / load.requests > 32 << 10 {
        row.add(peer.name, CPU_GB, seconds_a_gigabyte(spent, load.bytes));
        row.add(peer.name, THROUGHPUT, number(load.bytes) / 1e9 / load.wall.as_secs_f64());
    }
}
