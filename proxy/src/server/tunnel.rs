//! What a connection becomes after CONNECT: one to a registry that the proxy stands in for, or bytes carried both ways.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};

use super::connection::Terms;
use super::patience::Patient;
use super::who::Through;
use crate::metrics::Metrics;
use crate::oci::{Host, Registry};
use crate::upstream::Tunnel;

/// How long nothing may move in a tunnel: clients keep connections for about so long.
const IDLE: Duration = Duration::from_mins(5);
/// How often it is looked whether something moves; for so long it may rest in a drain.
const LOOK: Duration = Duration::from_secs(1);
/// What is carried at once, each way. Units: bytes.
const PIECE: usize = 16 << 10;

/// Where a connection is led.
pub(super) enum Onward {
    /// It is served as a registry under one of its names.
    Registry { registry: Registry, host: Host, through: Through },
    /// It is carried to a host.
    Relay(Relay),
}

/// A host at the other end.
pub(super) struct Relay {
    /// Host and port, for the log.
    pub to: String,
    pub tunnel: Tunnel,
    pub metrics: Arc<Metrics>,
}

/// Goes with the answer that accepts, and is taken off it by the connection. Cloned, it is the same one.
#[derive(Clone)]
pub(super) struct Leads(Arc<Mutex<Option<Onward>>>);

impl Leads {
    pub fn on(onward: Onward) -> Self {
        Self(Arc::new(Mutex::new(Some(onward))))
    }

    pub fn take(&self) -> Option<Onward> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A connection that was led on, once its answer is out.
#[derive(Clone, Default)]
pub(super) struct Led(Arc<Mutex<Option<(Leads, OnUpgrade)>>>);

impl Led {
    pub fn set(&self, leads: Leads, connection: OnUpgrade) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((leads, connection));
    }

    /// Where it is led, and its stream; none: it ended as connections do.
    pub async fn take(&self) -> Option<(Onward, Patient)> {
        let (leads, connection) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let parts = connection.await.ok()?.downcast::<TokioIo<Patient>>().ok()?;
        Some((leads.take()?, parts.io.into_inner().with_prefix(parts.read_buf)))
    }
}

impl Relay {
    /// Carries bytes until an end closes, nothing moves for long, or the connection must end. In a drain it ends as soon
    /// as it rests.
    pub async fn run(self, client: Patient, terms: &Terms) {
        let Self { to, tunnel, metrics } = self;
        let began = Instant::now();
        let moved = AtomicU64::new(0);
        metrics.tunnels_open.inc();
        let ended = {
            let (from_client, mut to_client) = split(client);
            let (from_host, mut to_host) = split(tunnel);
            let there = async {
                let sent = pump(from_client, &mut to_host, &moved).await;
                // The client has said all; the host may still answer.
                if sent.is_err() { sent } else { std::future::pending().await }
            };
            tokio::select! {
                ended = pump(from_host, &mut to_client, &moved) => ended,
                ended = there => ended,
                () = rests(&moved, IDLE) => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing moves")),
                () = drained(&moved, terms) => Err(io::Error::other("the listener ends")),
            }
        };
        metrics.tunnels_open.dec();
        let bytes = moved.load(Ordering::Relaxed);
        metrics.tunnel_bytes.inc_by(bytes);
        let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let broken = ended.err().map(|err| err.to_string());
        tracing::info!(client = %terms.peer, to, bytes, elapsed_ms, broken, "tunnel ended");
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
    moved: &AtomicU64,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let read = from.read(&mut piece).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&piece[..read]).await?;
        to.flush().await?;
        moved.fetch_add(read as u64, Ordering::Relaxed);
    }
}

/// Waits until nothing has moved for so long.
async fn rests(moved: &AtomicU64, limit: Duration) {
    let (mut seen, mut since) = (moved.load(Ordering::Relaxed), Instant::now());
    while since.elapsed() < limit {
        tokio::time::sleep(LOOK.min(limit)).await;
        let now = moved.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

async fn drained(moved: &AtomicU64, terms: &Terms) {
    let rested = async {
        terms.drain.cancelled().await;
        tokio::select! {
            () = rests(moved, LOOK) => {}
            () = tokio::time::sleep(terms.limits.drain) => {}
        }
    };
    tokio::select! {
        () = rested => {}
        () = terms.abort.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tunnel_rests_when_nothing_has_moved_for_so_long() {
        let (moved, limit) = (AtomicU64::new(0), Duration::from_millis(50));
        let busy = async {
            loop {
                moved.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = rests(&moved, limit) => panic!("it moves all the time"),
            () = busy => {}
            () = tokio::time::sleep(limit * 5) => {}
        }
        tokio::time::timeout(Duration::from_secs(20), rests(&moved, limit)).await.expect("it rests");
    }

    #[tokio::test]
    async fn bytes_are_carried_to_the_end_and_counted() {
        let (moved, sent) = (AtomicU64::new(0), vec![7; PIECE * 3 + 1]);
        let mut received = Vec::new();
        pump(sent.as_slice(), &mut received, &moved).await.expect("carried");
        assert_eq!((received.len(), moved.load(Ordering::Relaxed)), (sent.len(), sent.len() as u64));
    }
}
