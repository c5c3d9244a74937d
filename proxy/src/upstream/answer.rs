//! The answer of a registry: whether it is one, what it says of limits, and its body, which must keep coming.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt, try_unfold};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_ENCODING, HeaderMap, RETRY_AFTER};
use hyper::{Response, StatusCode};
use prometheus_client::metrics::counter::Counter;

use super::health::{Health, Stage};
use super::{Ask, Refused};
use crate::oci::{Failure, Method, Registry};
use crate::trace::Span;

/// Longest time that an upstream's `Retry-After` is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);
/// Headers in which registries tell what they still allow. The first three: draft-ietf-httpapi-ratelimit-headers,
/// as Docker Hub sends them.
const RATE_LIMIT: [&str; 10] = [
    "ratelimit",
    "ratelimit-policy",
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "docker-ratelimit-source",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-ratelimit-used",
];
/// Longest value of such a header that is handed on. Units: bytes.
const RATE_LIMIT_MAX: usize = 128;
/// In how many parts a window of the least rate moves on.
const STEPS: u32 = 8;

/// An answer: 200, or 206 where the request was for a part. Its body is still to come.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    pub(super) body: Incoming,
    pub(super) source: Source,
}

/// Who sends a body, and how it must come.
pub(super) struct Source {
    pub traced: Traced,
    pub registry: Registry,
    pub received: Counter,
    pub health: Arc<Health>,
    /// How long it may be silent.
    pub idle: Duration,
    /// What it must bring at least. Units: bytes a second.
    pub min_rate: u64,
    /// How long the registry stands behind the others when bodies keep breaking.
    pub ailing: Duration,
}

/// What a trace gets to know of an attempt, when it is over.
pub(super) struct Traced {
    span: Span,
    outcome: &'static str,
    received: u64,
}

impl Traced {
    /// The head has come, or will not come.
    pub fn new<T>(span: Span, method: Method, fetched: &Result<Response<T>, Refused>) -> Self {
        let outcome = match fetched {
            Ok(answer) => {
                span.number("http.response.status_code", answer.status().as_u16().into());
                // A body that nobody asks for to its end is left.
                if method == Method::Head { "ok" } else { "left" }
            }
            Err(Refused { failure, .. }) => {
                if let Failure::Status(status) = failure {
                    span.number("http.response.status_code", (*status).into());
                }
                span.fail(failure);
                failure.kind()
            }
        };
        Self { span, outcome, received: 0 }
    }

    /// The body is whole.
    fn end(&mut self) {
        self.outcome = "ok";
    }

    fn fail(&mut self, failure: &Failure) {
        self.span.fail(failure);
        self.outcome = failure.kind();
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.span.word("tidegate.outcome", self.outcome);
        self.span.number("http.response.body.size", self.received);
    }
}

/// A stream of the body of an answer.
pub type Received = Pin<Box<dyn Stream<Item = Result<Bytes, Failure>> + Send>>;

/// Whether an answer is one: all else is a failure with a name.
pub(super) fn accept(answer: Response<Incoming>, ask: &Ask<'_>) -> Result<Response<Incoming>, Refused> {
    let status = answer.status();
    let whole = status == StatusCode::OK;
    let part = status == StatusCode::PARTIAL_CONTENT && (ask.from > 0 || ask.until.is_some());
    if !whole && !part {
        let registry = &ask.place.registry;
        let failure = match status.as_u16() {
            code @ (401 | 403) => {
                Failure::Auth { reason: format!("{registry} answers {code}"), refused: true, wrong_password: false }
            }
            508 => Failure::Other(format!("{registry} answers 508: it asks this mirror in turn, in a circle")),
            code => Failure::Status(code),
        };
        let headers = answer.headers();
        return Err(Refused { failure, retry_after: retry_after(headers), rate_limit: rate_limit(headers) });
    }
    if let Some(coding) = answer.headers().get(CONTENT_ENCODING)
        && coding != "identity"
    {
        return Err(Failure::Other("the content is encoded, which was not asked for".to_owned()).into());
    }
    Ok(answer)
}

/// Reads `Retry-After`, in seconds or as a date. Nonsense is none; what is past reason is cut.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let duration = if digits {
        // More digits than a number has are a long time, too.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).unwrap_or_default()
    };
    Some(duration.min(RETRY_AFTER_MAX))
}

/// What a registry tells of its limits, by name in lower case.
pub(super) fn rate_limit(headers: &HeaderMap) -> Vec<(String, String)> {
    let value = |name: &str| headers.get(name)?.to_str().ok().filter(|value| value.len() <= RATE_LIMIT_MAX);
    RATE_LIMIT.iter().filter_map(|name| Some(((*name).to_owned(), value(name)?.to_owned()))).collect()
}

impl Answer {
    /// A header as text; none where it is absent or no text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The length that the headers promise. Units: bytes.
    pub fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// The first byte of the part that this is, and the length of the whole; none where it is no part.
    ///
    /// Source: RFC 9110, section 14.4.
    pub fn part(&self) -> Option<(u64, Option<u64>)> {
        let (range, total) = self.header("content-range")?.strip_prefix("bytes ")?.split_once('/')?;
        let first = range.split_once('-')?.0.parse().ok()?;
        Some((first, total.parse().ok()))
    }

