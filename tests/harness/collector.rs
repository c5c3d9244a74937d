//! A collector of traces that takes OTLP over HTTP, and keeps what it gets.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{Span as Sent, span::SpanKind, status::StatusCode};
use prost::Message;

use crate::gate::Gate;
use crate::http::{Fields, read_line};
use crate::{HANG, own_address};

/// Serves until the test ends.
#[derive(Clone, Debug)]
pub struct Collector {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// A span that it got.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its name.
    pub name: String,
    /// What was taken over of a client's `tracestate`.
    pub state: String,
    /// Of its trace, in hex.
    pub trace: String,
    /// Its own id, in hex.
    pub id: String,
    /// The id of the span above it; empty: there is none.
    pub parent: String,
    /// Its kind.
    pub kind: SpanKind,
    /// Its attributes, as text.
    pub attributes: BTreeMap<String, String>,
    /// Why it failed; none: it did not.
    pub failed: Option<String>,
    /// The spans that it points at, in hex.
    pub links: Vec<String>,
    /// Names and texts of what happened in it.
    pub events: Vec<(String, String)>,
    /// What is told of the process.
    pub resource: BTreeMap<String, String>,
    /// From its beginning to its end. Units: nanoseconds since 1970.
    pub time: (u64, u64),
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    connections: usize,
    /// The head fields and the path of each message.
    heads: Vec<(String, Fields)>,
    spans: Vec<Span>,
    status: Option<u16>,
    /// How many spans of each message it says that it does not take.
    rejected: i64,
    gate: Option<Gate>,
}

impl Collector {
    /// Starts one that takes everything.
    pub fn start() -> Self {
        Self::start_at(SocketAddr::from((own_address(), 0)))
    }

    /// Starts one at an address.
    pub fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        let collector = Self { address: listener.local_addr().unwrap(), shared: Arc::default() };
        let accepting = collector.clone();
        // It ends with the process of the tests.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                accepting.lock().connections += 1;
                let serving = accepting.clone();
                // An error is a peer that went away.
                thread::spawn(move || drop(serving.serve(&stream)));
            }
        });
        collector
    }

    /// Without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Host and port.
    pub fn authority(&self) -> String {
        self.address.to_string()
    }

    /// Answers every message with a status from now on, and keeps nothing of it; none: takes all again.
    pub fn refuse(&self, status: Option<u16>) {
        self.lock().status = status;
    }

    /// Says of each message from now on that so many of its spans are not taken.
    pub fn reject(&self, spans: i64) {
        self.lock().rejected = spans;
    }

    /// Answers nothing before a gate is open.
    pub fn hold(&self, gate: &Gate) {
        self.lock().gate = Some(gate.clone());
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.lock().connections
    }

    /// Path and head fields of all messages so far.
    pub fn heads(&self) -> Vec<(String, Fields)> {
        self.lock().heads.clone()
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.lock().spans.clone()
    }

    /// Waits until what has come so far is enough for `find`.
    pub fn wait<T>(&self, what: &str, find: impl Fn(&[Span]) -> Option<T>) -> T {
        let mut found = None;
        let waited = self.shared.news.wait_timeout_while(self.lock(), HANG, |state| {
            found = find(&state.spans);
            found.is_none()
        });
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        found.unwrap_or_else(|| {
            let names: Vec<_> = state.spans.iter().map(|span| (&span.name, &span.attributes)).collect();
            panic!("no {what} within {HANG:?}; there are {names:#?}")
        })
    }

    /// Waits for the first span with a name and such attributes.
    pub fn wait_for(&self, name: &str, attributes: &[(&str, &str)]) -> Span {
        let is = |span: &&Span| span.name == name && attributes.iter().all(|(key, value)| span.text(key) == *value);
        self.wait(&format!("{name} with {attributes:?}"), |spans| spans.iter().find(is).cloned())
    }

    fn serve(&self, mut stream: &TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let line = read_line(&mut reader)?;
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            let fields = Fields::read(&mut reader)?;
            let length = fields.get("Content-Length").and_then(|length| length.parse().ok()).unwrap_or_default();
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            let gate = self.lock().gate.clone();
            if let Some(gate) = gate {
                gate.pass();
            }
            let (status, told) = {
                let mut state = self.lock();
                state.heads.push((path, fields));
                if state.status.is_none() {
                    state.spans.extend(read_spans(&body));
                }
                let partial = ExportTracePartialSuccess { rejected_spans: state.rejected, ..Default::default() };
                let told = ExportTraceServiceResponse { partial_success: (state.rejected > 0).then_some(partial) };
                (state.status.unwrap_or(200), told.encode_to_vec())
            };
            self.shared.news.notify_all();
            let head = format!("HTTP/1.1 {status} Told\r\nContent-Length: {}\r\n\r\n", told.len());
            stream.write_all(&[head.as_bytes(), &told].concat())?;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Span {
    /// An attribute as text; empty where there is none.
    pub fn text(&self, key: &str) -> &str {
        self.attributes.get(key).map(String::as_str).unwrap_or_default()
    }

    /// Every text in it.
    pub fn texts(&self) -> Vec<String> {
        let pairs = self.attributes.iter().chain(&self.resource).flat_map(|(key, value)| [key.clone(), value.clone()]);
        let events = self.events.iter().flat_map(|(name, text)| [name.clone(), text.clone()]);
        pairs.chain(events).chain([self.name.clone(), self.state.clone()]).chain(self.failed.clone()).collect()
    }
}

fn read_spans(body: &[u8]) -> Vec<Span> {
    let message = ExportTraceServiceRequest::decode(body).expect("a message of OTLP");
    let mut spans = Vec::new();
    for group in message.resource_spans {
        let resource = texts(&group.resource.unwrap_or_default().attributes);
        for sent in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(read_span(sent, resource.clone()));
        }
    }
    spans
}

fn read_span(sent: Sent, resource: BTreeMap<String, String>) -> Span {
    let (kind, status) = (sent.kind(), sent.status.clone().unwrap_or_default());
    let event = |event: &opentelemetry_proto::tonic::trace::v1::span::Event| {
        (event.name.clone(), texts(&event.attributes).into_values().collect())
    };
    Span {
        kind,
        name: sent.name,
        state: sent.trace_state,
        trace: hex(&sent.trace_id),
        id: hex(&sent.span_id),
        parent: hex(&sent.parent_span_id),
        attributes: texts(&sent.attributes),
        failed: (status.code == StatusCode::Error as i32).then_some(status.message),
        links: sent.links.iter().map(|link| hex(&link.span_id)).collect(),
        events: sent.events.iter().map(event).collect(),
        resource,
        time: (sent.start_time_unix_nano, sent.end_time_unix_nano),
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: any_value::Value| match value {
        any_value::Value::StringValue(text) => text,
        any_value::Value::IntValue(number) => number.to_string(),
        other => panic!("no text and no number: {other:?}"),
    };
    let value = |pair: &KeyValue| pair.value.clone().and_then(|value| value.value).map(text).unwrap_or_default();
    attributes.iter().map(|pair| (pair.key.clone(), value(pair))).collect()
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}
