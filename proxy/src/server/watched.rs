//! The body on its way out, counted, and the line that the log gets when it has ended.

use std::borrow::Cow;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use bytes::Buf;
use http_body::{Body as _, Frame, SizeHint};

use super::again::Repeated;
use super::decisions::{Over, note};
use crate::body::{Body, Piece, Short};
use crate::config::Log;
use crate::metrics::{Metrics, Request as RequestLabels, Written};
use crate::oci::{Action, Asked, Digest, Reference};
use crate::plugin::{Facts, Identity};
use crate::pull::Source;
use crate::record::Journal;
use crate::trace::{Scope, Span};

/// How far an answer is.
pub(super) struct Progress {
    started: Instant,
    first_byte: Option<Duration>,
    pub sent: u64,
    broken: Option<String>,
    /// There is a body, and not all of it was taken.
    unfinished: bool,
}

impl Progress {
    pub fn begin() -> Self {
        Self { started: Instant::now(), first_byte: None, sent: 0, broken: None, unfinished: false }
    }

    /// When the request came.
    pub fn started(&self) -> Instant {
        self.started
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// When the first byte of the body went out. `took`: until all of it had.
    pub fn first_byte(&self, took: Duration) -> Option<Duration> {
        self.first_byte.or((self.sent > 0).then_some(took))
    }

    /// For how long it has been answered.
    pub fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Why its body ended short, once it has ended.
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref().or(self.unfinished.then_some("the connection ended before the body"))
    }

    fn note(&mut self, frame: Option<&Result<Frame<Piece>, Short>>, body: &Body) {
        match frame {
            Some(Ok(frame)) => {
                // Where it is the last one too, a look at the clock is saved.
                if self.first_byte.is_none() && !body.is_end_stream() {
                    self.first_byte = Some(self.started.elapsed());
                }
                self.sent += frame.data_ref().map_or(0, Buf::remaining) as u64;
                // A body whose length was promised is not asked again once it has that much.
                if body.is_end_stream() || body.length() == Some(self.sent) {
                    self.unfinished = false;
                }
            }
            Some(Err(short)) => self.broken = Some(short.to_string()),
            None => self.unfinished = false,
        }
    }
}

/// What is told of a request when it is over.
pub(super) struct Record {
    metrics: Arc<Metrics>,
    log: bool,
    span: Span,
    /// The id of its trace; none: there is nothing to find under it.
    trace: Option<String>,
    pub id: String,
    client: IpAddr,
    /// Who asks, where that is known.
    subject: Option<String>,
    /// For the log and the trace; empty without either.
    method: String,
    path: String,
    /// An answer to it has no body.
    bodiless: bool,
    progress: Progress,
    pub asked: Option<Asked>,
    pub status: u16,
    pub source: Option<Source>,
    /// What the policy decided: `allow`, `cached-only` or `deny`; none: it was not asked.
    pub decision: Option<&'static str>,
    /// Which plugin decided so.
    pub policy: Option<String>,
    /// Why it was refused.
    pub reason: Option<String>,
    pub warnings: Vec<String>,
    /// Of what is served.
    pub digest: Option<Digest>,
    /// Who wants to know what was decided, and what the policy knew of the request.
    journal: Arc<Journal>,
    began: SystemTime,
    pub facts: Option<Arc<Facts>>,
    /// Of the body of a push, as it comes. Units: bytes.
    pub received: Arc<AtomicU64>,
}

impl Record {
    /// `id`: of the request.
    pub fn new(
        metrics: &Arc<Metrics>,
        journal: &Arc<Journal>,
        log: &Log,
        id: String,
        client: IpAddr,
        request: (&hyper::Method, &str),
    ) -> Self {
        let (log, (method, path)) = (log.access, request);
        metrics.in_flight.inc();
        Self {
            metrics: metrics.clone(),
            log,
            span: Span::default(),
            trace: None,
            id,
            client,
            subject: None,
            method: if log { method.to_string() } else { String::new() },
            path: if log { shown(path).into_owned() } else { String::new() },
            bodiless: *method == hyper::Method::HEAD,
            progress: Progress::begin(),
            asked: None,
            status: 0,
            source: None,
            decision: None,
            policy: None,
            reason: None,
            warnings: Vec::new(),
            digest: None,
            journal: journal.clone(),
            began: SystemTime::now(),
            facts: None,
            received: Arc::default(),
        }
    }

