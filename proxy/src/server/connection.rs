//! One connection: what it speaks, and how it ends.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::iter;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body::Body;
use hyper::body::Incoming;
use hyper::header::CONTENT_LENGTH;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::leaves::Leaves;
use super::patience::{Carrier, Patient};
use super::peer::Peer;
use super::sending::{Sending, Streams};
use super::table::Place;
use super::tunnel::{Leads, Led, Onward};
use super::who;
use crate::body::{Outlet, Piece};
use crate::config::{AddressFrom, Clients, Limits};
use crate::oci::Host;

/// Largest head of a request. Units: bytes.
const HEAD_MAX: u32 = 32 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// Streams of one connection of HTTP/2 at once.
const STREAMS_MAX: u32 = 128;
/// Streams that a client reset before they were looked at; with more the connection ends ("rapid reset",
/// CVE-2023-44487).
const RESET_STREAMS_MAX: usize = 20;
/// Streams that we reset because their client broke the protocol; with more the connection ends.
const FAULTY_STREAMS_MAX: usize = 128;
/// What a client may send on one stream, and on all, before we have taken it: no request has a body. Units: bytes.
const RECEIVED_MAX: u32 = 64 << 10;
/// What is buffered for one stream beyond the piece that is sent. Units: bytes.
const SEND_BUFFER: usize = 32 << 10;
/// How often the other end of a silent connection of HTTP/2 is asked whether it lives, and how long it may take.
const PING: Duration = Duration::from_secs(20);
/// How long the last words of a connection may take that must end now.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How often it is said that a proxy is not understood.
const PROXY_REPORT: Duration = Duration::from_secs(10);

/// How every connection of HTTP/2 begins (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// First byte of a TLS handshake (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// The answer to plain HTTP where TLS is spoken.
const NOT_PLAIN: &str = "this address speaks https: put https:// in front of it\n";

/// What a connection goes by.
pub(super) struct Terms {
    pub peer: SocketAddr,
    pub clients: Arc<Clients>,
    pub limits: Limits,
    pub tls: Option<TlsAcceptor>,
    pub leaves: Arc<ArcSwapOption<Leaves>>,
    pub place: Arc<Place>,
    /// Finish what is under way, and end.
    pub drain: CancellationToken,
    /// End now.
    pub abort: CancellationToken,
    pub tasks: TaskTracker,
}

enum Speaks {
    Http1,
    Http2,
}

/// A stream, and what it is found to speak.
struct Opened {
    peer: Arc<Peer>,
    carrier: Carrier,
    /// What was read of it already.
    prefix: Bytes,
    speaks: Speaks,
}

