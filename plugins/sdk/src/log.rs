//! The host's log. A line carries the plugin's name and the request's id already; at most 8 KiB for each call of a
//! hook.

pub use crate::bindings::tidegate::policy::log::Level;
pub use crate::host::log::write;

/// For the author of the plugin only.
pub fn debug(message: &str) {
    write(Level::Debug, message);
}

/// What an operator may want to know.
pub fn info(message: &str) {
    write(Level::Info, message);
}

/// What an operator may have to act on.
pub fn warn(message: &str) {
    write(Level::Warn, message);
}

/// What is wrong in the plugin itself.
pub fn error(message: &str) {
    write(Level::Error, message);
}
