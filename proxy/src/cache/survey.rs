//! What lies in the folders, read as it is there: beside a running proxy, or without one. Changes nothing.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::rows;
use super::store::{INDEX, Link, Store, TagEntry, read_json};
use crate::oci::manifest::parse_references;
use crate::oci::{Digest, Place, Registry, Repository, Tag};

/// Repositories that a message names at most.
const NAMED_MAX: usize = 8;

/// Goes on, or is told to stop.
pub type Flow = ControlFlow<()>;

/// The folder of a cache, to be looked at.
pub struct Survey(Store);

/// A manifest that is kept under a name.
#[derive(Clone, Debug)]
pub struct Image {
    /// Registry and repository.
    pub place: Place,
    /// None: it is kept by its digest alone.
    pub tag: Option<Tag>,
    /// Its digest.
    pub digest: Digest,
    /// It and all that it refers to, as far as that is kept. Units: bytes.
    pub size: u64,
    /// How many blobs that is, of how many; none where the manifest itself is not kept.
    pub blobs: Option<(u64, u64)>,
    /// How long ago its registry was asked what the tag stands for.
    pub age: Option<Duration>,
}

/// Totals of a folder.
#[derive(Clone, Copy, Default, Debug)]
pub struct Count {
    /// Files of blobs.
    pub blobs: u64,
    /// Units: bytes.
    pub bytes: u64,
    /// Repositories.
    pub repositories: u64,
    /// Digests that repositories were seen to hold.
    pub links: u64,
    /// Tags.
    pub tags: u64,
}

/// A blob that is not what its name says.
#[derive(Clone, Debug)]
pub struct Wrong {
    /// What it is called.
    pub digest: Digest,
    /// Its file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub reason: String,
    /// Who was seen to hold the digest.
    pub places: Vec<Place>,
}

impl Survey {
    /// Of a folder, which may not be there.
    pub fn open(dir: &Path) -> Self {
        Self(Store::open_to_read(dir))
    }

    /// Every image whose full name begins with one of `prefixes`, repository by repository.
    pub fn images(&self, prefixes: &[String], mut each: impl FnMut(Image)) -> io::Result<()> {
        let store = &self.0;
        let _ = store.each_place(&mut |place| {
            let name = place.to_string();
            if !prefixes.iter().any(|prefix| name.starts_with(prefix) || prefix.starts_with(&name)) {
                return Flow::Continue(());
            }
            let mut images = Vec::new();
            let mut reached = std::collections::HashSet::new();
            let mut seen = std::collections::HashSet::new();
            store.each_tag(place, &mut |tag, entry, _| {
                if seen.insert((tag.clone(), entry.digest)) {
                    store.reach(place, entry.digest, &mut reached);
                    images.push((Some(tag), entry.digest, entry.age()));
                }
                Flow::Continue(())
            })?;
            store.each_link(place, &mut |digest, file| {
                let manifest = read_json::<Link>(file).ok().flatten().is_some_and(|link| is_manifest(&link));
                if manifest && !reached.contains(&digest) {
                    images.push((None, digest, None));
                }
                Flow::Continue(())
            })?;
            images.sort_by(|one, other| (one.0.is_none(), &one.0, one.1).cmp(&(other.0.is_none(), &other.0, other.1)));
            for (tag, digest, age) in images {
                let named = tag.as_ref().map_or_else(|| format!("{name}@{digest}"), |tag| format!("{name}:{tag}"));
                if prefixes.iter().any(|prefix| named.starts_with(prefix)) {
                    let (size, blobs) = store.measure(place, digest);
                    each(Image { place: place.clone(), tag, digest, size, blobs, age });
                }
            }
            Flow::Continue(())
        })?;
        Ok(())
    }

    /// Counts everything; `each` is told of each file.
    pub fn count(&self, mut each: impl FnMut()) -> io::Result<Count> {
        let mut count = Count::default();
        let _ = self.0.each_blob(&mut |_, file| {
            each();
            if let Some(about) = fs::symlink_metadata(file).ok().filter(fs::Metadata::is_file) {
                count.blobs += 1;
                count.bytes += about.len();
            }
            Flow::Continue(())
        })?;
        let mut add = |links: u64, tags: u64| (count.links, count.tags) = (count.links + links, count.tags + tags);
        let (mut repositories, store) = (0, &self.0);
        let _ = store.each_place(&mut |place| {
            repositories += 1;
            store.each_link(place, &mut |_, _| {
                each();
                add(1, 0);
                Flow::Continue(())
            })?;
            let mut last = None;
            store.each_tag(place, &mut |tag, _, _| {
                each();
                if last.as_ref() != Some(&tag) {
                    add(0, 1);
                    last = Some(tag);
                }
                Flow::Continue(())
            })
        })?;
        count.repositories = repositories;
        Ok(count)
    }

