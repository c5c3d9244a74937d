//! Who keeps the lines: the last ones in memory; and those for the file in a bounded queue, so that no pull waits for a
//! disk.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::file::Out;
use super::line::Line;

/// Lines that wait for the file at the most: about 4 MiB.
const QUEUE: usize = 4096;
/// Lines that are written at once.
const BATCH: usize = 256;

/// What became of lines for the file.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// They are in the file.
    pub written: Counter,
    /// The queue was full.
    pub dropped: Counter,
    /// The file could not be written.
    pub failed: Counter,
}

/// What became of a request. Its line is made where somebody reads it, and not while the request is answered.
pub trait Tells: fmt::Debug + Send + Sync {
    /// The line.
    fn line(&self) -> Line;
}

impl Tells for Line {
    fn line(&self) -> Line {
        self.clone()
    }
}

/// Keeps lines.
#[derive(Debug)]
pub struct Journal {
    kept: Mutex<VecDeque<Arc<dyn Tells>>>,
    keep: usize,
    queue: Option<SyncSender<Message>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    counted: Counted,
    /// Lines that wait for something.
    late: TaskTracker,
    /// They wait no more.
    hurry: CancellationToken,
}

#[derive(Debug)]
enum Message {
    Line(Arc<dyn Tells>),
    End,
}

impl Journal {
    /// Begins to keep the last `keep` lines, and to write all to a file; `-` is standard output.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn start(file: Option<PathBuf>, keep: usize, counted: Counted) -> io::Result<Self> {
        let (mut queue, mut writer) = (None, None);
        if let Some(file) = file {
            let out = Out::open(file)?;
            let (sender, receiver) = sync_channel(QUEUE);
            let counted = counted.clone();
            let thread = std::thread::Builder::new().name("decisions".to_owned());
            writer = Some(thread.spawn(move || write(out, &receiver, &counted))?);
            queue = Some(sender);
        }
        let (kept, late, hurry) = Default::default();
        Ok(Self { kept, keep, queue, writer: Mutex::new(writer), counted, late, hurry })
    }

    /// Whether anybody wants to know.
    pub fn is_on(&self) -> bool {
        self.keep > 0 || self.queue.is_some()
    }

    /// Whether lines are written, rather than only remembered for a while.
    pub fn writes(&self) -> bool {
        self.queue.is_some()
    }

    /// Takes a line; waits for nothing.
    pub fn note(&self, line: Arc<dyn Tells>) {
        if let Some(queue) = &self.queue
            && queue.try_send(Message::Line(line.clone())).is_err()
        {
            self.counted.dropped.inc();
        }
        if self.keep > 0 {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let old = if kept.len() >= self.keep { kept.pop_front() } else { None };
            kept.push_back(line);
            drop((kept, old));
        }
    }

    /// Takes a line once something is `done`, or the process ends before that.
    pub fn note_after(
        self: &Arc<Self>,
        runtime: &Handle,
        done: impl Future<Output = ()> + Send + 'static,
        line: Arc<dyn Tells>,
    ) {
        let journal = self.clone();
        let noting = async move {
            journal.hurry.run_until_cancelled(done).await;
            journal.note(line);
        };
        self.late.spawn_on(noting, runtime);
    }

    /// Waits so long at the most for the lines that wait for something; the others are taken as they are then.
    pub async fn settle(&self, patience: Duration) {
        self.late.close();
        if tokio::time::timeout(patience, self.late.wait()).await.is_err() {
            self.hurry.cancel();
            self.late.wait().await;
        }
    }

    /// The last lines of which something holds, the latest first.
    pub fn last(&self, limit: usize, holds: impl Fn(&Line) -> bool) -> Vec<Line> {
        let kept: Vec<_> = self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        kept.iter().rev().map(|told| told.line()).filter(holds).take(limit).collect()
    }

    /// Writes what waits, and ends. Blocks.
    pub fn close(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(queue), Some(writer)) = (&self.queue, writer)
            && queue.send(Message::End).is_ok()
        {
            // A panic was reported when it came.
            let _ = writer.join();
        }
    }
}

