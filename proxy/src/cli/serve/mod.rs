//! `tidegate serve`: puts the parts together and runs them until a signal.

mod listening;
mod reload;
mod systemd;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::log::Log;
use super::{EXIT_BAD_INPUT, OWN_PROGRAM};
use crate::cache::Cache;

use crate::config::{Config, Decisions};
use crate::metrics::{Metrics, Outcome};
use crate::plugin::Plugins;
use crate::pull::{Core, Live};
use crate::record::{self, Journal};
use crate::server::{Server, report_panics};
use crate::trace::{Counted, Traces};
use crate::upstream::Upstreams;
use listening::Bound;
use reload::Reload;
use systemd::{Manager, Sockets};

/// What the end may take once no client is left: fills that have all their bytes, plugins that are being compiled.
const TIDY: Duration = Duration::from_secs(5);
/// How long lines of the decision record wait for plugins in shadow mode then: a part of that.
const SHADOWS: Duration = Duration::from_secs(3);

/// The signals that end the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

pub(super) async fn serve(config: Arc<Config>, log: Log) -> anyhow::Result<ExitCode> {
    let mut signals =
        Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
    let hangup = signal(SignalKind::hangup())?;
    let metrics = Arc::new(Metrics::start());
    report_panics(metrics.clone());
    let manager = Arc::new(Manager::find());
    let descriptors = raise_descriptor_limit();
    // A file over the limit of its size is to be an error of the write, not the end of the process: that a signal is
    // listened for suffices, and holds for as long as the process lives.
    let _ = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
    let journal = Arc::new(journal(&config, &metrics)?);
    let cache = Cache::open(&config.cache, metrics.clone())?;
    // The addresses before the plugins: a second process must not compile for seconds to find that it is one too many.
    let bound = Bound::bind(&config, Sockets::take()?).await?;
    let stop = CancellationToken::new();
    let plugins = Plugins::watch(&config.plugins, PathBuf::from(OWN_PROGRAM), &metrics, stop.clone());
    let (plugins, watching) = tokio::select! {
        plugins = plugins => match plugins {
            Ok(plugins) => plugins,
            Err(err) => {
                eprintln!("tidegate: {err}");
                return Ok(ExitCode::from(EXIT_BAD_INPUT));
            }
        },
        () = signals.recv() => {
            tracing::info!("ended before it served");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let mut watching = watching.map(tokio::spawn);
    let (traces, delivery) = Traces::start(config.traces.endpoint.clone(), config.traces.ratio, counted(&metrics));
    let upstreams = Upstreams::new(config.clone(), metrics.clone());
    let core = Arc::new(Core::new(Live { config: config.clone(), upstreams }, plugins, cache, metrics));
    let server = Arc::new(Server::new(core.clone(), traces, journal.clone(), descriptors));
    let listening = bound.serve(&server, &config);
    let reload = Reload::new(&core, &server, &Arc::new(log), &manager, listening);
    let mut reloading = tokio::spawn(reload.run(hangup, stop.clone()));
    let alive = tokio::spawn(tell_alive(manager.clone(), stop.clone()));
    say_what_serves(&config);
    manager.ready("serving");

    let lost = tokio::select! {
        () = signals.recv() => None,
        () = ended(&mut watching) => Some("the plugin folder"),
        _ = &mut reloading => Some("the configuration"),
    };
    if let Some(lost) = lost {
        // Without it, a change of the policy would change nothing, and nobody would know.
        tracing::error!("{lost} is watched no more: the process ends, so that it is started again");
    }
    manager.stopping();
    stop.cancel();
    let listening = if reloading.is_finished() { None } else { reloading.await.ok() };
    let grace = core.live().config.limits.drain;
    tracing::info!(grace_secs = grace.as_secs(), "draining: a second signal ends at once");
    server.drain(grace, signals.recv()).await;
    if let Some(listening) = listening {
        listening.ended().await?;
    }
    if tokio::time::timeout(TIDY, tidy(&core, journal, watching, alive)).await.is_err() {
        tracing::warn!("what still runs in the background is left as it is: the next start sweeps it");
    }
    if let Some(delivery) = delivery {
        delivery.stop().await;
    }
    tracing::info!("ended");
    Ok(if lost.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Begins the decision record.
fn journal(config: &Config, metrics: &Metrics) -> anyhow::Result<Journal> {
    let Decisions { file, keep } = config.decisions.clone();
    let lines = |outcome| metrics.decision_lines.get_or_create_owned(&Outcome { outcome });
    let counted = record::Counted { written: lines("written"), dropped: lines("dropped"), failed: lines("failed") };
    let name = file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
    Journal::start(file, keep, counted).with_context(|| {
        format!("decisions.file: {name} cannot be written; its folder must be there, and this user's to write to")
    })
}

fn counted(metrics: &Metrics) -> Counted {
    let counter = |outcome| metrics.trace_spans.get_or_create_owned(&Outcome { outcome });
    Counted { delivered: counter("delivered"), dropped: counter("dropped"), failed: counter("failed") }
}

/// Ends what is left once no client is.
async fn tidy(core: &Arc<Core>, journal: Arc<Journal>, watching: Option<JoinHandle<()>>, alive: JoinHandle<()>) {
    tokio::join!(core.stop(), journal.settle(SHADOWS));
    for task in watching.into_iter().chain([alive]) {
        // A panic was reported when it came.
        let _ = task.await;
    }
    let flushed = core.clone();
    let _ = tokio::task::spawn_blocking(move || {
        journal.close();
        flushed.plugins.flush();
    })
    .await;
}

/// Waits until a task ends that never should.
async fn ended(task: &mut Option<JoinHandle<()>>) {
    match task {
        Some(running) => {
            let _ = running.await;
            *task = None;
        }
        None => std::future::pending().await,
    }
}

/// Tells the service manager that the process lives, from where requests are answered too.
async fn tell_alive(manager: Arc<Manager>, stop: CancellationToken) {
    let Some(every) = manager.wants_to_hear() else { return };
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        manager.alive();
    }
}

fn say_what_serves(config: &Config) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        config = config.source,
        cache = %config.cache.dir.display(),
        plugins = config.plugins.dir.as_ref().map(|dir| dir.display().to_string()),
        "serving"
    );
    if config.plugins.dir.is_none() {
        tracing::warn!("there is no plugin folder: everything may be pulled; `[plugins] dir` names one");
    }
}

/// Each client, each upstream and each open blob takes a descriptor: the limit of most shells, 1024, is too few. Gives
/// the limit.
fn raise_descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    if let Err(err) = raised {
        tracing::warn!(error = err.to_string(), "the limit of open files cannot be raised");
    }
    getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

impl Signals {
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
