//! Tunnels: connections to hosts that are no registries, whose bytes are their client's business.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::Uri;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use super::Upstreams;
use super::dial::Io;
use crate::oci::{Failure, Host};

/// Tunnels at once, those included that are not connected yet: each takes two descriptors.
const TUNNELS_MAX: usize = 256;

/// The room for tunnels.
#[derive(Clone)]
pub(super) struct Tunnels(Arc<Semaphore>);

impl Default for Tunnels {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TUNNELS_MAX)))
    }
}

/// A connection, of which nothing was read or written. It has its place among the tunnels until it is dropped.
pub struct Tunnel {
    io: Box<dyn Io>,
    _place: OwnedSemaphorePermit,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum NoTunnel {
    /// Others must end first.
    #[error("there are {TUNNELS_MAX} tunnels already")]
    TooMany,
    /// The host is not to be had.
    #[error("{0}")]
    Failed(Failure),
}

impl Upstreams {
    /// Connects to a host, the way out that `[egress]` says. `named`: the operator named it; else only public addresses
    /// are dialled, those that the name has now.
    pub async fn tunnel(&self, host: &Host, port: u16, named: bool) -> Result<Tunnel, NoTunnel> {
        let Ok(place) = self.tunnels.0.clone().try_acquire_owned() else { return Err(NoTunnel::TooMany) };
        let address = format!("https://{}:{port}/", host.in_address());
        let wrong = |_| NoTunnel::Failed(Failure::Other(format!("{host}:{port} is no address")));
        let url = Url::parse(&address).map_err(|err| wrong(err.to_string()))?;
        let to: Uri = address.parse().map_err(|err: hyper::http::uri::InvalidUri| wrong(err.to_string()))?;
        let connector = self.clients.connector(&url, named).await.map_err(NoTunnel::Failed)?;
        let io = connector.connect(&to).await;
        let io = io.map_err(|err| NoTunnel::Failed(Failure::Connect(err.to_string())))?;
        Ok(Tunnel { io, _place: place })
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
