//! What cosign leaves in a registry, as bytes: which signatures are there, and what each says.
//!
//! Source: cosign, `specs/SIGNATURE_SPEC.md` and `specs/BUNDLE_SPEC.md`; DSSE, `protocol.md`; in-toto, Statement v1.

use std::collections::BTreeMap;

use base64ct::{Base64, Encoding};
use serde::Deserialize;

use crate::key::Key;
use crate::policy;

/// Type of an artifact that refers to an image and has the layers of a `.sig` tag.
pub const SIGNATURE_ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// Type of an artifact whose layer is a bundle: a signature or an attestation.
pub const BUNDLE_ARTIFACT: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// What a bundle is about, told by its manifest's annotation.
pub const BUNDLE_PREDICATE: &str = "dev.sigstore.bundle.predicateType";
/// The statement that `cosign sign` signs. Others are attestations: of how an image was built, of what is in it.
pub const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const PAYLOAD_TYPE: &str = "cosign container image signature";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/";
const STATEMENT_MEDIA_TYPE: &str = "application/vnd.in-toto+json";
/// Longest signature as base64: one of ECDSA P-384 has 140. Units: bytes.
const SIGNATURE_MAX: usize = 1024;

/// A signature and where its payload is.
#[derive(Debug, PartialEq)]
pub struct Signed {
    /// Digest of the payload.
    pub payload: String,
    /// Units: bytes.
    pub payload_size: u64,
    pub signature: Vec<u8>,
}

/// Why something is not a signature of the image by one of the keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Flaw {
    /// It cannot be read.
    Malformed,
    /// It is one of something else: the payload names another digest.
    OtherDigest,
    /// The payload gives the image another name.
    OtherName,
    /// None of the keys made it.
    OtherKey,
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    identity: PayloadIdentity,
    image: PayloadImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct PayloadIdentity {
    #[serde(rename = "docker-reference", default)]
    reference: String,
}

#[derive(Deserialize)]
struct PayloadImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    dsse_envelope: Envelope,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    predicate_type: String,
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
}

/// The tag under which the signatures of a digest are.
pub fn tag(digest: &str) -> String {
    format!("{}.sig", digest.replace(':', "-"))
}

/// The signatures that a manifest lists, each readable or not; what else it has is not among them.
pub fn signatures(manifest: &[u8]) -> Result<Vec<Result<Signed, Flaw>>, Flaw> {
    let manifest: Manifest = serde_json::from_slice(manifest).map_err(|_| Flaw::Malformed)?;
    let signatures = manifest.layers.into_iter().filter(|layer| layer.media_type == SIMPLE_SIGNING);
    let parse = |mut layer: Layer| {
        let signature = layer.annotations.remove(SIGNATURE_ANNOTATION).and_then(|text| decode(&text));
        let signed = |signature| Signed { payload: layer.digest, payload_size: layer.size, signature };
        signature.map(signed).ok_or(Flaw::Malformed)
    };
    Ok(signatures.map(parse).collect())
}

/// Where the bundle of a manifest is: digest and size of its layer. Units: bytes.
pub fn bundle(manifest: &[u8]) -> Result<(String, u64), Flaw> {
    let manifest: Manifest = serde_json::from_slice(manifest).map_err(|_| Flaw::Malformed)?;
    let is_bundle = |layer: &Layer| layer.media_type == BUNDLE_ARTIFACT;
    manifest.layers.into_iter().find(is_bundle).map(|layer| (layer.digest, layer.size)).ok_or(Flaw::Malformed)
}

/// Whether a payload, signed so, is a signature of a digest by one of the keys. `name`: what it must call the image.
pub fn verify(keys: &[Key], payload: &[u8], signature: &[u8], digest: &str, name: Option<&str>) -> Result<(), Flaw> {
    // What the payload says counts only once its signature is verified; it is read first since that is cheaper.
    let Payload { critical } = serde_json::from_slice(payload).map_err(|_| Flaw::Malformed)?;
    if critical.kind != PAYLOAD_TYPE {
        return Err(Flaw::Malformed);
    }
    if critical.image.digest != digest {
        return Err(Flaw::OtherDigest);
    }
    if name.is_some() && policy::canonical(&critical.identity.reference).as_deref() != name {
        return Err(Flaw::OtherName);
    }
    by_one_of(keys, payload, signature)
}

/// Whether a bundle is a signature of a digest by one of the keys. `name`: as in [`verify`]; a bundle gives none.
pub fn verify_bundle(keys: &[Key], bundle: &[u8], digest: &str, name: Option<&str>) -> Result<(), Flaw> {
    let Bundle { dsse_envelope: envelope } = serde_json::from_slice(bundle).map_err(|_| Flaw::Malformed)?;
    let payload = Base64::decode_vec(&envelope.payload).map_err(|_| Flaw::Malformed)?;
    let statement: Statement = serde_json::from_slice(&payload).map_err(|_| Flaw::Malformed)?;
    if envelope.payload_type != STATEMENT_MEDIA_TYPE
        || !statement.kind.starts_with(STATEMENT_TYPE)
        || statement.predicate_type != SIGN_PREDICATE
    {
        return Err(Flaw::Malformed);
    }
    let (algorithm, hex) = digest.split_once(':').ok_or(Flaw::Malformed)?;
    let is_digest = |subject: &Subject| subject.digest.get(algorithm).is_some_and(|it| it == hex);
    if !statement.subject.iter().any(is_digest) {
        return Err(Flaw::OtherDigest);
    }
    if name.is_some() {
        return Err(Flaw::OtherName);
    }
    // An envelope of cosign has one.
    let signature = envelope.signatures.first().and_then(|first| decode(&first.sig)).ok_or(Flaw::Malformed)?;
    by_one_of(keys, &pre_authentication(STATEMENT_MEDIA_TYPE, &payload), &signature)
}

fn by_one_of(keys: &[Key], message: &[u8], signature: &[u8]) -> Result<(), Flaw> {
    if keys.iter().any(|key| key.verifies(message, signature)) { Ok(()) } else { Err(Flaw::OtherKey) }
}

/// What an envelope's signature is over.
fn pre_authentication(media_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {media_type} {} ", media_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

fn decode(text: &str) -> Option<Vec<u8>> {
    if text.len() > SIGNATURE_MAX {
        return None;
    }
    Base64::decode_vec(text.trim()).ok().filter(|bytes| !bytes.is_empty())
}
