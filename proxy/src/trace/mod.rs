//! Traces by OpenTelemetry: a span of each request, and of what is done for it.
//!
//! Where traces are off, and for a request that is not sampled, a span is nothing: it takes no memory and no time.

mod collector;
mod delivery;
mod text;

use std::fmt::Display;
use std::ops::Deref;

use futures_util::future::Either;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    FutureExt, Span as _, SpanContext, SpanKind, Status, TraceContextExt, Tracer, TracerProvider, WithContext,
};
use opentelemetry::{Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use url::Url;

pub use delivery::{Counted, Delivery};

use collector::Collector;
use delivery::Queue;
use text::clean;

/// Where requests begin their spans. Cheap to share.
#[derive(Clone, Default, Debug)]
pub struct Traces {
    /// None: traces are off.
    tracer: Option<SdkTracer>,
}

/// What a span is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A question to another.
    Client,
    /// Something that is done here.
    Internal,
}

/// One span. It ends when it is dropped.
#[derive(Default, Debug)]
pub struct Span(Scope);

/// Where something is done: what is done within it belongs to its span, also when that has ended.
#[derive(Clone, Default, Debug)]
pub struct Scope(Option<Context>);

/// A span, to be pointed at from another one.
#[derive(Clone, Default, Debug)]
pub struct Link(Option<SpanContext>);

impl Traces {
    /// Starts to deliver spans to `endpoint`, or else to where the environment says; with neither, traces are off.
    /// `ratio`: the part of the requests that begin a trace; none: as the environment says, all where it says nothing.
    pub fn start(endpoint: Option<Url>, ratio: Option<f64>, counted: Counted) -> (Self, Option<Delivery>) {
        let collector = match Collector::find(endpoint) {
            Ok(Some(collector)) => collector,
            Ok(None) => return (Self::default(), None),
            Err(reason) => {
                tracing::error!(reason, "there are no traces: where they are to go cannot be used");
                return (Self::default(), None);
            }
        };
        tracing::info!(collector = collector.place(), "requests are traced");
        let resource = collector::resource();
        let (queue, delivery) = Queue::open(collector, &resource, counted);
        let mut provider = SdkTracerProvider::builder().with_span_processor(queue).with_resource(resource);
        if let Some(ratio) = ratio {
            let own = Sampler::TraceIdRatioBased(ratio);
            provider = provider.with_sampler(Sampler::ParentBased(Box::new(own)));
        }
        (Self { tracer: Some(provider.build().tracer("tidegate")) }, Some(delivery))
    }

    /// Whether any request may have a span.
    pub fn are_on(&self) -> bool {
        self.tracer.is_some()
    }

    /// Begins the span of a request, below the span that its header `traceparent` names. Gives the id of its trace too,
    /// where there is something to find under it, here or with the client.
    ///
    /// Source: W3C Trace Context. Its `tracestate` is for who sends it on, which nobody does here.
    pub fn begin<'a>(&self, traceparents: impl IntoIterator<Item = &'a str>) -> (Span, Option<String>) {
        let Some(tracer) = &self.tracer else { return (Span::default(), None) };
        let mut given = traceparents.into_iter();
        let parent = match (given.next(), given.next()) {
            (Some(header), None) => {
                TraceContextPropagator::new().extract_with_context(&Context::new(), &Header(header))
            }
            // Two of them are none.
            _ => Context::new(),
        };
        let span = tracer.span_builder("request").with_kind(SpanKind::Server).start_with_context(tracer, &parent);
        let about = span.span_context();
        let sampled = about.is_sampled();
        let trace = (sampled || parent.has_active_span()).then(|| about.trace_id().to_string());
        // The tracer goes with the span, so that what is done below it finds it.
        let scope = sampled.then(|| Context::new().with_value(tracer.clone()).with_span(span));
        (Span(Scope(scope)), trace)
    }
}

/// Begins a span below the one that is current.
pub fn child(kind: Kind, name: impl FnOnce() -> String) -> Span {
    scope().child(kind, name)
}

/// Where this is done: within which future that [`Scope::within`] gave.
pub fn scope() -> Scope {
    let traced = Context::map_current(|current| current.get::<SdkTracer>().is_some());
    Scope(traced.then(Context::current))
}

impl Scope {
    /// Begins a span below this one.
    pub fn child(&self, kind: Kind, name: impl FnOnce() -> String) -> Span {
        let began = self.0.as_ref().and_then(|parent| {
            let tracer = parent.get::<SdkTracer>()?;
            let kind = match kind {
                Kind::Client => SpanKind::Client,
                Kind::Internal => SpanKind::Internal,
            };
            let span = tracer.span_builder(clean(name())).with_kind(kind).start_with_context(tracer, parent);
            Some(parent.with_span(span))
        });
        Span(Self(began))
    }

