//! What the program carries for authors: the interface, the SDK, the layers of the other languages, and projects to
//! begin with.

use std::path::Path;
use std::{fs, io};

use include_dir::{Dir, include_dir};

use super::language::Language;

/// The interface.
pub(super) static WIT: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../wit");
/// The layers, the templates, and the SDK for Rust.
static SDK: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../plugins/sdk");

/// The attribute of the SDK for Rust.
static MACROS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../plugins/sdk-macros");

/// The workspace whose words the SDK's own manifest inherits.
pub(super) const WORKSPACE: &str = include_str!("../../../../plugins/Cargo.toml");
/// The versions that the SDK is tested with.
pub(super) const LOCK: &str = include_str!("../../../../plugins/Cargo.lock");
/// What builds plugins in Rust, in this repository and elsewhere.
pub(super) const BUILD: &str = include_str!("../../../../plugins/build");

/// A crate of the SDK for Rust.
pub(super) struct Crate {
    /// The folder that the crates name each other by.
    pub name: &'static str,
    /// As it is in this repository's workspace.
    pub manifest: &'static str,
    /// Its folder `src`.
    pub sources: &'static Dir<'static>,
}

/// The crates of the SDK for Rust.
pub(super) fn crates() -> [Crate; 2] {
    [("sdk", &SDK), ("sdk-macros", &MACROS)].map(|(name, dir)| {
        let manifest = dir.get_file("Cargo.toml").and_then(|file| file.contents_utf8());
        Crate {
            name,
            manifest: manifest.expect("a crate has a manifest"),
            sources: dir.get_dir("src").expect("a crate has sources"),
        }
    })
}

/// What stands between the interface and a language.
pub(super) fn layer(language: Language) -> &'static Dir<'static> {
    folder(&format!("layers/{}", language.word()))
}

/// The project to begin with, and what every language's has.
pub(super) fn template(language: Language) -> &'static Dir<'static> {
    folder(&format!("templates/{}", language.word()))
}

/// A file that the projects of all languages have.
pub(super) fn common(name: &str) -> &'static str {
    let file = SDK.get_file(format!("templates/{name}"));
    file.and_then(|file| file.contents_utf8()).expect("the templates are complete")
}

fn folder(path: &str) -> &'static Dir<'static> {
    SDK.get_dir(path).expect("what the program is built from has all languages")
}

/// Writes what is in a carried folder, each text changed on the way.
pub(super) fn write(from: &Dir<'_>, to: &Path, change: &dyn Fn(&str) -> String) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for file in from.files() {
        let name = file.path().file_name().expect("a file has a name");
        // Where the templates lie, git must not take it for its own.
        let name = if name == "gitignore" { ".gitignore".as_ref() } else { name };
        match file.contents_utf8() {
            Some(text) => fs::write(to.join(name), change(text))?,
            None => fs::write(to.join(name), file.contents())?,
        }
    }
    for dir in from.dirs() {
        write(dir, &to.join(dir.path().file_name().expect("a folder has a name")), change)?;
    }
    Ok(())
}
