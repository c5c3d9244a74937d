//! TOML, as a tree.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::Refusal;
use crate::tree::{DEPTH_MAX, Entry, Lines, Node, Value};

/// Reads a file.
pub fn parse(file: &str, text: &str) -> Result<Node, Refusal> {
    let lines = Lines::of(text);
    let refuse = |line, reason: String| Refusal { file: file.to_owned(), line, reason };
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map(|span| lines.at(span.start));
        refuse(line, error.message().trim().replace('\n', "; "))
    })?;
    match table_of(table.into_inner(), &lines, 1) {
        Some(value) => Ok(Node { line: 1, value }),
        None => Err(refuse(None, format!("its tables are nested more than {DEPTH_MAX} deep"))),
    }
}

fn table_of(table: DeTable<'_>, lines: &Lines, depth: usize) -> Option<Value> {
    if depth > DEPTH_MAX {
        return None;
    }
    let mut entries = Vec::with_capacity(table.len());
    for (key, value) in table {
        let at = key.span().start;
        let node = node(value, lines, depth + 1)?;
        entries.push((at, Entry { key: key.into_inner().into_owned(), line: lines.at(at), node }));
    }
    // The table is sorted by name; hosts.toml counts on the order of the file.
    entries.sort_by_key(|(at, _)| *at);
    Some(Value::Table(entries.into_iter().map(|(_, entry)| entry).collect()))
}

fn node(value: Spanned<DeValue<'_>>, lines: &Lines, depth: usize) -> Option<Node> {
    let line = lines.at(value.span().start);
    let value = match value.into_inner() {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Boolean(flag) => Value::Flag(flag),
        DeValue::Integer(number) => Value::Other(number.to_string()),
        DeValue::Float(number) => Value::Other(number.to_string()),
        DeValue::Datetime(date) => Value::Other(date.to_string()),
        DeValue::Table(table) => table_of(table, lines, depth)?,
        DeValue::Array(_) if depth > DEPTH_MAX => return None,
        DeValue::Array(array) => {
            Value::List(array.into_iter().map(|value| node(value, lines, depth + 1)).collect::<Option<_>>()?)
        }
    };
    Some(Node { line, value })
}
