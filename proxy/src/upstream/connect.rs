//! Connections to upstreams: one builder makes every client, so that its rules cannot differ between them.
//!
//! Each host has a client of its own, with the trust and the way that are its own; the files that these are made of
//! are looked at again when the client is used, once a second at the most.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{HeaderValue, PROXY_AUTHORIZATION};
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use url::{Host, Url};

use super::dial::{Connector, NoConnection, Proxy, Used, explain, root, tls_error};
use super::egress::{self, Environment};
use super::names::{Names, NotPublic, Resolver};
use super::trust::{Print, Sources, System, folders};
use crate::config::{Config, Egress, Reach, Trust, Way, is_public};
use crate::oci::{Failure, Registry};

/// How long an idle connection is kept; registries close theirs after a minute or more.
const IDLE: Duration = Duration::from_secs(30);
/// Idle connections kept for one host.
const IDLE_PER_HOST: usize = 16;
/// Largest chunk of a body that hyper hands on at once, which bounds what a queue of them holds. Units: bytes.
const CHUNK_MAX: usize = 64 << 10;
/// Hosts that have a client at once; past it those are dropped that were not used lately.
const HOSTS_MAX: usize = 512;
/// How often the files of a host's trust are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A client for small requests.
type Http = Client<Connector, Full<Bytes>>;

/// All clients of this process.
pub(super) struct Clients {
    system: Arc<System>,
    names: Arc<Names>,
    environment: Environment,
    settings: Settings,
    hosts: Mutex<HashMap<Target, Arc<tokio::sync::Mutex<Option<Made>>>>>,
}

/// What of the configuration concerns every client.
#[derive(Clone, PartialEq, Eq)]
struct Settings {
    certs_dirs: Vec<PathBuf>,
    egress: Egress,
    connect: Duration,
}

/// A host, and all that decides how it is reached.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Target {
    scheme: String,
    host: String,
    port: u16,
    /// Whether the operator named it; else only public addresses are dialled.
    named: bool,
    own: bool,
    way: Option<Way>,
    sources: Sources,
}

#[derive(Clone)]
struct Made {
    client: Arc<HostClient>,
    print: Print,
    /// A state of the files that cannot be used: it is told once.
    refused: Option<Print>,
    looked: Instant,
}

/// The client of one host.
pub(super) struct HostClient {
    http: Http,
    /// For a proxy that reads the requests.
    authorization: Option<HeaderValue>,
}

impl HostClient {
    /// Sends a request, and waits for the head of its answer.
    pub async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure> {
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        let first = self.http.request(request.clone()).await;
        let answer = match first {
            // Once more, on another connection; all that is sent here changes nothing there.
            Err(err) if is_stale(&err) => self.http.request(request).await,
            first => first,
        };
        let answer = answer.map_err(|err| failure(&err))?;
        if let Some(used) = answer.extensions().get::<Used>() {
            used.note();
        }
        Ok(answer)
    }
}

impl Clients {
    /// No client yet.
    pub fn new(config: &Config) -> Self {
        let settings = Settings::of(config);
        Self {
            system: Arc::new(System::load()),
            names: Arc::new(Names::new(settings.connect)),
            environment: Environment::read(),
            settings,
            hosts: Mutex::default(),
        }
    }

    /// Whether another configuration would make the same clients of the same targets.
    pub fn serves(&self, config: &Config) -> bool {
        self.settings == Settings::of(config)
    }

