//! The small shared memory of plugins: kept across reloads, and on disk across restarts.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::folder;

/// Keys that one plugin may keep.
const KEYS_MAX: usize = 10_000;
/// Longest key. Units: bytes.
const KEY_MAX: usize = 256;
/// Longest value. Units: bytes.
const VALUE_MAX: usize = 4096;
/// What all keys and values of one plugin may take together. Units: bytes.
const STATE_MAX: usize = 8 << 20;
/// Largest file that is read: a state whose every byte must be escaped, and what stands around it. Units: bytes.
const FILE_MAX: u64 = 64 << 20;
/// How much of a state is written each second, on average: a small one is written each second, one of 8 MiB each half
/// minute. Units: bytes.
const WRITTEN_A_SECOND: u64 = 256 << 10;

/// Why a write was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refused {
    /// Or too much in them, all together.
    TooManyKeys,
    KeyTooLong,
    ValueTooLong,
}

#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    value: String,
    /// Units: milliseconds since the epoch; none: kept until removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    until_ms: Option<u64>,
}

/// What time it is for plugins and what they keep. A clone shows the same time.
#[derive(Clone, Default)]
pub(super) enum Clock {
    /// The system's wall clock.
    #[default]
    System,
    /// The time of a recorded pull, or of a test. Units: milliseconds since the epoch.
    At(Arc<AtomicU64>),
}

impl Clock {
    /// A clock that stands still until it is set.
    pub fn standing() -> Self {
        Self::At(Arc::new(AtomicU64::new(now_ms())))
    }