    /// The body as it comes. It fails when it is silent for too long, comes too slowly, or ends before its length.
    pub fn stream(self) -> Received {
        let pace = Pace::new(self.source.idle, self.source.min_rate);
        Box::pin(try_unfold((self.body, self.source, pace), |(mut body, mut source, mut pace)| async move {
            loop {
                let began = Instant::now();
                let frame = tokio::time::timeout(source.idle, body.frame()).await;
                // Only the time in which it was waited for counts: a disk that is slow here is no fault there.
                let waited = began.elapsed();
                let failure = match frame {
                    Err(_) => Failure::Timeout,
                    Ok(None) => {
                        source.health.good(&source.registry, Stage::Body);
                        source.traced.end();
                        return Ok(None);
                    }
                    // Reset, closed early, cut at the edge of a chunk: all that hyper tells is that it is not whole.
                    Ok(Some(Err(_))) => Failure::Truncated,
                    Ok(Some(Ok(frame))) => {
                        let Ok(chunk) = frame.into_data() else { continue };
                        source.received.inc_by(chunk.len() as u64);
                        source.traced.received += chunk.len() as u64;
                        if pace.keeps(waited, chunk.len() as u64) {
                            return Ok(Some((chunk, (body, source, pace))));
                        }
                        Failure::Timeout
                    }
                };
                source.health.bad(&source.registry, Stage::Body, &failure, source.ailing, Instant::now());
                source.traced.fail(&failure);
                return Err(failure);
            }
        }))
    }

    /// The whole body, which must not be longer than `max` bytes.
    pub async fn collect(self, max: usize) -> Result<Bytes, Failure> {
        let mut stream = self.stream();
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk?);
            if bytes.len() > max {
                return Err(Failure::Other(format!("the content is longer than {max} bytes")));
            }
        }
        Ok(bytes.into())
    }
}

/// How fast a body comes, over a window that moves on with the time in which it is waited for.
pub(super) struct Pace {
    window: Duration,
    /// What a window must bring. Units: bytes.
    least: u64,
    waited: Duration,
    bytes: u64,
    /// What had come, and how long it had been waited for, at the end of each step of the last window.
    marks: VecDeque<(Duration, u64)>,
}

impl Pace {
    pub fn new(window: Duration, rate: u64) -> Self {
        let least = u64::try_from(u128::from(rate) * window.as_millis() / 1000).unwrap_or(u64::MAX);
        Self { window, least, waited: Duration::ZERO, bytes: 0, marks: VecDeque::from([(Duration::ZERO, 0)]) }
    }

    /// Takes note of bytes that came after a wait, and says whether the body still comes fast enough.
    pub fn keeps(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        // The latest mark that is a whole window old.
        while self.marks.get(1).is_some_and(|(at, _)| self.waited >= *at + self.window) {
            self.marks.pop_front();
        }
        let slow = self
            .marks
            .front()
            .is_some_and(|(at, before)| self.waited >= *at + self.window && self.bytes - before < self.least);
        if self.marks.back().is_none_or(|(at, _)| self.waited >= *at + self.window / STEPS) {
            self.marks.push_back((self.waited, self.bytes));
        }
        !slow
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn u10_retry_after_is_believed_within_reason() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::try_from(value).expect("a header"));
            retry_after(&headers)
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read("0"), Some(Duration::ZERO));
        for long in ["315360000", "99999999999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"] {
            assert_eq!(read(long), Some(RETRY_AFTER_MAX), "{long}");
        }
        assert_eq!(read("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        for junk in ["-1", "+1", "soon", "", "1e9", "1.5", "Wed, 99 Oct 2015 07:28:00 GMT"] {
            assert_eq!(read(junk), None, "{junk}");
        }
    }

    #[test]
    fn rate_limits_are_told_within_bounds() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("ratelimit-limit", "100;w=21600".to_owned()),
            ("RateLimit-Remaining", "0;w=21600".to_owned()),
            ("x-ratelimit-reset", "9".repeat(1000)),
            ("set-cookie", "secret".to_owned()),
        ] {
            headers.insert(
                hyper::header::HeaderName::try_from(name).expect("a name"),
                HeaderValue::try_from(value).expect("a value"),
            );
        }
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            rate_limit(&headers),
            [pair("ratelimit-limit", "100;w=21600"), pair("ratelimit-remaining", "0;w=21600")]
        );
    }

    #[test]
    fn u3_a_body_must_bring_its_least_in_every_window_of_waiting() {
        let window = Duration::from_secs(30);
        let second = Duration::from_secs(1);
        let mut drip = Pace::new(window, 1024);
        let ended = (1..100).find(|_| !drip.keeps(second, 1)).expect("it is ended");
        assert_eq!(ended, 30);
        let mut steady = Pace::new(window, 1024);
        assert!((0..10_000).all(|_| steady.keeps(second, 1025)));
        assert!(steady.marks.len() <= STEPS as usize + 2, "{} marks", steady.marks.len());
        // A burst does not make up for what comes after it.
        let mut burst = Pace::new(window, 1024);
        assert!(burst.keeps(second, 1 << 30));
        let ended = (1..100).find(|_| !burst.keeps(second, 1)).expect("it is ended");
        assert!(ended <= 40, "{ended}");
        // Time in which nobody waits is none.
        let mut unread = Pace::new(window, 1024);
        assert!((0..10_000).all(|_| unread.keeps(Duration::ZERO, 1)));
        let mut free = Pace::new(window, 0);
        assert!((0..1000).all(|_| free.keeps(second, 0)));
    }
}
