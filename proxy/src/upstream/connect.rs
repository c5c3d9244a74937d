//! Connections to upstreams: one builder makes every client, so that its rules cannot differ between them.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower_service::Service;
use url::{Host, Url};

use crate::config::is_public;
use crate::oci::Failure;

/// Longest time for a TCP connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an idle connection is kept; registries close theirs after a minute or more.
const IDLE: Duration = Duration::from_secs(30);
/// Idle connections kept for one host.
const IDLE_PER_HOST: usize = 16;

/// Largest chunk of a body that hyper hands on at once, which bounds what a queue of them holds. Units: bytes.
const CHUNK_MAX: usize = 64 << 10;

/// A client for requests without a body.
pub(super) type Http = Client<HttpsConnector<HttpConnector<Resolver>>, Empty<Bytes>>;

/// The two clients: which of them may be used follows from who named the host.
pub(super) struct Clients {
    /// For hosts that the operator named.
    named: Http,
    /// For hosts that a name or an upstream chose: only public addresses are dialled.
    public: Http,
}

impl Clients {
    /// Builds both clients with the certificates that the system trusts.
    pub fn new() -> Self {
        let mut roots = rustls::RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for err in &found.errors {
            tracing::warn!(error = %err, "a certificate that the system trusts cannot be read");
        }
        let (good, _) = roots.add_parsable_certificates(found.certs);
        if good == 0 {
            tracing::warn!(
                "the system trusts no certificate authority: no registry can be reached over https; install ca-certificates"
            );
        }
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Self {
            named: client(tls.clone(), Resolver { public_only: false }),
            public: client(tls, Resolver { public_only: true }),
        }
    }

    /// The client for an address. `named`: the operator named its host.
    pub fn for_url(&self, url: &Url, named: bool) -> Result<&Http, Failure> {
        if named {
            return Ok(&self.named);
        }
        // The resolver is not asked about addresses.
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(address.into()),
            Some(Host::Ipv6(address)) => Some(address.into()),
            _ => None,
        };
        match address {
            Some(address) if !is_public(address) => Err(Failure::Connect(NotPublic(address.to_string()).to_string())),
            _ => Ok(&self.public),
        }
    }
}

fn client(tls: rustls::ClientConfig, resolver: Resolver) -> Http {
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(Duration::from_mins(1)));
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .http1_max_buf_size(CHUNK_MAX)
        .build(https)
}

/// The system's resolver, and what may be dialled of its answers.
#[derive(Clone)]
pub(super) struct Resolver {
    public_only: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("{0} is no public address; a registry on a private network is reached when it is listed under [registries]")]
struct NotPublic(String);

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let public_only = self.public_only;
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let (allowed, refused): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|address| !public_only || is_public(address.ip()));
            match refused.first() {
                Some(address) if allowed.is_empty() => {
                    Err(io::Error::other(NotPublic(format!("{name} is {}, which", address.ip()))))
                }
                _ => Ok(allowed.into_iter()),
            }
        })
    }
}

/// What went wrong when no answer came.
pub(super) fn failure(err: &hyper_util::client::legacy::Error) -> Failure {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(err);
    let mut text = String::new();
    while let Some(cause) = source {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = cause.downcast_ref::<rustls::Error>().or_else(|| inner?.downcast_ref::<rustls::Error>());
        if let Some(tls) = tls {
            return Failure::Tls(tls.to_string());
        }
        if cause.downcast_ref::<io::Error>().is_some_and(|err| err.kind() == io::ErrorKind::TimedOut) {
            return Failure::Timeout;
        }
        text = cause.to_string();
        source = cause.source();
    }
    if err.is_connect() { Failure::Connect(text) } else { Failure::Other(format!("no answer: {text}")) }
}

/// Installs the process's cryptography; before the first client is made.
pub(super) fn install_cryptography() {
    // An error says that it was installed before, which is as good.
    let _ = Arc::new(rustls::crypto::ring::default_provider()).as_ref().clone().install_default();
}
