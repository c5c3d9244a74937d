//! The plugin folder: which files belong to which plugin, and one reading of them.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::guest::ConfigFile;
use super::lock::LOCK;

/// Largest plugin file. Units: bytes.
const WASM_MAX: u64 = 64 << 20;
/// Largest configuration of one plugin, all its files together. Units: bytes.
const CONFIG_MAX: u64 = 8 << 20;
/// Plugins that one folder may hold: each keeps instances of a pool that is shared.
const PLUGINS_MAX: usize = 64;
/// How deep the folder of one plugin's configuration may be: `certs.d/docker.io/hosts.toml`.
const CONFIG_DEPTH_MAX: usize = 3;
const SETTINGS: &str = "settings.toml";

/// The files of one plugin.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// The stem without its `NN-`.
    pub name: String,
    /// `10-allowlist.wasm`
    pub file: String,
    pub wasm: PathBuf,
    pub settings: Option<PathBuf>,
    /// Sorted by the name under which the plugin gets them.
    pub config: BTreeMap<String, PathBuf>,
}

/// A file that is no plugin, or that belongs to none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Problem {
    /// Of which plugin, where that is known.
    pub name: Option<String>,
    pub file: String,
    pub reason: String,
}

/// What lies in the folder.
#[derive(Default, Debug)]
pub(super) struct Listing {
    /// In the order of their files.
    pub found: Vec<Found>,
    pub problems: Vec<Problem>,
    /// Files that nobody will read; worth a warning.
    pub strays: Vec<String>,
    /// `plugins.lock`, where there is one.
    pub lock: Option<PathBuf>,
}

/// The contents of a plugin's files, as of one reading.
#[derive(Clone)]
pub(super) struct Version {
    pub name: String,
    pub file: String,
    pub wasm: Arc<[u8]>,
    pub settings: Option<ConfigFile>,
    pub config: Vec<ConfigFile>,
}

impl Version {
    /// Whether loading the one is loading the other.
    pub fn same(&self, other: &Self) -> bool {
        self.name == other.name
            && self.file == other.file
            && self.settings == other.settings
            && self.config == other.config
            && self.wasm == other.wasm
    }
}

impl Found {
    /// Every file that a version is made of.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.wasm).chain(&self.settings).chain(self.config.values())
    }

    /// Whether a file of the folder, by its name as seen from there, is one of this plugin beside its code.
    pub fn owns(&self, name: &str) -> bool {
        let stem = self.file.strip_suffix(".wasm").unwrap_or(&self.file);
        let rest = name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('.'));
        rest.is_some_and(|rest| rest != "wasm" && (rest == SETTINGS || rest.starts_with("d/") || !rest.contains('.')))
    }

    /// Reads all files of the plugin.
    ///
    /// # Errors
    /// A text for the operator.
    pub fn read(&self) -> Result<Version, String> {
        let wasm = read_regular(&self.wasm, WASM_MAX)?;
        let mut left = CONFIG_MAX;
        let mut text = |name: &str, path: &Path| {
            let bytes = read_regular(path, left)?;
            left -= bytes.len() as u64;
            let text = String::from_utf8(bytes)
                .map_err(|_| format!("its configuration file {} is not UTF-8 text", path.display()))?;
            Ok::<_, String>(ConfigFile { name: name.to_owned(), text })
        };
        let settings = match &self.settings {
            None => None,
            Some(path) => Some(text(&path.file_name().unwrap_or_default().to_string_lossy(), path)?),
        };
        let config = self.config.iter().map(|(name, path)| text(name, path)).collect::<Result<_, _>>()?;
        Ok(Version { name: self.name.clone(), file: self.file.clone(), wasm: wasm.into(), settings, config })
    }
}

/// Reads a file that is one: opening a FIFO would wait for ever.
pub(super) fn read_regular(path: &Path, max: u64) -> Result<Vec<u8>, String> {
    let fail = |err: io::Error| format!("{} cannot be read: {err}", path.display());
    let about = fs::metadata(path).map_err(fail)?;
    if !about.is_file() {
        return Err(format!("{} is no regular file", path.display()));
    }
    if about.len() > max {
        return Err(format!("{} has {} bytes, more than the {max} that it may", path.display(), about.len()));
    }
    fs::read(path).map_err(fail)
}

