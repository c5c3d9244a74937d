//! Listeners, connections, and how they end.

mod admin;
mod again;
mod cache;
mod connect;
mod connection;
mod decisions;
mod error;
mod files;
mod guard;
mod handle;
mod leaves;
mod patience;
mod peer;
mod plugins;
mod push;
mod sending;
mod supposed;
mod table;
mod tls;
mod tunnel;
mod watched;
mod who;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use admin::{Decision, Explanation, Upstream, explain, parse_image};
pub use cache::{GUARD, parse_target};
pub use guard::report_panics;
pub use plugins::{Failed, InEffect, NotLoaded, Off, PluginList};
pub use supposed::Supposed;
pub use who::{Shown, parse_authorization, parse_proxied};

use crate::body::Piece;
use crate::config::Config;
use crate::metrics::Listener;
use crate::pull::Core;
use crate::record::Journal;
use crate::trace::Traces;
use connection::Terms;
use handle::Answering;
use leaves::Leaves;
use peer::Peer;
use table::Table;
use who::Who;

/// Connections of operators at once: they have places of their own, so that no number of clients hides the figures.
const OPERATORS_MAX: usize = 64;
/// How long to wait when the system gives no more connections: until others end.
const ACCEPT_WAIT: Duration = Duration::from_millis(50);
/// How often it is said that the system gives no more connections.
const ACCEPT_REPORT: Duration = Duration::from_secs(10);

/// Who answers on both listeners, and how they stop.
pub struct Server {
    core: Arc<Core>,
    journal: Arc<Journal>,
    answering: Arc<Answering>,
    ready: Arc<AtomicBool>,
    /// What clients are shown; none: plain HTTP.
    tls: Arc<ArcSwapOption<TlsAcceptor>>,
    /// What they are shown that connect to an intercepted registry; none: nobody does.
    leaves: Arc<ArcSwapOption<Leaves>>,
    /// Most connections of clients that the system has descriptors for.
    descriptors: usize,
    clients: Side,
    operators: Side,
}

/// One listener's connections.
struct Side {
    table: Arc<Table>,
    tasks: TaskTracker,
    /// Stop accepting; connections end when they are idle.
    drain: CancellationToken,
    /// End now.
    abort: CancellationToken,
}

impl Server {
    /// A server that accepts nobody yet. `descriptors`: how many files and connections the process may have open.
    pub fn new(core: Arc<Core>, traces: Traces, journal: Arc<Journal>, descriptors: usize) -> Self {
        let connections = |listener| core.metrics.connections.get_or_create_owned(&Listener { listener });
        let side = |listener| Side {
            table: Table::new(connections(listener)),
            tasks: TaskTracker::new(),
            drain: CancellationToken::new(),
            abort: CancellationToken::new(),
        };
        let (clients, operators) = (side("clients"), side("admin"));
        // A pull takes more than its client's connection: a file, an upstream.
        let descriptors = (descriptors / 4 * 3).max(1);
        let ready = Arc::new(AtomicBool::new(true));
        let who = Who::new(core.live().config.plugins.state_dir.clone());
        let (core_, journal_, repeats) = (core.clone(), journal.clone(), again::Repeats::default());
        let answering = Arc::new(Answering { core: core_, traces, journal: journal_, who, repeats });
        let (tls, leaves) = Default::default();
        let server = Self { core, journal, answering, ready, tls, leaves, descriptors, clients, operators };
        server.show(&server.core.live().config);
        server
    }

    /// Shows clients what a configuration says from now on. Connections go on with what they were shown.
    pub fn show(&self, config: &Config) {
        self.tls.store(tls::of_listener(config).map(Arc::new));
        let intercept = config.intercept.as_ref();
        self.leaves.store(intercept.map(|intercept| Arc::new(Leaves::of(&intercept.authority))));
    }

    /// A token that ends what is accepted with it, as a drain does. It ends with the drain too.
    pub fn listening(&self) -> CancellationToken {
        self.clients.drain.child_token()
    }

    /// The same for operators: they are answered until the server has drained.
    pub fn listening_to_operators(&self) -> CancellationToken {
        self.operators.drain.child_token()
    }

    /// Answers clients until the token ends.
    pub async fn serve_clients(&self, listener: TcpListener, until: CancellationToken) {
        let answering = self.answering.clone();
        let most = || self.core.live().config.limits.connections.min(self.descriptors);
        let tls = || self.tls.load_full().map(|tls| TlsAcceptor::clone(&tls));
        self.accept(listener, until, &self.clients, most, tls, move |peer, request| {
            handle::answered(&answering, peer, request)
        })
        .await;
    }

    /// Answers operators until the token ends: readiness and metrics are watched while the server drains.
    pub async fn serve_admin(&self, listener: TcpListener, until: CancellationToken) {
        let (core, journal, ready) = (self.core.clone(), self.journal.clone(), self.ready.clone());
        let most = || OPERATORS_MAX;
        self.accept(
            listener,
            until,
            &self.operators,
            most,
            || None,
            move |_, request| admin::guarded(core.clone(), journal.clone(), ready.clone(), request),
        )
        .await;
    }

    /// Lets bodies finish within `grace`, then ends them short; `now` ends them at once.
    pub async fn drain(&self, grace: Duration, now: impl Future<Output = ()>) {
        self.ready.store(false, Ordering::Relaxed);
        let Side { tasks, drain, abort, .. } = &self.clients;
        drain.cancel();
        tasks.close();
        let in_time = tokio::select! {
            () = tasks.wait() => true,
            () = tokio::time::sleep(grace) => false,
            () = now => false,
        };
        if !in_time {
            tracing::warn!(connections = tasks.len(), "connections that have not ended are ended now");
            abort.cancel();
            tasks.wait().await;
        }
        self.operators.drain.cancel();
        self.operators.abort.cancel();
        self.operators.tasks.close();
        self.operators.tasks.wait().await;
    }

    async fn accept<H, F, B>(
        &self,
        listener: TcpListener,
        until: CancellationToken,
        side: &Side,
        most: impl Fn() -> usize,
        tls: impl Fn() -> Option<TlsAcceptor>,
        handle: H,
    ) where
        H: Fn(Arc<Peer>, Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = Piece, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static,
    {
        let mut reported: Option<Instant> = None;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = until.cancelled() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                // A client that was gone at once.
                Err(err) if matches!(err.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {
                    continue;
                }
                Err(err) => {
                    // Out of descriptors: who is idle gives its own, and the listener goes on.
                    let shed = side.table.shed();
                    if reported.is_none_or(|reported| reported.elapsed() > ACCEPT_REPORT) {
                        tracing::warn!(
                            error = err.to_string(),
                            idle_ended = shed,
                            "no connection can be accepted for a moment"
                        );
                        reported = Some(Instant::now());
                    }
                    let _ = tokio::time::timeout(ACCEPT_WAIT, side.table.freed()).await;
                    continue;
                }
            };
            let place = tokio::select! {
                place = side.table.enter(most()) => place,
                () = until.cancelled() => return,
            };
            let config = self.core.live().config.clone();
            let terms = Terms {
                peer,
                clients: config.clients.clone(),
                limits: config.limits.clone(),
                tls: tls(),
                leaves: self.leaves.clone(),
                place,
                drain: until.clone(),
                abort: side.abort.clone(),
                tasks: side.tasks.clone(),
            };
            side.tasks.spawn(connection::serve(stream, terms, handle.clone()));
        }
    }
}
