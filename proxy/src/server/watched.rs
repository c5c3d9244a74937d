//! The body on its way out, counted, and the line that the log gets when it has ended.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use crate::body::{Body, Short};
use crate::config::Config;
use crate::metrics::{Metrics, Request as RequestLabels};
use crate::oci::Pull;
use crate::oci::pull::Content;
use crate::pull::Source;

/// What is told of a request when it is over.
pub(super) struct Record {
    metrics: Arc<Metrics>,
    log: bool,
    pub id: String,
    client: IpAddr,
    method: String,
    path: String,
    started: Instant,
    pub pull: Option<Pull>,
    pub status: u16,
    pub source: Option<Source>,
    /// Why it was refused.
    pub reason: Option<String>,
    pub warnings: Vec<String>,
    sent: u64,
    broken: Option<String>,
    /// There is a body, and not all of it was taken.
    unfinished: bool,
}

impl Record {
    pub fn new(metrics: &Arc<Metrics>, config: &Config, client: IpAddr, method: &hyper::Method, path: &str) -> Self {
        metrics.in_flight.inc();
        Self {
            metrics: metrics.clone(),
            log: config.log.access,
            id: next_id(),
            client,
            method: method.to_string(),
            path: path.to_owned(),
            started: Instant::now(),
            pull: None,
            status: 0,
            source: None,
            reason: None,
            warnings: Vec::new(),
            sent: 0,
            broken: None,
            unfinished: false,
        }
    }
}

/// Unique among the requests of this process; the start of the process makes it so among processes, as far as a
/// person who reads a log needs it.
fn next_id() -> String {
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
        let content = self.pull.as_ref().map_or("other", |pull| Content::kind(&pull.content));
        let source = self.source.map_or("none", Source::as_str);
        self.metrics.in_flight.dec();
        self.metrics.requests.get_or_create(&RequestLabels { content, status: self.status, source }).inc();
        self.metrics.sent_bytes.inc_by(self.sent);
        if !self.log {
            return;
        }
        if self.unfinished {
            self.broken.get_or_insert_with(|| "the connection ended before the body".to_owned());
        }
        let elapsed_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        // What a client sent is escaped: no line of the log is written by it.
        tracing::info!(
            request = self.id,
            client = %self.client,
            method = self.method,
            path = self.path.escape_debug().to_string(),
            pull = self.pull.as_ref().map(ToString::to_string),
            addressing = self.pull.as_ref().map(|pull| pull.addressing.as_str()),
            status = self.status,
            source,
            sent_bytes = self.sent,
            elapsed_ms,
            reason = self.reason,
            broken = self.broken,
            "request"
        );
    }
}

/// A body that is counted.
pub(super) struct Watched {
    body: Body,
    record: Record,
}

impl Watched {
    pub fn new(body: Body, mut record: Record) -> Self {
        record.unfinished = record.method != "HEAD" && !body.is_end_stream();
        Self { body, record }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Short;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Short>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                self.record.sent += frame.data_ref().map_or(0, Bytes::len) as u64;
                // A body whose length was promised is not asked again once it has that much.
                if self.body.is_end_stream() || self.body.length() == Some(self.record.sent) {
                    self.record.unfinished = false;
                }
            }
            Some(Err(short)) => self.record.broken = Some(short.to_string()),
            None => self.record.unfinished = false,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
