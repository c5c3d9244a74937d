//! A crowd of clients that want one cold blob at the same time.

use std::thread::{self, Builder};

use super::{Holdings, Ledger, Progress, read_part};
use crate::content::Content;
use crate::fake::{Act, Fake};
use crate::gate::Gate;
use crate::http::{End, Response};
use crate::site::Site;
use crate::{eventually, raise_descriptor_limit};

/// A client of a crowd needs little stack, and there are many. Units: bytes.
const STACK: usize = 256 << 10;
/// Threads and descriptors that a process opens once and keeps.
const KEPT: usize = 12;
/// What containerd reads of a range before it closes: a piece of a layer. Units: bytes.
const PIECE: u64 = 64 << 10;

/// So many clients of one cold blob, all of them there before half of it has come.
pub fn crowd(clients: usize, len: u64) -> Ledger {
    raise_descriptor_limit();
    let ledger = Ledger::new(&format!("{clients} clients of one cold blob of {} KiB", len >> 10));
    let (fake, content) = (Fake::start(), Content::noise(len, len));
    let path = fake.put_blob("library/app", content.clone());
    let gate = Gate::new();
    fake.next(&path, Act::Hold(len / 2, gate.clone()));
    let proxy = Site::of(&fake.url()).log("access = false").start();
    let before = Holdings::of(proxy.process(), proxy.site());
    let first = Progress::default();
    thread::scope(|scope| {
        for _ in 0..clients {
            let request = proxy.get(&path);
            let (content, first, ledger) = (&content, &first, &ledger);
            let client = move || {
                let read = request.open().map(|response| {
                    // Counted once a byte has come, which is before half of them can have.
                    let mut counted = false;
                    let came = |_| {
                        if !std::mem::replace(&mut counted, true) {
                            first.add(1);
                        }
                    };
                    read_part(response, content, 0, content.len(), came)
                });
                first.end();
                match read {
                    Ok((_, End::Whole, None)) => ledger.add("bodies that came whole and right", 1),
                    Ok((read, end, None)) => ledger.lose(format!("a body ends {end:?} after {read} bytes")),
                    Ok((_, _, Some(wrong))) => ledger.lose(wrong),
                    Err(error) => ledger.lose(format!("a request is not answered: {error}")),
                }
            };
            Builder::new().stack_size(STACK).spawn_scoped(scope, client).expect("a thread can be started");
        }
        first.wait(clients as u64, clients);
        ledger.must(first.count() == clients as u64, || format!("only {} had a byte of half a blob", first.count()));
        gate.open();
    });
    let transfers = fake.count("GET", &path) as u64;
    ledger.add("transfers from the upstream", transfers);
    ledger.must(transfers == 1, || format!("{transfers} transfers"));
    ledger.most("MiB resident at the peak", proxy.process().memory_bytes("VmHWM") >> 20);
    fake.stop();
    eventually("descriptors, threads and staging files are back", || {
        Holdings::of(proxy.process(), proxy.site()).are_back_to(&before, KEPT)
    });
    ledger
}

/// So many ranges of one cold blob, as containerd asks for the pieces of a layer: each open at its end, and closed by
/// the client when it has its piece. Until all of them are there, the upstream brings no more than the first bytes of
/// each transfer, and no client goes away: so the transfers that it sees are those at once.
pub fn ranges(clients: usize, len: u64) -> Ledger {
    raise_descriptor_limit();
    let ledger = Ledger::new(&format!("{clients} open ranges of one cold blob of {} KiB", len >> 10));
    let (fake, content) = (Fake::start(), Content::noise(len + 1, len));
    let path = fake.put_blob("library/app", content.clone());
    let (gate, leave) = (Gate::new(), Gate::new());
    fake.always(&path, Act::Hold(PIECE / 2, gate.clone()));
    let proxy = Site::of(&fake.url()).log("access = false").start();
    let before = Holdings::of(proxy.process(), proxy.site());
    thread::scope(|scope| {
        for client in 0..clients as u64 {
            let from = client * len / clients as u64;
            let request = proxy.get(&path).field("Range", &format!("bytes={from}-"));
            let (content, ledger, leave) = (&content, &ledger, &leave);
            let client = move || match request.open() {
                Ok(response) if response.status == 206 => match read_piece(response, content, from) {
                    Ok(response) => {
                        ledger.add("pieces that came right", 1);
                        leave.pass();
                        drop(response);
                    }
                    Err(wrong) => ledger.lose(wrong),
                },
                Ok(response) => ledger.lose(format!("status {} for a range from {from} on", response.status)),
                Err(error) => ledger.lose(format!("a range from {from} on is not answered: {error}")),
            };
            Builder::new().stack_size(STACK).spawn_scoped(scope, client).expect("a thread can be started");
        }
        let there = format!("requests_in_flight {clients}");
        eventually("all clients are there", || proxy.admin("/metrics").text().contains(&there));
        // The fill, and what it may have beside it.
        fake.wait_count(&path, 2);
        let transfers = fake.count("GET", &path) as u64;
        ledger.most("transfers while all clients wait", transfers);
        ledger.must(transfers <= 3, || format!("{transfers} transfers: one fill and two beside it are allowed"));
        gate.open();
        leave.open();
    });
    // All that was asked for has come, and the blob is filled whoever went away.
    let cached = proxy.site().blob_path(&content.digest());
    eventually("the blob is cached", || cached.exists());
    ledger.add("transfers in all", fake.count("GET", &path) as u64);
    ledger.most("MiB resident at the peak", proxy.process().memory_bytes("VmHWM") >> 20);
    fake.stop();
    eventually("descriptors, threads and staging files are back", || {
        Holdings::of(proxy.process(), proxy.site()).are_back_to(&before, KEPT)
    });
    ledger
}

/// Reads a piece, and stays.
fn read_piece(mut response: Response, content: &Content, from: u64) -> Result<Response, String> {
    let end = content.len().min(from + PIECE);
    let mut at = from;
    let mut buffer = vec![0; 16 << 10];
    while at < end {
        match response.read_some(&mut buffer) {
            Ok(0) => return Err(format!("the range from {from} on ends at {at}")),
            Ok(read) if !content.holds(at, &buffer[..read]) => return Err(format!("wrong bytes near {at}")),
            Ok(read) => at += read as u64,
            Err(error) => return Err(format!("the range from {from} on breaks at {at}: {error}")),
        }
    }
    Ok(response)
}
