//! The time of a call: what its guest runs, and what it waits for in host functions of its own will. Time in which the
//! machine is busy with others, or in which the program looks something up for it, is not counted.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::engine::TICK;

/// What of its time a call has left. Shared by the guest, which runs, and by who waits for it.
#[derive(Default, Debug)]
pub(super) struct Meter {
    /// Ticks of the epoch.
    ticks_left: AtomicU32,
    /// The guest was interrupted by a tick, and did not wait for anything.
    yielded: AtomicBool,
    /// The program looks something up for the guest.
    looking: AtomicBool,
}

impl Meter {
    /// Begins a call.
    pub fn begin(&self, time: Duration) {
        self.ticks_left.store(ticks(time), Ordering::Relaxed);
        self.yielded.store(false, Ordering::Relaxed);
        self.looking.store(false, Ordering::Relaxed);
    }

    /// One tick of the epoch has passed while the guest ran: whether it may go on.
    pub fn tick(&self) -> bool {
        self.yielded.store(true, Ordering::Relaxed);
        self.spend(1) > 0
    }

    /// Units: milliseconds.
    pub fn left_ms(&self) -> u32 {
        self.ticks_left.load(Ordering::Relaxed)
    }

    /// Does what is not the guest's to pay for.
    pub async fn free<T>(&self, looking: impl Future<Output = T>) -> T {
        self.looking.store(true, Ordering::Relaxed);
        let found = looking.await;
        self.looking.store(false, Ordering::Relaxed);
        found
    }

    fn spend(&self, ticks: u32) -> u32 {
        let left = self.ticks_left.load(Ordering::Relaxed).saturating_sub(ticks);
        self.ticks_left.store(left, Ordering::Relaxed);
        left
    }
}

fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u32::MAX)
}

/// Its time is over.
#[derive(Debug)]
pub(super) struct Late;

/// A call of a guest, which ends when its guest has waited too long.
pub(super) struct Metered<'a, F> {
    call: Pin<&'a mut F>,
    meter: &'a Meter,
    /// Since when the guest waits.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl<'a, F: Future> Metered<'a, F> {
    pub fn new(meter: &'a Meter, call: Pin<&'a mut F>) -> Self {
        Self { call, meter, waiting: None }
    }
}

impl<F: Future> Future for Metered<'_, F> {
    type Output = Result<F::Output, Late>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let waited = this.waiting.as_ref().map_or(Duration::ZERO, |(since, _)| since.elapsed());
        if let Poll::Ready(output) = this.call.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        let busy = this.meter.yielded.swap(false, Ordering::Relaxed) || this.meter.looking.load(Ordering::Relaxed);
        if busy {
            if this.waiting.take().is_some() {
                this.meter.spend(ticks(waited));
            }
            return Poll::Pending;
        }
        let left = TICK * this.meter.left_ms();
        let (_, sleep) = this.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(tokio::time::sleep(left))));
        match sleep.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(Late)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Ends what takes longer than `time`, from when it first has to wait: what need not wait needs no timer.
pub(super) async fn within<T>(time: Duration, work: impl Future<Output = T>) -> Result<T, Late> {
    let mut work = pin!(work);
    let mut end: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        let end = end.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
        end.as_mut().poll(cx).map(|()| Err(Late))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn p1_a_guest_that_waits_is_ended_and_one_that_is_made_to_wait_is_not() {
        let meter = Meter::default();
        meter.begin(Duration::from_millis(20));
        let begun = Instant::now();
        let late = Metered::new(&meter, pin!(std::future::pending::<()>())).await;
        assert!(late.is_err());
        assert!(begun.elapsed() >= Duration::from_millis(20));
        meter.begin(Duration::from_millis(20));
        let looked_up = meter.free(tokio::time::sleep(Duration::from_millis(100)));
        assert!(Metered::new(&meter, pin!(looked_up)).await.is_ok());
        assert_eq!(meter.left_ms(), 20);
        for left in (0..20).rev() {
            assert_eq!(meter.tick(), left > 0);
        }
    }
}
