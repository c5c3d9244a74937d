//! The stream of a connection: one that ends when its client takes nothing for too long, or sends more than requests
//! need, and that closes so that the client gets the last answer.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::files::Files;
use super::table::{Busy, Place};
use crate::body::Outlet;

/// How long a closed connection is read on, and how much: what a client still sends would reset it otherwise, and with
/// it the last answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_MAX: usize = 1 << 20;
/// What a client may send over HTTP/2 beyond what its requests need. Units: bytes.
const SPARE: u64 = 256 << 10;
/// Most that one request needs: its head, and what goes with it. Units: bytes.
const NEEDED: u64 = 64 << 10;
/// A body may come in small frames: at most so many bytes for each of its own.
const FRAMED: u64 = 2;
/// A client confirms what it has got with at most one byte for so many.
const CONFIRMS: u64 = 16;

/// What carries the bytes.
pub(super) enum Carrier {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// TLS inside of a connection that was led on.
    Inside(Box<TlsStream<Patient>>),
}

/// A stream with limited patience.
pub(super) struct Patient {
    carrier: Carrier,
    /// What was read before it was known what it is.
    prefix: Bytes,
    limit: Duration,
    /// Since when a write waits.
    stalled: Option<Instant>,
    /// Goes off when one may have waited for too long. It is left running, since most writes wait for a moment only.
    timer: Option<Pin<Box<Sleep>>>,
    /// For HTTP/2: what may be read yet.
    budget: Option<Budget>,
    closing: Option<(Pin<Box<Sleep>>, usize)>,
    /// Whoever is told to go does not linger.
    hurry: CancellationToken,
    /// Sends files by itself, over a plain connection.
    files: Option<Files>,
    place: Option<Arc<Place>>,
    /// A write waits. The answer that it is part of may be over for whoever made it: the connection is not idle yet.
    busy: Option<Busy>,
}

/// How many requests a connection has brought, and what was taken of their bodies: what its client may send depends on
/// it.
#[derive(Clone, Default, Debug)]
pub(super) struct Requests(Arc<Brought>);

#[derive(Default, Debug)]
struct Brought {
    requests: AtomicU64,
    /// Units: bytes.
    bodies: AtomicU64,
}

struct Budget {
    requests: Requests,
    read: u64,
    written: u64,
}

impl Requests {
    pub fn count(&self) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a piece of a body that was taken, because it is wanted.
    pub fn take(&self, bytes: u64) {
        self.0.bodies.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Patient {
    /// `limit`: for how long the client may take nothing.
    pub fn new(carrier: Carrier, prefix: Bytes, limit: Duration, hurry: CancellationToken) -> Self {
        Self {
            carrier,
            prefix,
            limit,
            stalled: None,
            timer: None,
            budget: None,
            closing: None,
            hurry,
            files: None,
            place: None,
            busy: None,
        }
    }

    /// Keeps a place from being idle as long as a write waits.
    pub fn with_place(mut self, place: Arc<Place>) -> Self {
        self.place = Some(place);
        self
    }

    /// Sends the files that come by way of an outlet; only a plain stream can.
    pub fn with_outlet(mut self, outlet: Option<Arc<Outlet>>) -> Self {
        self.files = outlet.map(Files::new);
        self
    }

    /// With bytes that were read from it already, and are to be read again.
    pub fn with_prefix(mut self, read: Bytes) -> Self {
        debug_assert!(self.prefix.is_empty(), "who has read on has read the prefix");
        self.prefix = read;
        self
    }

    /// Bounds what is read by the requests that it brings: pings, settings and empty frames are no requests.
    pub fn for_http2(mut self, requests: Requests) -> Self {
        self.budget = Some(Budget { requests, read: 0, written: 0 });
        self
    }

    fn bounded(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(done) = written {
            (self.stalled, self.busy) = (None, None);
            if let (Some(budget), Ok(bytes)) = (&mut self.budget, &done) {
                budget.written += *bytes as u64;
            }
            return Poll::Ready(done);
        }
        self.begin_waiting();
        let end = *self.stalled.get_or_insert_with(Instant::now) + self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= end {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")));
            }
            timer.as_mut().reset(end);
        }
        Poll::Pending
    }

    fn begin_waiting(&mut self) {
        if self.busy.is_none() {
            self.busy = self.place.as_ref().map(Place::begin);
        }
    }

    /// Reads on until the client closes too.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [0; 4096];
        loop {
            let Some((end, left)) = &mut self.closing else { return Poll::Ready(Ok(())) };
            if *left == 0 || self.hurry.is_cancelled() || end.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut self.carrier).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            *left = left.saturating_sub(buffer.filled().len());
        }
    }
}

