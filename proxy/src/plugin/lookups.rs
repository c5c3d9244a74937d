//! What a plugin may ask of the program while it decides: the cache, the repository of the image, its registries.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::oci::manifest::Descriptor;
use crate::oci::{Digest, Place, RateLimit, Reference, Registry};

/// An answer that takes a while.
pub type Looking<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What there is to look up for one pull.
pub trait Lookups: Send + Sync {
    /// What the cache holds of what is asked for.
    fn cached(&self) -> Looking<'_, Cached>;

    /// A manifest of the repository.
    fn manifest(&self, reference: Reference) -> Looking<'_, Result<Bytes, Missing>>;

    /// What refers to a digest.
    fn referrers(&self, digest: Digest) -> Looking<'_, Result<Vec<Descriptor>, Missing>>;

    /// A blob of the repository, of at most so many bytes.
    fn blob(&self, digest: Digest, max: usize) -> Looking<'_, Result<Bytes, Missing>>;

    /// Indexes of the repository that list a manifest.
    fn parents(&self, digest: Digest) -> Looking<'_, Vec<Digest>>;

    /// What a registry said last of the pulls that it allows, and how long ago.
    fn rate_limit(&self, registry: &Registry) -> Option<(RateLimit, Duration)>;

    /// Whether a registry keeps failing.
    fn is_ailing(&self, registry: &Registry) -> bool;

    /// Places that lately gave what is asked for by its digest, or what lists it.
    fn gave(&self, how: Gave) -> Vec<Place>;

    /// The time on the wall.
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// What a place gave of a digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Gave {
    /// The manifest of that digest, by a tag.
    Tagged,
    /// A manifest that lists it.
    Listed,
}

impl Gave {
    /// The fact's name for plugins.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "tagged-at" => Some(Self::Tagged),
            "listed-at" => Some(Self::Listed),
            _ => None,
        }
    }
}

/// Why there is nothing to be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Missing {
    /// Every registry that could be asked says so.
    NotFound,
    /// It may not be had.
    Denied,
    /// It is larger than a look-up may be.
    TooLarge,
    /// Nobody can tell, and why.
    Unavailable(String),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("there is none"),
            Self::Denied => f.write_str("it may not be had"),
            Self::TooLarge => f.write_str("it is larger than a look-up may be"),
            Self::Unavailable(reason) => f.write_str(reason),
        }
    }
}

/// What the cache holds of what is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Cached {
    /// Nothing.
    #[default]
    Absent,
    /// A copy that may be served as it is.
    Fresh {
        /// Its digest.
        digest: Digest,
        /// Since its registry was asked, where that matters.
        age: Option<Duration>,
    },
    /// A tag past its time to live.
    Stale {
        /// The digest that it stood for.
        digest: Digest,
        /// Since its registry was asked.
        age: Duration,
    },
}
