//! The kinds of work, in the order of the table.

pub mod cold;
pub mod image;
pub mod warm;

use std::time::Duration;

use crate::figures::Row;
use crate::peers::{self, Missing, Peer};
use crate::reader::Server;
use crate::stock::Stock;

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
}

/// The name on the command line, and what measures it.
pub type Measured = (&'static str, fn(&Bench) -> Row);

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
];

impl Bench {
    /// Starts what all rows need.
    pub fn new(quick: bool, rounds: usize) -> Result<Self, Missing> {
        let stock = Stock::new();
        let upstream = peers::nginx_static("upstream", stock.root(), None, "")?;
        Ok(Self { quick, rounds, stock, upstream })
    }

    /// How long a load lasts.
    pub fn load_time(&self) -> Duration {
        Duration::from_secs(if self.quick { 1 } else { 2 })
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