/// Files of a plugin folder that belong to no plugin.
///
/// # Errors
/// The folder cannot be read.
pub fn strays(dir: &Path) -> io::Result<Vec<String>> {
    list(dir).map(|listing| listing.strays)
}

/// Lists the folder and sorts its files by plugin.
pub(super) fn list(dir: &Path) -> io::Result<Listing> {
    let mut entries: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut listing = Listing::default();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_name().into_string() {
            Ok(name) if name == LOCK => listing.lock = Some(entry.path()),
            Ok(name) if !is_temporary(&name) => _ = entries.insert(name, entry.path()),
            Ok(_) => {}
            Err(name) => listing.strays.push(name.to_string_lossy().into_owned()),
        }
    }
    let stems: Vec<String> = entries.keys().filter_map(|name| name.strip_suffix(".wasm")).map(str::to_owned).collect();
    let mut taken = Vec::new();
    for stem in stems {
        let file = format!("{stem}.wasm");
        taken.push(file.clone());
        let Some(name) = plugin_name(&stem) else {
            let reason = "a plugin's name is letters, digits, `-`, `_` and `.`, at most 64 of them, behind an optional number and dash".to_owned();
            listing.problems.push(Problem { name: None, file, reason });
            continue;
        };
        let mut found = Found {
            name: name.to_owned(),
            wasm: entries[&file].clone(),
            file,
            settings: None,
            config: BTreeMap::new(),
        };
        let prefix = format!("{stem}.");
        for (entry, path) in entries.range(prefix.clone()..) {
            let Some(extension) = entry.strip_prefix(&prefix) else { break };
            match extension {
                "wasm" => continue,
                SETTINGS => found.settings = Some(path.clone()),
                "d" if path.is_dir() => {
                    for (inner, path) in list_folder(path)? {
                        found.config.insert(inner, path);
                    }
                }
                extension if !extension.contains('.') => _ = found.config.insert(entry.clone(), path.clone()),
                _ => continue,
            }
            taken.push(entry.clone());
        }
        listing.found.push(found);
    }
    listing.strays.extend(entries.into_keys().filter(|name| !taken.contains(name)));
    refuse_namesakes(&mut listing);
    while listing.found.len() > PLUGINS_MAX {
        let Some(one) = listing.found.pop() else { break };
        let reason = format!("at most {PLUGINS_MAX} plugins can be loaded");
        listing.problems.push(Problem { name: Some(one.name), file: one.file, reason });
    }
    Ok(listing)
}

/// Two plugins of one name would share a state: neither is loaded, a version that is in effect stays.
fn refuse_namesakes(listing: &mut Listing) {
    let found = std::mem::take(&mut listing.found);
    for one in &found {
        let others: Vec<&str> = found
            .iter()
            .filter(|other| other.name == one.name && other.file != one.file)
            .map(|other| other.file.as_str())
            .collect();
        if others.is_empty() {
            listing.found.push(one.clone());
        } else {
            let reason = format!("its name {} is that of {} too; rename one of them", one.name, others.join(", "));
            listing.problems.push(Problem { name: Some(one.name.clone()), file: one.file.clone(), reason });
        }
    }
}

/// The files of a folder of configuration, and of the folders in it: `docker.io/hosts.toml`.
pub(super) fn list_folder(dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    list_level(dir, "", 1, &mut files)?;
    Ok(files)
}

/// A link may lead back to where it is: only so many levels are looked at.
fn list_level(dir: &Path, prefix: &str, depth: usize, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if is_temporary(&name) {
            continue;
        }
        let (path, name) = (entry.path(), format!("{prefix}{name}"));
        if !path.is_dir() {
            files.push((name, path));
        } else if depth < CONFIG_DEPTH_MAX {
            list_level(&path, &format!("{name}/"), depth + 1, files)?;
        }
    }
    Ok(())
}

