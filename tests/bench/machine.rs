//! On what was measured, and with which versions.

use std::fmt;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tidegate_tests::program::tidegate;

use crate::peers::find;

/// A program, the arguments that have it tell its version, and the Debian package that brings it.
const PROGRAMS: [(&str, &str, &str); 9] = [
    ("nginx", "-v", "nginx-light"),
    ("docker-registry", "--version", "docker-registry"),
    ("varnishd", "-V", "varnish"),
    ("wrk", "-v", "wrk"),
    ("hyperfine", "--version", "hyperfine"),
    ("skopeo", "--version", "skopeo"),
    ("containerd", "--version", "containerd"),
    ("dockerd", "--version", "docker.io"),
    ("openssl", "version", "openssl"),
];

/// Told in the table and in the data.
#[derive(Clone, Debug)]
pub struct Machine {
    cpu: String,
    cores: usize,
    memory_gib: u64,
    kernel: String,
    congestion: String,
    /// Of the minute before.
    load: String,
    quick: bool,
    rounds: usize,
    versions: Vec<(&'static str, String)>,
}

impl Machine {
    /// This one.
    pub fn here(quick: bool, rounds: usize) -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model =
            cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kibibytes = memory.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
        let program = |&(name, argument, package): &(&'static str, &str, &str)| {
            let path = find(name, package).ok()?;
            Some((name, said(&path, argument)))
        };
        let own = ("tidegate", said(&tidegate().display().to_string(), "--version"));
        Self {
            cpu: model.unwrap_or("a processor without a name").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_gib: kibibytes >> 20,
            kernel: setting("kernel/osrelease"),
            congestion: setting("net/ipv4/tcp_congestion_control"),
            load: first_word(&fs::read_to_string("/proc/loadavg").unwrap_or_default()),
            quick,
            rounds,
            versions: [own].into_iter().chain(PROGRAMS.iter().filter_map(program)).collect(),
        }
    }

    /// Whether others use more than a quarter of a processor.
    pub fn is_busy(&self) -> bool {
        self.load.parse::<f32>().is_ok_and(|load| load > 0.25)
    }

    /// As data.
    pub fn data(&self) -> Value {
        let versions: serde_json::Map<String, Value> =
            self.versions.iter().map(|(name, version)| ((*name).to_owned(), json!(version))).collect();
        json!({ "cpu": self.cpu, "cores": self.cores, "memory_gib": self.memory_gib, "kernel": self.kernel,
            "congestion_control": self.congestion,
            "load_before": self.load,
            "quick": self.quick, "rounds": self.rounds, "versions": versions })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            to,
            "{}, {} cores, {} GiB, Linux {} ({}); ",
            self.cpu, self.cores, self.memory_gib, self.kernel, self.congestion
        )?;
        let versions: Vec<String> = self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let rounds = if self.rounds == 1 { "1 round".to_owned() } else { format!("{} rounds", self.rounds) };
        let load = &self.load;
        let quick = if self.quick { "; everything smaller" } else { "" };
        write!(
            to,
            "{}. {rounds}{quick}, at a load of {load} before: medians, (least–most); ratios are medians of the rounds' ratios.",
            versions.join(", ")
        )
    }
}

fn first_word(text: &str) -> String {
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn setting(name: &str) -> String {
    fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default().trim().to_owned()
}

/// The first word with a dot and a digit in it of what a program says of itself.
fn said(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).replace(['/', '-', '(', ')', ','], " ");
    let is_version =
        |word: &&str| word.contains('.') && word.starts_with(|sign: char| sign.is_ascii_digit() || sign == 'v');
    text.split_whitespace().find(is_version).unwrap_or("of an unknown version").to_owned()
}
