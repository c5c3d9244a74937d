//! Tells when one of a few files has changed and is whole again: written in place, replaced, or led elsewhere by a link.
//!
//! Their folders are watched, since a file that is replaced takes the watch on itself away.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// For how long the files must not change; those that change within it are one version.
const SETTLE: Duration = Duration::from_millis(100);
/// For how long a file must be gone before that is meant: many programs remove what they replace.
const GONE: Duration = Duration::from_secs(2);
/// A file that was written but never closed counts as whole when it has not changed for so long.
const NEVER_CLOSED: Duration = Duration::from_secs(30);
/// How often the files are looked at when nothing is heard: file systems that tell nothing are read so.
const POLL: Duration = Duration::from_secs(2);

/// Watches files.
pub struct Watch {
    files: Vec<PathBuf>,
    /// As they were when they were last reported.
    taken: Sight,
    heard: Arc<Heard>,
    watcher: Option<notify::RecommendedWatcher>,
    folders: HashSet<PathBuf>,
}

/// What the system told.
#[derive(Default)]
struct Heard {
    /// Files that were written and not closed yet, and when they were last written.
    writing: Mutex<HashMap<PathBuf, Instant>>,
    something: Notify,
}

/// The files as they are at one time; none: there is no such file.
type Sight = Vec<Option<Fingerprint>>;

/// A file, as it was before it was read.
#[derive(Clone, Debug)]
pub struct Read {
    pub(super) path: PathBuf,
    was: Option<Fingerprint>,
}

impl Read {
    /// To be made before the file is read: a change after that is seen.
    pub fn before(path: PathBuf) -> Self {
        let was = Fingerprint::of(&path);
        Self { path, was }
    }
}

/// Two contents of one path differ in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Watch {
    /// Watches files. Blocks for a moment.
    pub fn new(files: Vec<Read>) -> Self {
        let heard = Arc::new(Heard::default());
        let ear = heard.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| ear.hear(event));
        if let Err(err) = &watcher {
            tracing::warn!(
                error = err.to_string(),
                "the configuration cannot be watched; it is looked at every 2 s instead"
            );
        }
        let mut watch =
            Self { files: Vec::new(), taken: Vec::new(), heard, watcher: watcher.ok(), folders: HashSet::new() };
        watch.follow(files);
        watch
    }

    /// Watches these files, in place of those of before. Blocks for a moment.
    pub fn follow(&mut self, files: Vec<Read>) {
        let mut folders = HashSet::new();
        for Read { path: file, .. } in &files {
            folders.extend(file.parent().map(Path::to_owned));
            folders.extend(file.canonicalize().ok().and_then(|file| Some(file.parent()?.to_owned())));
        }
        if let Some(watcher) = &mut self.watcher {
            for gone in self.folders.difference(&folders) {
                let _ = watcher.unwatch(gone);
            }
            // A folder that cannot be watched is looked at every now and then.
            folders.retain(|folder| {
                self.folders.contains(folder) || watcher.watch(folder, RecursiveMode::NonRecursive).is_ok()
            });
        }
        self.folders = folders;
        // What was reported of a file is not reported again, also where it was refused.
        let known = |file: &PathBuf| self.files.iter().position(|known| known == file).map(|at| self.taken[at]);
        self.taken = files.iter().map(|file| known(&file.path).unwrap_or(file.was)).collect();
        self.files = files.into_iter().map(|file| file.path).collect();
    }

    /// Waits until the files are others than they were when this last returned, and whole.
    ///
    /// # Cancel safety
    /// Safe: no change is lost.
    pub async fn changed(&mut self) {
        let mut seen: Option<(Sight, Instant)> = None;
        loop {
            let files = self.files.clone();
            let Ok(sight) = tokio::task::spawn_blocking(move || look(&files)).await else { return };
            if sight == self.taken {
                seen = None;
            } else if let Some((_, since)) = seen.as_ref().filter(|(before, _)| *before == sight) {
                let needed = if sight.contains(&None) { GONE } else { SETTLE };
                if since.elapsed() >= needed && !self.heard.is_writing(&self.files) {
                    self.taken = sight;
                    return;
                }
            } else {
                seen = Some((sight, Instant::now()));
            }
            let wait = if seen.is_some() { SETTLE } else { POLL };
            let _ = tokio::time::timeout(wait, self.heard.something.notified()).await;
        }
    }
}

