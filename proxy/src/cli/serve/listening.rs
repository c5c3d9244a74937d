//! The listeners of a running process, each of which can be replaced.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::systemd::Sockets;
use crate::config::{Config, ConfigError};
use crate::server::Server;

/// Both listeners.
pub(super) struct Listening {
    server: Arc<Server>,
    clients: Task,
    admin: Option<Task>,
    /// Which of them a service manager gave: these the configuration cannot move.
    given: [bool; 2],
}

struct Task {
    until: CancellationToken,
    ends: JoinHandle<()>,
}

/// Listeners that are bound, and accept nobody yet.
pub(super) struct Bound {
    clients: TcpListener,
    admin: Option<TcpListener>,
    given: [bool; 2],
}

/// Listeners that take the place of others.
pub(super) struct Moved {
    /// None: that one stays.
    clients: Option<TcpListener>,
    admin: Admin,
}

enum Admin {
    Stays,
    Moves(TcpListener),
    Ends,
}

impl Bound {
    /// Binds what was not given.
    pub async fn bind(config: &Config, sockets: Sockets) -> Result<Self, ConfigError> {
        let given = [sockets.clients.is_some(), sockets.admin.is_some()];
        let clients = match sockets.clients {
            Some(given) => given,
            None => bind(config, config.listen, "listen", false).await?,
        };
        let admin = match (sockets.admin, config.admin) {
            (Some(given), _) => Some(given),
            (None, Some(address)) => Some(bind(config, address, "admin", false).await?),
            (None, None) => None,
        };
        Ok(Self { clients, admin, given })
    }

    /// Begins to answer, and says where.
    pub fn serve(self, server: &Arc<Server>, config: &Config) -> Listening {
        say_clients(&self.clients, config);
        let clients = Task::clients(server, self.clients);
        let admin = self.admin.map(|admin| {
            say_admin(&admin);
            Task::admin(server, admin)
        });
        Listening { server: server.clone(), clients, admin, given: self.given }
    }
}

impl Listening {
    /// Binds the addresses that `after` has and `before` has not. Those of before go on.
    pub async fn prepare(&self, before: &Config, after: &Config) -> Result<Moved, ConfigError> {
        let [clients_given, admin_given] = self.given;
        let own = |address: SocketAddr| {
            let ours = [Some(before.listen), before.admin];
            address.port() != 0 && ours.iter().flatten().any(|ours| ours.port() == address.port())
        };
        let clients = match after.listen {
            address if address == before.listen || clients_given => None,
            address => Some(bind(after, address, "listen", own(address)).await?),
        };
        let admin = match after.admin {
            address if address == before.admin || admin_given => Admin::Stays,
            Some(address) => Admin::Moves(bind(after, address, "admin", own(address)).await?),
            None => Admin::Ends,
        };
        Ok(Moved { clients, admin })
    }

    /// The addresses that changed, and do not move, since a service manager gave the sockets.
    pub fn fixed(&self, before: &Config, after: &Config) -> Vec<&'static str> {
        let [clients_given, admin_given] = self.given;
        let mut fixed = Vec::new();
        if clients_given && before.listen != after.listen {
            fixed.push("listen");
        }
        if admin_given && before.admin != after.admin {
            fixed.push("admin");
        }
        fixed
    }

    /// Answers at the new addresses, and no more at the old ones. Requests there end as in a drain.
    pub fn replace(&mut self, moved: Moved, config: &Config) {
        if let Some(clients) = moved.clients {
            say_clients(&clients, config);
            let before = std::mem::replace(&mut self.clients, Task::clients(&self.server, clients));
            before.until.cancel();
        }
        let admin = match moved.admin {
            Admin::Stays => return,
            Admin::Moves(listener) => {
                say_admin(&listener);
                Some(Task::admin(&self.server, listener))
            }
            Admin::Ends => None,
        };
        if let Some(before) = std::mem::replace(&mut self.admin, admin) {
            before.until.cancel();
        }
    }

    /// Waits until neither accepts any more: when the server has drained.
    pub async fn ended(self) -> Result<(), tokio::task::JoinError> {
        self.clients.ends.await?;
        match self.admin {
            Some(admin) => admin.ends.await,
            None => Ok(()),
        }
    }
}

impl Task {
    fn clients(server: &Arc<Server>, listener: TcpListener) -> Self {
        let (server, until) = (server.clone(), server.listening());
        let ends = until.clone();
        Self { until, ends: tokio::spawn(async move { server.serve_clients(listener, ends).await }) }
    }

    fn admin(server: &Arc<Server>, listener: TcpListener) -> Self {
        let (server, until) = (server.clone(), server.listening_to_operators());
        let ends = until.clone();
        Self { until, ends: tokio::spawn(async move { server.serve_admin(listener, ends).await }) }
    }
}

fn say_clients(listener: &TcpListener, config: &Config) {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    say("listening", scheme, listener);
}

fn say_admin(listener: &TcpListener) {
    say("admin", "http", listener);
}

fn say(what: &str, scheme: &str, listener: &TcpListener) {
    if let Ok(address) = listener.local_addr() {
        use std::io::Write;
        // Who started us may have closed our standard output.
        let _ = writeln!(io::stdout(), "{what} on {scheme}://{address}");
    }
}

/// `own`: whether this process itself listens at that port.
async fn bind(config: &Config, address: SocketAddr, key: &str, own: bool) -> Result<TcpListener, ConfigError> {
    TcpListener::bind(address).await.map_err(|err| {
        let hint = match err.kind() {
            io::ErrorKind::AddrInUse if own => {
                "tidegate itself listens at that port; take another, or start it again for this change"
            }
            io::ErrorKind::AddrInUse => "another program listens there",
            io::ErrorKind::AddrNotAvailable => "this machine has no such address",
            io::ErrorKind::PermissionDenied => "this user may not take that port",
            _ => "the system refuses it",
        };
        config.refused(key, &format!("cannot listen on {address}: {hint} ({err}); change `{key}`"))
    })
}
