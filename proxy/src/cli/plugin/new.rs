//! `tidegate plugin new PATH --lang LANGUAGE`: a project that builds, decides, and has tests.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

use anyhow::Context;
use toml::{Table, Value};

use super::carried;
use super::language::Language;
use crate::cli::EXIT_BAD_INPUT;
use crate::plugin::plugin_name;

pub(super) fn new(path: &Path, language: Language) -> anyhow::Result<ExitCode> {
    let dir = std::path::absolute(path).context("no current folder")?;
    let Some(names) = Names::of(&dir) else {
        eprintln!(
            "tidegate: {}: the last part of the path is the plugin's name: letters, digits, `-`, `_` and `.`, at most \
             64 of them, behind an optional number and dash; such as ./no-latest",
            path.display()
        );
        return Ok(ExitCode::from(EXIT_BAD_INPUT));
    };
    if let Some(reason) = taken(&dir) {
        eprintln!("tidegate: {}: {reason}; nothing is overwritten: choose another path", path.display());
        return Ok(ExitCode::from(EXIT_BAD_INPUT));
    }
    write(&dir, &names, language).with_context(|| format!("{} cannot be written", path.display()))?;
    println!(
        "{} is written: a plugin in {}. The decision is in {}.",
        path.display(),
        language.title(),
        language.source()
    );
    println!();
    println!("  tidegate plugin build {}", path.display());
    println!("  tidegate plugin test {} {}", wasm(path, &names).display(), path.join("cases.toml").display());
    println!();
    println!("{} says the rest.", path.join("README.md").display());
    Ok(ExitCode::SUCCESS)
}

/// What a project is called in its files.
struct Names {
    /// Of the file that is built: the folder's.
    file: String,
    /// In the proxy: without a number in front.
    plugin: String,
    /// For tools that take fewer letters.
    package: String,
}

impl Names {
    fn of(dir: &Path) -> Option<Self> {
        let file = dir.file_name()?.to_str()?;
        let plugin = plugin_name(file)?;
        let mut package = plugin.replace('.', "-").to_ascii_lowercase();
        if !package.starts_with(|first: char| first.is_ascii_alphabetic()) {
            package.insert_str(0, "plugin-");
        }
        Some(Self { file: file.to_owned(), plugin: plugin.to_owned(), package })
    }
}

fn wasm(path: &Path, names: &Names) -> PathBuf {
    path.join(format!("{}.wasm", names.file))
}

/// Why a folder cannot be had; none where it can.
fn taken(dir: &Path) -> Option<String> {
    match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().map(|_| "the folder is not empty".to_owned()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => None,
        Err(err) if err.kind() == io::ErrorKind::NotADirectory => Some("a file of this name is there".to_owned()),
        Err(err) => Some(err.to_string()),
    }
}

fn write(dir: &Path, names: &Names, language: Language) -> anyhow::Result<()> {
    let fill = |text: &str| {
        text.replace("{{name}}", &names.plugin)
            .replace("{{file}}", &names.file)
            .replace("{{package}}", &names.package)
            .replace("{{language}}", language.title())
            .replace("{{source}}", language.source())
            .replace("{{tools}}", language.tools())
    };
    carried::write(carried::template(language), dir, &fill)?;
    for name in ["README.md", "cases.toml"] {
        fs::write(dir.join(name), fill(carried::common(name)))?;
    }
    carried::write(&carried::WIT, &dir.join("wit"), &str::to_owned)?;
    if language == Language::Rust {
        for one in carried::crates() {
            let to = dir.join("tidegate").join(one.name);
            carried::write(one.sources, &to.join("src"), &str::to_owned)?;
            fs::write(to.join("Cargo.toml"), alone(one.manifest)?)?;
        }
        fs::write(dir.join("Cargo.lock"), carried::LOCK)?;
    } else {
        carried::write(carried::layer(language), &dir.join("tidegate"), &str::to_owned)?;
    }
    Ok(())
}

/// A crate's manifest without what it inherits from the workspace that it has here.
fn alone(manifest: &str) -> anyhow::Result<String> {
    let workspace: Table = carried::WORKSPACE.parse()?;
    let mut manifest: Table = manifest.parse()?;
    manifest.remove("lints");
    for (section, key) in [("package", "package"), ("dependencies", "dependencies")] {
        let Some(Value::Table(own)) = manifest.get_mut(section) else { continue };
        for (name, value) in own {
            if value.get("workspace").is_some() {
                let inherited = workspace.get("workspace").and_then(|all| all.get(key)?.get(name));
                *value = inherited.with_context(|| format!("the workspace has no {key}.{name}"))?.clone();
            }
        }
    }
    Ok(toml::to_string(&manifest)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_the_plugin_the_file_and_the_package() {
        for (path, expected) in [
            ("/x/no-latest", Some(("no-latest", "no-latest", "no-latest"))),
            ("/x/10-no-latest", Some(("10-no-latest", "no-latest", "no-latest"))),
            ("/x/No.Latest", Some(("No.Latest", "No.Latest", "no-latest"))),
            ("/x/7up", Some(("7up", "7up", "plugin-7up"))),
            ("/x/no latest", None),
            ("/x/-no", None),
            ("/", None),
        ] {
            let names = Names::of(Path::new(path));
            let names = names.as_ref().map(|names| (&*names.file, &*names.plugin, &*names.package));
            assert_eq!(names, expected, "{path}");
        }
    }

    #[test]
    fn the_sdk_stands_alone() {
        for one in carried::crates() {
            let manifest = alone(one.manifest).expect("it has all that it inherits");
            assert!(!manifest.contains("workspace"), "{manifest}");
            assert!(manifest.contains("edition"), "{manifest}");
        }
    }
}
