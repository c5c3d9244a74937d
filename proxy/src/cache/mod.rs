//! The cache: what is kept, under which repository it may be served, and the fills that bring more.
//!
//! A fault of the disk is logged here, counted, and looks like a miss: it never fails a pull (I7).

mod chunk;
mod fill;
mod fingerprint;
mod follow;
mod hot;
mod index;
mod remove;
mod room;
mod rows;
mod staged;
mod store;
mod survey;
mod upkeep;
mod verify;
mod writeback;
mod writer;

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};

pub use fill::{FillEnd, FillError, Head, Leader, Role};
pub use follow::{Follower, Lost, Reading};
pub use hot::{Content, Held, Ticket};
pub use remove::{Removed, Target};
pub use store::{Link, OpenError, TagEntry};
pub use survey::{Count, Image, Survey, Wrong};
pub use writer::Writer;

use crate::body::{Body, Outlet, Piece, Pieces};
use crate::config;
use crate::metrics::Metrics;
use crate::oci::manifest::{self, Negotiated};
use crate::oci::{Digest, Place, Tag};
use chunk::{Chunker, read_file};
use fill::Fills;
use fingerprint::Fingerprint;
use store::{Found, Store};
use upkeep::Upkeep;
use verify::Verifications;

/// Times that a blob is looked for again after its file was hashed.
const FINDS: usize = 3;
/// Indexes of one repository that are looked at for what they list.
const INDEXES_MAX: usize = 1000;
/// Largest blob whose bytes are kept as long as its file is kept open. Units: bytes.
const SMALL: u64 = 128 << 10;
/// How often it is said that there is no space.
const NO_SPACE_TELL: Duration = Duration::from_secs(10);
/// How long closing waits for the disk.
const CLOSE: Duration = Duration::from_secs(10);

/// The cache of one process.
pub struct Cache {
    store: Arc<Store>,
    fills: Fills,
    metrics: Arc<Metrics>,
    verifications: Verifications,
    /// None: the folder is only read, or the cache is closed.
    upkeep: Mutex<Option<Upkeep>>,
    scrub: Arc<ArcSwap<Option<Duration>>>,
    /// When it was last said that there is no space.
    no_space_told: Mutex<Option<Instant>>,
}

/// How full the cache is: the answer of `/cache`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct State {
    /// How many blobs are kept.
    pub blobs: u64,
    /// Units: bytes.
    pub bytes: u64,
    /// The most that may be; none: no limit. Units: bytes.
    pub max_size_bytes: Option<u64>,
    /// What stays free on the disk. Units: bytes.
    pub min_free_bytes: u64,
    /// What is free on the disk. Units: bytes.
    pub free_bytes: u64,
    /// When the blob was used that was not used for the longest time. Units: seconds since the epoch.
    pub oldest_use_secs: Option<u64>,
    /// When a blob was used last. Units: seconds since the epoch.
    pub newest_use_secs: Option<u64>,
    /// Not all blobs are counted yet: the folders are being read.
    pub incomplete: bool,
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
    /// Holds as long as the cache would give the same; none where it does not come from there.
    pub ticket: Option<Ticket>,
}

/// A tag that is cached, and the manifest that it stood for.
#[derive(Clone, Debug)]
pub struct Tagged {
    /// The manifest.
    pub manifest: Manifest,
    /// How long ago the registry was asked; none where nobody knows.
    pub age: Option<Duration>,
}

/// A blob that is cached, open. As long as its file is, it is not dropped to make room.
#[derive(Clone, Debug)]
pub struct Blob {
    /// The file, whole.
    file: Arc<File>,
    /// Units: bytes.
    pub size: u64,
    /// As its registry gave it.
    pub media_type: String,
    verified: Fingerprint,
    /// Of a small one: its bytes, once they were read.
    small: Option<Arc<OnceLock<Bytes>>>,
    /// Holds as long as the cache would give the same.
    pub ticket: Option<Ticket>,
}

impl Blob {
    /// Whether its file is the one that was verified, under its name.
    pub fn is_unchanged(&self) -> bool {
        Fingerprint::of(&self.file).is_ok_and(|now| now == self.verified)
    }

    /// All of it, where that was read: right, whatever has become of its file.
    pub fn bytes(&self) -> Option<&Bytes> {
        self.small.as_ref()?.get()
    }

    /// All of it, by way of `outlet` where there is one.
    pub fn body(&self, outlet: Option<Arc<Outlet>>) -> Body {
        match self.bytes() {
            Some(bytes) => Body::bytes(bytes.clone()),
            None => Body::stream(self.read(0, self.size, outlet), Some(self.size)),
        }
    }

