//! The last good version of every plugin, kept outside the cache: a start with a bad file goes on with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::folder::{Version, list_folder};
use super::guest::ConfigFile;
use crate::oci::Digest;

/// The folder of the last good versions of one plugin folder.
#[derive(Clone, Debug)]
pub(super) struct LastGood {
    dir: PathBuf,
}

impl LastGood {
    /// `state_dir` may serve several plugin folders: each has its own versions in it.
    pub fn new(state_dir: &Path, plugins: &Path) -> Self {
        let folder = plugins.canonicalize().unwrap_or_else(|_| plugins.to_owned());
        let key = Digest::sha256_of(folder.as_os_str().as_encoded_bytes()).hex();
        Self { dir: state_dir.join("last-good").join(&key[..16]) }
    }

    /// Keeps a version. The one before stays until this one is whole. Blocks.
    pub fn put(&self, version: &Version) -> io::Result<()> {
        let [kept, before, staged] = self.places(&version.name);
        // At a start it mostly is: reading is cheaper than writing and waiting for the disk.
        if read(&version.name, &kept).is_ok_and(|there| there.same(version)) {
            return Ok(());
        }
        let _ = fs::remove_dir_all(&staged);
        fs::create_dir_all(staged.join("config"))?;
        let write = |path: PathBuf, bytes: &[u8]| {
            let file = fs::File::create(path)?;
            io::Write::write_all(&mut &file, bytes)?;
            file.sync_data()
        };
        write(staged.join("file"), version.file.as_bytes())?;
        write(staged.join("plugin.wasm"), &version.wasm)?;
        for file in &version.config {
            let place = staged.join("config").join(&file.name);
            // A name may have folders in it: `docker.io/hosts.toml`.
            place.parent().map_or(Ok(()), fs::create_dir_all)?;
            write(place, file.text.as_bytes())?;
        }
        if let Some(settings) = &version.settings {
            write(staged.join("settings.toml"), settings.text.as_bytes())?;
        }
        let _ = fs::remove_dir_all(&before);
        if kept.exists() {
            fs::rename(&kept, &before)?;
        }
        fs::rename(&staged, &kept)?;
        let _ = fs::remove_dir_all(&before);
        Ok(())
    }

    /// The version that is kept under a plugin's name; none where there is none that can be read. Blocks.
    pub fn get(&self, name: &str) -> Option<Version> {
        let [kept, before, _] = self.places(name);
        read(name, &kept).or_else(|_| read(name, &before)).ok()
    }

    /// Forgets a plugin that was removed. Blocks.
    pub fn remove(&self, name: &str) {
        for place in self.places(name) {
            let _ = fs::remove_dir_all(place);
        }
    }

    fn places(&self, name: &str) -> [PathBuf; 3] {
        // No plugin's name ends in these: it would need an `@`.
        [self.dir.join(name), self.dir.join(format!("{name}@before")), self.dir.join(format!("{name}@staged"))]
    }
}

fn read(name: &str, dir: &Path) -> io::Result<Version> {
    let file = fs::read_to_string(dir.join("file"))?;
    let settings = match fs::read_to_string(dir.join("settings.toml")) {
        Ok(text) => {
            let stem = file.strip_suffix(".wasm").unwrap_or(&file);
            Some(ConfigFile { name: format!("{stem}.settings.toml"), text })
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => None,
        Err(err) => return Err(err),
    };
    let mut config = Vec::new();
    for (name, path) in list_folder(&dir.join("config"))? {
        config.push(ConfigFile { name, text: fs::read_to_string(path)? });
    }
    config.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(Version { name: name.to_owned(), file, wasm: fs::read(dir.join("plugin.wasm"))?.into(), settings, config })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_comes_back_as_it_was() {
        let dir = tempfile::tempdir().expect("a folder");
        let last_good = LastGood::new(dir.path(), Path::new("/plugins"));
        assert!(last_good.get("a").is_none());
        let mut version = Version {
            name: "a".to_owned(),
            file: "10-a.wasm".to_owned(),
            wasm: b"\0asm"[..].into(),
            settings: Some(ConfigFile { name: "10-a.settings.toml".to_owned(), text: "deadline_ms = 9".to_owned() }),
            config: vec![
                ConfigFile { name: "10-a.toml".to_owned(), text: "x = 1".to_owned() },
                ConfigFile { name: "certs.d/docker.io/hosts.toml".to_owned(), text: "y = 1".to_owned() },
            ],
        };
        last_good.put(&version).expect("kept");
        assert!(last_good.get("a").expect("there").same(&version));
        version.config.clear();
        version.settings = None;
        last_good.put(&version).expect("kept");
        assert!(last_good.get("a").expect("there").same(&version));
        assert!(LastGood::new(dir.path(), Path::new("/other")).get("a").is_none());
        last_good.remove("a");
        assert!(last_good.get("a").is_none());
    }
}
