//! The one body of an answer, the adapter that verifies a stream, and ranges.

mod outlet;

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt, try_unfold};
use http_body::{Frame, SizeHint};
use http_range_header::{EndPosition, StartPosition};

pub use outlet::{Due, FILE_PIECE_MAX, FilePiece, Outlet, Piece};

use crate::oci::Digest;

/// A body that broke: it ends short, never as if it were whole.
#[derive(Debug, thiserror::Error)]
#[error("the body ended short: {0}")]
pub struct Short(pub String);

/// A stream of the bytes of a body.
pub type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, Short>> + Send>>;

/// A stream of the pieces of a body to a client.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Piece, Short>> + Send>>;

/// The body of an answer to a client.
pub struct Body {
    kind: Kind,
    length: Option<u64>,
}

enum Kind {
    Whole(Option<Bytes>),
    Stream(Pieces),
}

impl Body {
    /// No body.
    pub fn empty() -> Self {
        Self::bytes(Bytes::new())
    }

    /// A body that is in memory: a manifest, an error.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { length: Some(bytes.len() as u64), kind: Kind::Whole(Some(bytes).filter(|bytes| !bytes.is_empty())) }
    }

    /// A body that comes as it is read; `length` where it is known.
    pub fn stream(pieces: Pieces, length: Option<u64>) -> Self {
        Self { kind: Kind::Stream(pieces), length }
    }

    /// Its bytes, for who reads them here. A body that goes to a connection by way of its outlet breaks.
    pub fn chunks(self) -> Chunks {
        match self.kind {
            Kind::Whole(bytes) => Box::pin(futures_util::stream::iter(bytes.map(Ok))),
            Kind::Stream(pieces) => Box::pin(pieces.map(|piece| match piece? {
                Piece::Bytes(bytes) => Ok(bytes),
                Piece::File(_) => Err(Short("a part of a file is sent, not read".to_owned())),
            })),
        }
    }

    /// Its length, where it is known. Units: bytes.
    pub fn length(&self) -> Option<u64> {
        self.length
    }
}

impl http_body::Body for Body {
    type Data = Piece;
    type Error = Short;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, Short>>> {
        match &mut self.kind {
            Kind::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes.into())))),
            Kind::Stream(pieces) => pieces.as_mut().poll_next(cx).map_ok(Frame::data),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.kind, Kind::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            // The length is a header of the answer; a stream that breaks must not be held to it here.
            Kind::Stream(_) => SizeHint::default(),
        }
    }
}

/// Passes a stream on, one chunk late: the last chunk is released only when the whole matches `digest`.
pub fn verify(chunks: Chunks, digest: Digest) -> Chunks {
    struct Verifying {
        chunks: Chunks,
        digest: Digest,
        hasher: Option<crate::oci::digest::Hasher>,
        held: Option<Bytes>,
    }
    let start = Verifying { chunks, digest, hasher: Some(digest.hasher()), held: None };
    Box::pin(try_unfold(start, |mut state| async move {
        let Some(mut hasher) = state.hasher.take() else {
            return Ok(None);
        };
        loop {
            match state.chunks.next().await {
                Some(chunk) => {
                    let chunk = chunk?;
                    if chunk.is_empty() {
                        continue;
                    }
                    hasher.update(&chunk);
                    if let Some(earlier) = state.held.replace(chunk) {
                        state.hasher = Some(hasher);
                        return Ok(Some((earlier, state)));
                    }
                }
                None if hasher.finish() == state.digest => return Ok(state.held.take().map(|last| (last, state))),
                None => return Err(Short(format!("the content does not match {}", state.digest))),
            }
        }
    }))
}

/// The part of a content that a client asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// All of it.
    Whole,
    /// From the first byte to before the second. Units: bytes.
    Range(u64, u64),
    /// Several such, none of which touches another's bytes, in the order in which they are asked for.
    Many(Vec<(u64, u64)>),
    /// No byte of it.
    Unsatisfiable,
}

/// Ranges of one request that are answered one by one; who asks for more gets the whole.
const RANGES_MAX: usize = 32;

