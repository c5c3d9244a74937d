//! `tidegate cache`: what is cached, how much it is, whether it is right, and how to take something out.
//!
//! `ls`, `stat` and `verify` read the folder as it lies there and change nothing, beside a running proxy or without
//! one. `rm` and `gc` are done by the running proxy, or here where none has the folder.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use bytesize::ByteSize;
use clap::Subcommand;
use hyper::Method;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use url::form_urlencoded;

use super::EXIT_BAD_INPUT;
use super::ask::ask;
use crate::cache::{Cache, Image, OpenError, Removed, State, Survey, Target, Wrong};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::oci::Registry;
use crate::server::parse_target;

/// How long the running proxy may take to say how full its cache is.
const STATE_TIMEOUT: Duration = Duration::from_secs(10);
/// And to remove something: it may have to look through a million links.
const CHANGE_TIMEOUT: Duration = Duration::from_mins(10);

#[derive(Subcommand)]
pub(super) enum Verb {
    /// List the images that are cached
    Ls {
        /// Only those whose name begins so, such as docker.io/library/ or alpine
        prefix: Option<String>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Print how much is cached, the limits and the free space
    Stat {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Hash every cached blob: exit code 1 where one is wrong, and which
    Verify {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove a repository, an image of it by tag or digest, or a digest: the next pull asks its registry
    Rm {
        /// Such as alpine, quay.io/a/b:1, alpine@sha256:... or sha256:...
        target: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove what is left over (links without blobs, blobs without links), and apply the limits now
    Gc {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn cache(config: Arc<Config>, verb: &Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Ls { prefix, json } => {
            let (prefixes, json) = (prefixes(prefix.as_deref(), &config.default_registry), *json);
            in_folder(config, move |survey, _| list(survey, &prefixes, json)).await
        }
        Verb::Stat { json } => {
            // What no folder tells: when something was used. A proxy that does not answer is no reason to say nothing.
            let state = ask::<State>(&config, Method::GET, "/cache", STATE_TIMEOUT).await.unwrap_or_default();
            let json = *json;
            in_folder(config, move |survey, config| stat(survey, config, state, json)).await
        }
        Verb::Verify { json } => {
            let json = *json;
            in_folder(config, move |survey, _| verify(survey, json)).await
        }
        Verb::Rm { target, json } => {
            let parsed = match parse_target(target, &config.default_registry) {
                Ok(parsed) => parsed,
                Err(reason) => {
                    eprintln!("tidegate: {reason}");
                    return Ok(ExitCode::from(EXIT_BAD_INPUT));
                }
            };
            let query = form_urlencoded::Serializer::new(String::new()).append_pair("image", target).finish();
            let removed = change(&config, &format!("/cache/rm?{query}"), Some(parsed)).await?;
            if removed == Removed::default() {
                eprintln!("tidegate: nothing is cached under {target}");
                return Ok(ExitCode::FAILURE);
            }
            tell(removed, *json)
        }
        Verb::Gc { json } => tell(change(&config, "/cache/gc", None).await?, *json),
    }
}

/// Runs what reads the folder on a thread that may block. Whoever closes our output early has seen enough.
async fn in_folder(
    config: Arc<Config>,
    work: impl FnOnce(&Survey, &Config) -> io::Result<ExitCode> + Send + 'static,
) -> anyhow::Result<ExitCode> {
    let dir = config.cache.dir.clone();
    if !dir.is_dir() {
        bail!("there is no cache folder {}: nothing was cached yet, or `[cache] dir` names another", dir.display());
    }
    let done = tokio::task::spawn_blocking(move || work(&Survey::open(&config.cache.dir), &config)).await?;
    match done {
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        done => done.with_context(|| format!("the cache folder {} cannot be read", dir.display())),
    }
}

/// Has something removed: by the running proxy, or here. With no target, what is left over.
async fn change(config: &Config, target: &str, remove: Option<Target>) -> anyhow::Result<Removed> {
    if let Some(removed) = ask(config, Method::POST, target, CHANGE_TIMEOUT).await? {
        return Ok(removed);
    }
    if !config.cache.dir.exists() {
        return Ok(Removed::default());
    }
    let cache = match Cache::open(&config.cache, Arc::new(Metrics::default())) {
        Ok(cache) => cache,
        Err(OpenError::InUse(dir)) => bail!(
            "the cache folder {} is in use by a proxy that cannot be asked: name its admin listener by `admin`, or stop it",
            dir.display()
        ),
        Err(err) => return Err(err.into()),
    };
    let removed = match remove {
        Some(target) => cache.remove(target).await,
        None => cache.collect().await,
    };
    cache.close().await;
    removed.with_context(|| format!("the cache folder {}", config.cache.dir.display()))
}

fn tell(removed: Removed, json: bool) -> anyhow::Result<ExitCode> {
    let Removed { tags, links, blobs, bytes } = removed;
    if json {
        println!("{}", serde_json::to_string(&removed)?);
    } else {
        println!("removed: {tags} tags, {links} links, {blobs} blobs of {}", ByteSize(bytes));
    }
    Ok(ExitCode::SUCCESS)
}

/// What a prefix may mean: as it stands, and without its registry as people leave it out.
fn prefixes(typed: Option<&str>, default: &Registry) -> Vec<String> {
    let Some(typed) = typed else { return vec![String::new()] };
    let mut prefixes = vec![typed.to_owned(), format!("{default}/{typed}")];
    if default.as_str() == Registry::DOCKER_HUB {
        prefixes.push(format!("{default}/library/{typed}"));
    }
    prefixes
}

fn list(survey: &Survey, prefixes: &[String], json: bool) -> io::Result<ExitCode> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut written = Ok(());
    let mut rows = Vec::new();
    survey.images(prefixes, |image| {
        if json {
            written = std::mem::replace(&mut written, Ok(())).and_then(|()| writeln!(out, "{}", describe(&image)));
        } else {
            rows.push(row(&image));
        }
    })?;
    written?;
    if !json {
        table(&mut out, ["IMAGE", "DIGEST", "SIZE", "BLOBS", "CHECKED"], &rows)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn describe(image: &Image) -> serde_json::Value {
    json!({
        "repository": image.place.to_string(),
        "tag": image.tag.as_ref().map(ToString::to_string),
        "digest": image.digest,
        "size_bytes": image.size,
        "blobs_cached": image.blobs.map_or(0, |blobs| blobs.0),
        "blobs": image.blobs.map(|blobs| blobs.1),
        "checked_secs_ago": image.age.map(|age| age.as_secs()),
    })
}

fn row(image: &Image) -> [String; 5] {
    let place = &image.place;
    [
        image.tag.as_ref().map_or_else(|| place.to_string(), |tag| format!("{place}:{tag}")),
        format!("{}:{}", image.digest.algorithm(), &image.digest.hex()[..12]),
        ByteSize(image.size).to_string(),
        image.blobs.map_or_else(|| "gone".to_owned(), |(kept, all)| format!("{kept}/{all}")),
        image.age.map_or_else(|| "-".to_owned(), ago),
    ]
}

/// Prints columns as wide as what stands in them.
fn table<const N: usize>(out: &mut impl Write, head: [&str; N], rows: &[[String; N]]) -> io::Result<()> {
    let width = |at: usize| rows.iter().map(|row| row[at].len()).chain([head[at].len()]).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    let head = head.map(str::to_owned);
    for row in [&head].into_iter().chain(rows) {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

fn stat(survey: &Survey, config: &Config, state: Option<State>, json: bool) -> io::Result<ExitCode> {
    let bar = ProgressBar::new_spinner().with_style(style("{spinner} {pos} files read"));
    let count = survey.count(|| bar.inc(1))?;
    bar.finish_and_clear();
    // The limits in effect are those of the running proxy.
    let (max_size, min_free, free) = match &state {
        Some(state) => (state.max_size_bytes, state.min_free_bytes, state.free_bytes),
        None => survey.limits(&config.cache)?,
    };
    let used = match &state {
        Some(state) => state.oldest_use_secs.zip(state.newest_use_secs),
        None => survey.span(),
    };
    let mut out = io::stdout().lock();
    if json {
        let document = json!({
            "dir": config.cache.dir,
            "running": state.is_some(),
            "blobs": count.blobs,
            "bytes": count.bytes,
            "repositories": count.repositories,
            "links": count.links,
            "tags": count.tags,
            "oldest_use_secs": used.map(|used| used.0),
            "newest_use_secs": used.map(|used| used.1),
            "max_size_bytes": max_size,
            "min_free_bytes": min_free,
            "free_bytes": free,
        });
        writeln!(out, "{document}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let since = |at: u64| ago(Duration::from_secs(now.saturating_sub(at)));
    let running = if state.is_some() { "in use by the running proxy" } else { "no proxy answers" };
    writeln!(out, "folder        {}  ({running})", config.cache.dir.display())?;
    writeln!(out, "blobs         {} of {}", count.blobs, ByteSize(count.bytes))?;
    writeln!(out, "repositories  {}, with {} links and {} tags", count.repositories, count.links, count.tags)?;
    match used {
        Some((oldest, newest)) => {
            writeln!(out, "last used     {} ago at the longest, {} ago at the shortest", since(oldest), since(newest))?;
        }
        None => writeln!(out, "last used     unknown")?,
    }
    match max_size {
        Some(max_size) => writeln!(out, "max_size      {}", ByteSize(max_size))?,
        None => writeln!(out, "max_size      none")?,
    }
    writeln!(out, "min_free      {} (free: {})", ByteSize(min_free), ByteSize(free))?;
    Ok(ExitCode::SUCCESS)
}

fn verify(survey: &Survey, json: bool) -> io::Result<ExitCode> {
    let all = survey.count(|| {})?;
    let bar = ProgressBar::new(all.bytes)
        .with_style(style("{bar:40} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left"));
    let mut wrong = Vec::new();
    survey.verify(|piece| bar.inc(piece as u64), |found| wrong.push(found))?;
    bar.finish_and_clear();
    let mut out = io::stdout().lock();
    if json {
        let document = json!({
            "blobs": all.blobs,
            "bytes": all.bytes,
            "wrong": wrong.iter().map(|Wrong { digest, file, reason, places }| json!({
                "digest": digest,
                "file": file,
                "reason": reason,
                "places": places.iter().map(ToString::to_string).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
        });
        writeln!(out, "{document}")?;
    } else {
        for Wrong { digest, file, reason, places } in &wrong {
            writeln!(out, "{digest}: {reason}\n  file: {}", file.display())?;
            for place in places {
                writeln!(out, "  held by: {place}")?;
            }
        }
        match wrong.len() {
            0 => writeln!(out, "{} blobs of {}: all are right", all.blobs, ByteSize(all.bytes))?,
            many => writeln!(
                out,
                "{many} of {} blobs wrong; a running proxy removes one when it is asked for it, or `tidegate cache rm DIGEST`",
                all.blobs
            )?,
        }
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How a progress bar looks. It is drawn on a terminal only.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("our own template")
}

/// The two largest units of a time.
fn ago(time: Duration) -> String {
    let text = humantime::format_duration(Duration::from_secs(time.as_secs())).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}