    /// When the blobs were used that were used first and last, where no process has the index. Units: seconds since the
    /// epoch.
    pub fn span(&self) -> Option<(u64, u64)> {
        rows::peek(&self.0.dir.join(INDEX))?.1
    }

    /// The limits of a configuration on this folder: the most it may take, what must stay free, what is free.
    /// Units: bytes.
    pub fn limits(&self, config: &crate::config::Cache) -> io::Result<(Option<u64>, u64, u64)> {
        self.0.room.set_limits(config);
        self.0.limits()
    }

    /// Hashes every blob; `each` is told of each piece. Gives what is wrong.
    pub fn verify(&self, mut each: impl FnMut(usize), mut wrong: impl FnMut(Wrong)) -> io::Result<()> {
        let _ = self.0.each_blob(&mut |digest, file| {
            let reason = match digest {
                Some(digest) => self.0.judge(&digest, file, &mut each).map(|reason| (digest, reason)),
                None => None,
            };
            if let Some((digest, reason)) = reason {
                wrong(Wrong { digest, file: file.to_owned(), reason, places: self.0.places_of(&digest, usize::MAX) });
            }
            Flow::Continue(())
        })?;
        Ok(())
    }
}

impl Store {
    /// What is wrong with the file of a blob, without changing anything.
    fn judge(&self, digest: &Digest, file: &Path, each: &mut dyn FnMut(usize)) -> Option<String> {
        match fs::symlink_metadata(file) {
            Ok(about) if !about.is_file() => return Some("it is no regular file".to_owned()),
            // It was dropped meanwhile.
            Err(err) if err.kind() == io::ErrorKind::NotFound => return None,
            _ => {}
        }
        let hashed = self.hash(digest, |piece| {
            each(piece);
            true
        });
        match hashed {
            Ok(Some((found, _))) if found != *digest => Some(format!("its content is {found}")),
            Ok(_) => None,
            Err(err) => Some(format!("it cannot be read: {err}")),
        }
    }

    /// Every entry under `blobs/`; its digest, where its name is one.
    pub(super) fn each_blob(&self, each: &mut dyn FnMut(Option<Digest>, &Path) -> Flow) -> io::Result<Flow> {
        for algorithm in ["sha256", "sha512"] {
            let folder = self.dir.join("blobs").join(algorithm);
            for entry in list(&folder)? {
                let digest = format!("{algorithm}:{}", entry.file_name().to_string_lossy()).parse().ok();
                if each(digest, &entry.path()).is_break() {
                    return Ok(Flow::Break(()));
                }
            }
        }
        Ok(Flow::Continue(()))
    }

    /// Every repository that has links or tags.
    pub(super) fn each_place(&self, each: &mut dyn FnMut(&Place) -> Flow) -> io::Result<Flow> {
        for entry in list(&self.dir.join("links"))? {
            let name = entry.file_name();
            let Some(registry) = name.to_str().and_then(Registry::parse) else { continue };
            if repositories(&entry.path(), &registry, "", each)?.is_break() {
                return Ok(Flow::Break(()));
            }
        }
        Ok(Flow::Continue(()))
    }

    /// Every digest that a repository was seen to hold, and the file that says so.
    pub(super) fn each_link(&self, place: &Place, each: &mut dyn FnMut(Digest, &Path) -> Flow) -> Flow {
        for algorithm in ["sha256", "sha512"] {
            let folder = self.place_path(place).join("_digests").join(algorithm);
            for entry in list(&folder).into_iter().flatten() {
                if let Ok(digest) = format!("{algorithm}:{}", entry.file_name().to_string_lossy()).parse() {
                    each(digest, &entry.path())?;
                }
            }
        }
        Flow::Continue(())
    }

