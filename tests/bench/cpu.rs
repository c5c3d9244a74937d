//! What a server costs: CPU time and memory of a process and all that it has started.

use std::fs;
use std::time::Duration;

/// A tick of `/proc/PID/stat`. Source: `USER_HZ`, 100 on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// CPU time so far of a tree of processes, by two clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// To the nanosecond, of the threads that live.
    precise: Duration,
    /// To the tick, of the threads that have ended too.
    coarse: Duration,
}

impl Spent {
    /// What a process and its descendants have used.
    pub fn by(pid: u32) -> Self {
        let mut spent = Self::default();
        for pid in tree(pid) {
            spent.precise += tasks(pid).iter().map(|task| precise(pid, task)).sum::<Duration>();
            spent.coarse += coarse(pid);
        }
        spent
    }

    /// What was used since a moment: the precise clock, unless so much of it went with ended threads that the coarse
    /// one, for all its ticks, is nearer.
    pub fn since(self, before: Self) -> Duration {
        let precise = self.precise.saturating_sub(before.precise);
        let coarse = self.coarse.saturating_sub(before.coarse);
        if coarse > precise + 2 * TICK { coarse } else { precise }
    }
}

/// Resident memory of a process and its descendants. Units: bytes.
pub fn resident(pid: u32) -> u64 {
    tree(pid).iter().map(|pid| kibibytes(*pid, "VmRSS:") * 1024).sum()
}

fn kibibytes(pid: u32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// A process and its descendants.
fn tree(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    for task in tasks(pid) {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{task}/children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|child| child.parse().ok()).flat_map(tree));
    }
    all
}

fn tasks(pid: u32) -> Vec<String> {
    let folder = fs::read_dir(format!("/proc/{pid}/task"));
    folder.into_iter().flatten().flatten().map(|task| task.file_name().to_string_lossy().into_owned()).collect()
}

/// The first field is the time on a processor. Source: the kernel's sched-stats.rst.
fn precise(pid: u32, task: &str) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{task}/schedstat")).unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or_default())
}

/// Behind the name, which may hold anything, utime is the twelfth field and stime the next. Source: proc(5).
fn coarse(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).map(|ticks| TICK * ticks).sum()
}
