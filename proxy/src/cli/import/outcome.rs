//! What is written: the configuration, files for plugins, certs.d, logins; and what is told.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::Value;

use super::gather::Gathered;
use super::logins;
use super::reach::Trust;

/// The configuration.
pub(super) const CONFIG: &str = "tidegate.toml";

const CERTS: &str = "certs.d";
const PLUGINS: &str = "plugins.d";

/// Fails unless a folder is to be had.
pub(super) fn free(dir: &Path) -> Result<(), String> {
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => {
                Err(format!("--dir: {} is not empty, and nothing is written over: name another folder", dir.display()))
            }
        },
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(format!("--dir: {} cannot be had: {err}", dir.display())),
    }
}

pub(super) fn write(gathered: &Gathered, dir: &Path) -> Result<(), String> {
    let fail = |err: io::Error| format!("{} cannot be written: {err}", dir.display());
    for (path, text) in &gathered.plugin_files {
        put(&dir.join(PLUGINS).join(path), text.as_bytes(), 0o644).map_err(fail)?;
    }
    for file in &gathered.certificates {
        let mode = if file.is_key { 0o600 } else { 0o644 };
        put(&dir.join(CERTS).join(&file.path), &file.bytes, mode).map_err(fail)?;
    }
    if !gathered.logins.keys.is_empty() {
        let text = serde_json::to_string_pretty(&Value::Object(gathered.logins.keys.clone())).unwrap_or_default();
        put(&dir.join(logins::FILE), text.as_bytes(), 0o600).map_err(fail)?;
    }
    put(&dir.join(CONFIG), configuration(gathered, dir).as_bytes(), 0o644).map_err(fail)
}

/// A file that is not there yet.
fn put(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?.write_all(bytes)
}

fn configuration(gathered: &Gathered, dir: &Path) -> String {
    let path = |name: &str| toml::Value::String(dir.join(name).display().to_string());
    let mut text =
        "# By `tidegate import`. What each key is: CONFIGURATION.md.\nlisten = \"127.0.0.1:5000\"\n".to_owned();
    if !gathered.logins.keys.is_empty() {
        let _ = writeln!(text, "docker_config = {}", path(logins::FILE));
    }
    if !gathered.certificates.is_empty() {
        let _ = writeln!(text, "certs_dirs = [{}]", path(CERTS));
    }
    if !gathered.plugin_files.is_empty() {
        let _ = writeln!(text, "\n[plugins]\ndir = {}", path(PLUGINS));
    }
    for (registry, named) in &gathered.reach.registries {
        let _ = writeln!(text, "\n[registries.\"{registry}\"]");
        match named.trust() {
            Trust::Proven => {}
            Trust::Http => {
                let _ = writeln!(text, "url = \"http://{registry}\"");
            }
            Trust::Insecure => {
                let _ =
                    writeln!(text, "insecure = true   # if it speaks plain http: url = \"http://{registry}\" instead");
            }
        }
    }
    text
}

/// What became of everything, and what comes next.
pub(super) fn tell(gathered: &Gathered, dir: &Path) {
    println!("carried over into {}:", dir.display());
    for (from, to) in &gathered.carried {
        println!("  {from} -> {to}");
    }
    println!("  {} registries -> {CONFIG}", gathered.reach.registries.len());
    if !gathered.left.is_empty() {
        println!("\nnot carried over:");
    }
    for left in &gathered.left {
        let line = left.line.map(|line| format!(":{line}")).unwrap_or_default();
        println!("  {}{line}: {}: {}", left.file, left.key, left.why);
    }
    println!("\nnext:");
    for plugin in ["10-allowlist", "20-mirrors"] {
        if gathered.plugin_files.iter().any(|(path, _)| path.starts_with(&format!("{plugin}.d/"))) {
            let (_, name) = plugin.split_once('-').unwrap_or_default();
            println!("  copy the plugin {name}.wasm to {}", dir.join(PLUGINS).join(format!("{plugin}.wasm")).display());
        }
    }
    println!("  tidegate check --config {}", dir.join(CONFIG).display());
}