    /// The client for an address that a registry, reached so, is asked at or leads to.
    pub async fn client(&self, registry: &Registry, reach: &Reach, url: &Url) -> Result<Arc<HostClient>, Failure> {
        let target = self.target(registry, reach, url);
        if !target.named {
            refuse_private(url)?;
        }
        let slot = self.slot(&target);
        let mut slot = slot.lock().await;
        if let Some(made) = slot.as_ref()
            && made.looked.elapsed() < LOOK_AGAIN
        {
            return Ok(made.client.clone());
        }
        let (system, settings, environment) = (self.system.clone(), self.settings.clone(), self.environment.clone());
        let names = self.names.clone();
        // What there is stays until there is another, also when nobody waits for that any more.
        let old = slot.clone();
        let host = url.clone();
        let made = tokio::task::spawn_blocking(move || {
            let maker = Maker { system, settings, environment, names, target, url: host };
            maker.renew(old)
        });
        match made.await {
            Ok(Ok(made)) => Ok(slot.insert(made).client.clone()),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::Other("the program ends".to_owned())),
        }
    }

    /// What makes connections to a host that is no registry's. `named`: whether the operator named it.
    pub async fn connector(&self, url: &Url, named: bool) -> Result<Connector, Failure> {
        if !named {
            refuse_private(url)?;
        }
        let target = Target {
            scheme: url.scheme().to_owned(),
            host: url.host_str().unwrap_or_default().to_owned(),
            port: url.port_or_known_default().unwrap_or_default(),
            named,
            own: false,
            way: None,
            sources: Sources { trust: Trust::default(), folders: Vec::new() },
        };
        let (system, settings, environment) = (self.system.clone(), self.settings.clone(), self.environment.clone());
        let maker = Maker { system, settings, environment, names: self.names.clone(), target, url: url.clone() };
        // The password of a proxy is read from its file.
        let made = tokio::task::spawn_blocking(move || maker.connector(&maker.target.sources.print(None)));
        match made.await {
            Ok(made) => made.map_err(Failure::Connect),
            Err(_) => Err(Failure::Other("the program ends".to_owned())),
        }
    }

    fn target(&self, registry: &Registry, reach: &Reach, url: &Url) -> Target {
        let host = url.host_str().unwrap_or_default().to_owned();
        let port = url.port_or_known_default().unwrap_or_default();
        let own_host = url.host() == reach.url.host();
        let own = url.origin() == reach.url.origin();
        let (mut trust, mut dirs) = (Trust::default(), Vec::new());
        if url.scheme() == "https" {
            dirs = folders(&self.settings.certs_dirs, &host, port);
            if own_host {
                trust = reach.trust.clone();
            }
            if own {
                // Also under the name that people know it by.
                let known = registry.as_str();
                dirs.extend(
                    self.settings
                        .certs_dirs
                        .iter()
                        .map(|dir| dir.join(known))
                        .filter(|dir| !dirs.contains(dir))
                        .collect::<Vec<_>>(),
                );
            }
        }
        let named = (reach.listed && own_host) || reach.allows(url);
        let sources = Sources { trust, folders: dirs };
        Target { scheme: url.scheme().to_owned(), host, port, named, own, way: reach.way.clone(), sources }
    }

    fn slot(&self, target: &Target) -> Arc<tokio::sync::Mutex<Option<Made>>> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= HOSTS_MAX && !hosts.contains_key(target) {
            hosts.retain(|_, slot| {
                slot.try_lock().map_or(true, |made| made.as_ref().is_some_and(|made| made.looked.elapsed() < IDLE))
            });
            if hosts.len() >= HOSTS_MAX {
                hosts.clear();
            }
        }
        hosts.entry(target.clone()).or_default().clone()
    }
}

impl Settings {
    fn of(config: &Config) -> Self {
        Self {
            certs_dirs: config.certs_dirs.clone(),
            egress: config.egress.clone(),
            connect: config.limits.upstream_connect,
        }
    }
}

/// Refuses an address that is private by itself; what a name resolves to is looked at when it is dialled.
fn refuse_private(url: &Url) -> Result<(), Failure> {
    let address = match url.host() {
        Some(Host::Ipv4(address)) => address.into(),
        Some(Host::Ipv6(address)) => address.into(),
        _ => return Ok(()),
    };
    if is_public(address) { Ok(()) } else { Err(Failure::Other(NotPublic(address.to_string()).to_string())) }
}

/// Makes a client, on a thread that may block.
struct Maker {
    system: Arc<System>,
    settings: Settings,
    environment: Environment,
    names: Arc<Names>,
    target: Target,
    url: Url,
}

impl Maker {
    /// The client that there was, where nothing has changed; else another. What is wrong now leaves the old one.
    fn renew(self, old: Option<Made>) -> Result<Made, Failure> {
        let secret = egress::secret_file(self.target.way.as_ref(), &self.settings.egress);
        let print = self.target.sources.print(secret);
        let looked = Instant::now();
        match old {
            Some(old) if old.print == print || old.refused.as_ref() == Some(&print) => Ok(Made { looked, ..old }),
            Some(old) => match self.make(&print) {
                Ok(client) => {
                    tracing::info!(host = self.target.host, port = self.target.port, "trust in a host was read again");
                    Ok(Made { client, print, refused: None, looked })
                }
                Err(reason) => {
                    tracing::error!(
                        host = self.target.host,
                        port = self.target.port,
                        reason,
                        in_effect = "what held before",
                        "trust in a host cannot be read"
                    );
                    Ok(Made { refused: Some(print), looked, ..old })
                }
            },
            None => {
                let client = self.make(&print).map_err(Failure::Tls)?;
                Ok(Made { client, print, refused: None, looked })
            }
        }
    }

