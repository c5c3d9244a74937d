//! The servers side by side, each on loopback, with one worker and a folder of its own, tuned as its makers advise: sendfile
//! on, access logs off, files kept open, connections kept.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidegate_tests::HANG;
use tidegate_tests::authority::Pair;
use tidegate_tests::process::{Process, offline};

use crate::reader::Server;
use crate::tidegate::Tidegate;

/// Runs until it is dropped.
#[derive(Debug)]
pub struct Peer {
    pub name: &'static str,
    pub server: Server,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Tidegate(Box<Tidegate>),
    // The process is dropped before the folder.
    Process(Process, TempDir),
}

/// Why a peer is not there.
#[derive(Debug)]
pub struct Missing(pub String);

impl Peer {
    /// The process, whose descendants belong to it.
    pub fn pid(&self) -> u32 {
        match &self.held {
            Held::Tidegate(tidegate) => tidegate.proxy.process().id(),
            Held::Process(process, _) => process.id(),
        }
    }

    /// Folder of its files.
    pub fn folder(&self) -> &Path {
        match &self.held {
            Held::Tidegate(_) => unreachable!("a site has its own"),
            Held::Process(_, folder) => folder.path(),
        }
    }
}

impl Tidegate {
    /// As one of the peers, under a name.
    pub fn named(self, name: &'static str) -> Peer {
        let server = Server { authority: self.proxy.authority(), tls: self.tls };
        Peer { name, server, held: Held::Tidegate(Box::new(self)) }
    }
}

/// nginx that serves files of a tree, by sendfile; `more`: lines within the server.
pub fn nginx_static(name: &'static str, root: &Path, tls: Option<&Pair>, more: &str) -> Result<Peer, Missing> {
    let server = format!(
        "root {};\n location /v2/library/app/manifests/ {{ default_type {}; }}\n location = /v2/ {{ return 200; }}\n{more}",
        root.display(),
        crate::load::ACCEPT,
    );
    nginx(name, "127.0.0.1", "", &server, tls)
}

/// The same at an address of its own, for registry clients: it knows the digest of the one image there.
pub fn nginx_registry(name: &'static str, host: &str, root: &Path, digest: &str) -> Result<Peer, Missing> {
    let server = format!(
        "root {};\n location ~ /manifests/ {{ default_type {}; add_header Docker-Content-Digest {digest}; }}\n\
         location = /v2/ {{ return 200; }}\n",
        root.display(),
        crate::load::ACCEPT,
    );
    nginx(name, host, "", &server, None)
}

/// nginx that keeps what a server behind it answers. `more`: further lines about it.
pub fn nginx_cache(name: &'static str, upstream: &Server, more: &str) -> Result<Peer, Missing> {
    let http = format!(
        "proxy_cache_path FOLDER/cache levels=1:2 keys_zone=kept:64m max_size=60g inactive=24h use_temp_path=off;\n\
         upstream behind {{ server {}; keepalive 64; }}",
        upstream.authority
    );
    let server = "location / { proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         proxy_cache kept; proxy_cache_key $uri; proxy_cache_valid 200 24h; proxy_cache_lock on;\n\
         proxy_cache_lock_age 10m; proxy_cache_lock_timeout 10m; proxy_buffers 32 64k; proxy_buffer_size 64k;\n\
         proxy_busy_buffers_size 256k; }";
    nginx(name, "127.0.0.1", &http, &format!("{more}\n{server}"), None)
}