fn write(mut out: Out, queue: &Receiver<Message>, counted: &Counted) {
    while let Ok(Message::Line(first)) = queue.recv() {
        let mut lines = vec![first.line()];
        let mut ended = false;
        while lines.len() < BATCH && !ended {
            match queue.try_recv() {
                Ok(Message::Line(line)) => lines.push(line.line()),
                Ok(Message::End) => ended = true,
                Err(_) => break,
            }
        }
        let many = lines.len() as u64;
        _ = if out.write(&lines) { counted.written.inc_by(many) } else { counted.failed.inc_by(many) };
        if ended {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn line(number: usize) -> Line {
        let text = format!(
            r#"{{"time":"2026-11-21T10:00:00.000Z","request":"{number}","client":"10.0.0.7","method":"GET",
            "addressing":"ns","action":"pull","content":"manifest","registry":"docker.io","repository":"library/a",
            "reference":"1","generation":1,"status":200,"sent_bytes":1,"elapsed_ms":1}}"#
        );
        serde_json::from_str(&text).expect("a line")
    }

    fn requests(file: &Path) -> Vec<String> {
        let text = fs::read_to_string(file).expect("it is there");
        let lines = text.lines().map(|line| serde_json::from_str::<Line>(line).expect("whole lines").request);
        lines.collect()
    }

    #[test]
    fn a_journal_keeps_the_last_and_writes_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("d.jsonl");
        let counted = Counted::default();
        let journal = Journal::start(Some(file.clone()), 2, counted.clone()).expect("it opens");
        for number in 0..5 {
            journal.note(Arc::new(line(number)));
        }
        let last: Vec<String> = journal.last(9, |_| true).iter().map(|line| line.request.clone()).collect();
        assert_eq!(last, ["4", "3"]);
        assert_eq!(journal.last(9, |line| line.request == "3").len(), 1);
        assert_eq!(journal.last(1, |_| true).len(), 1);
        journal.close();
        assert_eq!(requests(&file), ["0", "1", "2", "3", "4"]);
        assert_eq!((counted.written.get(), counted.dropped.get(), counted.failed.get()), (5, 0, 0));
        journal.note(Arc::new(line(9)));
        assert_eq!(counted.dropped.get(), 1, "behind the end");
        assert_eq!(line(1).image(), "docker.io/library/a:1");
    }

    #[test]
    fn a_half_written_line_is_mended_and_a_moved_file_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("d.jsonl");
        let whole = serde_json::to_string(&line(0)).expect("it serializes");
        fs::write(&file, format!("{whole}\n{}", &whole[..40])).expect("written");
        let mut out = Out::open(file.clone()).expect("it opens");
        assert!(out.write(&[line(1)]));
        assert_eq!(requests(&file), ["0", "1"]);
        let moved = folder.path().join("d.jsonl.1");
        fs::rename(&file, &moved).expect("renamed");
        assert!(out.write(&[line(2)]));
        assert_eq!((requests(&moved).len(), requests(&file)), (2, vec!["2".to_owned()]));
        fs::remove_file(&file).expect("removed");
        fs::create_dir(&file).expect("made");
        assert!(!out.write(&[line(3)]), "a folder takes no lines");
        fs::remove_dir(&file).expect("removed");
        assert!(out.write(&[line(4)]));
        assert_eq!(requests(&file), ["4"]);
    }

    #[test]
    fn a_queue_that_is_full_holds_up_nobody() {
        let counted = Counted::default();
        let (queue, _nobody_reads) = sync_channel(1);
        let journal = Journal {
            kept: Mutex::default(),
            keep: 0,
            queue: Some(queue),
            writer: Mutex::default(),
            counted: counted.clone(),
            late: TaskTracker::new(),
            hurry: CancellationToken::new(),
        };
        for number in 0..3 {
            journal.note(Arc::new(line(number)));
        }
        assert_eq!(counted.dropped.get(), 2);
    }
    #[tokio::test]
    async fn a_line_that_waits_is_there_when_its_time_is_over() {
        let journal = Arc::new(Journal::start(None, 9, Counted::default()).expect("it opens"));
        let (open, gate) = tokio::sync::oneshot::channel::<()>();
        journal.note_after(&Handle::current(), async { _ = gate.await }, Arc::new(line(1)));
        journal.note_after(&Handle::current(), std::future::pending(), Arc::new(line(2)));
        open.send(()).expect("it waits");
        while journal.last(9, |_| true).is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(journal.last(9, |line| line.request == "2").len(), 0);
        journal.settle(Duration::ZERO).await;
        assert_eq!(journal.last(9, |line| line.request == "2").len(), 1);
    }
}
