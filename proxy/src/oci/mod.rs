//! The words of the OCI distribution specification as types. Pure: no input, no output.

pub mod action;
pub mod challenge;
pub mod digest;
pub mod endpoint;
pub mod error;
pub mod manifest;
pub mod name;
pub mod pull;
pub mod rate_limit;

pub use action::Action;
pub use digest::Digest;
pub use endpoint::Endpoint;
pub use error::Code;
pub use name::{Host, Reference, Registry, Repository, Tag};
pub use pull::{Addressing, Attempt, Candidate, Content, Denial, Failure, Method, Place, Pull};
pub use rate_limit::RateLimit;
