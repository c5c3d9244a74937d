//! Tidegate: the mirror proxy for container images that operators can program.
//!
//! The core is mechanism: it moves, verifies, caches and resumes bytes, and knows every upstream's address and secret.
//! Plugins are policy: they say who may pull what, from where, and what to do when that fails. A plugin sees facts and
//! names, never the bytes of a body, never a secret.
//!
//! Each room may use only what stands to its right; members of one brace never use each other:
//!
//! ```text
//! main -> cli -> server -> { pull, addressing } -> { plugin, cache, upstream } -> { config, body, metrics, record, trace } -> oci
//! ```
//!
//! `proxy/DESIGN.md` tells the layout of the cache, the numbered invariants and the tests that prove them.

pub mod cli;

pub mod server;

pub mod addressing;
pub mod pull;

pub mod cache;
pub mod plugin;
pub mod upstream;

pub mod body;
pub mod config;
pub mod metrics;
pub mod record;
pub mod trace;

pub mod oci;