/// Hidden files (Kubernetes' `..data` among them), and what editors and copiers leave beside a file.
fn is_temporary(name: &str) -> bool {
    const ENDINGS: [&str; 8] = ["~", ".swp", ".swx", ".tmp", ".part", ".bak", ".orig", ".new"];
    name.starts_with('.') || name.starts_with('#') || ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// The name of the plugin in `STEM.wasm`: `10-allowlist` is `allowlist`. None where a plugin cannot be called so.
pub fn plugin_name(stem: &str) -> Option<&str> {
    let name = match stem.split_once('-') {
        Some((number, name)) if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => stem,
    };
    let good = (1..=64).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    good.then_some(name)
}

/// What has not changed for longer is whole, also where a clock ticks in two seconds. Units: seconds.
const OLD_SECS: i64 = 5;

/// What tells two states of a file apart without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fingerprint {
    inode: (u64, u64),
    pub size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    /// Of the file that a path leads to; none where there is none.
    pub fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|about| Self::new(&about))
    }

    /// Whether the file has not changed for some seconds, as far as clocks can be trusted: its own time cannot be set.
    pub fn is_old(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        i64::try_from(now).is_ok_and(|now| now - self.changed.0 > OLD_SECS)
    }

    fn new(about: &Metadata) -> Self {
        Self {
            inode: (about.dev(), about.ino()),
            size: about.len(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_belong_to_the_plugin_of_their_stem() {
        let dir = tempfile::tempdir().expect("a folder");
        for file in [
            "20-mirrors.wasm",
            "10-allowlist.wasm",
            "10-allowlist.toml",
            "10-allowlist.settings.toml",
            "10-allowlist.toml~",
            "10-allowlist.toml.tmp",
            ".10-allowlist.toml.swp",
            "30-a.wasm",
            "40-a.wasm",
            "50-b c.wasm",
            "plain.wasm",
            "plain.conf",
            "typo.toml",
        ] {
            fs::write(dir.path().join(file), file).expect("written");
        }
        fs::create_dir(dir.path().join("20-mirrors.d")).expect("made");
        fs::write(dir.path().join("20-mirrors.d/one.yaml"), "1").expect("written");
        fs::write(dir.path().join("20-mirrors.d/.hidden"), "1").expect("written");
        fs::create_dir_all(dir.path().join("20-mirrors.d/certs.d/docker.io/too-deep")).expect("made");
        fs::create_dir(dir.path().join("20-mirrors.d/..data")).expect("made");
        for file in ["certs.d/docker.io/hosts.toml", "certs.d/docker.io/too-deep/file", "..data/one.yaml"] {
            fs::write(dir.path().join("20-mirrors.d").join(file), "1").expect("written");
        }
        let listing = list(dir.path()).expect("a listing");
        let names: Vec<_> = listing.found.iter().map(|found| (found.file.as_str(), found.name.as_str())).collect();
        assert_eq!(
            names,
            [("10-allowlist.wasm", "allowlist"), ("20-mirrors.wasm", "mirrors"), ("plain.wasm", "plain")]
        );
        let version = listing.found[0].read().expect("read");
        assert_eq!(version.config.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["10-allowlist.toml"]);
        assert_eq!(version.settings.expect("settings").text, "10-allowlist.settings.toml");
        assert_eq!(listing.found[1].config.keys().collect::<Vec<_>>(), ["certs.d/docker.io/hosts.toml", "one.yaml"]);
        let problems: Vec<_> = listing.problems.iter().map(|problem| problem.file.as_str()).collect();
        assert_eq!(problems, ["50-b c.wasm", "30-a.wasm", "40-a.wasm"]);
        assert_eq!(listing.strays, ["typo.toml"]);
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("a.wasm")).expect("made");
        let listing = list(dir.path()).expect("a listing");
        assert!(listing.found[0].read().err().expect("a folder is refused").contains("no regular file"));
    }
}
