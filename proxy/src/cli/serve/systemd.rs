//! What a service manager is told, and the sockets that it gives. Without one nothing of this happens.
//!
//! Source: `sd_notify(3)`, `sd_listen_fds(3)`.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use anyhow::{Context, bail};
use listenfd::ListenFd;
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::net::TcpListener;

/// Where a service manager listens.
pub(super) struct Manager {
    /// None: there is no manager.
    socket: Option<(UnixDatagram, SocketAddr)>,
}

impl Manager {
    /// The manager that the environment names.
    pub fn find() -> Self {
        let named = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let socket = named.and_then(|name| {
            let address = match name.as_bytes().strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name),
                None => SocketAddr::from_pathname(&name),
            };
            let socket = UnixDatagram::unbound().and_then(|socket| {
                // A manager that does not read must not hold us up.
                socket.set_nonblocking(true)?;
                Ok((socket, address?))
            });
            let report = |err: &std::io::Error| tracing::warn!(error = err.to_string(), "NOTIFY_SOCKET cannot be used");
            socket.inspect_err(report).ok()
        });
        Self { socket }
    }

    /// It serves, and on what.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={}", status.replace('\n', " ")));
    }

    /// It reads its configuration again; `ready` tells the end of it.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now_usec = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={now_usec}"));
    }

    /// It drains.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=draining");
    }

    /// It lives.
    pub fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    /// How often the manager wants to hear that this process lives; none: it does not.
    pub fn wants_to_hear(&self) -> Option<Duration> {
        self.socket.as_ref()?;
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        if number("WATCHDOG_PID").is_some_and(|pid| pid != u64::from(std::process::id())) {
            return None;
        }
        // Twice in the time that it allows.
        number("WATCHDOG_USEC").filter(|usec| *usec > 1).map(|usec| Duration::from_micros(usec / 2))
    }

    fn tell(&self, state: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(err) = socket.send_to_addr(state.as_bytes(), address)
        {
            tracing::warn!(error = err.to_string(), "the service manager cannot be told");
        }
    }
}

/// The sockets that a service manager gave.
#[derive(Default)]
pub(super) struct Sockets {
    /// Where clients connect.
    pub clients: Option<TcpListener>,
    /// Where operators connect.
    pub admin: Option<TcpListener>,
}

impl Sockets {
    /// Takes what was given: one that is named `admin` is for operators, and else the first is for clients, the second
    /// for operators.
    ///
    /// # Errors
    /// When there are more, or others than listening TCP sockets.
    pub fn take() -> anyhow::Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names: Vec<&str> = names.split(':').collect();
        let mut given = ListenFd::from_env();
        let mut sockets = Self::default();
        for at in 0..given.len() {
            let name = names.get(at).copied().unwrap_or_default();
            let what = || format!("socket {at} (`{}`) of the service manager", name.escape_debug());
            let listener = given.take_tcp_listener(at).with_context(|| format!("{} is no TCP socket", what()))?;
            let Some(listener) = listener else { continue };
            // Plugins are compiled in child processes, which have no business with it.
            fcntl_setfd(&listener, FdFlags::CLOEXEC).with_context(what)?;
            listener.set_nonblocking(true).with_context(what)?;
            let listener = TcpListener::from_std(listener).with_context(what)?;
            let place = match (name.contains("admin"), &sockets) {
                (true, Self { admin: None, .. }) | (false, Self { clients: Some(_), admin: None }) => {
                    &mut sockets.admin
                }
                (false, Self { clients: None, .. }) => &mut sockets.clients,
                _ => bail!("{} is one too many: one is for clients, one for the admin listener", what()),
            };
            *place = Some(listener);
        }
        Ok(sockets)
    }
}
