//! `[limits]`: how long anybody is waited for, and how many are served at once.

use std::time::Duration;

use toml::Spanned;

use super::file;
use super::source::{ConfigError, Source};

/// `[limits]`
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections of clients at once; a further one waits to be accepted.
    pub connections: usize,
    /// How long a client may take to send the head of a request.
    pub request_head: Duration,
    /// How long a client may take nothing of an answer, or send nothing of a body.
    pub write_stall: Duration,
    /// How long bodies may finish after the signal to end.
    pub drain: Duration,
    /// Longest time for a connection to an upstream, and as long again for its TLS.
    pub upstream_connect: Duration,
    /// How long one attempt waits for the headers of an answer.
    pub upstream_headers: Duration,
    /// How long all attempts of one request may take until the headers of an answer.
    pub upstream_attempts: Duration,
    /// How long the body of an upstream may be silent.
    pub upstream_idle: Duration,
    /// The least that an upstream's body must bring while it is waited for. Units: bytes a second, over `upstream_idle`.
    pub upstream_min_rate: u64,
    /// How long a registry may take to answer once it has all of what is pushed to it.
    pub upstream_push: Duration,
    /// How long a registry that keeps failing stands behind the others at first; up to twelve times as long later.
    pub upstream_ailing: Duration,
    /// Transfers at once that no client waits for any more.
    pub orphan_fills: usize,
    /// How long a transfer goes on at least that no client waits for any more.
    pub orphan_time: Duration,
}

impl Source<'_> {
    pub fn limits(&self, typed: &file::Limits) -> Result<Limits, ConfigError> {
        let duration = |typed: &Option<Spanned<String>>, key: &str, default: Duration| match typed {
            Some(typed) => {
                let key = format!("limits.{key}");
                let duration = self.duration(typed, &key)?;
                if duration.is_zero() {
                    return Err(
                        self.error(&typed.span(), &format!("{key}: no time at all; remove the key for the default"))
                    );
                }
                Ok(duration)
            }
            None => Ok(default),
        };
        let connections = match &typed.connections {
            Some(typed) if *typed.get_ref() == 0 => {
                return Err(self.error(&typed.span(), "limits.connections: nobody could connect; write at least 1"));
            }
            Some(typed) => *typed.get_ref(),
            None => 16_384,
        };
        Ok(Limits {
            connections,
            request_head: duration(&typed.request_head, "request_head", Duration::from_secs(10))?,
            write_stall: duration(&typed.write_stall, "write_stall", Duration::from_mins(1))?,
            drain: duration(&typed.drain, "drain", Duration::from_secs(30))?,
            upstream_connect: duration(&typed.upstream_connect, "upstream_connect", Duration::from_secs(5))?,
            upstream_headers: duration(&typed.upstream_headers, "upstream_headers", Duration::from_secs(8))?,
            upstream_attempts: duration(&typed.upstream_attempts, "upstream_attempts", Duration::from_secs(20))?,
            upstream_idle: duration(&typed.upstream_idle, "upstream_idle", Duration::from_secs(30))?,
            upstream_min_rate: match &typed.upstream_min_rate {
                Some(rate) => self.size(rate, "limits.upstream_min_rate")?,
                None => 1 << 10,
            },
            upstream_push: duration(&typed.upstream_push, "upstream_push", Duration::from_mins(5))?,
            upstream_ailing: duration(&typed.upstream_ailing, "upstream_ailing", Duration::from_secs(10))?,
            orphan_fills: typed.orphan_fills.as_ref().map_or(8, |fills| *fills.get_ref()),
            orphan_time: duration(&typed.orphan_time, "orphan_time", Duration::from_secs(10))?,
        })
    }
}
