//! `kill -9` at any moment of pulls, and a start on what is left.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::SystemTime;

use super::{Dice, Ledger, Progress, read_part};
use crate::content::{Content, sha256};
use crate::fake::{Act, Fake};
use crate::http::End;
use crate::proxy::Proxy;
use crate::site::Site;

const CLIENTS: usize = 6;
/// Blobs that are new in a round.
const NEW: usize = 3;
/// Units: bytes.
const BLOB_MAX: u64 = 1_500_000;

/// A file of the cache that was found right, as it was then.
type Known = HashMap<PathBuf, (u64, SystemTime)>;

/// Kills the proxy so often, each time when its clients have got so many bytes, and starts it again.
pub fn kills(rounds: usize, seed: u64) -> Ledger {
    let ledger = Ledger::new(&format!("kill -9 during pulls, seed {seed}"));
    let mut dice = Dice::new(seed);
    let fake = Fake::start();
    let site = Site::of(&fake.url());
    let mut blobs: Vec<(String, Content)> = Vec::new();
    let mut known = Known::new();
    for _ in 0..rounds {
        for _ in 0..NEW {
            let content = Content::noise(dice.below(1 << 40), dice.below(BLOB_MAX) + 1);
            let path = fake.put_blob("library/app", content.clone());
            if dice.one_in(4) {
                // The kill may hit a transfer that is being continued.
                fake.next(&path, Act::CloseAfter(dice.below(content.len())));
            }
            blobs.push((path, content));
        }
        let proxy = site.start();
        ledger.add("starts on what a kill left", 1);
        ledger.must(site.staging().is_empty(), || "a staging file outlived the start".to_owned());
        killed_in_a_pull(proxy, &blobs, &mut dice, &ledger);
        verify(&site, &mut known, &ledger);
        fake.forget();
    }
    let proxy = site.start();
    for (path, content) in &blobs {
        let answer = proxy.get(path).fetch();
        let right = answer.status == 200 && answer.end == End::Whole && sha256(&answer.body) == content.digest();
        ledger.must(right, || format!("{path} cannot be had any more: {}", answer.status));
        ledger.add("blobs pulled at the end", 1);
    }
    drop(proxy);
    verify(&site, &mut known, &ledger);
    ledger
}

fn killed_in_a_pull(proxy: Proxy, blobs: &[(String, Content)], dice: &mut Dice, ledger: &Ledger) {
    // New ones most of the time; of the old ones some are cached, whole and right, and some are not.
    let new = &blobs[blobs.len() - NEW..];
    let asked: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (path, content) = if dice.one_in(4) { dice.one(blobs) } else { dice.one(new) };
            let from = if dice.one_in(3) { dice.below(content.len()) } else { 0 };
            let request = proxy.get(path);
            (if from > 0 { request.field("Range", &format!("bytes={from}-")) } else { request }, content, from)
        })
        .collect();
    let all: u64 = asked.iter().map(|(_, content, from)| content.len() - from).sum();
    let progress = Progress::default();
    thread::scope(|scope| {
        for (request, content, from) in &asked {
            scope.spawn(|| {
                if let Ok(response) = request.open() {
                    let status = response.status;
                    let (_, end, wrong) = read_part(response, content, *from, content.len(), |more| progress.add(more));
                    let right = matches!(status, 200 | 206);
                    // An error is no body; a proxy that is being killed says what it still can.
                    if let Some(wrong) = wrong.filter(|_| right) {
                        ledger.lose(wrong);
                    }
                    ledger.add(
                        if right && end == End::Whole { "bodies that came whole" } else { "bodies cut by a kill" },
                        1,
                    );
                } else {
                    ledger.add("requests cut by a kill", 1);
                }
                progress.end();
            });
        }
        progress.wait(dice.below(all + 1), CLIENTS);
        proxy.kill9();
        ledger.add("kills", 1);
    });
}

/// Fails every file of the cache that is not what its name says. Those that were right and have not changed are not
/// read again.
fn verify(site: &Site, known: &mut Known, ledger: &Ledger) {
    for (path, len) in site.blobs() {
        let Ok(changed) = fs::metadata(&path).and_then(|about| about.modified()) else { continue };
        if known.get(&path) == Some(&(len, changed)) {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let right = fs::read(&path).is_ok_and(|bytes| sha256(&bytes) == format!("sha256:{name}"));
        ledger.must(right, || format!("{} is not what its name says", path.display()));
        ledger.add("files of the cache verified", 1);
        known.insert(path, (len, changed));
    }
}
