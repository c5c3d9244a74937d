//! Bytes of any size that cost no memory: what a server sends, and what a client compares with.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use sha2::{Digest, Sha256};

/// The period of made contents: a prime, so that no power of two hides a shift.
const PERIOD: usize = 1_048_573;

static BLOCK: LazyLock<Arc<[u8]>> = LazyLock::new(|| noise(0x7469_6465, PERIOD).into());

/// A body, whole in memory or made by rule.
#[derive(Clone, Debug)]
pub enum Content {
    /// These bytes.
    Bytes(Arc<[u8]>),
    /// So many bytes of incompressible noise with a period of about 1 MiB, each seed from another place in it.
    Noise {
        /// Where in the period it begins.
        seed: u64,
        /// Units: bytes.
        len: u64,
    },
}

impl Content {
    /// Incompressible content of a size. Units: bytes.
    pub fn noise(seed: u64, len: u64) -> Self {
        Self::Noise { seed, len }
    }

    /// Units: bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Noise { len, .. } => *len,
        }
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The longest piece in memory that begins at an offset; empty at the end.
    pub fn piece(&self, offset: u64) -> &[u8] {
        match self {
            Self::Bytes(bytes) => &bytes[usize::try_from(offset).expect("fits").min(bytes.len())..],
            Self::Noise { seed, len } => {
                let start = usize::try_from((seed.wrapping_mul(7919) + offset) % PERIOD as u64).expect("fits");
                let left = usize::try_from(len.saturating_sub(offset)).expect("fits");
                &BLOCK[start..PERIOD.min(start.saturating_add(left))]
            }
        }
    }

    /// Writes the bytes of a range.
    pub fn write(&self, to: &mut impl io::Write, mut offset: u64, end: u64) -> io::Result<()> {
        while offset < end {
            let piece = self.piece(offset);
            let take = piece.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
            to.write_all(&piece[..take])?;
            offset += take as u64;
        }
        Ok(())
    }

    /// Whether these bytes stand at an offset.
    pub fn holds(&self, mut offset: u64, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let piece = self.piece(offset);
            let take = piece.len().min(bytes.len());
            if take == 0 || piece[..take] != bytes[..take] {
                return false;
            }
            bytes = &bytes[take..];
            offset += take as u64;
        }
        true
    }

    /// `sha256:` and the hash.
    pub fn digest(&self) -> String {
        static KNOWN: LazyLock<Mutex<HashMap<(u64, u64), String>>> = LazyLock::new(Mutex::default);
        let hash = || {
            let mut sha = Sha256::new();
            let mut offset = 0;
            while offset < self.len() {
                let piece = self.piece(offset);
                sha.update(piece);
                offset += piece.len() as u64;
            }
            hex(&sha.finalize())
        };
        match self {
            Self::Bytes(_) => hash(),
            Self::Noise { seed, len } => {
                if let Some(digest) = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(&(*seed, *len)) {
                    return digest.clone();
                }
                let digest = hash();
                KNOWN.lock().unwrap_or_else(PoisonError::into_inner).insert((*seed, *len), digest.clone());
                digest
            }
        }
    }

    /// The same length, with one byte in the middle changed.
    #[must_use]
    pub fn corrupted(&self) -> Self {
        let mut bytes = Vec::new();
        self.write(&mut bytes, 0, self.len()).expect("memory takes every write");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        Self::Bytes(bytes.into())
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

/// `sha256:` and the hash of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes that do not compress, always the same for one seed (xorshift64*).
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn hex(hash: &[u8]) -> String {
    hash.iter().fold(String::from("sha256:"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
