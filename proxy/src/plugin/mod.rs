//! The plugin host: WebAssembly components that decide, and the folder that they are dropped into.
//!
//! wasmtime stays in here. What comes out are words of `oci`.

mod facts;

mod bindings;
mod code_cache;
mod compile;
mod convert;
mod engine;
mod folder;
mod guest;
mod instance;
mod last_good;
mod lock;
mod reload;
mod scope;
mod set;
mod settings;
mod start;
mod state;
mod wasi;
mod watch;

pub use compile::{VERB as COMPILE_VERB, run_compiler};
pub use convert::Step;
pub use facts::{Cached, Decision, Facts, Peek, Question};
pub use reload::{Plugins, StartError};
pub use set::{Admission, Opinion, PluginSet};
pub use settings::Mode;