/// Reads the header `Range` for a content of `size` bytes. What is no byte range, or asks for more ranges than
/// [`RANGES_MAX`] or for bytes twice, is the whole: a client must be ready for it.
///
/// Source: RFC 9110, section 14.2.
pub fn parse_range(header: &str, size: u64) -> Part {
    // The parser refuses a suffix of no bytes as it refuses nonsense; it is a range, and none can satisfy it.
    if header.strip_prefix("bytes=-").is_some_and(|last| !last.is_empty() && last.bytes().all(|digit| digit == b'0')) {
        return Part::Unsatisfiable;
    }
    let Ok(parsed) = http_range_header::parse_range_header(header) else {
        return Part::Whole;
    };
    let mut parts = Vec::new();
    for range in &parsed.ranges {
        let part = match (range.start, range.end) {
            (StartPosition::Index(start), EndPosition::Index(end)) if end < start => return Part::Whole,
            (StartPosition::FromLast(last), _) => (size.saturating_sub(last), size),
            (StartPosition::Index(start), EndPosition::LastByte) => (start, size),
            (StartPosition::Index(start), EndPosition::Index(end)) => (start, end.saturating_add(1).min(size)),
        };
        // A range that no byte can satisfy is left out, as long as there are others.
        if part.0 < part.1 {
            parts.push(part);
        }
    }
    match parts.as_slice() {
        [] => Part::Unsatisfiable,
        [(start, end)] => Part::Range(*start, *end),
        _ if parts.len() > RANGES_MAX || overlap(&parts) => Part::Whole,
        _ => Part::Many(parts),
    }
}

fn overlap(parts: &[(u64, u64)]) -> bool {
    let mut sorted = parts.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).any(|pair| pair[0].1 > pair[1].0)
}

/// Several parts of one content, as one body.
///
/// Source: RFC 9110, section 14.6; RFC 2046, section 5.1.
pub struct Multipart {
    /// Its `Content-Type`, with the boundary.
    pub media_type: String,
    /// Of the whole body. Units: bytes.
    pub length: u64,
    heads: Vec<(Bytes, (u64, u64))>,
    tail: Bytes,
}

impl Multipart {
    /// Parts of a content of `size` bytes and a media type. `boundary`: a word that stands in none of them.
    pub fn new(parts: &[(u64, u64)], size: u64, media_type: &str, boundary: &str) -> Self {
        let head = |(start, end): (u64, u64)| {
            let last = end - 1;
            format!(
                "\r\n--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: bytes {start}-{last}/{size}\r\n\r\n"
            )
        };
        let mut heads: Vec<_> = parts.iter().map(|part| (Bytes::from(head(*part)), *part)).collect();
        // The line end before the first boundary would be a preamble, which some readers do not expect.
        if let Some((first, _)) = heads.first_mut() {
            *first = first.slice(2..);
        }
        let tail = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        let length = heads.iter().map(|(head, (start, end))| head.len() as u64 + (end - start)).sum::<u64>();
        let media_type = format!("multipart/byteranges; boundary={boundary}");
        Self { media_type, length: length + tail.len() as u64, heads, tail }
    }

