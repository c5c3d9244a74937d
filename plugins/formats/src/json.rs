//! JSON, as a tree.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::Refusal;
use crate::tree::{DEPTH_MAX, Entry, Lines, Node, Value};

/// The members of an object, in the order of the file, each as it is written.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// Reads one value.
pub fn parse(file: &str, text: &str) -> Result<Node, Refusal> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| {
        let reason = error.to_string();
        // The line is told in front, as of all files.
        let reason = reason.rsplit_once(" at line ").map_or(reason.as_str(), |(reason, _)| reason);
        Refusal { file: file.to_owned(), line: Some(error.line()), reason: format!("bad JSON: {reason}") }
    })?;
    Reader { file, text, lines: Lines::of(text) }.node(raw, 1)
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    lines: Lines,
}

impl Reader<'_> {
    /// Each level is read once more for the level below it: the depth is what bounds the work.
    fn node(&self, raw: &RawValue, depth: usize) -> Result<Node, Refusal> {
        let json = raw.get();
        // A raw value is a slice of the text.
        let line = self.lines.at((json.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize));
        let refuse = |reason: String| Refusal { file: self.file.to_owned(), line: Some(line), reason };
        if depth > DEPTH_MAX {
            return Err(refuse(format!("it is nested more than {DEPTH_MAX} deep")));
        }
        let bad = |error: serde_json::Error| refuse(format!("bad JSON: {error}"));
        let value = match json.as_bytes().first() {
            Some(b'{') => {
                let Members(members) = serde_json::from_str(json).map_err(bad)?;
                let mut entries: Vec<Entry> = Vec::with_capacity(members.len());
                for (key, raw) in members {
                    let node = self.node(raw, depth + 1)?;
                    entries.push(Entry { key, line: node.line, node });
                }
                Value::Table(entries)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(json).map_err(bad)?;
                Value::List(items.into_iter().map(|raw| self.node(raw, depth + 1)).collect::<Result<_, _>>()?)
            }
            Some(b'"') => Value::Text(serde_json::from_str(json).map_err(bad)?),
            Some(b't') => Value::Flag(true),
            Some(b'f') => Value::Flag(false),
            Some(b'n') => Value::Null,
            _ => Value::Other(json.to_owned()),
        };
        Ok(Node { line, value })
    }
}
