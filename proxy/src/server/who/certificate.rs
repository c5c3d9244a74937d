//! Who a client is by its certificate. That an authority vouches for it was found out before.

use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::asn1::{Ia5StringRef, ObjectIdentifier, PrintableStringRef, TeletexStringRef, Utf8StringRef};
use x509_cert::der::{Decode, Tag, Tagged};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;

use crate::plugin::Identity;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");
const ORGANIZATIONAL_UNIT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.11");

/// Reads an identity: the common name, else the first of its other names (DNS, URI or mail); by whom it was issued; as
/// groups its organizations and their units. None: it has no name.
pub fn identity(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let certificate = Certificate::from_der(certificate).ok()?.tbs_certificate;
    let subject = values(&certificate.subject, COMMON_NAME).into_iter().next().or_else(|| {
        let (_, names) = certificate.get::<SubjectAltName>().ok()??;
        names.0.iter().find_map(|name| match name {
            GeneralName::DnsName(name)
            | GeneralName::Rfc822Name(name)
            | GeneralName::UniformResourceIdentifier(name) => Some(name.as_str().to_owned()),
            _ => None,
        })
    })?;
    let issuer = values(&certificate.issuer, COMMON_NAME).into_iter().next();
    let issuer = issuer.unwrap_or_else(|| certificate.issuer.to_string());
    let mut groups = values(&certificate.subject, ORGANIZATION);
    groups.extend(values(&certificate.subject, ORGANIZATIONAL_UNIT));
    groups.dedup();
    Some(Identity { subject, issuer, groups })
}

/// The texts of one kind in a name.
fn values(name: &Name, kind: ObjectIdentifier) -> Vec<String> {
    let parts = name.0.iter().flat_map(|parts| parts.0.iter()).filter(|part| part.oid == kind);
    parts.filter_map(text).filter(|text| !text.is_empty() && !text.contains(char::is_control)).collect()
}

fn text(part: &AttributeTypeAndValue) -> Option<String> {
    let value = &part.value;
    Some(match value.tag() {
        Tag::Utf8String => value.decode_as::<Utf8StringRef<'_>>().ok()?.as_str().to_owned(),
        Tag::PrintableString => value.decode_as::<PrintableStringRef<'_>>().ok()?.as_str().to_owned(),
        Tag::Ia5String => value.decode_as::<Ia5StringRef<'_>>().ok()?.as_str().to_owned(),
        Tag::TeletexString => value.decode_as::<TeletexStringRef<'_>>().ok()?.as_str().to_owned(),
        _ => return None,
    })
}
