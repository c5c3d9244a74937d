//! The body of a request to an upstream: none, one that is in memory, or one that is handed on as it comes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tokio::sync::{Notify, mpsc};

use super::answer::Pace;
use crate::body::{Chunks, Short};

/// What is sent to an upstream.
pub(super) enum Outgoing {
    Whole(Full<Bytes>),
    Fed(Fed),
}

/// A body that comes through a feed, a chunk at a time.
pub(super) struct Fed {
    parts: mpsc::Receiver<Part>,
    begun: Arc<Begun>,
    /// What is still to come; none: nobody knows.
    left: Option<u64>,
    ended: bool,
}

enum Part {
    Data(Bytes),
    End,
}

#[derive(Default)]
struct Begun {
    yes: AtomicBool,
    told: Notify,
}

/// The other end of a [`Fed`]: who drops it without having come to the end breaks the body off.
pub(super) struct Feed {
    parts: mpsc::Sender<Part>,
    begun: Arc<Begun>,
}

/// How long both ends are waited for.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// How long the upstream may take nothing.
    pub upstream: Duration,
    /// In which time the client must bring what the least rate makes of it.
    pub client: Duration,
    /// Units: bytes a second.
    pub min_rate: u64,
}

/// Why a body was not handed on to its end.
#[derive(Debug)]
pub(super) enum Unfed {
    /// Its sender broke off.
    Sender(Short),
    /// The upstream takes nothing any more.
    Stalled,
    /// The upstream wants no more of it.
    Gone,
}

/// A body broke off: never taken for a whole one.
#[derive(Debug, thiserror::Error)]
#[error("the body broke off")]
pub(super) struct BrokenOff;

impl Outgoing {
    /// A body that is fed, and its feed. `length` where it is known. Units: bytes.
    pub fn fed(length: Option<u64>) -> (Self, Feed) {
        let (sender, parts) = mpsc::channel(1);
        let begun = Arc::<Begun>::default();
        let fed = Fed { parts, begun: begun.clone(), left: length, ended: length == Some(0) };
        (Self::Fed(fed), Feed { parts: sender, begun })
    }
}

impl From<Full<Bytes>> for Outgoing {
    fn from(body: Full<Bytes>) -> Self {
        Self::Whole(body)
    }
}

impl Feed {
    /// Whether any of the body was asked for: before, the request can be made again.
    pub fn has_begun(&self) -> bool {
        self.begun.yes.load(Ordering::Acquire)
    }

    /// Hands a body on, one chunk ahead of the upstream.
    pub async fn pump(&self, chunks: &mut Chunks, patience: Patience) -> Result<(), Unfed> {
        // Nobody is asked to send before there is a connection that takes it.
        while !self.has_begun() {
            tokio::select! {
                () = self.begun.told.notified() => {}
                () = self.parts.closed() => return Err(Unfed::Gone),
            }
        }
        let mut pace = Pace::new(patience.client, patience.min_rate);
        loop {
            let began = Instant::now();
            let part = tokio::select! {
                chunk = chunks.next() => match chunk {
                    None => Part::End,
                    Some(Ok(chunk)) if chunk.is_empty() => continue,
                    Some(Ok(chunk)) if !pace.keeps(began.elapsed(), chunk.len() as u64) => {
                        return Err(Unfed::Sender(Short("it comes too slowly".to_owned())));
                    }
                    Some(Ok(chunk)) => Part::Data(chunk),
                    Some(Err(short)) => return Err(Unfed::Sender(short)),
                },
                () = self.parts.closed() => return Err(Unfed::Gone),
            };
            let ends = matches!(part, Part::End);
            match tokio::time::timeout(patience.upstream, self.parts.send(part)).await {
                Err(_) => return Err(Unfed::Stalled),
                // With the last byte of a length that was promised, the end is known.
                Ok(_) if ends => return Ok(()),
                Ok(Err(_)) => return Err(Unfed::Gone),
                Ok(Ok(())) => {}
            }
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole).poll_frame(cx).map_err(|never| match never {}),
            Self::Fed(fed) => fed.poll_part(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Fed(fed) => fed.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Fed(fed) => fed.left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl Fed {
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if !self.begun.yes.swap(true, Ordering::AcqRel) {
            self.begun.told.notify_one();
        }
        let part = std::task::ready!(self.parts.poll_recv(cx));
        Poll::Ready(match part {
            Some(Part::Data(chunk)) => {
                self.left = self.left.map(|left| left.saturating_sub(chunk.len() as u64));
                Some(Ok(Frame::data(chunk)))
            }
            Some(Part::End) => {
                self.ended = true;
                None
            }
            None => {
                self.ended = true;
                Some(Err(BrokenOff))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const PATIENT: Patience =
        Patience { upstream: Duration::from_mins(1), client: Duration::from_mins(1), min_rate: 1024 };

    fn chunks(parts: Vec<Result<Bytes, Short>>) -> Chunks {
        Box::pin(futures_util::stream::iter(parts))
    }

    #[tokio::test]
    async fn i6_a_body_that_its_sender_breaks_off_is_never_whole() {
        let mut sent = chunks(vec![Ok(Bytes::from_static(b"half")), Err(Short("gone".to_owned()))]);
        let (body, feed) = Outgoing::fed(None);
        let feeding = async {
            let ended = feed.pump(&mut sent, PATIENT).await;
            drop(feed);
            ended
        };
        let (taken, ended) = tokio::join!(body.collect(), feeding);
        assert!(taken.is_err());
        assert!(matches!(ended, Err(Unfed::Sender(_))));
    }

    #[tokio::test]
    async fn a_body_is_handed_on_whole_and_nothing_of_it_before_it_is_asked_for() {
        let mut sent = chunks(vec![Ok(Bytes::from_static(b"ha")), Ok(Bytes::new()), Ok(Bytes::from_static(b"lf"))]);
        let (body, feed) = Outgoing::fed(Some(4));
        assert_eq!(body.size_hint().exact(), Some(4));
        assert!(!feed.has_begun());
        let (taken, ended) = tokio::join!(body.collect(), feed.pump(&mut sent, PATIENT));
        assert_eq!(taken.map(http_body_util::Collected::to_bytes).ok().as_deref(), Some(&b"half"[..]));
        assert!(ended.is_ok() && feed.has_begun());
    }

    #[tokio::test]
    async fn i5_an_upstream_that_takes_nothing_holds_nobody_for_ever() {
        let mut sent = chunks((0..9).map(|_| Ok(Bytes::from_static(b"x"))).collect());
        let (mut body, feed) = Outgoing::fed(None);
        let first = async {
            let _ = body.frame().await;
        };
        let (ended, ()) =
            tokio::join!(feed.pump(&mut sent, Patience { upstream: Duration::from_millis(20), ..PATIENT }), first);
        assert!(matches!(ended, Err(Unfed::Stalled)), "{ended:?}");
        drop(body);
        assert!(matches!(feed.pump(&mut sent, PATIENT).await, Err(Unfed::Gone)));
    }

    #[tokio::test]
    async fn u3_a_body_that_drips_is_given_up() {
        let drip = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Some((Ok(Bytes::from_static(b"x")), ()))
        });
        let (body, feed) = Outgoing::fed(None);
        let taken = tokio::spawn(body.collect());
        let patience = Patience { client: Duration::from_millis(100), min_rate: 1 << 20, ..PATIENT };
        let ended = feed.pump(&mut (Box::pin(drip) as Chunks), patience).await;
        assert!(matches!(&ended, Err(Unfed::Sender(Short(why))) if why.contains("slowly")), "{ended:?}");
        taken.abort();
    }
}