    fn make(&self, print: &Print) -> Result<Arc<HostClient>, String> {
        let connector = self.connector(print)?;
        let reads = self.target.scheme == "http";
        let proxy = connector.proxy.as_ref();
        let authorization = proxy.and_then(|proxy| proxy.authorization.clone()).filter(|_| reads);
        let http = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .http1_max_buf_size(CHUNK_MAX)
            .build(connector);
        Ok(Arc::new(HostClient { http, authorization }))
    }

    fn connector(&self, print: &Print) -> Result<Connector, String> {
        let Self { target, settings, .. } = self;
        let found = egress::proxy(&self.url, target.own, target.way.as_ref(), &settings.egress, &self.environment)?;
        if found.is_some() && !target.named && egress::is_near(&self.url) {
            return Err(NotPublic(format!("{} is a name of this network, which", target.host)).to_string());
        }
        let proxy = match &found {
            None => None,
            Some(found) => Some(Proxy {
                uri: found.uri().clone(),
                authorization: found.basic_auth().cloned(),
                tls: self.proxy_tls(found.uri())?,
            }),
        };
        // The operator named the proxy; what is behind it, the proxy resolves.
        let public_only = proxy.is_none() && !target.named;
        let resolver = Resolver { names: self.names.clone(), public_only };
        let mut tcp = HttpConnector::new_with_resolver(resolver);
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(settings.connect));
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_mins(1)));
        let tls = self.system.config(&target.sources, print)?;
        Ok(Connector { tcp, tls, proxy, limit: settings.connect })
    }

    /// What a proxy that speaks TLS is believed by: its own folder, and the system.
    fn proxy_tls(&self, proxy: &hyper::Uri) -> Result<Arc<rustls::ClientConfig>, String> {
        let port = proxy.port_u16().unwrap_or(443);
        let folders = folders(&self.settings.certs_dirs, proxy.host().unwrap_or_default(), port);
        let sources = Sources { trust: Trust::default(), folders };
        self.system.config(&sources, &sources.print(None))
    }
}

/// Whether a connection that was kept from an earlier request turned out to be closed.
fn is_stale(err: &hyper_util::client::legacy::Error) -> bool {
    let mut extensions = hyper::http::Extensions::new();
    if let Some(connected) = err.connect_info() {
        connected.get_extras(&mut extensions);
    }
    extensions.get::<Used>().is_some_and(Used::is_noted)
}

/// What went wrong when no answer came.
fn failure(err: &hyper_util::client::legacy::Error) -> Failure {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(err);
    while let Some(cause) = source {
        match cause.downcast_ref() {
            Some(NoConnection::Connect(reason)) => return Failure::Connect(reason.clone()),
            Some(NoConnection::Tls(reason)) => return Failure::Tls(reason.clone()),
            None => {}
        }
        let io = cause.downcast_ref::<io::Error>();
        if let Some(tls) = io.and_then(tls_error).or_else(|| cause.downcast_ref()) {
            return Failure::Tls(explain(tls));
        }
        if io.is_some_and(|err| err.kind() == io::ErrorKind::TimedOut) {
            return Failure::Timeout;
        }
        let gone = |err: &io::Error| {
            use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
            matches!(err.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
        };
        let cut = |err: &hyper::Error| err.is_incomplete_message();
        if !err.is_connect() && (io.is_some_and(gone) || cause.downcast_ref().is_some_and(cut)) {
            return Failure::Connect("it was closed before an answer".to_owned());
        }
        source = cause.source();
    }
    let text = root(err).to_string();
    if err.is_connect() { Failure::Connect(text) } else { Failure::Other(format!("no answer: {text}")) }
}

/// Installs the process's cryptography; before the first client is made.
pub(super) fn install_cryptography() {
    // An error says that it was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
