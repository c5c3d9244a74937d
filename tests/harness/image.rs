//! Images made on the spot: always the same bytes for the same name, several layers, nothing compressible.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::content::{noise, sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An index of images, each for a platform such as `linux/amd64`.
pub fn index(images: &[(&Image, &str)]) -> Vec<u8> {
    let entry = |(image, platform): &(&Image, &str)| {
        let (os, architecture) = platform.split_once('/').expect("OS/ARCHITECTURE");
        let mut entry = descriptor(MANIFEST, &image.manifest);
        entry["platform"] = json!({ "os": os, "architecture": architecture });
        entry
    };
    let manifests: Vec<Value> = images.iter().map(entry).collect();
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string().into_bytes()
}

/// An image of one platform, in memory.
#[derive(Clone, Debug)]
pub struct Image {
    /// Bytes of the manifest.
    pub manifest: Vec<u8>,
    /// The configuration first, then the layers.
    pub blobs: Vec<Vec<u8>>,
}

impl Image {
    /// An image whose layers have one file each of a size. Units: bytes.
    pub fn new(name: &str, layers: &[usize]) -> Self {
        let layers: Vec<Vec<u8>> = layers
            .iter()
            .enumerate()
            .map(|(at, size)| {
                let seed = name.bytes().fold(at as u64 + 1, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
                tar(&format!("layer-{at}"), &noise(seed, *size))
            })
            .collect();
        let diff_ids: Vec<String> = layers.iter().map(|layer| sha256(layer)).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Cmd": ["/none"], "Labels": { "name": name } },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
        .to_string()
        .into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": layers.iter().map(|layer| descriptor(LAYER, layer)).collect::<Vec<_>>(),
        })
        .to_string()
        .into_bytes();
        Self { manifest, blobs: [vec![config], layers].concat() }
    }

    /// Three layers of some hundred kilobytes: what most tests pull.
    pub fn small(name: &str) -> Self {
        Self::new(name, &[300_000, 200_000, 100_000])
    }

    /// Digest of the manifest.
    pub fn digest(&self) -> String {
        sha256(&self.manifest)
    }

    /// Digest of a layer, counted from 0.
    pub fn layer_digest(&self, layer: usize) -> String {
        sha256(&self.blobs[layer + 1])
    }

    /// Media type of the manifest.
    pub fn media_type(&self) -> &'static str {
        MANIFEST
    }

    /// Writes an OCI image layout that holds this image under a tag.
    pub fn write_layout(&self, folder: &Path, tag: &str) {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        for blob in self.blobs.iter().chain([&self.manifest]) {
            fs::write(blobs.join(sha256(blob).trim_start_matches("sha256:")), blob).unwrap();
        }
        let mut entry = descriptor(MANIFEST, &self.manifest);
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        fs::write(folder.join("index.json"), json!({ "schemaVersion": 2, "manifests": [entry] }).to_string()).unwrap();
        fs::write(folder.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string()).unwrap();
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": sha256(bytes), "size": bytes.len() })
}

/// A tar archive of one file. Source: POSIX.1-1988, ustar.
pub fn tar(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", bytes.len()));
    put(136, "00000000000");
    // The checksum is computed as if its own field were spaces.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let checksum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{checksum:06o}\0").as_bytes());
    let mut archive = [&header[..], bytes].concat();
    // Two empty blocks end an archive, and every file fills whole blocks.
    archive.resize(512 + bytes.len().next_multiple_of(512) + 1024, 0);
    archive
}
