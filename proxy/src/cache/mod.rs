//! The cache: what is kept, under which repository it may be served, and the fills that bring more.
//!
//! A fault of the disk is logged here, counted, and looks like a miss: it never fails a pull (I7).

mod chunk;
mod fill;
mod follow;
mod store;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use fill::{FillEnd, FillError, Head, Leader, Role, Writer};
pub use follow::{Follower, Lost, Reading};
pub use store::{Link, OpenError, TagEntry};

use crate::body::Chunks;
use crate::metrics::Metrics;
use crate::oci::manifest::Negotiated;
use crate::oci::{Digest, Place, Tag};
use chunk::read_file;
use fill::Fills;
use store::Store;

/// The cache of one process.
pub struct Cache {
    store: Arc<Store>,
    fills: Fills,
    metrics: Arc<Metrics>,
}

/// A manifest that is cached, verified.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its digest.
    pub digest: Digest,
    /// As its registry gave it.
    pub media_type: String,
    /// Its exact bytes.
    pub bytes: Bytes,
}

/// A tag that is cached, and the manifest that it stood for.
#[derive(Clone, Debug)]
pub struct Tagged {
    /// The manifest.
    pub manifest: Manifest,
    /// How long ago the registry was asked.
    pub age: Duration,
}

/// A blob that is cached, open.
#[derive(Debug)]
pub struct Blob {
    /// The file, whole.
    file: Arc<File>,
    /// Units: bytes.
    pub size: u64,
    /// As its registry gave it.
    pub media_type: String,
}

impl Blob {
    /// Reads from `start` to before `end`.
    pub fn read(&self, start: u64, end: u64) -> Chunks {
        read_file(self.file.clone(), start, end)
    }
}

impl Cache {
    /// Opens the cache of a folder.
    pub fn open(dir: &Path, metrics: Arc<Metrics>) -> Result<Self, OpenError> {
        Ok(Self { store: Arc::new(Store::open(dir)?), fills: Fills::default(), metrics })
    }

    /// The cache of a folder that may be another process's: nothing in it is changed.
    pub fn open_to_read(dir: &Path, metrics: Arc<Metrics>) -> Self {
        Self { store: Arc::new(Store::open_to_read(dir)), fills: Fills::default(), metrics }
    }

    /// The blob of a digest, where `place` was seen to hold it.
    pub async fn blob(&self, place: &Place, digest: Digest) -> Option<Blob> {
        let place = place.clone();
        self.read(move |store| {
            let Some(link) = store.link(&place, &digest)? else {
                return Ok(None);
            };
            match store.open_blob(&digest)? {
                Some((file, size)) if size == link.size => {
                    Ok(Some(Blob { file: file.into(), size, media_type: link.media_type }))
                }
                Some(_) => store.remove_blob(&digest).map(|()| None),
                None => Ok(None),
            }
        })
        .await
    }

    /// The size of a blob that is kept, whoever was seen to hold it: no answer to a client by itself (I10).
    pub async fn size_of(&self, digest: Digest) -> Option<u64> {
        self.read(move |store| Ok(store.open_blob(&digest)?.map(|(_, size)| size))).await
    }

    /// Whether a blob can be served from here, where `place` was seen to hold it: it is kept, or just being kept.
    pub async fn has_blob(&self, place: &Place, digest: Digest) -> bool {
        self.fills.has_brought(place, digest) || self.blob(place, digest).await.is_some()
    }

    /// Whether `place` was seen to hold a digest, kept here or not.
    pub async fn holds(&self, place: &Place, digest: Digest) -> bool {
        let place = place.clone();
        self.read(move |store| store.link(&place, &digest)).await.is_some()
    }

    /// The manifest of a digest, where `place` was seen to hold it.
    pub async fn manifest(&self, place: &Place, digest: Digest) -> Option<Manifest> {
        let place = place.clone();
        self.read(move |store| read_manifest(store, &place, digest)).await
    }

    /// What a tag stood for when its registry was last asked, however long ago.
    pub async fn tag(&self, place: &Place, tag: &Tag, negotiated: Negotiated) -> Option<Tagged> {
        let (place, tag) = (place.clone(), tag.clone());
        self.read(move |store| {
            let Some(entry) = store.tag(&place, &tag, negotiated)? else {
                return Ok(None);
            };
            let manifest = read_manifest(store, &place, entry.digest)?;
            Ok(manifest.map(|manifest| Tagged { manifest, age: entry.age() }))
        })
        .await
    }

    /// Keeps a manifest that was verified, and that `place` holds it.
    pub async fn put_manifest(&self, place: &Place, manifest: &Manifest) {
        let (place, manifest) = (place.clone(), manifest.clone());
        self.write(move |store| {
            store.put_manifest(&manifest.digest, &manifest.bytes)?;
            let link = Link { media_type: manifest.media_type, size: manifest.bytes.len() as u64 };
            store.put_link(&place, &manifest.digest, &link)
        })
        .await;
    }

    /// Keeps what a tag stands for now.
    pub async fn put_tag(&self, place: &Place, tag: &Tag, negotiated: Negotiated, digest: Digest) {
        let (place, tag) = (place.clone(), tag.clone());
        self.write(move |store| store.put_tag(&place, &tag, negotiated, &TagEntry::now(digest))).await;
    }

    /// Keeps that `place` holds a blob.
    pub async fn put_link(&self, place: &Place, digest: Digest, link: Link) {
        let place = place.clone();
        self.write(move |store| store.put_link(&place, &digest, &link)).await;
    }

    /// Joins the fill of a blob, or begins it.
    pub fn begin_fill(&self, digest: Digest) -> Role {
        self.fills.begin(&self.store, digest)
    }

    /// Reports a fault of the disk that a pull went around.
    pub fn report(&self, err: &io::Error) {
        self.metrics.cache_faults.inc();
        tracing::warn!(error = %err, "the cache failed; the pull goes on without it");
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> io::Result<Option<T>> + Send + 'static,
    ) -> Option<T> {
        let store = self.store.clone();
        blocking(move || work(&store)).await.unwrap_or_else(|err| {
            self.report(&err);
            None
        })
    }

    async fn write(&self, work: impl FnOnce(&Store) -> io::Result<()> + Send + 'static) {
        let store = self.store.clone();
        if let Err(err) = blocking(move || work(&store)).await {
            self.report(&err);
        }
    }
}

fn read_manifest(store: &Store, place: &Place, digest: Digest) -> io::Result<Option<Manifest>> {
    let Some(link) = store.link(place, &digest)? else {
        return Ok(None);
    };
    let bytes = store.read_manifest(&digest)?;
    Ok(bytes.map(|bytes| Manifest { digest, media_type: link.media_type, bytes: bytes.into() }))
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
