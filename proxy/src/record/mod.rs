//! The decision record: what was decided for each request, by whom and why, as one line of JSON; the last ones in
//! memory, and all of them in a file where the operator wants one.

mod file;
mod journal;
mod line;

pub use journal::{Counted, Journal, Tells};
pub use line::{Copy, Decided, Identity, Line, Route, Tried};
