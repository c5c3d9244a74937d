//! The way of spans to the collector: a bounded queue, and one task that empties it. Nobody waits for either.

use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use prometheus_client::metrics::counter::Counter;
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::collector::Collector;

/// Spans that wait; a further one is dropped. One has about 2 KiB.
const QUEUE: usize = 2048;
/// Spans in one message.
const BATCH: usize = 512;
/// How long a message waits for more spans.
const GATHER: Duration = Duration::from_secs(1);
/// How long what is left may take at the end of the process.
const FLUSH: Duration = Duration::from_secs(2);

/// What became of the spans.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// The collector took them.
    pub delivered: Counter,
    /// There was no place for them in the queue.
    pub dropped: Counter,
    /// The collector did not take them.
    pub failed: Counter,
}

/// Where spans go when they end.
#[derive(Debug)]
pub(super) struct Queue {
    sender: mpsc::Sender<SpanData>,
    dropped: Counter,
}

/// The task that delivers spans.
#[derive(Debug)]
pub struct Delivery {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Queue {
    /// Opens the queue to a collector.
    pub fn open(collector: Collector, resource: &Resource, counted: Counted) -> (Self, Delivery) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let (stop, dropped) = (CancellationToken::new(), counted.dropped.clone());
        let courier = Courier { collector, resource: resource.into(), counted, queue, lost: None };
        let task = tokio::spawn(courier.run(stop.clone()));
        (Self { sender, dropped }, Delivery { task, stop })
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.sender.try_send(span).is_err() {
            self.dropped.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Delivery {
    /// Delivers what is left, within 2 seconds.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(FLUSH, &mut self.task).await.is_err() {
            tracing::warn!(limit_secs = FLUSH.as_secs(), "the collector of traces did not take the last spans in time");
            self.task.abort();
        }
    }
}

struct Courier {
    collector: Collector,
    resource: ResourceAttributesWithSchema,
    counted: Counted,
    queue: mpsc::Receiver<SpanData>,
    /// Spans that were lost since the collector takes none; none: it does.
    lost: Option<u64>,
}

impl Courier {
    async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        while stop.run_until_cancelled(self.queue.recv_many(&mut batch, BATCH)).await.is_some_and(|some| some > 0) {
            let gathered = tokio::time::timeout(GATHER, async {
                let mut room = BATCH - batch.len();
                while room > 0 {
                    match self.queue.recv_many(&mut batch, room).await {
                        0 => break,
                        more => room -= more,
                    }
                }
            });
            let _ = stop.run_until_cancelled(gathered).await;
            self.deliver(&mut batch).await;
        }
        self.queue.close();
        while self.queue.recv_many(&mut batch, BATCH).await > 0 {
            self.deliver(&mut batch).await;
        }
    }

    async fn deliver(&mut self, batch: &mut Vec<SpanData>) {
        let count = batch.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(std::mem::take(batch), &self.resource);
        let message = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        match self.collector.send(message).await {
            Ok(refused) => {
                let refused = refused.min(count);
                self.counted.delivered.inc_by(count - refused);
                self.counted.failed.inc_by(refused);
                if let Some(lost_spans) = self.lost.take() {
                    tracing::info!(collector = self.collector.place(), lost_spans, "the collector takes traces again");
                }
            }
            Err(reason) => {
                self.counted.failed.inc_by(count);
                if self.lost.is_none() {
                    let collector = self.collector.place();
                    tracing::warn!(collector, reason, "the collector takes no traces: they are lost until it does");
                }
                *self.lost.get_or_insert(0) += count;
            }
        }
    }
}
