//! The other end of a connection: what is known of it before it asks for anything.

use std::net::SocketAddr;

use crate::oci::{Host, Registry};

/// Who connected, and how.
#[derive(Debug)]
pub(super) struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The registry that it believes to talk to; none: it knows that this is a mirror.
    pub named: Option<Registry>,
    /// The host that it believes to talk to then.
    pub host: Option<Host>,
}
