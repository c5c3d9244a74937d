//! Public keys, and signatures by them.

use base64ct::{Base64, Encoding};
use ed25519_dalek::pkcs8::DecodePublicKey;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use sha2::{Digest, Sha256};

/// A public key of one of the kinds that cosign signs with.
///
/// cosign hashes with SHA-256 whatever the curve is.
#[derive(Debug)]
pub enum Key {
    /// ECDSA, as `cosign generate-key-pair` makes it.
    P256(p256::ecdsa::VerifyingKey),
    /// ECDSA, as some services for keys make it.
    P384(p384::ecdsa::VerifyingKey),
    /// Signs the message itself, not its hash.
    Ed25519(Box<ed25519_dalek::VerifyingKey>),
}

impl Key {
    /// Reads a key in PEM.
    ///
    /// # Errors
    /// What it is instead, and the way out.
    pub fn parse(pem: &str) -> Result<Self, String> {
        if pem.contains("PRIVATE KEY") {
            return Err("that is a private key, which nobody but its owner may have: take cosign.pub, or what \
                        \"cosign public-key --key ...\" prints, and think about a new pair"
                .to_owned());
        }
        if pem.contains("BEGIN CERTIFICATE") {
            return Err(
                "that is a certificate: write its public key, which \"openssl x509 -pubkey -noout\" prints".to_owned()
            );
        }
        decode(pem).and_then(|der| Self::from_der(&der)).ok_or_else(|| {
            "it is no public key in PEM of ECDSA P-256, ECDSA P-384 or Ed25519: write what begins with \
             -----BEGIN PUBLIC KEY-----, all lines of it"
                .to_owned()
        })
    }

    fn from_der(der: &[u8]) -> Option<Self> {
        if let Ok(key) = p256::ecdsa::VerifyingKey::from_public_key_der(der) {
            return Some(Self::P256(key));
        }
        if let Ok(key) = p384::ecdsa::VerifyingKey::from_public_key_der(der) {
            return Some(Self::P384(key));
        }
        ed25519_dalek::VerifyingKey::from_public_key_der(der).ok().map(|key| Self::Ed25519(Box::new(key)))
    }

    /// Whether a signature (ASN.1 for ECDSA, 64 bytes for Ed25519) is one over a message by this key.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::P256(key) => p256::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify_prehash(&Sha256::digest(message), &signature).is_ok()),
            Self::P384(key) => p384::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify_prehash(&Sha256::digest(message), &signature).is_ok()),
            Self::Ed25519(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
        }
    }
}

/// Lines of any length, ended and indented in whatever way: a key that was pasted into a configuration is a key.
fn decode(pem: &str) -> Option<Vec<u8>> {
    let (_, rest) = pem.split_once("-----BEGIN PUBLIC KEY-----")?;
    let (base64, _) = rest.split_once("-----END PUBLIC KEY-----")?;
    let base64: String = base64.split_whitespace().collect();
    Base64::decode_vec(&base64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `openssl`: key, and signature over `hello` (`dgst -sha256 -sign`, for Ed25519 `pkeyutl -sign -rawin`).
    const SIGNED: [(&str, &str); 3] = [
        (
            "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEZI/s7Oy8wXXzWapUIJpT1JBuTnD5avRiXD3j/Gv7rUWyQVCvQubMQlztBbQ5GmtBruzycquUxy8yftsjvpromA==",
            "MEUCIFsRt2GqP6vtWS2T/IX7Acocu68lrfoF6rHoy6c/aeKSAiEAoW3wZB1iWDMddKX2HOi3gbf0VOvYW+3i0eE65kwKd+Y=",
        ),
        (
            "MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEy2MI05lCYmyMgqerzwEsRK2+iatt7FhN+LvBJBoS6rpxnrwb5zPccENbXCiW4ARb09LeKnmLWlw6KZgqMKCu7YWFE3TssNiMyyBgfIVcYK5XOG69SkiFUMU8YGZpQgIz",
            "MGUCMDBxLErepL2lLXGO9nlJAaGe4dofbJt9iieQ64u+37K6wr94DDcP95tRbPv8n/uyzAIxAKa++zBjUxEP60CFejwA5g/pInGqyZTXR/YuhExy6ZIMyeqOLFjykajZ1rY8c7kIdg==",
        ),
        (
            "MCowBQYDK2VwAyEADI+WGaWP31Fo4VrSCvZauE5GTtA4iO7lRNXfYpaRGpw=",
            "+CmdpJSOFu/GJsrCMLXy8depqtKwqFP8nH8bk+0hWd1tcf1y9tFCoTIMb06/HcJCywLffQyz9Lazj+YYECBlDA==",
        ),
    ];

    fn pem(base64: &str) -> String {
        format!("-----BEGIN PUBLIC KEY-----\n{base64}\n-----END PUBLIC KEY-----\n")
    }

    #[test]
    fn signatures_of_openssl_verify_and_no_others_do() {
        let keys: Vec<Key> = SIGNED.iter().map(|(key, _)| Key::parse(&pem(key)).expect("a key")).collect();
        for (at, (_, signature)) in SIGNED.iter().enumerate() {
            let signature = Base64::decode_vec(signature).expect("base64");
            for (other, key) in keys.iter().enumerate() {
                assert_eq!(key.verifies(b"hello", &signature), other == at, "signature {at}, key {other}");
            }
            assert!(!keys[at].verifies(b"hellp", &signature), "{at}: another message");
            for cut in 0..signature.len() {
                assert!(!keys[at].verifies(b"hello", &signature[..cut]), "{at}: cut at {cut}");
            }
            for place in 0..signature.len() {
                let mut wrong = signature.clone();
                wrong[place] ^= 1;
                assert!(!keys[at].verifies(b"hello", &wrong), "{at}: changed at {place}");
            }
        }
    }

    #[test]
    fn a_key_may_be_wrapped_and_indented() {
        let (key, _) = SIGNED[0];
        let (first, second) = key.split_at(64);
        for text in [pem(&format!("{first}\r\n{second}\r")), pem(&format!("  {first}\n  {second}  "))] {
            assert!(Key::parse(&text).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_is_no_public_key_is_refused_with_the_way_out() {
        for (text, reason) in [
            ("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAA==\n-----END", "that is a private key"),
            ("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "that is a certificate"),
            ("-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n", "P-256, ECDSA P-384 or Ed25519"),
            ("AA==", "-----BEGIN PUBLIC KEY-----"),
            ("", "-----BEGIN PUBLIC KEY-----"),
            (&pem(RSA), "P-256, ECDSA P-384 or Ed25519"),
        ] {
            let refusal = Key::parse(text).expect_err(text);
            assert!(refusal.contains(reason), "{text}: {refusal}");
        }
    }

    const RSA: &str = "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQC3rGxczwiJHWv7+vEVJiybLLYfN4K0psxxno1UBbTcD+OJMsppWWXNDEmWGmxvS7QA879ymU17ORxbk+1iOidIvA0mazJHZYCWLZcySrXWzYMZm+54h1ASlnarnVU2Sl/olAAeXf3gzFJ3SkpHpYJCkPpV8G+R9LFDJf5sr4rjVQIDAQAB";
}
