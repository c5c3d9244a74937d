//! A registry that does as it is told: serves, lies, stalls, closes, redirects, and remembers what it was asked.

mod act;
mod auth;
mod connection;

use std::collections::{HashMap, VecDeque};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

pub use act::{Act, Reply};
pub use auth::{Tokens, basic};

use crate::content::{Content, sha256};
use crate::gate::Gate;
use crate::http::Fields;
use crate::image::{self, Image};
use crate::{HANG, own_address};

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Fake {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

/// A request that it got.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `GET`, `HEAD`, ...
    pub method: String,
    /// Without the query.
    pub path: String,
    /// Without the question mark.
    pub query: String,
    /// The header fields.
    pub fields: Fields,
    /// The body.
    pub body: String,
    /// How many requests all fake registries had got before it.
    pub turn: u64,
}

#[derive(Debug, Default)]
struct Shared {
    script: Mutex<Script>,
    seen: (Mutex<Vec<Seen>>, Condvar),
    /// By the number of the connection.
    streams: Mutex<HashMap<u64, TcpStream>>,
    stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct Script {
    documents: HashMap<String, Document>,
    always: HashMap<String, Act>,
    next: HashMap<String, VecDeque<Act>>,
    gates: Vec<Gate>,
    guard: Option<auth::Guard>,
    issuer: Option<Tokens>,
}

#[derive(Clone, Debug)]
struct Document {
    media_type: String,
    digest: String,
    content: Content,
}

impl Fake {
    /// Starts an empty one.
    pub fn start() -> Self {
        Self::start_at(SocketAddr::from((own_address(), 0)))
    }

    /// Starts an empty one at an address.
    pub fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let acceptor = Mutex::new(Some(accept(listener, &shared)));
        Self { address, shared, acceptor }
    }

    /// Without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Host and port.
    pub fn authority(&self) -> String {
        self.address.to_string()
    }

    /// Puts a blob into a repository. Gives its path.
    pub fn put_blob(&self, repository: &str, content: impl Into<Content>) -> String {
        let content = content.into();
        let digest = content.digest();
        let path = format!("/v2/{repository}/blobs/{digest}");
        self.put(&path, "application/octet-stream", content);
        path
    }

    /// Puts an image under a name such as `library/alpine:3`. Gives the path of its manifest, by tag.
    pub fn put_image(&self, image: &Image, name: &str) -> String {
        let (repository, tag) = name.split_once(':').expect("a name with a tag");
        for blob in &image.blobs {
            self.put_blob(repository, blob.clone());
        }
        let path = |reference: &str| format!("/v2/{repository}/manifests/{reference}");
        for path in [path(tag), path(&image.digest())] {
            self.put(&path, image.media_type(), image.manifest.clone().into());
        }
        path(tag)
    }

    /// Puts an index under a name, with its images. Gives its digest.
    pub fn put_index(&self, images: &[(&Image, &str)], name: &str) -> String {
        let (repository, tag) = name.split_once(':').expect("a name with a tag");
        for (image, _) in images {
            self.put_image(image, name);
        }
        let index = image::index(images);
        let digest = sha256(&index);
        for reference in [tag, &digest] {
            self.put(&format!("/v2/{repository}/manifests/{reference}"), image::INDEX, index.clone().into());
        }
        digest
    }

    /// Puts anything at any path.
    pub fn put(&self, path: &str, media_type: &str, content: Content) {
        let digest = content.digest();
        let document = Document { media_type: media_type.to_owned(), digest, content };
        self.script().documents.insert(path.to_owned(), document);
    }

    /// What it does whenever a path is asked for.
    pub fn always(&self, path: &str, act: Act) {
        let mut script = self.script();
        script.gates.extend(act.gate());
        script.always.insert(path.to_owned(), act);
    }

    /// What it does the next time that a path is asked for; several calls make a queue.
    pub fn next(&self, path: &str, act: Act) {
        let mut script = self.script();
        script.gates.extend(act.gate());
        script.next.entry(path.to_owned()).or_default().push_back(act);
    }

    /// Asks for a user and a password from now on.
    pub fn require_basic(&self, user: &str, password: &str) {
        self.script().guard = Some(auth::Guard::Basic(basic(user, password)));
    }

    /// Asks for a token from now on, to be had at an address.
    pub fn require_bearer(&self, realm: &str, tokens: &Tokens) {
        self.script().guard = Some(auth::Guard::Bearer { realm: realm.to_owned(), tokens: tokens.clone() });
    }

    /// Gives out tokens at `/token`.
    pub fn issue(&self, tokens: &Tokens) {
        self.script().issuer = Some(tokens.clone());
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often a path was asked for with a method.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.seen().iter().filter(|seen| seen.method == method && seen.path == path).count()
    }

    /// Forgets all requests so far, and what it was to do with paths: for runs that last.
    pub fn forget(&self) {
        self.shared.seen.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.script().next.clear();
    }

    /// Waits until a path was asked for so often, by whatever method.
    pub fn wait_count(&self, path: &str, times: usize) {
        let seen = self.shared.seen.0.lock().unwrap_or_else(PoisonError::into_inner);
        let few = |seen: &mut Vec<Seen>| seen.iter().filter(|seen| seen.path == path).count() < times;
        let waited = self.shared.seen.1.wait_timeout_while(seen, HANG, few);
        let timeout = waited.unwrap_or_else(PoisonError::into_inner).1;
        assert!(!timeout.timed_out(), "{path} was not asked for {times} times within {HANG:?}");
    }

    /// Closes every connection, and refuses new ones.
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Whoever waits in `accept` wakes up, sees that it is over, and drops the listener.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.lock().unwrap_or_else(PoisonError::into_inner).take() {
            acceptor.join().expect("accepting does not panic");
        }
        for (_, stream) in self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for gate in self.script().gates.drain(..) {
            gate.open();
        }
    }

    /// Listens again at the same address.
    pub fn restart(&self) {
        self.shared.stopped.store(false, Ordering::SeqCst);
        let listener = TcpListener::bind(self.address).unwrap();
        *self.acceptor.lock().unwrap_or_else(PoisonError::into_inner) = Some(accept(listener, &self.shared));
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.shared.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop();
        if thread::panicking() {
            eprintln!("---- asked of the fake registry {} ----", self.address);
            for seen in self.seen().iter().take(200) {
                eprintln!("{} {} {}", seen.method, seen.path, seen.query);
            }
        }
    }
}

impl Document {
    fn new(media_type: &str, content: Vec<u8>) -> Self {
        Self { media_type: media_type.to_owned(), digest: sha256(&content), content: content.into() }
    }
}

/// Requests so far, to all fakes.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

/// Connections so far, to all fakes.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

fn accept(listener: TcpListener, shared: &Arc<Shared>) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        for stream in listener.incoming() {
            if shared.stopped.load(Ordering::SeqCst) {
                return;
            }
            let Ok(stream) = stream else { continue };
            let Ok(kept) = stream.try_clone() else { continue };
            let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
            shared.streams.lock().unwrap_or_else(PoisonError::into_inner).insert(number, kept);
            let shared = Arc::clone(&shared);
            // It ends with its connection, and `stop` ends every connection.
            thread::spawn(move || connection::serve(&stream, number, &shared));
        }
    })
}
