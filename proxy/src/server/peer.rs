//! The other end of a connection: what is known of it before it asks for anything.

use std::net::SocketAddr;

use crate::plugin::Identity;

/// Who connected, and how.
#[derive(Debug)]
pub(super) struct Peer {
    /// Its address; where a trusted proxy says by the PROXY protocol for whom it connects, that one's.
    pub address: SocketAddr,
    /// It speaks TLS to us.
    pub secure: bool,
    /// It is a proxy that is believed, or was led here by one.
    pub proxied: bool,
    /// Who it is by its certificate.
    pub certificate: Option<Identity>,
}
