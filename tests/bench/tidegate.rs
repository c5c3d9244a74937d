//! The program itself, as the peers are: one worker, no access log.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tidegate_tests::authority::Pair;
use tidegate_tests::program::workspace;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::reader::Server;

/// Policies that decide each request, with what people configure. The first three decide by what a request asks for, and who
/// asks; the last one counts, so that it is called each time. Its budget is out of reach.
pub const PLUGINS: [(&str, &str); 4] = [
    ("10-allowlist", "allow = [\"docker.io/library/*\", \"quay.io/team/*\", \"*.example.com\"]\n"),
    (
        "20-failover",
        "[[upstream]]\nprefix = \"docker.io\"\nmirrors = []\nsource = \"last\"\n\
         on = { timeout = \"next\", status-429 = \"stale\", status-5xx = \"retry\" }\n",
    ),
    ("30-gatekeeper", "[fill]\naddresses = [\"127.0.0.1\", \"10.0.0.0/8\"]\n"),
    (
        "40-quota",
        "[[upstream]]\nregistry = \"docker.io\"\nlow = \"20%\"\nmirrors = []\n\
         [[budget]]\nname = \"each\"\npulls = 2000\nwindow = \"6h\"\n",
    ),
];

/// Runs until it is dropped.
#[derive(Debug)]
pub struct Tidegate {
    pub proxy: Proxy,
    pub tls: bool,
}

/// A site before an upstream.
pub fn site(upstream: &Server) -> Site {
    Site::of(&upstream.url(""))
        .log("access = false")
        .cache("tag_ttl = \"1d\"")
        .variable("TOKIO_WORKER_THREADS", "1")
        .wrapped(&["setpriv", "--pdeathsig", "TERM"])
}

/// Name and contents of files of compiled code: to compile a plugin takes longer than most measurements.
static COMPILED: Mutex<BTreeMap<OsString, Vec<u8>>> = Mutex::new(BTreeMap::new());

/// With the first so many of the plugins, as they were compiled once in this run.
pub fn with_plugins(site: Site, count: usize) -> Site {
    let folder = compiled(&site);
    DirBuilder::new().recursive(true).mode(0o700).create(&folder).expect("a folder");
    for (name, bytes) in COMPILED.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        fs::write(folder.join(name), bytes).expect("room on the disk");
    }
    with_new_plugins(site, count)
}

/// With the first so many of the plugins, which are compiled by the first start.
pub fn with_new_plugins(site: Site, count: usize) -> Site {
    for (name, config) in &PLUGINS[..count] {
        site.install(&format!("{name}.toml"), config.as_bytes());
        site.install(&format!("{name}.wasm"), &wasm(name));
    }
    site
}

/// The code of a plugin of which the file is called `NN-NAME`.
pub fn wasm(name: &str) -> Vec<u8> {
    let (_, name) = name.split_once('-').expect("NN-NAME");
    let file = workspace().join(format!("plugins/dist/{name}.wasm"));
    fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}; make plugins builds it", file.display()))
}

/// With a certificate.
pub fn with_tls(site: Site, pair: &Pair) -> Site {
    let line = |key: &str, file: &Path| format!("{key} = \"{}\"\n", file.display());
    site.top(&format!("[tls]\n{}{}", line("certificate", &pair.cert), line("key", &pair.key)))
}

/// Starts it.
pub fn start(site: &Site) -> Tidegate {
    let proxy = site.start();
    let tls = proxy.url("").starts_with("https");
    let mut known = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    for file in fs::read_dir(compiled(site)).into_iter().flatten().flatten() {
        known.entry(file.file_name()).or_insert_with(|| fs::read(file.path()).unwrap_or_default());
    }
    Tidegate { proxy, tls }
}

fn compiled(site: &Site) -> PathBuf {
    site.path("state/compiled")
}
