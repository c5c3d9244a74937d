//! Questions to upstreams that many requests share: while one is under way, who asks the same waits for its answer.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};

use super::attempts::Ending;
use super::changes::{Moment, Of};
use super::routed::Routed;
use crate::oci::{Attempt, Failure, Place};

/// Times that a request waits for another's answer that is then of no use to it.
const JOINS_MAX: usize = 8;

/// What is asked, and where: only who would ask the same in the same order shares an answer.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    places: Vec<Place>,
    resource: String,
    accept: String,
    /// An answer to who asked before something was written is none to who asks after it.
    since: Vec<Moment>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Lost {
    pub ending: Ending,
    pub failed: Arc<[Attempt]>,
}

/// What of an outcome is the same for all who asked.
#[derive(Clone)]
enum Shared<T> {
    Found(Place, T),
    Exhausted(Arc<[Attempt]>),
}

type Seat<T> = watch::Receiver<Option<Shared<T>>>;

/// The questions under way.
pub(super) struct Flights<T>(Mutex<HashMap<Key, Seat<T>>>);

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Flights<T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Seat<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a question off the table when its answer is there, or its task gone.
struct Takeoff<T> {
    flights: Arc<Flights<T>>,
    key: Key,
    sender: watch::Sender<Option<Shared<T>>>,
}

impl<T> Drop for Takeoff<T> {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
    }
}

impl Routed {
    /// Asks by `work`, or waits for who asks the same already. An answer that came from elsewhere than our own
    /// candidates, or an end that another's policy made, is not ours.
    pub(super) async fn share<T, F>(
        self: &Arc<Self>,
        flights: &Arc<Flights<T>>,
        resource: &str,
        accept: &str,
        work: impl Fn(Arc<Self>) -> F,
    ) -> Result<(Place, T), Lost>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<(Place, T), Lost>> + Send + 'static,
    {
        let places: Vec<Place> = self.candidates().iter().map(|candidate| candidate.place.clone()).collect();
        let since = places.iter().map(|place| self.core().changes.last(place, Of::All)).collect();
        let key = Key { places, resource: resource.to_owned(), accept: accept.to_owned(), since };
        for _ in 0..JOINS_MAX {
            let joined = {
                let mut table = flights.lock();
                table.get(&key).cloned().ok_or_else(|| {
                    let (sender, seat) = watch::channel(None);
                    table.insert(key.clone(), seat);
                    Takeoff { flights: flights.clone(), key: key.clone(), sender }
                })
            };
            match joined {
                Err(takeoff) => return self.fly(takeoff, work(self.clone())).await,
                Ok(mut seat) => {
                    self.core().metrics.coalesced.inc();
                    self.scope().event("waits for another's question", "tidegate.resource", resource);
                    let shared = seat.wait_for(Option::is_some).await.ok().and_then(|shared| shared.clone());
                    match shared {
                        Some(Shared::Found(place, found)) if self.places().contains(&place) => {
                            return Ok((place, found));
                        }
                        Some(Shared::Exhausted(failed)) if self.are_ours(&failed) => {
                            return Err(Lost { ending: Ending::Exhausted, failed });
                        }
                        Some(_) => return work(self.clone()).await,
                        None => {}
                    }
                }
            }
        }
        work(self.clone()).await
    }

    /// Runs in a task of its own: who began it may leave.
    async fn fly<T, F>(&self, takeoff: Takeoff<T>, work: F) -> Result<(Place, T), Lost>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<(Place, T), Lost>> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        let stopping = self.core().stopping.clone();
        let work = self.scope().within(work);
        self.core().fills.spawn(async move {
            let Some(result) = stopping.run_until_cancelled(work).await else { return };
            let shared = match &result {
                Ok((place, found)) => Some(Shared::Found(place.clone(), found.clone())),
                Err(Lost { ending: Ending::Exhausted, failed }) => Some(Shared::Exhausted(failed.clone())),
                Err(_) => None,
            };
            takeoff.sender.send_replace(shared);
            drop(takeoff);
            let _ = tell.send(result);
        });
        told.await.unwrap_or_else(|_| Err(Lost { ending: Ending::Stop, failed: Arc::new([]) }))
    }

    /// Whether others have failed where we would ask, and as we would.
    pub(super) fn are_ours(&self, failed: &[Attempt]) -> bool {
        let refused = |failure: &Failure| matches!(failure, Failure::Auth { .. } | Failure::Status(404));
        if failed.iter().any(|attempt| refused(&attempt.failure) && self.is_personal(&attempt.candidate.place)) {
            return false;
        }
        self.candidates().iter().all(|mine| failed.iter().any(|attempt| attempt.candidate == *mine))
    }
}
