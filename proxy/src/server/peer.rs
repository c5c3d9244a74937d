//! The other end of a connection: what is known of it before it asks for anything.

use std::net::SocketAddr;

/// Who connected, and how.
#[derive(Debug)]
pub(super) struct Peer {
    /// Its address.
    pub address: SocketAddr,
}
