//! An `ImageContentSourcePolicy` as text: three words of it are changed where they stand, and nothing else is touched.

use std::fmt;

use saphyr_parser::{Event, Marker, Parser};

const FROM: [&str; 3] = ["operator.openshift.io/v1alpha1", "ImageContentSourcePolicy", "repositoryDigestMirrors"];
const TO: [&str; 3] = ["config.openshift.io/v1", "ImageDigestMirrorSet", "imageDigestMirrors"];

/// Deepest nesting that is read; a policy has six.
const DEPTH_MAX: usize = 64;

/// What came of a file.
#[derive(Debug)]
pub struct MirrorSet {
    /// Of the first object.
    pub name: String,
    /// The whole file.
    pub text: String,
}

/// Why a text is not turned.
#[derive(Debug)]
pub struct Refused {
    line: usize,
    reason: String,
}

impl fmt::Display for Refused {
    /// To stand right behind the file's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ":{}: {}", self.line, self.reason)
    }
}

/// Turns every document of a text.
///
/// # Errors
/// The first document that is no such policy, or where a word stands that cannot be changed in place.
pub fn to_digest_mirror_set(text: &str) -> Result<MirrorSet, Refused> {
    let mut reader =
        Reader { text, levels: Vec::new(), object: Object::default(), names: Vec::new(), edits: Vec::new() };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|err| Refused {
            line: err.marker().line(),
            reason: format!("bad YAML: {}", err.info().replace('\n', " ")),
        })?;
        reader.take(&event, &span.start)?;
    }
    let Reader { names, mut edits, .. } = reader;
    let Some(name) = names.into_iter().next() else {
        return Err(Refused { line: 1, reason: format!("there is no {} in it", FROM[1]) });
    };
    edits.sort_unstable();
    let mut changed = String::with_capacity(text.len());
    let mut done = 0;
    for (at, word) in edits {
        changed.push_str(&text[done..at]);
        changed.push_str(TO[word]);
        done = at + FROM[word].len();
    }
    changed.push_str(&text[done..]);
    Ok(MirrorSet { name, text: changed })
}

/// A list or a table that the reader is inside of.
enum Level {
    List,
    /// With the key whose value comes next.
    Table(Option<String>),
}

/// What was seen of a document.
#[derive(Default)]
struct Object {
    line: Option<usize>,
    words: [Option<Marker>; 3],
    kind: String,
    name: String,
    other_list: bool,
}

struct Reader<'a> {
    text: &'a str,
    levels: Vec<Level>,
    object: Object,
    names: Vec<String>,
    /// Where a word begins, and which.
    edits: Vec<(usize, usize)>,
}

