//! A table of a file as its reader sees it: what is taken has a type, and what is left is noted.

use std::cell::RefCell;

use crate::tree::{Entry, Node, Value};
use crate::{Located, Refusal, Text, Unread};

/// One document under reading.
pub struct Reading<'a> {
    pub file: &'a str,
    unread: RefCell<Vec<Unread>>,
}

/// A table; what no reader takes from it is noted when it is dropped by [`Table::finish`].
pub struct Table<'a> {
    reading: &'a Reading<'a>,
    /// With a dot behind it, or empty.
    path: String,
    /// Where it begins.
    pub line: usize,
    entries: Vec<Entry>,
}

impl<'a> Reading<'a> {
    pub fn new(file: &'a str) -> Self {
        Self { file, unread: RefCell::default() }
    }

    pub fn refuse(&self, line: usize, reason: impl Into<String>) -> Refusal {
        Refusal { file: self.file.to_owned(), line: Some(line), reason: reason.into() }
    }

    /// A document's outermost table.
    pub fn table(&'a self, node: Node) -> Result<Table<'a>, Refusal> {
        self.table_at(String::new(), node)
    }

    fn table_at(&'a self, path: String, node: Node) -> Result<Table<'a>, Refusal> {
        let kind = node.kind();
        let Value::Table(entries) = node.value else {
            let name = path.trim_end_matches('.');
            return Err(self.refuse(node.line, format!("{name} must be a table of keys, and is {kind}")));
        };
        let mut keys: Vec<&Entry> = entries.iter().collect();
        keys.sort_by(|a, b| (&a.key, a.line).cmp(&(&b.key, b.line)));
        if let Some([_, twice]) = keys.windows(2).find(|pair| pair[0].key == pair[1].key) {
            return Err(self.refuse(twice.line, format!("{path}{} is there twice: keep one of the two", twice.key)));
        }
        Ok(Table { reading: self, path, line: node.line, entries })
    }

    pub fn finish(self) -> Vec<Unread> {
        let mut unread = self.unread.into_inner();
        unread.sort_by_key(|key| key.line);
        unread
    }
}

impl<'a> Table<'a> {
    /// The full name of a key, for people.
    pub fn name(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    pub fn refuse(&self, line: usize, reason: impl Into<String>) -> Refusal {
        self.reading.refuse(line, reason)
    }

    /// Takes what stands behind a key; none for nothing.
    pub fn take(&mut self, key: &str) -> Option<Node> {
        let at = self.entries.iter().position(|entry| entry.key == key)?;
        let node = self.entries.remove(at).node;
        (node.value != Value::Null).then_some(node)
    }

    pub fn text(&mut self, key: &str) -> Result<Option<Text>, Refusal> {
        self.take(key).map(|node| self.text_of(key, node)).transpose()
    }

    pub fn needed_text(&mut self, key: &str) -> Result<Text, Refusal> {
        let missing = self.refuse(self.line, format!("{} is missing", self.name(key)));
        self.text(key)?.filter(|text| !text.is_empty()).ok_or(missing)
    }

    fn text_of(&self, key: &str, node: Node) -> Result<Text, Refusal> {
        let kind = node.kind();
        match node.value {
            Value::Text(value) => Ok(Located { value, line: node.line }),
            _ => Err(self.refuse(node.line, format!("{} must be a text, and is {kind}", self.name(key)))),
        }
    }

    /// `false` where it is not there.
    pub fn flag(&mut self, key: &str) -> Result<bool, Refusal> {
        Ok(self.located_flag(key)?.is_some_and(|flag| flag.value))
    }

    pub fn located_flag(&mut self, key: &str) -> Result<Option<Located<bool>>, Refusal> {
        let Some(node) = self.take(key) else { return Ok(None) };
        let kind = node.kind();
        match node.value {
            Value::Flag(value) => Ok(Some(Located { value, line: node.line })),
            _ => Err(self.refuse(node.line, format!("{} must be true or false, and is {kind}", self.name(key)))),
        }
    }

    /// A list; with `None` where it is not there.
    pub fn list(&mut self, key: &str) -> Result<Option<Vec<Node>>, Refusal> {
        let Some(node) = self.take(key) else { return Ok(None) };
        let kind = node.kind();
        match node.value {
            Value::List(items) => Ok(Some(items)),
            _ => Err(self.refuse(node.line, format!("{} must be a list, and is {kind}", self.name(key)))),
        }
    }

    pub fn texts(&mut self, key: &str) -> Result<Option<Vec<Text>>, Refusal> {
        let Some(items) = self.list(key)? else { return Ok(None) };
        items.into_iter().map(|item| self.text_of(key, item)).collect::<Result<_, _>>().map(Some)
    }

    /// One text, or a list of them.
    pub fn text_or_texts(&mut self, key: &str) -> Result<Vec<Text>, Refusal> {
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Node { value: Value::List(items), .. }) => {
                items.into_iter().map(|item| self.text_of(key, item)).collect()
            }
            Some(node) => Ok(vec![self.text_of(key, node)?]),
        }
    }

    pub fn table(&mut self, key: &str) -> Result<Option<Table<'a>>, Refusal> {
        let path = format!("{}.", self.name(key));
        self.take(key).map(|node| self.reading.table_at(path, node)).transpose()
    }

    /// A list of tables; empty where it is not there.
    pub fn tables(&mut self, key: &str) -> Result<Vec<Table<'a>>, Refusal> {
        let path = format!("{}.", self.name(key));
        let items = self.list(key)?.unwrap_or_default();
        items.into_iter().map(|item| self.reading.table_at(path.clone(), item)).collect()
    }

    /// What is left of it, each as a table, in the order of the file.
    pub fn take_tables(&mut self) -> Result<Vec<(Text, Table<'a>)>, Refusal> {
        let entries = std::mem::take(&mut self.entries);
        let mut tables = Vec::with_capacity(entries.len());
        for Entry { key, line, mut node } in entries {
            if node.value == Value::Null {
                node.value = Value::Table(Vec::new());
            }
            let path = format!("{}.", self.name(&format!("\"{key}\"")));
            tables.push((Located { value: key, line }, self.reading.table_at(path, node)?));
        }
        Ok(tables)
    }

    /// What is left of it, as it is, in the order of the file.
    pub fn take_rest(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.entries)
    }

    /// Whether a key is there.
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key)
    }

    /// Notes what was not taken.
    pub fn finish(self) {
        let mut unread = self.reading.unread.borrow_mut();
        for entry in &self.entries {
            unread.push(Unread { key: self.name(&entry.key), line: entry.line });
        }
    }
}
