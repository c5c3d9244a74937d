//! An HTTP/1.1 client that hides nothing: the head as it came, the body piece by piece, and how it ended.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use socket2::SockRef;

use crate::HANG;

/// Header fields in the order in which they came.
#[derive(Clone, Debug, Default)]
pub struct Fields(pub Vec<(String, String)>);

impl Fields {
    /// The first value of a field, whatever the case of its name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    /// All values of a field.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
    }

    /// Reads header lines up to the empty one.
    pub fn read(stream: &mut impl BufRead) -> io::Result<Self> {
        let mut fields = Self::default();
        loop {
            let line = read_line(stream)?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other(format!("no header: {line}")))?;
            fields.0.push((name.to_owned(), value.trim().to_owned()));
        }
    }
}

/// Reads one line of a head, without its end.
pub fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    url: String,
    fields: Vec<(String, String)>,
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nobody can tell it from a whole one.
    Whole,
    /// The connection was closed cleanly before the end.
    Short,
    /// The connection was reset, or nothing came for a minute.
    Broken,
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub struct Response {
    /// Units: HTTP status.
    pub status: u16,
    /// The header fields.
    pub fields: Fields,
    framing: Framing,
    stream: BufReader<TcpStream>,
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Units: HTTP status.
    pub status: u16,
    /// The header fields.
    pub fields: Fields,
    /// What came of the body.
    pub body: Vec<u8>,
    /// How it ended.
    pub end: End,
}

#[derive(Debug)]
enum Framing {
    /// So many bytes are still to come.
    Length(u64),
    /// So many bytes of the present chunk; none: a size line comes next.
    Chunk(Option<u64>),
    UntilClose,
}

/// GET of an address.
pub fn get(url: &str) -> Request {
    method("GET", url)
}

/// HEAD of an address.
pub fn head(url: &str) -> Request {
    method("HEAD", url)
}

/// Any method.
pub fn method(method: &str, url: &str) -> Request {
    Request { method: method.to_owned(), url: url.to_owned(), fields: Vec::new() }
}

impl Request {
    /// With a header field.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends it on a connection of its own, and reads the head of the answer.
    pub fn open(&self) -> io::Result<Response> {
        Response::read(BufReader::new(self.start()?), &self.method)
    }

    /// Sends it on a connection of its own, and reads nothing.
    pub fn start(&self) -> io::Result<TcpStream> {
        let rest = self.url.strip_prefix("http://").expect("the harness speaks plain HTTP");
        let (authority, target) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let stream = TcpStream::connect(authority)?;
        stream.set_read_timeout(Some(HANG))?;
        stream.set_write_timeout(Some(HANG))?;
        stream.set_nodelay(true)?;
        let mut text = format!("{} {target} HTTP/1.1\r\n", self.method);
        if !self.fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            let _ = write!(text, "Host: {authority}\r\n");
        }
        for (name, value) in &self.fields {
            let _ = write!(text, "{name}: {value}\r\n");
        }
        text.push_str("\r\n");
        (&stream).write_all(text.as_bytes())?;
        Ok(stream)
    }

    /// Sends it and reads the whole answer.
    pub fn fetch(&self) -> Answer {
        let response = self.open().unwrap_or_else(|error| panic!("{} {}: {error}", self.method, self.url));
        response.finish()
    }
}

impl Request {
    /// Sends it with a body of a known length, and reads the whole answer, which may come before all is sent.
    pub fn carry(&self, body: &[u8]) -> Answer {
        let request = self.clone().field("Content-Length", &body.len().to_string());
        let stream = request.start().unwrap_or_else(|error| panic!("{} {}: {error}", self.method, self.url));
        // Who is answered early need not be listened to.
        let _ = (&stream).write_all(body);
        let response = Response::read(BufReader::new(stream), &self.method);
        response.unwrap_or_else(|error| panic!("{} {}: {error}", self.method, self.url)).finish()
    }
}

