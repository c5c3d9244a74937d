//! A proxy on the way out: it tunnels for CONNECT, hands on what is asked for in absolute form, and remembers both.

use std::fmt::Write as _;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::http::{Fields, read_line};
use crate::own_address;

/// Serves until the test ends.
#[derive(Debug)]
pub struct Forward {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Asked>>>,
}

/// A request that it got.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The first line.
    pub line: String,
    /// Header `Proxy-Authorization`.
    pub authorization: Option<String>,
}

impl Forward {
    /// Starts one. `password`: the value of `Proxy-Authorization` without which it answers 407.
    pub fn start(password: Option<String>) -> Self {
        let listener = TcpListener::bind((own_address(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (kept, password) = (Arc::clone(&kept), password.clone());
                thread::spawn(move || serve(&stream, &kept, password.as_deref()));
            }
        });
        Self { address, seen }
    }

    /// Host and port.
    pub fn authority(&self) -> String {
        self.address.to_string()
    }

    /// What it was asked.
    pub fn seen(&self) -> Vec<Asked> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One request a connection: what follows on it goes the same way.
fn serve(stream: &TcpStream, seen: &Mutex<Vec<Asked>>, password: Option<&str>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let line = read_line(&mut reader)?;
    let fields = Fields::read(&mut reader)?;
    let authorization = fields.get("Proxy-Authorization").map(str::to_owned);
    let asked = Asked { line: line.clone(), authorization: authorization.clone() };
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
    let mut client = stream;
    if password.is_some() && authorization.as_deref() != password {
        return client.write_all(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if method == "CONNECT" {
        let Ok(server) = TcpStream::connect(target) else {
            return client.write_all(b"HTTP/1.1 502 Nobody there\r\nContent-Length: 0\r\n\r\n");
        };
        client.write_all(b"HTTP/1.1 200 Go on\r\n\r\n")?;
        let (from, to) = (stream.try_clone()?, server.try_clone()?);
        thread::spawn(move || pump(from, &to));
        pump(server, stream);
        return Ok(());
    }
    let rest = target.strip_prefix("http://").unwrap_or_default();
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let mut server = TcpStream::connect(authority)?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    for (name, value) in &fields.0 {
        if !name.eq_ignore_ascii_case("proxy-authorization") && !name.eq_ignore_ascii_case("connection") {
            let _ = write!(head, "{name}: {value}\r\n");
        }
    }
    server.write_all(format!("{head}\r\n").as_bytes())?;
    // The answer says itself how long it is, and the connection ends with it.
    server.shutdown(Shutdown::Write)?;
    let mut answer = BufReader::new(server);
    let line = read_line(&mut answer)?;
    let fields = Fields::read(&mut answer)?;
    let head = fields
        .0
        .iter()
        .fold(format!("{line}\r\nConnection: close\r\n"), |head, (name, value)| format!("{head}{name}: {value}\r\n"));
    client.write_all(format!("{head}\r\n").as_bytes())?;
    pump(answer, stream);
    stream.shutdown(Shutdown::Both)
}

fn pump(mut from: impl Read, mut to: &TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