impl Reader<'_> {
    fn take(&mut self, event: &Event<'_>, start: &Marker) -> Result<(), Refused> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd => {}
            Event::DocumentStart(_) => self.object = Object::default(),
            Event::DocumentEnd => self.end_document()?,
            Event::Scalar(text, ..) => self.scalar(text, start)?,
            Event::Alias(_) => {
                if self.wanted().is_some() {
                    let reason = "an alias stands here: write the word itself".to_owned();
                    return Err(Refused { line: start.line(), reason });
                }
                self.value_ended();
            }
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                self.object.line.get_or_insert(start.line());
                if self.levels.len() >= DEPTH_MAX {
                    let reason = format!("it is nested more than {DEPTH_MAX} deep");
                    return Err(Refused { line: start.line(), reason });
                }
                let is_list = matches!(event, Event::SequenceStart(..));
                self.levels.push(if is_list { Level::List } else { Level::Table(None) });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                self.levels.pop();
                self.value_ended();
            }
        }
        Ok(())
    }

    /// The keys that lead to where the reader is, an empty one where a key comes next; none inside a list.
    fn path(&self) -> Option<Vec<&str>> {
        self.levels
            .iter()
            .map(|level| match level {
                Level::Table(key) => Some(key.as_deref().unwrap_or_default()),
                Level::List => None,
            })
            .collect()
    }

    /// Which of the words the value here would be.
    fn wanted(&self) -> Option<usize> {
        match self.path()?.as_slice() {
            ["apiVersion"] => Some(0),
            ["kind"] => Some(1),
            _ => None,
        }
    }

    fn scalar(&mut self, text: &str, start: &Marker) -> Result<(), Refused> {
        if self.levels.is_empty() {
            if !text.is_empty() {
                self.object.line.get_or_insert(start.line());
            }
            return Ok(());
        }
        if let Some(Level::Table(None)) = self.levels.last() {
            return self.key(text, start);
        }
        if let Some(word) = self.wanted() {
            if word == 1 {
                text.clone_into(&mut self.object.kind);
            }
            if text == FROM[word] {
                self.object.words[word] = Some(*start);
            }
        } else if self.path().as_deref() == Some(&["metadata", "name"]) {
            text.clone_into(&mut self.object.name);
        }
        self.value_ended();
        Ok(())
    }

    fn key(&mut self, text: &str, start: &Marker) -> Result<(), Refused> {
        let path = self.path().unwrap_or_default();
        let twice = match path.as_slice() {
            [""] if text == "apiVersion" => self.object.words[0].is_some(),
            [""] if text == "kind" => !self.object.kind.is_empty(),
            ["spec", ""] if text == FROM[2] => self.object.words[2].is_some(),
            _ => false,
        };
        if twice {
            return Err(Refused { line: start.line(), reason: format!("{text}: stands here twice") });
        }
        if path.as_slice() == ["spec", ""] {
            if text == FROM[2] {
                self.object.words[2] = Some(*start);
            }
            self.object.other_list |= text == TO[2];
        }
        if let Some(Level::Table(waiting)) = self.levels.last_mut() {
            *waiting = Some(text.to_owned());
        }
        Ok(())
    }

    fn value_ended(&mut self) {
        if let Some(Level::Table(waiting)) = self.levels.last_mut() {
            *waiting = None;
        }
    }

    fn end_document(&mut self) -> Result<(), Refused> {
        let object = std::mem::take(&mut self.object);
        // Nothing stands between two lines of dashes.
        let Some(line) = object.line else { return Ok(()) };
        let refuse = |reason: String| Err(Refused { line, reason });
        let [Some(version), Some(kind), list] = object.words else {
            let hint = if object.kind == "List" { "; write its items as documents, with --- between them" } else { "" };
            let found =
                if object.kind.is_empty() { "nothing".to_owned() } else { object.kind.escape_debug().to_string() };
            return refuse(format!("is no {} of {}: its kind is {found}{hint}", FROM[1], FROM[0]));
        };
        if object.other_list {
            return refuse(format!("spec.{}: stands beside what would become it", TO[2]));
        }
        // A file is named after it, so it must be what Kubernetes takes. Source: RFC 1123, DNS subdomain names.
        let is_name = |sign: char| sign.is_ascii_lowercase() || sign.is_ascii_digit() || matches!(sign, '-' | '.');
        if object.name.is_empty() || object.name.len() > 253 || !object.name.chars().all(is_name) {
            return refuse(format!("metadata.name: `{}` is no name of an object", object.name.escape_debug()));
        }
        self.names.push(object.name);
        for (word, marker) in [(0, Some(version)), (1, Some(kind)), (2, list)] {
            if let Some(marker) = marker {
                let at = place(self.text, &marker, FROM[word]).ok_or_else(|| Refused {
                    line: marker.line(),
                    reason: format!(
                        "{} stands here in a form that cannot be changed in place: write it plainly",
                        FROM[word]
                    ),
                })?;
                self.edits.push((at, word));
            }
        }
        Ok(())
    }
}

