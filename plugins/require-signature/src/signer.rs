//! For tests: signs as cosign does, with keys that everybody knows.

use base64ct::{Base64, Encoding};
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::ecdsa::{DerSignature, SigningKey};
use p256::pkcs8::{EncodePublicKey, LineEnding};
use sha2::{Digest, Sha256};
use tidegate_sdk::key::sha256_hex;

/// The key of a number, which is not 0.
pub struct Signer(SigningKey);

impl Signer {
    pub fn new(number: u8) -> Self {
        Self(SigningKey::from_slice(&[number; 32]).expect("a scalar"))
    }

    pub fn public_pem(&self) -> String {
        self.0.verifying_key().to_public_key_pem(LineEnding::LF).expect("a key")
    }

    /// ASN.1 in base64.
    pub fn sign(&self, message: &[u8]) -> String {
        let signature: DerSignature = self.0.sign_prehash(&Sha256::digest(message)).expect("a hash");
        Base64::encode_string(signature.as_bytes())
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256_hex(bytes))
}

/// What `cosign sign` signs.
pub fn payload(digest: &str, name: &str) -> Vec<u8> {
    format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"{name}"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
    )
    .into_bytes()
}

/// A manifest with one layer for each payload and signature.
pub fn manifest(signatures: &[(&[u8], &str)]) -> Vec<u8> {
    let layer = |(payload, signature): &(&[u8], &str)| {
        serde_json::json!({
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
            "digest": sha256(payload),
            "size": payload.len(),
            "annotations": { "dev.cosignproject.cosign/signature": signature },
        })
    };
    let layers: Vec<_> = signatures.iter().map(layer).collect();
    serde_json::json!({ "schemaVersion": 2, "layers": layers }).to_string().into_bytes()
}

/// What `cosign sign --new-bundle-format` leaves, with a statement about a digest.
pub fn bundle(signer: &Signer, digest: &str, predicate: &str) -> Vec<u8> {
    let (algorithm, hex) = digest.split_once(':').expect("a digest");
    let statement = serde_json::json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "digest": { algorithm: hex } }],
        "predicateType": predicate,
        "predicate": {},
    })
    .to_string();
    let media_type = "application/vnd.in-toto+json";
    let message = format!("DSSEv1 {} {media_type} {} {statement}", media_type.len(), statement.len());
    serde_json::json!({
        "mediaType": crate::cosign::BUNDLE_ARTIFACT,
        "verificationMaterial": { "publicKey": { "hint": "" } },
        "dsseEnvelope": {
            "payload": Base64::encode_string(statement.as_bytes()),
            "payloadType": media_type,
            "signatures": [{ "sig": signer.sign(message.as_bytes()) }],
        },
    })
    .to_string()
    .into_bytes()
}

/// The manifest of a bundle.
pub fn bundle_manifest(bundle: &[u8]) -> Vec<u8> {
    let layer = serde_json::json!({
        "mediaType": crate::cosign::BUNDLE_ARTIFACT,
        "digest": sha256(bundle),
        "size": bundle.len(),
    });
    serde_json::json!({ "schemaVersion": 2, "layers": [layer] }).to_string().into_bytes()
}