    /// Reads from `start` to before `end`, by way of `outlet` where there is one. Where the file was written meanwhile,
    /// it ends short of the last bytes.
    pub fn read(&self, start: u64, end: u64, outlet: Option<Arc<Outlet>>) -> Pieces {
        if let Some(bytes) = self.bytes() {
            let [start, end] = [start, end].map(|at| usize::try_from(at).map_or(bytes.len(), |at| at.min(bytes.len())));
            let part = (start < end).then(|| Ok(bytes.slice(start..end).into()));
            return Box::pin(futures_util::stream::iter(part));
        }
        let pieces = read_file(Chunker::new(self.file.clone(), outlet), self.verified, start, end);
        let Some(small) = self.small.clone().filter(|_| start == 0 && end == self.size) else { return pieces };
        Box::pin(pieces.inspect_ok(move |piece| {
            if let Piece::Bytes(bytes) = piece
                && bytes.len() as u64 == end
            {
                small.get_or_init(|| Bytes::copy_from_slice(bytes));
            }
        }))
    }
}

impl Cache {
    /// Opens the cache of a folder.
    pub fn open(config: &config::Cache, metrics: Arc<Metrics>) -> Result<Self, OpenError> {
        let store = Arc::new(Store::open(config, metrics.clone())?);
        let scrub = Arc::new(ArcSwap::from_pointee(config.scrub));
        let upkeep = Upkeep::start(store.clone(), scrub.clone())
            .map_err(|source| OpenError::Io { dir: config.dir.clone(), source })?;
        let (fills, verifications) = (Fills::default(), Verifications::default());
        Ok(Self {
            store,
            fills,
            metrics,
            verifications,
            upkeep: Mutex::new(Some(upkeep)),
            scrub,
            no_space_told: Mutex::default(),
        })
    }

    /// The cache of a folder that may be another process's: nothing in it is changed.
    pub fn open_to_read(dir: &Path, metrics: Arc<Metrics>) -> Self {
        let store = Arc::new(Store::open_to_read(dir));
        let (fills, verifications, scrub) = (Fills::default(), Verifications::default(), Arc::default());
        Self { store, fills, metrics, verifications, upkeep: Mutex::default(), scrub, no_space_told: Mutex::default() }
    }

    /// Puts other limits into effect. The folder stays the one that it was opened with.
    pub fn set_limits(&self, config: &config::Cache) {
        self.store.room.set_limits(config);
        self.store.hot.set_recheck(config.recheck);
        self.scrub.store(Arc::new(config.scrub));
    }

    /// Ends what is done in the background, and writes the index to the disk.
    pub async fn close(&self) {
        self.verifications.stop().await;
        let upkeep = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(upkeep) = upkeep {
            let stopped = tokio::task::spawn_blocking(move || upkeep.stop());
            if tokio::time::timeout(CLOSE, stopped).await.is_err() {
                tracing::warn!("the disk of the cache does not answer: its index is not closed");
            }
        }
    }

    /// The blob of a digest, where `place` was seen to hold it. A file that changed since it was verified is hashed
    /// first; a wrong one is removed.
    pub async fn blob(&self, place: &Place, digest: Digest) -> Option<Blob> {
        let key = (place.clone(), digest);
        if let Some(blob) = self.store.hot.blob(&key) {
            return Some(blob);
        }
        if self.store.hot.is_absent(&digest) {
            return None;
        }
        for _ in 0..FINDS {
            let (place, since) = (place.clone(), self.store.hot.moment());
            match self.read(move |store| find_or_keep_absent(store, &place, digest)).await? {
                Found::Right(file, verified, link) => {
                    let (size, media_type) = (link.size, link.media_type);
                    let small = (size <= SMALL).then(Arc::default);
                    let blob = Blob { file: Arc::new(file), size, media_type, verified, small, ticket: None };
                    return Some(self.store.hot.keep_blob(since, key, blob));
                }
                Found::Unverified => {
                    if !self.verifications.wait(&self.store, digest).await {
                        return None;
                    }
                }
            }
        }
        None
    }

    /// The size of a blob that is kept, whoever was seen to hold it: no answer to a client by itself (I10).
    pub async fn size_of(&self, digest: Digest) -> Option<u64> {
        if self.store.hot.is_absent(&digest) {
            return None;
        }
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
        let key = (place.clone(), digest);
        if let Some(manifest) = self.store.hot.manifest(&key) {
            return Some(manifest);
        }
        self.read(move |store| {
            let since = store.hot.moment();
            let manifest = read_manifest(store, &key.0, digest)?;
            Ok(manifest.map(|manifest| store.hot.keep_manifest(since, key, manifest)))
        })
        .await
    }