    /// Takes up the span that was begun for a request, which is told of it when it is over.
    pub fn trace(&mut self, begun: (Span, Option<String>), request: (&hyper::Method, &str)) {
        (self.span, self.trace) = begun;
        if self.span.is_on() && !self.log {
            (self.method, self.path) = (request.0.to_string(), shown(request.1).into_owned());
        }
    }

    /// Takes note of what the policy decided, and has to say.
    pub fn decided(&mut self, facts: &Facts) {
        self.warnings = facts.take_warnings();
        if let Some(decision) = facts.decision() {
            self.decision = Some(decision.as_str());
            self.policy = decision.policy();
        }
    }

    /// Who asks.
    pub fn known(&mut self, identity: Option<&Identity>) {
        self.subject = identity.filter(|_| self.log).map(|identity| identity.subject.clone());
    }

    /// The address that it comes from.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// Whether its line goes into the decision record.
    pub fn is_written(&self) -> bool {
        self.journal.writes()
    }

    /// Bytes of the body of a push that came in.
    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// What a request does that is no pull, and the bytes that it brought.
    fn written(&self) -> Option<(Action, u64)> {
        let action = self.asked.as_ref()?.action();
        (action != Action::Pull).then(|| (action, self.received()))
    }

    /// What became of it so far; none of what asks for nothing that a policy decides over.
    pub fn over(&self) -> Option<Over> {
        Some(Over {
            asked: self.asked.clone()?,
            facts: self.facts.clone()?,
            began: self.began,
            decision: self.decision,
            policy: self.policy.clone(),
            source: self.source,
            status: self.status,
            digest: self.digest,
            sent: self.progress.sent,
            received: self.received(),
            elapsed_ms: self.progress.elapsed_ms(),
            warnings: self.warnings.clone(),
            reason: self.reason.clone(),
            broken: self.progress.broken().map(str::to_owned),
        })
    }

    /// Where what is done for it is done.
    pub fn scope(&self) -> Scope {
        self.span.scope().clone()
    }

    /// Tells its span what became of it. The names are those of OpenTelemetry's semantic conventions, and else ours.
    fn tell_trace(&self, content: &'static str, source: &'static str) {
        let span = self.span.scope();
        let known = matches!(self.method.as_str(), "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS");
        let method = if known { self.method.as_str() } else { "_OTHER" };
        span.rename(format_args!("{} {content}", if known { method } else { "HTTP" }));
        span.text("http.request.method", method);
        span.text("url.path", &self.path);
        span.text("client.address", self.client);
        span.text("tidegate.request", &self.id);
        if let Some(asked) = &self.asked {
            span.text("tidegate.registry", &asked.place().registry);
            span.text("tidegate.repository", &asked.place().repository);
            span.word("tidegate.addressing", asked.addressing().as_str());
            match asked.reference() {
                Some(Reference::Tag(tag)) => span.text("tidegate.reference", &tag),
                Some(Reference::Digest(digest)) => span.text("tidegate.digest", digest),
                None => {}
            }
            if asked.action() != Action::Pull {
                span.word("tidegate.action", asked.action().as_str());
                span.number("http.request.body.size", self.received());
            }
        }
        span.word("tidegate.source", source);
        let texts = [
            ("tidegate.policy", self.policy.as_deref()),
            ("tidegate.reason", self.reason.as_deref()),
            ("tidegate.broken", self.progress.broken()),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                span.text(key, text);
            }
        }
        if let Some(decision) = self.decision {
            span.word("tidegate.decision", decision);
        }
        span.number("http.response.body.size", self.progress.sent);
        match (self.status, self.progress.broken()) {
            (0, _) => return span.fail("the client went before its answer"),
            (_, Some(broken)) => span.fail(broken),
            (500.., None) => span.fail(self.reason.as_deref().unwrap_or_default()),
            _ => {}
        }
        span.number("http.response.status_code", self.status.into());
    }
}

/// A path without the name of an upload: who has that may write to it.
fn shown(path: &str) -> Cow<'_, str> {
    const UPLOADS: &str = "/blobs/uploads/";
    match path.split_once(UPLOADS) {
        Some((before, upload)) if !upload.is_empty() => Cow::Owned(format!("{before}{UPLOADS}...")),
        _ => Cow::Borrowed(path),
    }
}

