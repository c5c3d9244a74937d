//! The plugin's configuration: files beside the component, read once an instance.

use std::fmt;
use std::sync::OnceLock;

use serde::de::DeserializeOwned;

pub use crate::bindings::tidegate::policy::config::File;
pub use crate::host::config::files;

/// The parsed configuration of a plugin that has one file. The host makes a new version of the plugin when the file
/// changes, so what is parsed once holds as long as the instance lives.
///
/// ```
/// # use tidegate_sdk::{Config, File};
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Settings {
///     greeting: String,
/// }
///
/// static SETTINGS: Config<Settings> = Config::new("greeting = \"hello\"", File::toml);
/// ```
pub struct Config<T> {
    example: &'static str,
    parse: fn(&File) -> Result<T, String>,
    parsed: OnceLock<Result<T, String>>,
}

impl<T> Config<T> {
    /// `example`: what to write, in one line, shown where there is no file yet.
    pub const fn new(example: &'static str, parse: fn(&File) -> Result<T, String>) -> Self {
        Self { example, parse, parsed: OnceLock::new() }
    }

    /// The configuration, parsed on the first call.
    ///
    /// # Errors
    /// No file, more than one, or what `parse` refused: a text for the operator.
    pub fn get(&self) -> Result<&T, &str> {
        let parsed = self.parsed.get_or_init(|| (self.parse)(&one(&files(), self.example)?));
        parsed.as_ref().map_err(String::as_str)
    }
}

impl File {
    /// Reads the text as TOML.
    ///
    /// # Errors
    /// A text that names the file, the line and the reason.
    pub fn toml<T: DeserializeOwned>(&self) -> Result<T, String> {
        toml::from_str(&self.text).map_err(|error| {
            let reason = error.message().trim().replace('\n', "; ");
            match error.span() {
                Some(span) => self.refuse(span.start, reason),
                None => format!("{}: {reason}", self.name),
            }
        })
    }

    /// What to tell the operator: `10-allowlist.toml:3: reason`.
    ///
    /// `at`: where in the text, as in a `toml::Spanned`. Units: bytes.
    pub fn refuse(&self, at: usize, reason: impl fmt::Display) -> String {
        let line = self.text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
        format!("{}:{line}: {reason}", self.name)
    }
}

fn one(files: &[File], example: &str) -> Result<File, String> {
    match files {
        [file] => Ok(file.clone()),
        [] => Err(format!(
            "no configuration: put a file with the plugin's own stem beside it (10-NAME.toml beside 10-NAME.wasm); \
             for example: {example}"
        )),
        [first, second, ..] => Err(format!("{} and {} are both there: put all into one file", first.name, second.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[derive(serde::Deserialize, Debug, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        greeting: String,
    }

    #[test]
    fn a_file_is_parsed_once() {
        static SETTINGS: Config<Settings> = Config::new("greeting = \"hello\"", File::toml);
        testing::host(|host| host.file("10-x.toml", "greeting = \"hi\""));
        assert_eq!(SETTINGS.get().expect("it parses").greeting, "hi");
        testing::host(|host| host.files.clear());
        assert_eq!(SETTINGS.get().expect("it is kept").greeting, "hi");
    }

    #[test]
    fn errors_name_file_and_line() {
        for (text, error) in [
            ("# a\ngreting = 1", "10-x.toml:2: unknown field `greting`, expected `greeting`"),
            ("\n\ngreeting = 1", "10-x.toml:3: invalid type: integer `1`, expected a string"),
            ("greeting = [", "10-x.toml:1: unclosed array, expected `]`"),
            ("", "10-x.toml:1: missing field `greeting`"),
        ] {
            let file = File { name: "10-x.toml".to_owned(), text: text.to_owned() };
            assert_eq!(file.toml::<Settings>(), Err(error.to_owned()));
        }
    }

    #[test]
    fn there_must_be_exactly_one_file() {
        let file = |name: &str| File { name: name.to_owned(), text: String::new() };
        let none = one(&[], "greeting = \"hello\"").expect_err("no file");
        assert!(none.ends_with("for example: greeting = \"hello\""), "{none}");
        let two = one(&[file("10-x.json"), file("10-x.toml")], "").expect_err("two files");
        assert_eq!(two, "10-x.json and 10-x.toml are both there: put all into one file");
        assert_eq!(one(&[file("10-x.toml")], "").expect("one file").name, "10-x.toml");
    }
}
