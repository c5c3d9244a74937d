//! Requests that are wrong, or odd: an answer in the words of the specification, and nothing sent upstream. The cases
//! stand in `corpus/requests.toml`.

use std::collections::BTreeMap;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::{fmt, thread};

use tidegate_tests::content::{Content, sha256};
use tidegate_tests::corpus::{self, Body, MARK, Request, Temperature};
use tidegate_tests::fake::{Fake, Seen};
use tidegate_tests::http::{Answer, End, Fields, Response};
use tidegate_tests::image::Image;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;
use tidegate_tests::{HANG, eventually, own_address};

use crate::{assert_pulls, assert_whole};

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// The codes of the specification.
const CODES: [&str; 14] = [
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
];
/// Bigger than what is waited for before an answer begins, so that a miss is a blob on its way.
const BLOB: u64 = 200_000;

/// A proxy, its upstream, a server that nobody configured, and a good image that is cached.
struct Stage {
    fake: Fake,
    stranger: TcpListener,
    proxy: Proxy,
    good: Image,
}

/// What one case is about.
struct Subject {
    repository: String,
    content: Content,
    image: Image,
}

/// Why a case is not as it must be. The first thing that is wrong.
struct Wrong(String);

/// A connection that is kept from one request to the next.
struct Connection {
    stream: BufReader<TcpStream>,
}

#[test]
fn every_request_of_the_corpus_gets_its_answer_and_nothing_more_on_a_hit() {
    try_all(Temperature::Hit);
}

#[test]
fn every_request_of_the_corpus_gets_its_answer_and_nothing_more_on_a_miss() {
    try_all(Temperature::Miss);
}

