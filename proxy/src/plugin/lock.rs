//! `plugins.lock`: which files the plugin folder may hold, by their SHA-256, in lines as `sha256sum` prints them. Where
//! there is one, nothing is loaded that it does not list.

use std::collections::BTreeMap;
use std::path::Path;

use super::folder::{self, Found, Version};
use crate::oci::Digest;

/// Its name in the plugin folder.
pub(super) const LOCK: &str = "plugins.lock";
/// Largest lock file: more lines than there may be files. Units: bytes.
const LOCK_MAX: u64 = 1 << 20;

/// What a lock file lists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Lock {
    /// Digests in lower case, by the name of the file as seen from the folder.
    digests: BTreeMap<String, String>,
}

impl Lock {
    /// Reads a lock file. Blocks.
    ///
    /// # Errors
    /// A text for the operator.
    pub fn read(path: &Path) -> Result<Self, String> {
        let bytes = folder::read_regular(path, LOCK_MAX)?;
        let text = String::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8 text", path.display()))?;
        Self::parse(&text).map_err(|reason| format!("{}:{reason}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut digests = BTreeMap::new();
        for (at, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim_end())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // The star stands where a file was read as binary, which is the same.
            let (hex, name) = line
                .split_once(' ')
                .and_then(|(hex, name)| Some((hex, name.strip_prefix(' ').or_else(|| name.strip_prefix('*'))?)))
                .filter(|(hex, _)| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
                .ok_or_else(|| format!("{at}: no line as `sha256sum FILE` prints it: 64 hexadecimal digits, two spaces, the file's name"))?;
            let name = name.strip_prefix("./").unwrap_or(name).to_owned();
            let hex = hex.to_ascii_lowercase();
            if let Some(before) = digests.insert(name.clone(), hex.clone())
                && before != hex
            {
                return Err(format!("{at}: {name} is listed twice, with two digests; remove one of the lines"));
            }
        }
        Ok(Self { digests })
    }

    /// Whether a version may be loaded: its plugin file must be listed, its other files match where they are.
    ///
    /// # Errors
    /// A text for the operator: what was expected, what was found, and the way out.
    pub fn check(&self, dir: &Path, found: &Found, version: &Version) -> Result<(), String> {
        let Some(expected) = self.digests.get(&version.file) else {
            let (file, dir) = (&version.file, dir.display());
            return Err(format!(
                "{file} is not listed in {LOCK}; if it is right, list it: (cd {dir} && sha256sum {file} >> {LOCK})"
            ));
        };
        check_one(dir, &version.file, expected, &version.wasm)?;
        let inside = |path: &Path| Some(path.strip_prefix(dir).ok()?.to_str()?.to_owned());
        let settings = found.settings.iter().zip(&version.settings);
        let files: BTreeMap<String, &[u8]> = settings
            .chain(found.config.values().zip(&version.config))
            .filter_map(|(path, file)| Some((inside(path)?, file.text.as_bytes())))
            .collect();
        for (name, expected) in self.digests.iter().filter(|(name, _)| found.owns(name)) {
            match files.get(name) {
                Some(bytes) => check_one(dir, name, expected, bytes)?,
                None => {
                    return Err(format!(
                        "{name} is listed in {LOCK} and is not there; put it back, or remove its line"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Plugin files that are listed and not there.
    pub fn absent<'a>(&'a self, found: &'a [Found]) -> impl Iterator<Item = &'a str> {
        let there = |name: &str| found.iter().any(|found| found.file == name);
        self.digests.keys().map(String::as_str).filter(move |name| name.strip_suffix(".wasm").is_some() && !there(name))
    }
}

fn check_one(dir: &Path, name: &str, expected: &str, bytes: &[u8]) -> Result<(), String> {
    let found = Digest::sha256_of(bytes).hex();
    if found == expected {
        return Ok(());
    }
    Err(format!(
        "{name} does not match {LOCK}: expected sha256 {expected}, found {found}; if the file is right, replace its line by: (cd {} && sha256sum {name})",
        dir.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `sha256sum` of `abc`. Source: FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn lines_are_read_as_sha256sum_prints_them() {
        let text = format!("# by hand\n\n{ABC}  10-a.wasm\n{} *./10-a.d/one two.toml\r\n", ABC.to_uppercase());
        let lock = Lock::parse(&text).expect("all lines are right");
        let listed: Vec<_> = lock.digests.iter().map(|(name, hex)| (name.as_str(), hex.as_str())).collect();
        assert_eq!(listed, [("10-a.d/one two.toml", ABC), ("10-a.wasm", ABC)]);
        let twice = format!("{ABC}  a\n{ABC}  a\n");
        assert!(Lock::parse(&twice).is_ok());
        for (text, says) in [
            ("10-a.wasm".to_owned(), "1: no line"),
            (format!("\n{ABC} 10-a.wasm"), "2: no line"),
            (format!("{}  10-a.wasm", &ABC[1..]), "1: no line"),
            (format!("{}g  10-a.wasm", &ABC[1..]), "1: no line"),
            // What stands for a name with a line end in it.
            (format!("\\{ABC}  10-a\\n.wasm"), "1: no line"),
            (format!("{ABC}  a\n{}  a\n", ABC.replace('b', "c")), "2: a is listed twice"),
        ] {
            let reason = Lock::parse(&text).expect_err(&text);
            assert!(reason.starts_with(says), "{text}: {reason}");
        }
    }

    #[test]
    fn a_version_is_checked_as_it_was_read_with_all_its_files() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(dir.path().join("10-a.d")).expect("made");
        for name in ["10-a.wasm", "10-a.settings.toml", "10-a.d/one.toml", "10-ab.wasm"] {
            std::fs::write(dir.path().join(name), "abc").expect("written");
        }
        let listing = folder::list(dir.path()).expect("a listing");
        let version = listing.found[0].read().expect("read");
        let check = |lines: &[(&str, &str)]| {
            let text = lines.iter().map(|(hex, name)| format!("{hex}  {name}")).collect::<Vec<_>>().join("\n");
            Lock::parse(&text).expect("lines").check(dir.path(), &listing.found[0], &version)
        };
        let bad = ABC.replace('b', "0");
        let wasm = (ABC, "10-a.wasm");
        assert_eq!(check(&[wasm]), Ok(()));
        assert_eq!(check(&[wasm, (ABC, "10-a.d/one.toml"), (ABC, "10-a.settings.toml"), (&bad, "10-ab.toml")]), Ok(()));
        for (lines, says) in [
            (&[(ABC, "10-ab.wasm")][..], "10-a.wasm is not listed"),
            (&[(&bad, "10-a.wasm")], "10-a.wasm does not match"),
            (&[wasm, (&bad, "10-a.settings.toml")], "10-a.settings.toml does not match"),
            (&[wasm, (&bad, "10-a.d/one.toml")], "10-a.d/one.toml does not match"),
            (&[wasm, (ABC, "10-a.d/two.toml")], "10-a.d/two.toml is listed in plugins.lock and is not there"),
            (&[wasm, (ABC, "10-a.toml")], "10-a.toml is listed in plugins.lock and is not there"),
        ] {
            let reason = check(lines).expect_err(says);
            assert!(reason.starts_with(says), "{says}: {reason}");
        }
        let lock = Lock::parse(&format!("{ABC}  10-a.wasm\n{ABC}  30-c.wasm\n")).expect("lines");
        assert_eq!(lock.absent(&listing.found).collect::<Vec<_>>(), ["30-c.wasm"]);
    }
}
