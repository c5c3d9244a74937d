//! The rooms of the program import only in the direction that `proxy/DESIGN.md` draws.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tidegate_tests::program::workspace;

/// `main -> cli -> server -> { pull, addressing } -> { plugin, cache, upstream } -> { config, body, metrics, record, trace } -> oci`:
/// each may import only what stands behind it; members of one line never import each other.
const ROOMS: [&[&str]; 7] = [
    &["main", "lib"],
    &["cli"],
    &["server"],
    &["pull", "addressing"],
    &["plugin", "cache", "upstream"],
    &["config", "body", "metrics", "record", "trace"],
    &["oci"],
];

fn rank(room: &str) -> usize {
    let rank = ROOMS.iter().position(|rooms| rooms.contains(&room));
    rank.unwrap_or_else(|| panic!("{room} has no place in the line of directions"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The room that a file belongs to: its first folder, or its own name.
fn room(file: &Path, root: &Path) -> String {
    let inside = file.strip_prefix(root).unwrap();
    inside.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// Rooms that a text names as `crate::ROOM`, and in the braces of `use crate::{...}`. `main.rs` says `tidegate::`.
fn imports(text: &str, root: &str) -> BTreeSet<String> {
    let word =
        |text: &str| text.chars().take_while(|sign| sign.is_ascii_lowercase() || *sign == '_').collect::<String>();
    let mut rooms = BTreeSet::new();
    for (at, _) in text.match_indices(root) {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|sign| sign.is_alphanumeric() || matches!(sign, '_' | ':' | '$')) {
            continue;
        }
        let rest = &text[at + root.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            rooms.insert(word(rest));
            continue;
        };
        // The names of a list stand at its beginning and behind its own commas, not behind those of inner lists.
        let mut depth = 0;
        for part in list.split_inclusive(['{', '}', ',']) {
            if depth == 0 {
                rooms.insert(word(part.trim_start()));
            }
            match part.chars().next_back() {
                Some('{') => depth += 1,
                Some('}') if depth == 0 => break,
                Some('}') => depth -= 1,
                _ => {}
            }
        }
    }
    rooms.remove("");
    rooms
}

#[test]
fn each_room_imports_only_what_stands_behind_it() {
    let root = workspace().join("proxy/src");
    let mut wrong = Vec::new();
    for file in sources(&root) {
        let text = fs::read_to_string(&file).unwrap();
        let from = room(&file, &root);
        for to in imports(&text, if from == "main" { "tidegate::" } else { "crate::" }) {
            if to != from && rank(&to) <= rank(&from) {
                wrong.push(format!("{} imports {to}", file.strip_prefix(&root).unwrap().display()));
            }
        }
    }
    assert!(wrong.is_empty(), "against the direction:\n{}", wrong.join("\n"));
}

#[test]
fn wasmtime_stays_with_the_plugins_and_the_http_server_with_the_server() {
    let root = workspace().join("proxy/src");
    for file in sources(&root) {
        let text = fs::read_to_string(&file).unwrap();
        let code: String =
            text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        let from = room(&file, &root);
        for (name, home) in [("wasmtime::", "plugin"), ("hyper::server", "server"), ("hyper_util::server", "server")] {
            assert!(from == home || !code.contains(name), "{} names {name}", file.display());
        }
    }
}

#[test]
fn imports_are_read_from_paths_and_from_lists() {
    let text =
        "use crate::oci::{Digest, Name};\nuse crate::{cache, config::{Config, File}, body};\ncrate::metrics::x()";
    let expected = ["body", "cache", "config", "metrics", "oci"].map(str::to_owned);
    assert_eq!(imports(text, "crate::"), BTreeSet::from(expected));
    assert_eq!(imports("$crate::plugin::x; mycrate::server::y", "crate::"), BTreeSet::new());
}
