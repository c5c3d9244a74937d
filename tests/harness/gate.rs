//! A gate between two threads: one side says that it has come so far and waits, the other lets it go on.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::HANG;

/// Cloned to both sides.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    inner: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    reached: usize,
    open: bool,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that this side has come to the gate, and waits until it is open.
    pub fn pass(&self) {
        let mut state = self.lock();
        state.reached += 1;
        self.inner.1.notify_all();
        while !state.open {
            state = self.inner.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until the other side has come to the gate.
    pub fn wait_reached(&self) {
        let state = self.lock();
        let (state, timeout) = self
            .inner
            .1
            .wait_timeout_while(state, HANG, |state| state.reached == 0)
            .unwrap_or_else(PoisonError::into_inner);
        drop(state);
        assert!(!timeout.timed_out(), "nobody came to the gate within {HANG:?}");
    }

    /// Lets through whoever waits, and whoever comes later.
    pub fn open(&self) {
        self.lock().open = true;
        self.inner.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
