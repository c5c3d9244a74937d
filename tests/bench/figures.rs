//! What was measured: samples round by round, and the goals that they are held against.

use std::time::Duration;

/// A kind of figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    pub name: &'static str,
    pub unit: &'static str,
}

/// The kinds that several rows have.
pub const CPU_REQUEST: Measure = Measure { name: "CPU a request", unit: "µs" };
pub const CPU_GB: Measure = Measure { name: "CPU a GB", unit: "s" };
pub const REQUESTS: Measure = Measure { name: "requests", unit: "/s" };
pub const THROUGHPUT: Measure = Measure { name: "throughput", unit: "GB/s" };
pub const WALL: Measure = Measure { name: "wall", unit: "s" };
pub const FIRST_BYTE: Measure = Measure { name: "first byte", unit: "ms" };
pub const FAILED: Measure = Measure { name: "failed requests", unit: "" };
pub const MEMORY: Measure = Measure { name: "resident", unit: "MiB" };
pub const START: Measure = Measure { name: "first answer", unit: "ms" };

/// All samples of one kind for one of those measured.
#[derive(Clone, Debug)]
pub struct Figure {
    pub who: String,
    pub measure: Measure,
    /// One a round.
    pub samples: Vec<f64>,
}

/// What a figure is held against.
#[derive(Clone, Copy, Debug)]
pub enum Against {
    /// At most so many times another's.
    AtMostTimes(f64, &'static str),
    /// At least so many times another's.
    AtLeastTimes(f64, &'static str),
    /// At most so much more than another's.
    AtMostMore(f64, &'static str),
    /// At most so much.
    AtMost(f64),
    /// Told beside another's; nothing is wanted.
    Beside(&'static str),
}

/// What is wanted of a figure.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    pub who: &'static str,
    pub measure: Measure,
    pub against: Against,
}

/// One row of the benchmark.
#[derive(Clone, Debug)]
pub struct Row {
    /// What chooses it on the command line.
    pub key: &'static str,
    /// What was done.
    pub work: String,
    pub figures: Vec<Figure>,
    pub goals: Vec<Goal>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

impl Row {
    /// Without figures.
    pub fn new(key: &'static str, work: &str) -> Self {
        Self { key, work: work.to_owned(), figures: Vec::new(), goals: Vec::new(), notes: Vec::new() }
    }

    /// One more sample.
    pub fn add(&mut self, who: &str, measure: Measure, sample: f64) {
        let figure = self.figures.iter_mut().find(|figure| figure.who == who && figure.measure == measure);
        if let Some(figure) = figure {
            figure.samples.push(sample);
        } else {
            self.figures.push(Figure { who: who.to_owned(), measure, samples: vec![sample] });
        }
    }

    /// One more goal.
    pub fn goal(&mut self, who: &'static str, measure: Measure, against: Against) {
        self.goals.push(Goal { who, measure, against });
    }

    /// One more note, told once.
    pub fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// The samples of one kind.
    pub fn samples(&self, who: &str, measure: Measure) -> Option<&[f64]> {
        let figure = self.figures.iter().find(|figure| figure.who == who && figure.measure == measure);
        figure.map(|figure| &figure.samples[..])
    }
}

impl Goal {
    /// The ratio, difference or figure that counts, and whether it is good enough; none: the peer is not there.
    pub fn judge(&self, row: &Row) -> Option<(f64, Option<bool>)> {
        let own = row.samples(self.who, self.measure)?;
        let paired = |peer: &str, both: fn(f64, f64) -> f64| {
            let pairs: Vec<f64> =
                own.iter().zip(row.samples(peer, self.measure)?).map(|(own, peer)| both(*own, *peer)).collect();
            Some(median(&pairs))
        };
        Some(match self.against {
            Against::AtMostTimes(limit, peer) => {
                paired(peer, |own, peer| own / peer).map(|got| (got, Some(got <= limit)))?
            }
            Against::AtLeastTimes(limit, peer) => {
                paired(peer, |own, peer| own / peer).map(|got| (got, Some(got >= limit)))?
            }
            Against::AtMostMore(limit, peer) => {
                paired(peer, |own, peer| own - peer).map(|got| (got, Some(got <= limit)))?
            }
            Against::AtMost(limit) => (median(own), Some(median(own) <= limit)),
            Against::Beside(peer) => (paired(peer, |own, peer| own / peer)?, None),
        })
    }
}

/// The middle one; of an even number the mean of both in the middle.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (len, middle) if len % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// A count as a number to divide by.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn number(count: u64) -> f64 {
    count as f64
}

/// So much of something a second.
pub fn per_second(count: u64, wall: Duration) -> f64 {
    number(count) / wall.as_secs_f64()
}

/// Units: microseconds of CPU for each.
pub fn micros_each(cpu: Duration, count: u64) -> f64 {
    cpu.as_secs_f64() * 1e6 / number(count.max(1))
}

/// Units: seconds of CPU for each 10^9 bytes.
pub fn seconds_a_gigabyte(cpu: Duration, bytes: u64) -> f64 {
    cpu.as_secs_f64() * 1e9 / number(bytes.max(1))
}

/// Units: milliseconds.
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Units: MiB.
pub fn mebibytes(bytes: u64) -> f64 {
    number(bytes) / f64::from(1 << 20)
}