/// Where a word stands whose scalar begins at a marker: there, or behind a quote. Units: bytes.
fn place(text: &str, marker: &Marker, word: &str) -> Option<usize> {
    let mut line_start = 0;
    for _ in 1..marker.line() {
        line_start += text[line_start..].find('\n')? + 1;
    }
    let line = &text[line_start..];
    let at = line_start + line.char_indices().nth(marker.col()).map(|(at, _)| at)?;
    let quote = usize::from(text[at..].starts_with(['\'', '"']));
    text[at + quote..].starts_with(word).then_some(at + quote)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "apiVersion: operator.openshift.io/v1alpha1\nkind: ImageContentSourcePolicy\nmetadata:\n  \
                          name: ubi8repo\nspec:\n  repositoryDigestMirrors:\n  - mirrors:\n    - example.io/ubi\n    source: x.y/ubi8\n";

    #[test]
    fn three_words_change_and_nothing_else() {
        let odd = "# ICSP: operator.openshift.io/v1alpha1 ImageContentSourcePolicy repositoryDigestMirrors\r\n\
                   spec: # the ümlaut\r\n    'repositoryDigestMirrors' :   # kept\r\n    - source:   \"x.y/ubi8\"\r\n      \
                   mirrors: [ a.b/c,  d.e ]\r\nkind:    \"ImageContentSourcePolicy\"   # kind\r\n\
                   metadata: {name: one.two, annotations: {kind: ImageContentSourcePolicy}}\r\n\
                   'apiVersion': 'operator.openshift.io/v1alpha1'\r\n";
        let json = r#"{"kind":"ImageContentSourcePolicy","apiVersion":"operator.openshift.io/v1alpha1","metadata":{"name":"a"},"spec":{"repositoryDigestMirrors":[]}}"#;
        let several = format!("---\n{POLICY}---\n# nothing\n---\n{}", POLICY.replace("ubi8repo", "second"));
        for (text, name) in [(POLICY, "ubi8repo"), (odd, "one.two"), (json, "a"), (&several, "ubi8repo")] {
            let set = to_digest_mirror_set(text).unwrap_or_else(|err| panic!("{text}{err}"));
            assert_eq!(set.name, name);
            // Undone, it is the file to the byte; the comment and the annotation never changed.
            let mut undone = set.text.clone();
            for word in 0..3 {
                assert!(undone.contains(TO[word]), "{undone}");
                undone = undone.replace(TO[word], FROM[word]);
            }
            assert_eq!(undone, text);
        }
        let set = to_digest_mirror_set(odd).expect("a policy");
        assert!(set.text.starts_with("# ICSP: operator.openshift.io/v1alpha1 ImageContentSourcePolicy repository"));
        assert!(set.text.contains("{kind: ImageContentSourcePolicy}"), "{}", set.text);
        assert!(set.text.contains("'imageDigestMirrors' :   # kept\r\n"), "{}", set.text);
    }

    #[test]
    fn what_is_no_policy_is_refused_with_its_line() {
        let two = format!("{POLICY}---\nkind: Pod\napiVersion: v1\n");
        for (text, line, part) in [
            ("", 1, "there is no"),
            ("# only a comment\n", 1, "there is no"),
            ("just a word\n", 1, "is no ImageContentSourcePolicy"),
            ("- a\n", 1, "is no ImageContentSourcePolicy"),
            (
                "\nkind: ImageDigestMirrorSet\napiVersion: config.openshift.io/v1\n",
                2,
                "its kind is ImageDigestMirrorSet",
            ),
            (&POLICY.replace("v1alpha1", "v1"), 1, "operator.openshift.io/v1alpha1"),
            (&two, 11, "its kind is Pod"),
            ("apiVersion: v1\nkind: List\nitems: []\n", 1, "documents"),
            (&POLICY.replace("ubi8repo", "../../etc/x"), 1, "metadata.name"),
            (&POLICY.replace("  name: ubi8repo\n", "  namespace: a\n"), 1, "metadata.name"),
            (&POLICY.replace("kind: I", "kind: ImageContentSourcePolicy\nkind: I"), 3, "twice"),
            (&format!("{POLICY}  imageDigestMirrors: []\n"), 1, "beside"),
            (&POLICY.replace("kind: I", "x: &k ImageContentSourcePolicy\nkind: *k # I"), 3, "alias"),
            (&POLICY.replace("kind: ImageContentSourcePolicy", "kind: \"\\x49mageContentSourcePolicy\""), 2, "plainly"),
            ("kind: [", 2, "bad YAML"),
        ] {
            let err = to_digest_mirror_set(text).expect_err(text).to_string();
            assert!(err.contains(part), "{text}: {err}");
            assert!(err.starts_with(&format!(":{line}: ")), "{text}: {err}");
        }
    }

    #[test]
    fn a_policy_without_a_list_is_turned_too() {
        let text = POLICY.split("spec:").next().expect("a beginning");
        assert!(to_digest_mirror_set(text).expect("a policy").text.contains("kind: ImageDigestMirrorSet"));
    }
}
