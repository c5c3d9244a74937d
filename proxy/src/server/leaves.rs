//! What intercepted clients are shown: short-lived certificates, one for each host, made when they are needed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use super::tls;
use crate::config::Authority;
use crate::oci::Host;

/// How long a certificate holds; half of it is how long it is shown.
const LIFE: Duration = Duration::from_hours(7 * 24);
/// By how much the clock of a client may be behind.
const BEHIND: Duration = Duration::from_hours(1);
/// Longest common name. Source: RFC 5280, appendix A.1 (`ub-common-name`).
const COMMON_NAME_MAX: usize = 64;

/// The certificates of one authority. There are as many as intercepted registries have names.
pub(super) struct Leaves {
    authority: Authority,
    made: Mutex<HashMap<Host, Leaf>>,
}

#[derive(Clone)]
struct Leaf {
    acceptor: TlsAcceptor,
    shown_until: SystemTime,
}

/// A certificate for one host, which is shown to nobody who asks for another.
#[derive(Debug)]
struct OfHost {
    host: Host,
    identity: Arc<CertifiedKey>,
}

impl Leaves {
    /// Nothing is made yet.
    pub fn of(authority: &Authority) -> Self {
        Self { authority: authority.clone(), made: Mutex::default() }
    }

    /// Accepts TLS as a host that is intercepted.
    ///
    /// # Errors
    /// Why no certificate can be made.
    pub fn acceptor(&self, host: &Host) -> Result<TlsAcceptor, String> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        // A clock that was set back must not keep one for longer than it is shown.
        let holds = |leaf: &&Leaf| leaf.shown_until.duration_since(now).is_ok_and(|left| left <= LIFE / 2);
        if let Some(leaf) = made.get(host).filter(holds) {
            return Ok(leaf.acceptor.clone());
        }
        let leaf = self.make(host, now)?;
        let acceptor = leaf.acceptor.clone();
        made.insert(host.clone(), leaf);
        Ok(acceptor)
    }

    fn make(&self, host: &Host, now: SystemTime) -> Result<Leaf, String> {
        let until = self.authority.expires.min(now + LIFE);
        if until <= now {
            return Err(format!("the authority in {} has ended", self.authority.file.display()));
        }
        let fail = |err: &dyn std::fmt::Display| format!("no certificate can be made for {host}: {err}");
        let mut params = CertificateParams::new([host.to_string()]).map_err(|err| fail(&err))?;
        params.distinguished_name.remove(DnType::CommonName);
        if host.as_str().len() <= COMMON_NAME_MAX {
            params.distinguished_name.push(DnType::CommonName, host.as_str());
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = ((now - BEHIND).into(), until.into());
        let key = KeyPair::generate().map_err(|err| fail(&err))?;
        let certificate = params.signed_by(&key, &self.authority.issuer).map_err(|err| fail(&err))?;
        let chain = std::iter::once(certificate.der().clone()).chain(self.authority.chain.iter().cloned()).collect();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let identity = CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|err| fail(&err))?;
        let shown_until = now + until.duration_since(now).unwrap_or_default() / 2;
        let acceptor = tls::acceptor(Arc::new(OfHost { host: host.clone(), identity: Arc::new(identity) }));
        Ok(Leaf { acceptor, shown_until })
    }
}

impl ResolvesServerCert for OfHost {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // A client that connected to one host and asks for another is led astray by somebody, or leads us astray.
        let asks_for_this = |name| Host::parse(name).as_ref() == Some(&self.host);
        hello.server_name().is_none_or(asks_for_this).then(|| self.identity.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{BasicConstraints, IsCa};

    use super::*;

    #[test]
    fn a_certificate_is_kept_until_it_is_half_over_and_ends_before_its_authority() {
        let dir = tempfile::tempdir().expect("a folder");
        let (now, days) = (SystemTime::now(), |days: u64| Duration::from_hours(days * 24));
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = (now + days(20)).into();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(dir.path().join(Authority::CERTIFICATE), certificate.pem()).expect("written");
        std::fs::write(dir.path().join(Authority::KEY), key.serialize_pem()).expect("written");
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(dir.path().join(Authority::KEY), private).expect("set");
        let leaves = Leaves::of(&Authority::open(dir.path()).expect("an authority"));
        let host = |name| Host::parse(name).expect("a host");
        let long = format!("{}.io", ["a"; 40].join("."));
        for name in ["quay.io", "10.0.0.1", "::1", &long] {
            assert!(leaves.acceptor(&host(name)).is_ok(), "{name}");
            assert!(leaves.acceptor(&host(name)).is_ok(), "{name}");
        }
        assert_eq!(leaves.made.lock().expect("no panic").len(), 4);
        let shown_until = |at| leaves.make(&host("quay.io"), at).map(|leaf| leaf.shown_until);
        assert_eq!(shown_until(now), Ok(now + LIFE / 2));
        let late = now + days(18);
        let left = shown_until(late).expect("it has not ended").duration_since(late).expect("later");
        assert!(left <= days(1) && left > Duration::from_hours(23), "{left:?}");
        assert!(shown_until(now + days(21)).is_err_and(|reason| reason.contains("has ended")));
    }
}