/// Serves a connection to its end, with all that it is led on to.
pub(super) async fn serve<H, F, B>(stream: TcpStream, terms: Terms, handle: H)
where
    H: Fn(Arc<Peer>, Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Piece, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static,
{
    let _ = stream.set_nodelay(true);
    let mut opened = begin(open(stream, &terms), &terms).await;
    while let Some(layer) = opened {
        let outside = layer.peer.clone();
        let Some((onward, client)) = speak(layer, &terms, handle.clone()).await else { return };
        match onward {
            Onward::Relay(relay) => {
                // It ends by itself when nothing moves: nobody else is given its place.
                let _busy = terms.place.begin();
                return Box::pin(relay.run(client, &terms)).await;
            }
            Onward::Registry { registry, host, through } => {
                let (secure, named, through) = (true, Some(registry), Some(through));
                let inside = Peer { secure, named, through, host: Some(host.clone()), ..Peer::at(outside.address) };
                opened = begin(open_inside(client, &host, inside, &terms), &terms).await;
            }
        }
    }
}

/// Finds out what a connection speaks, within the time for that.
async fn begin(opening: impl Future<Output = io::Result<Opened>>, terms: &Terms) -> Option<Opened> {
    // Nothing was asked yet: there is nothing to finish.
    let opened = tokio::select! {
        opened = tokio::time::timeout(terms.limits.request_head, opening) => opened,
        () = terms.drain.cancelled() => return None,
        () = terms.abort.cancelled() => return None,
        () = terms.place.must_go() => return None,
    };
    match opened {
        Ok(Ok(opened)) => return Some(opened),
        Ok(Err(err)) if err.kind() == io::ErrorKind::InvalidData && terms.clients.address_from.is_some() => {
            warn_of_proxy(terms.peer, &err);
        }
        Ok(Err(err)) => {
            tracing::debug!(client = %terms.peer, error = err.to_string(), "a connection does not begin");
        }
        Err(_) => tracing::debug!(client = %terms.peer, "a connection does not begin in time"),
    }
    None
}

/// Answers requests until the connection ends, or is led on.
async fn speak<H, F, B>(opened: Opened, terms: &Terms, handle: H) -> Option<(Onward, Patient)>
where
    H: Fn(Arc<Peer>, Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Piece, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static,
{
    let Opened { peer, carrier, prefix, speaks } = opened;
    let outlet = peer.outlet.clone();
    let (requests, led) = (peer.requests.clone(), Led::default());
    let (place, counted, leads) = (terms.place.clone(), requests.clone(), led.clone());
    let service = service_fn(move |mut request| {
        counted.count();
        let busy = place.begin();
        let connection = (*request.method() == Method::CONNECT).then(|| hyper::upgrade::on(&mut request));
        let (response, leads) = (handle(peer.clone(), request), leads.clone());
        async move {
            let (mut head, body) = response.await.into_parts();
            if let (Some(onward), Some(connection)) = (head.extensions.remove::<Leads>(), connection) {
                leads.set(onward, connection);
            }
            let promised = head.headers.contains_key(CONTENT_LENGTH);
            Ok::<_, Infallible>(Response::from_parts(head, Sending::new(body, busy, promised)))
        }
    });
    let stream = Patient::new(carrier, prefix, terms.limits.write_stall, terms.drain.clone())
        .with_outlet(outlet)
        .with_place(terms.place.clone());
    let ended = match speaks {
        Speaks::Http1 => {
            let connection = http1::Builder::new()
                // One timer a connection, not one a request: see `must_end`.
                .header_read_timeout(None)
                .max_buf_size(HEAD_MAX as usize)
                .max_headers(HEADERS_MAX)
                .half_close(true)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            let idle = Idle { limit: terms.limits.request_head, then: End::Go };
            Box::pin(run(connection, terms, http1::UpgradeableConnection::graceful_shutdown, idle)).await
        }
        Speaks::Http2 => {
            let streams =
                Streams { tasks: terms.tasks.clone(), stall: terms.limits.write_stall, abort: terms.abort.clone() };
            let connection = http2::Builder::new(streams)
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS_MAX)
                .max_header_list_size(HEAD_MAX)
                .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
                .max_local_error_reset_streams(FAULTY_STREAMS_MAX)
                .initial_stream_window_size(RECEIVED_MAX)
                .initial_connection_window_size(RECEIVED_MAX)
                .max_send_buf_size(SEND_BUFFER)
                .keep_alive_interval(PING)
                .keep_alive_timeout(PING)
                .serve_connection(TokioIo::new(stream.for_http2(requests)), service);
            let idle = Idle { limit: terms.limits.write_stall, then: End::Finish };
            Box::pin(run(connection, terms, http2::Connection::graceful_shutdown, idle)).await
        }
    };
    if let Err(err) = ended {
        tracing::debug!(client = %terms.peer, error = err.to_string(), "a connection ended with an error");
    }
    led.take().await
}

/// Finds out who connects, and what the connection speaks.
async fn open(mut stream: TcpStream, terms: &Terms) -> io::Result<Opened> {
    let proxied = terms.clients.is_trusted_proxy(terms.peer.ip());
    let mut peer = Peer { proxied, ..Peer::at(terms.peer) };
    if proxied && terms.clients.address_from == Some(AddressFrom::ProxyProtocol) {
        peer.address = who::read_proxied(&mut stream).await?.unwrap_or(terms.peer);
    }
    let Some(tls) = terms.tls.clone() else { return open_plain(stream, peer).await };
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] != TLS_HANDSHAKE {
        refuse_plain(stream).await;
        return Err(io::Error::other("plain HTTP where TLS is spoken"));
    }
    let stream = tls.accept(stream).await?;
    let session = stream.get_ref().1;
    peer.secure = true;
    let shown = session.peer_certificates().and_then(|chain| chain.first());
    peer.certificate = shown.and_then(who::identity_of_certificate);
    let speaks = agreed(session);
    Ok(Opened { peer: Arc::new(peer), carrier: Carrier::Tls(Box::new(stream)), prefix: Bytes::new(), speaks })
}

/// Says that a proxy that is believed does not say for whom it connects; not each time.
fn warn_of_proxy(proxy: SocketAddr, err: &io::Error) {
    static SAID: Mutex<Option<Instant>> = Mutex::new(None);
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.is_none_or(|said| said.elapsed() > PROXY_REPORT) {
        *said = Some(Instant::now());
        tracing::warn!(proxy = %proxy.ip(), error = err.to_string(), "a trusted proxy is not understood: have it send the PROXY protocol, or take it out of clients.trusted_proxies");
    }
}

