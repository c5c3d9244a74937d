//! What fuzzing has found, and what it began with: every file of `tests/fuzz/corpus` must hold its target's property.

mod properties;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

#[test]
fn every_file_of_the_corpora_holds_the_property_of_its_target() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
    let mut wrong = Vec::new();
    for (target, property) in properties::TARGETS {
        let folder = corpora.join(target);
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        assert!(files.len() >= 5, "{}: {} files are no corpus", folder.display(), files.len());
        for file in files {
            let data = fs::read(&file).expect("a file");
            // The panic itself is printed; here is which file it was.
            if catch_unwind(|| property(&data)).is_err() {
                wrong.push(file.display().to_string());
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_target_has_its_program_and_every_corpus_its_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz");
    let cargo = fs::read_to_string(folder.join("Cargo.toml")).expect("it is there");
    for (target, _) in properties::TARGETS {
        assert!(cargo.contains(&format!("path = \"targets/{target}.rs\"")), "{target}");
        let program = fs::read_to_string(folder.join(format!("targets/{target}.rs"))).expect("a program");
        assert!(program.contains(&format!("properties::{target}(data)")), "{target}");
    }
    for entry in fs::read_dir(folder.join("corpus")).expect("it is there") {
        let name = entry.expect("an entry").file_name();
        assert!(properties::TARGETS.iter().any(|(target, _)| name == *target), "{name:?} is nobody's corpus");
    }
}
