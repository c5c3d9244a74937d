//! The manifest under inspection.

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::lookups::{Lookups, Missing};
use crate::oci::manifest::{Contents, InvalidManifest, MEDIA_TYPES};
use crate::oci::{Digest, Reference};

/// Largest layer of what is beside an image. Units: bytes.
const TEXT_MAX: usize = 4 << 20;
/// Layers that something beside an image may have.
const LAYERS_BESIDE_MAX: usize = 8;

/// A manifest that is to be inspected.
#[derive(Debug)]
pub struct Image {
    /// What it hashes to.
    pub digest: Digest,
    /// As it is served.
    pub media_type: String,
    /// As it is served.
    pub bytes: Bytes,
    /// What it says.
    pub contents: Contents,
    /// The image's configuration, once a plugin has asked for it.
    pub(super) config: OnceCell<Result<Bytes, Missing>>,
}

impl Image {
    /// Reads a manifest.
    ///
    /// # Errors
    /// What of it is of no shape that a manifest has.
    pub fn parse(digest: Digest, media_type: &str, bytes: Bytes) -> Result<Self, InvalidManifest> {
        let contents = Contents::parse(&bytes)?;
        Ok(Self { digest, media_type: media_type.to_owned(), bytes, contents, config: OnceCell::new() })
    }

    /// Whether it is something that a pull needs beside an image, and that a plugin's denial would break: a signature, an
    /// attestation, an SBOM, or the list of them. What it holds shows that it is: no layer of it can be unpacked,
    /// whatever its media type says. A layer that cannot be had shows nothing.
    pub async fn is_beside(&self, asked: &Reference, lookups: &dyn Lookups) -> bool {
        if !self.claims_to_be_beside(asked) {
            return false;
        }
        for layer in &self.contents.layers {
            match lookups.blob(layer.digest, TEXT_MAX).await {
                Ok(bytes) if is_text(&bytes) => {}
                _ => return false,
            }
        }
        true
    }

    /// Whether it says so of itself.
    fn claims_to_be_beside(&self, asked: &Reference) -> bool {
        let named = match asked {
            Reference::Tag(tag) => is_of_a_digest(tag.as_str()),
            Reference::Digest(_) => false,
        };
        // Some clients guess what a manifest of another type is.
        let known = MEDIA_TYPES.contains(&self.media_type.as_str());
        (named || self.contents.subject.is_some())
            && known
            && self.contents.layers.len() <= LAYERS_BESIDE_MAX
            && !self.contents.holds_a_program()
    }
}

/// Whether a layer is text and so no archive, whatever its media type says: clients unpack what calls itself a
/// signature, too.
fn is_text(layer: &[u8]) -> bool {
    let text = std::str::from_utf8(layer).is_ok_and(|text| !text.contains('\0'));
    // The one kind of archive whose beginning could be text.
    text && !layer.starts_with(b"BZh")
}

/// `sha256-HEX`, and behind it nothing, or what cosign puts there.
///
/// Source: OCI distribution specification, "Referrers Tag Schema"; cosign, "Signature Specification", "Discovery".
fn is_of_a_digest(tag: &str) -> bool {
    let Some(rest) = tag.strip_prefix("sha256-") else { return false };
    let (hex, kind) = rest.split_once('.').unwrap_or((rest, ""));
    hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) && matches!(kind, "" | "sig" | "att" | "sbom")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Tag;

    #[test]
    fn an_archive_is_no_text() {
        assert!(is_text(b"{\"critical\":{}}"));
        assert!(is_text(b""));
        for archive in [&b"\x1f\x8b\x08"[..], b"\x28\xb5\x2f\xfd", b"BZh91AY&SY", b"name\0\0\0ustar", b"\xfd7zXZ\0"] {
            assert!(!is_text(archive), "{archive:?}");
        }
    }

    #[test]
    fn what_can_be_run_is_inspected_under_every_name() {
        let digest = Digest::sha256_of(b"");
        let manifest = |layer: &str, more: &str| {
            let text = format!(r#"{{"layers":[{{"mediaType":"{layer}","digest":"{digest}"}}]{more}}}"#);
            Image::parse(digest, "application/vnd.oci.image.manifest.v1+json", text.into()).expect("a manifest")
        };
        let tag = |text: &str| Reference::Tag(Tag::parse(text).expect("a tag"));
        let signature = "application/vnd.dev.cosign.simplesigning.v1+json";
        let program = "application/vnd.oci.image.layer.v1.tar+gzip";
        let subject = format!(r#","subject":{{"digest":"{digest}"}}"#);
        let name = format!("sha256-{}", "a".repeat(64));
        for kind in ["", ".sig", ".att", ".sbom"] {
            assert!(manifest(signature, "").claims_to_be_beside(&tag(&format!("{name}{kind}"))), "{kind}");
            assert!(!manifest(program, "").claims_to_be_beside(&tag(&format!("{name}{kind}"))), "{kind}");
        }
        assert!(!manifest(signature, "").claims_to_be_beside(&tag("latest")));
        assert!(!manifest(signature, "").claims_to_be_beside(&tag("sha256-abc.sig")));
        assert!(!manifest(signature, "").claims_to_be_beside(&tag(&format!("{name}.exe"))));
        assert!(manifest(signature, &subject).claims_to_be_beside(&Reference::Digest(digest)));
        assert!(!manifest(program, &subject).claims_to_be_beside(&Reference::Digest(digest)));
    }
}
