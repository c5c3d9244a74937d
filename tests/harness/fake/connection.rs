//! One connection to the fake registry.

use std::fmt::Write as _;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use socket2::SockRef;

use super::{Act, Document, Reply, Seen, Shared};
use crate::http::{Fields, read_line};

/// What follows after an answer.
enum After {
    NextRequest,
    Close,
    Reset,
}

/// Serves a connection to its end, and lets go of every handle of it.
pub(super) fn serve(stream: &TcpStream, number: u64, shared: &Shared) {
    let Ok(reader) = stream.try_clone() else { return };
    let mut reader = BufReader::new(reader);
    let mut after = After::NextRequest;
    while let After::NextRequest = after {
        // An error is a peer that went away, or `stop`.
        let Ok(seen) = read_request(&mut reader) else { break };
        shared.seen.0.lock().unwrap_or_else(PoisonError::into_inner).push(seen.clone());
        shared.seen.1.notify_all();
        after = answer(stream, shared, &seen).unwrap_or(After::Close);
    }
    match after {
        // With nothing to linger for, the kernel ends the connection with a reset when the last handle is dropped.
        After::Reset => drop(SockRef::from(stream).set_linger(Some(Duration::ZERO))),
        After::NextRequest | After::Close => drop(stream.shutdown(Shutdown::Both)),
    }
    shared.streams.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
}

fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Seen> {
    let line = read_line(reader)?;
    let mut words = line.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = path.replace("%3A", ":").replace("%3a", ":");
    let fields = Fields::read(reader)?;
    let length = fields.get("Content-Length").and_then(|length| length.parse().ok()).unwrap_or_default();
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Seen {
        method,
        path,
        query: query.to_owned(),
        fields,
        body,
        turn: super::REQUESTS.fetch_add(1, Ordering::SeqCst),
    })
}

fn answer(stream: &TcpStream, shared: &Shared, seen: &Seen) -> io::Result<After> {
    let (act, document) = match choose(shared, seen) {
        Ok(chosen) => chosen,
        Err(reply) => return send_reply(stream, seen, &reply),
    };
    match act {
        Act::Silent => stall(stream),
        Act::Reply(reply) => send_reply(stream, seen, &reply),
        Act::Held(gate, reply) => {
            gate.pass();
            send_reply(stream, seen, &reply)
        }
        Act::After(gate) => {
            gate.pass();
            send_document(stream, seen, &Act::Serve, &document)
        }
        act => send_document(stream, seen, &act, &document),
    }
}

fn choose(shared: &Shared, seen: &Seen) -> Result<(Act, Document), Reply> {
    let mut script = shared.script.lock().unwrap_or_else(PoisonError::into_inner);
    let next = script.next.get_mut(&seen.path).and_then(std::collections::VecDeque::pop_front);
    let act = next.or_else(|| script.always.get(&seen.path).cloned());
    if let Some(Act::Reply(reply)) = act {
        return Err(reply);
    }
    let issuer = script.issuer.as_ref().filter(|_| seen.path == "/token");
    if let Some(tokens) = issuer {
        return Ok((act.unwrap_or(Act::Serve), tokens.issue(seen)?));
    }
    if let Some(guard) = &script.guard {
        guard.check(seen)?;
    }
    let document = match script.documents.get(&seen.path) {
        Some(document) => document.clone(),
        None if seen.path == "/v2/" => Document::new("application/json", b"{}".to_vec()),
        None => return Err(unknown(&seen.path)),
    };
    Ok((act.unwrap_or(Act::Serve), document))
}

fn unknown(path: &str) -> Reply {
    let code = if path.contains("/blobs/") { "BLOB_UNKNOWN" } else { "MANIFEST_UNKNOWN" };
    let body = json!({ "errors": [{ "code": code, "message": "unknown to the fake registry" }] });
    Reply::status(404).field("Content-Type", "application/json").body(body.to_string().as_bytes())
}