    /// Sets a clock that stands still; the system's goes its own way.
    pub fn set(&self, time: SystemTime) {
        if let Self::At(ms) = self {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            ms.store(u64::try_from(since.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Units: milliseconds since the epoch.
    pub fn now_ms(&self) -> u64 {
        match self {
            Self::System => now_ms(),
            Self::At(ms) => ms.load(Ordering::Relaxed),
        }
    }
}

/// The memory of one plugin.
#[derive(Default)]
pub(super) struct State {
    entries: Mutex<Entries>,
    changed: AtomicBool,
    clock: Clock,
}

#[derive(Clone, Default)]
struct Entries {
    by_key: HashMap<String, Entry>,
    /// What they take. Units: bytes.
    size: usize,
}

impl Entries {
    fn of(by_key: HashMap<String, Entry>) -> Self {
        let size = by_key.iter().map(|(key, entry)| key.len() + entry.value.len()).sum();
        Self { by_key, size }
    }

    /// Whether a value of this length has room under a key.
    fn has_room(&self, key: &str, len: usize) -> bool {
        let before = self.by_key.get(key).map(|entry| key.len() + entry.value.len());
        let keys = self.by_key.len() + usize::from(before.is_none());
        keys <= KEYS_MAX && self.size - before.unwrap_or(0) + key.len() + len <= STATE_MAX
    }

    fn insert(&mut self, key: &str, entry: Entry) {
        self.remove(key);
        self.size += key.len() + entry.value.len();
        self.by_key.insert(key.to_owned(), entry);
    }

    fn remove(&mut self, key: &str) -> bool {
        let Some(entry) = self.by_key.remove(key) else { return false };
        self.size -= key.len() + entry.value.len();
        true
    }

    fn drop_expired(&mut self, now_ms: u64) {
        self.by_key.retain(|_, entry| entry.holds(now_ms));
        *self = Self::of(std::mem::take(&mut self.by_key));
    }
}

impl State {
    /// A copy that goes its own way: what a dry run writes is gone with it.
    pub fn fork(&self) -> Self {
        let clock = self.clock.clone();
        Self { entries: Mutex::new(self.lock().clone()), changed: AtomicBool::new(false), clock }
    }

    /// What time it is for the plugin. Units: milliseconds since the epoch.
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// All that is kept, in order.
    pub fn entries(&self) -> BTreeMap<String, String> {
        let now = self.now_ms();
        let entries = self.lock();
        let holding = entries.by_key.iter().filter(|(_, entry)| entry.holds(now));
        holding.map(|(key, entry)| (key.clone(), entry.value.clone())).collect()
    }

    /// Forgets everything.
    pub fn clear(&self) {
        *self.lock() = Entries::default();
        self.changed.store(true, Ordering::Relaxed);
    }

    fn until(&self, ttl_secs: Option<u32>) -> Option<u64> {
        ttl_secs.map(|secs| self.now_ms() + u64::from(secs) * 1000)
    }

    pub fn get(&self, key: &str) -> Option<String> {
        let now = self.now_ms();
        self.lock().by_key.get(key).filter(|entry| entry.holds(now)).map(|entry| entry.value.clone())
    }

    pub fn set(&self, key: &str, value: &str, ttl_secs: Option<u32>) -> Result<(), Refused> {
        self.update(key, |_| Some((value.to_owned(), self.until(ttl_secs)))).map(|_| ())
    }

    pub fn set_once(&self, key: &str, value: &str, ttl_secs: Option<u32>) -> Result<String, Refused> {
        self.update(key, |before| before.is_none().then(|| (value.to_owned(), self.until(ttl_secs))))
    }

    pub fn add(&self, key: &str, delta: i32, ttl_secs: Option<u32>) -> Result<i64, Refused> {
        let sum = self.update(key, |before| {
            let number: i64 = before.and_then(|entry| entry.value.parse().ok()).unwrap_or(0);
            let until = before.map_or_else(|| self.until(ttl_secs), |entry| entry.until_ms);
            Some((number.saturating_add(delta.into()).to_string(), until))
        })?;
        Ok(sum.parse().expect("a number was written"))
    }

    pub fn remove(&self, key: &str) {
        if self.lock().remove(key) {
            self.changed.store(true, Ordering::Relaxed);
        }
    }

    /// Changes one entry under the lock; `change` gives none to leave it. Gives the value that is there afterwards.
    fn update(
        &self,
        key: &str,
        change: impl FnOnce(Option<&Entry>) -> Option<(String, Option<u64>)>,
    ) -> Result<String, Refused> {
        if key.len() > KEY_MAX {
            return Err(Refused::KeyTooLong);
        }
        let now = self.now_ms();
        let mut entries = self.lock();
        let before = entries.by_key.get(key).filter(|entry| entry.holds(now));
        let Some((value, until_ms)) = change(before) else {
            return Ok(before.map(|entry| entry.value.clone()).unwrap_or_default());
        };
        if value.len() > VALUE_MAX {
            return Err(Refused::ValueTooLong);
        }
        if !entries.has_room(key, value.len()) {
            entries.drop_expired(now);
            if !entries.has_room(key, value.len()) {
                return Err(Refused::TooManyKeys);
            }
        }
        entries.insert(key, Entry { value: value.clone(), until_ms });
        self.changed.store(true, Ordering::Relaxed);
        Ok(value)
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn holds(&self, now_ms: u64) -> bool {
        self.until_ms.is_none_or(|until| now_ms < until)
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The memories of all plugins, by name, and the folder that keeps them.
pub(super) struct States {
    dir: Option<PathBuf>,
    clock: Clock,
    by_plugin: Mutex<HashMap<String, Kept>>,
}

/// The memory of one plugin, and when it may be written next.
struct Kept {
    state: Arc<State>,
    /// The file that could not be read could not be moved aside either: it is not written over.
    spoiled: bool,
    due: Instant,
}

impl States {
    /// `dir`: none keeps nothing.
    pub fn new(dir: Option<PathBuf>) -> Self {
        Self { dir, clock: Clock::System, by_plugin: Mutex::default() }
    }

    /// The same by another clock.
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// The memory of a plugin. One that cannot be read begins empty, and says so; its file is moved aside.
    pub fn of(&self, plugin: &str) -> Arc<State> {
        self.lock().entry(plugin.to_owned()).or_insert_with(|| self.read(plugin)).state.clone()
    }

    /// Writes what has changed since the last time. Blocks.
    pub fn flush(&self) {
        self.write(|_| true);
    }

    /// Writes what has changed, of big states less often, and lets go of what no plugin uses any more. Blocks.
    pub fn flush_due(&self) {
        let now = Instant::now();
        self.write(|kept| kept.due <= now);
        let unused = |kept: &Kept| Arc::strong_count(&kept.state) == 1 && !kept.state.changed.load(Ordering::Relaxed);
        if self.dir.is_some() {
            self.lock().retain(|_, kept| !unused(kept));
        }
    }

    fn write(&self, which: impl Fn(&Kept) -> bool) {
        let Some(dir) = &self.dir else { return };
        let chosen: Vec<_> = {
            let by_plugin = self.lock();
            let chosen = by_plugin.iter().filter(|(_, kept)| !kept.spoiled && which(kept));
            chosen.map(|(name, kept)| (name.clone(), kept.state.clone())).collect()
        };
        for (plugin, state) in chosen {
            if !state.changed.swap(false, Ordering::Relaxed) {
                continue;
            }
            let written = write(dir, &plugin, &state);
            if let Err(err) = &written {
                state.changed.store(true, Ordering::Relaxed);
                tracing::error!(plugin, folder = %dir.display(), error = err.to_string(), "the state of a plugin cannot be written");
            }
            let pause = Duration::from_millis(written.unwrap_or(0) * 1000 / WRITTEN_A_SECOND);
            if let Some(kept) = self.lock().get_mut(&plugin) {
                kept.due = Instant::now() + pause;
            }
        }
    }

    fn read(&self, plugin: &str) -> Kept {
        let path = self.dir.as_ref().map(|dir| file(dir, plugin)).filter(|path| path.exists());
        let made = |entries| {
            let entries = Mutex::new(Entries::of(entries));
            Arc::new(State { entries, changed: AtomicBool::new(false), clock: self.clock.clone() })
        };
        let mut kept = Kept { state: made(HashMap::new()), spoiled: false, due: Instant::now() };
        let Some(path) = path else { return kept };
        let read = folder::read_regular(&path, FILE_MAX)
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|err| format!("{}: {err}", path.display())));
        match read {
            Ok(entries) => kept.state = made(entries),
            Err(error) => {
                let aside = path.with_added_extension(format!("broken-{}", now_ms()));
                let moved = std::fs::rename(&path, &aside);
                kept.spoiled = moved.is_err();
                let file = if kept.spoiled { &path } else { &aside };
                tracing::error!(plugin, error, file = %file.display(), "the state of a plugin cannot be read: it begins empty, and the file stays as it is");
            }
        }
        kept
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.by_plugin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn file(dir: &Path, plugin: &str) -> PathBuf {
    dir.join(format!("{plugin}.json"))
}

/// Writes a state beside the one before, and puts it in its place when it is whole. Gives its size.
fn write(dir: &Path, plugin: &str, state: &State) -> io::Result<u64> {
    let now = state.now_ms();
    let entries: HashMap<_, _> = {
        let entries = state.lock();
        let holding = entries.by_key.iter().filter(|(_, entry)| entry.holds(now));
        holding.map(|(key, entry)| (key.clone(), entry.clone())).collect()
    };
    let json = serde_json::to_vec(&entries)?;
    std::fs::create_dir_all(dir)?;
    let staged = file(dir, plugin).with_added_extension("part");
    let mut staging = std::fs::File::create(&staged)?;
    io::Write::write_all(&mut staging, &json)?;
    staging.sync_data()?;
    std::fs::rename(staged, file(dir, plugin))?;
    Ok(json.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_bounded_atomic_and_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let states = States::new(Some(dir.path().to_owned()));
        let state = states.of("quota");
        assert_eq!(state.add("n", 3, None), Ok(3));
        assert_eq!(state.add("n", -1, None), Ok(2));
        assert_eq!(state.set_once("n", "x", None).as_deref(), Ok("2"));
        assert_eq!(state.set_once("once", "x", None).as_deref(), Ok("x"));
        assert_eq!(state.set("gone", "x", Some(0)), Ok(()));
        assert_eq!(state.get("gone"), None);
        assert_eq!(state.set(&"k".repeat(257), "", None), Err(Refused::KeyTooLong));
        assert_eq!(state.set("k", &"v".repeat(4097), None), Err(Refused::ValueTooLong));
        let fork = state.fork();
        assert_eq!(fork.add("n", 1, None), Ok(3));
        assert_eq!(state.get("n").as_deref(), Some("2"), "a dry run changes nothing");
        states.flush();
        let again = States::new(Some(dir.path().to_owned())).of("quota");
        assert_eq!(again.get("n").as_deref(), Some("2"));
        for key in 0..KEYS_MAX {
            let _ = state.set(&key.to_string(), "", None);
        }
        assert_eq!(state.set("one more", "", None), Err(Refused::TooManyKeys));
    }
    #[test]
    fn a_state_is_bounded_in_bytes_and_what_has_expired_makes_room() {
        let state = State::default();
        let value = "v".repeat(VALUE_MAX);
        let fits = STATE_MAX / (VALUE_MAX + 4);
        for key in 0..fits {
            assert_eq!(state.set(&format!("{key:04}"), &value, None), Ok(()), "{key}");
        }
        assert_eq!(state.set("more", &value, None), Err(Refused::TooManyKeys));
        // In the place of another there is room.
        assert_eq!(state.set("0000", &value, Some(0)), Ok(()));
        assert_eq!(state.set("more", &value, None), Ok(()));
        assert_eq!(state.set("and more", &value, None), Err(Refused::TooManyKeys));
        state.remove("0001");
        state.remove("0001");
        assert_eq!(state.set("0001", &value, None), Ok(()));
        let size: usize = state.lock().by_key.iter().map(|(key, entry)| key.len() + entry.value.len()).sum();
        assert_eq!(state.lock().size, size);
    }

    #[test]
    fn nothing_is_lost_when_many_add_at_once() {
        let state = State::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1000).for_each(|_| _ = state.add("n", 1, None)));
            }
        });
        assert_eq!(state.get("n").as_deref(), Some("8000"));
    }

    #[test]
    fn a_number_keeps_its_time_to_live_and_begins_anew_after_it() {
        let state = State::default();
        assert_eq!(state.add("n", 5, Some(0)), Ok(5));
        assert_eq!(state.add("n", 1, Some(3600)), Ok(1), "the one before has expired");
        assert_eq!(state.add("n", 1, None), Ok(2));
        assert!(state.lock().by_key["n"].until_ms.is_some(), "adding to it does not make it last");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_moved_aside_and_one_half_written_is_not_there() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(file(dir.path(), "quota"), "{\"n\": {\"value\": \"1\"").expect("written");
        std::fs::write(dir.path().join("ledger.json.part"), "{").expect("written");
        let states = States::new(Some(dir.path().to_owned()));
        let state = states.of("quota");
        assert_eq!(state.add("n", 7, None), Ok(7));
        assert_eq!(states.of("ledger").add("n", 3, None), Ok(3));
        states.flush();
        let again = States::new(Some(dir.path().to_owned()));
        assert_eq!(again.of("quota").get("n").as_deref(), Some("7"));
        assert_eq!(again.of("ledger").get("n").as_deref(), Some("3"));
        let names = std::fs::read_dir(dir.path()).expect("listed").map(|entry| entry.expect("an entry").path());
        let aside: Vec<_> = names.filter(|path| path.to_string_lossy().contains("quota.json.broken-")).collect();
        assert_eq!(std::fs::read_to_string(&aside[0]).expect("kept"), "{\"n\": {\"value\": \"1\"");
    }

    #[test]
    fn a_big_state_is_written_less_often_and_at_the_end_all_the_same() {
        let dir = tempfile::tempdir().expect("a folder");
        let states = States::new(Some(dir.path().to_owned()));
        let (big, small) = (states.of("big"), states.of("small"));
        for key in 0..1000 {
            big.set(&key.to_string(), &"v".repeat(VALUE_MAX), None).expect("room");
        }
        let written = |plugin: &str| std::fs::read_to_string(file(dir.path(), plugin)).expect("written");
        for value in ["first", "second", "third"] {
            for state in [&big, &small] {
                state.set("k", value, None).expect("room");
            }
            states.flush_due();
        }
        assert!(written("big").contains("first") && written("small").contains("third"));
        drop((big, small));
        states.flush_due();
        assert_eq!(states.lock().keys().collect::<Vec<_>>(), ["big"], "what is not used is let go, once it is written");
        states.flush();
        assert!(written("big").contains("third"));
    }
}
