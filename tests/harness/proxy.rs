//! The real program, serving.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::HANG;
use crate::http::{self, Answer, Request};
use crate::process::Process;
use crate::site::Site;

/// Ends when it is dropped; its log is printed when the test has failed.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    site: Site,
    listen: String,
    admin: String,
}

/// A line of the log, as data.
#[derive(Clone, Debug)]
pub struct Event(Value);

/// A place in the log: only what comes after it counts.
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

impl Proxy {
    pub(crate) fn start(site: Site, config: &Path) -> Self {
        let process = Process::start(site.command().args(["serve", "--config"]).arg(config));
        let find = |prefix: &str| {
            let listening = process.out.wait(0, HANG, |line| Some(line.strip_prefix(prefix)?.trim().to_owned()));
            listening.unwrap_or_else(|| panic!("tidegate does not say {prefix:?}:\n{}", process.log()))
        };
        let (listen, admin) = (find("listening on "), find("admin on "));
        Self { process, site, listen, admin }
    }

    /// Host and port, as a client's configuration names a mirror.
    pub fn authority(&self) -> String {
        self.listen.trim_start_matches("http://").trim_start_matches("https://").to_owned()
    }

    /// Address of a path that begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.listen)
    }

    /// GET of a path, to be opened or fetched.
    pub fn get(&self, path: &str) -> Request {
        http::get(&self.url(path))
    }

    /// HEAD of a path.
    pub fn head(&self, path: &str) -> Request {
        http::head(&self.url(path))
    }

    /// GET of a path of the admin listener.
    pub fn admin(&self, path: &str) -> Answer {
        http::get(&format!("{}{path}", self.admin)).fetch()
    }

    /// What it runs on.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The process, for its figures.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The place in the log where it is now.
    pub fn mark(&self) -> Mark {
        Mark(self.process.err.count())
    }

    /// The place before the first line.
    pub fn beginning(&self) -> Mark {
        Mark(0)
    }

    /// All events with a message since a place.
    pub fn events(&self, since: Mark, message: &str) -> Vec<Event> {
        let lines = self.process.err.since(since.0);
        lines.iter().filter_map(|line| Event::parse(line)).filter(|event| event.message() == message).collect()
    }

    /// Waits for an event with a message and with fields of these values.
    pub fn wait(&self, since: Mark, message: &str, fields: &[(&str, &str)]) -> Event {
        let matches = |event: &Event| fields.iter().all(|(key, value)| event.field(key) == *value);
        self.find(since, message, matches).unwrap_or_else(|| panic!("the log has no {message:?} with {fields:?}"))
    }

    /// Waits for an event with a message of which something holds.
    pub fn wait_for(&self, since: Mark, message: &str, holds: impl Fn(&Event) -> bool) -> Event {
        self.find(since, message, holds).unwrap_or_else(|| panic!("the log has no {message:?} as it was waited for"))
    }

    /// Waits for an event with one of two messages and with a field of this value, as long as a compilation may take.
    pub fn wait_for_either(&self, since: Mark, one: &str, other: &str, field: (&str, &str)) -> Event {
        let matches = |event: &Event| [one, other].contains(&event.message()) && event.field(field.0) == field.1;
        let found = self.process.err.wait(since.0, 2 * HANG, |line| Event::parse(line).filter(matches));
        found.unwrap_or_else(|| panic!("the log has neither {one:?} nor {other:?} with {field:?}"))
    }

    /// Waits for an event with a message since the start, with a guard of another length. Whether it came.
    pub fn wait_for_within(&self, limit: Duration, message: &str) -> bool {
        let matches = |event: &Event| event.message() == message;
        self.process.err.wait(0, limit, |line| Event::parse(line).filter(matches)).is_some()
    }

    fn find(&self, since: Mark, message: &str, holds: impl Fn(&Event) -> bool) -> Option<Event> {
        let matches = |event: &Event| event.message() == message && holds(event);
        self.process.err.wait(since.0, HANG, |line| Event::parse(line).filter(matches))
    }

    /// Does something to the plugin folder, and waits until another set of plugins is in effect.
    pub fn reload(&self, change: impl FnOnce(&Site)) -> Event {
        // The line of the start may still be on its way: it is none of the change's.
        let _ = self.find(self.beginning(), "plugins in effect", |_| true);
        let mark = self.mark();
        change(&self.site);
        self.wait(mark, "plugins in effect", &[])
    }

    /// Does something to the plugin folder, and waits until it is refused. Gives the reason.
    pub fn refusal(&self, plugin: &str, change: impl FnOnce(&Site)) -> Event {
        let mark = self.mark();
        change(&self.site);
        self.wait(mark, "plugin not loaded", &[("plugin", plugin)])
    }

    /// Everything that it has logged, as text.
    pub fn log(&self) -> String {
        self.process.err.since(0).join("\n")
    }

    /// Kills it without a chance to tidy up.
    pub fn kill9(self) -> Site {
        self.process.signal(Signal::KILL);
        self.process.wait();
        self.site.clone()
    }

    /// Asks it to end, and waits until it has.
    pub fn terminate(self) -> (Site, ExitStatus) {
        self.process.signal(Signal::TERM);
        let status = self.process.wait();
        (self.site.clone(), status)
    }
}

impl Event {
    fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok().map(Self)
    }

    /// What happened.
    pub fn message(&self) -> &str {
        self.0["message"].as_str().unwrap_or_default()
    }

    /// A field as text; empty where there is none.
    pub fn field(&self, name: &str) -> String {
        match &self.0[name] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }
}