    /// What a tag stood for when its registry was last asked, however long ago.
    pub async fn tag(&self, place: &Place, tag: &Tag, negotiated: Negotiated) -> Option<Tagged> {
        let tagged = |(entry, manifest): (TagEntry, Manifest)| Tagged { manifest, age: entry.age() };
        let key = (tag.clone(), negotiated);
        if let Some(known) = self.store.hot.tag(place, &key) {
            return Some(tagged(known));
        }
        let place = place.clone();
        self.read(move |store| {
            let since = store.hot.moment();
            let Some(entry) = store.tag(&place, &key.0, negotiated)? else {
                return Ok(None);
            };
            let manifest = read_manifest(store, &place, entry.digest)?;
            Ok(manifest.map(|manifest| tagged(store.hot.keep_tag(since, (&place, key), (entry, manifest)))))
        })
        .await
    }

    /// The indexes that `place` was seen to hold and that are kept, each with what it lists.
    pub async fn indexes(&self, place: &Place) -> Vec<(Digest, Vec<Digest>)> {
        let place = place.clone();
        self.read(move |store| {
            let mut found = Vec::new();
            let _ = store.each_link(&place, &mut |digest, path| {
                let link = store::read_json::<Link>(path).ok().flatten();
                if link.is_some_and(|link| manifest::is_index(&link.media_type))
                    && let Ok(Some(kept)) = read_manifest(store, &place, digest)
                {
                    found.push((digest, manifest::parse_references(&kept.bytes)));
                }
                if found.len() < INDEXES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            Ok(Some(found))
        })
        .await
        .unwrap_or_default()
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

    /// Has the registry of a tag asked before any copy of it is served again: something is about to become of it.
    pub async fn expire_tag(&self, place: &Place, tag: &Tag) {
        let (place, tag) = (place.clone(), tag.clone());
        self.write(move |store| store.expire_tag(&place, &tag)).await;
    }

    /// Forgets what a tag stood for.
    pub async fn forget_tag(&self, place: &Place, tag: &Tag) {
        let (place, tag) = (place.clone(), tag.clone());
        self.write(move |store| store.forget_tag(&place, &tag)).await;
    }

    /// Forgets that a repository holds a digest, and the tags that stand for it.
    pub async fn forget_digest(&self, place: &Place, digest: Digest) {
        let place = place.clone();
        self.write(move |store| store.forget_digest(&place, &digest)).await;
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

    /// How full the cache is.
    pub async fn state(&self) -> io::Result<State> {
        let store = self.store.clone();
        blocking(move || {
            let (max_size_bytes, min_free_bytes, free_bytes) = store.limits()?;
            if let Some(index) = &store.index {
                index.write(false);
            }
            let (totals, span, incomplete) = store
                .index
                .as_ref()
                .map_or_else(Default::default, |index| (index.totals(), index.span(), index.is_incomplete()));
            Ok(State {
                blobs: totals.blobs,
                bytes: totals.bytes,
                max_size_bytes,
                min_free_bytes,
                free_bytes,
                oldest_use_secs: span.map(|span| span.0),
                newest_use_secs: span.map(|span| span.1),
                incomplete,
            })
        })
        .await
    }

    /// Removes something. Whoever reads it reads on; the next pull asks its registry.
    pub async fn remove(&self, target: Target) -> io::Result<Removed> {
        let store = self.store.clone();
        blocking(move || store.remove(&target)).await
    }

    /// Removes links without blobs and blobs without links, and applies the limits.
    pub async fn collect(&self) -> io::Result<Removed> {
        let store = self.store.clone();
        blocking(move || store.collect()).await
    }

    /// Reports a fault of the disk that a pull went around; that a limit was kept is none.
    pub fn report(&self, err: &io::Error) {
        if room::is_wanted(err) {
            tracing::debug!(reason = err.to_string(), "not kept");
            return;
        }
        self.metrics.cache_faults.inc();
        if room::is_no_space(err) {
            let mut told = self.no_space_told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.is_none_or(|told| told.elapsed() >= NO_SPACE_TELL) {
                *told = Some(Instant::now());
                tracing::warn!(
                    reason = err.to_string(),
                    "the cache keeps nothing new for want of space: pulls go past it"
                );
            }
            return;
        }
        tracing::warn!(error = err.to_string(), "the cache failed; the pull goes on without it");
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

/// Finds a blob for a place. Where nobody would find it, that is kept: whoever is to bring it asks more than once.
fn find_or_keep_absent(store: &Store, place: &Place, digest: Digest) -> io::Result<Option<Found>> {
    let since = store.hot.moment();
    let found = store.find(place, &digest)?;
    if found.is_none() && store.open_blob(&digest)?.is_none() {
        store.hot.keep_absent(since, digest);
    }
    Ok(found)
}

fn read_manifest(store: &Store, place: &Place, digest: Digest) -> io::Result<Option<Manifest>> {
    let Some(link) = store.link(place, &digest)? else {
        return Ok(None);
    };
    let bytes = store.read_manifest(&digest)?;
    Ok(bytes.map(|bytes| Manifest { digest, media_type: link.media_type, bytes: bytes.into(), ticket: None }))
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
