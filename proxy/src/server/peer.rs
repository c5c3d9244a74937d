//! The other end of a connection: what is known of it before it asks for anything.

use std::net::SocketAddr;
use std::sync::Arc;

use super::patience::Requests;
use super::who::Through;
use crate::body::Outlet;
use crate::oci::{Host, Registry};
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
    /// The registry that it believes to talk to; none: it knows that this is a mirror.
    pub named: Option<Registry>,
    /// The host that it believes to talk to then.
    pub host: Option<Host>,
    /// Who asked to be led there.
    pub through: Option<Through>,
    /// What it may send.
    pub requests: Requests,
    /// Where files go straight to it; none: they are read for it.
    pub outlet: Option<Arc<Outlet>>,
}

impl Peer {
    /// Somebody of whom only the address is known.
    pub fn at(address: SocketAddr) -> Self {
        let (named, host, certificate, through, requests, outlet) = Default::default();
        Self { address, secure: false, proxied: false, certificate, named, host, through, requests, outlet }
    }
}
