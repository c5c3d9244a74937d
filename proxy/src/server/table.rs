//! The connections of one listener: how many there may be, and which must go first when there are too many.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

/// How long a connection that was told to go may take, before another is told.
const GO_WAIT: Duration = Duration::from_millis(50);

/// Connections that are found at once for those that come next.
const FOUND: usize = 64;

/// All connections of a listener.
#[derive(Default)]
pub(super) struct Table {
    state: Mutex<State>,
    freed: Notify,
    open: Gauge,
}

#[derive(Default)]
struct State {
    next: u64,
    places: HashMap<u64, Weak<Place>>,
    /// Those that were idle for longest when somebody looked, the first last: they go, if they are idle still.
    oldest: Vec<(Instant, Weak<Place>)>,
}

/// The place of one connection, until it is dropped.
pub(super) struct Place {
    table: Arc<Table>,
    id: u64,
    now: Mutex<Now>,
    go: Notify,
}

/// What a connection does now.
#[derive(Clone, Copy)]
struct Now {
    requests: usize,
    /// Since there is none.
    idle_since: Instant,
    /// It was told to go.
    goes: bool,
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
        let mut looked = false;
        loop {
            let next = self.lock().oldest.pop();
            match next {
                Some((since, place)) => {
                    if place.upgrade().is_some_and(|place| place.goes_if_idle_since(since)) {
                        return true;
                    }
                }
                // No connection does anything for this: a request costs nothing here.
                None if looked => return false,
                None => {
                    looked = true;
                    self.look();
                }
            }
        }
    }

    /// Finds those that have been idle for longest.
    fn look(&self) {
        let places: Vec<Weak<Place>> = self.lock().places.values().cloned().collect();
        let idle = |place: &Weak<Place>| {
            let now = *place.upgrade()?.lock();
            (now.requests == 0 && !now.goes).then(|| (now.idle_since, place.clone()))
        };
        let mut oldest: Vec<_> = places.iter().filter_map(idle).collect();
        oldest.sort_unstable_by_key(|(since, _)| *since);
        oldest.truncate(FOUND);
        oldest.reverse();
        self.lock().oldest = oldest;
    }

    /// Waits until a connection ends.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }

    fn try_enter(self: &Arc<Self>, max: usize) -> Option<Arc<Place>> {
        let mut state = self.lock();
        if state.places.len() >= max {
            return None;
        }
        state.next += 1;
        self.open.inc();
        let (id, go) = (state.next, Notify::new());
        let now = Mutex::new(Now { requests: 0, idle_since: Instant::now(), goes: false });
        let place = Arc::new(Place { table: self.clone(), id, now, go });
        state.places.insert(id, Arc::downgrade(&place));
        Some(place)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// A request begins.
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.lock().requests += 1;
        Busy(self.clone())
    }

    /// For how long there was no request; none while there is one.
    pub fn idle_for(&self) -> Option<Duration> {
        let now = self.lock();
        (now.requests == 0).then(|| now.idle_since.elapsed())
    }

    /// Waits until another needs the place, and there is no request.
    ///
    /// # Cancel safety
    /// Safe, for one who waits.
    pub async fn must_go(&self) {
        loop {
            self.go.notified().await;
            let mut now = self.lock();
            // A request may have come meanwhile: then another goes.
            if now.requests == 0 {
                return;
            }
            now.goes = false;
        }
    }

    fn goes_if_idle_since(&self, since: Instant) -> bool {
        let mut now = self.lock();
        let goes = now.requests == 0 && now.idle_since == since && !now.goes;
        if goes {
            now.goes = true;
            self.go.notify_one();
        }
        goes
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
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.table.lock().places.remove(&self.id);
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
        assert!(!first.lock().goes && !third.lock().goes);
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
        assert_eq!(table.lock().places.len(), 0);
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