/// Unique among the requests of this process; the start of the process makes it so among processes, as far as a
/// person who reads a log needs it.
pub(super) fn next_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static START: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    let start = START.get_or_init(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        now.as_secs() << 16 | u64::from(std::process::id() & 0xffff)
    });
    format!("{:x}-{:x}", start & 0xffff_ffff_ffff, NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Drop for Record {
    fn drop(&mut self) {
        let content = self.asked.as_ref().map_or("other", Asked::kind);
        let source = self.source.map_or("none", Source::as_str);
        if std::thread::panicking() {
            self.status = 500;
        }
        self.metrics.in_flight.dec();
        if let Some((action, _)) = self.written() {
            let labels = Written { action: action.as_str(), content, status: self.status };
            self.metrics.pushes.get_or_create(&labels).inc();
        }
        let answers = self.metrics.answers(&RequestLabels { content, status: self.status, source });
        let took = self.progress.elapsed();
        answers.count(self.progress.sent, took, self.progress.first_byte(took));
        if self.journal.is_on()
            && let Some(over) = self.over()
        {
            note(&self.journal, over);
        }
        if self.span.is_on() {
            self.tell_trace(content, source);
        }
        if !self.log {
            return;
        }
        // What a client sent is escaped: no line of the log is written by it.
        tracing::info!(
            request = self.id,
            trace = self.trace,
            client = %self.client,
            subject = self.subject.as_ref().map(|subject| subject.escape_debug().to_string()),
            method = self.method,
            path = self.path.escape_debug().to_string(),
            action = self.written().map(|(action, _)| action.as_str()),
            pull = self.asked.as_ref().map(ToString::to_string),
            addressing = self.asked.as_ref().map(|asked| asked.addressing().as_str()),
            status = self.status,
            source,
            sent_bytes = self.progress.sent,
            received_bytes = self.written().map(|(_, received)| received),
            elapsed_ms = self.progress.elapsed_ms(),
            decision = self.decision,
            policy = self.policy,
            reason = self.reason,
            broken = self.progress.broken(),
            "request"
        );
    }
}

/// Who counts a body.
enum Account {
    /// Its request was counted before.
    Nobody,
    First(Box<Record>),
    Again(Repeated),
}

impl Account {
    fn progress(&mut self) -> Option<&mut Progress> {
        match self {
            Self::Nobody => None,
            Self::First(record) => Some(&mut record.progress),
            Self::Again(repeated) => Some(&mut repeated.progress),
        }
    }
}

/// Whether there is a body to be sent: one of no bytes is not even asked for.
fn is_to_come(body: &Body) -> bool {
    !body.is_end_stream() && body.size_hint().exact() != Some(0)
}

/// A body that is counted.
pub(super) struct Watched {
    body: Body,
    account: Account,
    /// Why it ends short, once that is known.
    broken: Option<Short>,
}

impl Watched {
    pub fn new(body: Body, mut record: Record) -> Self {
        record.progress.unfinished = !record.bodiless && is_to_come(&body);
        Self { body, account: Account::First(Box::new(record)), broken: None }
    }

    /// The body of an answer that was given before.
    pub fn again(body: Body, mut repeated: Repeated) -> Self {
        repeated.progress.unfinished = is_to_come(&body);
        Self { body, account: Account::Again(repeated), broken: None }
    }

    /// A body of a request that was counted before.
    pub fn uncounted(body: Body) -> Self {
        Self { body, account: Account::Nobody, broken: None }
    }
}

impl http_body::Body for Watched {
    type Data = Piece;
    type Error = Short;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, Short>>> {
        let Self { body, account, broken } = self.get_mut();
        if let Some(short) = broken.take() {
            return Poll::Ready(Some(Err(short)));
        }
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        if let Some(progress) = account.progress() {
            progress.note(frame.as_ref(), body);
        }
        match frame {
            // An error ends the connection at once, with what was not flushed yet: a head that the client never sees
            // would be no answer at all. So it is told one turn later.
            Some(Err(short)) => {
                *broken = Some(short);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            frame => Poll::Ready(frame),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn i6_a_body_that_breaks_at_once_leaves_a_turn_for_its_head() {
        let chunks = futures_util::stream::iter([Err(Short("gone".to_owned()))]);
        let mut body = Watched::uncounted(Body::stream(Box::pin(chunks), Some(5)));
        let mut turns = 0;
        let frame = std::future::poll_fn(|cx| {
            turns += 1;
            Pin::new(&mut body).poll_frame(cx)
        });
        assert!(frame.await.is_some_and(|frame| frame.is_err()));
        assert_eq!(turns, 2);
        assert!(body.frame().await.is_none());
    }
}
