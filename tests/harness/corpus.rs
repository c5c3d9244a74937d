//! The data files in `tests/corpus/`: bad input, each case with what must come of it.

use std::collections::BTreeMap;
use std::fs;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::program::workspace;

/// A file of cases.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases<T> {
    case: Vec<T>,
}

/// A value that may stand alone.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> OneOrMore<T> {
    fn all(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::More(more) => more,
        }
    }
}

/// What of the blob, or else, must be the body of an answer.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Body {
    /// The blob.
    Blob,
    /// The manifest.
    Manifest,
    /// `{}`
    EmptyObject,
    /// A list of no tags.
    NoTags,
    /// Nothing.
    Nothing,
}

/// Whether what is asked for is cached.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Temperature {
    /// It is.
    Hit,
    /// It is not.
    Miss,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedRequest {
    name: String,
    /// The case is tried once for each of these, which stand for `{each}`.
    #[serde(default)]
    each: Vec<String>,
    method: Option<String>,
    target: Option<String>,
    #[serde(default)]
    fields: Vec<String>,
    raw: Option<String>,
    #[serde(default)]
    body_bytes: u64,
    status: OneOrMore<u16>,
    code: Option<String>,
    #[serde(default)]
    or_closed: bool,
    close: Option<bool>,
    body: Option<Body>,
    range: Option<(i64, i64)>,
    #[serde(default)]
    parts: Vec<(i64, i64)>,
    #[serde(default)]
    has: BTreeMap<String, String>,
    #[serde(default)]
    lacks: Vec<String>,
    #[serde(default)]
    asks_nobody: bool,
    asks: Option<String>,
    on: Option<OneOrMore<Temperature>>,
}

/// One request, and what must come of it. The keys are told at the head of `requests.toml`.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is odd about it.
    pub name: String,
    /// What a server reads as the method: it decides whether an answer has a body.
    pub method: String,
    /// Its bytes, with placeholders.
    pub text: String,
    /// How many bytes of a body follow, as long as somebody reads them.
    pub body_bytes: u64,
    /// The statuses that it may have; none: any but a good one.
    pub status: Vec<u16>,
    /// The code of the error.
    pub code: Option<String>,
    /// Whether the connection may end without an answer.
    pub or_closed: bool,
    /// Whether the connection must end, or stay, after the answer; none: as the answer says.
    pub close: Option<bool>,
    /// What the body is.
    pub body: Option<Body>,
    /// Which part of the blob the body is: first and last byte; those below 0 count from its end.
    pub range: Option<(i64, i64)>,
    /// Which parts of the blob a body of several parts has.
    pub parts: Vec<(i64, i64)>,
    /// Header fields that the answer must have, with placeholders.
    pub has: BTreeMap<String, String>,
    /// Header fields that it must not have.
    pub lacks: Vec<String>,
    /// Whether no upstream may be asked.
    pub asks_nobody: bool,
    /// The query that the upstream gets.
    pub asks: Option<String>,
    /// Where it is tried.
    pub on: Vec<Temperature>,
}

/// A configuration that is refused, or taken.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// What is wrong with it.
    pub name: String,
    /// The file, with `{folder}` for a folder that is there.
    pub text: String,
    /// The line that must be named; none: the file is good.
    pub line: Option<usize>,
    /// Words that must stand in the message: the key, and what is the matter.
    #[serde(default)]
    pub says: Vec<String>,
}

/// The cases of `requests.toml`, one for each value of `each`.
pub fn requests() -> Vec<Request> {
    let typed: Vec<TypedRequest> = read("requests.toml");
    typed.into_iter().flat_map(TypedRequest::spread).collect()
}

/// The cases of `configurations.toml`.
pub fn configurations() -> Vec<Configuration> {
    read("configurations.toml")
}

fn read<T: DeserializeOwned>(name: &str) -> Vec<T> {
    let file = workspace().join("tests/corpus").join(name);
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let cases: Cases<T> = toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    cases.case
}

impl TypedRequest {
    fn spread(self) -> Vec<Request> {
        if self.each.is_empty() {
            return vec![self.request()];
        }
        let with = |value: &String| {
            let mut one = self.clone();
            one.name = format!("{}: {value}", self.name);
            for text in one.target.iter_mut().chain(&mut one.raw).chain(&mut one.fields).chain(&mut one.method) {
                *text = text.replace("{each}", value);
            }
            one.request()
        };
        self.each.iter().map(with).collect()
    }

    fn request(self) -> Request {
        let method = self.method.unwrap_or_else(|| "GET".to_owned());
        let text = match (self.raw, self.target) {
            (Some(raw), None) if self.fields.is_empty() => raw,
            (None, Some(target)) => {
                let host =
                    if self.fields.iter().any(|field| field.starts_with("Host:")) { "" } else { "Host: mirror\r\n" };
                let fields: String = self.fields.iter().flat_map(|field| [field.as_str(), "\r\n"]).collect();
                format!("{method} {target} HTTP/1.1\r\n{host}{MARKED}{fields}\r\n")
            }
            _ => panic!("{}: it has either `raw`, or `target` with `fields`", self.name),
        };
        Request {
            name: self.name,
            method,
            text,
            body_bytes: self.body_bytes,
            status: self.status.all(),
            code: self.code,
            or_closed: self.or_closed,
            close: self.close,
            body: self.body,
            range: self.range,
            parts: self.parts,
            has: self.has,
            lacks: self.lacks,
            asks_nobody: self.asks_nobody,
            asks: self.asks,
            on: self.on.map_or_else(|| vec![Temperature::Hit, Temperature::Miss], OneOrMore::all),
        }
    }
}

/// What no upstream may see.
pub const MARK: &str = "of-the-client";

/// Fields of a client that are its own business.
const MARKED: &str = "User-Agent: agent-of-the-client\r\nCookie: cookie=of-the-client\r\nX-Of-The-Client: of-the-client\r\n\
     Referer: http://of-the-client/\r\nX-Forwarded-For: of-the-client\r\nAccept-Language: of-the-client\r\n";

/// Puts values into the placeholders of a text: `{name}`, `{name+3}` and `{name-3}` of a number, `{text*9}` for a text
/// that is repeated, and `{0xff}` for a byte.
pub fn fill(text: &str, values: &BTreeMap<&str, String>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('{') {
        bytes.extend_from_slice(before.as_bytes());
        let (placeholder, behind) = behind.split_once('}').unwrap_or_else(|| panic!("no }} in {text:?}"));
        bytes.extend(value(placeholder, values).unwrap_or_else(|| panic!("{{{placeholder}}} is no placeholder")));
        rest = behind;
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

fn value(placeholder: &str, values: &BTreeMap<&str, String>) -> Option<Vec<u8>> {
    if let Some(value) = values.get(placeholder) {
        return Some(value.clone().into_bytes());
    }
    if let Some(byte) = placeholder.strip_prefix("0x") {
        return Some(vec![u8::from_str_radix(byte, 16).ok()?]);
    }
    if let Some((text, times)) = placeholder.rsplit_once('*') {
        return Some(text.repeat(times.parse().ok()?).into_bytes());
    }
    let at = placeholder.find(['+', '-'])?;
    let (name, number) = placeholder.split_at(at);
    let sum = values.get(name)?.parse::<i64>().ok()?.checked_add(number.parse().ok()?)?;
    Some(sum.to_string().into_bytes())
}
