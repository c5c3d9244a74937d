//! `tidegate serve`: puts the parts together and runs them until a signal.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{EXIT_BAD_INPUT, OWN_PROGRAM};
use crate::cache::Cache;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::plugin::Plugins;
use crate::pull::{Core, Live};
use crate::server::Server;
use crate::upstream::Upstreams;

/// How long bodies may finish after the first signal.
const GRACE: Duration = Duration::from_secs(30);

pub(super) async fn serve(config: Arc<Config>) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    raise_descriptor_limit();
    // A file over the limit of its size is to be an error of the write, not the end of the process: that a signal is
    // listened for suffices, and holds for as long as the process lives.
    let _ = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
    let metrics = Arc::new(Metrics::default());
    let cache = Cache::open(&config.cache, metrics.clone())?;
    // The addresses before the plugins: a second process must not compile for seconds to find that it is one too many.
    let clients = listen(config.listen, "listen").await?;
    let admin = match config.admin {
        Some(address) => Some(listen(address, "admin").await?),
        None => None,
    };
    let stop = CancellationToken::new();
    let (plugins, watching) =
        match Plugins::watch(&config.plugins, PathBuf::from(OWN_PROGRAM), &metrics, stop.clone()).await {
            Ok(plugins) => plugins,
            Err(err) => {
                eprintln!("tidegate: {err}");
                return Ok(ExitCode::from(EXIT_BAD_INPUT));
            }
        };
    let watching = watching.map(tokio::spawn);
    let upstreams = Upstreams::new(config.clone(), metrics.clone());
    let core = Arc::new(Core::new(Live { config: config.clone(), upstreams }, plugins, cache, metrics));
    let server = Arc::new(Server::new(core.clone()));

    println!("listening on http://{}", clients.local_addr()?);
    let answering = server.clone();
    let clients = tokio::spawn(async move { answering.serve_clients(clients).await });
    let admin = match admin {
        Some(admin) => {
            println!("admin on http://{}", admin.local_addr()?);
            let answering = server.clone();
            Some(tokio::spawn(async move { answering.serve_admin(admin).await }))
        }
        None => None,
    };
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

    either(&mut terminate, &mut interrupt).await;
    tracing::info!(grace_secs = GRACE.as_secs(), "draining: a second signal ends at once");
    server.drain(GRACE, either(&mut terminate, &mut interrupt)).await;
    clients.await?;
    if let Some(admin) = admin {
        admin.await?;
    }
    core.stop().await;
    stop.cancel();
    if let Some(watching) = watching {
        watching.await?;
    }
    let flushed = core.clone();
    tokio::task::spawn_blocking(move || flushed.plugins.flush()).await?;
    tracing::info!("ended");
    Ok(ExitCode::SUCCESS)
}

/// Each client, each upstream and each open blob takes a descriptor: the limit of most shells, 1024, is too few.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    if let Err(err) = raised {
        tracing::warn!(error = %err, "the limit of open files cannot be raised");
    }
}

async fn listen(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|err| {
        let hint = match err.kind() {
            io::ErrorKind::AddrInUse => "another program listens there",
            io::ErrorKind::AddrNotAvailable => "this machine has no such address",
            io::ErrorKind::PermissionDenied => "this user may not take that port",
            _ => "the system refuses it",
        };
        anyhow::Error::new(err).context(format!("cannot listen on {address}: {hint}; change `{key}` in tidegate.toml"))
    })
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
