//! Listeners, connections, and how they end.

mod admin;
mod cache;
mod error;
mod handle;
mod patience;
mod watched;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use admin::{Decision, Explanation, Upstream, explain, parse_image};
pub use cache::{GUARD, parse_target};

use crate::pull::Core;
use patience::Patient;

/// How long a client may take to send the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take nothing of an answer.
const WRITE_STALL: Duration = Duration::from_mins(1);
/// Largest head of a request. Units: bytes.
const HEAD_MAX: usize = 32 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// Connections at once; a further client waits to be accepted.
const CONNECTIONS_MAX: usize = 16_384;
/// How long to wait when the system gives no more connections: until others end.
const ACCEPT_WAIT: Duration = Duration::from_millis(50);

/// Who answers on both listeners, and how they stop.
pub struct Server {
    core: Arc<Core>,
    ready: Arc<AtomicBool>,
    /// Stop accepting; connections end when they are idle.
    drain: CancellationToken,
    /// End now.
    abort: CancellationToken,
    /// No client is left.
    drained: CancellationToken,
    connections: TaskTracker,
    places: Arc<Semaphore>,
}

impl Server {
    /// A server that accepts nobody yet.
    pub fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            ready: Arc::new(AtomicBool::new(true)),
            drain: CancellationToken::new(),
            abort: CancellationToken::new(),
            drained: CancellationToken::new(),
            connections: TaskTracker::new(),
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }

    /// Answers clients until the server drains.
    pub async fn serve_clients(&self, listener: TcpListener) {
        let core = self.core.clone();
        self.accept(listener, &self.drain, move |peer, request| {
            let core = core.clone();
            async move { handle::handle(core, peer, request).await }
        })
        .await;
    }

    /// Answers operators, until the server has drained: readiness and metrics are watched while it does.
    pub async fn serve_admin(&self, listener: TcpListener) {
        let (core, ready) = (self.core.clone(), self.ready.clone());
        self.accept(listener, &self.drained, move |_, request| {
            let (core, ready) = (core.clone(), ready.clone());
            async move { admin::admin(core, ready, request).await }
        })
        .await;
    }

    /// Lets bodies finish within `grace`, then ends them short; `now` ends them at once.
    pub async fn drain(&self, grace: Duration, now: impl Future<Output = ()>) {
        self.ready.store(false, Ordering::Relaxed);
        self.drain.cancel();
        self.connections.close();
        let ended = async {
            self.connections.wait().await;
        };
        let in_time = tokio::select! {
            () = ended => true,
            () = tokio::time::sleep(grace) => false,
            () = now => false,
        };
        if !in_time {
            tracing::warn!(connections = self.connections.len(), "connections that have not ended are ended now");
            self.abort.cancel();
            self.connections.wait().await;
        }
        self.drained.cancel();
    }

    async fn accept<H, F, B>(&self, listener: TcpListener, until: &CancellationToken, handle: H)
    where
        H: Fn(SocketAddr, Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<B>> + Send,
        B: http_body::Body<Data = bytes::Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    {
        loop {
            let place = tokio::select! {
                place = self.places.clone().acquire_owned() => place.expect("never closed"),
                () = until.cancelled() => return,
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = until.cancelled() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(err) => {
                    // Out of descriptors, or a client that was gone at once: neither ends the listener.
                    if !matches!(err.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                        tracing::warn!(error = %err, "no connection can be accepted for a moment");
                        tokio::time::sleep(ACCEPT_WAIT).await;
                    }
                    continue;
                }
            };
            let handle = handle.clone();
            let (drain, abort) = (self.drain.clone(), self.abort.clone());
            self.connections.spawn(async move {
                let _place = place;
                let service = service_fn(move |request| {
                    let response = handle(peer, request);
                    async move { Ok::<_, Infallible>(response.await) }
                });
                connection(stream, service, drain, abort).await;
            });
        }
    }
}

async fn connection<S, B>(stream: TcpStream, service: S, drain: CancellationToken, abort: CancellationToken)
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>,
    B: http_body::Body<Data = bytes::Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .half_close(true)
        .serve_connection(TokioIo::new(Patient::new(stream, WRITE_STALL)), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = abort.cancelled() => return,
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = abort.cancelled() => return,
            }
        }
    };
    if let Err(err) = ended {
        tracing::debug!(error = %err, "a connection ended with an error");
    }
}
