//! The command line: one file a verb.

mod ask;
mod ca;
mod cache;
mod check;
mod client_config;
mod decisions;
mod explain;
mod import;
mod log;
mod migrate;
mod plugin;
mod recorded;
mod replay;
mod ruled;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};

pub use migrate::{MirrorSet, Refused, to_digest_mirror_set};

use crate::config::{Config, ConfigError};
use crate::plugin::{COMPILE_VERB, run_compiler};
use crate::server::Supposed;

/// The mirror proxy for container images that operators can program.
#[derive(Parser)]
#[command(name = "tidegate", version, about)]
struct Args {
    /// The configuration [default: ./tidegate.toml, then /etc/tidegate/tidegate.toml, then built-in defaults]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the mirror
    Serve,
    /// Check configuration and plugins without listening: exit code 0, or 2 with file, line and reason
    Check,
    /// Print what each plugin decides for an image, and the upstreams that would be tried, in order
    Explain {
        /// Such as docker.io/library/alpine:3.20
        image: String,
        /// Who asks [default: anybody]
        #[arg(long)]
        user: Option<String>,
        /// What the user belongs to; may stand several times
        #[arg(long = "group", requires = "user")]
        groups: Vec<String>,
        /// From where [default: this machine]
        #[arg(long)]
        address: Option<std::net::IpAddr>,
        /// As a line of the decision record
        #[arg(long)]
        json: bool,
    },
    /// Print what the running proxy decided last, and why
    Decisions(decisions::Decisions),
    /// Print what other plugins would have decided about recorded requests: exit code 0, 1 where something changes, or 2
    Replay(replay::Replay),
    /// Print or write the files that point a client at this proxy
    ClientConfig(client_config::ClientConfig),
    /// Turn files of one kind into files of the kind that follows it
    #[command(subcommand)]
    Migrate(migrate::Verb),
    /// Turn the files that other systems have into a configuration of this proxy: exit code 0, 1 where something of them is
    /// left, or 2
    Import(import::Import),
    /// Look into the cache, verify it, take something out of it
    #[command(subcommand)]
    Cache(cache::Verb),
    /// Write, build, check, test and measure plugins; list those of the running proxy
    #[command(subcommand)]
    Plugin(plugin::Verb),
    /// Make the private authority that vouches for intercepted registries, and have clients trust it
    #[command(subcommand)]
    Ca(ca::Verb),
    /// Compile a plugin from standard input to standard output (the program calls itself so)
    #[command(name = COMPILE_VERB, hide = true)]
    CompilePlugin {
        /// Let other processes go before this one
        #[arg(long)]
        give_way: bool,
    },
}

/// How long a thread for what blocks stays idle: each holds memory, and looks at folders every 2 s would keep all of
/// those alive that a crowd once needed.
const BLOCKING_IDLE: Duration = Duration::from_secs(1);

/// What the operator must mend before anything runs: exit code 2.
const EXIT_BAD_INPUT: u8 = 2;

/// The program itself, to be started once more: also when its file was replaced meanwhile.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Runs the verb that the arguments name.
pub fn run() -> ExitCode {
    let args = Args::parse();
    if let Verb::CompilePlugin { give_way } = args.verb {
        return match run_compiler(give_way) {
            Ok(()) => ExitCode::SUCCESS,
            Err(err) => {
                eprintln!("{err:#}");
                ExitCode::FAILURE
            }
        };
    }
    if let Verb::Plugin(verb) = &args.verb {
        return finish(verb.run(args.config.as_deref()));
    }
    if let Verb::Ca(verb) = &args.verb {
        return verb.run(args.config.as_deref());
    }
    if let Verb::Replay(asked) = &args.verb {
        return finish(replay::replay(asked));
    }
    if let Verb::Migrate(verb) = &args.verb {
        return verb.run();
    }
    if let Verb::Import(asked) = &args.verb {
        return asked.run();
    }
    let config = match Config::open(args.config.as_deref()) {
        Ok(config) => Arc::new(config),
        Err(err) => return refuse(&err),
    };
    // The other verbs print for people, and say all that is wrong themselves: they have no log.
    match &args.verb {
        Verb::Serve => finish(serve::serve(config.clone(), log::Log::start(&config.log))),
        Verb::Check => finish(check::check(&config, args.config.as_deref())),
        Verb::Explain { image, user, groups, address, json } => {
            let supposed = Supposed { user: user.clone(), groups: groups.clone(), address: *address };
            finish(explain::explain(config, image, supposed, *json))
        }
        Verb::ClientConfig(asked) => asked.run(&config),
        Verb::Decisions(wanted) => finish(decisions::decisions(config, wanted)),
        Verb::Cache(verb) => finish(cache::cache(config, verb)),
        Verb::Plugin(_)
        | Verb::Ca(_)
        | Verb::Replay(_)
        | Verb::Migrate(_)
        | Verb::Import(_)
        | Verb::CompilePlugin { .. } => ExitCode::FAILURE,
    }
}

/// Does it on threads of its own, to the end.
fn finish(verb: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(BLOCKING_IDLE)
        .thread_name("tidegate")
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(err) => {
            eprintln!("tidegate: no threads can be started: {err}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(verb);
    // What still blocks (a write to a dead disk) must not keep the process.
    runtime.shutdown_background();
    match done {
        Ok(code) => code,
        Err(err) => {
            eprintln!("tidegate: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn refuse(err: &ConfigError) -> ExitCode {
    eprintln!("tidegate: {err}");
    ExitCode::from(EXIT_BAD_INPUT)
}
