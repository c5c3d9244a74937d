//! The one body of an answer, the adapter that verifies a stream, and ranges.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt, try_unfold};
use http_body::{Frame, SizeHint};
use http_range_header::{EndPosition, StartPosition};

use crate::oci::Digest;

/// A body that broke: it ends short, never as if it were whole.
#[derive(Debug, thiserror::Error)]
#[error("the body ended short: {0}")]
pub struct Short(pub String);

/// A stream of the bytes of a body.
pub type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, Short>> + Send>>;

/// The body of an answer to a client.
pub struct Body {
    kind: Kind,
    length: Option<u64>,
}

enum Kind {
    Whole(Option<Bytes>),
    Stream(Chunks),
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
    pub fn stream(chunks: Chunks, length: Option<u64>) -> Self {
        Self { kind: Kind::Stream(chunks), length }
    }

    /// Its length, where it is known. Units: bytes.
    pub fn length(&self) -> Option<u64> {
        self.length
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Short;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Short>>> {
        match &mut self.kind {
            Kind::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Stream(chunks) => chunks.as_mut().poll_next(cx).map_ok(Frame::data),
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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// All of it.
    Whole,
    /// From the first byte to before the second. Units: bytes.
    Range(u64, u64),
    /// No byte of it.
    Unsatisfiable,
}

/// Reads the header `Range` for a content of `size` bytes. What is no byte range, or more than one, is the whole:
/// a client must be ready for it.
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
    let [range] = parsed.ranges.as_slice() else {
        return Part::Whole;
    };
    match (range.start, range.end) {
        (StartPosition::FromLast(0), _) => Part::Unsatisfiable,
        (StartPosition::FromLast(_), _) if size == 0 => Part::Unsatisfiable,
        (StartPosition::FromLast(last), _) => Part::Range(size.saturating_sub(last), size),
        (StartPosition::Index(start), EndPosition::Index(end)) if end < start => Part::Whole,
        (StartPosition::Index(start), _) if start >= size => Part::Unsatisfiable,
        (StartPosition::Index(start), EndPosition::LastByte) => Part::Range(start, size),
        (StartPosition::Index(start), EndPosition::Index(end)) => Part::Range(start, end.saturating_add(1).min(size)),
    }
}

#[cfg(test)]
mod tests {
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
            ("bytes=0-1,5-6", Part::Whole),
        ] {
            assert_eq!(parse_range(header, 100), part, "{header}");
        }
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
