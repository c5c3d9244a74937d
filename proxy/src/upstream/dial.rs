//! One connection: the name, the socket, the tunnel through a proxy, TLS, each with its time.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::header::HeaderValue;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::names::Resolver;

/// Makes the connections to one host.
#[derive(Clone)]
pub(super) struct Connector {
    pub tcp: HttpConnector<Resolver>,
    pub tls: Arc<ClientConfig>,
    pub proxy: Option<Proxy>,
    /// How long a connection may take, and as long again its TLS.
    pub limit: Duration,
}

/// The proxy on the way there.
#[derive(Clone)]
pub(super) struct Proxy {
    pub uri: Uri,
    /// Goes to the proxy and nobody else.
    pub authorization: Option<HeaderValue>,
    pub tls: Arc<ClientConfig>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoConnection {
    #[error("{0}")]
    Connect(String),
    #[error("{0}")]
    Tls(String),
}

/// What carries bytes.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, with or without TLS.
pub(super) struct Stream {
    io: TokioIo<Box<dyn Io>>,
    /// Whether requests on it are for a proxy to read.
    to_proxy: bool,
    used: Used,
}

/// Whether an answer has come over a connection. One that was used, and fails before the next answer begins, may have
/// been closed by a server that had waited long enough: that says nothing about the server.
#[derive(Clone, Default)]
pub(super) struct Used(Arc<AtomicBool>);

impl Used {
    pub fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_noted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Stream {
    fn new(io: impl Io + 'static) -> Self {
        Self { io: TokioIo::new(Box::new(io)), to_proxy: false, used: Used::default() }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = NoConnection;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, NoConnection>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NoConnection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let limit = this.limit;
            let opened = tokio::time::timeout(limit, this.open(&to)).await;
            let stream = opened.map_err(|_| NoConnection::Connect(this.late(&to)))??;
            if to.scheme_str() != Some("https") {
                return Ok(stream);
            }
            encrypt(stream, &to, this.tls, limit).await
        })
    }
}

impl Connector {
    /// A connection to a host, or a proxy's tunnel there, of which nothing is read or written here.
    pub async fn connect(&self, to: &Uri) -> Result<Box<dyn Io>, NoConnection> {
        match tokio::time::timeout(self.limit, self.open(to)).await {
            Ok(opened) => Ok(opened?.io.into_inner()),
            Err(_) => Err(NoConnection::Connect(self.late(to))),
        }
    }

    fn late(&self, to: &Uri) -> String {
        let limit = self.limit;
        match &self.proxy {
            Some(proxy) => format!("no tunnel through the proxy {} within {limit:?}", place(&proxy.uri)),
            None => format!("no connection to {} within {limit:?}", place(to)),
        }
    }

    /// Up to where the bytes are the host's: the socket, or the tunnel.
    async fn open(&self, to: &Uri) -> Result<Stream, NoConnection> {
        let Some(proxy) = &self.proxy else { return tcp(&self.tcp, to).await };
        let told = |err: NoConnection| NoConnection::Connect(format!("the proxy {}: {err}", place(&proxy.uri)));
        let mut to_proxy = ToProxy { tcp: self.tcp.clone(), tls: proxy.tls.clone(), limit: self.limit };
        if to.scheme_str() != Some("https") {
            let stream = to_proxy.call(proxy.uri.clone()).await.map_err(told)?;
            return Ok(Stream { to_proxy: true, ..stream });
        }
        let mut tunnel = Tunnel::new(proxy.uri.clone(), to_proxy);
        if let Some(authorization) = &proxy.authorization {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        tunnel.call(to.clone()).await.map_err(|err| told(NoConnection::Connect(root(&err).to_string())))
    }
}

/// Connects to a proxy.
#[derive(Clone)]
struct ToProxy {
    tcp: HttpConnector<Resolver>,
    tls: Arc<ClientConfig>,
    limit: Duration,
}

impl Service<Uri> for ToProxy {
    type Response = Stream;
    type Error = NoConnection;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, NoConnection>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NoConnection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, proxy: Uri) -> Self::Future {
        let Self { tcp: connector, tls, limit } = self.clone();
        Box::pin(async move {
            let stream = tcp(&connector, &proxy).await?;
            if proxy.scheme_str() == Some("https") { encrypt(stream, &proxy, tls, limit).await } else { Ok(stream) }
        })
    }
}

async fn tcp(connector: &HttpConnector<Resolver>, to: &Uri) -> Result<Stream, NoConnection> {
    let connected = connector.clone().call(to.clone()).await;
    let stream = connected.map_err(|err| {
        NoConnection::Connect(match root(&err) {
            root if is_late(root) => format!("no connection to {} in time", place(to)),
            root => format!("{}: {root}", place(to)),
        })
    })?;
    Ok(Stream::new(stream.into_inner()))
}

async fn encrypt(stream: Stream, to: &Uri, tls: Arc<ClientConfig>, limit: Duration) -> Result<Stream, NoConnection> {
    let fail = |reason: String| NoConnection::Tls(format!("{}: {reason}", place(to)));
    let host = to.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(|err| fail(err.to_string()))?;
    let handshake = TlsConnector::from(tls).connect(name, stream.io.into_inner());
    match tokio::time::timeout(limit, handshake).await {
        Err(_) => Err(fail(format!("the handshake is not finished within {limit:?}"))),
        Ok(Ok(stream)) => Ok(Stream::new(stream)),
        Ok(Err(err)) => Err(fail(match tls_error(&err) {
            Some(err) => explain(err),
            None if err.kind() == io::ErrorKind::UnexpectedEof => {
                "the connection was closed in the handshake".to_owned()
            }
            None => format!("in the handshake: {err}"),
        })),
    }
}

/// The error of TLS that an error of a socket carries.
pub(super) fn tls_error(err: &io::Error) -> Option<&rustls::Error> {
    err.get_ref()?.downcast_ref()
}

/// What went wrong in TLS, and the way out where there is one.
pub(super) fn explain(err: &rustls::Error) -> String {
    use rustls::{AlertDescription as Alert, CertificateError, Error};
    match err {
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its certificate is of an authority that nobody trusts here; put that authority's certificate into certs_dirs (HOST:PORT/ca.crt), or name it with `ca_file`".to_owned()
        }
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            format!("its certificate has expired ({err})")
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            format!("its certificate does not hold yet; is the clock of this machine right? ({err})")
        }
        Error::InvalidMessage(_) => "it does not answer in TLS; does it speak plain http?".to_owned(),
        Error::AlertReceived(Alert::CertificateRequired | Alert::BadCertificate | Alert::UnknownCA) => {
            format!("it wants a client certificate, or another one ({err}); see `client_cert`")
        }
        _ => err.to_string(),
    }
}

fn is_late(err: &(dyn Error + 'static)) -> bool {
    err.downcast_ref::<io::Error>().is_some_and(|err| err.kind() == io::ErrorKind::TimedOut)
}

/// The cause of causes.
pub(super) fn root<'a>(err: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut err = err;
    while let Some(source) = err.source() {
        err = source;
    }
    err
}

fn place(uri: &Uri) -> String {
    // Without what may stand before the host: a user, a password.
    let port = uri.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}{port}", uri.host().unwrap_or_default())
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.to_proxy).extra(self.used.clone())
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl Write for Stream {
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
