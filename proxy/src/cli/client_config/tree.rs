//! Files as they lie on a client's machine: printed for people, or written below a folder. Nothing is written over, and
//! nothing merged.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Files, and what is to be said about them.
#[derive(Default)]
pub(super) struct Tree {
    /// Paths and texts.
    pub files: Vec<(PathBuf, String)>,
    /// Full sentences.
    pub notes: Vec<String>,
}

impl Tree {
    /// Adds a file, by its path from the root of the client's machine or, where it begins with a dot, from the user's home.
    pub fn add(&mut self, path: impl Into<PathBuf>, text: impl Into<String>) {
        self.files.push((path.into(), text.into()));
    }

    /// Adds a note.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// A form that a person can read: each file below its path, then the notes.
    pub fn print(&self) {
        for (path, text) in &self.files {
            println!("# ==== {}", place(path));
            println!("{}", text.trim_end());
            println!();
        }
        self.print_notes();
    }

    fn print_notes(&self) {
        for note in &self.notes {
            println!("# {note}");
        }
    }

    /// Writes all files below a folder, or none. A file that is there with the same content is left as it is.
    ///
    /// # Errors
    /// Which files have other content, or what cannot be written.
    pub fn write(&self, dir: &Path, force: bool) -> Result<(), String> {
        let mut others = Vec::new();
        for (path, text) in &self.files {
            let path = dir.join(path);
            match fs::read(&path) {
                Ok(there) if there == text.as_bytes() => {}
                Ok(_) if force => {}
                Ok(_) => others.push(path.display().to_string()),
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) => return Err(format!("{} cannot be read: {err}", path.display())),
            }
        }
        if !others.is_empty() {
            return Err(format!(
                "{}: there already, with other content; nothing was written: merge by hand what is printed without \
                 --write, or write over with --force",
                others.join(", ")
            ));
        }
        for (path, text) in &self.files {
            let path = dir.join(path);
            let fail = |err: io::Error| format!("{} cannot be written: {err}", path.display());
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(fail)?;
            }
            let is_new = fs::read(&path).ok().as_deref() != Some(text.as_bytes());
            if is_new {
                fs::write(&path, text).map_err(fail)?;
            }
            println!("{} {}", if is_new { "wrote" } else { "unchanged" }, path.display());
        }
        self.print_notes();
        Ok(())
    }
}

/// Where a file lies on the client's machine: below its root, in the user's home, or wherever the user is.
fn place(path: &Path) -> String {
    let below = if path.starts_with("etc") || path.starts_with("usr") {
        "/"
    } else if path.starts_with(".docker") {
        "~/"
    } else {
        ""
    };
    format!("{below}{}", path.display())
}

/// A text in quotes, for TOML and YAML. What clients are told are names, paths and addresses: nothing in them needs to be
/// escaped otherwise in one than in the other.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
