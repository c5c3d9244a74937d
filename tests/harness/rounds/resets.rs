//! Clients that go away in the middle, by reset, close or half-close, while others go on.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use super::{Dice, Holdings, Ledger, read_part};
use crate::content::Content;
use crate::fake::Fake;
use crate::http::End;
use crate::proxy::Proxy;
use crate::site::Site;
use crate::{HANG, eventually};

/// Clients of one blob that go away.
const GONE: usize = 5;
/// Units: bytes.
const BLOB_MAX: u64 = 3_000_000;
/// Threads and descriptors that a process opens once and keeps.
const KEPT: usize = 12;

/// How a client goes away.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    Reset,
    Close,
    /// It says that it will send no more, reads on, and then closes.
    HalfClose,
}

/// So many clients go away, five a blob, the first of them most often the one that caused its transfer; one more of each
/// blob stays, and gets all of it.
pub fn resets(clients: usize, seed: u64) -> Ledger {
    let ledger = Ledger::new(&format!("clients that go away, seed {seed}"));
    let mut dice = Dice::new(seed);
    let fake = Fake::start();
    let proxy = Site::of(&fake.url()).log("access = false").start();
    let before = Holdings::of(proxy.process(), proxy.site());
    for round in 0..clients.div_ceil(GONE) {
        let content = Content::noise(dice.below(1 << 40), dice.below(BLOB_MAX) + 1);
        let path = fake.put_blob("library/app", content.clone());
        thread::scope(|scope| {
            for client in 0..GONE.min(clients - round * GONE) {
                let mut dice = dice.split();
                let (proxy, path, content, ledger) = (&proxy, &path, &content, &ledger);
                let mut gone = move || go_away(proxy, path, content, &mut dice, ledger);
                if client == 0 {
                    // Alone: the transfer is its own, and the next ones find it under way, or over.
                    gone();
                } else {
                    scope.spawn(gone);
                }
            }
            let response = proxy.get(&path).open();
            let Ok(response) = response else {
                ledger.lose(format!("{path} is not answered"));
                return;
            };
            let (_, end, wrong) = read_part(response, &content, 0, content.len(), |_| ());
            ledger.must(end == End::Whole, || format!("{path} ends {end:?}"));
            ledger.lose_all(wrong);
            ledger.add("clients that stayed and got all", 1);
        });
        let cached = proxy.site().blob_path(&content.digest());
        eventually("the blob is cached, whoever went away", || cached.exists());
        let transfers = fake.count("GET", &path) as u64;
        ledger.add("transfers from the upstream", transfers);
        ledger.must(transfers == 1, || format!("{transfers} transfers of {path}"));
        fake.forget();
    }
    // What was pooled towards the upstream goes with it.
    fake.stop();
    eventually("descriptors, threads and staging files are back", || {
        Holdings::of(proxy.process(), proxy.site()).are_back_to(&before, KEPT)
    });
    ledger
}

fn go_away(proxy: &Proxy, path: &str, content: &Content, dice: &mut Dice, ledger: &Ledger) {
    let leaves = *dice.one(&[Leaves::Reset, Leaves::Reset, Leaves::Reset, Leaves::Close, Leaves::HalfClose]);
    let Ok(mut stream) = TcpStream::connect(proxy.authority()) else {
        ledger.lose("a client is not accepted".to_owned());
        return;
    };
    stream.set_read_timeout(Some(HANG)).expect("a time");
    let request = format!("GET {path} HTTP/1.1\r\nHost: mirror\r\n\r\n");
    if stream.write_all(request.as_bytes()).is_err() {
        ledger.lose("a request is not taken".to_owned());
        return;
    }
    if let Leaves::HalfClose = leaves {
        let _ = stream.shutdown(Shutdown::Write);
    }
    // The head counts as well: it may go before the first byte of the body, or before that of the head.
    let mut left = dice.below(content.len() + 1);
    let mut buffer = vec![0; 64 << 10];
    while left > 0 {
        let take = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match stream.read(&mut buffer[..take]) {
            Ok(0) => break,
            Ok(read) => left -= read as u64,
            Err(error) => {
                ledger.lose(format!("the proxy breaks the connection of {path} by itself: {error}"));
                break;
            }
        }
        if let Leaves::HalfClose = leaves
            && left == 0
        {
            ledger.add("clients that only said that they are done", 1);
        }
    }
    match leaves {
        Leaves::Reset => {
            // With nothing to linger for, the kernel ends the connection with a reset.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            ledger.add("clients that reset", 1);
        }
        Leaves::Close => ledger.add("clients that closed", 1),
        Leaves::HalfClose => {}
    }
}
