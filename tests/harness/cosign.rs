//! Signatures as cosign leaves them in a registry, made with openssl.
//!
//! Source: cosign, `specs/SIGNATURE_SPEC.md` and `specs/BUNDLE_SPEC.md`.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::content::sha256;
use crate::fake::Fake;
use crate::process::run;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const STATEMENT: &str = "application/vnd.in-toto+json";

/// A key pair of ECDSA P-256.
#[derive(Debug)]
pub struct Signer {
    folder: TempDir,
}

/// One signature of a manifest of signatures.
#[derive(Clone, Debug)]
pub struct Signature {
    /// What is signed.
    pub payload: Vec<u8>,
    /// In base64.
    pub text: String,
}

impl Signer {
    /// Makes one.
    pub fn new() -> Self {
        let signer = Self { folder: tempfile::tempdir().unwrap() };
        signer.openssl("ecparam -name prime256v1 -genkey -noout -out cosign.key");
        signer.openssl("ec -in cosign.key -pubout -out cosign.pub");
        signer
    }

    /// The public key in PEM.
    pub fn public_pem(&self) -> String {
        fs::read_to_string(self.folder.path().join("cosign.pub")).unwrap()
    }

    /// A signature over bytes, in base64.
    pub fn sign(&self, message: &[u8]) -> String {
        fs::write(self.folder.path().join("message"), message).unwrap();
        self.openssl("dgst -sha256 -sign cosign.key -out signature message");
        self.openssl("base64 -A -in signature -out text");
        fs::read_to_string(self.folder.path().join("text")).unwrap()
    }

    /// What `cosign sign` makes for a digest under a name such as `docker.io/library/app`.
    pub fn signature(&self, digest: &str, name: &str) -> Signature {
        let payload = payload(digest, name);
        Signature { text: self.sign(&payload), payload }
    }

    /// What `cosign sign --new-bundle-format` makes: a statement about a digest, in an envelope.
    pub fn bundle(&self, digest: &str, predicate: &str) -> Vec<u8> {
        let (algorithm, hex) = digest.split_once(':').expect("a digest");
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{ "digest": { algorithm: hex } }],
            "predicateType": predicate,
            "predicate": {},
        })
        .to_string();
        let text =
            self.sign(format!("DSSEv1 {} {STATEMENT} {} {statement}", STATEMENT.len(), statement.len()).as_bytes());
        fs::write(self.folder.path().join("message"), &statement).unwrap();
        self.openssl("base64 -A -in message -out text");
        let payload = fs::read_to_string(self.folder.path().join("text")).unwrap();
        let envelope = json!({ "payload": payload, "payloadType": STATEMENT, "signatures": [{ "sig": text }] });
        json!({ "mediaType": BUNDLE, "dsseEnvelope": envelope }).to_string().into_bytes()
    }

    fn openssl(&self, arguments: &str) {
        let output = run(Command::new("openssl").args(arguments.split(' ')).current_dir(self.folder.path()));
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Default for Signer {
    fn default() -> Self {
        Self::new()
    }
}

/// The text that `cosign sign` signs.
pub fn payload(digest: &str, name: &str) -> Vec<u8> {
    let critical = json!({
        "identity": { "docker-reference": name },
        "image": { "docker-manifest-digest": digest },
        "type": "cosign container image signature",
    });
    json!({ "critical": critical, "optional": null }).to_string().into_bytes()
}

/// Puts signatures under the tag of a digest. Gives the path of their manifest.
pub fn put_signatures(fake: &Fake, repository: &str, digest: &str, signatures: &[Signature]) -> String {
    let layer = |signature: &Signature| {
        let mut layer = put_layer(fake, repository, SIMPLE_SIGNING, &signature.payload);
        layer["annotations"] = json!({ "dev.cosignproject.cosign/signature": signature.text });
        layer
    };
    let layers: Vec<Value> = signatures.iter().map(layer).collect();
    let path = format!("/v2/{repository}/manifests/{}.sig", digest.replace(':', "-"));
    fake.put(&path, MANIFEST, manifest(fake, repository, &layers).into());
    path
}

/// Puts a bundle beside a digest, and lists it, and some junk, as what refers to it.
pub fn put_bundle(fake: &Fake, repository: &str, digest: &str, bundle: &[u8]) {
    let layer = put_layer(fake, repository, BUNDLE, bundle);
    let manifest = manifest(fake, repository, &[layer]);
    let listed = sha256(&manifest);
    let entry = json!({ "mediaType": MANIFEST, "digest": listed, "size": manifest.len(), "artifactType": BUNDLE });
    let junk = json!({
        "mediaType": MANIFEST, "digest": sha256(b"junk"), "size": 4, "artifactType": "application/spdx+json",
    });
    let list = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [junk, entry],
    });
    fake.put(&format!("/v2/{repository}/manifests/{listed}"), MANIFEST, manifest.into());
    let path = format!("/v2/{repository}/referrers/{digest}");
    fake.put(&path, "application/vnd.oci.image.index.v1+json", list.to_string().into_bytes().into());
}

fn put_layer(fake: &Fake, repository: &str, media_type: &str, bytes: &[u8]) -> Value {
    fake.put_blob(repository, bytes.to_vec());
    json!({ "mediaType": media_type, "digest": sha256(bytes), "size": bytes.len() })
}

fn manifest(fake: &Fake, repository: &str, layers: &[Value]) -> Vec<u8> {
    let config = put_layer(fake, repository, "application/vnd.oci.image.config.v1+json", b"{}");
    json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers }).to_string().into_bytes()
}