    /// Does something within this.
    pub fn within<F: Future>(&self, work: F) -> Either<F, WithContext<F>> {
        match &self.0 {
            None => Either::Left(work),
            Some(context) => Either::Right(work.with_context(context.clone())),
        }
    }

    /// Whether anybody will see it.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Names the span anew, for what is known only now.
    pub fn rename(&self, name: impl Display) {
        if let Some(context) = &self.0 {
            context.span().update_name(clean(name));
        }
    }

    /// Adds a word of the program.
    pub fn word(&self, key: &'static str, word: &'static str) {
        self.set(key, || StringValue::from(word).into());
    }

    /// Adds a text, bounded and without control characters.
    pub fn text(&self, key: &'static str, text: impl Display) {
        self.set(key, || clean(text).into());
    }

    /// Adds a number.
    pub fn number(&self, key: &'static str, number: u64) {
        self.set(key, || i64::try_from(number).unwrap_or(i64::MAX).into());
    }

    /// Says that it went wrong, and why.
    pub fn fail(&self, reason: impl Display) {
        if let Some(context) = &self.0 {
            context.span().set_status(Status::error(clean(reason)));
        }
    }

    /// Adds that something happened now, and a text about it.
    pub fn event(&self, name: &'static str, key: &'static str, text: impl Display) {
        if let Some(context) = &self.0 {
            context.span().add_event(name, vec![KeyValue::new(key, clean(text))]);
        }
    }

    /// Points at another span.
    pub fn point_at(&self, link: &Link) {
        if let (Some(context), Some(to)) = (&self.0, &link.0) {
            context.span().add_link(to.clone(), Vec::new());
        }
    }

    /// This span, to be pointed at.
    pub fn link(&self) -> Link {
        Link(self.0.as_ref().map(|context| context.span().span_context().clone()))
    }

    fn set(&self, key: &'static str, value: impl FnOnce() -> Value) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(key, value()));
        }
    }
}

impl Span {
    /// What is done within it.
    pub fn scope(&self) -> &Scope {
        &self.0
    }
}

impl Deref for Span {
    type Target = Scope;

    fn deref(&self) -> &Scope {
        &self.0
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        // Those below it may live on, and keep its context.
        if let Some(context) = &self.0.0 {
            context.span().end();
        }
    }
}

/// The one header that is read.
struct Header<'a>(&'a str);

impl Extractor for Header<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == "traceparent").then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_traced_costs_nothing_and_carries_on() {
        let (span, trace) = Traces::default().begin(["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]);
        assert!(!span.is_on() && trace.is_none());
        let below = span.within(async { child(Kind::Client, || panic!("nobody asks for a name")) }).await;
        below.text("key", Unsaid);
        below.fail(Unsaid);
        assert!(!below.is_on() && !scope().is_on());
    }

    /// What must not be put into words.
    struct Unsaid;

    impl Display for Unsaid {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("nobody reads it")
        }
    }

    #[tokio::test]
    async fn the_client_says_whether_its_request_is_traced() {
        let own = |ratio| {
            let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio)));
            let provider = SdkTracerProvider::builder().with_sampler(sampler).build();
            Traces { tracer: Some(provider.tracer("test")) }
        };
        let id = "0af7651916cd43dd8448eb211c80319c";
        let header = |flags: &str| format!("00-{id}-b7ad6b7169203331-{flags}");
        for (ratio, headers, traced, trace) in [
            (1.0, vec![], true, None),
            (0.0, vec![], false, None),
            (0.0, vec![header("01")], true, Some(id)),
            (1.0, vec![header("00")], false, Some(id)),
            (0.0, vec![header("01"), header("01")], false, None),
            (0.0, vec!["00-junk-01".to_owned()], false, None),
            (0.0, vec![format!("00-{}-b7ad6b7169203331-01", "0".repeat(32))], false, None),
        ] {
            let (span, given) = own(ratio).begin(headers.iter().map(String::as_str));
            assert_eq!(span.is_on(), traced, "{ratio} {headers:?}");
            match trace {
                Some(trace) => assert_eq!(given.as_deref(), Some(trace), "{headers:?}"),
                None => assert_eq!(given.is_some(), traced, "{headers:?}"),
            }
            let below = span.within(async { child(Kind::Internal, || "below".to_owned()) }).await;
            assert_eq!(below.is_on(), traced, "{ratio} {headers:?}");
        }
    }
}
