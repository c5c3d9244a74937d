//! A child process whose output is kept and which never outlives its test.

use std::fs;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::HANG;
use crate::lines::Lines;

/// What is printed of the log of a process when its test has failed: the last lines, each up to a width.
const LOG_LINES: usize = 120;
const LOG_WIDTH: usize = 400;

/// A process that runs until it is told to stop.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    exit: Arc<(Mutex<Option<ExitStatus>>, Condvar)>,
    /// What it prints on its standard output.
    pub out: Lines,
    /// What it prints on its standard error.
    pub err: Lines,
}

impl Process {
    /// Starts a command. A program that is missing fails the test with the line that installs it.
    pub fn start(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}", missing(&name, &error)));
        let out = Lines::collect(child.stdout.take().expect("it is piped"));
        let err = Lines::collect(child.stderr.take().expect("it is piped"));
        let pid = Pid::from_child(&child);
        let exit = Arc::new((Mutex::new(None), Condvar::new()));
        let seen = Arc::clone(&exit);
        thread::spawn(move || {
            let status = child.wait().expect("a child can be waited for");
            *seen.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
            seen.1.notify_all();
        });
        Self { name, pid, exit, out, err }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Its exit status, once it has ended.
    pub fn ended(&self) -> Option<ExitStatus> {
        *self.exit.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a signal, where it still runs.
    pub fn signal(&self, signal: Signal) {
        if self.ended().is_none() {
            // It may end in between: then there is nobody to tell.
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Waits for its end.
    pub fn wait(&self) -> ExitStatus {
        self.wait_within(HANG)
    }

    /// Waits for its end, with a guard of another length.
    pub fn wait_within(&self, limit: Duration) -> ExitStatus {
        let status = self.exit.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (status, _) = self
            .exit
            .1
            .wait_timeout_while(status, limit, |status| status.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        status.unwrap_or_else(|| panic!("{} did not end within {limit:?}:\n{}", self.name, self.log()))
    }

    /// Everything that it printed.
    pub fn log(&self) -> String {
        [self.out.since(0), self.err.since(0)].concat().join("\n")
    }

    /// A figure of `/proc/PID/status`, such as `VmRSS` or `VmHWM`. Units: bytes.
    pub fn memory_bytes(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kibibytes.unwrap_or_else(|| panic!("no {key} in {status}")) * 1024
    }

    /// Page faults of the children that have ended: none when there was no child.
    pub fn children_page_faults(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).expect("it runs");
        // Behind the name, which may hold anything: state is the first field, cminflt the ninth. Source: proc(5).
        let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
        fields.split_whitespace().nth(8).expect("a ninth field").parse().expect("a number")
    }

    /// Sets the high-water mark `VmHWM` back to what is resident now.
    pub fn reset_peak_memory(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.id()), "5").expect("it runs");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.exit.0.lock().unwrap_or_else(PoisonError::into_inner);
        let soon = Duration::from_secs(5);
        drop(self.exit.1.wait_timeout_while(status, soon, |status| status.is_none()));
        self.signal(Signal::KILL);
        if thread::panicking() {
            let _ = self.err.wait_end(Duration::from_secs(1));
            let lines = [self.out.since(0), self.err.since(0)].concat();
            let last = lines.len().saturating_sub(LOG_LINES);
            eprintln!("---- end of the log of {} ----", self.name);
            for line in &lines[last..] {
                eprintln!("{}", line.chars().take(LOG_WIDTH).collect::<String>());
            }
        }
    }
}

/// Runs a command to its end. A program that is missing fails the test with the line that installs it.
pub fn run(command: &mut Command) -> Output {
    run_within(HANG, command)
}

/// Runs a command that may take long, such as a compiler, to its end.
pub fn run_within(limit: Duration, command: &mut Command) -> Output {
    let process = Process::start(command);
    let status = process.wait_within(limit);
    let text = |lines: &Lines| {
        lines.wait_end(HANG);
        lines.since(0).join("\n").into_bytes()
    };
    Output { status, stdout: text(&process.out), stderr: text(&process.err) }
}

/// Keeps a program away from every network but loopback, whatever the machine has.
pub fn offline(command: &mut Command) -> &mut Command {
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        // Nothing listens on the discard port.
        command.env(name, "http://127.0.0.1:9");
    }
    for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] {
        command.env_remove(name);
    }
    command.env("NO_PROXY", "127.0.0.0/8").env("no_proxy", "127.0.0.0/8")
}

fn missing(program: &str, error: &std::io::Error) -> String {
    let package = match program {
        "dockerd" | "docker" => "docker.io",
        "ctr" => "containerd",
        other => other,
    };
    format!("cannot start {program}: {error}; to install it: apt-get install {package}")
}
