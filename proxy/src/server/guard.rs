//! Panics: what panics is ended, counted and reported, and nothing else ends with it.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::sync::Arc;

use futures_util::FutureExt;

use crate::metrics::Metrics;

/// Counts every panic of the process, and says where it was. What is said of it is told only where it is a literal of
/// the program: a text that was put together may quote a secret.
pub fn report_panics(metrics: Arc<Metrics>) {
    std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        metrics.panics.inc();
        let place = panic.location().map(ToString::to_string);
        let thread = std::thread::current().name().map(str::to_owned);
        tracing::error!(place, thread, reason = literal(panic.payload()), "panic: this is a fault of tidegate");
    }));
}

fn literal(payload: &(dyn Any + Send)) -> Option<&'static str> {
    payload.downcast_ref::<&'static str>().copied()
}

/// A future that panicked.
#[derive(Debug)]
pub(super) struct Panicked;

/// Runs a future to its end, or to its panic.
pub(super) async fn guarded<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    // What the future shared with others is behind locks that outlive a panic.
    AssertUnwindSafe(work).catch_unwind().await.map_err(|_| Panicked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn t5_a_panic_ends_what_panics_and_nothing_else() {
        let metrics = Arc::new(Metrics::default());
        report_panics(metrics.clone());
        let shared = std::sync::Mutex::new(0);
        let panics = guarded(async {
            let _held = shared.lock();
            tokio::task::yield_now().await;
            assert!(metrics.panics.get() > 100, "a test that panics");
        });
        assert!(panics.await.is_err());
        assert_eq!(metrics.panics.get(), 1);
        assert_eq!(guarded(async { 5 }).await.ok(), Some(5));
        let _ = std::panic::take_hook();
    }

    #[test]
    fn t5_only_a_literal_is_told_of_a_panic() {
        let secret = "hunter2".to_owned();
        assert_eq!(literal(&format!("the password is {secret}")), None);
        assert_eq!(literal(&"it cannot be"), Some("it cannot be"));
    }
}
