//! A client of HTTP/2 that writes frames as it is told, also those that no good client writes.
//!
//! Source: RFC 9113 (frames), RFC 7541 (heads: literals without indexing, and the static table).

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;

use crate::HANG;

/// Kinds of frames (RFC 9113, section 6).
pub mod kind {
    /// A piece of a body.
    pub const DATA: u8 = 0;
    /// The head of a request or an answer.
    pub const HEADERS: u8 = 1;
    /// The end of one stream.
    pub const RST_STREAM: u8 = 3;
    /// What an end is ready for.
    pub const SETTINGS: u8 = 4;
    /// Whether the other end lives.
    pub const PING: u8 = 6;
    /// The end of the connection.
    pub const GOAWAY: u8 = 7;
    /// That more may be sent.
    pub const WINDOW_UPDATE: u8 = 8;
    /// More of a head.
    pub const CONTINUATION: u8 = 9;
}

/// Flag of DATA and HEADERS: the last frame of its stream.
pub const END_STREAM: u8 = 1;
/// Flag of SETTINGS and PING: an answer to one.
pub const ACK: u8 = 1;
/// Flag of HEADERS and CONTINUATION: the whole head is there.
pub const END_HEADERS: u8 = 4;
/// The setting that bounds what may be sent on a stream before the client says more.
pub const INITIAL_WINDOW: u16 = 4;

/// A frame that came.
#[derive(Clone, Debug)]
pub struct Frame {
    /// One of [`kind`].
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream; 0: the connection.
    pub stream: u32,
    /// What is in it.
    pub payload: Vec<u8>,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    next: u32,
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With its last frame, be that early or not.
    InOrder,
    /// By a reset.
    Reset,
    /// With the connection.
    Closed,
}

impl Connection {
    /// Connects with prior knowledge. `settings`: numbers and values.
    pub fn open(authority: &str, settings: &[(u16, u32)]) -> io::Result<Self> {
        let stream = TcpStream::connect(authority)?;
        stream.set_read_timeout(Some(HANG))?;
        stream.set_write_timeout(Some(HANG))?;
        stream.set_nodelay(true)?;
        let mut connection = Self { stream: BufReader::new(stream), next: 1 };
        connection.stream.get_mut().write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        let mut payload = Vec::new();
        for (number, value) in settings {
            payload.extend_from_slice(&number.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        connection.send(kind::SETTINGS, 0, 0, &payload)?;
        Ok(connection)
    }

    /// Sends a frame as it is.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(&frame(kind, flags, stream, payload))
    }

    /// Sends bytes as they are: frames that were put together before.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// The number of the next stream.
    pub fn next_stream(&mut self) -> u32 {
        self.next += 2;
        self.next - 2
    }

    /// Asks for a path. Gives the stream.
    pub fn get(&mut self, path: &str) -> io::Result<u32> {
        let stream = self.next_stream();
        self.send(kind::HEADERS, END_STREAM | END_HEADERS, stream, &head("GET", path))?;
        Ok(stream)
    }

    /// Lets the other end send so many bytes more on a stream, and 0: on all.
    pub fn allow(&mut self, stream: u32, bytes: u32) -> io::Result<()> {
        self.send(kind::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
    }

    /// Reads a frame; settings and pings are answered.
    pub fn read(&mut self) -> io::Result<Frame> {
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head)?;
            let [a, b, c, kind, flags, stream @ ..] = head;
            let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, a, b, c])).expect("fits")];
            self.stream.read_exact(&mut payload)?;
            if matches!(kind, kind::SETTINGS | kind::PING) {
                if flags & ACK == 0 {
                    let empty = kind == kind::SETTINGS;
                    // It may have closed meanwhile, with more to be read.
                    let _ = self.send(kind, ACK, 0, if empty { &[] } else { &payload });
                }
                continue;
            }
            return Ok(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload });
        }
    }

    /// Reads a stream to its end, and lets all of it come. Gives its body, and how it ended.
    pub fn finish(&mut self, stream: u32) -> (Vec<u8>, Ended) {
        let mut body = Vec::new();
        loop {
            let Ok(frame) = self.read() else { return (body, Ended::Closed) };
            if frame.kind == kind::DATA && !frame.payload.is_empty() {
                let bytes = u32::try_from(frame.payload.len()).expect("fits");
                let _ = self.allow(0, bytes);
                if frame.stream == stream && frame.flags & END_STREAM == 0 {
                    let _ = self.allow(stream, bytes);
                }
            }
            if frame.stream != stream {
                continue;
            }
            match frame.kind {
                kind::DATA => body.extend_from_slice(&frame.payload),
                kind::RST_STREAM => return (body, Ended::Reset),
                _ => {}
            }
            if matches!(frame.kind, kind::DATA | kind::HEADERS) && frame.flags & END_STREAM != 0 {
                return (body, Ended::InOrder);
            }
        }
    }

    /// Reads until the connection ends. Whether it was said before that it would.
    pub fn read_to_end(&mut self) -> bool {
        let mut goaway = false;
        while let Ok(frame) = self.read() {
            goaway |= frame.kind == kind::GOAWAY;
        }
        goaway
    }
}

impl Frame {
    /// Whether it is the head of an answer with status 200: the static table has that whole.
    pub fn is_ok(&self) -> bool {
        self.kind == kind::HEADERS && self.payload.first() == Some(&0x88)
    }
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("fits").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The head of a request, by plain HTTP.
pub fn head(method: &str, path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    // Names of the static table: 2 is `:method`, 4 is `:path`, 1 is `:authority`; 6 whole is `:scheme: http`.
    for (name, value) in [(2, method), (4, path), (1, "mirror.lan")] {
        block.push(name);
        string(&mut block, value);
    }
    block.push(0x80 | 6);
    block
}

/// A field as a literal, with its name.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0];
    string(&mut block, name);
    string(&mut block, value);
    block
}

/// A string without Huffman's code (RFC 7541, section 5.2).
fn string(block: &mut Vec<u8>, text: &str) {
    let mut length = text.len();
    if length < 127 {
        block.push(u8::try_from(length).expect("fits"));
    } else {
        block.push(127);
        length -= 127;
        while length >= 128 {
            block.push(u8::try_from(length % 128 + 128).expect("fits"));
            length /= 128;
        }
        block.push(u8::try_from(length).expect("fits"));
    }
    block.extend_from_slice(text.as_bytes());
}