fn nginx(name: &'static str, host: &str, http: &str, server: &str, tls: Option<&Pair>) -> Result<Peer, Missing> {
    let program = find("nginx", "nginx-light")?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (own, port) = (folder.path().display().to_string(), free_port());
    let (listen, certificate) = tls.map_or((String::new(), String::new()), |pair| {
        let kernel = fs::read_to_string("/proc/sys/net/ipv4/tcp_available_ulp").unwrap_or_default();
        let kernel = if kernel.contains("tls") { "ssl_conf_command Options KTLS;" } else { "" };
        let (cert, key) = (pair.cert.display(), pair.key.display());
        (
            " ssl".to_owned(),
            format!("ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.3; {kernel}\n"),
        )
    });
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {own}/{kind};\n"))
        .concat();
    let config = format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {own}/pid;\nerror_log stderr crit;\n\
         events {{ worker_connections 8192; multi_accept on; }}\n\
         http {{\n{temporary}access_log off;\nsendfile on;\ntcp_nopush on;\ntcp_nodelay on;\nkeepalive_timeout 1h;\n\
         keepalive_time 24h;\nkeepalive_requests 1000000000;\nreset_timedout_connection on;\n\
         open_file_cache max=20000 inactive=24h;\nopen_file_cache_valid 24h;\nopen_file_cache_min_uses 1;\n\
         default_type application/octet-stream;\n{}\n\
         server {{ listen {host}:{port}{listen} backlog=4096;\n{certificate}{server}\n}}\n}}\n",
        http.replace("FOLDER", &own),
        server = server.replace("FOLDER", &own),
    );
    fs::write(folder.path().join("nginx.conf"), config).expect("a file");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", &program, "-p", &own, "-e", "stderr", "-c", "nginx.conf"]);
    Ok(started(name, command, folder, format!("{host}:{port}"), tls.is_some()))
}

/// docker-registry as a proxy that keeps what it pulls through.
pub fn docker_registry(name: &'static str, upstream: &Server) -> Result<Peer, Missing> {
    let program = find("docker-registry", "docker-registry")?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let port = free_port();
    let config = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {}/data}}, cache: {{blobdescriptor: inmemory}},\n\
         maintenance: {{uploadpurging: {{enabled: false}}}}}}\n\
         http: {{addr: '127.0.0.1:{port}', secret: bench}}\nproxy: {{remoteurl: '{}'}}\n",
        folder.path().display(),
        upstream.url(""),
    );
    let file = folder.path().join("config.yml");
    fs::write(&file, config).expect("a file");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", &program, "serve"]).arg(file).env("GOMAXPROCS", "1");
    Ok(started(name, command, folder, format!("127.0.0.1:{port}"), false))
}

/// Varnish, whose store is memory.
pub fn varnish(name: &'static str, upstream: &Server) -> Result<Peer, Missing> {
    let program = find("varnishd", "varnish")?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (port, own) = (free_port(), folder.path().join("varnish").display().to_string());
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", &program, "-F", "-n", &own, "-a", &format!("127.0.0.1:{port}")]);
    command.args(["-b", &upstream.authority, "-s", "malloc,1g", "-t", "86400", "-j", "none"]);
    command.args(["-p", "thread_pools=1", "-p", "timeout_idle=3600"]);
    Ok(started(name, command, folder, format!("127.0.0.1:{port}"), false))
}

fn started(name: &'static str, mut command: Command, folder: TempDir, authority: String, tls: bool) -> Peer {
    let process = Process::start(offline(&mut command));
    let end = Instant::now() + HANG;
    while TcpStream::connect(&authority).is_err() {
        let ended = process.ended().is_some() || Instant::now() > end;
        assert!(!ended, "{name} does not come up:\n{}", process.log());
        thread::sleep(Duration::from_millis(1));
    }
    Peer { name, server: Server { authority, tls }, held: Held::Process(process, folder) }
}

/// Path of a program; Debian keeps servers where not everybody's PATH leads.
pub fn find(program: &str, package: &str) -> Result<String, Missing> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let found = path.split(':').map(|folder| Path::new(folder).join(program)).find(|file| file.is_file());
    found.map(|file| file.display().to_string()).ok_or_else(|| {
        Missing(format!(
            "{program} is not there and its figures are left out: .ci/setup bench, or apt-get install {package}"
        ))
    })
}

/// A port of 127.0.0.1 that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}
