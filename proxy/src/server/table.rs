//! The connections of one listener: how many there may be, and which must go first when there are too many.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How long a connection that was told to go may take, before another is told.
const GO_WAIT: Duration = Duration::from_millis(50);

/// All connections of a listener.
#[derive(Default)]
pub(super) struct Table {
    state: Mutex<State>,
    freed: Notify,
    open: Gauge,
}

#[derive(Default)]
struct State {
    open: usize,
    next: u64,
    /// Those without a request, the one that has none for longest first.
    idle: BTreeMap<(Instant, u64), CancellationToken>,
}

/// The place of one connection, until it is dropped.
pub(super) struct Place {
    table: Arc<Table>,
    id: u64,
    now: Mutex<Now>,
    go: CancellationToken,
}

/// What a connection does now.
struct Now {
    requests: usize,
    /// Since there is none.
    idle_since: Instant,
}

/// A request is under way, or its answer.
pub(super) struct Busy(Arc<Place>);

impl Table {
    /// `open`: counts the connections.
    pub fn new(open: Gauge) -> Arc<Self> {
        Arc::new(Self { open, ..Self::default() })
    }

    /// Waits for a place among `max`. Where there is none, the connection that has been idle for longest gives its own:
    /// a client that asks goes before one that does not.
    pub async fn enter(self: &Arc<Self>, max: usize) -> Arc<Place> {
        loop {
            if let Some(place) = self.try_enter(max) {
                return place;
            }
            self.shed();
            let _ = tokio::time::timeout(GO_WAIT, self.freed.notified()).await;
        }
    }

    /// Ends the connection that has been idle for longest. Whether there is one.
    pub fn shed(&self) -> bool {
        let oldest = self.lock().idle.pop_first();
        oldest.map(|(_, go)| go.cancel()).is_some()
    }

    /// Waits until a connection ends.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }

    fn try_enter(self: &Arc<Self>, max: usize) -> Option<Arc<Place>> {
        let mut state = self.lock();
        if state.open >= max {
            return None;
        }
        state.open += 1;
        state.next += 1;
        self.open.inc();
        let (id, idle_since, go) = (state.next, Instant::now(), CancellationToken::new());
        state.idle.insert((idle_since, id), go.clone());
        let now = Mutex::new(Now { requests: 0, idle_since });
        Some(Arc::new(Place { table: self.clone(), id, now, go }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// A request begins.
    pub fn begin(self: &Arc<Self>) -> Busy {
        let mut now = self.lock();
        now.requests += 1;
        if now.requests == 1 {
            self.table.lock().idle.remove(&(now.idle_since, self.id));
        }
        drop(now);
        Busy(self.clone())
    }

    /// For how long there was no request; none while there is one.
    pub fn idle_for(&self) -> Option<Duration> {
        let now = self.lock();
        (now.requests == 0).then(|| now.idle_since.elapsed())
    }

    /// Waits until another needs the place.
    pub async fn must_go(&self) {
        self.go.cancelled().await;
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut now = self.0.lock();
        now.requests -= 1;
        if now.requests == 0 {
            now.idle_since = Instant::now();
            self.0.table.lock().idle.insert((now.idle_since, self.0.id), self.0.go.clone());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let idle_since = self.lock().idle_since;
        let mut state = self.table.lock();
        state.open -= 1;
        state.idle.remove(&(idle_since, self.id));
        drop(state);
        self.table.open.dec();
        self.table.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn c3_a_full_table_gives_the_place_of_who_is_idle_for_longest() {
        let table = Table::new(Gauge::default());
        let [first, second, third] = [table.enter(3).await, table.enter(3).await, table.enter(3).await];
        let busy = first.begin();
        let waiting = tokio::spawn({
            let table = table.clone();
            async move { table.enter(3).await }
        });
        // The first is busy: the second has to go.
        second.must_go().await;
        assert!(!first.go.is_cancelled() && !third.go.is_cancelled());
        drop(second);
        let fourth = waiting.await.expect("no panic");
        drop(busy);
        assert!(first.idle_for().is_some());
        // Now the third is idle for longest, then the fourth, then the first.
        for next in [&third, &fourth, &first] {
            assert!(table.shed());
            next.must_go().await;
        }
        assert!(!table.shed(), "nobody is idle who was not told");
        drop((first, third, fourth));
        let state = table.lock();
        assert_eq!((state.open, state.idle.len()), (0, 0));
    }

    #[tokio::test]
    async fn who_waits_gets_a_place_that_is_freed() {
        let table = Table::new(Gauge::default());
        let place = table.enter(1).await;
        let busy = place.begin();
        let waiting = tokio::spawn({
            let table = table.clone();
            async move { table.enter(1).await }
        });
        drop((busy, place));
        waiting.await.expect("no panic");
    }
}
