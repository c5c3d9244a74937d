//! Lines that a process prints, kept as they come, so that a test can wait for one as for an event.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// All lines of one stream so far. Cloned to whoever waits.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    inner: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    /// Reads a stream to its end on a thread of its own.
    pub fn collect(stream: impl Read + Send + 'static) -> Self {
        let all = Self::default();
        let kept = all.clone();
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                kept.lock().lines.push(text);
                kept.inner.1.notify_all();
                line.clear();
            }
            kept.lock().ended = true;
            kept.inner.1.notify_all();
        });
        all
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().lines.len()
    }

    /// All of them, from one on.
    pub fn since(&self, first: usize) -> Vec<String> {
        self.lock().lines.get(first..).unwrap_or_default().to_vec()
    }

    /// Waits for a line for which `find` gives something, among those from `first` on. None: the stream ended, or
    /// the time is over.
    pub fn wait<T>(&self, first: usize, limit: Duration, mut find: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let end = Instant::now() + limit;
        let mut next = first;
        let mut state = self.lock();
        loop {
            while let Some(line) = state.lines.get(next) {
                if let Some(found) = find(line) {
                    return Some(found);
                }
                next += 1;
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            state = self.inner.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the stream ends.
    pub fn wait_end(&self, limit: Duration) -> bool {
        let state = self.lock();
        let waited = self.inner.1.wait_timeout_while(state, limit, |state| !state.ended);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