fn try_all(temperature: Temperature) {
    let stage = Stage::start();
    let mut wrong = Vec::new();
    let cases = corpus::requests();
    for (at, case) in cases.iter().enumerate().filter(|(_, case)| case.on.contains(&temperature)) {
        let subject = stage.subject(at, temperature);
        if let Err(Wrong(what)) = stage.try_case(case, &subject) {
            wrong.push(format!("{}: {what}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    // Whatever was sent: it serves as before, and holds nothing of it.
    assert_pulls(&stage.proxy, &stage.image_of_app());
    let resident = stage.proxy.process().memory_bytes("VmHWM") >> 20;
    assert!(resident < 128, "{resident} MiB resident at the peak");
    eventually("nothing is left in staging", || stage.proxy.site().staging().is_empty());
}

impl Stage {
    fn start() -> Self {
        let fake = Fake::start();
        let good = Image::small("good");
        fake.put_image(&good, "library/good:1");
        let stranger = TcpListener::bind((own_address(), 0)).unwrap();
        stranger.set_nonblocking(true).unwrap();
        let proxy = Site::of(&fake.url()).registry("quay.io", &fake.url(), "").start();
        assert_whole(&proxy.get("/v2/library/good/manifests/1").fetch(), &good.digest());
        Self { fake, stranger, proxy, good }
    }

    fn image_of_app(&self) -> Image {
        let image = Image::small("app");
        self.fake.put_image(&image, "library/app:1");
        image
    }

    /// A repository of its own for a case, cached where it is to be a hit.
    fn subject(&self, at: usize, temperature: Temperature) -> Subject {
        let repository = format!("library/case-{at}");
        let content = Content::noise(at as u64, BLOB);
        let image = Image::new(&repository, &[10]);
        let blob = self.fake.put_blob(&repository, content.clone());
        let manifest = self.fake.put_image(&image, &format!("{repository}:1"));
        let tags = format!("{{\"name\":\"{repository}\",\"tags\":[\"1\"]}}").into_bytes();
        self.fake.put(&format!("/v2/{repository}/tags/list"), "application/json", tags.into());
        let by_digest = format!("/v2/{repository}/manifests/{}", image.digest());
        if temperature == Temperature::Hit {
            assert_whole(&self.proxy.get(&manifest).fetch(), &image.digest());
            assert_whole(&self.proxy.get(&by_digest).fetch(), &image.digest());
            assert_whole(&self.proxy.get(&blob).fetch(), &content.digest());
            let path = self.proxy.site().blob_path(&content.digest());
            eventually("the blob is cached", || path.exists());
        }
        Subject { repository, content, image }
    }

    fn try_case(&self, case: &Request, subject: &Subject) -> Result<(), Wrong> {
        let digest = subject.content.digest();
        let values = BTreeMap::from([
            ("repository", subject.repository.clone()),
            ("blob", digest.clone()),
            ("blobhex", digest.trim_start_matches("sha256:").to_owned()),
            ("manifest", subject.image.digest()),
            ("size", BLOB.to_string()),
            ("hex", HEX.to_owned()),
            ("HEX", HEX.to_ascii_uppercase()),
            ("stranger", self.stranger.local_addr().unwrap().to_string()),
        ]);
        let asked = self.fake.seen().len();
        let bytes = corpus::fill(&case.text, &values);
        let mut connection = Connection::open(&self.proxy)?;
        connection.send(bytes, case.body_bytes);
        let answer = connection.receive(&case.method)?;
        match &answer {
            None if case.or_closed => {}
            None => return wrong("the connection ended without an answer"),
            Some(answer) => check(case, subject, &values, answer)?,
        }
        self.check_what_follows(case, connection, answer.as_ref())?;
        let seen = self.fake.seen().split_off(asked);
        check_seen(case, &subject.repository, &seen)?;
        match self.stranger.accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            _ => wrong("it dialled an address that the client named"),
        }
    }

    /// The next request of the connection gets its own answer, or finds it closed, as the answer before has said.
    fn check_what_follows(
        &self,
        case: &Request,
        mut connection: Connection,
        answer: Option<&Answer>,
    ) -> Result<(), Wrong> {
        let said = answer.is_none_or(|answer| {
            answer.fields.get("Connection").is_some_and(|option| option.eq_ignore_ascii_case("close"))
        });
        connection.send(b"GET /v2/library/good/manifests/1 HTTP/1.1\r\nHost: mirror\r\n\r\n".to_vec(), 0);
        let next = connection.receive("GET")?;
        if case.close.is_some_and(|close| close != next.is_none()) {
            return wrong(if next.is_none() { "the connection ends" } else { "the connection stays open" });
        }
        match next {
            None if said || case.close == Some(true) => Ok(()),
            None => wrong("the connection ends, and the answer does not say so"),
            Some(next) if next.status == 200 && sha256(&next.body) == self.good.digest() => Ok(()),
            Some(next) => wrong(format!("the next request gets {}", next.status)),
        }
    }
}

/// Whether an answer is what the case asks for.
fn check(case: &Request, subject: &Subject, values: &BTreeMap<&str, String>, answer: &Answer) -> Result<(), Wrong> {
    let told = || answer.text().escape_debug().take(200).collect::<String>();
    if !case.status.contains(&answer.status) {
        return wrong(format!("status {}: {}", answer.status, told()));
    }
    if answer.end != End::Whole {
        return wrong(format!("the body ends {:?}", answer.end));
    }
    // Where the reader of HTTP itself refuses, there is no body; all else is told in the words of the specification.
    if answer.status >= 400
        && case.method != "HEAD"
        && !answer.body.is_empty()
        && !CODES.contains(&answer.code().as_str())
    {
        return wrong(format!("no code of the specification: {}", told()));
    }
    if let Some(code) = &case.code
        && (answer.body.is_empty() || answer.code() != *code)
    {
        return wrong(format!("another code than {code}: {}", told()));
    }
    let content = &subject.content;
    let piece = |first: i64, last: i64| -> Vec<u8> {
        let place = |at: i64| u64::try_from(if at < 0 { at + BLOB.cast_signed() } else { at }).expect("in the blob");
        let mut bytes = Vec::new();
        content.write(&mut bytes, place(first), place(last) + 1).expect("memory takes every write");
        bytes
    };
    let whole = match (case.body, case.range) {
        (Some(Body::Blob), _) => Some(piece(0, -1)),
        (Some(Body::Manifest), _) => Some(subject.image.manifest.clone()),
        (Some(Body::EmptyObject), _) => Some(b"{}".to_vec()),
        (Some(Body::NoTags), _) => Some(format!("{{\"name\":\"{}\",\"tags\":[]}}", subject.repository).into_bytes()),
        (Some(Body::Nothing), _) => Some(Vec::new()),
        (None, Some((first, last))) => Some(piece(first, last)),
        (None, None) => None,
    };
    if whole.is_some_and(|whole| whole != answer.body) {
        return wrong(format!("another body, of {} bytes", answer.body.len()));
    }
    if !case.parts.is_empty() {
        check_parts(case, answer, piece)?;
    }
    for (name, value) in &case.has {
        let value = String::from_utf8(corpus::fill(value, values)).expect("a field of an answer is text");
        if answer.fields.get(name) != Some(value.as_str()) {
            return wrong(format!("{name} is {:?}, not {value:?}", answer.fields.get(name)));
        }
    }
    let never = ["Location".to_owned(), "Content-Encoding".to_owned()];
    match case.lacks.iter().chain(&never).find(|name| answer.fields.get(name).is_some()) {
        Some(name) => wrong(format!("it has {name}")),
        None => Ok(()),
    }
}

/// Whether a body has these parts of the blob, in this order. Source: RFC 9110, section 14.6; RFC 2046, section 5.1.1.
fn check_parts(case: &Request, answer: &Answer, piece: impl Fn(i64, i64) -> Vec<u8>) -> Result<(), Wrong> {
    let kind = answer.fields.get("Content-Type").unwrap_or_default();
    let Some(boundary) = kind.strip_prefix("multipart/byteranges; boundary=") else {
        return wrong(format!("Content-Type {kind}"));
    };
    let mut rest = answer.body.as_slice();
    for (first, last) in &case.parts {
        let bytes = piece(*first, *last);
        // A line end before the first boundary is one of an empty preamble.
        let line = format!("--{}\r\n", boundary.trim_matches('"'));
        let Some(behind) = rest.strip_prefix(b"\r\n").unwrap_or(rest).strip_prefix(line.as_bytes()) else {
            return wrong(format!("no boundary before {first}"));
        };
        rest = behind;
        let Ok(fields) = Fields::read(&mut rest) else { return wrong("a part without a head") };
        let place = |at: i64| if at < 0 { at + BLOB.cast_signed() } else { at };
        let range = format!("bytes {}-{}/{BLOB}", place(*first), place(*last));
        if fields.get("Content-Range") != Some(range.as_str()) {
            return wrong(format!("a part of {:?}, not of {range}", fields.get("Content-Range")));
        }
        let Some(behind) = rest.strip_prefix(bytes.as_slice()) else { return wrong("other bytes in a part") };
        rest = behind;
    }
    let end = format!("\r\n--{}--", boundary.trim_matches('"'));
    match rest.strip_prefix(end.as_bytes()) {
        Some([] | b"\r\n") => Ok(()),
        _ => wrong(format!("it does not end as a body of parts: {}", String::from_utf8_lossy(rest))),
    }
}

/// Whether the upstream has seen only what it may see.
fn check_seen(case: &Request, repository: &str, seen: &[Seen]) -> Result<(), Wrong> {
    if let Some(query) = &case.asks
        && !seen.iter().any(|asked| asked.query == *query)
    {
        return wrong(format!("the upstream is not asked {query:?}"));
    }
    for asked in seen {
        let told = format!("the upstream is asked {} {}?{}", asked.method, asked.path, asked.query);
        if case.asks_nobody || !matches!(asked.method.as_str(), "GET" | "HEAD") {
            return wrong(told);
        }
        if asked.path.contains("smuggled") || asked.query.contains("ns=") {
            return wrong(told);
        }
        let own = asked.path.contains(repository) || asked.path.contains("/library/nobody/");
        // The longest name is no case's own.
        if !own && !asked.path.contains(&"a".repeat(255)) {
            return wrong(told);
        }
        let never = ["Authorization", "Cookie", "Content-Length", "Transfer-Encoding", "Expect", "Upgrade", "Referer"];
        if let Some(name) = never.iter().find(|name| asked.fields.get(name).is_some()) {
            return wrong(format!("{told} with {name}"));
        }
        let client = |text: &str| text.to_ascii_lowercase().contains(MARK);
        if let Some(field) = asked.fields.0.iter().find(|(name, value)| client(name) || client(value)) {
            return wrong(format!("{told} with {field:?}"));
        }
    }
    Ok(())
}

impl Connection {
    fn open(proxy: &Proxy) -> Result<Self, Wrong> {
        let stream =
            TcpStream::connect(proxy.authority()).map_err(|error| Wrong(format!("it does not accept: {error}")))?;
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.set_write_timeout(Some(HANG)).unwrap();
        stream.set_nodelay(true).unwrap();
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends bytes, and so many more behind them, on a thread of its own: the peer may answer and close before it has
    /// read all.
    fn send(&self, bytes: Vec<u8>, more: u64) {
        let mut stream = self.stream.get_ref().try_clone().unwrap();
        let body = Content::noise(1, more);
        if more == 0 && bytes.len() < 16 * 1024 {
            // A connection that is closed already is seen when the answer is read.
            let _ = stream.write_all(&bytes);
            return;
        }
        thread::spawn(move || {
            let sent = stream.write_all(&bytes).and_then(|()| body.write(&mut stream, 0, more));
            // Who has read nothing of a body closes in the middle of it.
            drop(sent);
        });
    }

    /// Reads an answer; none where the connection ends first.
    fn receive(&mut self, method: &str) -> Result<Option<Answer>, Wrong> {
        let stream = self.stream.get_ref().try_clone().unwrap();
        let stream = std::mem::replace(&mut self.stream, BufReader::new(stream));
        match Response::read(stream, method) {
            Ok(response) => {
                let (answer, stream) = response.finish_and_keep();
                self.stream = stream;
                Ok(Some(answer))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                wrong("neither an answer nor an end")
            }
            // The end of the stream, or a reset: who closes before he has read everything resets.
            Err(error) if error.kind() == ErrorKind::Other => wrong(format!("no answer of HTTP: {error}")),
            Err(_) => Ok(None),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Ends the thread that may still be sending.
        let _ = self.stream.get_ref().shutdown(Shutdown::Both);
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn wrong<T>(what: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong(what.into()))
}

#[test]
fn an_answer_is_told_apart_from_the_next_one() {
    // The client of this file: what it takes for one answer is one answer.
    let listener = TcpListener::bind((own_address(), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabHTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
    });
    let mut connection = Connection { stream: BufReader::new(TcpStream::connect(address).unwrap()) };
    connection.send(b"GET / HTTP/1.1\r\n\r\n".to_vec(), 0);
    let mut next = || connection.receive("GET").ok().flatten().map(|answer| (answer.status, answer.text()));
    assert_eq!(next(), Some((200, "ab".to_owned())));
    assert_eq!(next(), Some((404, String::new())));
    server.join().unwrap();
    assert_eq!(next(), None);
}
