//! YAML, as a tree for each document. Read from the parser's events, so that what anchors repeat is counted before it
//! is made.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

use crate::Refusal;
use crate::tree::{DEPTH_MAX, Entry, NODES_MAX, Node, Value};

/// A list or a table that is being read.
enum Open {
    List(Vec<Node>),
    /// With the key whose value comes next.
    Table(Vec<Entry>, Option<(String, usize)>),
}

struct Level {
    line: usize,
    anchor: usize,
    open: Open,
}

struct Reader<'a> {
    file: &'a str,
    levels: Vec<Level>,
    /// What anchors name, and how many values that is.
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    documents: Vec<Node>,
}

/// Reads all documents; those that are empty are left out.
pub fn parse(file: &str, text: &str) -> Result<Vec<Node>, Refusal> {
    let mut reader = Reader { file, levels: Vec::new(), anchors: HashMap::new(), nodes: 0, documents: Vec::new() };
    for event in Parser::new_from_str(text) {
        let (event, span) =
            event.map_err(|error| reader.refuse(error.marker().line(), format!("bad YAML: {}", error.info())))?;
        reader.take(event, span.start.line())?;
    }
    Ok(reader.documents)
}

impl Reader<'_> {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), Refusal> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.anchors.clear();
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let value = if plain { plain_value(&text) } else { Value::Text(text.into_owned()) };
                self.put(Node { line, value }, anchor, 1)
            }
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(self.refuse(line, "an alias of itself".to_owned()));
                };
                self.put(node, 0, size)
            }
            Event::SequenceStart(anchor, _) => self.open(line, anchor, Open::List(Vec::new())),
            Event::MappingStart(anchor, _) => self.open(line, anchor, Open::Table(Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Level { line, anchor, open }) = self.levels.pop() else { return Ok(()) };
                let value = match open {
                    Open::List(items) => Value::List(items),
                    Open::Table(entries, _) => Value::Table(entries),
                };
                self.put(Node { line, value }, anchor, 0)
            }
        }
    }

    fn open(&mut self, line: usize, anchor: usize, open: Open) -> Result<(), Refusal> {
        if self.levels.len() >= DEPTH_MAX {
            return Err(self.refuse(line, format!("it is nested more than {DEPTH_MAX} deep")));
        }
        self.count(line, 1)?;
        self.levels.push(Level { line, anchor, open });
        Ok(())
    }

    fn count(&mut self, line: usize, nodes: usize) -> Result<(), Refusal> {
        self.nodes += nodes;
        if self.nodes > NODES_MAX {
            return Err(self.refuse(line, format!("it has more than {NODES_MAX} values, with what aliases repeat")));
        }
        Ok(())
    }

    /// Puts a value that is whole where it belongs.
    ///
    /// `nodes`: how many values it adds to those that were counted.
    fn put(&mut self, node: Node, anchor: usize, nodes: usize) -> Result<(), Refusal> {
        self.count(node.line, nodes)?;
        if anchor != 0 {
            let size = size(&node);
            // What an anchor keeps is a copy, and counts as one.
            self.count(node.line, size)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        match self.levels.last_mut().map(|level| &mut level.open) {
            None if node.value == Value::Null => {}
            None => self.documents.push(node),
            Some(Open::List(items)) => items.push(node),
            Some(Open::Table(entries, waiting)) => {
                if let Some((key, line)) = waiting.take() {
                    entries.push(Entry { key, line, node });
                    return Ok(());
                }
                let key = match node.value {
                    Value::Text(text) | Value::Other(text) => text,
                    Value::Flag(flag) => flag.to_string(),
                    Value::Null => "null".to_owned(),
                    Value::List(_) | Value::Table(_) => {
                        return Err(self.refuse(node.line, "a key must be a text".to_owned()));
                    }
                };
                *waiting = Some((key, node.line));
            }
        }
        Ok(())
    }

    fn refuse(&self, line: usize, reason: String) -> Refusal {
        Refusal { file: self.file.to_owned(), line: Some(line), reason }
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(size).sum(),
        Value::Table(entries) => entries.iter().map(|entry| size(&entry.node)).sum(),
        _ => 0,
    }
}

/// What stands without quotes: in Kubernetes' files a text, other than these.
///
/// Source: YAML 1.2.2, section 10.3.2, core schema.
fn plain_value(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Flag(true),
        "false" | "False" | "FALSE" => Value::Flag(false),
        _ if text.parse::<f64>().is_ok() => Value::Other(text.to_owned()),
        _ => Value::Text(text.to_owned()),
    }
}
