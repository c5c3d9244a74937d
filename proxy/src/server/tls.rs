//! TLS of the listener: what is shown to clients, and which protocols are offered.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::SingleCertAndKey;
use tokio_rustls::TlsAcceptor;

use crate::config::{Clients, Tls};

/// Accepts TLS 1.2 and later with an identity, and offers HTTP/2 before HTTP/1.1.
pub(super) fn acceptor(tls: &Tls, clients: &Clients) -> TlsAcceptor {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider has the suites of TLS 1.2 and 1.3")
        .with_client_cert_verifier(verifier(clients, provider))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(tls.identity.clone())));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// Asks clients for a certificate where somebody may vouch for them; who has none is let in as anybody.
fn verifier(clients: &Clients, provider: Arc<CryptoProvider>) -> Arc<dyn ClientCertVerifier> {
    let Some(authorities) = &clients.certificates else { return WebPkiClientVerifier::no_client_auth() };
    WebPkiClientVerifier::builder_with_provider(authorities.roots.clone(), provider)
        .allow_unauthenticated()
        .build()
        .expect("there is an authority, and no list of what it revoked")
}