impl Budget {
    fn is_spent(&self) -> bool {
        let Brought { requests, bodies } = &*self.requests.0;
        let bodies = bodies.load(Ordering::Relaxed).saturating_mul(FRAMED);
        self.read > SPARE + requests.load(Ordering::Relaxed) * NEEDED + bodies + self.written / CONFIRMS
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let take = self.prefix.len().min(buffer.remaining());
            buffer.put_slice(&self.prefix[..take]);
            self.prefix.advance(take);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.carrier).poll_read(cx, buffer))?;
        if let Some(budget) = &mut self.budget {
            budget.read += (buffer.filled().len() - before) as u64;
            if budget.is_spent() {
                return Poll::Ready(Err(io::Error::other("the client sends more than its requests need")));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.files.is_some() {
            return self.poll_write_vectored(cx, &[IoSlice::new(bytes)]);
        }
        let written = Pin::new(&mut self.carrier).poll_write(cx, bytes);
        self.bounded(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { carrier, files, .. } = &mut *self;
        let written = match (carrier, files) {
            (Carrier::Plain(stream), Some(files)) => {
                let written = files.poll_write(stream, cx, slices);
                if written.is_pending() && files.wait_for_disk() {
                    // It is not the client who takes nothing.
                    self.stalled = None;
                    self.begin_waiting();
                    return Poll::Pending;
                }
                written
            }
            (carrier, _) => Pin::new(carrier).poll_write_vectored(cx, slices),
        };
        self.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.carrier.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS keeps what the socket does not take: a flush may wait as a write does.
        let flushed = Pin::new(&mut self.carrier).poll_flush(cx).map_ok(|()| 0);
        self.bounded(cx, flushed).map_ok(drop)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            let shut = Pin::new(&mut self.carrier).poll_shutdown(cx).map_ok(|()| 0);
            ready!(self.bounded(cx, shut))?;
            self.closing = Some((Box::pin(sleep(LINGER)), LINGER_MAX));
        }
        self.poll_linger(cx)
    }
}

impl AsyncRead for Carrier {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Inside(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Inside(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Inside(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Inside(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Inside(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Inside(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::gauge::Gauge;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::super::table::Table;
    use super::*;

    async fn pair(limit: Duration) -> (TcpStream, Patient) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
        let (server, _) = listener.accept().await.expect("accepted");
        (client, Patient::new(Carrier::Plain(server), Bytes::from_static(b"pre"), limit, CancellationToken::new()))
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (client, mut patient) = pair(Duration::from_millis(20)).await;
        let chunk = vec![0; 1 << 20];
        let ended = loop {
            if let Err(err) = patient.write_all(&chunk).await {
                break err;
            }
        };
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        drop(client);
    }

    #[tokio::test]
    async fn c2_a_connection_is_not_idle_while_a_client_has_not_taken_what_is_written() {
        let (mut client, patient) = pair(Duration::from_mins(1)).await;
        let place = Table::new(Gauge::default()).enter(1).await;
        let mut patient = patient.with_place(place.clone());
        assert!(place.idle_for().is_some());
        let chunk = vec![0; 64 << 20];
        let writes = tokio::spawn(async move { patient.write_all(&chunk).await.map(|()| patient) });
        while place.idle_for().is_some() {
            tokio::task::yield_now().await;
        }
        // Its last bytes are taken by the sockets, and nothing waits.
        let mut taken = vec![0; 64 << 20];
        client.read_exact(&mut taken).await.expect("read");
        let _patient = writes.await.expect("no panic").expect("written");
        assert!(place.idle_for().is_some());
    }

    #[tokio::test]
    async fn what_was_read_before_comes_first() {
        let (mut client, mut patient) = pair(Duration::from_mins(1)).await;
        client.write_all(b"face").await.expect("written");
        let mut all = [0; 7];
        patient.read_exact(&mut all).await.expect("read");
        assert_eq!(&all, b"preface");
    }

    #[tokio::test]
    async fn c5_a_client_that_sends_more_than_its_requests_need_is_given_up() {
        let (mut client, patient) = pair(Duration::from_mins(1)).await;
        let requests = Requests::default();
        let mut patient = patient.for_http2(requests.clone());
        let sends = tokio::spawn(async move {
            let chunk = vec![0; 4096];
            while client.write_all(&chunk).await.is_ok() {}
        });
        requests.count();
        let (mut read, mut buffer) = (0, vec![0; 4096]);
        let ended = loop {
            match patient.read(&mut buffer).await {
                Ok(bytes) => read += bytes as u64,
                Err(err) => break err,
            }
        };
        assert_eq!(ended.to_string(), "the client sends more than its requests need");
        assert!(read > SPARE && read <= SPARE + NEEDED + 4096, "{read}");
        drop(patient);
        sends.await.expect("no panic");
    }
}
