//! `tidegate replay RECORD --plugins DIR`: what would change if other plugins had decided about recorded requests.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::recorded::{self, Before};
use super::ruled;
use super::{EXIT_BAD_INPUT, OWN_PROGRAM};
use crate::metrics::Metrics;
use crate::oci::{Action, Asked, Candidate, Content, Digest};
use crate::plugin::{Facts, Given, Identity, Image, PluginSet, Question, Replaying};
use crate::record::Line;

/// Kinds of changes that are told one by one; of more only the number.
const TOLD_MAX: usize = 10_000;

/// What is replayed, and against what.
#[derive(clap::Args)]
pub(super) struct Replay {
    /// A decision record, as `[decisions] file` has it
    record: PathBuf,
    /// The plugins that are to decide now
    #[arg(long, value_name = "DIR")]
    plugins: PathBuf,
    /// What the plugins remember at the beginning, such as STATE_DIR/plugin-state; it is only read
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Where manifests are, for plugins that inspect them: a cache of Tidegate, or any OCI image layout
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

/// What came of it.
#[derive(Default)]
struct Tally {
    replayed: usize,
    changed: usize,
    /// What the record does not tell.
    unknown: usize,
    /// Pushes and deletes.
    others: usize,
    /// The kinds of changes, in the order in which they were met, with how often each was.
    told: Vec<(Change, usize)>,
    places: HashMap<(String, String), usize>,
    untold: usize,
}

/// A pull that would be decided otherwise.
struct Change {
    time: String,
    image: String,
    what: String,
}

pub(super) async fn replay(asked: &Replay) -> anyhow::Result<ExitCode> {
    let program = PathBuf::from(OWN_PROGRAM);
    let state = asked.state.as_deref();
    let replaying = match Replaying::load(&asked.plugins, state, program, &Arc::new(Metrics::default())).await {
        Ok(replaying) => replaying,
        Err(err) => return Ok(refuse(&err.to_string())),
    };
    let name = asked.record.display();
    let mut record = match std::fs::File::open(&asked.record) {
        Ok(file) => BufReader::new(file),
        Err(err) => return Ok(refuse(&format!("{name} cannot be read: {err}"))),
    };
    let mut tally = Tally::default();
    for number in 1.. {
        let mut bytes = Vec::new();
        record.read_until(b'\n', &mut bytes)?;
        if bytes.is_empty() {
            break;
        }
        let line: Line = match serde_json::from_slice(&bytes) {
            Ok(line) => line,
            Err(_) if !bytes.ends_with(b"\n") => {
                eprintln!("tidegate: {name}:{number}: the last line is only half written: it is passed over");
                break;
            }
            Err(err) => return Ok(refuse(&format!("{name}:{number}: is no line of a decision record: {err}"))),
        };
        if let Err(reason) = one(&replaying, asked, &line, &mut tally).await {
            return Ok(refuse(&format!("{name}:{number}: {reason}")));
        }
    }
    print(&tally, asked.cache.is_some());
    Ok(ExitCode::from(u8::from(tally.changed > 0)))
}

fn refuse(reason: &str) -> ExitCode {
    eprintln!("tidegate: {reason}");
    ExitCode::from(EXIT_BAD_INPUT)
}

/// Replays one request.
async fn one(replaying: &Replaying, asked: &Replay, line: &Line, tally: &mut Tally) -> Result<(), String> {
    // What was written is not asked for once more.
    if line.action != Action::Pull.as_str() {
        tally.others += 1;
        return Ok(());
    }
    let pull = Arc::new(recorded::pull(line)?);
    let now = humantime::parse_rfc3339(&line.time).map_err(|_| format!("time: `{}` is no time", line.time))?;
    replaying.set_time(now);
    let gap = Arc::new(AtomicBool::new(false));
    let given = given(line, now, asked, &gap)?;
    let image = image(line, &given);
    let is_inspected = matches!(pull.content, Content::Manifest(_)) && line.digest.is_some();
    let mut question = Question {
        asked: Asked::Pull(pull.clone()),
        facts: facts(line),
        lookups: Arc::new(given),
        image: None,
        dry_run: false,
    };
    let set = replaying.set();
    let mut lacks_image = false;
    if let Content::Manifest(reference) = &pull.content
        && set.inspects(&question)
    {
        lacks_image = image.is_none() && (is_inspected || line.inspected.is_some());
        question.image = match image {
            Some(image) if !image.is_beside(reference, &*question.lookups).await => Some(Arc::new(image)),
            _ => None,
        };
    }
    let before = Before::of(line);
    let after = decide(&set, &question, line, &before).await?;
    // What plugins in shadow mode keep is there for the next request.
    question.facts.shadows_done().await;
    let denied = after.denial.is_some();
    if gap.load(Ordering::Relaxed) || (lacks_image && !denied) {
        tally.unknown += 1;
        return Ok(());
    }
    tally.replayed += 1;
    if let Some(what) = before.change(&after) {
        tally.note(Change { time: line.time.clone(), image: line.image(), what });
    }
    Ok(())
}

/// Lets the plugins decide: about each failed attempt too, as long as routing leads where it led.
async fn decide(set: &PluginSet, question: &Question, line: &Line, before: &Before) -> Result<recorded::After, String> {
    let candidates = vec![Candidate::plain(question.asked.place().clone())];
    let first = ruled::rule(set, question, &ruled::Asked { candidates, failed: Vec::new() }).await;
    let mut after = recorded::After::of(first);
    if after.denial.is_some() || after.routes != before.routes {
        return Ok(after);
    }
    if !before.asked_after(line.upstreams.iter().filter(|tried| tried.outcome != "ok").count()) {
        return Ok(after);
    }
    let mut failed = Vec::new();
    let routes = recorded::candidates(line)?;
    for tried in line.upstreams.iter().filter(|tried| tried.outcome != "ok") {
        failed.push(recorded::attempt(tried)?);
        let tried = |candidate: &Candidate| failed.iter().any(|it| it.candidate.place == candidate.place);
        let remaining: Vec<Candidate> = routes.iter().filter(|candidate| !tried(candidate)).cloned().collect();
        if after.step(set.on_failure(question, &failed, &remaining).await) {
            break;
        }
    }
    Ok(after)
}

fn facts(line: &Line) -> Arc<Facts> {
    let headers =
        line.headers.iter().flat_map(|(name, values)| values.iter().map(|value| (name.clone(), value.clone())));
    let mut facts =
        Facts::new(line.request.clone(), line.client, line.user_agent.clone(), line.accept.clone(), headers.collect());
    // What is replayed is decided, not remembered.
    facts.asks_anew = true;
    facts.identity = line.identity.as_ref().map(|identity| Identity {
        subject: identity.subject.clone(),
        issuer: identity.issuer.clone(),
        groups: identity.groups.clone(),
    });
    Arc::new(facts)
}

fn given(line: &Line, now: SystemTime, asked: &Replay, gap: &Arc<AtomicBool>) -> Result<Given, String> {
    let cached = line.cache.as_ref().map(recorded::cached).transpose()?;
    let mut given = Given {
        cached: cached.unwrap_or_default(),
        knows_cache: cached.is_some(),
        now: Some(now),
        layout: asked.cache.clone(),
        gap: Some(gap.clone()),
        ..Given::default()
    };
    given.tell(&line.attributes).map_err(|reason| format!("attributes: {reason}"))?;
    Ok(given)
}

/// The manifest of the request, where there is a cache to have it from.
fn image(line: &Line, given: &Given) -> Option<Image> {
    let digest: Digest = line.inspected.as_ref().or(line.digest.as_ref())?.parse().ok()?;
    let bytes = given.from_layout(digest)?;
    let parsed: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    let media_type = parsed.get("mediaType").and_then(|named| named.as_str()).unwrap_or_default();
    Image::parse(digest, media_type, bytes.clone()).ok()
}

impl Tally {
    fn note(&mut self, change: Change) {
        self.changed += 1;
        let key = (change.image.clone(), change.what.clone());
        if let Some(place) = self.places.get(&key) {
            self.told[*place].1 += 1;
        } else if self.told.len() < TOLD_MAX {
            self.places.insert(key, self.told.len());
            self.told.push((change, 1));
        } else {
            self.untold += 1;
        }
    }
}

fn print(tally: &Tally, has_cache: bool) {
    for (Change { time, image, what }, times) in &tally.told {
        let times = if *times == 1 { String::new() } else { format!("  ({times} requests)") };
        println!("{time}  {image}  {what}{times}");
    }
    if tally.untold > 0 {
        println!("and {} requests more", tally.untold);
    }
    let requests = if tally.replayed == 1 { "request" } else { "requests" };
    println!("{} {requests} replayed, {} would change", tally.replayed, tally.changed);
    if tally.others > 0 {
        println!("{} not replayed: they are no pulls", tally.others);
    }
    if tally.unknown > 0 {
        let cache = if has_cache { "" } else { "; --cache gives manifests" };
        println!("{} not replayed: their plugins ask for what the record does not have{cache}", tally.unknown);
    }
}
