//! Keeps the configuration in effect equal to its file: a good one takes effect whole, a bad one changes nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

use super::listening::Listening;
use super::systemd::Manager;
use crate::cli::log::Log;
use crate::config::{Config, ConfigError, Read, Watch};
use crate::metrics::{Listener, Outcome, unix_seconds};
use crate::pull::{Core, Live};
use crate::server::Server;

/// How often a file that was refused is tried again: what it names may have been mended.
const RETRY: Duration = Duration::from_secs(2);
/// How often it is looked whether a certificate ends soon.
const CERTIFICATE_LOOK: Duration = Duration::from_hours(12);
/// When an operator is told that a certificate ends.
const CERTIFICATE_WARN: Duration = Duration::from_hours(14 * 24);

/// What a configuration is put into effect with.
pub(super) struct Reload {
    pub core: Arc<Core>,
    pub server: Arc<Server>,
    pub log: Arc<Log>,
    pub manager: Arc<Manager>,
    pub listening: Listening,
    /// The file that the configuration was read from; none: there was none.
    file: Option<PathBuf>,
    generation: i64,
    /// Why the file as it is was refused; none: it was not.
    refused: Option<String>,
}

impl Reload {
    pub fn new(
        core: &Arc<Core>,
        server: &Arc<Server>,
        log: &Arc<Log>,
        manager: &Arc<Manager>,
        listening: Listening,
    ) -> Self {
        let config = core.live().config.clone();
        let reload = Self {
            core: core.clone(),
            server: server.clone(),
            log: log.clone(),
            manager: manager.clone(),
            listening,
            file: config.path(),
            generation: 1,
            refused: None,
        };
        reload.measure(&config);
        reload
    }

    /// Follows the file, and the signal to read it again, until `stop`. Gives the listeners back.
    pub async fn run(mut self, mut hangup: Signal, stop: CancellationToken) -> Listening {
        let files = self.files();
        let watch = tokio::task::spawn_blocking(|| Watch::new(files)).await;
        let Ok(mut watch) = watch else { return self.listening };
        let mut certificate = tokio::time::interval(CERTIFICATE_LOOK);
        loop {
            let retry = async {
                match self.refused {
                    Some(_) => tokio::time::sleep(RETRY).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return self.listening,
                _ = certificate.tick() => self.look_at_certificate(),
                () = watch.changed() => {
                    self.refused = None;
                    self.load().await;
                }
                _ = hangup.recv() => {
                    self.refused = None;
                    self.manager.reloading();
                    self.load().await;
                    self.manager.ready(&self.status());
                }
                () = retry => self.load().await,
            }
            let files = self.files();
            let followed = tokio::task::spawn_blocking(move || {
                watch.follow(files);
                watch
            });
            match followed.await {
                Ok(followed) => watch = followed,
                Err(_) => return self.listening,
            }
        }
    }

    fn files(&self) -> Vec<Read> {
        self.core.live().config.files()
    }

    fn status(&self) -> String {
        format!("configuration {} in effect", self.generation)
    }

    async fn load(&mut self) {
        let file = self.file.clone();
        let read = tokio::task::spawn_blocking(move || Config::open(file.as_deref())).await;
        let done = match read {
            // A file that is cut before it is written anew is no wish for the defaults.
            Ok(Ok(config)) if config.blank => {
                Err(config.nothing("is empty: what was in effect stays; to run by the defaults, start anew"))
            }
            Ok(Ok(config)) => self.apply(config).await,
            Ok(Err(err)) => Err(err),
            // A panic, which was reported: the file is taken for one that cannot be read.
            Err(_) => return,
        };
        match done {
            Ok(()) => {
                self.refused = None;
                self.count("ok");
            }
            Err(err) => self.refuse(&err),
        }
    }

    /// Reports why a file is not in effect, once.
    fn refuse(&mut self, err: &ConfigError) {
        let reason = err.to_string();
        if self.refused.as_ref() == Some(&reason) {
            return;
        }
        self.count("failed");
        let file = self.file.as_deref().map(Path::display).map(|file| file.to_string());
        tracing::error!(file, reason, in_effect = "the configuration before", "configuration not loaded");
        self.refused = Some(reason);
    }

    /// Puts a configuration into effect. All that can fail is done first.
    async fn apply(&mut self, mut config: Config) -> Result<(), ConfigError> {
        let before = self.core.live().config.clone();
        let moved = self.listening.prepare(&before, &config).await?;
        let mut fixed = config.keep_fixed(&before);
        fixed.extend(self.listening.fixed(&before, &config));
        let config = Arc::new(config);
        // What is known of the registries goes on: logins, connections, who keeps failing.
        let upstreams = self.core.live().upstreams.renewed(config.clone());
        self.core.cache.set_limits(&config.cache);
        self.log.set(&config.log);
        self.core.replace(Live { config: config.clone(), upstreams });
        self.server.show(&config);
        self.listening.replace(moved, &config);
        self.generation += 1;
        self.measure(&config);
        self.look_at_certificate();
        if !fixed.is_empty() {
            let keys = fixed.join(", ");
            tracing::warn!(keys, "a change of these keys takes effect at the next start; all else is in effect");
        }
        tracing::info!(generation = self.generation, file = config.source, "configuration in effect");
        Ok(())
    }

    fn count(&self, outcome: &'static str) {
        self.core.metrics.config_loads.get_or_create(&Outcome { outcome }).inc();
    }

    fn measure(&self, config: &Config) {
        let metrics = &self.core.metrics;
        metrics.config_generation.set(self.generation);
        metrics.config_loaded_seconds.set(unix_seconds(SystemTime::now()));
        metrics.certificate_expires_seconds.clear();
        if let Some(first) = config.certificates().map(|tls| tls.expires).min() {
            let clients = Listener { listener: "clients" };
            metrics.certificate_expires_seconds.get_or_create(&clients).set(unix_seconds(first));
        }
        if let Some(intercept) = &config.intercept {
            let authority = Listener { listener: "intercept" };
            metrics
                .certificate_expires_seconds
                .get_or_create(&authority)
                .set(unix_seconds(intercept.authority.expires));
        }
    }

    fn look_at_certificate(&self) {
        let live = self.core.live();
        for (file, end) in live.config.ends() {
            let certificate = file.display().to_string();
            match end.duration_since(SystemTime::now()) {
                Err(_) => tracing::warn!(certificate, "the certificate has ended: clients refuse it"),
                Ok(left) if left < CERTIFICATE_WARN => {
                    let days = left.as_secs() / (24 * 60 * 60);
                    tracing::warn!(certificate, days, "the certificate ends soon: put a new one in its place");
                }
                Ok(_) => {}
            }
        }
    }
}
