//! What TOML, YAML and JSON have in common: values with the lines that they stand in.

/// A value.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// Where it begins, from 1 on.
    pub line: usize,
    /// What it is.
    pub value: Value,
}

/// What a value is.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// `null`, or nothing behind a key of YAML.
    Null,
    /// `true` or `false`.
    Flag(bool),
    /// A text.
    Text(String),
    /// A number or a date: nobody here reads one, other than as it was written.
    Other(String),
    /// A list.
    List(Vec<Node>),
    /// In the order of the file.
    Table(Vec<Entry>),
}

/// A key and what stands behind it.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Of the key.
    pub line: usize,
    /// What stands under it.
    pub node: Node,
}

/// Most values of one file: a file may repeat a part of itself.
pub const NODES_MAX: usize = 200_000;
/// Deepest nesting that is read; the deepest that is known here has eight.
pub const DEPTH_MAX: usize = 64;

impl Node {
    /// A word for its type, for people.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Flag(_) => "true or false",
            Value::Text(_) => "a text",
            Value::Other(_) => "a number",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

/// The lines of a text, by where they begin.
pub struct Lines(Vec<usize>);

impl Lines {
    pub fn of(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    /// The line of a byte, from 1 on.
    pub fn at(&self, byte: usize) -> usize {
        self.0.partition_point(|end| *end < byte) + 1
    }
}
