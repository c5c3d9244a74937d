//! `make bench`: Tidegate and its peers side by side, on loopback, one after the other in rounds.
//!
//! Words on the command line choose rows; `--quick` makes everything smaller, `--rounds N` says how often each measurement
//! is made. A whole run writes `proxy/bench/` and the table in the README, all others write `target/bench/`.

mod cpu;
mod figures;
mod load;
mod machine;
mod peers;
mod plot;
mod reader;
mod report;
mod rows;
mod stock;
mod stored;
mod tidegate;
mod tls;

use std::env;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::panic::{self, AssertUnwindSafe};
use std::process::{Command, ExitCode};
use std::time::Instant;

use machine::Machine;
use rows::Bench;
use tidegate_tests::program::{PROGRAM, tidegate, workspace};
use tidegate_tests::raise_descriptor_limit;

/// As often as the issue of this benchmark asks, and as often as two minutes allow.
const ROUNDS: (usize, usize) = (5, 1);

/// Says that this is the run inside its own network.
pub const INSIDE: &str = "TIDEGATE_BENCH_INSIDE";

/// What the command line says.
struct Asked {
    quick: bool,
    rounds: usize,
    rows: Vec<rows::Measured>,
}

fn main() -> ExitCode {
    let asked = asked();
    if asked.is_ok() {
        enter_own_network();
    }
    match asked.and_then(|asked| run(&asked)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::from(2)
        }
    }
}

fn asked() -> Result<Asked, String> {
    let (mut quick, mut rounds, mut rows) = (false, None, Vec::new());
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" => quick = true,
            "--rounds" => {
                let count = words.next().and_then(|count| count.parse().ok()).filter(|count| *count > 0);
                rounds = Some(count.ok_or("--rounds takes a number")?);
            }
            name => {
                let row = rows::ALL.iter().find(|(row, _)| *row == name);
                let names: Vec<&str> = rows::ALL.iter().map(|(name, _)| *name).collect();
                rows.push(*row.ok_or_else(|| format!("there is no row {name}; there are {}", names.join(", ")))?);
            }
        }
    }
    let rounds = rounds.unwrap_or(if quick { ROUNDS.1 } else { ROUNDS.0 });
    let all = || rows::ALL.to_vec();
    Ok(Asked { quick, rounds, rows: if rows.is_empty() { all() } else { rows } })
}

/// Becomes this program in a network of its own, of which loopback is all: nothing else moves there, and its lines can be
/// made thin. Where the machine gives none, it goes on as it is.
fn enter_own_network() {
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "sh", "-ec", script]);
        command
    };
    let possible = unshare("ip link set lo up").output().is_ok_and(|output| output.status.success());
    if env::var_os(INSIDE).is_some() || !possible {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    let mut command = unshare("ip link set lo up\nexec \"$0\" \"$@\"");
    command.arg(program).args(env::args_os().skip(1)).env(INSIDE, "1").env(PROGRAM, tidegate());
    eprintln!("bench: no network of its own: {}", command.exec());
}

fn run(asked: &Asked) -> Result<(), String> {
    raise_descriptor_limit();
    peers::find("wrk", "wrk").map_err(|missing| missing.0)?;
    let machine = Machine::here(asked.quick, asked.rounds);
    if machine.is_busy() {
        eprintln!("bench: others are at work on this machine: what is measured now says little");
    }
    let bench = Bench::new(asked.quick, asked.rounds).map_err(|missing| missing.0)?;
    let began = Instant::now();
    // What fails is told in one line; the others are measured all the same.
    panic::set_hook(Box::new(|why| eprintln!("bench: {}", why.to_string().replace('\n', ": "))));
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for (name, measure) in &asked.rows {
        eprintln!("{:>4} s  {name}", began.elapsed().as_secs());
        let Ok(row) = panic::catch_unwind(AssertUnwindSafe(|| measure(&bench))) else {
            failed.push(*name);
            continue;
        };
        print!("{}", report::text(std::slice::from_ref(&row)));
        rows.push(row);
    }
    println!("\n{machine}\n{} s in all", began.elapsed().as_secs());
    let whole = failed.is_empty() && !asked.quick && asked.rows.len() == rows::ALL.len();
    let folder = workspace().join(if whole { "proxy/bench" } else { "target/bench" });
    let table = report::markdown(&rows, &machine);
    let data = serde_json::to_string_pretty(&report::data(&rows, &machine)).expect("figures are JSON");
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("results.json"), data + "\n")?;
        fs::write(folder.join("table.md"), &table)?;
        for (name, text) in plot::all(&rows) {
            fs::write(folder.join(name), text)?;
        }
        if whole {
            report::into_readme(&workspace().join("README.md"), &report::goals(&rows, &machine))?;
        }
        Ok(())
    };
    write().map_err(|error| format!("{}: {error}", folder.display()))?;
    println!("written: {}", folder.display());
    if failed.is_empty() { Ok(()) } else { Err(format!("not measured, for the reasons above: {}", failed.join(", "))) }
}