    /// Every tag of a repository, once for each set of media types, and the file that says so.
    pub(super) fn each_tag(&self, place: &Place, each: &mut dyn FnMut(Tag, TagEntry, &Path) -> Flow) -> Flow {
        for entry in list(&self.place_path(place).join("_tags")).into_iter().flatten() {
            let Some(tag) = entry.file_name().to_str().and_then(Tag::parse) else { continue };
            for file in list(&entry.path()).into_iter().flatten() {
                if let Ok(Some(entry)) = read_json::<TagEntry>(&file.path()) {
                    each(tag.clone(), entry, &file.path())?;
                }
            }
        }
        Flow::Continue(())
    }

    /// Who was seen to hold a digest.
    pub(super) fn places_of(&self, digest: &Digest, most: usize) -> Vec<Place> {
        let mut places = Vec::new();
        let _ = self.each_place(&mut |place| {
            if self.link_path(place, digest).exists() {
                places.push(place.clone());
            }
            if places.len() < most { Flow::Continue(()) } else { Flow::Break(()) }
        });
        places
    }

    /// The same for a message.
    pub(super) fn holders(&self, digest: &Digest) -> String {
        let mut names: Vec<_> = self.places_of(digest, NAMED_MAX + 1).iter().map(Place::to_string).collect();
        if names.len() > NAMED_MAX {
            names.truncate(NAMED_MAX);
            names.push("and more".to_owned());
        }
        names.join(", ")
    }

    /// Adds a digest, and all that it refers to as far as the manifests are kept.
    pub(super) fn reach(&self, place: &Place, digest: Digest, reached: &mut std::collections::HashSet<Digest>) {
        if !reached.insert(digest) {
            return;
        }
        let manifest = self.link(place, &digest).ok().flatten().is_some_and(|link| is_manifest(&link));
        if let Some(bytes) = manifest.then(|| self.read_blob(&digest)).flatten() {
            for digest in parse_references(&bytes) {
                self.reach(place, digest, reached);
            }
        }
    }

    /// The size of an image as far as it is kept, and how many of its blobs are. Of an index only the manifests that
    /// are kept count: nobody pulls all platforms.
    fn measure(&self, place: &Place, digest: Digest) -> (u64, Option<(u64, u64)>) {
        let size = |digest: &Digest| self.open_blob(digest).ok().flatten().map(|(_, size)| size);
        let Some(own) = size(&digest) else { return (0, None) };
        let mut reached = std::collections::HashSet::new();
        self.reach(place, digest, &mut reached);
        reached.remove(&digest);
        let (mut bytes, mut kept, mut all) = (own, 1, 1);
        let is_index = self.link(place, &digest).ok().flatten().is_some_and(|link| is_index(&link));
        let direct = self.read_blob(&digest).map(|bytes| parse_references(&bytes)).unwrap_or_default();
        for digest in reached {
            match size(&digest) {
                Some(size) => (bytes, kept, all) = (bytes + size, kept + 1, all + 1),
                None if is_index && direct.contains(&digest) => {}
                None => all += 1,
            }
        }
        (bytes, Some((kept, all)))
    }

    fn read_blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        use std::io::Read as _;
        let (file, size) = self.open_blob(digest).ok()??;
        if size > crate::oci::manifest::MANIFEST_MAX as u64 {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(size).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }
}

fn is_index(link: &Link) -> bool {
    link.media_type.contains("index") || link.media_type.contains("manifest.list")
}

fn is_manifest(link: &Link) -> bool {
    is_index(link) || link.media_type.contains("manifest")
}

/// What is in a folder; nothing where there is none. Entries come as they are read: a folder may have a million.
fn list(folder: &Path) -> io::Result<impl Iterator<Item = fs::DirEntry> + use<>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => Some(entries),
        Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
        Err(err) => return Err(err),
    };
    Ok(entries.into_iter().flatten().map_while(Result::ok))
}

fn repositories(
    folder: &Path,
    registry: &Registry,
    above: &str,
    each: &mut dyn FnMut(&Place) -> Flow,
) -> io::Result<Flow> {
    if let Some(repository) = Repository::parse(above)
        && ["_digests", "_tags"].iter().any(|name| folder.join(name).is_dir())
        && each(&Place { registry: registry.clone(), repository }).is_break()
    {
        return Ok(Flow::Break(()));
    }
    for entry in list(folder)? {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('_') || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = if above.is_empty() { name } else { format!("{above}/{name}") };
        if repositories(&entry.path(), registry, &name, each)?.is_break() {
            return Ok(Flow::Break(()));
        }
    }
    Ok(Flow::Continue(()))
}
