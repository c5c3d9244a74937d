//! One connection that asks for bodies, and has the kernel throw them away unread.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tidegate_tests::HANG;

use crate::load::ACCEPT;
use crate::tls;

/// Source: recv(2), Linux. Bytes of a TCP stream are dropped in the kernel.
const MSG_TRUNC: i32 = 0x20;

/// What is dropped at once at most: the size of a buffer that nobody writes to. Units: bytes.
const DROPPED: usize = 1 << 20;

/// Where a load goes.
#[derive(Clone, Debug)]
pub struct Server {
    /// Host and port.
    pub authority: String,
    /// Whether it speaks TLS: then each request has a connection of its own, whose records are not decrypted.
    pub tls: bool,
}

/// One body, and when it came.
#[derive(Clone, Copy, Debug)]
pub struct Fetched {
    /// Over TLS nobody looks: 200.
    pub status: u16,
    /// Units: bytes; over TLS of all records.
    pub length: u64,
    pub first_byte: Duration,
    pub wall: Duration,
}

/// A connection, and how far its request has come.
#[derive(Debug)]
pub struct Reader {
    stream: TcpStream,
    began: Instant,
    first_byte: Option<Duration>,
    came: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Head(Vec<u8>),
    /// Of so many bytes.
    Body(u16, u64),
    UntilClose,
    Whole(Fetched),
}

impl Server {
    /// Address of a path.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", if self.tls { "https" } else { "http" }, self.authority)
    }

    fn request(&self, path: &str, more: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: {}\r\nAccept: {ACCEPT}, */*\r\n{more}\r\n", self.authority)
    }
}

impl Reader {
    /// Connects, and asks.
    pub fn open(server: &Server, path: &str) -> io::Result<Self> {
        let began = Instant::now();
        let mut stream = TcpStream::connect(&server.authority)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(HANG))?;
        stream.set_write_timeout(Some(HANG))?;
        let state = if server.tls {
            ask_in_records(&mut stream, &server.request(path, "Connection: close\r\n"))?;
            State::UntilClose
        } else {
            stream.write_all(server.request(path, "").as_bytes())?;
            State::Head(Vec::new())
        };
        stream.set_nonblocking(true)?;
        Ok(Self { stream, began, first_byte: None, came: 0, state })
    }

    /// Asks once more, on the same connection where it can be kept.
    pub fn again(&mut self, server: &Server, path: &str) -> io::Result<()> {
        if server.tls {
            *self = Self::open(server, path)?;
            return Ok(());
        }
        self.began = Instant::now();
        (self.first_byte, self.came, self.state) = (None, 0, State::Head(Vec::new()));
        // So little always fits.
        self.stream.write_all(server.request(path, "").as_bytes())
    }

    /// What came, once it is whole.
    pub fn whole(&self) -> Option<Fetched> {
        if let State::Whole(fetched) = self.state { Some(fetched) } else { None }
    }

    /// Takes what is there. Whether there was anything.
    pub fn advance(&mut self) -> io::Result<bool> {
        let wanted = match &mut self.state {
            State::Whole(_) => return Ok(false),
            State::Head(head) => {
                let mut buffer = [0; 2048];
                let Some(read) = there(self.stream.read(&mut buffer))? else { return Ok(false) };
                if read == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                head.extend_from_slice(&buffer[..read]);
                if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                    let (status, length) = parse(&head[..end])?;
                    let came = (head.len() - end - 4) as u64;
                    self.state = State::Body(status, length);
                    self.count(came);
                }
                return Ok(true);
            }
            State::Body(_, length) => *length - self.came,
            State::UntilClose => u64::MAX,
        };
        let Some(read) = there(discard(&self.stream, wanted))? else { return Ok(false) };
        match (&self.state, read) {
            (State::UntilClose, 0) => self.end(200),
            (_, 0) => return Err(ErrorKind::UnexpectedEof.into()),
            _ => self.count(read),
        }
        Ok(true)
    }

    fn count(&mut self, came: u64) {
        self.came += came;
        if came > 0 {
            self.first_byte.get_or_insert_with(|| self.began.elapsed());
        }
        if let State::Body(status, length) = self.state
            && self.came == length
        {
            self.end(status);
        }
    }

    fn end(&mut self, status: u16) {
        let wall = self.began.elapsed();
        let first_byte = self.first_byte.unwrap_or(wall);
        self.state = State::Whole(Fetched { status, length: self.came, first_byte, wall });
    }
}

/// None: nothing is there yet.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Drops what has come, up to a limit. Gives how much it was; 0 at the end.
fn discard(stream: &TcpStream, limit: u64) -> io::Result<u64> {
    thread_local! {
        static NOWHERE: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(DROPPED));
    }
    let take = usize::try_from(limit).map_or(DROPPED, |limit| limit.min(DROPPED));
    NOWHERE.with_borrow_mut(|nowhere| {
        let read = SockRef::from(stream).recv_with_flags(&mut nowhere.spare_capacity_mut()[..take], MSG_TRUNC)?;
        Ok(read as u64)
    })
}

/// Status and length.
fn parse(head: &[u8]) -> io::Result<(u16, u64)> {
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    status.zip(length).ok_or_else(|| io::Error::other(format!("no status, or no length: {text}")))
}

/// The handshake is a real one; what comes after the request is left for others to drop.
fn ask_in_records(stream: &mut TcpStream, request: &str) -> io::Result<()> {
    let name = ServerName::try_from("127.0.0.1").expect("an address is a name");
    let mut session = ClientConnection::new(tls::client(), name).map_err(io::Error::other)?;
    while session.is_handshaking() {
        session.complete_io(stream)?;
    }
    session.writer().write_all(request.as_bytes())?;
    while session.wants_write() {
        session.write_tls(stream)?;
    }
    Ok(())
}
