//! `tidegate migrate icsp FILE... [--dest-dir DIR]`, as `oc adm migrate icsp` has it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

use sha2::{Digest as _, Sha256};

use super::policy::{MirrorSet, to_digest_mirror_set};
use crate::cli::EXIT_BAD_INPUT;

/// Largest file that is read. Units: bytes. etcd takes 1.5 MiB for an object.
const FILE_MAX: u64 = 16 << 20;

/// Turns all files, or none.
pub(super) fn icsp(files: &[PathBuf], dest_dir: Option<&Path>) -> ExitCode {
    let mut reasons = Vec::new();
    let mut written = Vec::new();
    let folder = match folder(dest_dir) {
        Ok(folder) => folder,
        Err(reason) => return refuse(&[reason]),
    };
    for file in files {
        match read(file).and_then(|text| {
            let set = to_digest_mirror_set(&text).map_err(|err| format!("{}{err}", file.display()))?;
            target(&folder, &set).map(|path| (path, set.text))
        }) {
            Ok(one) => written.push(one),
            Err(reason) => reasons.push(reason),
        }
    }
    if !reasons.is_empty() {
        return refuse(&reasons);
    }
    if let Err(err) = fs::create_dir_all(&folder) {
        return refuse(&[format!("{} cannot be made: {err}", folder.display())]);
    }
    for (path, text) in written {
        if let Err(err) = fs::write(&path, text) {
            return refuse(&[format!("{} cannot be written: {err}", path.display())]);
        }
        println!("wrote ImageDigestMirrorSet to {}", path.display());
    }
    ExitCode::SUCCESS
}

fn refuse(reasons: &[String]) -> ExitCode {
    for reason in reasons {
        eprintln!("tidegate: {reason}");
    }
    eprintln!("tidegate: nothing was written");
    ExitCode::from(EXIT_BAD_INPUT)
}

fn folder(named: Option<&Path>) -> Result<PathBuf, String> {
    let Some(named) = named else {
        return env::current_dir().map_err(|err| format!("there is no current folder: {err}; write --dest-dir DIR"));
    };
    if named.exists() && !named.is_dir() {
        return Err(format!("--dest-dir: {} is there, and is no folder", named.display()));
    }
    Ok(named.to_owned())
}

fn read(file: &Path) -> Result<String, String> {
    let fail = |err: io::Error| format!("{} cannot be read: {err}", file.display());
    let about = fs::metadata(file).map_err(fail)?;
    if about.len() > FILE_MAX {
        return Err(format!("{} is larger than {FILE_MAX} bytes", file.display()));
    }
    fs::read_to_string(file).map_err(fail)
}

/// The file's name: of the first object, and of a number that is the content's, so that the same file comes out of the
/// same input and two objects of one name do not meet.
fn target(folder: &Path, set: &MirrorSet) -> Result<PathBuf, String> {
    let hash = Sha256::digest(set.text.as_bytes());
    let number = u64::from_be_bytes(hash[..8].try_into().expect("a SHA-256 has 32 bytes")) >> 1;
    let path = folder.join(format!("imagedigestmirrorset_{}.{number}.yaml", set.name));
    match fs::read_to_string(&path) {
        Ok(there) if there != set.text => Err(format!("{} is there already, and was changed", path.display())),
        _ => Ok(path),
    }
}