impl Response {
    /// Goes away at once, whatever has come: the other end is told so by a reset.
    pub fn reset(self) {
        SockRef::from(self.stream.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Reads the head of the answer to a request that was sent on a connection.
    pub fn read(mut stream: BufReader<TcpStream>, method: &str) -> io::Result<Self> {
        let line = read_line(&mut stream)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status: u16 = status.ok_or_else(|| io::Error::other(format!("no status line: {line}")))?;
        let fields = Fields::read(&mut stream)?;
        let length = fields.get("Content-Length").and_then(|length| length.parse().ok());
        let chunked = fields.get("Transfer-Encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
        let framing = if method == "HEAD" || status == 204 || status == 304 {
            Framing::Length(0)
        } else if chunked {
            Framing::Chunk(None)
        } else {
            length.map_or(Framing::UntilClose, Framing::Length)
        };
        Ok(Self { status, fields, framing, stream })
    }

    /// Reads what there is, at least one byte; 0 at the end of a whole body.
    pub fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = match &mut self.framing {
            Framing::UntilClose => u64::MAX,
            Framing::Length(left) | Framing::Chunk(Some(left)) => *left,
            Framing::Chunk(None) => {
                let line = read_line(&mut self.stream)?;
                let size = u64::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
                let size = size.map_err(|error| io::Error::other(format!("chunk size {line:?}: {error}")))?;
                if size == 0 {
                    Fields::read(&mut self.stream)?;
                    self.framing = Framing::Length(0);
                } else {
                    self.framing = Framing::Chunk(Some(size));
                }
                size
            }
        };
        if limit == 0 {
            return Ok(0);
        }
        let take = buffer.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        let read = self.stream.read(&mut buffer[..take])?;
        match &mut self.framing {
            Framing::UntilClose => return Ok(read),
            _ if read == 0 => return Err(ErrorKind::UnexpectedEof.into()),
            Framing::Length(left) => *left -= read as u64,
            Framing::Chunk(size) => {
                let left = size.expect("a size was read") - read as u64;
                *size = (left > 0).then_some(left);
                if left == 0 {
                    read_line(&mut self.stream)?;
                }
            }
        }
        Ok(read)
    }

    /// Hands every piece to a function, with its offset. Gives the length, and how it ended.
    pub fn drain(mut self, piece: impl FnMut(u64, &[u8])) -> (u64, End) {
        self.drain_here(piece)
    }

    fn drain_here(&mut self, mut piece: impl FnMut(u64, &[u8])) -> (u64, End) {
        let mut buffer = vec![0; 128 * 1024];
        let mut length = 0;
        loop {
            match self.read_some(&mut buffer) {
                Ok(0) => return (length, End::Whole),
                Ok(read) => {
                    piece(length, &buffer[..read]);
                    length += read as u64;
                }
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return (length, End::Short),
                Err(_) => return (length, End::Broken),
            }
        }
    }

    /// Reads the body to its end.
    pub fn finish(self) -> Answer {
        self.finish_and_keep().0
    }

    /// Reads the body to its end, and gives the connection back for the next request.
    pub fn finish_and_keep(mut self) -> (Answer, BufReader<TcpStream>) {
        let (status, fields) = (self.status, self.fields.clone());
        let mut body = Vec::new();
        let (_, end) = self.drain_here(|_, piece| body.extend_from_slice(piece));
        (Answer { status, fields, body, end }, self.stream)
    }
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Code of the first error in an OCI error body.
    pub fn code(&self) -> String {
        self.error("code")
    }

    /// Message of the first error in an OCI error body.
    pub fn message(&self) -> String {
        self.error("message")
    }

    fn error(&self, key: &str) -> String {
        let body: Value = serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("status {}, no JSON: {error}: {}", self.status, self.text()));
        let text = body["errors"][0][key].as_str();
        text.unwrap_or_else(|| panic!("status {}, no errors[0].{key}: {body}", self.status)).to_owned()
    }
}
