//! What the fake registry does with one request.

use std::time::Duration;

use crate::content::Content;
use crate::gate::Gate;

/// One way to answer. Offsets count the bytes of this answer's body.
#[derive(Clone, Debug)]
pub enum Act {
    /// As a good registry does.
    Serve,
    /// A whole answer that ignores `Range`.
    ServeWhole,
    /// Chunked, without a length.
    ServeChunked,
    /// Once the gate is open.
    After(Gate),
    /// Chunked, so many bytes, and a clean close at the edge of a chunk.
    ChunkedCloseAfter(u64),
    /// Neither length nor chunks: so many bytes, and the end of the connection is the end of the body.
    UntilClose(u64),
    /// The right headers, so many bytes, and a clean close.
    CloseAfter(u64),
    /// The right headers, so many bytes, and a reset.
    ResetAfter(u64),
    /// The right headers, so many bytes, and then nothing for ever.
    StallAfter(u64),
    /// The right headers, and then a byte at a time, with so long between them.
    Drip(Duration),
    /// Not even a status line.
    Silent,
    /// So many bytes, and the rest once the gate is open.
    Hold(u64, Gate),
    /// The right headers around other bytes.
    Lie(Content),
    /// The same, without a length.
    ServeChunkedLie(Content),
    /// The same, so many bytes, and the rest once the gate is open.
    LieAndHold(Content, u64, Gate),
    /// An answer of its own, once the gate is open.
    Held(Gate, Reply),
    /// An answer of its own.
    Reply(Reply),
}

/// A status, header fields and a body.
#[derive(Clone, Debug)]
pub struct Reply {
    pub(super) status: u16,
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// An answer with an empty body.
    pub fn status(status: u16) -> Self {
        Self { status, fields: Vec::new(), body: Vec::new() }
    }

    /// A redirect to an address.
    pub fn redirect(to: &str) -> Self {
        Self::status(307).field("Location", to)
    }

    /// With a header field.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a body.
    #[must_use]
    pub fn body(mut self, body: &[u8]) -> Self {
        body.clone_into(&mut self.body);
        self
    }
}

impl From<Reply> for Act {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

impl Act {
    pub(super) fn gate(&self) -> Option<Gate> {
        match self {
            Self::Hold(_, gate) | Self::After(gate) | Self::LieAndHold(_, _, gate) | Self::Held(gate, _) => {
                Some(gate.clone())
            }
            _ => None,
        }
    }
}
