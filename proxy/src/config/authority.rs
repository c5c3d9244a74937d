//! The private authority that vouches for intercepted registries: a certificate and its key, read and found to match.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::string::{Ia5String, PrintableString};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_cert::Certificate;
use x509_cert::der::asn1::{Ia5StringRef, PrintableStringRef, Utf8StringRef};
use x509_cert::der::{Decode, Encode, Tagged};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints as Basic, NameConstraints, SubjectKeyIdentifier};
use x509_cert::name::RdnSequence;

use super::watch::Read;
use crate::oci::Host;

/// An authority of one's own. Cloned, it is the same one.
#[derive(Clone)]
pub struct Authority {
    /// Its certificate, and those that vouch for it, in PEM.
    pub file: PathBuf,
    /// When its certificate ends.
    pub expires: SystemTime,
    /// What it shows beside a certificate that it gave: none where it vouches for itself.
    pub chain: Vec<CertificateDer<'static>>,
    /// Signs, and says in whose name.
    pub issuer: Arc<Issuer<'static, KeyPair>>,
    /// Both files, as they were when they were read.
    pub(super) files: [Read; 2],
    /// The domains that it may vouch for at all; none: any.
    domains: Vec<String>,
}

impl Authority {
    /// Where its certificate is in its folder.
    pub const CERTIFICATE: &'static str = "ca.crt";
    /// Where its key is.
    pub const KEY: &'static str = "ca.key";

    /// Reads the authority of a folder.
    ///
    /// # Errors
    /// What is wrong with it, naming the file and the way out.
    pub fn open(dir: &Path) -> Result<Self, String> {
        let (file, key_file) = (dir.join(Self::CERTIFICATE), dir.join(Self::KEY));
        let files = [Read::before(file.clone()), Read::before(key_file.clone())];
        if !file.exists() && !key_file.exists() {
            let dir = dir.display();
            return Err(format!("there is no authority in {dir}; to make one, run: tidegate ca init --dir {dir}"));
        }
        let of_file = |reason: &str| format!("{} {reason}", file.display());
        let pem = std::fs::read(&file).map_err(|err| of_file(&format!("cannot be read: {err}")))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty());
        let chain = chain.ok_or_else(|| of_file("has no certificate in it (-----BEGIN CERTIFICATE-----)"))?;
        let certificate =
            Certificate::from_der(&chain[0]).map_err(|_| of_file("has a certificate in it that cannot be read"))?;
        let about = &certificate.tbs_certificate;
        if !matches!(about.get::<Basic>(), Ok(Some((_, Basic { ca: true, .. })))) {
            return Err(of_file("is the certificate of a server, not of an authority"));
        }
        let key = read_key(&key_file)?;
        if about.subject_public_key_info.subject_public_key.raw_bytes() != key.public_key_raw() {
            return Err(format!("{} is not the key of the certificate in {}", key_file.display(), file.display()));
        }
        let issuer = issuer(&certificate, key).ok_or_else(|| {
            of_file("has a name that cannot be put into certificates: each of its attributes may stand there once, as UTF-8, printable or IA5 text")
        })?;
        let is_vouched_for = |one: &CertificateDer<'_>| {
            Certificate::from_der(one).is_ok_and(|one| one.tbs_certificate.issuer != one.tbs_certificate.subject)
        };
        Ok(Self {
            expires: about.validity.not_after.to_system_time(),
            domains: domains(&certificate),
            chain: chain.iter().filter(|one| is_vouched_for(one)).cloned().collect(),
            issuer: Arc::new(issuer),
            files,
            file,
        })
    }

    /// Whether clients take its word for a host: an authority may be made for some domains only.
    pub fn vouches_for(&self, host: &Host) -> bool {
        let within = |domain: &String| {
            let domain = domain.trim_start_matches('.');
            host.as_str() == domain || host.is_below(&format!(".{domain}"))
        };
        self.domains.is_empty() || self.domains.iter().any(within)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("file", &self.file).field("domains", &self.domains).finish_non_exhaustive()
    }
}

/// What is wrong with the text of a key is not told: it would quote it.
fn read_key(file: &Path) -> Result<KeyPair, String> {
    let of_key = |reason: &str| format!("{} {reason}", file.display());
    let about = std::fs::metadata(file).map_err(|err| of_key(&format!("cannot be read: {err}")))?;
    if about.permissions().mode() & 0o077 != 0 {
        let reason =
            "may be read by others: whoever has it can pose as any host to the clients that trust it; run: chmod 600";
        return Err(of_key(&format!("{reason} {}", file.display())));
    }
    let pem = std::fs::read_to_string(file).map_err(|err| of_key(&format!("cannot be read: {err}")))?;
    KeyPair::from_pem(&pem).map_err(|_| {
        of_key("holds no key that can be used: it must be PKCS#8 in PEM, ECDSA or RSA, without a passphrase (openssl pkcs8 -topk8 -nocrypt brings others into this form)")
    })
}

/// Who signs in the name of a certificate; none where that name cannot be written as it stands there.
fn issuer(certificate: &Certificate, key: KeyPair) -> Option<Issuer<'static, KeyPair>> {
    let about = &certificate.tbs_certificate;
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&about.subject)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    if let Ok(Some((_, SubjectKeyIdentifier(id)))) = about.get() {
        params.key_identifier_method = KeyIdMethod::PreSpecified(id.as_bytes().to_vec());
    }
    let issuer = Issuer::new(params, key);
    // Clients compare both names byte by byte.
    let tried = CertificateParams::default().signed_by(issuer.key(), &issuer).ok()?;
    let tried = Certificate::from_der(tried.der()).ok()?.tbs_certificate.issuer.to_der().ok()?;
    (tried == about.subject.to_der().ok()?).then_some(issuer)
}

fn name(subject: &RdnSequence) -> Option<DistinguishedName> {
    let mut name = DistinguishedName::new();
    for part in &subject.0 {
        let [one] = part.0.as_slice() else { return None };
        let value = if let Ok(text) = one.value.decode_as::<Utf8StringRef<'_>>() {
            DnValue::Utf8String(text.as_str().to_owned())
        } else if let Ok(text) = one.value.decode_as::<PrintableStringRef<'_>>() {
            DnValue::PrintableString(PrintableString::try_from(text.as_str()).ok()?)
        } else if let Ok(text) = one.value.decode_as::<Ia5StringRef<'_>>() {
            DnValue::Ia5String(Ia5String::try_from(text.as_str()).ok()?)
        } else {
            tracing::debug!(tag = %one.value.tag(), "a name of an authority has text of a kind that is not written");
            return None;
        };
        let oid: Vec<u64> = one.oid.arcs().map(u64::from).collect();
        name.push(DnType::from_oid(&oid), value);
    }
    Some(name)
}

fn domains(certificate: &Certificate) -> Vec<String> {
    let Ok(Some((_, constraints))) = certificate.tbs_certificate.get::<NameConstraints>() else { return Vec::new() };
    let domain = |name: GeneralName| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
        _ => None,
    };
    constraints.permitted_subtrees.into_iter().flatten().filter_map(|tree| domain(tree.base)).collect()
}