impl Heard {
    fn hear(&self, event: notify::Result<notify::Event>) {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            // Nothing is known of who writes.
            Err(_) => writing.clear(),
            Ok(event) if event.need_rescan() => writing.clear(),
            Ok(event) => match event.kind {
                EventKind::Modify(ModifyKind::Data(_)) => {
                    writing.retain(|_, since| since.elapsed() < NEVER_CLOSED);
                    writing.extend(event.paths.into_iter().map(|path| (path, Instant::now())));
                }
                EventKind::Access(AccessKind::Close(AccessMode::Write))
                | EventKind::Modify(ModifyKind::Name(_))
                | EventKind::Remove(_) => event.paths.iter().for_each(|path| {
                    writing.remove(path);
                }),
                EventKind::Access(_) => return,
                _ => {}
            },
        }
        drop(writing);
        self.something.notify_one();
    }

    fn is_writing(&self, files: &[PathBuf]) -> bool {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let is = |path: &Path| writing.get(path).is_some_and(|since| since.elapsed() < NEVER_CLOSED);
        !writing.is_empty() && files.iter().any(|file| is(file) || file.canonicalize().is_ok_and(|file| is(&file)))
    }
}

impl Fingerprint {
    fn of(file: &Path) -> Option<Self> {
        let about = std::fs::metadata(file).ok()?;
        Some(Self {
            device: about.dev(),
            inode: about.ino(),
            size: about.size(),
            modified: (about.mtime(), about.mtime_nsec()),
        })
    }
}

fn look(files: &[PathBuf]) -> Sight {
    files.iter().map(|file| Fingerprint::of(file)).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    async fn changes(watch: &mut Watch) -> bool {
        tokio::time::timeout(Duration::from_secs(20), watch.changed()).await.is_ok()
    }

    async fn stays(watch: &mut Watch, time: Duration) -> bool {
        tokio::time::timeout(time, watch.changed()).await.is_err()
    }

    #[tokio::test]
    async fn each_way_to_replace_a_file_is_seen_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("one")).expect("a folder");
        std::fs::create_dir(path("two")).expect("a folder");
        std::fs::write(path("one/file"), "1").expect("written");
        std::fs::write(path("two/file"), "22").expect("written");
        std::os::unix::fs::symlink("one", path("data")).expect("a link");
        std::os::unix::fs::symlink("data/file", path("file")).expect("a link");
        let mut watch = Watch::new(vec![Read::before(path("file"))]);
        // As Kubernetes does it.
        std::os::unix::fs::symlink("two", path("next")).expect("a link");
        std::fs::rename(path("next"), path("data")).expect("renamed");
        assert!(changes(&mut watch).await);
        watch.follow(vec![Read::before(path("file"))]);
        std::fs::write(path("two/file"), "333").expect("written");
        assert!(changes(&mut watch).await);
        std::fs::write(path("new"), "4444").expect("written");
        std::fs::rename(path("new"), path("file")).expect("renamed");
        assert!(changes(&mut watch).await);
        assert!(stays(&mut watch, 3 * SETTLE).await, "it is told once");
        std::fs::remove_file(path("file")).expect("removed");
        assert!(changes(&mut watch).await);
    }

    #[tokio::test]
    async fn a_file_is_not_whole_before_its_writer_has_closed_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, "a = 1\n").expect("written");
        let mut watch = Watch::new(vec![Read::before(path.clone())]);
        let mut file = std::fs::File::create(&path).expect("truncated");
        file.write_all(b"a = 2\n").expect("written");
        assert!(stays(&mut watch, 5 * SETTLE).await);
        file.write_all(b"b = 3\n").expect("written");
        drop(file);
        assert!(changes(&mut watch).await);
    }
}