/// Begins TLS as a host that the client connected to.
async fn open_inside(client: Patient, host: &Host, peer: Peer, terms: &Terms) -> io::Result<Opened> {
    let leaves = terms.leaves.load_full().ok_or_else(|| io::Error::other("nothing is intercepted any more"))?;
    let acceptor = leaves.acceptor(host).map_err(|reason| {
        tracing::error!(host = host.as_str(), reason, "a client that is intercepted can be shown nothing");
        io::Error::other(reason)
    })?;
    let stream = acceptor.accept(client).await?;
    let speaks = agreed(stream.get_ref().1);
    Ok(Opened { peer: Arc::new(peer), carrier: Carrier::Inside(Box::new(stream)), prefix: Bytes::new(), speaks })
}

/// What the handshake of TLS agreed on.
fn agreed(tls: &rustls::ServerConnection) -> Speaks {
    match tls.alpn_protocol() {
        Some(b"h2") => Speaks::Http2,
        _ => Speaks::Http1,
    }
}

async fn open_plain(mut stream: TcpStream, mut peer: Peer) -> io::Result<Opened> {
    let mut prefix = BytesMut::with_capacity(PREFACE.len());
    while prefix.len() < PREFACE.len() && PREFACE.starts_with(&prefix) {
        // Not more than the preface: what follows it belongs to whoever reads the connection.
        let mut rest = (&mut stream).take((PREFACE.len() - prefix.len()) as u64);
        if rest.read_buf(&mut prefix).await? == 0 {
            break;
        }
    }
    match prefix.first() {
        None => return Err(io::ErrorKind::UnexpectedEof.into()),
        Some(&TLS_HANDSHAKE) => return Err(io::Error::other("TLS where plain HTTP is spoken")),
        Some(_) => {}
    }
    let speaks = if prefix == PREFACE { Speaks::Http2 } else { Speaks::Http1 };
    if matches!(speaks, Speaks::Http1) {
        peer.outlet = Some(Arc::new(Outlet::default()));
    }
    Ok(Opened { peer: Arc::new(peer), carrier: Carrier::Plain(stream), prefix: prefix.freeze(), speaks })
}

/// Tells a client that speaks plain HTTP to speak TLS.
async fn refuse_plain(mut stream: TcpStream) {
    let length = NOT_PLAIN.len();
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{NOT_PLAIN}"
    );
    // What it sent is read first: left unread it would reset the connection, and the answer with it.
    let _ = stream.read(&mut [0; 4096]).await;
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// For how long a connection may be without a request, and what then comes of it. In HTTP/1.1 it is the time for the head
/// of the next one.
#[derive(Clone, Copy)]
struct Idle {
    limit: Duration,
    then: End,
}

/// Runs a connection until it ends, or must.
async fn run<C>(connection: C, terms: &Terms, finish: impl Fn(std::pin::Pin<&mut C>), idle: Idle) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = pin!(connection);
    // Looked at only when it has something to say: the connection is polled for every packet.
    let mut ends: FuturesUnordered<_> = iter::once(must_end(terms, idle)).collect();
    let end = tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        Some(end) = ends.next() => end,
    };
    let patience = match end {
        End::Now => LAST_WORDS,
        // Whoever is idle has nothing to finish: an answer that never ends is not waited for.
        End::Finish => terms.limits.drain,
        End::Go => return Ok(()),
    };
    finish(connection.as_mut());
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = tokio::time::sleep(patience) => {}
        () = terms.abort.cancelled() => {}
    }
    // Streams of HTTP/2 end by themselves now, in order; the end of a connection of HTTP/1.1 says all.
    if idle.then == End::Finish {
        tokio::select! {
            ended = connection => return ended,
            () = tokio::time::sleep(LAST_WORDS) => {}
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Finish what is under way.
    Finish,
    /// It is idle, and another needs its place.
    Go,
    /// It is over.
    Now,
}

async fn must_end(terms: &Terms, idle: Idle) -> End {
    let idles = async {
        while let Some(left) = match terms.place.idle_for() {
            Some(time) => idle.limit.checked_sub(time).filter(|left| !left.is_zero()),
            None => Some(idle.limit),
        } {
            tokio::time::sleep(left).await;
        }
    };
    tokio::select! {
        () = terms.drain.cancelled() => End::Finish,
        () = terms.abort.cancelled() => End::Now,
        () = idles => idle.then,
        () = terms.place.must_go() => End::Go,
    }
}