fn send_reply(mut stream: &TcpStream, seen: &Seen, reply: &Reply) -> io::Result<After> {
    let mut head = format!("HTTP/1.1 {} Told\r\n", reply.status);
    for (name, value) in &reply.fields {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    let _ = write!(head, "Content-Length: {}\r\n\r\n", reply.body.len());
    stream.write_all(head.as_bytes())?;
    if seen.method != "HEAD" {
        stream.write_all(&reply.body)?;
    }
    Ok(After::NextRequest)
}

fn send_document(mut stream: &TcpStream, seen: &Seen, act: &Act, document: &Document) -> io::Result<After> {
    let total = document.content.len();
    let range = if matches!(act, Act::ServeWhole) { None } else { range(seen, document) };
    let (start, end) = range.unwrap_or((0, total));
    let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
    let mut head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {}\r\nDocker-Content-Digest: {digest}\r\nETag: \"{digest}\"\r\n",
        document.media_type,
        digest = document.digest,
    );
    if !matches!(act, Act::ServeWhole) {
        head.push_str("Accept-Ranges: bytes\r\n");
    }
    if range.is_some() {
        let _ = write!(head, "Content-Range: bytes {start}-{}/{total}\r\n", end - 1);
    }
    let chunked = matches!(act, Act::ServeChunked | Act::ChunkedCloseAfter(_) | Act::ServeChunkedLie(_));
    if matches!(act, Act::UntilClose(_)) {
        head.push_str("Connection: close\r\n\r\n");
    } else if chunked {
        head.push_str("Transfer-Encoding: chunked\r\n\r\n");
    } else {
        let _ = write!(head, "Content-Length: {}\r\n\r\n", end - start);
    }
    stream.write_all(head.as_bytes())?;
    if seen.method == "HEAD" {
        return Ok(After::NextRequest);
    }
    let until = |after: u64| end.min(start.saturating_add(after));
    let content = &document.content;
    match act {
        Act::CloseAfter(after) | Act::UntilClose(after) => {
            content.write(&mut stream, start, until(*after))?;
            Ok(After::Close)
        }
        Act::ResetAfter(after) => {
            content.write(&mut stream, start, until(*after))?;
            Ok(After::Reset)
        }
        Act::StallAfter(after) => {
            content.write(&mut stream, start, until(*after))?;
            stall(stream)
        }
        Act::Drip(between) => {
            for at in start..end {
                content.write(&mut stream, at, at + 1)?;
                std::thread::sleep(*between);
            }
            Ok(After::NextRequest)
        }
        Act::Hold(after, gate) => {
            content.write(&mut stream, start, until(*after))?;
            gate.pass();
            content.write(&mut stream, until(*after), end)?;
            Ok(After::NextRequest)
        }
        Act::Lie(other) => {
            other.write(&mut stream, start, end)?;
            Ok(After::NextRequest)
        }
        Act::LieAndHold(other, after, gate) => {
            other.write(&mut stream, start, until(*after))?;
            gate.pass();
            other.write(&mut stream, until(*after), end)?;
            Ok(After::NextRequest)
        }
        Act::ServeChunked | Act::ChunkedCloseAfter(_) | Act::ServeChunkedLie(_) => {
            let content = if let Act::ServeChunkedLie(other) = act { other } else { content };
            let until = if let Act::ChunkedCloseAfter(after) = act { until(*after) } else { end };
            let mut offset = start;
            while offset < until {
                let next = until.min(offset + 64 * 1024);
                write!(stream, "{:x}\r\n", next - offset)?;
                content.write(&mut stream, offset, next)?;
                stream.write_all(b"\r\n")?;
                offset = next;
            }
            if until < end {
                return Ok(After::Close);
            }
            stream.write_all(b"0\r\n\r\n")?;
            Ok(After::NextRequest)
        }
        Act::Serve | Act::ServeWhole => {
            content.write(&mut stream, start, end)?;
            Ok(After::NextRequest)
        }
        Act::Silent | Act::Reply(_) | Act::After(_) | Act::Held(..) => unreachable!("answered before there was a head"),
    }
}

/// The range asked for, as half-open offsets, where it is one that this server honours.
fn range(seen: &Seen, document: &Document) -> Option<(u64, u64)> {
    let total = document.content.len();
    if seen.fields.get("If-Range").is_some_and(|tag| tag.trim_matches('"') != document.digest) {
        return None;
    }
    let (first, last) = seen.fields.get("Range")?.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let end = last.parse::<u64>().map_or(total, |last| total.min(last + 1));
    (first < end).then_some((first, end))
}

/// Says nothing more until the peer, or `stop`, closes the connection.
fn stall(mut stream: &TcpStream) -> io::Result<After> {
    let mut nothing = [0; 64];
    while stream.read(&mut nothing)? > 0 {}
    Ok(After::Close)
}
