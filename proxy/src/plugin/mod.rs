//! The plugin host: WebAssembly components that decide, and the folder that they are dropped into.
//!
//! wasmtime stays in here. What comes out are words of `oci`.

mod facts;

mod alone;
mod bindings;
mod code_cache;
mod compile;
mod convert;
mod cost;
mod counters;
mod engine;
mod folder;
mod given;
mod guest;
mod hints;
mod hooks;
mod image;
mod instance;
mod last_good;
mod lock;
mod looking;
mod lookups;
mod memory;
mod meter;
mod reload;
mod replaying;
mod ruling;
mod scope;
mod set;
mod settings;
mod start;
mod state;
mod view;
mod waiting;
mod warm;
mod wasi;
mod watch;

pub use alone::{About, Alone, Files};
pub use compile::{VERB as COMPILE_VERB, run_compiler};
pub use cost::{Cost, measure};
pub use facts::{Decided, Decision, Facts, Identity, Question, Seen, Tried};
pub use folder::{plugin_name, strays};
pub use given::Given;
pub use hints::Depends;
pub use image::Image;
pub use lookups::{Cached, Gave, Looking, Lookups, Missing};
pub use reload::{Plugins, StartError};
pub use replaying::Replaying;
pub use ruling::{Rule, Step};
pub use set::{Admission, Counting, PluginSet};
pub use settings::Mode;
pub use view::View;
pub use waiting::Refused;
