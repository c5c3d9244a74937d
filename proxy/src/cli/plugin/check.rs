//! `tidegate plugin check FILE`: what a plugin file is, what it costs to start, and whether the proxy would load it.

use std::process::ExitCode;
use std::time::Duration;

use bytesize::ByteSize;

use super::Alike;
use crate::plugin::About;

pub(super) async fn check(given: &Alike) -> ExitCode {
    let about = match given.load(given.files()).await {
        Ok(alone) => alone.about,
        Err(refused) => return refused,
    };
    println!("{}", given.file.display());
    print(&about);
    let names: Vec<String> = given.config_files.iter().map(|path| path.display().to_string()).collect();
    match &about.accepts {
        Ok(()) if names.is_empty() => row("configuration", "none is given, and none is needed"),
        Ok(()) => row("configuration", &format!("accepted: {}", names.join(", "))),
        Err(reason) if names.is_empty() => {
            row("configuration", &format!("one is needed, with --config-files: it says {reason:?}"));
        }
        Err(reason) => {
            row("configuration", &format!("refused: {reason}"));
            return given.refuse(&format!("it refuses its configuration: {reason}"));
        }
    }
    ExitCode::SUCCESS
}

fn print(about: &About) {
    row("interface", &about.interface);
    row("hooks", &about.hooks.join(", "));
    // Of its own interface the short name says it.
    let (package, version) = about.interface.split_once('@').unwrap_or_default();
    let short = |import: &String| {
        let own = import.strip_prefix(package).and_then(|rest| rest.strip_prefix('/')).and_then(|rest| {
            let (name, of) = rest.split_once('@')?;
            (of == version).then(|| name.to_owned())
        });
        own.unwrap_or_else(|| import.clone())
    };
    let (wasi, own): (Vec<&String>, Vec<&String>) = about.imports.iter().partition(|name| name.starts_with("wasi:"));
    let listed = |names: &[&String]| names.iter().map(|name| short(name)).collect::<Vec<_>>().join(", ");
    row("imports", &if own.is_empty() { "nothing".to_owned() } else { listed(&own) });
    if wasi.is_empty() {
        row("WASI", "not used");
    } else {
        row("WASI", &format!("used, with nothing in it: no files, no environment, no network ({})", listed(&wasi)));
    }
    row("size", &ByteSize::b(about.size as u64).display().iec().to_string());
    row("compiling", &time(about.compiling));
    let then = about.start.map_or(String::new(), |start| format!(", each further one {}", time(start)));
    row("starting", &format!("first instance {}{then}", time(about.first_start)));
}

fn row(what: &str, text: &str) {
    println!("  {what:13}  {text}");
}

/// A duration with as many digits as say something.
pub(super) fn time(time: Duration) -> String {
    match time.as_secs_f64() {
        secs if secs >= 1.0 => format!("{secs:.1} s"),
        secs if secs >= 0.001 => format!("{:.1} ms", secs * 1e3),
        secs => format!("{:.1} us", secs * 1e6),
    }
}
