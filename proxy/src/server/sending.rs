//! A body on its way to a client, and the streams of HTTP/2: how each ends that breaks, stalls or must end now.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use super::table::Busy;
use crate::body::Piece;

/// Largest piece that is given to a stream of HTTP/2 at once: what its client does not take is kept in memory.
/// Units: bytes.
const PIECE_MAX: usize = 16 << 10;

tokio::task_local! {
    /// The stream of HTTP/2 that a request came by; none in HTTP/1.1.
    static STREAM: Stream;
}

/// What is known of a stream of HTTP/2.
#[derive(Clone)]
struct Stream {
    /// When its last piece was handed over, and is waited for to be taken; 0: it waits for us.
    handed_ms: Arc<AtomicU64>,
    abort: CancellationToken,
}

/// Runs the streams of one connection of HTTP/2.
#[derive(Clone)]
pub(super) struct Streams {
    /// Where they are counted.
    pub tasks: TaskTracker,
    /// How long a client may take nothing of one.
    pub stall: Duration,
    /// Ends them all.
    pub abort: CancellationToken,
}

/// A body that is sent, and the request under way that it is part of.
pub(super) struct Sending<B> {
    body: B,
    _busy: Busy,
    http2: Option<Http2>,
}

struct Http2 {
    stream: Stream,
    abort: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The head has promised a length.
    promised: bool,
    /// What is left of a frame that was too large.
    rest: Option<Bytes>,
    ended: bool,
}

impl<B> Sending<B> {
    /// `promised`: whether the head of the answer promises a length.
    pub fn new(body: B, busy: Busy, promised: bool) -> Self {
        let http2 = STREAM.try_with(Stream::clone).ok().map(|stream| Http2 {
            abort: Box::pin(stream.abort.clone().cancelled_owned()),
            stream,
            promised,
            rest: None,
            ended: false,
        });
        Self { body, _busy: busy, http2 }
    }
}

impl<B: Body<Data = Piece> + Unpin> Body for Sending<B> {
    type Data = Piece;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, B::Error>>> {
        let Self { body, http2, .. } = self.get_mut();
        let Some(http2) = http2 else { return Pin::new(body).poll_frame(cx) };
        http2.stream.handed_ms.store(0, Ordering::Relaxed);
        let frame = match http2.rest.take() {
            Some(rest) => Some(Ok(Frame::data(rest.into()))),
            None if http2.abort.as_mut().poll(cx).is_ready() => None,
            None => ready!(Pin::new(&mut *body).poll_frame(cx)),
        };
        Poll::Ready(http2.send(frame))
    }

    fn is_end_stream(&self) -> bool {
        match &self.http2 {
            Some(http2) => http2.ended || (http2.rest.is_none() && self.body.is_end_stream()),
            None => self.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Http2 {
    fn send<E>(&mut self, frame: Option<Result<Frame<Piece>, E>>) -> Option<Result<Frame<Piece>, E>> {
        match frame {
            Some(Ok(frame)) => {
                self.stream.handed_ms.store(now_ms(), Ordering::Relaxed);
                let frame = match frame.into_data() {
                    Ok(Piece::Bytes(mut data)) => {
                        self.rest = (data.len() > PIECE_MAX).then(|| data.split_off(PIECE_MAX));
                        Frame::data(data.into())
                    }
                    Ok(Piece::File(_)) => unreachable!("a stream of HTTP/2 has no outlet"),
                    Err(frame) => frame,
                };
                Some(Ok(frame))
            }
            // An end before the promised length is read as an unexpected end, and the client resumes; a reset fails its
            // pull. Without a promise such an end would look whole (I6).
            Some(Err(_)) if self.promised => {
                self.ended = true;
                None
            }
            other => {
                self.ended = true;
                other
            }
        }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, work: F) {
        let stream = Stream { handed_ms: Arc::default(), abort: self.abort.clone() };
        let (handed_ms, stall) = (stream.handed_ms.clone(), self.stall);
        self.tasks.spawn(async move {
            tokio::select! {
                () = STREAM.scope(stream, work) => {}
                () = stalled(&handed_ms, stall) => tracing::debug!("a stream ended whose client takes nothing"),
            }
        });
    }
}

/// Waits until a piece was not taken for so long.
async fn stalled(handed_ms: &AtomicU64, limit: Duration) {
    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    loop {
        let waited_ms = match handed_ms.load(Ordering::Relaxed) {
            0 => 0,
            handed_ms => now_ms().saturating_sub(handed_ms),
        };
        let Some(left_ms) = limit_ms.checked_sub(waited_ms).filter(|left_ms| *left_ms > 0) else { return };
        tokio::time::sleep(Duration::from_millis(left_ms)).await;
    }
}

/// Since the first call; never 0.
fn now_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use bytes::Buf;

    use super::*;

    fn http2(promised: bool) -> Http2 {
        let abort = CancellationToken::new();
        let stream = Stream { handed_ms: Arc::default(), abort: abort.clone() };
        Http2 { stream, abort: Box::pin(abort.cancelled_owned()), promised, rest: None, ended: false }
    }

    #[test]
    fn i6_a_broken_body_ends_a_stream_early_only_where_its_length_was_promised() {
        let mut promised = http2(true);
        assert!(promised.send(Some(Err("broken"))).is_none() && promised.ended);
        let mut open = http2(false);
        assert!(matches!(open.send(Some(Err("broken"))), Some(Err("broken"))));
    }

    #[test]
    fn i5_a_large_frame_is_handed_over_in_pieces() {
        let mut http2 = http2(true);
        let mut next = Some(Ok::<_, ()>(Frame::data(Bytes::from(vec![7; PIECE_MAX * 2 + 1]).into())));
        let mut lengths = Vec::new();
        while let Some(frame) = next.take() {
            let sent = http2.send(Some(frame)).expect("a frame").expect("no error");
            lengths.push(sent.into_data().expect("data").remaining());
            next = http2.rest.take().map(|rest| Ok(Frame::data(rest.into())));
        }
        assert_eq!(lengths, [PIECE_MAX, PIECE_MAX, 1]);
    }

    #[tokio::test]
    async fn a_stream_that_waits_for_us_does_not_stall() {
        let (handed_ms, limit) = (AtomicU64::new(0), Duration::from_millis(20));
        assert!(tokio::time::timeout(limit * 5, stalled(&handed_ms, limit)).await.is_err());
        handed_ms.store(now_ms(), Ordering::Relaxed);
        tokio::time::timeout(Duration::from_secs(20), stalled(&handed_ms, limit)).await.expect("it stalls");
    }
}
