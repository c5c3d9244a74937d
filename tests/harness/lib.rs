//! The harness: the real program, real registries and real clients, and a registry that can misbehave.
//!
//! Nothing here knows the program's library: it is driven as an operator drives it, through files, processes and
//! sockets. In reading order: bytes (`content`, `image`, `cosign`), processes (`lines`, `process`), the program
//! (`program`, `site`, `clock`, `proxy`, `plugins`, `authored`, `guests`), upstreams (`registry`, `fake`), a `collector` of
//! traces, clients (`http`, `http2`, `clients`, `machine`), what is tried from a data file (`corpus`), and what is done to the proxy for
//! long (`rounds`).

pub mod authored;
pub mod authority;
pub mod certificate;
pub mod clients;
pub mod clock;
pub mod collector;
pub mod content;
pub mod corpus;
pub mod cosign;
pub mod disk;
pub mod dns;
pub mod fake;
pub mod forward;
pub mod gate;
pub mod guests;
pub mod http;
pub mod http2;
pub mod image;
pub mod lines;
pub mod machine;
pub mod namespace;
pub mod plugins;
pub mod process;
pub mod program;
pub mod proxy;
pub mod registry;
pub mod rounds;
pub mod site;
pub mod tls;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How long a test waits for something that it is sure to see: no figure, a guard against hanging.
pub const HANG: Duration = Duration::from_mins(1);

/// A loopback address that no other server of this run has, so that a stopped server finds its port free again.
pub fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let [_, high, low, _] = (NEXT.fetch_add(1, Ordering::Relaxed) << 8).to_be_bytes();
    Ipv4Addr::new(127, 77, high, low)
}

/// Looks again and again until something holds: for what the program does after it has answered, such as the rename
/// of a file whose last byte is out.
pub fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + HANG;
    while !holds() {
        assert!(Instant::now() < end, "not within {HANG:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Lets this process have as many files and sockets open as it may: a thousand clients are a thousand of them.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, a test that needs more fails by itself, and says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Held by tests that measure memory or move gigabytes: they run one at a time.
pub fn heavy() -> MutexGuard<'static, ()> {
    static HEAVY: Mutex<()> = Mutex::new(());
    HEAVY.lock().unwrap_or_else(PoisonError::into_inner)
}
