//! The other end of a connection: what is known of it before it asks for anything.

use std::net::SocketAddr;

use super::patience::Requests;

/// Who connected, and how.
#[derive(Debug)]
pub(super) struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// What it may send.
    pub requests: Requests,
}