    /// The body; `read` gives the bytes from one offset to before another.
    pub fn pieces(self, mut read: impl FnMut(u64, u64) -> Pieces + Send + 'static) -> Pieces {
        let parts = self.heads.into_iter().map(move |(head, (start, end))| {
            let head = futures_util::stream::once(std::future::ready(Ok(head.into())));
            head.chain(read(start, end))
        });
        let tail = futures_util::stream::once(std::future::ready(Ok(self.tail.into())));
        let mut broken = false;
        // Behind a part that broke nothing comes that could make the body look whole.
        let all = futures_util::stream::iter(parts).flatten().chain(tail).take_while(move |chunk| {
            let go_on = !broken;
            broken |= chunk.is_err();
            std::future::ready(go_on)
        });
        Box::pin(all)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf;

    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        for (header, part) in [
            ("bytes=0-9", Part::Range(0, 10)),
            ("bytes=0-0", Part::Range(0, 1)),
            ("bytes=10-", Part::Range(10, 100)),
            ("bytes=-5", Part::Range(95, 100)),
            ("bytes=-99999999", Part::Range(0, 100)),
            ("bytes=90-1000", Part::Range(90, 100)),
            ("bytes=100-", Part::Unsatisfiable),
            ("bytes=109-", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=5-2", Part::Whole),
            ("bytes=abc", Part::Whole),
            ("bytes=", Part::Whole),
            ("0-3", Part::Whole),
            ("bytes = 0-3", Part::Whole),
            ("bytes=99999999999999999999-", Part::Whole),
            ("items=0-5", Part::Whole),
            ("bytes=0-1,5-6", Part::Many(vec![(0, 2), (5, 7)])),
            ("bytes=5-6,0-1", Part::Many(vec![(5, 7), (0, 2)])),
            ("bytes=0-1, 200-300", Part::Range(0, 2)),
            ("bytes=200-300,400-", Part::Unsatisfiable),
            ("bytes=0-5,5-6", Part::Whole),
            ("bytes=0-1,-99", Part::Whole),
        ] {
            assert_eq!(parse_range(header, 100), part, "{header}");
        }
        let many = |count: u64| (0..count).map(|at| format!("{}-{}", 2 * at, 2 * at)).collect::<Vec<_>>().join(",");
        assert!(matches!(parse_range(&format!("bytes={}", many(32)), 100), Part::Many(parts) if parts.len() == 32));
        assert_eq!(parse_range(&format!("bytes={}", many(33)), 100), Part::Whole);
        assert_eq!(parse_range("bytes=-5", 0), Part::Unsatisfiable);
    }

    #[tokio::test]
    async fn several_ranges_are_one_body() {
        let content = b"0123456789";
        let multipart = Multipart::new(&[(8, 10), (0, 2)], 10, "text/plain", "B");
        assert_eq!(multipart.media_type, "multipart/byteranges; boundary=B");
        let length = multipart.length;
        let read = |start: u64, end: u64| -> Pieces {
            let bytes = &content[usize::try_from(start).expect("small")..usize::try_from(end).expect("small")];
            Box::pin(futures_util::stream::iter([Ok(Bytes::from_static(bytes).into())]))
        };
        let pieces: Vec<_> = multipart.pieces(read).collect().await;
        let body = pieces.into_iter().map(|piece| piece.expect("whole").chunk().to_vec()).collect::<Vec<_>>().concat();
        assert_eq!(body.len() as u64, length);
        let right = "--B\r\nContent-Type: text/plain\r\nContent-Range: bytes 8-9/10\r\n\r\n89\r\n\
                     --B\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\n01\r\n--B--\r\n";
        assert_eq!(String::from_utf8(body).expect("text"), right);

        let multipart = Multipart::new(&[(0, 1), (2, 3)], 10, "text/plain", "B");
        let broken = |_, _| -> Pieces { Box::pin(futures_util::stream::iter([Err(Short("gone".to_owned()))])) };
        let pieces: Vec<_> = multipart.pieces(broken).collect().await;
        assert!(pieces.len() == 2 && pieces[1].is_err(), "nothing comes behind what broke");
    }

    #[tokio::test]
    async fn i3_the_last_chunk_waits_for_the_digest() {
        let chunks = |text: &[&'static str]| -> Chunks {
            let chunks: Vec<_> = text.iter().map(|text| Ok(Bytes::from_static(text.as_bytes()))).collect();
            Box::pin(futures_util::stream::iter(chunks))
        };
        let digest = Digest::sha256_of(b"onetwothree");
        let good: Vec<_> = verify(chunks(&["one", "two", "", "three"]), digest).collect().await;
        assert_eq!(good.into_iter().map(|chunk| chunk.expect("right")).collect::<Vec<_>>().concat(), b"onetwothree");
        let bad: Vec<_> = verify(chunks(&["one", "two", "four"]), digest).collect().await;
        assert_eq!(bad.len(), 3);
        assert!(bad[2].is_err());
    }
}
