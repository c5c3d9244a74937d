//! TLS of the listener: what is shown to clients, and which protocols are offered.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use crate::config::{Config, VirtualHosts};
use crate::oci::Host;

/// What the listener shows; none: it speaks plain HTTP.
pub(super) fn of_listener(config: &Config) -> Option<TlsAcceptor> {
    let default = config.tls.as_ref()?.identity.clone();
    Some(acceptor(Arc::new(Identities { default, hosts: config.virtual_hosts.clone() })))
}

/// One for each virtual host that has its own, and one for all other names, and for those who ask for none.
#[derive(Debug)]
struct Identities {
    default: Arc<CertifiedKey>,
    hosts: VirtualHosts,
}

impl ResolvesServerCert for Identities {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name().and_then(Host::parse);
        let own = asked.and_then(|host| self.hosts.find(&host)?.tls.as_ref().map(|tls| tls.identity.clone()));
        Some(own.unwrap_or_else(|| self.default.clone()))
    }
}

/// Accepts TLS 1.2 and later with an identity, and offers HTTP/2 before HTTP/1.1.
pub(super) fn acceptor(identity: Arc<dyn ResolvesServerCert>) -> TlsAcceptor {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the suites of TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(identity);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}
